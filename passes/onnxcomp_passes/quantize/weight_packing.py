"""Weights of few bits as bytes, the way ONNX and the way MatMulNBits have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.blocks import BlockGrid, BlockScheme

_TYPES = {
    "int2": ir.DataType.INT2,
    "uint2": ir.DataType.UINT2,
    "uint3": ir.DataType.UINT8,  # for zero points; numbers are stored in planes
    "int4": ir.DataType.INT4,
    "uint4": ir.DataType.UINT4,
    "int8": ir.DataType.INT8,
    "uint8": ir.DataType.UINT8,
}


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight in few bits.

    Attributes:
        numbers: Its numbers as (K, N), int8 or uint8.
        grid: What they stand for.
        shift: What rounding takes from the mean of each output, for a bias to give back; None for nothing.
    """

    numbers: NDArray[Any]
    grid: BlockGrid
    shift: NDArray[np.float64] | None = None

    @property
    def scheme(self) -> BlockScheme:
        """How it is stored."""
        return self.grid.scheme


def packed_tensor(numbers: NDArray[Any], scheme: BlockScheme) -> ir.TensorProtocol:
    """Returns numbers as a tensor that takes as many bytes in memory as in a file."""
    kind = _TYPES[scheme.dtype]
    if kind.bitwidth == 8:
        return ir.tensor(np.ascontiguousarray(numbers.astype(kind.numpy())))
    bits = kind.bitwidth
    flat = numbers.astype(np.uint8).reshape(-1) & (2**bits - 1)
    each = 8 // bits
    flat = np.concatenate([flat, np.zeros(-flat.size % each, np.uint8)]).reshape(-1, each)
    packed = np.zeros(flat.shape[0], np.uint8)
    for place in range(each):
        packed |= flat[:, place] << np.uint8(bits * place)
    return ir.PackedTensor(packed, kind, shape=ir.Shape(numbers.shape))


def for_kernel(stored: Stored) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Returns numbers and zero points as MatMulNBits has them: (N, blocks, bytes), unsigned."""
    scheme, grid = stored.scheme, stored.grid
    low = scheme.limits[0]
    rows, columns = stored.numbers.shape
    size, blocks, each = scheme.block, scheme.blocks(rows), 8 // scheme.bits
    padded = np.zeros((blocks * size, columns), np.uint8)
    padded[:rows] = (stored.numbers.astype(np.int16) - low).astype(np.uint8)
    packed = _joined(padded.T.reshape(columns, blocks, size // each, each), scheme.bits)
    middle = 2 ** (scheme.bits - 1)
    zeros = (grid.zero_points.T - low).astype(np.uint8)
    if (zeros == middle).all():
        return packed, None
    room = -blocks % each
    zeros = np.concatenate([zeros, np.full((columns, room), middle, np.uint8)], axis=1)
    return packed, _joined(zeros.reshape(columns, -1, each), scheme.bits)


def _joined(parts: NDArray[Any], bits: int) -> NDArray[Any]:
    joined = np.zeros(parts.shape[:-1], np.uint8)
    for place in range(parts.shape[-1]):
        joined |= parts[..., place] << np.uint8(bits * place)
    return joined
