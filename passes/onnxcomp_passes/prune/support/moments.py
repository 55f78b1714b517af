"""What a linear layer reads, and what it should give, as sums that samples do not add to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(eq=False)
class Moments:
    """Sums over rows X (rows, K) that a weight multiplies and outputs Y (rows, N) that it should give.

    A weight in several parts has sums for each; they are the first axis of all arrays.

    Attributes:
        groups: Parts.
        inputs: K.
        outputs: N.
        biased: Whether the layer has a bias, which then takes up what the mean of the outputs moves.
    """

    groups: int
    inputs: int
    outputs: int
    biased: bool

    def __post_init__(self) -> None:
        groups, inputs, outputs = self.groups, self.inputs, self.outputs
        self.count = 0
        self._xx = np.zeros((groups, inputs, inputs))
        self._xy = np.zeros((groups, inputs, outputs))
        self._x, self._y = np.zeros((groups, 1, inputs)), np.zeros((groups, 1, outputs))
        self._yy = np.zeros(groups)

    def add(self, rows: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Takes in rows (groups, rows, K) and what they should give."""
        if self.groups == 1:
            # numpy hands a matrix times itself to a routine that computes half of it.
            self._xx[0] += rows[0].T @ rows[0]
        else:
            self._xx += rows.transpose(0, 2, 1) @ rows
        self._xy += rows.transpose(0, 2, 1) @ wanted
        self._x += rows.sum(axis=1, keepdims=True, dtype=np.float64)
        self._y += wanted.sum(axis=1, keepdims=True, dtype=np.float64)
        self._yy += np.square(wanted, dtype=np.float64).sum(axis=(1, 2))
        self.count += rows.shape[1]

    def part(self, index: int) -> Moments:
        """Returns the sums of one part, which share their memory."""
        found = Moments(0, self.inputs, self.outputs, self.biased)
        here = slice(index, index + 1)
        found.groups, found.count = 1, self.count
        found._xx, found._xy, found._yy = self._xx[here], self._xy[here], self._yy[here]
        found._x, found._y = self._x[here], self._y[here]
        return found

    @property
    def gram(self) -> Array:
        """X^T X; of the rows without their mean where there is a bias."""
        return self._xx - self._outer(self._x) if self.biased else self._xx

    @property
    def cross(self) -> Array:
        """X^T Y, without means where there is a bias."""
        return self._xy - self._outer(self._y) if self.biased else self._xy

    @property
    def power(self) -> Array:
        """Sum of squares of each input."""
        return np.diagonal(self._xx, axis1=1, axis2=2).copy()

    @property
    def output_power(self) -> Array:
        """Sum of squares of the outputs, without their mean where there is a bias."""
        if not self.biased:
            return self._yy
        means = np.square(self._y).sum(axis=(1, 2)) / max(self.count, 1)
        found: Array = np.maximum(self._yy - means, 0.0)
        return found

    def _outer(self, total: Array) -> Array:
        found: Array = self._x.transpose(0, 2, 1) @ total / max(self.count, 1)
        return found

    def bias(self, weight: NDArray[Any]) -> Array | None:
        """Returns the bias (groups, N) that makes the mean of each output right, if there is one."""
        if not self.biased:
            return None
        found: Array = ((self._y - self._x @ weight) / max(self.count, 1))[:, 0]
        return found

    def errors(self, weight: NDArray[Any], bias: NDArray[Any] | None) -> Array:
        """Returns the sum of squared distances of each part's outputs from those that are wanted.

        Args:
            weight: (groups, K, N).
            bias: (groups, N).
        """
        wide = np.asarray(weight, np.float64)
        total = self._yy + ((self._xx @ wide - 2 * self._xy) * wide).sum(axis=(1, 2))
        if bias is not None:
            offset = np.asarray(bias, np.float64)[:, None]
            moved = 2 * (self._x @ wide - self._y) + self.count * offset
            total = total + (offset * moved).sum(axis=(1, 2))
        found: Array = np.maximum(total, 0.0)
        return np.where(np.isfinite(found), found, np.inf)
