"""Linear layers fitted to outputs: ridge regression on sums, in memory that samples do not add to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Shares of the mean of the diagonal; what held-out samples like best is taken.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(eq=False)
class Sums:
    """Sums over rows that a layer reads, X (groups, rows, K), and outputs it should give, (groups, rows, N).

    Attributes:
        groups: Parts of the layer, each with a weight of its own.
        inputs: K.
        outputs: N.
        count: Rows so far.
    """

    groups: int
    inputs: int
    outputs: int
    count: int = 0
    _xx: Array = field(init=False)
    _xy: Array = field(init=False)
    _x: Array = field(init=False)
    _y: Array = field(init=False)
    _yy: Array = field(init=False)

    def __post_init__(self) -> None:
        groups, inputs, outputs = self.groups, self.inputs, self.outputs
        self._xx = np.zeros((groups, inputs, inputs))
        self._xy = np.zeros((groups, inputs, outputs))
        self._x, self._y = np.zeros((groups, inputs, 1)), np.zeros((groups, outputs, 1))
        self._yy = np.zeros(groups)

    def add(self, rows: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Takes in rows and the outputs that they should give."""
        turned = rows.transpose(0, 2, 1)
        self._xx += turned @ rows
        self._xy += turned @ wanted
        self._x += rows.sum(axis=1, dtype=np.float64)[..., None]
        self._y += wanted.sum(axis=1, dtype=np.float64)[..., None]
        self._yy += np.square(wanted, dtype=np.float64).sum(axis=(1, 2))
        self.count += rows.shape[1]

    def errors(self, weight: NDArray[Any], bias: NDArray[Any] | None) -> Array:
        """Returns for each group the mean over rows of the squared distance from the wanted outputs.

        Args:
            weight: (groups, K, N).
            bias: (groups, N).
        """
        wide = weight.astype(np.float64)
        total = ((self._xx @ wide) * wide).sum(axis=(1, 2)) - 2 * (self._xy * wide).sum(axis=(1, 2))
        total += self._yy
        if bias is not None:
            offset = bias.astype(np.float64)[..., None]
            given = wide.transpose(0, 2, 1) @ self._x - self._y
            total += (offset * (2 * given + self.count * offset)).sum(axis=(1, 2))
        errors: Array = np.maximum(total, 0.0) / max(self.count, 1)
        return errors

    def fit(self, start: NDArray[Any], ridge: float, *, biased: bool) -> tuple[Array, Array | None]:
        """Returns the weight, near to a given one, and the bias that come nearest to the wanted outputs.

        Hoerl and Kennard, "Ridge Regression" (1970), with the penalty on the distance from `start`.

        Args:
            start: (groups, K, N).
            ridge: Penalty, as a share of the mean square of the inputs.
            biased: Whether the layer has a bias.
        """
        near = start.astype(np.float64)
        left, right = self._xx, self._xy
        if biased and self.count:
            left = left - self._x @ self._x.transpose(0, 2, 1) / self.count
            right = right - self._x @ self._y.transpose(0, 2, 1) / self.count
        power = np.trace(left, axis1=1, axis2=2) / max(self.inputs, 1)
        penalty = np.maximum(ridge * power, np.finfo(np.float64).tiny)
        gram = left
        left = gram + penalty[:, None, None] * np.eye(self.inputs)
        weight = near + np.linalg.solve(left, right - gram @ near)
        if not biased:
            return weight, None
        offset = (self._y - weight.transpose(0, 2, 1) @ self._x) / max(self.count, 1)
        return weight, offset[..., 0]


def best_fit(
    sums: Sums, held_out: Sums, weight: NDArray[Any], bias: NDArray[Any] | None
) -> tuple[Array, Array | None] | None:
    """Returns weight and bias of which each group comes nearest on held-out rows.

    Returns:
        None when nothing is nearer than what there is.
    """
    least = held_out.errors(weight, bias)
    best = weight.astype(np.float64)
    offset = None if bias is None else bias.astype(np.float64)
    found = False
    for ridge in RIDGES:
        try:
            new, shift = sums.fit(weight, ridge, biased=bias is not None)
        except np.linalg.LinAlgError:
            continue
        errors = held_out.errors(new, shift)
        better = (errors < least) & np.isfinite(new).all(axis=(1, 2))
        best = np.where(better[:, None, None], new, best)
        if offset is not None and shift is not None:
            offset = np.where(better[:, None], shift, offset)
        least = np.where(better, errors, least)
        found |= bool(better.any())
    return (best, offset) if found else None
