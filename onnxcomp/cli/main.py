"""Entry point of the command `onnxcomp`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onnxcomp.cli.supervise import supervised

if TYPE_CHECKING:
    from onnxcomp.cli.shared import SharedState


def main() -> int:
    """Runs the command line in a watched process and returns its exit code."""
    return supervised(_work)


def _work(shared: SharedState | None) -> int:
    # Only the worker pays for what the commands need.
    from onnxcomp.cli.app import run

    return run(sys.argv[1:], shared)


if __name__ == "__main__":
    sys.exit(main())
