"""The numbers of a Q or DQ node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Scales and zero points beyond this many are not read: a block-wise weight may have millions.
_MOST = 1 << 24
DOMAINS = frozenset({"", "ai.onnx", "com.microsoft"})
SIGNED, UNSIGNED = ir.DataType.INT8, ir.DataType.UINT8
LIMITS = {
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-32768, 32767),
    ir.DataType.UINT16: (0, 65535),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT32: (-(2**31), 2**31 - 1),
}


@dataclass(frozen=True, eq=False)
class Grid:
    """Constant parameters of a QuantizeLinear or DequantizeLinear.

    Attributes:
        dtype: Type of the quantized numbers, None when it is not known.
        scale: Steps.
        zero: Numbers that stand for 0, None when left out.
        axis: Where scales vary, as the node says; only of meaning when there are several.
        block: Length of blocks, 0 when there are none.
    """

    dtype: ir.DataType | None
    scale: NDArray[Any]
    zero: NDArray[Any] | None
    axis: int
    block: int

    @property
    def single(self) -> bool:
        """Whether one scale serves the whole tensor."""
        return self.scale.size == 1

    @property
    def step(self) -> float:
        """The scale, where there is one."""
        return float(self.scale.reshape(-1)[0])

    @property
    def middle(self) -> int:
        """The zero point, where there is one."""
        return 0 if self.zero is None or not self.zero.size else int(self.zero.reshape(-1)[0])

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest number of the type."""
        return LIMITS.get(self.dtype or UNSIGNED, (0, 255))

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value, where there is one scale."""
        low, high = self.limits
        return (low - self.middle) * self.step, (high - self.middle) * self.step

    def equals(self, other: Grid) -> bool:
        """Whether both stand for the same values in the same way."""
        if self.dtype != other.dtype or self.block != other.block:
            return False
        if not self.single and self.axis != other.axis:
            return False
        zeros = [np.zeros(1) if g.zero is None else g.zero.reshape(-1) for g in (self, other)]
        if not np.array_equal(self.scale.reshape(-1), other.scale.reshape(-1)):
            return False
        if any(zero.size not in {1, self.scale.size} for zero in zeros):
            return False
        first, second = (np.broadcast_to(z, (self.scale.size,)).astype(np.int64) for z in zeros)
        return np.array_equal(first, second)


def grid_of(node: ir.Node) -> Grid | None:
    """Returns the parameters of a Q or DQ, None when they are not constant."""
    scale = constant(input_at(node, 1))
    zero_value = input_at(node, 2)
    zero = constant(zero_value)
    if scale is None or scale.size > _MOST or (zero_value is not None and zero is None):
        return None
    if zero is not None:
        dtype: ir.DataType | None = zero.dtype
    elif node.op_type == "QuantizeLinear":
        code: object = attribute(node, "output_dtype", 0)
        dtype = ir.DataType(code) if isinstance(code, int) and code else UNSIGNED
    else:
        source = input_at(node, 0)
        tensor = constant(source)
        dtype = tensor.dtype if tensor is not None else None if source is None else source.dtype
    axis: object = attribute(node, "axis", 1)
    block: object = attribute(node, "block_size", 0)
    if not isinstance(axis, int) or not isinstance(block, int):
        return None
    return Grid(dtype, scale.numpy(), None if zero is None else zero.numpy(), axis, block)


def dequantize(numbers: NDArray[Any], grid: Grid) -> NDArray[np.float32] | None:
    """Returns the values that numbers stand for, as the standard's DequantizeLinear; None if they do not fit."""
    scale = along(numbers.shape, grid.scale, grid)
    zero = np.zeros(1) if grid.zero is None else along(numbers.shape, grid.zero, grid)
    if scale is None or zero is None:
        return None
    difference = numbers.astype(np.int64) - np.asarray(zero).astype(np.int64)
    values: NDArray[np.float32] = difference.astype(np.float32) * scale.astype(np.float32)
    return values


def along(shape: tuple[int, ...], parameters: NDArray[Any], grid: Grid) -> NDArray[Any] | None:
    """Returns parameters in a shape that broadcasts to that of the numbers; None if they do not fit."""
    if parameters.size == 1:
        return parameters.reshape(())
    axis = grid.axis + len(shape) if grid.axis < 0 else grid.axis
    if not 0 <= axis < len(shape):
        return None
    if grid.block:
        if grid.block < 0 or parameters.ndim != len(shape):
            return None
        if parameters.shape[axis] != -(-shape[axis] // grid.block):
            return None
        spread_out = np.take(parameters, np.arange(shape[axis]) // grid.block, axis=axis)
        return spread_out if spread_out.shape == shape else None
    if parameters.size != shape[axis]:
        return None
    spread = [1] * len(shape)
    spread[axis] = -1
    return parameters.reshape(spread)
