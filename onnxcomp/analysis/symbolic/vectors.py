"""Small integer tensors of which some elements are known, some are dimensions, and some are open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.symbolic import dims
from onnxcomp.analysis.symbolic.dims import Dim, Item
from onnxcomp.ir.backend import ir

if TYPE_CHECKING:
    from collections.abc import Sequence

# A longer vector is no shape, and not worth looking at element by element.
MAX_ITEMS = 64


@dataclass(frozen=True, slots=True)
class Vector:
    """An integer tensor of rank 0 or 1.

    Attributes:
        items: Its elements; None for one of which nothing is known.
        scalar: Whether the rank is 0.
        dtype: Element type: int64, int32 or bool.
    """

    items: tuple[Item, ...]
    scalar: bool
    dtype: ir.DataType

    @property
    def known(self) -> bool:
        """Whether every element is a number."""
        return all(isinstance(item, int) for item in self.items)

    def array(self) -> np.ndarray:
        """Returns the contents of a vector that is known."""
        array = np.array(self.items, self.dtype.numpy())
        return array.reshape(()) if self.scalar else array


INTEGERS = frozenset({ir.DataType.INT64, ir.DataType.INT32})
HANDLED = INTEGERS | {ir.DataType.BOOL}


def from_tensor(tensor: ir.TensorProtocol) -> Vector | None:
    """Returns a constant as a vector, None when it is too large or no integer."""
    if tensor.dtype not in HANDLED:
        return None
    shape = tensor.shape.numpy()
    if len(shape) > 1 or (shape and shape[0] > MAX_ITEMS):
        return None
    items = tuple(int(item) for item in tensor.numpy().reshape(-1))
    return Vector(items, not shape, tensor.dtype)


def broadcast(vectors: Sequence[Vector]) -> tuple[list[tuple[Item, ...]], bool] | None:
    """Returns the elements of several vectors side by side, and whether the result is a scalar."""
    length = 1
    for vector in vectors:
        if len(vector.items) != 1:
            if length not in (1, len(vector.items)):
                return None
            length = len(vector.items)
    columns = [v.items * length if len(v.items) == 1 else v.items for v in vectors]
    rows = list(zip(*columns, strict=True)) if length else []
    return rows, all(vector.scalar for vector in vectors)


_LIMITS = {
    ir.DataType.INT64: (-(2**63), 2**63 - 1),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
    ir.DataType.BOOL: (0, 1),
}


def fits(item: Item, dtype: ir.DataType) -> bool:
    """Whether an element can be held by a type.

    Sizes of tensors fit any integer; a product of two need not fit 32 bits, and would come back as
    something else.
    """
    if isinstance(item, Dim):
        narrow = dtype == ir.DataType.INT32
        return not narrow or all(len(atoms) <= 1 for atoms, _ in item.terms)
    low, high = _LIMITS[dtype]
    return item is None or low <= item <= high


def combine(operator: str, left: Item, right: Item) -> Item:
    """Returns the sum, product and so on of two elements as far as it is known."""
    return _ARITHMETIC[operator](left, right)


def modulo(left: Item, right: Item) -> Item:
    """Returns what is left of a division of numbers that are not negative."""
    if not (dims.is_nonnegative(left) and dims.is_positive(right)):
        return None
    if isinstance(left, int) and isinstance(right, int):
        return left % right
    return dims.subtract(left, dims.multiply(dims.quotient(left, right), right))


_ARITHMETIC = {
    "Add": dims.add,
    "Sub": dims.subtract,
    "Mul": dims.multiply,
    "Div": dims.quotient,
    "Mod": modulo,
    "Max": dims.maximum,
    "Min": dims.minimum,
}


def compare(operator: str, left: Item, right: Item) -> Item:
    """Returns 1, 0 or None for Equal, Greater, Less and so on of two elements."""
    if operator in {"Less", "LessOrEqual"}:
        return compare({"Less": "Greater"}.get(operator, "GreaterOrEqual"), right, left)
    above = dims.subtract(left, right)
    if above is None:
        return None
    if operator == "Equal":
        return _equal(above)
    if operator == "Greater":
        return _decided(dims.is_positive(above), dims.is_nonnegative(dims.negate(above)))
    return _decided(dims.is_nonnegative(above), dims.is_positive(dims.negate(above)))


def _equal(difference: Item) -> Item:
    if difference == 0:
        return 1
    apart = dims.is_positive(difference) or dims.is_positive(dims.negate(difference))
    return 0 if apart else None


def _decided(yes: bool, no: bool) -> Item:
    if yes:
        return 1
    return 0 if no else None
