"""What a loop collected, made without the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.bodies import add_result, set_body_outputs
from onnxcomp.ir.ops import attribute, input_at, is_op, producer_of
from onnxcomp_passes.simplify.control.loops import Cycle, drop_operands, drop_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.ir import Edit, ir

_AXES_ARE_INPUTS = 13


def stacked(
    values: Sequence[ir.Value], like: ir.Value, before: ir.Node, edit: Edit, version: int
) -> ir.Value:
    """Puts values on top of each other, in front of a node that made the same out of them."""
    graph, name = before.graph, like.name or "collected"
    if graph is None:
        raise ValueError(f"not in a graph: {before.op_type} {before.name}")
    attributes = {"axes": [0]} if version < _AXES_ARE_INPUTS else {}
    more: list[ir.Value] = []
    if not attributes:
        axes = np.array([0], np.int64)
        more.append(edit.initializer(axes, name=f"{name}_axes", graph=graph))
    last = like if len(values) == 1 else None
    rows = [
        edit.insert(
            "Unsqueeze",
            [value, *more],
            before=before,
            outputs=[name],
            attributes=attributes,
            like=last,
        ).outputs[0]
        for value in values
    ]
    if len(rows) == 1:
        return rows[0]
    made = edit.insert(
        "Concat", rows, before=before, outputs=[name], attributes={"axis": 0}, like=like
    )
    return made.outputs[0]


def constant_input(value: ir.Value, array: np.ndarray, graph: ir.Graph, edit: Edit) -> ir.Value:
    """A constant for an input of a body, which itself is as good where nobody reads it."""
    if not value.uses() and not value.is_graph_output():
        return value
    return edit.initializer(array, name=value.name or "", graph=graph)


def collect_lists(cycle: Cycle, edit: Edit) -> Cycle:
    """Collects what a loop appends to a list that is stacked behind it.

    The list starts empty, each turn appends one tensor to it, and nobody else looks at it. onnxruntime
    copies such a list in each turn.
    """
    for state in reversed(range(cycle.states)):
        insert = _appended(cycle, state)
        joins = _stacks(cycle.final(state))
        item = None if insert is None else insert.inputs[1]
        if insert is None or item is None or not joins:
            continue
        outputs = list(cycle.body.outputs)
        if item.producer() is None or item.graph is not cycle.body or item in outputs:
            copy = edit.insert("Identity", [item], before=insert, outputs=["item"], like=item)
            item = copy.outputs[0]
        set_body_outputs(edit, cycle.body, [*outputs, item])
        made = add_result(edit, cycle.node, joins[0].outputs[0])
        for join in joins:
            edit.replace(join.outputs[0], made)
            edit.remove(join)
        drop_results(edit, cycle, [state])
        edit.remove(insert)
        cycle = drop_operands(edit, cycle, [state])
        edit.count("lists collected")
    return cycle


def _appended(cycle: Cycle, state: int) -> ir.Node | None:
    """The node that appends to a list which is carried, and empty at first, and read by nobody else."""
    before, after = cycle.before(state), cycle.after(state)
    insert = producer_of(after, "SequenceInsert")
    if not cycle.is_loop or insert is None or insert.inputs[0] is not before:
        return None
    if producer_of(cycle.initial(state), "SequenceEmpty") is None:
        return None
    if input_at(insert, 2) is not None or len(before.uses()) > 1 or after.uses():
        return None
    places = [value for value in cycle.body.outputs if value is before or value is after]
    return insert if len(places) == 1 and insert.graph is cycle.body else None


def _stacks(value: ir.Value) -> list[ir.Node]:
    """The nodes that read a sequence if all of them stack its elements, along a new first axis."""
    nodes = [usage.node for usage in value.uses()]
    if value.is_graph_output():
        return []
    for node in nodes:
        if not is_op(node, "ConcatFromSequence") or node.graph is not value.graph:
            return []
        if attribute(node, "axis") != 0 or attribute(node, "new_axis", 0) != 1:
            return []
    return nodes
