"""Weights as int8 and biases as int32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant.scheme import Params

if TYPE_CHECKING:
    from numpy.typing import NDArray

# With 7 bits a sum of two products of u8 and s8 stays inside 16 bits.
FULL_RANGE, REDUCED_RANGE, SIXTEEN_BITS = 127, 64, 32767
_INT32_ROOM = float(2**30)


WeightType = Literal["int8", "uint8", "int16"]
_MIDDLE: dict[WeightType, int] = {"int8": 0, "uint8": 128, "int16": 0}


def weight_params(
    weight: NDArray[Any],
    axis: int | None,
    *,
    reduce_range: bool = False,
    dtype: WeightType = "int8",
) -> Params:
    """Returns the symmetric grid of a weight, which covers every value.

    With 255 steps, clipping the largest weights was never found to lower the squared error.

    Args:
        weight: The weight.
        axis: Axis along which scales vary, None for one scale.
        reduce_range: Use 7 bits, for processors that saturate.
        dtype: Element type.
    """
    levels = REDUCED_RANGE if reduce_range else FULL_RANGE
    if dtype == "int16":
        levels = SIXTEEN_BITS
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32)
    largest = np.where(largest > np.finfo(np.float32).tiny * levels, largest, np.float32(levels))
    scale = largest / np.float32(levels)
    final = np.asarray(scale.reshape(() if axis is None else (-1,)), np.float32)
    return Params(final, np.full(final.shape, _MIDDLE[dtype], np.dtype(dtype)), axis)


def widened_for_bias(params: Params, bias: NDArray[Any], input_scale: float) -> Params:
    """Widens scales of channels whose bias would not fit into int32 as `input_scale * scale` steps."""
    needed = (np.abs(bias.astype(np.float64)) / (input_scale * _INT32_ROOM)).astype(np.float32)
    if params.axis is None:
        needed = needed.max(initial=0.0)
    scale = np.asarray(np.maximum(params.scale, needed), np.float32)
    return Params(scale, params.zero_point, params.axis)


def bias_params(weight: Params, input_scale: float, size: int) -> Params:
    """Returns the int32 grid of a bias: one scale for each output channel."""
    scale = (weight.scale.astype(np.float64) * input_scale).astype(np.float32)
    scale = np.broadcast_to(scale.reshape(-1), (size,)).copy()
    return Params(scale, np.zeros(size, np.int32), 0)


def weight_shift(
    weight: NDArray[Any], rounded: NDArray[Any], means: NDArray[Any], axis: int, *, grouped: bool
) -> NDArray[np.float64]:
    """Returns how far the rounding of a weight moves the mean of each output channel.

    Args:
        weight: The weight.
        rounded: The values that it has after rounding.
        means: Mean of each channel of the activation that it reads.
        axis: Axis of the output channels; the other one of the first two is that of the input.
        grouped: Whether each channel has a weight of its own (depthwise).
    """
    error = rounded.astype(np.float64) - weight.astype(np.float64)
    error = error.reshape(*error.shape[:2], -1).sum(axis=2)
    if axis == 1:
        error = error.T
    shift: NDArray[np.float64] = error[:, 0] * means if grouped else error @ means
    return shift
