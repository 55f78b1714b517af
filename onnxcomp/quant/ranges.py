"""Ranges of a tensor's grid, chosen from the histogram of its values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant.scheme import QScheme, params_for_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.observers import Histogram

    Floats = NDArray[np.float64]

Method = Literal["min-max", "moving-average", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = ("min-max", "moving-average", "percentile", "mse", "entropy")

# Shares of the whole range that are tried as ends, from all of it to next to nothing.
_SHARES = np.geomspace(1.0, 0.02, 60)
_FINER = np.geomspace(_SHARES[1] / _SHARES[0], 1.0, 5)
_ROUNDS = 2
_NEXT_TO_NOTHING = 1e-9
# With more levels than this there is nothing to gain from cutting a histogram of 2,048 bins.
_MOST_LEVELS = 1024


def choose_range(
    seen: Histogram, method: Method, scheme: QScheme, *, percentile: float = 99.99
) -> tuple[float, float]:
    """Returns the range that a tensor's grid should cover.

    Args:
        seen: What is known of its values.
        method: `min-max` covers everything; `moving-average` what an item covers on average;
            `percentile` leaves out a share on both sides; `mse` minimises the squared error of
            rounding and clipping; `entropy` keeps the distribution (Migacz, 8-bit inference with
            TensorRT, 2017).
        scheme: The grid's type and symmetry.
        percentile: The share that `percentile` keeps on each side.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if method == "moving-average":
        return min(seen.average_low, 0.0), max(seen.average_high, 0.0)
    if method == "min-max" or seen.counts.size < 4 or low == high:
        return low, high
    if method == "percentile":
        return _percentile(seen, percentile, low, high)
    if method == "mse":
        return _least_error(seen, low, high, scheme)
    return _least_divergence(seen, low, high, scheme)


def rounding_error(seen: Histogram, low: float, high: float, scheme: QScheme) -> float:
    """Returns the mean squared error of a tensor on the grid that covers a range."""
    ends = np.array([low]), np.array([high])
    return float(_Errors(seen, scheme)(*ends)[0]) / max(seen.count, 1)


def _percentile(seen: Histogram, percentile: float, low: float, high: float) -> tuple[float, float]:
    total = np.cumsum(seen.counts) / seen.count
    share = percentile / 100.0
    edges = seen.centres
    above = edges[min(int(np.searchsorted(total, share)), edges.size - 1)] + seen.width / 2
    below = edges[min(int(np.searchsorted(total, 1.0 - share, side="right")), edges.size - 1)]
    return max(low, min(below - seen.width / 2, 0.0)), min(high, max(above, 0.0))


def _least_error(seen: Histogram, low: float, high: float, scheme: QScheme) -> tuple[float, float]:
    """Tries all pairs of ends, then pairs around the best one."""
    errors = _Errors(seen, scheme)
    best = (low, high)
    for shares in (_SHARES, _FINER):
        lows = np.unique(best[0] * shares)
        highs = np.unique(best[1] * shares)
        if shares is _FINER:
            lows = np.maximum(np.concatenate([lows, best[0] / shares]), low)
            highs = np.minimum(np.concatenate([highs, best[1] / shares]), high)
        pairs = np.repeat(lows, highs.size), np.tile(highs, lows.size)
        first = int(np.argmin(errors(*pairs)))
        best = float(pairs[0][first]), float(pairs[1][first])
    return best


def _least_divergence(
    seen: Histogram, low: float, high: float, scheme: QScheme
) -> tuple[float, float]:
    """Shrinks both ends in turn while the divergence falls."""
    divergence = _Divergence(seen, scheme)
    if divergence.levels > _MOST_LEVELS:
        return low, high
    best = (low, high)
    for _ in range(_ROUNDS):
        for index in (0, 1):
            if best[index] == 0.0:
                continue
            ends = [np.full(_SHARES.size, end) for end in best]
            ends[index] = (low, high)[index] * _SHARES
            found = divergence(*ends)
            best = tuple(float(end[np.argmin(found)]) for end in ends)  # type: ignore[assignment]
    return best


class _Grids:
    """Grids of many ranges at once, as `params_for_range` makes them."""

    def __init__(self, scheme: QScheme) -> None:
        probe = params_for_range(-1.0, 1.0, scheme)
        self.symmetric = scheme.symmetric
        self.limits = probe.limits
        self.levels = probe.limits[1] - probe.limits[0] + 1
        self._middle, self._unit = int(probe.zero_point), float(probe.scale)

    def grids(self, lows: Floats, highs: Floats) -> tuple[Floats, Floats, Floats]:
        """Returns the lowest and the highest value of each grid, and its step."""
        first, last = self.limits
        if self.symmetric:
            step = np.maximum(-lows, highs) * self._unit
            zero: Any = self._middle
        else:
            step = (highs - lows) / (last - first)
            zero = np.clip(np.rint(first - lows / _positive(step)), first, last)
        step = _positive(step)
        return (first - zero) * step, (last - zero) * step, step


def _positive(step: Floats) -> Floats:
    return np.where(step > np.finfo(np.float32).tiny, step, 1.0)


class _Errors(_Grids):
    """Sum of squared errors of rounding and clipping, from prefix sums over the histogram."""

    def __init__(self, seen: Histogram, scheme: QScheme) -> None:
        super().__init__(scheme)
        counts, self._centres = seen.counts.astype(np.float64), seen.centres
        powers = [counts, counts * self._centres, counts * self._centres**2]
        self._sums = [np.concatenate([[0.0], np.cumsum(power)]) for power in powers]
        self._width = seen.width
        # Values that are zero cost nothing, and there may be many in the bins beside it.
        self._zeros = float(counts[np.abs(self._centres) <= seen.width].sum())

    def __call__(self, lows: Floats, highs: Floats) -> Floats:
        bottom, top, step = self.grids(lows, highs)
        start = np.searchsorted(self._centres, bottom, side="left")
        stop = np.searchsorted(self._centres, top, side="right")
        end = np.full_like(start, self._centres.size)
        # Inside the grid values are spread evenly around its points, which costs a twelfth of a step.
        inside = step * step / 12.0
        cheap = self._zeros * (inside - np.minimum(inside, self._width**2))
        found: Floats = (
            self._clipped(np.zeros_like(start), start, bottom)
            + self._clipped(stop, end, top)
            + inside * (self._sums[0][stop] - self._sums[0][start])
            - cheap
        )
        return found

    def _clipped(self, start: NDArray[np.int64], stop: NDArray[np.int64], at: Floats) -> Floats:
        ones, first, second = (total[stop] - total[start] for total in self._sums)
        found: Floats = np.maximum(second - 2.0 * at * first + at * at * ones, 0.0)
        return found


class _Divergence(_Grids):
    """Kullback-Leibler divergence between the clipped values and what a grid keeps of them."""

    def __init__(self, seen: Histogram, scheme: QScheme) -> None:
        super().__init__(scheme)
        self._counts = seen.counts.astype(np.float64)
        self._centres, self._width = seen.centres, seen.width
        self._total = float(self._counts.sum())
        self._mass = _prefix(self._counts)
        self._used = _prefix((self._counts > 0).astype(np.float64))
        self._logs = _prefix(_times_log(self._counts))

    def __call__(self, lows: Floats, highs: Floats) -> Floats:
        bottom, top, step = self.grids(lows, highs)
        start = np.searchsorted(self._centres, bottom - self._width, side="left")
        stop = np.searchsorted(self._centres, top + self._width, side="right")
        empty = stop <= start
        start = np.minimum(start, self._centres.size - 1)
        stop = np.maximum(stop, start + 1)
        mass, used = self._cells(bottom, step, start, stop)
        kept = np.divide(mass, used, out=np.zeros_like(mass), where=used > 0)
        logs = np.log(kept, out=np.zeros_like(kept), where=kept > 0)
        inside = self._mass[stop] - self._mass[start]
        # What lies outside ends up on the ends of the grid.
        own = self._logs[stop] - self._logs[start]
        shared = (mass * logs).sum(axis=1)
        for at, tail in ((start, self._mass[start]), (stop - 1, self._total - self._mass[stop])):
            own += _times_log(self._counts[at] + tail) - _times_log(self._counts[at])
            cell = np.rint(np.clip(self._centres[at], bottom, top) / step - bottom / step)
            log = np.take_along_axis(logs, cell.astype(np.intp)[:, None], axis=1)[:, 0]
            nothing = np.log(_NEXT_TO_NOTHING * np.maximum(inside, 1.0))
            shared += tail * np.where(self._counts[at] > 0, log, nothing)
        with np.errstate(divide="ignore"):
            found: Floats = (own - shared) / self._total - np.log(self._total) + np.log(inside)
        return np.where(empty | (inside <= 0), np.inf, found)

    def _cells(
        self, bottom: Floats, step: Floats, start: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> tuple[Floats, Floats]:
        """How many values, and how many filled bins, belong to each point of each grid."""
        halves = np.arange(self.levels - 1) + 0.5
        borders = bottom[:, None] + halves * step[:, None]
        first = self._centres[0]
        index = np.ceil((borders - first) / self._width).clip(start[:, None], stop[:, None])
        edges = np.concatenate([start[:, None], index.astype(np.int64), stop[:, None]], axis=1)
        return np.diff(self._mass[edges], axis=1), np.diff(self._used[edges], axis=1)


def _prefix(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _times_log(values: Floats) -> Floats:
    found: Floats = values * np.log(np.where(values > 0, values, 1.0))
    return found
