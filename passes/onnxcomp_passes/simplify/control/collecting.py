"""What a loop collected, made without the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
