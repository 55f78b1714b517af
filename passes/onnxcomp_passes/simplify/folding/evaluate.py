"""Computes many nodes with constant inputs in one session of the runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from onnxcomp.errors import UserError
from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

# The newest file format that the oldest supported runtime reads; evaluation needs nothing newer.
_IR_VERSION = 10
# Each failure halves the work; a wave of failures must not become a session per node.
MAX_SESSIONS = 48

Results = dict[ir.Value, "np.ndarray[Any, Any]"]


class Evaluator:
    """Runs nodes with the kernels that the model will run on, without any rewriting.

    Attributes:
        failures: Nodes that the runtime refused or failed on, with its words.
    """

    def __init__(self) -> None:
        self.failures: dict[ir.Node, str] = {}
        self.sessions = 0

    def run(self, nodes: Sequence[ir.Node], opset: int) -> Results:
        """Returns the outputs of nodes whose inputs are constants or outputs of nodes before them."""
        results: Results = {}
        self._run(list(nodes), opset, results)
        return results

    def _run(self, nodes: list[ir.Node], opset: int, results: Results) -> None:
        nodes = self._ready(nodes, results)
        if not nodes or self.sessions >= MAX_SESSIONS:
            return
        self.sessions += 1
        try:
            results.update(_session(nodes, opset, results))
        except UserError as error:
            if len(nodes) == 1:
                self.failures[nodes[0]] = error.message
                return
            middle = len(nodes) // 2
            self._run(nodes[:middle], opset, results)
            self._run(nodes[middle:], opset, results)

    def _ready(self, nodes: list[ir.Node], results: Results) -> list[ir.Node]:
        """Leaves out what reads, however far away, from a node that failed; nodes are in order."""
        group: set[ir.Node] = set()
        for node in nodes:
            if self._is_ready(node, group, results):
                group.add(node)
        return [node for node in nodes if node in group]

    @staticmethod
    def _is_ready(node: ir.Node, group: set[ir.Node], results: Results) -> bool:
        """Whether every input is constant, was computed, or will be by a node of the same session."""
        return all(
            value is None
            or value in results
            or constant(value) is not None
            or value.producer() in group
            for value in node.inputs
        )


def _session(nodes: list[ir.Node], opset: int, known: Results) -> Results:
    from onnxcomp.runtime import Session

    names: dict[ir.Value, str] = {}
    made = {value for node in nodes for value in node.outputs}
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    inputs: list[onnx.ValueInfoProto] = []
    graph = onnx.GraphProto(name="fold")
    for node in nodes:
        for value in node.inputs:
            if value is None or value in names or value in made:
                continue
            names[value] = f"v{len(names)}"
            array, dtype = _contents(value, known)
            feeds[names[value]] = array
            info = onnx.helper.make_tensor_value_info(names[value], dtype, array.shape)
            inputs.append(info)
        for value in node.outputs:
            if value.name:
                names[value] = f"v{len(names)}"
        graph.node.append(_renamed(node, names))
    group = set(nodes)
    wanted = {names[value]: value for value in names if value in made and _is_wanted(value, group)}
    graph.input.extend(inputs)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    proto = onnx.ModelProto(ir_version=_IR_VERSION, graph=graph)
    proto.opset_import.add(domain="", version=opset)
    with Session.open(proto, optimization="disable") as session:
        outputs = session.run(feeds)
    return {value: outputs[name] for name, value in wanted.items()}


def _is_wanted(value: ir.Value, group: set[ir.Node]) -> bool:
    """Whether somebody else than the nodes of the session reads a value."""
    return value.is_graph_output() or any(usage.node not in group for usage in value.uses())


def _contents(value: ir.Value, known: Results) -> tuple[np.ndarray[Any, Any], int]:
    if value in known:
        array = known[value]
        return array, int(ir.DataType.from_numpy(array.dtype))
    tensor = constant(value)
    if tensor is None:
        raise ValueError(f"not constant: {value.name}")
    return tensor.numpy(), int(tensor.dtype)


def _renamed(node: ir.Node, names: dict[ir.Value, str]) -> onnx.NodeProto:
    """The node as a protobuf with names that are unique: scopes may repeat each other's."""
    proto = ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:], proto.metadata_props[:]
    proto.name = ""
    proto.input.extend("" if value is None else names[value] for value in node.inputs)
    proto.output.extend(names.get(value, "") for value in node.outputs)
    return proto
