"""Latency of several models, measured side by side so that a busy machine slows all of them alike."""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import UserError
from onnxcomp.memory import PeakMemory, peak_memory
from onnxcomp.runtime import Session, runtime_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from onnxcomp.handover import Source

    Call = Callable[[], Any]
    Feeds = Mapping[str, np.ndarray]

# A stretch of runs lasts at least this long, well above the resolution of the clock.
_STRETCH_SECONDS = 0.0005
# The stretches of short models are repeated in a round, in turns, and the fastest counts: one that the
# system interrupted would otherwise decide the whole reading.
_STRETCHES, _STRETCHES_SECONDS = 7, 0.02
_WARM_UP_RUNS, _WARM_UP_SECONDS = 3, 0.1
_MINIMUM_ROUNDS = 5
# Sessions are prepared for this many different samples at most; rounds take them in turn.
_MOST_SAMPLES = 8
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Spread:
    """A median, how sure it is, and how much the readings scatter.

    Attributes:
        median: The median of all readings.
        low: Lower end of the 95 % confidence interval of the median.
        high: Upper end of it.
        quartile1: A quarter of the readings is below.
        quartile3: A quarter of the readings is above.
    """

    median: float
    low: float
    high: float
    quartile1: float
    quartile3: float

    @classmethod
    def of(cls, readings: Sequence[float]) -> Spread:
        """Returns the spread of readings, with an interval from order statistics, without randomness."""
        ordered = sorted(readings)
        count = len(ordered)
        reach = _NORMAL_95 * math.sqrt(count) / 2
        low = max(math.floor((count - 1) / 2 - reach), 0)
        high = min(math.ceil((count - 1) / 2 + reach), count - 1)
        quartile1, quartile3 = np.quantile(ordered, [0.25, 0.75]).tolist()
        return cls(statistics.median(ordered), ordered[low], ordered[high], quartile1, quartile3)


@dataclass(frozen=True)
class Timing:
    """How fast one model is.

    Attributes:
        name: The name that the caller gave.
        seconds: Time per run. Absolute times on a busy machine mean little.
        ratio: Time relative to the first model in the same round; below 1 is faster.
        runs_per_reading: How often the model ran between two looks at the clock.
        memory: Peak memory, None when not measured.
    """

    name: str
    seconds: Spread
    ratio: Spread
    runs_per_reading: int
    memory: PeakMemory | None = None

    @property
    def speedup(self) -> float:
        """How many times as fast as the first model."""
        return 1 / self.ratio.median


@dataclass(frozen=True)
class Benchmark:
    """Timings of several models, the first of which is the base of all ratios.

    Attributes:
        timings: One for each model, in the order given.
        rounds: Rounds measured; in each one all models were timed in turns, in random order.
        provider: The execution provider.
        threads: Threads of one operator, 0 when left to the runtime.
        runtime: Version of onnxruntime.
    """

    timings: tuple[Timing, ...]
    rounds: int
    provider: str
    threads: int
    runtime: str

    def __getitem__(self, name: str) -> Timing:
        return next(timing for timing in self.timings if timing.name == name)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dictionaries, lists, numbers and texts."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Limits:
    """When to stop measuring: at the first limit, but not before five rounds.

    Attributes:
        rounds: Rounds at most.
        seconds: Time for all rounds together, warm-up not included.
        seed: Decides the order within each round.
    """

    rounds: int = 60
    seconds: float = 10.0
    seed: int = 0


def measure(
    models: Mapping[str, Source],
    feeds: Feeds | Sequence[Feeds],
    *,
    provider: str = "cpu",
    threads: int = 1,
    provider_options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    memory: bool = False,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Times models against each other, interleaved, one session each.

    Each round times every model on the same sample, in a random order; the ratio to the first
    model is taken within the round, and the median of these ratios is what counts.

    Args:
        models: Models by name; the first is the base of the ratios.
        feeds: One sample or several, which rounds take in turn.
        provider: The execution provider.
        threads: Threads of one operator.
        provider_options: Options of the provider.
        limits: When to stop.
        memory: Also measure each model's peak memory in a process of its own.
        progress: Called with the share that is done, from 0 to 1.

    Raises:
        UserError: If there is nothing to measure.
        RuntimeUnavailableError: If a model cannot be loaded or run, or the provider is not there.
        SamplesError: If the samples do not fit.
    """
    samples = [feeds] if isinstance(feeds, Mapping) else list(feeds)[:_MOST_SAMPLES]
    if not models or not samples:
        raise UserError("nothing to measure", hint="give at least one model and one sample")
    limits = limits or Limits()
    with ExitStack() as stack:
        calls = {}
        for name, model in models.items():
            session = stack.enter_context(
                Session.open(
                    model, provider=provider, threads=threads, provider_options=provider_options
                )
            )
            calls[name] = [session.prepare(sample) for sample in samples]
        repeats = {name: _repeats(prepared) for name, prepared in calls.items()}
        readings = _rounds(calls, repeats, limits, progress)
    peaks = {
        name: _peak(model, samples, provider, threads, wanted=memory)
        for name, model in models.items()
    }
    base = readings[next(iter(models))]
    timings = tuple(
        Timing(
            name,
            Spread.of(readings[name]),
            Spread.of([own / first for own, first in zip(readings[name], base, strict=True)]),
            repeats[name],
            peaks[name],
        )
        for name in models
    )
    return Benchmark(timings, len(base), provider, threads, runtime_version())


def _peak(
    model: Source, samples: Sequence[Feeds], provider: str, threads: int, *, wanted: bool
) -> PeakMemory | None:
    return peak_memory(model, samples, provider=provider, threads=threads) if wanted else None


def _repeats(prepared: Sequence[Call]) -> int:
    """Warms a model up and returns how many runs make one stretch."""
    fastest = math.inf
    runs = 0
    start = time.perf_counter()
    while runs < _WARM_UP_RUNS or time.perf_counter() - start < _WARM_UP_SECONDS:
        fastest = min(fastest, _reading(prepared[runs % len(prepared)], 1))
        runs += 1
        if runs >= _WARM_UP_RUNS and fastest > _WARM_UP_SECONDS:
            break
    return max(1, math.ceil(_STRETCH_SECONDS / max(fastest, 1e-9)))


def _rounds(
    calls: Mapping[str, Sequence[Call]],
    repeats: Mapping[str, int],
    limits: Limits,
    progress: Callable[[float], None] | None,
) -> dict[str, list[float]]:
    names = list(calls)
    rng = np.random.default_rng(limits.seed)
    readings: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    done = 0
    with _no_collection():
        while done < limits.rounds or done < _MINIMUM_ROUNDS:
            spent = time.perf_counter() - start
            if done >= _MINIMUM_ROUNDS and spent >= limits.seconds:
                break
            if progress is not None:
                progress(
                    min(1.0, max(done / max(limits.rounds, 1), spent / max(limits.seconds, 1e-9)))
                )
            order = [names[index] for index in rng.permutation(len(names))]
            chosen = {name: calls[name][done % len(calls[name])] for name in order}
            for name, seconds in _round(chosen, repeats).items():
                readings[name].append(seconds)
            done += 1
    if progress is not None:
        progress(1.0)
    return readings


def _round(calls: Mapping[str, Call], repeats: Mapping[str, int]) -> dict[str, float]:
    """Times each model in turn, in this order, as often as is cheap; the fastest stretch counts."""
    fastest = dict.fromkeys(calls, math.inf)
    start = time.perf_counter()
    for _ in range(_STRETCHES):
        for name, call in calls.items():
            fastest[name] = min(fastest[name], _reading(call, repeats[name]))
        if time.perf_counter() - start > _STRETCHES_SECONDS:
            break
    return fastest


def _reading(call: Call, repeats: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeats):
        call()
    return (time.perf_counter_ns() - start) / repeats / 1e9


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector out of the readings."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
