"""The numbers of weights in int8 whose activations are rounded while the model runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.weights import weight_params

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from onnxcomp.ir import ir
    from onnxcomp.quant.dynamic import Site
    from onnxcomp.quant.scheme import Params


@dataclass(frozen=True)
class Numbers:
    """How numbers are made.

    Attributes:
        per_channel: One scale for each column of a weight instead of one for all.
        reduce_range: Weights of 7 bits.
        smoothing: What each channel of an activation is divided by before it is rounded.
        rounded: Numbers of weights that were chosen in another way than to nearest.
    """

    per_channel: bool = True
    reduce_range: bool = False
    smoothing: Mapping[ir.Value, NDArray[np.float32]] = field(default_factory=dict)
    rounded: Mapping[Site, NDArray[np.int8]] = field(default_factory=dict)


def smoothed(site: Site, numbers: Numbers) -> NDArray[Any]:
    """Returns the weight of a product for an activation whose channels were divided."""
    scale = None if site.rank else numbers.smoothing.get(site.source)
    return site.matrix() if scale is None else site.matrix() * scale[:, None]


def grid_of(site: Site, numbers: Numbers) -> Params:
    """Returns the grid of the weight of a product."""
    axis = 1 if numbers.per_channel else None
    return weight_params(smoothed(site, numbers), axis, reduce_range=numbers.reduce_range)


def gate_scale(
    weight: NDArray[Any], axes: tuple[int, ...], levels: np.float32
) -> NDArray[np.float32]:
    """Returns the symmetric scales of a weight along the axes that are left."""
    largest = np.abs(weight).max(axis=axes).astype(np.float32)
    tiny = np.finfo(np.float32).tiny * levels
    return np.where(largest > tiny, largest / levels, np.float32(1)).astype(np.float32)


def columns_last(tensor: ir.TensorProtocol) -> NDArray[Any]:
    """Returns the weight of an LSTM with its columns last."""
    return np.swapaxes(tensor.numpy(), 1, 2)
