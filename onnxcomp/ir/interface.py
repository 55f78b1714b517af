"""Changes that `Edit` makes to what a model takes from its caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import OVERRIDABLE

if TYPE_CHECKING:
    from onnxcomp.ir.backend import ir
    from onnxcomp.ir.edit import Edit


def fix_default(edit: Edit, graph: ir.Graph, value: ir.Value) -> None:
    """Makes an input that has a default the constant of that value; its place in the inputs goes."""
    if not value.is_initializer() or value not in graph.inputs:
        raise ValueError(f"not an input with a default: {value.name}")
    index = graph.inputs.index(value)
    was_overridable = value.meta.pop(OVERRIDABLE, False)
    graph.inputs.pop(index)

    def undo() -> None:
        graph.inputs.insert(index, value)
        if was_overridable:
            value.meta[OVERRIDABLE] = True

    edit.record(undo, "inputs made constant")
    edit.touched.extend(value.consumers())
