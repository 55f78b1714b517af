"""Weights as sums of a few scaled signs.

One basis is XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279): the sign times the mean magnitude of an
output channel. More of them take what the ones before left over (residual binarization, as in ABC-Net, Lin
et al. 2017, arXiv 1711.11294), with all scales refitted by least squares and all signs chosen again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.packing import packed_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BASES = 4
_ROUNDS = 8
_RIDGE = 1e-6
_ROWS = 256


@dataclass(frozen=True, eq=False)
class Binary:
    """A weight as a sum of scaled signs.

    Attributes:
        codes: For each number a bit for each basis, in the shape `(channels, rest)`.
        scales: `(channels, bases)`.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]

    @property
    def bits(self) -> int:
        """Number of bases."""
        return int(self.scales.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all that has to be stored."""
        return packed_bytes(self.codes.size, self.bits) + self.scales.nbytes

    @property
    def table(self) -> NDArray[np.float32]:
        """What each code means in each channel, `(channels, 2**bases)`."""
        table: NDArray[np.float32] = self.scales @ signs(self.bits)
        return table

    def expand(self) -> NDArray[np.float32]:
        """Returns the weight as `(channels, rest)`."""
        return np.take_along_axis(self.table, self.codes.astype(np.intp), axis=1)


def signs(bases: int) -> NDArray[np.float32]:
    """Returns the sign that each code has in each basis, `(bases, 2**bases)`."""
    codes = np.arange(1 << bases)
    bits = (codes[None, :] >> np.arange(bases)[:, None]) & 1
    return (2.0 * bits - 1.0).astype(np.float32)


def binarize(weight: NDArray[Any], bases: int, *, importance: NDArray[Any] | None = None) -> Binary:
    """Finds scales and signs.

    Args:
        weight: `(channels, rest)`, finite.
        bases: How many signs a number gets.
        importance: How much the squared error of each number counts, broadcasting to the weight.
    """
    codes = np.zeros(weight.shape, np.uint8)
    scales = np.zeros((weight.shape[0], bases), np.float32)
    for start in range(0, weight.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        wide = np.asarray(weight[rows], np.float64)
        share = np.ones(())
        if importance is not None:
            share = np.broadcast_to(importance, weight.shape)[rows]
        scales[rows], codes[rows] = _fitted(wide, bases, np.broadcast_to(share, wide.shape))
    return Binary(codes, scales)


def _fitted(
    weight: NDArray[np.float64], bases: int, share: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    left, columns = weight.copy(), []
    mass = share.sum(axis=1)
    for _ in range(bases):
        scale = (share * np.abs(left)).sum(axis=1) / np.where(mass > 0, mass, 1.0)
        columns.append(scale)
        left -= np.where(left >= 0, 1.0, -1.0) * scale[:, None]
    scales = np.stack(columns, axis=1)
    codes = _assigned(weight, scales)
    for _ in range(_ROUNDS if bases > 1 else 0):
        scales = _refit(weight, codes, share, bases)
        again = _assigned(weight, scales)
        if np.array_equal(again, codes):
            break
        codes = again
    return scales, codes


def _refit(
    weight: NDArray[np.float64], codes: NDArray[np.uint8], share: NDArray[Any], bases: int
) -> NDArray[np.float64]:
    """Scales by least squares for signs that are given."""
    chosen = signs(bases).astype(np.float64)[:, codes]  # (bases, channels, rest)
    weighted = chosen * share
    gram = np.einsum("icr,jcr->cij", weighted, chosen)
    right = np.einsum("icr,cr->ci", weighted, weight)
    trace = np.trace(gram, axis1=1, axis2=2)[:, None, None]
    damped = gram + (_RIDGE * trace + np.finfo(np.float64).tiny) * np.eye(bases)
    solved: NDArray[np.float64] = np.linalg.solve(damped, right[..., None])[..., 0]
    return solved


def _assigned(weight: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The nearest of the sums that a channel can make."""
    table = scales @ signs(scales.shape[1])
    order = np.argsort(table, axis=1)
    codes = np.empty(weight.shape, np.uint8)
    for row in range(weight.shape[0]):
        ranked = table[row, order[row]]
        place = np.searchsorted((ranked[1:] + ranked[:-1]) / 2, weight[row])
        codes[row] = order[row][place]
    return codes
