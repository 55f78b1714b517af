"""Reading the runtime's profile: time per node."""

from __future__ import annotations

import bisect
import json
import statistics
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.providers import short_name

if TYPE_CHECKING:
    from pathlib import Path

_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class NodeRun:
    """What one node of the optimised graph costs per run of the model.

    Attributes:
        name: The node's name in the optimised graph.
        op_type: Its operator.
        provider: Short name of the execution provider that ran it.
        seconds: Median time per run. A node in a loop counts all its turns, and If, Loop and Scan count the
            nodes in their bodies.
    """

    name: str
    op_type: str
    provider: str
    seconds: float


def read_profile(path: Path, *, runs: int) -> list[NodeRun]:
    """Reads a profile written by the runtime.

    Args:
        path: The JSON file.
        runs: How often the model ran; the first run only warms up.

    Returns:
        The nodes, the slowest first.
    """
    events = json.loads(path.read_text(encoding="utf-8"))
    ends = [e["ts"] + e["dur"] for e in events if e.get("name") == "model_run"][-runs:]
    spent: dict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0.0] * len(ends))
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(_KERNEL):
            continue
        run = bisect.bisect_left(ends, event["ts"])
        if run < len(ends):
            args = event["args"]
            spent[_key(event["name"], args)][run] += event["dur"] / 1e6
    nodes = [NodeRun(*key, statistics.median(times[1:] or times)) for key, times in spent.items()]
    return sorted(nodes, key=lambda node: -node.seconds)


def _key(event_name: str, args: dict[str, str]) -> tuple[str, str, str]:
    name = event_name.removesuffix(_KERNEL)
    return name, args["op_name"], short_name(args.get("provider", ""))
