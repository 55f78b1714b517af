"""Takes out of loops what they carry for nothing, and loops that run never or once."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.bodies import bind_input
from onnxcomp.ir.ops import is_op, standard_op
from onnxcomp.ir.regions import dissolve
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.carriers import Carriers
from onnxcomp_passes.simplify.control.collecting import collect_lists, constant_input, stacked
from onnxcomp_passes.simplify.control.loops import (
    Cycle,
    cycle_of,
    drop_operands,
    drop_results,
    needed_values,
)
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

# A loop that runs once becomes its body and an Unsqueeze for each output that it collects.
_MOST_COLLECTED = 2
# Before this version a Constant node could make floating point numbers only.
_CONSTANTS_OF_ALL_TYPES = 9
# Before this version a Loop had to carry something.
_LOOPS_WITHOUT_STATES = 11


class SimplifyLoops(Pass):
    """Take out of a Loop or Scan what it carries for nothing; replace loops that run never or once.

    A carried value that each turn hands on as it is becomes one that the body reads from outside. What
    nobody reads, neither the body nor anybody behind the loop, is no longer carried or collected. A list
    to which each turn appends, and which is stacked behind the loop, is collected by the loop. The
    condition that a turn gets is true, or the turn would not run. A Loop whose trip count is 0, or whose
    condition is false from the start, gives its initial values.

        y, z = Loop (n, c, x, w)                     y = Loop (n, c, x)
          <body (i, d, s, k) =                ->       <body (i, d, s) =
             (e, t = Mul(s, k), Identity(k))>             (e, t = Mul(s, w))>
    """

    name: ClassVar[str] = "simplify-loops"
    lossless: ClassVar[bool] = True

    @override
    def run(self, ctx: Context) -> None:
        if ctx.facts.get(Carriers()).isdisjoint({"Loop", "Scan"}):
            return
        while nodes := [node for node in ctx.model.nodes() if is_op(node, "Loop", "Scan")]:
            mark = ctx.edit.mark()
            versions = scope_versions(ctx.model)
            # Inner ones first: what they do not carry any more is nothing that outer ones have to.
            for node in reversed(nodes):
                if node.graph is not None:
                    _simplify(node, ctx, versions.get(node.graph, 0))
            if ctx.edit.mark() == mark:
                break
            # What was carried and is no longer may have hidden shapes.
            ctx.facts.keep({Carriers})


def _simplify(node: ir.Node, ctx: Context, version: int) -> None:
    cycle = cycle_of(node, version)
    if cycle is None or len(_initials(cycle)) < cycle.states or _resolve(cycle, ctx, version):
        return
    if version >= _CONSTANTS_OF_ALL_TYPES:
        _bind_condition(cycle, ctx.edit)
    if cycle.is_loop and version < _LOOPS_WITHOUT_STATES:
        return
    cycle = _release_constant_states(cycle, ctx.edit)
    cycle = collect_lists(cycle, ctx.edit)
    _share_collected(cycle, ctx.edit)
    _drop_unused(cycle, ctx.edit)


# -- loops that run never or once ------------------------------------------------------------------


def _resolve(cycle: Cycle, ctx: Context, version: int) -> bool:
    trips = cycle.trips()
    used = [pair for pair in cycle.collected() if _is_used(pair[1])]
    if trips == 0:
        return _skip(cycle, used, ctx.edit, ctx.facts.get(Shapes()))
    if trips == 1 and len(used) <= _MOST_COLLECTED:
        _run_once(cycle, ctx.edit, version)
        return True
    return False


def _skip(
    cycle: Cycle, used: list[tuple[ir.Value, ir.Value]], edit: Edit, shapes: ShapeMap
) -> bool:
    """Replaces a loop that never runs; refuses where the shape of nothing is not known."""
    empty = {}
    for inside, outside in used:
        shape, dtype = shapes.static(inside), shapes.dtype(inside)
        if shape is None or dtype is None or dtype == ir.DataType.STRING:
            return False
        empty[outside] = np.zeros((0, *shape), dtype.numpy())
    graph = cycle.node.graph
    for state, value in enumerate(_initials(cycle)):
        edit.replace(cycle.final(state), value)
    for outside, array in empty.items():
        if graph is not None:
            made = edit.initializer(array, name=outside.name or "", graph=graph)
            edit.replace(outside, made)
    edit.remove(cycle.node)
    edit.count("loops that never run removed")
    return True


def _run_once(cycle: Cycle, edit: Edit, version: int) -> None:
    node, graph = cycle.node, cycle.node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    start = constant_input(cycle.body.inputs[0], np.array(0, np.int64), graph, edit)
    go_on = constant_input(cycle.body.inputs[1], np.array(True), graph, edit)
    inputs = [start, go_on, *_initials(cycle)]
    results = dissolve(edit, node, cycle.body, inputs)[1:]
    for old, new in zip(node.outputs[: cycle.states], results, strict=False):
        edit.replace(old, new)
    for old, new in zip(node.outputs[cycle.states :], results[cycle.states :], strict=True):
        if _is_used(old):
            edit.replace(old, stacked([new], old, node, edit, version))
    edit.remove(node)
    edit.count("loops that run once inlined")


def _initials(cycle: Cycle) -> list[ir.Value]:
    return [
        value
        for value in cycle.node.inputs[cycle.lead : cycle.lead + cycle.states]
        if value is not None
    ]


# -- what is carried and collected -----------------------------------------------------------------


def _bind_condition(cycle: Cycle, edit: Edit) -> None:
    """Tells a body that its condition is true, where it asks; a condition that never ends is made true."""
    if not cycle.is_loop or cycle.node.inputs[1] is None:
        return
    condition, go_on = cycle.body.inputs[1], cycle.body.outputs[0]
    maker = go_on.producer()
    hands_on = is_op(maker, "Identity") and maker is not None and maker.inputs[0] is condition
    others = [usage for usage in condition.uses() if usage.node is not maker]
    if maker is not None and hands_on and go_on not in cycle.body.outputs[1:]:
        if len(go_on.uses()) == 0:
            made = edit.insert(
                "Constant",
                [],
                before=maker,
                outputs=[go_on.name or "go_on"],
                attributes={"value": ir.AttrTensor("value", ir.tensor(np.array(True)))},
                like=go_on,
            )
            edit.replace(go_on, made.outputs[0])
            edit.remove(maker)
    elif not others:
        return
    if others and not any(output is condition for output in cycle.body.outputs[1:]):
        true = edit.initializer(np.array(True), name=condition.name or "", graph=cycle.body)
        for usage in others:
            edit.set_input(usage.node, usage.idx, true)


def _release_constant_states(cycle: Cycle, edit: Edit) -> Cycle:
    for state in reversed(range(cycle.states)):
        before, initial = cycle.before(state), cycle.initial(state)
        if initial is None or _source(cycle.after(state)) is not before:
            continue
        places = [index for index, value in enumerate(cycle.body.outputs) if value is before]
        if set(places) - {cycle.first + state} or len(cycle.node.outputs) == 1:
            continue
        if not edit.can_alias(cycle.final(state), initial):
            continue
        edit.replace(cycle.final(state), initial)
        bind_input(edit, cycle.body, cycle.lead + state, initial)
        hands_on = cycle.after(state)
        drop_results(edit, cycle, [state])
        _remove_identities(hands_on, edit)
        cycle = drop_operands(edit, cycle, [state])
        edit.count("carried values that never change")
    return cycle


def _remove_identities(value: ir.Value, edit: Edit) -> None:
    maker = value.producer()
    while maker is not None and not _is_used(maker.outputs[0]):
        source = maker.inputs[0]
        edit.remove(maker)
        maker = source.producer() if source is not None and is_op(maker, "Identity") else None
        if not is_op(maker, "Identity"):
            return


def _source(value: ir.Value) -> ir.Value:
    maker = value.producer()
    while maker is not None and is_op(maker, "Identity") and maker.inputs[0] is not None:
        value = maker.inputs[0]
        maker = value.producer()
    return value


def _share_collected(cycle: Cycle, edit: Edit) -> None:
    """Collects once what is collected several times."""
    if not cycle.is_loop:
        return
    known: dict[ir.Value, ir.Value] = {}
    for inside, outside in cycle.collected():
        first = known.setdefault(inside, outside)
        if first is not outside and _is_used(outside) and edit.can_alias(outside, first):
            edit.replace(outside, first)


def _drop_unused(cycle: Cycle, edit: Edit) -> None:
    if not any(_is_used(value) for value in cycle.node.outputs):
        return
    carried, needed = _needed(cycle)
    unused = [state for state in range(cycle.states) if state not in carried]
    collected = [i for i, pair in enumerate(cycle.collected()) if not _is_used(pair[1])]
    scanned = _unread(cycle, needed)
    if not unused and not collected and not scanned:
        return
    drop_results(edit, cycle, unused, collected)
    for node in reversed(list(cycle.body)):
        if standard_op(node) and not any(value in needed for value in node.outputs):
            edit.remove(node)
    drop_operands(edit, cycle, unused, scanned)
    if unused:
        edit.count("carried values that nobody reads", len(unused))
    if collected:
        edit.count("collected outputs left out", len(collected))


def _needed(cycle: Cycle) -> tuple[set[int], set[ir.Value]]:
    """Carried values, and values of the body, that used results need over any number of turns."""
    results = list(cycle.body.outputs[: cycle.first])
    results += [inside for inside, outside in cycle.collected() if _is_used(outside)]
    states = {cycle.before(state): state for state in range(cycle.states)}
    carried = {state for state in range(cycle.states) if _is_used(cycle.final(state))}
    while True:
        needed = needed_values(cycle.body, [*results, *(cycle.after(state) for state in carried)])
        more = {state for value, state in states.items() if value in needed} - carried
        if not more:
            return carried, needed
        carried |= more


def _unread(cycle: Cycle, needed: set[ir.Value]) -> list[int]:
    """Inputs that a Scan goes through without reading them; one stays, for the number of turns."""
    if cycle.is_loop:
        return []
    scanned = cycle.body.inputs[cycle.states :]
    unread = [index for index, value in enumerate(scanned) if value not in needed]
    return unread[1:] if len(unread) == len(scanned) else unread


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
