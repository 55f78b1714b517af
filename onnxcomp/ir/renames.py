"""Changes to names and versions that `Edit` makes on behalf of conversions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.ir.backend import ir
    from onnxcomp.ir.edit import Edit


def swap_names(edit: Edit, left: ir.Value, right: ir.Value) -> None:
    """Exchanges the names of two values, so that the one which takes a place keeps its name."""
    names = (left.name, right.name)
    left.name, right.name = names[1], names[0]

    def undo() -> None:
        left.name, right.name = names

    edit.record(undo)


def declare_opset(edit: Edit, imports: dict[str, int], version: int) -> None:
    """Declares another version of ONNX's own operators in a model or function that uses them."""
    old = dict(imports)
    for domain in ("", "ai.onnx"):
        if domain in imports:
            imports[domain] = version

    def undo() -> None:
        imports.clear()
        imports.update(old)

    edit.record(undo, "opsets set")
