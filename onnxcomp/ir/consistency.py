"""Whether the graph still hangs together after a pass; cheap enough to ask after every one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.errors import quoted
from onnxcomp.ir.envelope import sparse_names
from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from onnxcomp.ir import Model, ir


def inconsistency(model: Model) -> str:
    """Returns the first thing that is wrong with the structure, empty when nothing is.

    Every value that a node reads must be defined before it, in its scope or an enclosing one; names
    must be unique in a scope; outputs must be defined.
    """
    reason = _check_graph(model.graph, set())
    for function in model.core.functions.values():
        reason = reason or _check_graph(function.graph, set())
    return reason


def _check_graph(graph: ir.Graph, outer: set[ir.Value]) -> str:
    defined = set(outer)
    names: set[str] = set(sparse_names(graph))
    sparse = frozenset(names)
    for value in dict.fromkeys([*graph.inputs, *graph.initializers.values()]):
        if reason := _define(value, defined, names):
            return reason
        if value.is_initializer() and value.const_value is None:
            return f"initializer {quoted(value.name)} has no contents"
    for node in graph:
        if reason := _check_node(node, defined, sparse):
            return reason
        for value in node.outputs:
            if value.name and (reason := _define(value, defined, names)):
                return reason
    for value in graph.outputs:
        if value not in defined and value.name not in sparse:
            return f"output {quoted(value.name)} is not made by any node"
    return ""


def _define(value: ir.Value, defined: set[ir.Value], names: set[str]) -> str:
    if not value.name:
        return "a value has no name"
    if value.name in names:
        return f"two values are named {quoted(value.name)}"
    names.add(value.name)
    defined.add(value)
    return ""


def _check_node(node: ir.Node, defined: set[ir.Value], sparse: frozenset[str]) -> str:
    for value in node.inputs:
        if value is not None and value not in defined and value.name not in sparse:
            return f"{node.op_type} {quoted(node.name)} reads {quoted(value.name)}, which nothing before it makes"
    for graph in subgraphs(node):
        if reason := _check_graph(graph, defined):
            return reason
    return ""
