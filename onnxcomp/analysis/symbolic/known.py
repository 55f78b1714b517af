"""What rules are told about operands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.vectors import Vector
    from onnxcomp.ir import ir

    Sizes: TypeAlias = tuple[Item, ...]


class Known(Protocol):
    """Whoever knows sizes and contents of operands."""

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """Returns the dimensions of a value, None for an unknown rank."""
        ...

    def vector(self, value: ir.Value | None) -> Vector | None:
        """Returns what is known of the contents of an integer vector."""
        ...

    def open_vector(self, value: ir.Value | None) -> Vector | None:
        """Returns a vector of known length and type whose elements are not known."""
        ...
