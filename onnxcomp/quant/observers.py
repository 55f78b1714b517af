"""What is known of a tensor's values after one pass over the data, and ranges chosen from it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.quant.scheme import QScheme, params_for_range

if TYPE_CHECKING:
    from numpy.typing import NDArray

Method = Literal["min-max", "percentile", "mse", "entropy"]

BINS = 2048
# Values of one item that go into the histogram at least; minimum and maximum see all of them.
ENOUGH = 1 << 15
_SMALLEST_EXPONENT = -120
_NEXT_TO_NOTHING = 1e-9
# Masks add -10,000 or the smallest number there is; few steps of the grid are then in use.
_HUGE, _FEW_STEPS = 1e3, 8


class Histogram:
    """Minimum, maximum and a histogram that grows with the range.

    Bins are multiples of a power of two, so that halving the resolution merges whole bins: the result
    depends on the set of values alone, not on their order or on how they came in batches.

    Attributes:
        low: Smallest value.
        high: Largest value.
        count: How many values the histogram holds.
        elements: Size of the largest tensor seen.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.count = 0
        self.elements = 0
        self._exponent = _SMALLEST_EXPONENT
        self._first = 0
        self._bins: NDArray[np.int64] = np.zeros(0, np.int64)

    def add(self, array: NDArray[Any], name: str = "") -> None:
        """Takes in the values of a tensor.

        Raises:
            SamplesError: If one is NaN or infinite.
        """
        values = np.asarray(array, np.float32)
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite values"
            raise SamplesError(
                f"the tensor {quoted(name)} has {kind} on the calibration samples",
                hint="look at the samples, or leave the nodes around it out with skip",
            )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.elements = max(self.elements, values.size)
        self._make_room()
        some = _thinned(values)
        self.count += some.size
        index = np.floor(some * np.float32(2.0**-self._exponent)).astype(np.int32)
        self._bins += np.bincount(index - self._first, minlength=self._bins.size)

    def _make_room(self) -> None:
        """Chooses the finest bins that cover the range with no more than `BINS` of them."""
        largest = max(abs(self.low), abs(self.high), self.high - self.low)
        finest = math.frexp(largest / BINS)[1] - 2 if largest > 0.0 else _SMALLEST_EXPONENT
        exponent = max(self._exponent, finest, _SMALLEST_EXPONENT)
        while _span(self.low, self.high, exponent)[1] > BINS:
            exponent += 1
        first, size = _span(self.low, self.high, exponent)
        bins = np.zeros(size, np.int64)
        if self._bins.size:
            old = np.arange(self._first, self._first + self._bins.size, dtype=np.int64)
            np.add.at(bins, (old >> (exponent - self._exponent)) - first, self._bins)
        self._exponent, self._first, self._bins = exponent, first, bins

    @property
    def is_drowned(self) -> bool:
        """Whether a few huge numbers, as masks add them, leave next to no step of 256 to the others."""
        reach = max(abs(self.low), abs(self.high))
        if not reach >= _HUGE:
            return False
        step = (max(self.high, 0.0) - min(self.low, 0.0)) / 255.0
        steps = np.unique(np.rint(self.centres[self._bins > 0] / step))
        return bool(steps.size <= _FEW_STEPS)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many values fell into each bin."""
        return self._bins

    @property
    def centres(self) -> NDArray[np.floating[Any]]:
        """The middle of each bin."""
        width = 2.0**self._exponent
        return (np.arange(self._bins.size) + self._first + 0.5) * width

    @property
    def width(self) -> float:
        """Width of a bin."""
        return float(2.0**self._exponent)


def _thinned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every nth value of each item along the first axis, when an item has more than enough of them.

    Going by items keeps the result independent of how samples are batched.
    """
    if values.ndim == 0:
        return values.reshape(1)
    rows = values.reshape(values.shape[0], -1)
    return rows[:, :: max(1, rows.shape[1] // ENOUGH)].reshape(-1)


def _span(low: float, high: float, exponent: int) -> tuple[int, int]:
    """Index of the first bin and number of bins. A bin's index is computed in float32, as data is."""
    scale = np.float32(2.0**-exponent)
    first = np.floor(np.float32(low) * scale)
    last = np.floor(np.float32(high) * scale)
    return int(first), int(last) - int(first) + 1


def choose_range(
    seen: Histogram, method: Method, scheme: QScheme, *, percentile: float = 99.99
) -> tuple[float, float]:
    """Returns the range that a tensor's grid should cover.

    Args:
        seen: What is known of its values.
        method: `min-max` covers everything; `percentile` leaves out a share on both sides; `mse`
            minimises the squared error of rounding and clipping; `entropy` keeps the distribution.
        scheme: The grid's type and symmetry.
        percentile: The share that `percentile` keeps on each side.
    """
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    if method == "min-max" or seen.counts.size < 4 or low == high:
        return low, high
    if method == "percentile":
        return _percentile(seen, percentile, low, high)
    if method == "mse":
        return _search(seen, scheme, low, high, _squared_error)
    return _search(seen, scheme, low, high, _divergence)


def _percentile(seen: Histogram, percentile: float, low: float, high: float) -> tuple[float, float]:
    total = np.cumsum(seen.counts) / seen.count
    share = percentile / 100.0
    edges = seen.centres
    above = edges[min(int(np.searchsorted(total, share)), edges.size - 1)] + seen.width / 2
    below = edges[min(int(np.searchsorted(total, 1.0 - share, side="right")), edges.size - 1)]
    return max(low, min(below - seen.width / 2, 0.0)), min(high, max(above, 0.0))


def _search(
    seen: Histogram,
    scheme: QScheme,
    low: float,
    high: float,
    loss: Any,  # noqa: ANN401 - one of the two functions below
) -> tuple[float, float]:
    """Shrinks both ends in turn while the loss falls."""
    best = (loss(seen, low, high, scheme), low, high)
    start = (low, high)
    for _ in range(2):
        for factor in np.geomspace(1.0, 0.02, 60)[1:]:
            for candidate in ((start[0] * factor, best[2]), (best[1], start[1] * factor)):
                if candidate[0] == candidate[1]:
                    continue
                found = loss(seen, *candidate, scheme)
                if found < best[0]:
                    best = (found, *candidate)
    return best[1], best[2]


def rounding_error(seen: Histogram, low: float, high: float, scheme: QScheme) -> float:
    """Returns the mean squared error of a tensor on the grid that covers a range."""
    return _squared_error(seen, low, high, scheme) / max(seen.count, 1)


def _squared_error(seen: Histogram, low: float, high: float, scheme: QScheme) -> float:
    params = params_for_range(low, high, scheme)
    bottom, top = params.range
    outside = seen.centres - np.clip(seen.centres, bottom, top)
    # Inside the grid values are spread evenly around its points, which costs a twelfth of a step.
    step = max(float(params.scale), 0.0)
    inside = np.where(outside == 0.0, step * step / 12.0, 0.0)
    centre_is_zero = np.abs(seen.centres) <= seen.width
    inside = np.where(centre_is_zero, np.minimum(inside, seen.width**2), inside)
    return float(np.dot(outside * outside + inside, seen.counts))


def _divergence(seen: Histogram, low: float, high: float, scheme: QScheme) -> float:
    """Kullback-Leibler divergence between the clipped values and what the grid keeps of them."""
    params = params_for_range(low, high, scheme)
    bottom, top = params.range
    inside = (seen.centres >= bottom - seen.width) & (seen.centres <= top + seen.width)
    counts = seen.counts[inside].astype(np.float64)
    if counts.sum() == 0.0:
        return math.inf
    # What lies outside ends up on the ends of the grid.
    real = counts.copy()
    first, last = np.flatnonzero(inside)[[0, -1]]
    real[0] += seen.counts[:first].sum()
    real[-1] += seen.counts[last + 1 :].sum()
    cell = np.rint(np.clip(seen.centres[inside], bottom, top) / float(params.scale)).astype(
        np.int64
    )
    cell -= cell.min()
    mass = np.bincount(cell, weights=counts)
    used = np.bincount(cell, weights=(counts > 0).astype(np.float64))
    kept = np.where(counts > 0, mass[cell] / np.maximum(used[cell], 1.0), 0.0)
    real, kept = real / real.sum(), np.maximum(kept / kept.sum(), _NEXT_TO_NOTHING)
    filled = real > 0.0
    return float(np.sum(real[filled] * np.log(real[filled] / kept[filled])))
