"""What rounding an activation does to the operators that read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import attribute, constant
from onnxcomp.quant.ranges import rounding_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.candidates import Candidate
    from onnxcomp.quant.channels import Channels
    from onnxcomp.quant.observers import Histogram
    from onnxcomp.quant.scheme import Params, QScheme


def read_power(candidate: Candidate) -> NDArray[np.float64] | None:
    """Returns the sum of squares of the weights that meet each channel of a node's first input."""
    tensor = None if candidate.weight is None else constant(candidate.node.inputs[candidate.weight])
    if tensor is None or len(tensor.shape) < 2:
        return None
    weight, kind = tensor.numpy(), candidate.node.op_type
    if kind == "Conv":
        group = attribute(candidate.node, "group", 1)
        parts = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return _power("goir,goir->gi", parts).reshape(-1)
    if kind == "ConvTranspose":
        flat = weight.reshape(weight.shape[0], -1)
        return _power("io,io->i", flat)
    if kind == "Gemm" and attribute(candidate.node, "transB", 0):
        return _power("oi,oi->i", weight)
    stack = weight.reshape(-1, *weight.shape[-2:])
    return _power("sio,sio->i", stack)


def _power(form: str, weight: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.einsum(form, weight, weight).astype(np.float64)
    return found


def channel_power(channels: Channels) -> NDArray[np.float64]:
    """Returns the mean square of each channel, over the vectors that were kept."""
    return _mean_square(channels.vectors)


def channel_noise(channels: Channels, params: Params) -> NDArray[np.float64]:
    """Returns the mean square of what rounding does to each channel, over the vectors that were kept."""
    vectors = channels.vectors
    return _mean_square(params.dequantize(params.quantize(vectors)) - vectors)


def reader_noise(
    noise: NDArray[np.float64], signal: NDArray[np.float64], power: NDArray[np.float64]
) -> float:
    """Returns the expected share of noise in a reader's output when the activation is rounded.

    An error of a channel counts as much as the weights that read the channel; errors of different
    channels are taken as independent.

    Args:
        noise: From `channel_noise`.
        signal: From `channel_power`.
        power: From `read_power`.
    """
    total = float(signal @ power)
    return float(noise @ power) / total if total > 0.0 else 0.0


def _mean_square(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.square(vectors, dtype=np.float64).mean(axis=0)
    return found


def own_noise(seen: Histogram, low: float, high: float, scheme: QScheme) -> float:
    """Returns the expected share of noise in the activation itself."""
    signal = float(np.square(seen.centres) @ seen.counts) / max(seen.count, 1)
    return rounding_error(seen, low, high, scheme) / signal if signal > 0.0 else 0.0
