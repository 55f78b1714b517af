"""Numbers that are stored as integers, back in float."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def dequantized(
    numbers: NDArray[Any],
    scale: NDArray[Any],
    zero_point: NDArray[Any] | None,
    axis: int = 1,
    block: int = 0,
) -> NDArray[Any]:
    """Does what DequantizeLinear does, for one scale, a scale for each slice, or one for each block.

    Args:
        numbers: The integers (or 8-bit floats).
        scale: Scales: one, one-dimensional along `axis`, or of the rank of `numbers` for blocks.
        zero_point: Zero points of the same shape, None for zero.
        axis: Axis of the slices or blocks.
        block: Elements of a block, 0 for none.

    Returns:
        Numbers of the type of the scale.

    Raises:
        ValueError: If the shapes do not fit.
    """
    spread = _spread(scale, numbers.shape, axis, block).astype(np.float32)
    wide = numbers.astype(np.float32) if numbers.dtype.itemsize < 4 else numbers.astype(np.float64)
    if zero_point is not None:
        wide = wide - _spread(zero_point, numbers.shape, axis, block).astype(wide.dtype)
    with np.errstate(invalid="ignore", over="ignore"):
        real = wide * spread
    if not np.isfinite(spread).all():
        # Scales of tensors with -3.4e38 (masks) overflow in some tools; a zero is a zero all the same.
        real = np.where(wide == 0, np.float32(0.0), real)
    result: NDArray[Any] = real.astype(scale.dtype)
    return result


def fits(
    shape: tuple[int, ...],
    scale: NDArray[Any],
    zero_point: NDArray[Any] | None,
    axis: int,
    block: int,
) -> bool:
    """Whether `dequantized` takes these scales and zero points for numbers of a shape."""
    try:
        for values in (scale, zero_point):
            if values is not None:
                _spread(np.empty(values.shape, np.bool_), shape, axis, block)
    except ValueError:
        return False
    return True


def _spread(values: NDArray[Any], shape: tuple[int, ...], axis: int, block: int) -> NDArray[Any]:
    if values.size == 1 and not block:
        return values.reshape(())
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} of {shape}")
    axis %= len(shape)
    if block:
        if block < 0 or values.ndim != len(shape) or values.shape[axis] != -(-shape[axis] // block):
            raise ValueError(f"scales of {values.shape} for blocks of {block} in {shape}")
        wide = values.take(np.arange(shape[axis]) // block, axis=axis)
    else:
        wide = values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        if wide.shape[axis] not in {1, shape[axis]}:
            raise ValueError(f"{wide.shape[axis]} scales for {shape[axis]} slices")
    np.broadcast_shapes(wide.shape, shape)
    return wide


def unpacked(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpacks numbers of 2, 4 or 8 bits along the last axis, lowest bits first.

    Args:
        packed: Bytes.
        bits: Bits of a number.
        count: How many numbers the last axis holds; what is behind is padding.
    """
    each = 8 // bits
    shifts = (np.arange(each, dtype=np.uint8) * np.uint8(bits)).astype(np.uint8)
    mask = np.uint8((1 << bits) - 1)
    wide = (packed[..., None] >> shifts) & mask
    flat = wide.reshape(*packed.shape[:-1], packed.shape[-1] * each)
    return flat[..., :count]


def matmul_nbits(
    packed: NDArray[np.uint8],
    scales: NDArray[Any],
    zero_points: NDArray[Any] | None,
    *,
    rows: int,
    columns: int,
    bits: int,
    block: int,
) -> NDArray[Any]:
    """Returns the weight of a `com.microsoft` MatMulNBits as `(K, N)`.

    Layout by onnxruntime's `docs/ContribOperators.md`: for each of N columns, blocks along K, packed.

    Args:
        packed: The numbers, `(N, K / block, block * bits / 8)`.
        scales: One for each block.
        zero_points: Packed like the numbers along the blocks, or in float; half of the range for None.
        rows: K.
        columns: N.
        bits: Bits of a number.
        block: Elements of a block.
    """
    blocks = -(-rows // block)
    numbers = unpacked(packed.reshape(columns, blocks, -1), bits, block).astype(np.float32)
    scale = scales.reshape(columns, blocks, 1).astype(np.float32)
    if zero_points is None:
        zero: Any = np.float32(1 << (bits - 1))
    elif zero_points.dtype == np.uint8:
        zero = unpacked(zero_points.reshape(columns, -1), bits, blocks)[..., None].astype(
            np.float32
        )
    else:
        zero = zero_points.reshape(columns, blocks, 1).astype(np.float32)
    wide = ((numbers - zero) * scale).reshape(columns, blocks * block)[:, :rows]
    result: NDArray[Any] = np.ascontiguousarray(wide.T).astype(scales.dtype)
    return result
