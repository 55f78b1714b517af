"""Looks at the activations of a model while it runs on samples."""

from __future__ import annotations

import time
from collections.abc import Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from onnxcomp.allowance import MEMORY
from onnxcomp.errors import SamplesError
from onnxcomp.passbase import QUIET
from onnxcomp.quant.channels import Channels
from onnxcomp.quant.observers import Histogram
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress, Task

    Feeds = Mapping[str, np.ndarray]

MEMORY_LIMIT = 1 << 30
_FLOAT_BYTES = 4
# What is given out is there twice, in the runtime and as arrays; weights and the runtime need the rest.
_SHARE = 8
# Interim results are stored after this many seconds of work.
_STORE_AFTER = 5.0
# Work that is expected to take less is done again rather than looked up: that takes a hash of all weights.
_WORTH_SECONDS = 10.0
# Vectors that are kept of an activation, and what those of all of them may take.
_VECTORS, _VECTOR_BYTES = 256, 64 << 20
_FEWEST_VECTORS = 16


class Store(Protocol):
    """Where interim results are kept from one run to the next."""

    def load(self, group: Sequence[str], empty: Observed) -> tuple[int, Observed] | None:
        """Returns after how many samples work on a group of values stopped, and what is known."""
        ...

    def save(self, group: Sequence[str], samples: int, found: Observed) -> None:
        """Keeps what is known of a group of values after some samples."""
        ...


@dataclass
class Observed:
    """What is known of activations.

    Attributes:
        histograms: Statistics by value. Values that are not float32 are left out.
        channels: What is known of channels, by value.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, Channels] = field(default_factory=dict)


def calibrate(
    model: Model,
    points: Sequence[str],
    samples: Iterable[Feeds],
    *,
    sizes: Mapping[str, int] | None = None,
    memory_limit: int | None = None,
    threads: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Histogram]:
    """Runs a float model on every sample and keeps running statistics of its activations.

    As `observe`, without channels.

    Returns:
        Statistics by value. Values that are not float32 are left out.

    Raises:
        SamplesError: If there is no sample, or an activation is NaN or infinite.
    """
    looker = Looker(model, sizes or {}, memory_limit, threads, progress)
    return looker.observe(points, samples).histograms


@dataclass
class Looker:
    """Runs a float model once on every sample and keeps running statistics of its activations.

    Activations are never stored. What is found depends neither on the order of the samples (but for
    moving averages and vectors) nor on how they are batched along axis 0.

    Attributes:
        model: The float model.
        sizes: Elements of each value, as far as known.
        memory_limit: Bytes of activations that one run may give out, by default 1 GiB, or an eighth of
            what the process may use; the samples are run once for each group of values that fits.
        threads: Threads of the session, 0 for the runtime's choice.
        progress: Progress bars.
        store: Where interim results of long calibrations are kept.
        worth: Seconds that a calibration must be expected to take for that.
    """

    model: Model
    sizes: Mapping[str, int] = field(default_factory=dict)
    memory_limit: int | None = None
    threads: int = 0
    progress: Progress = QUIET
    store: Store | None = None
    worth: float = _WORTH_SECONDS

    def observe(
        self,
        points: Sequence[str],
        samples: Iterable[Feeds],
        channels: Mapping[str, tuple[int, int]] | None = None,
    ) -> Observed:
        """Looks at values while the model runs on samples.

        Args:
            points: Values of the main graph, inputs included.
            samples: Feeds.
            channels: Axis and number of the channels to look at, for some of the points.

        Raises:
            SamplesError: If there is no sample, or an activation is NaN or infinite.
        """
        wanted = channels or {}
        seen = Observed()
        groups = list(_groups(points, self.sizes, self.memory_limit or _allowed()))
        feeds = samples if len(groups) < 2 else _reiterable(samples)
        count = len(feeds) if isinstance(feeds, Sized) else 1
        vectors = _affordable(wanted)
        with self.progress(len(groups) * count, "calibrating") as task:
            for group in groups:
                made = {name: (*wanted[name], vectors) for name in group if name in wanted}
                found = self._group(group, feeds, made, _Job(task, len(groups) * count, count))
                seen.histograms.update(found.histograms)
                seen.channels.update(found.channels)
        if points and not any(found.count for found in seen.histograms.values()):
            raise SamplesError("no calibration sample gave any activation")
        return seen

    def _group(
        self,
        group: list[str],
        feeds: Iterable[Feeds],
        channels: Mapping[str, tuple[int, int, int]],
        job: _Job,
    ) -> Observed:
        """Looks at the values of a group; goes on where an earlier run stopped."""

        def empty() -> Observed:
            return Observed({}, {name: Channels(*what) for name, what in channels.items()})

        found, done, saved = empty(), 0, time.monotonic()
        inputs = {spec.name for spec in self.model.signature().inputs}
        taps = [name for name in group if name not in inputs]
        store = None
        with Session.open(self.model, threads=self.threads, outputs=taps) as session:
            runs, start = _Runs(session, taps), time.monotonic()
            for index, arrays in enumerate(runs.over(feeds), 1):
                if index > done:
                    _look(found, group, arrays)
                    done = index
                    job.task.advance()
                if index == 1 and (time.monotonic() - start) * job.runs > self.worth:
                    store = self.store
                    stored = None if store is None else store.load(group, empty())
                    if stored is not None and done < stored[0] <= job.samples:
                        job.task.advance(stored[0] - done)
                        done, found = stored
                        runs.known = done
                elif store is not None and time.monotonic() - saved > _STORE_AFTER:
                    store.save(group, done, found)
                    saved = time.monotonic()
        if store is not None:
            store.save(group, done, found)
        return found


@dataclass
class _Runs:
    """Runs a session on feeds; while somebody looks at one result, the next one is computed.

    Attributes:
        session: The session.
        taps: What to compute.
        known: How many feeds at the start need no run.
    """

    session: Session
    taps: Sequence[str]
    known: int = 0

    def over(self, feeds: Iterable[Feeds]) -> Iterator[dict[str, np.ndarray]]:
        """Gives the arrays of each feed, empty where none are needed."""
        with ThreadPoolExecutor(1) as pool:
            waiting: Future[dict[str, np.ndarray]] | None = None
            for index, feed in enumerate(feeds):
                following = pool.submit(self._run, index, feed)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()

    def _run(self, index: int, feed: Feeds) -> dict[str, np.ndarray]:
        if index < self.known:
            return {}
        return {**feed, **(self.session.run(feed, self.taps) if self.taps else {})}


@dataclass(frozen=True)
class _Job:
    """What there is to do.

    Attributes:
        task: Who wants to know how it goes.
        runs: Runs of the model, over all groups.
        samples: Samples.
    """

    task: Task
    runs: int
    samples: int


def _look(found: Observed, group: Sequence[str], arrays: dict[str, np.ndarray]) -> None:
    for name in group:
        # Nobody else holds it: what was looked at is freed.
        array = arrays.pop(name, None)
        if isinstance(array, np.ndarray) and array.dtype == np.float32:
            found.histograms.setdefault(name, Histogram()).add(array, name)
            if name in found.channels:
                found.channels[name].add(array, name)


def _allowed() -> int:
    """Bytes of activations that one run may give out when nobody said how many."""
    limit = MEMORY.get()
    return MEMORY_LIMIT if limit is None else min(MEMORY_LIMIT, max(limit // _SHARE, 1))


def _affordable(wanted: Mapping[str, tuple[int, int]]) -> int:
    """How many vectors may be kept of each activation."""
    total = sum(size for _, size in wanted.values()) * _FLOAT_BYTES
    return min(max(_VECTOR_BYTES // max(total, 1), _FEWEST_VECTORS), _VECTORS)


def _reiterable(samples: Iterable[Feeds]) -> Iterable[Feeds]:
    return list(samples) if iter(samples) is samples else samples


def _groups(points: Sequence[str], sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Splits the points so that the activations of each group fit the limit."""
    group: list[str] = []
    room = limit
    for name in points:
        need = sizes.get(name, 0) * _FLOAT_BYTES
        if group and need > room:
            yield group
            group, room = [], limit
        group.append(name)
        room -= need
    if group:
        yield group
