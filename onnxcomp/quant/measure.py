"""What each node of a model costs on the provider, in the graph that the provider makes of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.quant.candidates import key_of
from onnxcomp.runtime import optimized_model, profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from onnxcomp.ir import Model

# Fused nodes keep the name of a node they come from, or make one from a value; layout changes add these.
_LABEL = re.compile(r"^#(\d+)#")
_LAYOUT = re.compile(r"(_nchwc|_nhwc|_token_\d+)+$")


@dataclass
class NodeTimes:
    """Time by node of the model.

    Attributes:
        seconds: Time of the kernel that does the work of a node, by the node's key. Nodes that were fused
            into another's kernel are not in here.
        elsewhere: Time of nodes that stand for none of the model's own: layout changes, Q, DQ.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    elsewhere: float = 0.0

    @property
    def total(self) -> float:
        """Time of all nodes."""
        return sum(self.seconds.values()) + self.elsewhere


def labelled(model: Model) -> tuple[Model, dict[str, str]]:
    """Returns a copy whose main nodes have unmistakable names, and the key of each by name."""
    copy = model.copy()
    keys = {}
    for index, node in enumerate(copy.graph):
        node.name = f"#{index}#"
        keys[node.name] = key_of(node)
    return copy, keys


def node_of(name: str, outputs: list[str], keys: Mapping[str, str], values: set[str]) -> str:
    """Returns the key of the model's node that a node of the optimised graph stands for, or empty."""
    found = _LABEL.match(name)
    if found is not None and found.group(0) in keys:
        return keys[found.group(0)]
    for candidate in (name, *outputs):
        bare = _LAYOUT.sub("", candidate)
        if bare in values:
            return bare
    return ""


def measure_nodes(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    *,
    provider: str,
    threads: int = 1,
    rounds: int = 15,
) -> NodeTimes:
    """Measures the nodes of a model on one sample.

    Changes of layout in float count for the node that they serve.
    """
    copy, keys = labelled(model)
    values = {value.name or "" for node in copy.graph for value in node.outputs}
    optimized = optimized_model(copy, provider=provider, weights=False).graph
    made = {node.name: node for node in optimized.node}
    readers = {name: node for node in optimized.node for name in node.input}
    times = NodeTimes()
    for run in profile(copy, feeds, provider=provider, threads=threads, rounds=rounds):
        node = made.get(run.name)
        if node is not None and run.op_type == "ReorderInput":
            node = readers.get(node.output[0], node)
        name, outputs = (run.name, []) if node is None else (node.name, list(node.output))
        key = node_of(name, outputs, keys, values)
        if key:
            times.seconds[key] = times.seconds.get(key, 0.0) + run.seconds
        else:
            times.elsewhere += run.seconds
    return times
