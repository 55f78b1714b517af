"""Looks at the activations of a model while it runs on samples."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.errors import SamplesError
from onnxcomp.passbase import QUIET
from onnxcomp.quant.observers import Histogram
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress

    Feeds = Mapping[str, np.ndarray]

MEMORY_LIMIT = 1 << 30
_FLOAT_BYTES = 4


def calibrate(
    model: Model,
    points: Sequence[str],
    samples: Iterable[Feeds],
    *,
    sizes: Mapping[str, int] | None = None,
    memory_limit: int = MEMORY_LIMIT,
    threads: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Histogram]:
    """Runs a float model once on every sample and keeps running statistics of its activations.

    Activations are never stored. What is found does not depend on the order of the samples.

    Args:
        model: The float model.
        points: Values of its main graph, inputs included.
        samples: Feeds; iterated once for each group of points that fits the memory limit.
        sizes: Elements of each value, as far as known.
        memory_limit: Bytes of activations that one run may give out.
        threads: Threads of the session, 0 for the runtime's choice.
        progress: Progress bars.

    Returns:
        Statistics by value. Values that are not float32 are left out.

    Raises:
        SamplesError: If there is no sample, or an activation is NaN or infinite.
    """
    inputs = {spec.name for spec in model.signature().inputs}
    seen: dict[str, Histogram] = {}
    groups = list(_groups(points, sizes or {}, memory_limit))
    feeds = samples if len(groups) < 2 else _reiterable(samples)
    count = len(feeds) if isinstance(feeds, Sized) else 1
    with progress(len(groups) * count, "calibrating") as task:
        for group in groups:
            taps = [name for name in group if name not in inputs]
            with Session.open(model, threads=threads, outputs=taps) as session:
                for feed in feeds:
                    arrays = {**feed, **(session.run(feed, taps) if taps else {})}
                    for name in group:
                        _look(seen, name, arrays.get(name))
                    task.advance()
    if points and not any(found.count for found in seen.values()):
        raise SamplesError("no calibration sample gave any activation")
    return seen


def _look(seen: dict[str, Histogram], name: str, array: np.ndarray | None) -> None:
    if isinstance(array, np.ndarray) and array.dtype == np.float32:
        seen.setdefault(name, Histogram()).add(array, name)


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
