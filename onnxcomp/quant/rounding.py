"""Rounding of a layer's weight that looks at what the layer gives instead of at each number alone.

With rows X that a layer reads and outputs Y that it should give, the error |X W - Y|^2 is quadratic in the
weight W, and X^T X, X^T Y and |Y|^2 say all about it. Nagel et al., "Up or Down? Adaptive Rounding for
Post-Training Quantization" (2020, arXiv 2004.10568) minimise it over rounding up or down by annealed
gradient descent. Here it is done by descent along one number at a time (Nair and Suggala, "CDQuant", 2024,
arXiv 2406.17542): every step takes the best of the allowed numbers exactly, for all outputs at once. Started
from the nearest numbers it ends where it does after error feedback (Frantar et al., "GPTQ", 2022), which is
therefore left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Rows of numbers whose changes are passed on to all others at once.
_BLOCK = 64
_SWEEPS = 8
_STALLED = 1e-4
# Above this many inputs of an output, solving for the best weight costs more than it brings.
_MOST_INPUTS = 4608
_FEW = 1e-30


@dataclass(eq=False)
class Equations:
    """What rows X and wished outputs Y say about a weight, without their means if these are corrected apart.

    Attributes:
        gram: X^T X as (groups, K, K).
        cross: X^T Y as (groups, K, N).
        power: |Y|^2 of each output as (groups, N).
        mean: Mean of X as (groups, K).
        wanted: Mean of Y as (groups, N).
        count: Rows.
    """

    gram: Floats
    cross: Floats
    power: Floats
    mean: Floats
    wanted: Floats
    count: int

    def error(self, weight: Floats) -> Floats:
        """Returns the squared error of each output as (groups, N)."""
        inner = self.gram @ weight - 2.0 * self.cross
        found: Floats = self.power + (weight * inner).sum(axis=1)
        return np.maximum(found, 0.0)

    def solved(self, prior: Floats, ridge: float) -> tuple[Floats, Floats]:
        """Returns the matrix and the weight of least error, drawn to a prior: (G + r) V = X^T Y + r W."""
        size = self.gram.shape[-1]
        diagonal = np.einsum("gkk->gk", self.gram)
        damp = np.maximum(ridge * diagonal.mean(axis=1), _FEW)[:, None, None]
        matrix = self.gram + damp * np.eye(size)
        return matrix, np.linalg.solve(matrix, self.cross + damp * prior)


def equations(
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]], *, centred: bool
) -> Equations | None:
    """Adds up rows (groups, R, K) and outputs (groups, R, N); None where there are none, or not all are finite."""
    sums: list[Floats] = []
    count = 0
    for rows, outputs in pairs:
        if not rows.shape[1]:
            continue
        if not (np.isfinite(rows).all() and np.isfinite(outputs).all()):
            return None
        left = rows.transpose(0, 2, 1)
        parts = [
            (left @ rows).astype(np.float64),
            (left @ outputs).astype(np.float64),
            np.square(outputs, dtype=np.float64).sum(axis=1),
            rows.sum(axis=1, dtype=np.float64),
            outputs.sum(axis=1, dtype=np.float64),
        ]
        sums = [one + two for one, two in zip(sums, parts, strict=True)] if sums else parts
        count += rows.shape[1]
    if not sums:
        return None
    gram, cross, power, total, wished_total = sums
    mean, wanted = total / count, wished_total / count
    if centred:
        gram = gram - count * mean[:, :, None] * mean[:, None, :]
        cross = cross - count * mean[:, :, None] * wanted[:, None, :]
        power = power - count * wanted**2
    return Equations(gram, cross, power, mean, wanted, count)


@dataclass(frozen=True, eq=False)
class Steps:
    """The numbers that a weight may have.

    Attributes:
        step: Scale of each number as (groups, K, N).
        zero: Zero point of each number.
        low: Smallest number allowed.
        high: Largest number allowed.
    """

    step: Floats
    zero: Floats
    low: Floats
    high: Floats

    def values(self, numbers: Floats) -> Floats:
        """Returns what numbers stand for."""
        return np.asarray((numbers - self.zero) * self.step, np.float64)

    def nearest(self, values: Floats) -> Floats:
        """Returns the allowed numbers that are nearest to values."""
        step = np.where(self.step == 0, 1.0, self.step)
        return np.clip(np.rint(values / step) + self.zero, self.low, self.high)


def best_numbers(matrix: Floats, target: Floats, steps: Steps, start: Floats) -> Floats:
    """Returns numbers whose values Q make (Q - V)^T M (Q - V) small for each output.

    Args:
        matrix: M as (groups, K, K), positive definite.
        target: V as (groups, K, N).
        steps: What is allowed.
        start: Numbers that the result is at least as good as.
    """
    numbers = np.array(start, np.float64)
    slope = matrix @ (steps.values(numbers) - target)
    diagonal = np.maximum(np.einsum("gkk->gk", matrix), _FEW)[:, :, None]
    still = steps.step == 0
    rate = np.where(still, 0.0, 1.0 / (diagonal * np.where(still, 1.0, steps.step)))
    size = numbers.shape[1]
    for _ in range(_SWEEPS):
        moved = 0
        for first in range(0, size, _BLOCK):
            part = slice(first, min(first + _BLOCK, size))
            change, count = _block(matrix, slope[:, part], numbers, steps, rate, part)
            moved += count
            slope += matrix[:, :, part] @ change
        if moved <= _STALLED * numbers.size:
            break
    return numbers


def _block(
    matrix: Floats, slope: Floats, numbers: Floats, steps: Steps, rate: Floats, part: slice
) -> tuple[Floats, int]:
    """Takes the best step along each number of a block; returns the change of the values."""
    here = slope.copy()
    change = np.zeros_like(here)
    moved = 0
    for index in range(here.shape[1]):
        row = part.start + index
        old = numbers[:, row]
        new = np.rint(old - here[:, index] * rate[:, row])
        new = np.clip(new, steps.low[:, row], steps.high[:, row])
        difference = (new - old) * steps.step[:, row]
        count = int(np.count_nonzero(difference))
        if count:
            moved += count
            numbers[:, row] = new
            change[:, index] = difference
            here += matrix[:, part, row, None] * difference[:, None, :]
    return change, moved


def solvable(inputs: int) -> bool:
    """Whether a weight with so many inputs for each output is small enough to be solved for."""
    return inputs <= _MOST_INPUTS
