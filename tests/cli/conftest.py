"""What tests of the command line share."""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, NamedTuple

import onnx
import pytest

from onnxcomp import stages
from onnxcomp.cli.app import run
from tests.helpers import text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NET = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w> {
      a = Identity (x)
      b = MatMul (a, w)
      c = Relu (b)
      y = Identity (c)
    }
"""


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Done]]:
    """Runs a command line in this process."""

    def call(*arguments: object) -> Done:
        capfd.readouterr()
        code = copy_context().run(run, [str(argument) for argument in arguments])
        return Done(code, *capfd.readouterr())

    yield call
    stages.BOARD.listener = None


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A small model in a file."""
    path = tmp_path / "net.onnx"
    onnx.save(text.model(NET), path)
    return path
