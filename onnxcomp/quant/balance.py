"""Scales between channels of an activation that make it, and the weights that read it, easier to round."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.passbase import QUIET
from onnxcomp.quant.channels import POSITIONS, as_positions, coprime_step
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress

_LEVELS_ACTIVATION, _LEVELS_WEIGHT = 255.0, 127.0
# Exponents of the activation's range and of the weights' range that are tried.
EXPONENTS = tuple(itertools.product((0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5)))
# Those of SmoothQuant: a share of the difficulty goes to the weights, the rest stays.
SMOOTHING = tuple((round(0.05 * step, 2), round(1 - 0.05 * step, 2)) for step in range(6, 21))
_FARTHEST = 1e3
# A Clip's limit stays at least this many times above what was seen of a channel.
_ROOM = 2.0


@dataclass(eq=False)
class ChannelStats:
    """What is known of the channels of an activation.

    Attributes:
        low: Smallest value of each channel.
        high: Largest value of each channel.
        power: Sum of squares of each channel.
        total: Sum of each channel.
        count: Values in each channel.
        runner_up: Largest value of each channel in the sample with the second largest.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    power: NDArray[np.float64]
    total: NDArray[np.float64]
    count: int = 0
    runner_up: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    @property
    def tail(self) -> NDArray[np.float64]:
        """How far the largest sample lies above the next one: a hint at what unseen samples may do."""
        return np.where(
            self.runner_up > 0.0, self.high / np.maximum(self.runner_up, 1e-30), _FARTHEST
        )

    @property
    def reach(self) -> NDArray[np.float64]:
        """Largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """Mean square of each channel."""
        return self.power / max(self.count, 1)

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self.total / max(self.count, 1)

    def add(self, array: NDArray[Any], axis: int) -> bool:
        """Takes in a tensor; False when its number of channels is another one.

        Limits are those of all values, sums are over enough of them.
        """
        if array.ndim <= max(axis, 0) or array.shape[axis] != self.low.size:
            return False
        if not array.size:
            return True
        rows = as_positions(array, axis)
        lows, highs = rows.min(axis=(0, 1)), rows.max(axis=(0, 1))
        self.low = np.minimum(self.low, lows)
        largest = highs.astype(np.float64)
        below = self.runner_up if self.runner_up.size else np.zeros_like(largest)
        self.runner_up = np.maximum(below, np.minimum(self.high, largest))
        self.high = np.maximum(self.high, largest)
        some = rows[:, :: coprime_step(rows.shape[1], POSITIONS)]
        some = some.reshape(-1, some.shape[2])
        if some.dtype == np.float16:
            some = some.astype(np.float32)
        self.power += np.einsum("pc,pc->c", some, some)
        self.total += some.sum(axis=0)
        self.count += len(some)
        return True

    def __add__(self, other: ChannelStats) -> ChannelStats:
        """What is known after the values of both."""
        second = np.minimum(self.high, other.high)
        for found in (self.runner_up, other.runner_up):
            second = np.maximum(second, found) if found.size else second
        return ChannelStats(
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
            self.power + other.power,
            self.total + other.total,
            self.count + other.count,
            second,
        )


@dataclass(frozen=True, eq=False)
class Halves:
    """What is known of an activation from every other sample, and from the rest.

    A scale that was fitted to one half meets the other one as it will meet samples never seen: what many
    channels seem to have in common, the range, some of them leave there.
    """

    first: ChannelStats
    second: ChannelStats

    @property
    def all(self) -> ChannelStats:
        """Both together."""
        return self.first + self.second if self.second.count else self.first


def observe_halves(
    model: Model,
    axes: Mapping[str, int],
    channels: Mapping[str, int],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Halves]:
    """Runs a float model on samples and keeps statistics of channels for every other sample.

    Arguments and errors are those of `observe_channels`.
    """
    found = _observe(model, axes, channels, samples, (threads, progress), parts=2)
    return {name: Halves(*parts) for name, parts in found.items()}


def observe_channels(
    model: Model,
    axes: Mapping[str, int],
    channels: Mapping[str, int],
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    threads: int = 0,
    progress: Progress = QUIET,
) -> dict[str, ChannelStats]:
    """Runs a float model on samples and keeps statistics of channels.

    Args:
        model: The model.
        axes: Axis of the channels, by value of its main graph.
        channels: Number of channels, by value.
        samples: Feeds.
        threads: Threads of the session.
        progress: Progress bars.

    Raises:
        SamplesError: If an activation is NaN or infinite.
    """
    found = _observe(model, axes, channels, samples, (threads, progress), parts=1)
    return {name: parts[0] for name, parts in found.items()}


def _observe(
    model: Model,
    axes: Mapping[str, int],
    channels: Mapping[str, int],
    samples: Iterable[Mapping[str, np.ndarray]],
    how: tuple[int, Progress],
    parts: int,
) -> dict[str, list[ChannelStats]]:
    threads, progress = how
    found = {name: [_nothing(size) for _ in range(parts)] for name, size in channels.items()}
    inputs = {spec.name for spec in model.signature().inputs}
    taps = [name for name in axes if name not in inputs]
    with (
        progress(1, "looking at channels"),
        Session.open(model, threads=threads, outputs=taps) as session,
    ):
        for index, feed in enumerate(samples):
            arrays = {**feed, **(session.run(feed, taps) if taps else {})}
            for name, axis in axes.items():
                stats = found[name][index % parts]
                # Nobody else holds it: what was looked at is freed.
                if not stats.add(arrays.pop(name), axis):
                    raise SamplesError(f"the tensor {quoted(name)} changes its channels")
                if not np.isfinite(stats.high - stats.low).all():
                    raise SamplesError(f"the tensor {quoted(name)} has NaN or infinite values")
    return found


def _nothing(size: int) -> ChannelStats:
    return ChannelStats(np.zeros(size), np.zeros(size), np.zeros(size), np.zeros(size))


@dataclass(frozen=True, eq=False)
class Reader:
    """The weight of an operator that reads an activation.

    Attributes:
        weight: As output channels, input channels, rest. A depthwise weight has one input channel.
        is_depthwise: Whether every channel has a weight of its own.
    """

    weight: NDArray[Any]
    is_depthwise: bool = False

    @cached_property
    def largest(self) -> NDArray[np.float64]:
        """Largest magnitude by output and input channel."""
        found: NDArray[np.float64] = np.abs(self.weight).max(axis=2).astype(np.float64)
        return found[:, 0] if self.is_depthwise else found

    @cached_property
    def power(self) -> NDArray[np.float64]:
        """Sum of squares of what meets each channel of the activation."""
        found = np.einsum("oir,oir->oi", self.weight, self.weight).astype(np.float64)
        power: NDArray[np.float64] = found[:, 0] if self.is_depthwise else found.sum(axis=0)
        return power

    def reach(self, channels: int) -> NDArray[np.float64]:
        """Largest magnitude that meets each channel of the activation."""
        largest = self.largest
        found: NDArray[np.float64] = (
            largest.reshape(channels) if self.is_depthwise else largest.max(axis=0)
        )
        return found


def noise(stats: ChannelStats, readers: Sequence[Reader], scale: NDArray[np.float64]) -> float:
    """Returns the expected share of noise in the readers' outputs, with the activation over `scale`.

    Rounding to steps of size d adds noise of power d * d / 12, to the activation (one step size for all
    channels) and to the weights (one for each output channel).
    """
    low, high = (stats.low / scale).min(initial=0.0), (stats.high / scale).max(initial=0.0)
    step = (high - low) / _LEVELS_ACTIVATION
    total = 0.0
    for reader in readers:
        size = reader.weight.shape[2]
        signal = float(reader.power @ stats.mean_square)
        rounding = float((reader.power * scale**2).sum()) * step**2
        if reader.is_depthwise:
            steps = reader.largest / _LEVELS_WEIGHT
            weights = size * float(stats.mean_square @ steps**2)
        else:
            steps = (reader.largest * scale).max(axis=1) / _LEVELS_WEIGHT
            weights = size * float((stats.mean_square / scale**2).sum() * (steps**2).sum())
        if signal > 0.0:
            total += (rounding + weights) / 12.0 / signal
    return total


def best_scale(
    stats: ChannelStats | Halves,
    readers: Sequence[Reader],
    *,
    limit: float = math.inf,
    exponents: Iterable[tuple[float, float]] = EXPONENTS,
) -> tuple[NDArray[np.float64], float]:
    """Returns the scale of each channel with the least noise, and how many decibels it gains.

    With halves, the noise that counts is that of each half under the scale fitted to the other one.

    Args:
        stats: The activation.
        readers: The weights that read it.
        limit: Where a Clip in front cuts the activation off.
        exponents: Powers of the activation's and of the weights' reach that are tried.
    """
    whole = stats.all if isinstance(stats, Halves) else stats
    pairs = [(whole, whole)]
    if isinstance(stats, Halves) and stats.second.count:
        pairs = [(stats.first, stats.second), (stats.second, stats.first)]
    ones = np.ones(whole.low.size)
    start = least = sum(noise(judge, readers, ones) for _, judge in pairs)
    best = ones
    for power in exponents:
        scales = [_fitted(fit, readers, power, limit) for fit, _ in pairs]
        found = sum(
            noise(judge, readers, scale) for (_, judge), scale in zip(pairs, scales, strict=True)
        )
        if found < least:
            best, least = _fitted(whole, readers, power, limit), found
    gain = 10.0 * math.log10(start / least) if least > 0.0 else 0.0
    return best, gain


def _fitted(
    stats: ChannelStats, readers: Sequence[Reader], power: tuple[float, float], limit: float
) -> NDArray[np.float64]:
    """The scale with certain powers; channels that nothing is known of, or nothing reads, stay."""
    reach = stats.reach
    weights = np.maximum.reduce([reader.reach(reach.size) for reader in readers])
    used = (reach > 0.0) & (weights > 0.0)
    if not used.any():
        return np.ones(reach.size)
    scale = np.where(used, reach ** power[0] / np.where(used, weights, 1.0) ** power[1], 1.0)
    return _allowed(scale, stats, used, limit)


def _allowed(
    scale: NDArray[np.float64], stats: ChannelStats, used: NDArray[np.bool_], limit: float
) -> NDArray[np.float64]:
    """Keeps the range of the whole activation, and values below a Clip's limit with some room."""
    reach = stats.reach
    scale = scale * ((reach / scale)[used].max() / reach[used].max())
    scale = np.where(used, np.clip(scale, 1.0 / _FARTHEST, _FARTHEST), 1.0)
    if math.isfinite(limit):
        room = _ROOM * stats.tail**2 * reach / limit
        scale = np.where(room >= 1.0, 1.0, np.clip(scale, np.minimum(room, 1.0), 1.0))
    return scale
