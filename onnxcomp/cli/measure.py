"""Measuring models for the commands: speed side by side, and how close their outputs are."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxcomp.cli.options import Machine
from onnxcomp.cli.output import progress
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np

    from onnxcomp.bench import Benchmark, Limits
    from onnxcomp.ir import Model
    from onnxcomp.report import ModelRow
    from onnxcomp.samples import Samples

    Feeds = Mapping[str, np.ndarray]

# Samples that a benchmark takes in turn.
_TIMED_SAMPLES = 4
_PROBES = 3
ONE_THREAD = Machine("cpu", 1)


def benchmark(
    models: Mapping[str, Model | Path],
    feeds: Sequence[Feeds],
    limits: Limits,
    *,
    machine: Machine = ONE_THREAD,
    memory: bool = True,
    provider_options: Mapping[str, str] | None = None,
) -> Benchmark:
    """Times models against each other, with a progress bar."""
    from onnxcomp.bench import measure

    with stage("measuring speed"), progress()(100, "measuring") as task:
        done = 0.0

        def advance(share: float) -> None:
            nonlocal done
            task.advance(100 * share - done)
            done = 100 * share

        return measure(
            models,
            feeds,
            provider=machine.provider,
            threads=machine.threads,
            provider_options=provider_options,
            limits=limits,
            memory=memory,
            progress=advance,
        )


def feeds_for(
    model: Model | Path, samples: Samples | None, *, provider: str = "cpu", seed: int = 0
) -> list[Feeds]:
    """Returns a few samples; made up ones that the model accepts when there are no real ones."""
    if samples is not None:
        return list(samples.take(min(_TIMED_SAMPLES, len(samples))))
    from onnxcomp.ir import Model
    from onnxcomp.probe import probe_feeds
    from onnxcomp.runtime import Session

    signature = Model.load(model).signature()
    with stage("finding inputs"), Session.open(model, provider=provider, threads=1) as session:
        return [*probe_feeds(signature, count=_PROBES, seed=seed, runner=session)]


def speed_rows(
    rows: tuple[ModelRow, ...],
    models: Mapping[str, Model | Path],
    samples: Samples | None,
    *,
    seed: int,
    seconds: float,
) -> tuple[ModelRow, ...]:
    """Adds latency, speed-up and peak memory to rows of models, the first being the base."""
    from onnxcomp.bench import Limits
    from onnxcomp.report.rows import timed_rows

    feeds = feeds_for(next(iter(models.values())), samples, seed=seed)
    return timed_rows(rows, benchmark(models, feeds, Limits(seconds=seconds, seed=seed)))


def fidelity_rows(
    rows: tuple[ModelRow, ...],
    models: Mapping[str, Model | Path],
    samples: Samples | None,
    *,
    seed: int,
) -> tuple[ModelRow, ...]:
    """Adds to all rows but the first how close their outputs are to those of the first."""
    first, *others = models.values()
    feeds = samples if samples is not None else feeds_for(first, None, seed=seed)
    with stage("comparing outputs"):
        found = [_fidelity(first, other, feeds) for other in others]
    compared = zip(rows[1:], found, strict=True)
    return (rows[0], *(replace(row, metrics=metrics) for row, metrics in compared))


def _fidelity(
    first: Model | Path, second: Model | Path, feeds: Samples | Sequence[Feeds]
) -> dict[str, float]:
    from onnxcomp.compare import compare
    from onnxcomp.runtime import Session

    with Session.open(first) as a, Session.open(second) as b:
        found = compare(a, b, feeds)
    names = {"sqnr_db": "SQNR dB", "cosine": "cosine", "top1": "top-1"}
    values = {title: found.worst(name) for name, title in names.items()}
    return {title: value for title, value in values.items() if value is not None}
