"""Computes equal things once and stores equal weights once."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import constant, is_pure, standard_op, subgraphs, use_count
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.equality import EqualTensors, node_key, visible_pairs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context

# An Identity that keeps the name of an output would take their place.
_CHEAP = frozenset({"Identity", "Constant"})
# Bytes. What a body reads from outside is handed to it each time; small constants are better copied.
_WORTH_LIFTING = 1024
_ANNOTATION = "quant_parameter_tensor_names"


class ShareCommon(Pass):
    """Compute equal subexpressions once, and store equal weights once.

    Two nodes are equal when operator, attributes and inputs are; random operators, those of unknown
    domains and those that carry graphs are never merged. A body of an If, Loop or Scan uses what the
    scope around it computed before, never the other way round and never another branch's. Weights
    are equal when type, shape and every byte are; equal ones of two bodies are stored around them.

        a = Relu(x)
        b = Relu(x)        ->        a = Relu(x)
        y = Add(a, b)                y = Add(a, a)
    """

    name: ClassVar[str] = "share-common"
    lossless: ClassVar[bool] = True
    preserves: ClassVar[frozenset[type[object]]] = frozenset({Shapes})

    @override
    def run(self, ctx: Context) -> None:
        roots = [ctx.model.graph, *(f.graph for f in ctx.model.core.functions.values())]
        _share_initializers(ctx)
        for root in roots:
            _share_nodes(root, ChainMap(), ctx.edit)


def _share_initializers(ctx: Context) -> None:
    found = EqualTensors()
    roots = [ctx.model.graph, *(f.graph for f in ctx.model.core.functions.values())]
    for root in roots:
        for graph, outer in _scopes(root):
            for value in graph.initializers.values():
                if _is_sharable(value):
                    found.add(value, (graph, *outer))
    gone: dict[ir.Graph, list[ir.Value]] = {}
    for group in found.groups():
        for value, first in (*visible_pairs(group), *_lifted(group, ctx)):
            ctx.edit.replace(value, first)
            ctx.edit.count("weights shared")
            if value.graph is not None:
                gone.setdefault(value.graph, []).append(value)
    for values in gone.values():
        ctx.edit.drop_initializers(values)


def _lifted(
    group: list[tuple[ir.Value, tuple[ir.Graph, ...]]], ctx: Context
) -> list[tuple[ir.Value, ir.Value]]:
    """Stores equal weights of branches beside each other in the scope around them."""
    gone = {value for value, _ in visible_pairs(group)}
    apart = [(value, scopes) for value, scopes in group if value not in gone]
    apart = [(value, scopes) for value, scopes in apart if scopes[-1] is ctx.model.graph]
    tensor = group[0][0].const_value
    if len(apart) < 2 or tensor is None or tensor.nbytes < _WORTH_LIFTING:
        return []
    shared = [scope for scope in apart[0][1] if all(scope in scopes for _, scopes in apart)]
    made = ctx.edit.initializer(tensor, name=apart[0][0].name or "", graph=shared[0])
    return [(value, made) for value, _ in apart]


def _scopes(root: ir.Graph) -> list[tuple[ir.Graph, tuple[ir.Graph, ...]]]:
    """Every scope with those around it, outer ones first."""
    result = []
    pending: list[tuple[ir.Graph, tuple[ir.Graph, ...]]] = [(root, ())]
    while pending:
        graph, outer = pending.pop(0)
        result.append((graph, outer))
        pending += [(inner, (graph, *outer)) for node in graph for inner in subgraphs(node)]
    return result


def _is_sharable(value: ir.Value) -> bool:
    if value.is_graph_input() or value.is_graph_output() or not use_count(value):
        return False
    return constant(value) is not None and _ANNOTATION not in value.meta


def _share_nodes(graph: ir.Graph, outer: ChainMap[Hashable, ir.Node], edit: Edit) -> None:
    known = outer.new_child()
    for node in list(graph):
        for inner in subgraphs(node):
            _share_nodes(inner, known, edit)
        key = node_key(node) if standard_op(node) and is_pure(node) else None
        if key is None:
            continue
        first = known.setdefault(key, node)
        if first is not node and _may_stand_for(first, node):
            _merge(node, first, edit)


def _may_stand_for(first: ir.Node, node: ir.Node) -> bool:
    """Whether types are equal and merging really removes a node."""
    if node.op_type in _CHEAP and any(value.is_graph_output() for value in node.outputs):
        return False
    return all(
        bool(a.name) == bool(b.name) and _same_type(a, b) and _ANNOTATION not in b.meta
        for a, b in zip(first.outputs, node.outputs, strict=True)
    )


def _same_type(first: ir.Value, second: ir.Value) -> bool:
    return first.type is None or second.type is None or first.type == second.type


def _merge(node: ir.Node, first: ir.Node, edit: Edit) -> None:
    pairs: list[tuple[Any, Any]] = list(zip(node.outputs, first.outputs, strict=True))
    for old, new in pairs:
        edit.replace(old, new)
    edit.remove(node)
    edit.count("expressions shared")
