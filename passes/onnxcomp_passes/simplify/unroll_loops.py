"""Replaces loops that run a few times by their bodies, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from onnxcomp.ir.bodies import can_lift, lift_initializer
from onnxcomp.ir.ops import is_op, subgraphs
from onnxcomp.ir.regions import dissolve_copy
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.collecting import constant_input, stacked
from onnxcomp_passes.simplify.control.loops import Cycle, cycle_of
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context


class UnrollLoops(Pass):
    """Replace a Loop that runs a small, known number of times by copies of its body.

    The trip count has to be constant, and nothing may end the loop early. What the loop collected is
    stacked by Unsqueeze and Concat. The model gets more nodes, each runs without the cost of a turn,
    and passes that come later see through them. Weights are not copied.

        y = Loop (2, , x) <body (i, c, s) = t = Sin(s)>        ->        a = Sin(x)
                                                                         y = Sin(a)
    """

    name: ClassVar[str] = "unroll-loops"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "UNR101": "A loop with a known number of turns was left alone: it would become too many nodes. Raise "
        "the limits of unroll-loops if that is wanted.",
    }

    max_trips: Annotated[int, Field(ge=1)] = 8
    """Most turns of a loop that is unrolled."""
    max_nodes: Annotated[int, Field(ge=1)] = 256
    """Most nodes that one loop may become."""

    @override
    def run(self, ctx: Context) -> None:
        nodes = [node for node in ctx.model.nodes() if is_op(node, "Loop")]
        if not nodes:
            return
        versions = scope_versions(ctx.model)
        # Inner ones first: copies of what is left are copies of what is unrolled.
        for node in reversed(nodes):
            graph = node.graph
            version = versions.get(graph, 0) if graph is not None else 0
            cycle = cycle_of(node, version)
            trips = None if cycle is None else cycle.trips()
            if graph is None or cycle is None or not trips or not _is_complete(cycle):
                continue
            size = trips * _size(cycle.body)
            if trips > self.max_trips or size > self.max_nodes:
                ctx.skip("UNR101", node, f"{trips} turns would become {size} nodes")
            else:
                _unroll(cycle, trips, graph, ctx.edit, version)


def _is_complete(cycle: Cycle) -> bool:
    return all(cycle.initial(state) is not None for state in range(cycle.states))


def _size(graph: ir.Graph) -> int:
    return sum(1 + sum(_size(body) for body in subgraphs(node)) for node in graph)


def _unroll(cycle: Cycle, trips: int, graph: ir.Graph, edit: Edit, version: int) -> None:
    node, body = cycle.node, cycle.body
    operands = node.inputs[cycle.lead : cycle.lead + cycle.states]
    states = [value for value in operands if value is not None]
    rows: list[list[ir.Value]] = [[] for _ in cycle.collected()]
    for value in list(body.initializers.values()):
        if can_lift(value) and not value.is_graph_output():
            lift_initializer(edit, value, graph)
            edit.drop_initializer(value)
    go_on = constant_input(body.inputs[1], np.array(True), graph, edit)
    for turn in range(trips):
        index = constant_input(body.inputs[0], np.array(turn, np.int64), graph, edit)
        results = dissolve_copy(edit, node, body, [index, go_on, *states])[1:]
        states = results[: cycle.states]
        for row, value in zip(rows, results[cycle.states :], strict=True):
            row.append(value)
    for old, new in zip(node.outputs[: cycle.states], states, strict=True):
        edit.replace(old, new)
    for old, values in zip(node.outputs[cycle.states :], rows, strict=True):
        if old.uses() or old.is_graph_output():
            edit.replace(old, stacked(values, old, node, edit, version))
    edit.remove(node)
    edit.count("loops unrolled")
    edit.count("turns of loops", trips)
