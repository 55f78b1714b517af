"""The main job: the fastest model whose quality stays inside a limit, found by measuring."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import RuntimeUnavailableError
from onnxcomp.ir import Model
from onnxcomp.metrics import Fidelity, UserMetric, find_metric
from onnxcomp.passbase import QUIET
from onnxcomp.samples import Samples, load_samples
from onnxcomp.search import NOISE, Search
from onnxcomp.trials import SearchOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.ir.model import Source
    from onnxcomp.metrics import Metric
    from onnxcomp.passbase import Progress
    from onnxcomp.report import Report
    from onnxcomp.trials import Trial
    from onnxcomp.variants import Prefer


@dataclass(frozen=True)
class CompressResult:
    """What `compress` found.

    Attributes:
        model: The model that was chosen.
        chosen: How it was made and how it did.
        trials: Everything that was tried, the original and the chosen one included.
        met: Whether the chosen one is inside the limits and not slower than what came in.
        report: The record of the run.
    """

    model: Model
    chosen: Trial
    trials: tuple[Trial, ...]
    met: bool
    report: Report


def compress(  # noqa: PLR0913 - the main entry point: each argument is something users ask for
    source: Source,
    *,
    samples: Samples | object,
    validation: Samples | object | None = None,
    metric: str | Callable[..., Any] | Metric | None = None,
    target: str = "cpu",
    max_drop: float = 0.01,
    threads: int = 1,
    trials: int = 12,
    seconds: float = 6.0,
    seed: int = 0,
    memory: bool = True,
    batch: int = 1,
    prefer: Prefer = "speed",
    contrib: bool = False,
    prune: bool = False,
    progress: Progress = QUIET,
) -> CompressResult:
    """Makes a model as fast as possible while its quality stays inside a limit.

    Simplifies, quantizes in several ways, gives the nodes that hurt most back to float where that is
    needed, measures quality on held-out samples and latency side by side, and keeps the fastest
    candidate inside the limit. The simplified float model is always a candidate.

    Args:
        source: Path, `ModelProto`, `onnx_ir.Model`, GraphSurgeon graph or `Model`; never changed.
        samples: Real inputs: a path, a list of feeds, a calibration reader… (see `load_samples`).
        validation: Separate samples to judge on; by default half of `samples` is held out.
        metric: `score(outputs, labels)` as a function or `file.py:function`, or a built-in one
            (`top1`, `cosine`, `sqnr`); by default fidelity to the original's outputs.
        target: Where the model will run.
        max_drop: How much worse the metric may get, relative to the original (0.01 is 1 %).
        threads: Threads of one operator in all measurements.
        trials: How many candidates may be built, before the rounding of the chosen one is repaired.
        seconds: Time for the final latency measurement.
        seed: Seed of everything random.
        memory: Whether to measure peak memory as well.
        batch: How many samples one run will take where the model is deployed; speed is measured on that
            many, joined along the first axis.
        prefer: `speed` takes the fastest candidate inside the limit, `size` the smallest one that is not
            slower than what came in.
        contrib: Allow operators that only onnxruntime knows, where they gain.
        prune: Try candidates with fewer channels as well, fitted to the samples, by themselves and quantized:
            as much goes as the limit allows. Give real samples, and many.
        progress: Progress bars.

    Returns:
        The chosen model, everything that was tried, and a report.

    Raises:
        UserError: If the model or the samples cannot be used.
    """
    options = SearchOptions(
        target,
        _provider(target),
        max_drop,
        threads,
        trials,
        seconds,
        seed,
        memory,
        batch,
        prefer,
        contrib,
        prune,
    )
    start = time.perf_counter()
    original = Model.load(source)
    data = _split(samples, validation, original)
    with Search(original, *data, _metric(metric), options, progress) as search:
        search.run()
    return _concluded(search, data, start)


def _concluded(search: Search, data: tuple[Samples, Samples], start: float) -> CompressResult:
    """Chooses, and puts the record together."""
    from onnxcomp.compression_report import compress_report
    from onnxcomp.verdict import conversions, explained

    chosen = search.choose()
    remarks = [
        *search.notes,
        *explained(chosen, search.trials),
        *conversions(chosen.model, search.options.target),
    ]
    taken = time.perf_counter() - start
    report = compress_report(search.trials, chosen, search.options, data, remarks, taken)
    met = not chosen.rejected and chosen.ratio <= 1 + NOISE
    return CompressResult(chosen.model, chosen, tuple(search.trials), met, report)


def _provider(target: str) -> str:
    """Returns the provider to measure with.

    Raises:
        RuntimeUnavailableError: If models cannot be timed here as they will run on the target.
    """
    from onnxcomp.runtime import available_providers
    from onnxcomp.targets import load_target
    from onnxcomp.targets.features import runs_here

    table = load_target(target)
    if table.provider in available_providers() and runs_here(table):
        return table.provider
    raise RuntimeUnavailableError(
        f"target {target} is not on this machine, so that candidates cannot be measured",
        hint=f"`quantize static --target {target}` and `convert float16` plan without measuring",
    )


def _metric(metric: str | Callable[..., Any] | Metric | None) -> Metric:
    if isinstance(metric, (UserMetric, Fidelity)):
        return metric
    if callable(metric):
        return UserMetric(getattr(metric, "__name__", "metric"), metric)
    return find_metric(metric)


def _split(
    samples: Samples | object, validation: Samples | object | None, model: Model
) -> tuple[Samples, Samples]:
    inputs = model.signature().inputs
    loaded = samples if isinstance(samples, Samples) else load_samples(samples, inputs)
    if validation is None:
        return loaded.split()
    judged = validation if isinstance(validation, Samples) else load_samples(validation, inputs)
    return loaded.split(validation=judged)
