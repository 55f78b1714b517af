"""Computes once, before a loop, what is the same in each of its turns."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.bodies import can_lift, lift_initializer, move_before, reads
from onnxcomp.ir.ops import attribute, is_op, is_pure, standard_op
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.carriers import Carriers
from onnxcomp_passes.simplify.control.loops import Cycle, cycle_of
from onnxcomp_passes.simplify.control.speculation import cannot_fail
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context


class HoistInvariants(Pass):
    """Move what is the same in each turn of a Loop or Scan in front of it.

    A loop may not run at all. Where it is not known that it does, only nodes move that cost little and
    cannot fail: no division of integers, no access by place, no shapes that may not fit.

        y = Loop (n, , x)                              k = Exp(w)
          <body (i, c, s) =                ->          y = Loop (n, , x)
             k = Exp(w), t = Mul(s, k)>                  <body (i, c, s) = t = Mul(s, k)>
    """

    name: ClassVar[str] = "hoist-invariants"
    lossless: ClassVar[bool] = True
    preserves: ClassVar[frozenset[type[object]]] = frozenset({Shapes, Carriers})

    @override
    def run(self, ctx: Context) -> None:
        if ctx.facts.get(Carriers()).isdisjoint({"Loop", "Scan"}):
            return
        nodes = [node for node in ctx.model.nodes() if is_op(node, "Loop", "Scan")]
        versions = scope_versions(ctx.model)
        for node in reversed(nodes):
            graph = node.graph
            cycle = cycle_of(node, versions.get(graph, 0)) if graph is not None else None
            if cycle is not None:
                _hoist(cycle, ctx.edit, ctx.facts.get(Shapes()))


def _hoist(cycle: Cycle, edit: Edit, shapes: ShapeMap) -> None:
    body, runs = cycle.body, _runs(cycle, shapes)
    for node in list(body):
        if standard_op(node) in {None, "Constant"} or any(
            v.is_graph_output() for v in node.outputs
        ):
            continue
        if any(value.graph is body and not can_lift(value) for value in reads(node)):
            continue
        if is_pure(node) and (runs or cannot_fail(node, shapes)):
            _move(node, cycle, edit)


def _move(node: ir.Node, cycle: Cycle, edit: Edit) -> None:
    scope = cycle.node.graph
    if scope is None:
        raise ValueError(f"not in a graph: {cycle.node.op_type} {cycle.node.name}")
    for value in dict.fromkeys(reads(node)):
        if value.graph is cycle.body:
            lift_initializer(edit, value, scope)
    move_before(edit, node, cycle.node)
    edit.count("moved out of loops")


def _runs(cycle: Cycle, shapes: ShapeMap) -> bool:
    """Whether a loop is known to run at least once."""
    if cycle.is_loop:
        return cycle.runs()
    scanned = cycle.node.inputs[cycle.states]
    shape, axes = shapes.shape(scanned), attribute(cycle.node, "scan_input_axes")
    if shape is None or (axes is not None and not isinstance(axes, tuple)):
        return False
    axis = axes[0] if axes else 0
    length = shape[axis] if -len(shape) <= axis < len(shape) else None
    return isinstance(length, int) and length > 0
