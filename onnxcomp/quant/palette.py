"""Weights as indices into a few numbers.

k-means in one dimension needs no distances: sorted centres own the numbers up to the middle between
them (Lloyd 1982, "Least squares quantization in PCM"). Starting from the density's cube root (Panter and
Dite 1951) it is next to the optimum from the start. Deep Compression (Han, Mao and Dally 2016) stores
networks so; importance weights by second moments of what a weight multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.packing import packed_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

_CELLS = 1 << 14
_BINS = 256
_ROUNDS = 60
_SETTLED = 1e-7
_PIECE = 1 << 22
# Weights that somebody pruned stay zero.
_PRUNED = 0.05


@dataclass(frozen=True, eq=False)
class Palette:
    """A weight as indices.

    Attributes:
        codes: Index of each number, in the weight's shape.
        colours: `(K,)` sorted numbers that the indices mean.
        scale: What the numbers of a slice are multiplied by, in a shape that broadcasts; None for one.
        bits: Bits of an index.
    """

    codes: NDArray[np.uint8]
    colours: NDArray[np.float32]
    scale: NDArray[np.float32] | None
    bits: int

    @property
    def nbytes(self) -> int:
        """Bytes of all that has to be stored."""
        return palette_bytes(
            self.codes.size, self.bits, 0 if self.scale is None else self.scale.size
        )

    def expand(self) -> NDArray[np.float32]:
        """Returns the weight."""
        values = self.colours[self.codes]
        return values if self.scale is None else values * self.scale


def palette_bytes(count: int, bits: int, scales: int) -> int:
    """Returns the bytes that a palette of `count` indices takes."""
    return packed_bytes(count, bits) + 4 * (1 << bits) + 4 * scales


def kmeans(values: NDArray[Any], share: NDArray[Any] | None, size: int) -> NDArray[np.float32]:
    """Returns the `size` sorted centres that cost the least squared error, each number with its share.

    The numbers are counted in cells first, so that time grows with them only once.

    Args:
        values: Finite numbers of any shape.
        share: How much the error of each counts, of a shape that broadcasts to theirs; None for equal.
        size: Number of centres.
    """
    cells, mass = _cells(values, share)
    if cells.size <= size:
        return _filled(cells, size)
    total = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * cells)])
    found = [_settled(cells, total, moment, start) for start in _starts(cells, mass, size)]
    return min(found, key=lambda centres: _cost(cells, mass, centres)).astype(np.float32)


def _starts(
    cells: NDArray[np.float64], mass: NDArray[np.float64], size: int
) -> Iterator[NDArray[np.float64]]:
    """Centres to begin with: by the cube root of the density, and evenly."""
    bins = min(_BINS, 4 * size)
    edges = np.linspace(cells[0], cells[-1], bins + 1)
    rough = np.histogram(cells, edges, weights=mass)[0]
    rate = np.concatenate([[0.0], np.cumsum(np.cbrt(rough))])
    wanted = (np.arange(size) + 0.5) / size
    yield np.interp(wanted * rate[-1], rate, edges)
    yield cells[0] + wanted * (cells[-1] - cells[0])


def _settled(
    cells: NDArray[np.float64],
    total: NDArray[np.float64],
    moment: NDArray[np.float64],
    centres: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Lloyd's algorithm on sorted centres."""
    span = float(cells[-1] - cells[0])
    for _ in range(_ROUNDS):
        edges = np.searchsorted(cells, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [cells.size]])
        weight = total[edges[1:]] - total[edges[:-1]]
        sums = moment[edges[1:]] - moment[edges[:-1]]
        moved = np.where(weight > 0, sums / np.where(weight > 0, weight, 1.0), centres)
        change = float(np.abs(moved - centres).max())
        centres = np.sort(moved)
        if change <= _SETTLED * span:
            break
    return centres


def _cost(
    cells: NDArray[np.float64], mass: NDArray[np.float64], centres: NDArray[np.float64]
) -> float:
    place = np.searchsorted((centres[1:] + centres[:-1]) / 2, cells)
    return float(np.sum(mass * np.square(centres[place] - cells)))


def _cells(
    values: NDArray[Any], share: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and mass of the numbers in each of many equal cells, without the empty ones."""
    flat = values.reshape(-1)
    low, high = float(flat.min()), float(flat.max())
    if low == high:
        return np.array([low]), np.ones(1)
    wide = None if share is None else np.broadcast_to(share, values.shape).reshape(-1)
    mass, moment, rate = np.zeros(_CELLS), np.zeros(_CELLS), (_CELLS - 1) / (high - low)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.float64)
        part = np.ones(piece.size) if wide is None else wide[start : start + _PIECE]
        place = ((piece - low) * rate).astype(np.intp)
        mass += np.bincount(place, part, minlength=_CELLS)
        moment += np.bincount(place, part * piece, minlength=_CELLS)
    there = mass > 0
    return moment[there] / mass[there], mass[there]


def _filled(found: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Repeats the last of too few centres."""
    more = np.full(max(size - found.size, 0), found[-1] if found.size else 0.0)
    return np.concatenate([found, more])[:size].astype(np.float32)


def nearest(values: NDArray[Any], colours: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Returns the index of the nearest of sorted colours for each number."""
    edges = (colours[1:].astype(np.float64) + colours[:-1]) / 2
    flat, codes = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        codes[start : start + _PIECE] = np.searchsorted(edges, piece)
    return codes.reshape(values.shape)


def palettize(
    weight: NDArray[Any],
    bits: int,
    *,
    kept: Sequence[int] = (),
    importance: NDArray[Any] | None = None,
) -> Palette:
    """Finds the palette of a weight.

    Args:
        weight: Finite numbers.
        bits: Bits of an index, 1 to 8.
        kept: Axes whose slices have a scale of their own.
        importance: How much the squared error of each number counts, broadcasting to the weight.
    """
    weight = np.asarray(weight, np.float32)
    scale = _scales(weight, kept)
    plain = weight if scale is None else weight / scale
    share = importance
    if scale is not None:
        squared = np.square(scale.astype(np.float64))
        share = squared if importance is None else importance * squared
    colours = kmeans(plain, share, 1 << bits)
    if np.count_nonzero(weight == 0.0) > _PRUNED * weight.size:
        colours[int(np.abs(colours).argmin())] = 0.0
    codes = nearest(plain, colours)
    if scale is not None:
        scale = _refitted(weight, colours[codes], scale, importance, kept)
    return Palette(codes, colours, scale, bits)


def _others(weight: NDArray[Any], kept: Sequence[int]) -> tuple[int, ...]:
    own = {axis % weight.ndim for axis in kept}
    return tuple(axis for axis in range(weight.ndim) if axis not in own)


def _scales(weight: NDArray[np.float32], kept: Sequence[int]) -> NDArray[np.float32] | None:
    """Root mean square of each slice; 1 for one that is all zero."""
    if not kept:
        return None
    mean = np.square(weight, dtype=np.float64).mean(axis=_others(weight, kept), keepdims=True)
    root = np.sqrt(mean).astype(np.float32)
    return np.where(root > 0, root, np.float32(1.0))


def _refitted(
    weight: NDArray[np.float32],
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    importance: NDArray[Any] | None,
    kept: Sequence[int],
) -> NDArray[np.float32]:
    """The scale of each slice that costs the least squared error with the colours chosen."""
    share = 1.0 if importance is None else importance
    axes = _others(weight, kept)
    above = np.sum(share * weight * values, axis=axes, keepdims=True, dtype=np.float64)
    below = np.sum(share * np.square(values), axis=axes, keepdims=True, dtype=np.float64)
    fitted = np.where(below > 0, above / np.where(below > 0, below, 1.0), scale)
    return np.where(fitted > 0, fitted, scale).astype(np.float32)
