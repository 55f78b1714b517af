"""Weights as numbers of 2 to 8 bits with a scale for each block of rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant import block_search

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from numpy.typing import DTypeLike, NDArray

    Floats: TypeAlias = "NDArray[np.float32]"

BlockType = Literal["int2", "uint2", "int3", "uint3", "int4", "uint4", "int8", "uint8"]
Method = Literal["rtn", "mse", "hqq"]

# Elements that are looked at together: what the search holds stays in the processor's cache.
_CHUNK = 1 << 17


@dataclass(frozen=True)
class BlockScheme:
    """How a matrix is stored.

    Attributes:
        dtype: Element type.
        block: Rows that share a scale in each column; 0 is all of them.
        symmetric: Whether 0 is the number 0 (the middle of an unsigned type) in every block.
    """

    dtype: BlockType = "int4"
    block: int = 32
    symmetric: bool = True

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return int(self.dtype[-1])

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest number."""
        if self.dtype.startswith("u"):
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1

    @property
    def middle(self) -> int:
        """The number that stands for 0 in a symmetric scheme."""
        low, high = self.limits
        return low + (high - low + 1) // 2

    def rows_of_block(self, rows: int) -> int:
        """Returns how many rows share a scale in a matrix of so many."""
        return min(self.block, rows) if self.block else max(rows, 1)

    def blocks(self, rows: int) -> int:
        """Returns how many blocks a column has; the last one may be shorter."""
        return -(-rows // self.rows_of_block(rows))

    def nbytes(self, rows: int, columns: int, scale_bytes: int = 4) -> int:
        """Returns the bytes of a matrix with its scales and zero points."""
        blocks = self.blocks(rows) * columns
        zeros = 0 if self.symmetric else (blocks * self.bits + 7) // 8
        return (rows * columns * self.bits + 7) // 8 + blocks * scale_bytes + zeros


@dataclass(frozen=True, eq=False)
class BlockGrid:
    """The numbers that quantize a matrix of K rows and N columns.

    Attributes:
        scheme: How it is stored.
        rows: K.
        scales: Step of each block, (blocks, N); may be negative.
        zero_points: Number that stands for 0 in each block, (blocks, N).
    """

    scheme: BlockScheme
    rows: int
    scales: Floats
    zero_points: NDArray[np.int16]

    def quantize(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Returns the numbers for a matrix, int8 or uint8, rounded half to even."""
        kind = np.uint8 if self.scheme.dtype.startswith("u") else np.int8
        numbers = np.empty(weight.shape, kind)
        for index, start, stop in self._blocks():
            steps = weight[start:stop].astype(np.float32) / self.scales[index]
            numbers[start:stop] = self._clipped(steps, index)
        return numbers

    def dequantize(self, numbers: NDArray[Any]) -> Floats:
        """Returns the values that numbers stand for."""
        values = np.empty(numbers.shape, np.float32)
        for index, start, stop in self._blocks():
            steps = numbers[start:stop].astype(np.float32) - self.zero_points[index]
            values[start:stop] = steps * self.scales[index]
        return values

    def round(self, weight: NDArray[Any]) -> Floats:
        """Returns the nearest values that the grid has."""
        return self.dequantize(self.quantize(weight))

    def round_row(self, values: NDArray[Any], row: int) -> NDArray[Any]:
        """Returns the nearest values of one row, for methods that go row by row."""
        index = row // self.scheme.rows_of_block(self.rows)
        numbers = self._clipped(values / self.scales[index], index)
        rounded: NDArray[Any] = (numbers - self.zero_points[index]) * self.scales[index]
        return rounded

    def _clipped(self, steps: NDArray[Any], index: int) -> NDArray[Any]:
        clipped: NDArray[Any] = np.clip(
            np.rint(steps) + self.zero_points[index], *self.scheme.limits
        )
        return clipped

    def _blocks(self) -> Iterator[tuple[int, int, int]]:
        size = self.scheme.rows_of_block(self.rows)
        for index in range(self.scales.shape[0]):
            yield index, index * size, min(self.rows, (index + 1) * size)


def block_params(
    weight: NDArray[Any],
    scheme: BlockScheme,
    method: Method = "rtn",
    *,
    importance: NDArray[Any] | None = None,
    scale_dtype: DTypeLike = np.float32,
) -> BlockGrid:
    """Returns the grid of a matrix.

    A symmetric block of less than 8 bits may have a negative scale: the number -8 then stands for the
    largest value, whichever sign that has, so that 16 steps reach as far as 17 would (onnxruntime's own
    int4 quantizer does the same).

    Args:
        weight: The matrix, (K, N), finite.
        scheme: How to store it.
        method: `rtn` covers the range of each block; `mse` looks for the scale with the smallest squared
            error; `hqq` solves for scale and zero point under a norm that forgives outliers
            (Badri and Shaji, Half-Quadratic Quantization, 2023). None needs data.
        importance: Weight of the squared error of each row, (K,); the diagonal of a Gram matrix.
        scale_dtype: Type that scales are stored in; they are rounded to it before numbers are chosen.
    """
    rows, columns = weight.shape
    size, blocks = scheme.rows_of_block(rows), scheme.blocks(rows)
    scales = np.empty((blocks, columns), np.float32)
    zeros = np.empty((blocks, columns), np.int16)
    shares = _padded(
        np.ones(rows) if importance is None else _bounded(importance), blocks * size
    ).reshape(blocks, size, 1)
    step = max(1, _CHUNK // max(blocks * size, 1))
    for start in range(0, columns, step):
        part = _padded(weight[:, start : start + step].astype(np.float32), blocks * size)
        found = block_search.search(
            part.reshape(blocks, size, -1), shares, scheme.limits, scheme.symmetric, method
        )
        scales[:, start : start + step] = _stored(found.scales, scale_dtype)
        zeros[:, start : start + step] = found.zeros
    return BlockGrid(scheme, rows, scales, zeros)


def with_scales(grid: BlockGrid, scales: NDArray[Any]) -> BlockGrid:
    """Returns a grid with other steps."""
    return replace(grid, scales=np.asarray(scales, np.float32))


def _stored(scales: NDArray[Any], dtype: DTypeLike) -> Floats:
    """Scales as the file will have them; one too small for the type would make a block all zero."""
    kept = scales.astype(dtype).astype(np.float32)
    tiny = float(np.finfo(dtype).tiny)
    usable = np.isfinite(kept) & (np.abs(kept) >= tiny)
    floor = np.where(scales < 0, -tiny, tiny).astype(np.float32)
    stored: Floats = np.where(usable, kept, np.where(np.isfinite(kept), floor, 1)).astype("f4")
    return stored


def _padded(array: NDArray[Any], rows: int) -> NDArray[Any]:
    missing = rows - array.shape[0]
    if not missing:
        return array
    return np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)])


def _bounded(importance: NDArray[Any]) -> NDArray[np.float64]:
    """Importance with mean 1; rows that were never seen count a little, not nothing."""
    found = np.asarray(importance, np.float64)
    mean = float(found.mean()) if found.size else 0.0
    if not np.isfinite(mean) or mean <= 0.0:
        return np.ones(found.shape)
    bounded: NDArray[np.float64] = np.maximum(found / mean, 1e-3)
    return bounded
