"""Scales and zero points of blocks: by range, by smallest error, by half-quadratic splitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Ends of the range that are tried, as shares of what covers every value.
_SHARES = (1.0, 1.06, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.62)
_REFINEMENTS = 2
# Half-quadratic splitting: norm, strength of the first step, its growth, steps (the paper's defaults).
_NORM, _BETA, _GROWTH, _STEPS = 0.7, 10.0, 1.01, 20
# Steps from which on scales are never negative.
_FINE = 255
_TINY = float(np.finfo(np.float32).tiny)


@dataclass
class Steps:
    """What a search found.

    Attributes:
        scales: Step of each block, (blocks, columns).
        zeros: Number that stands for 0, whole numbers, (blocks, columns).
    """

    scales: NDArray[Any]
    zeros: NDArray[Any]


@dataclass(frozen=True)
class Problem:
    """Blocks of a matrix that are quantized together.

    Attributes:
        weight: The matrix, (blocks, rows of a block, columns).
        shares: Importance of each row, (blocks, rows of a block, 1).
        limits: Smallest and largest number.
        symmetric: Whether zero points are the middle.
    """

    weight: NDArray[Any]
    shares: NDArray[Any]
    limits: tuple[int, int]
    symmetric: bool

    @property
    def middle(self) -> int:
        """The zero point of symmetric blocks."""
        low, high = self.limits
        return low + (high - low + 1) // 2

    @property
    def is_coarse(self) -> bool:
        """Whether a number more on one side is worth scales below 0, which some runtimes refuse."""
        return self.limits[1] - self.limits[0] < _FINE

    def numbers(self, steps: Steps) -> NDArray[Any]:
        """Returns the numbers less their zero points."""
        zeros = steps.zeros[:, None]
        found = np.rint(self.weight / steps.scales[:, None])
        found += zeros
        np.clip(found, *self.limits, out=found)
        found -= zeros
        whole: NDArray[Any] = found
        return whole

    def error(self, steps: Steps, numbers: NDArray[Any]) -> NDArray[Any]:
        """Returns the weighted squared error of each block."""
        missed = numbers * steps.scales[:, None]
        missed -= self.weight
        missed *= missed
        missed *= self.shares
        total: NDArray[Any] = missed.sum(axis=1)
        return total

    def fitted(self, numbers: NDArray[Any], fallback: NDArray[Any]) -> NDArray[Any]:
        """Returns the best scales for given numbers (least squares)."""
        weighted = numbers * self.shares
        above, below = (weighted * self.weight).sum(axis=1), (weighted * numbers).sum(axis=1)
        fitted = np.divide(above, below, out=fallback.astype(above.dtype), where=below > 0)
        usable: NDArray[Any] = np.where(np.abs(fitted) > _TINY, fitted, fallback)
        return usable.astype(np.float32)


def search(
    weight: NDArray[Any],
    shares: NDArray[Any],
    limits: tuple[int, int],
    symmetric: bool,
    method: str,
) -> Steps:
    """Returns scales and zero points; see `blocks.block_params`."""
    problem = Problem(weight, shares.astype(np.float32), limits, symmetric)
    covering = _covering(problem)
    if method == "rtn" or not weight.size:
        return covering
    best = _least_squares(problem, covering)
    return _half_quadratic(problem, best) if method == "hqq" else best


def _covering(problem: Problem) -> Steps:
    low = np.minimum(problem.weight.min(axis=1, initial=0.0), 0.0)
    high = np.maximum(problem.weight.max(axis=1, initial=0.0), 0.0)
    if problem.symmetric:
        below, above = problem.limits[0] - problem.middle, problem.limits[1] - problem.middle
        if problem.is_coarse:
            scales = _usable(np.where(-low >= high, low, high) / below)
        else:
            scales = _usable(np.maximum(-low, high) / above)
        return Steps(scales, np.full(scales.shape, float(problem.middle), np.float32))
    return _asymmetric(problem, low, high)


def _asymmetric(problem: Problem, low: NDArray[Any], high: NDArray[Any]) -> Steps:
    first, last = problem.limits
    scales = _usable((high - low) / (last - first))
    zeros = np.clip(np.rint(first - low / scales), first, last).astype(np.float32)
    return Steps(scales, zeros)


def _usable(scales: NDArray[Any]) -> NDArray[Any]:
    """Blocks of zeros get the scale 1."""
    return np.where(np.abs(scales) > _TINY, scales, 1.0).astype(np.float32)


def _candidates(problem: Problem, covering: Steps) -> Iterator[Steps]:
    for share in _SHARES:
        if problem.symmetric:
            for sign in (1.0, -1.0) if problem.is_coarse else (1.0,):
                yield Steps((covering.scales * (sign * share)).astype(np.float32), covering.zeros)
            continue
        low = problem.weight.min(axis=1, initial=0.0) * share
        high = problem.weight.max(axis=1, initial=0.0) * share
        found = _asymmetric(problem, low, high)
        yield found
        for shift in (-1.0, 1.0):
            yield Steps(found.scales, np.clip(found.zeros + shift, *problem.limits))


def _least_squares(problem: Problem, covering: Steps) -> Steps:
    """Tries ends of the range; each is followed by the best scale for the numbers it gives."""
    best = Steps(covering.scales.copy(), covering.zeros.copy())
    least = problem.error(best, problem.numbers(best))
    for start in _candidates(problem, covering):
        tried = Steps(problem.fitted(problem.numbers(start), start.scales), start.zeros)
        _keep_better(problem, best, least, tried)
    for _ in range(_REFINEMENTS):
        tried = Steps(problem.fitted(problem.numbers(best), best.scales), best.zeros)
        _keep_better(problem, best, least, tried)
    return best


def _keep_better(problem: Problem, best: Steps, least: NDArray[Any], tried: Steps) -> None:
    error = problem.error(tried, problem.numbers(tried))
    better = error < least
    best.scales[better] = tried.scales[better]
    best.zeros[better] = tried.zeros[better]
    least[better] = error[better]


def _half_quadratic(problem: Problem, start: Steps) -> Steps:
    """Splits off the outliers of the error, fits scale and zero point to the rest, again and again.

    Minimises the sum of |error| ** 0.7: many errors near 0 and a few large ones, instead of squares.
    """
    best = Steps(start.scales.copy(), start.zeros.copy())
    least = _norm(problem, best, problem.numbers(best))
    tried, beta = Steps(start.scales.copy(), start.zeros.copy()), _BETA
    for _ in range(_STEPS):
        numbers = problem.numbers(tried)
        scales = tried.scales[:, None]
        missed = (problem.weight - numbers * scales) / np.abs(scales)
        inliers = problem.weight - _shrunk(missed, beta) * np.abs(scales)
        zeros = tried.zeros
        if not problem.symmetric:
            wanted = (numbers + zeros[:, None] - inliers / scales).mean(axis=1)
            zeros = np.clip(np.rint(wanted), *problem.limits).astype(np.float32)
            numbers = problem.numbers(Steps(tried.scales, zeros))
        below = (numbers * numbers).sum(axis=1)
        above = (numbers * inliers).sum(axis=1)
        fitted = np.divide(above, below, out=tried.scales.copy(), where=below > 0)
        fitted = np.where(np.abs(fitted) > _TINY, fitted, tried.scales)
        tried = Steps(fitted.astype(np.float32), zeros)
        error = _norm(problem, tried, problem.numbers(tried))
        better = error < least
        best.scales[better], best.zeros[better] = tried.scales[better], tried.zeros[better]
        least[better] = error[better]
        beta *= _GROWTH
    return best


def _norm(problem: Problem, steps: Steps, numbers: NDArray[Any]) -> NDArray[Any]:
    missed = np.abs(numbers * steps.scales[:, None] - problem.weight)
    total: NDArray[Any] = (missed**_NORM * problem.shares).sum(axis=1)
    return total


def _shrunk(values: NDArray[Any], beta: float) -> NDArray[Any]:
    """The generalized soft threshold of the norm: what is left of an error that is an outlier."""
    size = np.abs(values)
    lowered = np.power(np.maximum(size, 1e-6), _NORM - 1.0) / beta
    shrunk: NDArray[Any] = np.sign(values) * np.maximum(size - lowered, 0.0)
    return shrunk
