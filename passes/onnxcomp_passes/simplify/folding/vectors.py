"""Small integer tensors of which some elements are known, some are sizes, and some are open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxcomp.ir import ir

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

# A longer vector is no shape, and not worth looking at element by element.
MAX_ITEMS = 64

# `Size` stands for a dimension of some tensor: not negative, equal to itself.
Item: TypeAlias = "int | Size | Term | None"


@dataclass(frozen=True, slots=True)
class Size:
    """A dimension that is not known, but has an identity. Never negative.

    Attributes:
        of: What it is a size of; equal for sizes that are declared to be equal.
        certain: Whether equal sizes really are equal. A symbol that several inputs share is only a
            declaration, and the runtime does not hold callers to it; and what a Reshape makes of a
            size of 0 is another size.
    """

    of: Hashable
    certain: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class Term:
    """The result of arithmetic on open elements."""

    operator: str
    left: Item
    right: Item


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
    dims = tensor.shape.numpy()
    if len(dims) > 1 or (dims and dims[0] > MAX_ITEMS):
        return None
    items = tuple(int(item) for item in tensor.numpy().reshape(-1))
    return Vector(items, not dims, tensor.dtype)


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
    """Whether a number can be held by a type; open elements are sizes and fit."""
    low, high = _LIMITS[dtype]
    return not isinstance(item, int) or low <= item <= high


def certain(item: Item) -> bool:
    """Whether an element that looks like another one really equals it."""
    if isinstance(item, Term):
        return certain(item.left) and certain(item.right)
    return isinstance(item, int) or (isinstance(item, Size) and item.certain)


def combine(operator: str, left: Item, right: Item) -> Item:
    """Returns the sum, product and so on of two elements as far as it is known."""
    if left is None or right is None:
        return 0 if operator == "Mul" and 0 in (left, right) else None
    if isinstance(left, int) and isinstance(right, int):
        return _numbers(operator, left, right)
    neutral = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}.get(operator)
    if neutral is not None and right == neutral:
        return left
    if operator in {"Add", "Mul"} and left == neutral:
        return right
    if operator == "Mul" and 0 in (left, right):
        return 0
    if left == right and certain(left) and certain(right):
        if operator == "Sub":
            return 0
        if operator in {"Max", "Min"}:
            return left
    if operator in {"Add", "Mul", "Max", "Min"} and repr(left) > repr(right):
        left, right = right, left
    return Term(operator, left, right)


def _numbers(operator: str, left: int, right: int) -> Item:
    if operator == "Add":
        return left + right
    if operator == "Sub":
        return left - right
    if operator == "Mul":
        return left * right
    if operator == "Max":
        return max(left, right)
    if operator == "Min":
        return min(left, right)
    if operator == "Div" and right != 0:
        quotient = abs(left) // abs(right)  # the standard rounds towards zero
        return quotient if (left < 0) == (right < 0) else -quotient
    return None


def compare(operator: str, left: Item, right: Item) -> Item:
    """Returns 1, 0 or None for Equal, Greater and Less of two elements."""
    if isinstance(left, int) and isinstance(right, int):
        found = {"Equal": left == right, "Greater": left > right, "Less": left < right}
        return int(found[operator])
    if left is not None and left == right and certain(left) and certain(right):
        return int(operator == "Equal")
    if isinstance(left, Size) and isinstance(right, int) and right < 0:
        return int(operator == "Greater")
    if isinstance(right, Size) and isinstance(left, int) and left < 0:
        return int(operator == "Less")
    return None
