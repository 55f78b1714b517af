"""What is known of a tensor's values after one pass over the data: everything that observers need."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.quant.channels import coprime_step
from onnxcomp.quant.ranges import METHODS, Method, choose_range, rounding_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BINS", "METHODS", "Histogram", "Method", "choose_range", "rounding_error"]

BINS = 2048
# Values of one item that go into the histogram at most; minimum and maximum see all of them.
ENOUGH = 1 << 13
# The weight of an item in the moving average, once there are more than a hundred of them.
_MOMENTUM = 0.01
_SMALLEST_EXPONENT, _LARGEST_EXPONENT = -120, 128
_MOST_WIDTHS = 1 << 24
_STATE = 9
# Masks add -10,000 or the smallest number there is; few steps of the grid are then in use.
_HUGE, _FEW_STEPS = 1e3, 8


class Histogram:
    """Minimum, maximum, their moving averages, and a histogram that grows with the range.

    Bins are multiples of a power of two, so that halving the resolution merges whole bins: the result
    depends on the set of values alone, not on their order or on how they came in batches. The moving
    average goes over items (along the first axis) in their order: the mean of the first hundred, then
    with the weight that PyTorch's MovingAverageMinMaxObserver gives a batch.

    Attributes:
        low: Smallest value.
        high: Largest value.
        average_low: Moving average of the smallest value of an item.
        average_high: Moving average of the largest value of an item.
        items: How many items there were.
        count: How many values were looked at for the histogram.
        elements: Size of the largest tensor seen.
    """

    def __init__(self) -> None:
        self.low = math.inf
        self.high = -math.inf
        self.average_low = 0.0
        self.average_high = 0.0
        self.items = 0
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
        rows = values.reshape(values.shape[0] if values.ndim else 1, -1)
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        low, high = float(lows.min()), float(highs.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            kind = "NaN" if math.isnan(low) or math.isnan(high) else "infinite values"
            raise SamplesError(
                f"the tensor {quoted(name)} has {kind} on the calibration samples",
                hint="look at the samples, or leave the nodes around it out with skip",
            )
        self._average(lows.tolist(), highs.tolist())
        self.elements = max(self.elements, values.size)
        if low < self.low or high > self.high:
            self.low, self.high = min(self.low, low), max(self.high, high)
            self._make_room()
        some = _thinned(rows)
        self.count += some.size
        scaled = some * np.float32(2.0**-self._exponent)
        index = np.floor(scaled, out=scaled).astype(np.intp)
        index -= self._first
        self._bins += np.bincount(index.reshape(-1), minlength=self._bins.size)

    def _average(self, lows: list[float], highs: list[float]) -> None:
        for low, high in zip(lows, highs, strict=True):
            self.items += 1
            share = max(1.0 / self.items, _MOMENTUM)
            self.average_low += share * (low - self.average_low)
            self.average_high += share * (high - self.average_high)

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

    def state(self) -> NDArray[np.float64]:
        """Returns everything as one array, which `from_state` reads."""
        head = [self.low, self.high, self.average_low, self.average_high, self.items, self.count]
        tail = [self.elements, self._exponent, self._first]
        return np.concatenate([np.array(head + tail, np.float64), self._bins])

    @classmethod
    def from_state(cls, state: NDArray[Any]) -> Histogram:
        """Reads what `state` gave.

        Raises:
            ValueError: If no data can have led to it.
        """
        fits = state.ndim == 1 and state.dtype == np.float64 and state.size >= _STATE
        if not fits or state.size > _STATE + BINS or not _is_whole(state[4:]):
            raise ValueError("not the state of a histogram")
        made = cls()
        made.low, made.high, made.average_low, made.average_high = map(float, state[:4])
        numbers = [int(number) for number in state[4:_STATE]]
        made.items, made.count, made.elements, made._exponent, made._first = numbers
        made._bins = state[_STATE:].astype(np.int64)
        if not made._is_possible():
            raise ValueError("not the state of a histogram")
        return made

    def _is_possible(self) -> bool:
        if not self._bins.size:
            return bool((self.state() == Histogram().state()).all())
        if not (np.isfinite(self.average_low) and np.isfinite(self.average_high)):
            return False
        bounded = -math.inf < self.low <= self.high < math.inf
        if not (bounded and _SMALLEST_EXPONENT <= self._exponent <= _LARGEST_EXPONENT):
            return False
        if max(-self.low, self.high) * 2.0**-self._exponent > _MOST_WIDTHS:
            return False
        if _span(self.low, self.high, self._exponent) != (self._first, self._bins.size):
            return False
        counted = min(self.items, self.elements) > 0 and (self._bins >= 0).all()
        return bool(counted and self._bins.sum() == self.count > 0)


def _is_whole(numbers: NDArray[np.float64]) -> bool:
    return bool((np.isfinite(numbers) & (np.abs(numbers) < 2.0**53)).all()) and bool(
        (numbers == np.floor(numbers)).all()
    )


def _thinned(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every nth value of each item, when an item has more than enough of them.

    Going by items keeps the result independent of how samples are batched; a step without a common
    factor with the size meets every channel, wherever that axis is.
    """
    return rows[:, :: coprime_step(rows.shape[1], ENOUGH)]


def _span(low: float, high: float, exponent: int) -> tuple[int, int]:
    """Index of the first bin and number of bins. A bin's index is computed in float32, as data is."""
    scale = np.float32(2.0**-exponent)
    first = np.floor(np.float32(low) * scale)
    last = np.floor(np.float32(high) * scale)
    return int(first), int(last) - int(first) + 1
