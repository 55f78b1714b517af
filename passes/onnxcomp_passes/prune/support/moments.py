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

    Attributes:
        inputs: K.
        outputs: N.
        biased: Whether the layer has a bias, which then takes up what the mean of the outputs moves.
    """

    inputs: int
    outputs: int
    biased: bool

    def __post_init__(self) -> None:
        self.count = 0
        self._xx = np.zeros((self.inputs, self.inputs))
        self._xy = np.zeros((self.inputs, self.outputs))
        self._x, self._y = np.zeros(self.inputs), np.zeros(self.outputs)
        self._yy = 0.0

    def add(self, rows: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Takes in rows and what they should give."""
        # numpy hands a matrix times itself to a routine that computes half of it.
        self._xx += rows.T @ rows
        self._xy += rows.T @ wanted
        self._x += rows.sum(axis=0, dtype=np.float64)
        self._y += wanted.sum(axis=0, dtype=np.float64)
        self._yy += float(np.square(wanted, dtype=np.float64).sum())
        self.count += rows.shape[0]

    @property
    def gram(self) -> Array:
        """X^T X; of the rows without their mean where there is a bias."""
        if not self.biased or not self.count:
            return self._xx
        return self._xx - np.outer(self._x, self._x) / self.count

    @property
    def power(self) -> Array:
        """Sum of squares of each input."""
        return np.diagonal(self._xx).copy()

    @property
    def cross(self) -> Array:
        """X^T Y, without means where there is a bias."""
        if not self.biased or not self.count:
            return self._xy
        return self._xy - np.outer(self._x, self._y) / self.count

    @property
    def output_power(self) -> float:
        """Sum of squares of the outputs, without their mean where there is a bias."""
        if not self.biased or not self.count:
            return self._yy
        return max(self._yy - float(self._y @ self._y) / self.count, 0.0)

    def bias(self, weight: NDArray[Any]) -> Array:
        """Returns the bias that makes the mean of each output right."""
        found: Array = (self._y - self._x @ weight) / max(self.count, 1)
        return found

    def error(self, weight: NDArray[Any], bias: NDArray[Any] | None = None) -> float:
        """Returns the sum of squared distances of the outputs from those that are wanted."""
        wide = np.asarray(weight, np.float64)
        total = self._yy + float(((self._xx @ wide - 2 * self._xy) * wide).sum())
        if bias is not None:
            offset = np.asarray(bias, np.float64)
            total += float(offset @ (2 * (self._x @ wide - self._y) + self.count * offset))
        return max(total, 0.0)
