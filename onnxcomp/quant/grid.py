"""Rounded constants: numbers behind a DequantizeLinear, by channel or in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.ir import ir

# Types that rounding moves in steps, and how far they reach.
LIMITS = {
    "INT8": (-128, 127),
    "UINT8": (0, 255),
    "INT4": (-8, 7),
    "UINT4": (0, 15),
    "INT16": (-32768, 32767),
    "UINT16": (0, 65535),
    "INT32": (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """A rounded constant; its numbers and scales are those that it has when they are asked for.

    Attributes:
        node: The DequantizeLinear.
        source: The value that holds the numbers.
        dtype: Name of the numbers' type in ONNX.
        axis: Axis of channels, or along which blocks lie.
        block: Numbers in a block, 0 without blocks.
    """

    node: ir.Node
    source: ir.Value
    dtype: str
    axis: int
    block: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the constant."""
        tensor = constant(self.source)
        return () if tensor is None else tuple(tensor.shape.numpy())

    @property
    def numbers(self) -> NDArray[Any]:
        """The numbers as they are now."""
        found = array(self.source)
        if found is None:
            raise ValueError(f"no longer a constant: {self.source.name}")
        return found

    @property
    def scale(self) -> NDArray[Any]:
        """Scales: one, one for each channel, or one for each block."""
        found = array(input_at(self.node, 1))
        if found is None:
            raise ValueError(f"no longer a constant: {self.node.name}")
        return found

    @property
    def zero(self) -> NDArray[np.int64]:
        """The zero points, shaped like the scales."""
        found = array(input_at(self.node, 2))
        if found is None:
            return np.zeros(self.scale.shape, np.int64)
        return np.asarray(found).astype(np.int64)

    def steps(self) -> NDArray[np.float64]:
        """Returns the scale of each number, in a shape that broadcasts to that of the constant."""
        return self._spread(self.scale.astype(np.float64))

    def zeros(self) -> NDArray[np.int64]:
        """Returns the zero point of each number."""
        return self._spread(self.zero)

    def values(self) -> NDArray[np.float64]:
        """Returns what the numbers stand for."""
        numbers = np.asarray(self.numbers).astype(np.float64)
        return np.asarray((numbers - self.zeros()) * self.steps(), np.float64)

    def limits(self) -> tuple[int, int]:
        """Returns the range that numbers may have: what the symmetric form and 7 bits leave of the type."""
        low, high = LIMITS[self.dtype]
        if low == 0 or self.zero.any():
            return low, high
        largest = int(np.abs(np.asarray(self.numbers).astype(np.int64)).max(initial=0))
        if self.dtype == "INT8" and largest <= _REDUCED:
            return -_REDUCED, _REDUCED
        return (low, high) if largest == -low else (-high, high)

    def _spread(self, values: NDArray[Any]) -> NDArray[Any]:
        if values.size == 1:
            return values.reshape(())
        if self.block:
            return values.take(np.arange(self.shape[self.axis]) // self.block, axis=self.axis)
        shape = [1] * len(self.shape)
        shape[self.axis] = -1
        return values.reshape(shape)


# With 7 bits a sum of two products of u8 and s8 stays inside 16 bits.
_REDUCED = 64


def grid_of(value: ir.Value | None) -> Grid | None:
    """Returns the rounded constant that a value is, None when it is none."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "DequantizeLinear"):
        return None
    source, scale = node.inputs[0], array(input_at(node, 1))
    tensor = constant(source)
    if source is None or tensor is None or scale is None or tensor.dtype.name not in LIMITS:
        return None
    if input_at(node, 2) is not None and constant(input_at(node, 2)) is None:
        return None
    rank = len(tensor.shape)
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    axis = axis + rank if axis < 0 else axis
    grid = Grid(node, source, tensor.dtype.name, axis, block)
    return grid if _fits(grid) else None


def _fits(grid: Grid) -> bool:
    """Whether scales have the shape that the operator asks for: nothing in a file is to be trusted."""
    if not np.isfinite(grid.scale).all():
        return False
    if grid.zero.shape != grid.scale.shape and grid.zero.size != 1:
        return False
    if grid.scale.size == 1 and not grid.block:
        return True
    if not 0 <= grid.axis < len(grid.shape):
        return False
    if not grid.block:
        return grid.scale.shape == (grid.shape[grid.axis],)
    blocks = -(-grid.shape[grid.axis] // grid.block) if grid.block > 0 else -1
    wanted = (*grid.shape[: grid.axis], blocks, *grid.shape[grid.axis + 1 :])
    return grid.scale.shape == wanted
