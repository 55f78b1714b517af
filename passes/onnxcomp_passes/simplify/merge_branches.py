"""Does once what both branches of an If do, and makes one If of several with the same condition."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import (
    drop_result,
    hand_over_results,
    lift_initializer,
    move_before,
    move_to_end,
    nodes_after,
    reads,
    set_body_outputs,
)
from onnxcomp.ir.envelope import SPARSE_INITIALIZERS
from onnxcomp.ir.ops import attribute, is_op, subgraphs
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.carriers import Carriers
from onnxcomp_passes.simplify.control.common import common_nodes, equal_results

if TYPE_CHECKING:
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

# Between two Ifs with the same condition there are a few nodes, or they have little in common. Also keeps
# the search for what stands between them short.
_WINDOW = 256


class MergeBranches(Pass):
    """Compute what both branches of an If compute once, before it; merge Ifs with the same condition.

    One of both branches runs, so nothing runs that did not run before. A result that is the same in
    both branches does not pass through the If, and an If with equal branches goes. Of two Ifs with the
    same condition, or with opposite ones, the branches are put together where nothing between the Ifs
    stands in the way. `If (Not (c))` becomes `If (c)` with the branches exchanged.

        y = If (c) <then: a = Exp(x), y1 = Relu(a)     a = Exp(x)
                    else: b = Exp(x), y2 = Neg(b)>  -> y = If (c) <then: Relu(a), else: Neg(a)>
    """

    name: ClassVar[str] = "merge-branches"
    lossless: ClassVar[bool] = True

    @override
    def run(self, ctx: Context) -> None:
        if "If" not in ctx.facts.get(Carriers()):
            return
        while True:
            mark = ctx.edit.mark()
            for graph in reversed(list(ctx.model.graphs())):
                if graph.outputs:
                    _simplify(graph, ctx.edit)
            if ctx.edit.mark() == mark:
                break


def _simplify(graph: ir.Graph, edit: Edit) -> None:
    """Works on the Ifs of one scope; those inside their branches have been looked at before."""
    choices = [node for node in graph if is_op(node, "If") and _branches(node) is not None]
    for node in choices:
        _straighten(node, edit)
        _take_out(node, edit)
    earlier: dict[ir.Value, ir.Node] = {}
    grown: dict[ir.Node, None] = {}
    for node in choices:
        condition = node.inputs[0] if node.graph is graph else None
        if condition is None:
            continue
        first = earlier.get(condition)
        if first is not None and (between := _between(first, node)) is not None:
            _merge(first, node, between, edit)
            grown[first] = None
        else:
            earlier[condition] = node
    # Once for all that were merged: a look at a branch takes as long as it is.
    for first in grown:
        _take_out(first, edit)


def _branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph] | None:
    """Both branches, None when something in them cannot be moved."""
    then, other = attribute(node, "then_branch"), attribute(node, "else_branch")
    if not isinstance(then, ir.Graph) or not isinstance(other, ir.Graph):
        return None
    if SPARSE_INITIALIZERS in then.meta or SPARSE_INITIALIZERS in other.meta:
        return None
    return then, other


def _pair(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    found = _branches(node)
    if found is None:
        raise ValueError(f"no If with two branches: {node.op_type} {node.name}")
    return found


def _straighten(node: ir.Node, edit: Edit) -> None:
    """Exchanges the branches of an If whose condition is the opposite of something."""
    while (condition := node.inputs[0]) is not None:
        maker = condition.producer()
        if maker is None or not is_op(maker, "Not"):
            return
        then, other = _pair(node)
        edit.set_input(node, 0, maker.inputs[0])
        edit.set_attribute(node, "then_branch", ir.AttrGraph("then_branch", other))
        edit.set_attribute(node, "else_branch", ir.AttrGraph("else_branch", then))
        edit.count("branches exchanged")


def _take_out(node: ir.Node, edit: Edit) -> None:
    """Moves what both branches compute in front of the If, and equal results past it."""
    then, other = _pair(node)
    moved = common_nodes(then, other)
    past = equal_results(then, other, moved)
    if not moved and not past:
        return
    results = [then.outputs[index] for index in past]
    for body in (then, other):
        set_body_outputs(
            edit, body, [value for index, value in enumerate(body.outputs) if index not in past]
        )
    for inner, twins in moved.items():
        _move_out(inner, twins, node, edit)
    for index, value in reversed(list(zip(past, results, strict=True))):
        if value.is_initializer() and node.graph is not None:
            value = lift_initializer(edit, value, node.graph)
        edit.replace(node.outputs[index], value)
        edit.count("results equal in both branches")
        if len(node.outputs) > 1:
            drop_result(edit, node, index)
        else:
            edit.remove(node)


def _move_out(inner: ir.Node, twins: list[ir.Node], node: ir.Node, edit: Edit) -> None:
    """Moves a node of a branch in front of the If, to stand for its twins in the other one."""
    for value in dict.fromkeys(reads(inner)):
        if value.graph is inner.graph and value.is_initializer() and node.graph is not None:
            lift_initializer(edit, value, node.graph)
    move_before(edit, inner, node)
    for twin in twins:
        if twin.graph is None:
            continue
        for old, new in zip(twin.outputs, inner.outputs, strict=True):
            edit.replace(old, new)
        edit.remove(twin)
    edit.count("computed once for both branches")


def _between(first: ir.Node, second: ir.Node) -> list[ir.Node] | None:
    """Nodes that have to move before the first If, in order; None when that is not possible."""
    behind: set[ir.Value] = set(first.outputs)
    free: list[ir.Node] = []
    for node in nodes_after(first):
        if node is second:
            break
        if any(value in behind for value in reads(node)):
            behind.update(node.outputs)
        else:
            free.append(node)
        if len(behind) + len(free) > _WINDOW:
            return None
    wanted = set(reads(second))
    if wanted & (behind - set(first.outputs)):
        return None
    moved = []
    for node in reversed(free):
        if any(value in wanted for value in node.outputs):
            moved.append(node)
            wanted.update(reads(node))
    return moved[::-1]


def _merge(first: ir.Node, second: ir.Node, between: list[ir.Node], edit: Edit) -> None:
    """Appends the branches of the second If to those of the first."""
    for node in between:
        move_before(edit, node, first)
    for source, target in zip(_pair(second), _pair(first), strict=True):
        became = dict(zip(first.outputs, target.outputs, strict=True))
        for value in source.initializers.values():
            if value.const_value is None:
                raise ValueError(f"initializer without contents: {value.name}")
            name = value.name or ""
            became[value] = edit.initializer(value.const_value, name=name, graph=target)
        results = list(source.outputs)
        set_body_outputs(edit, source, [])
        inside = [source, *_bodies(source)]
        for old, new in became.items():
            for usage in old.uses():
                if usage.node.graph in inside:
                    edit.set_input(usage.node, usage.idx, new)
        for inner in list(source):
            move_to_end(edit, inner, target)
        results = [became.get(value, value) for value in results]
        set_body_outputs(edit, target, [*target.outputs, *results])
    hand_over_results(edit, second, first)
    edit.remove(second)
    edit.count("branches merged")


def _bodies(graph: ir.Graph) -> list[ir.Graph]:
    found = []
    for node in graph:
        for body in subgraphs(node):
            found += [body, *_bodies(body)]
    return found
