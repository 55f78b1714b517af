"""`onnxcomp compress`: the main job."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import (
    Data,
    bundle,
    data_options,
    finish,
    model_argument,
    output_options,
    seed_option,
)
from onnxcomp.cli.output import progress, remark
from onnxcomp.cli.settings import everywhere, seconds, settings, share
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnxcomp.cli.options import Output
    from onnxcomp.compression import CompressResult
    from onnxcomp.report import Report
    from onnxcomp.variants import Prefer


@dataclass(frozen=True)
class Goal:
    """What the result must be like, and how long to search for it."""

    target: str
    max_drop: float
    metric: str | None
    validation: str | None
    threads: int
    trials: int
    measure_time: float
    memory: bool
    batch: int
    prefer: Prefer
    contrib: bool
    prune: bool
    seed: int


goal_options = bundle(
    Goal,
    "goal",
    click.option(
        "--max-drop",
        type=share,
        default="1%",
        show_default=True,
        help="How much worse the metric may get, relative to the original.",
    ),
    click.option(
        "--metric",
        metavar="METRIC",
        help="top1, cosine, sqnr, or file.py:function with `function(outputs, labels)`; larger is better.  "
        "[default: how close outputs are to the original's]",
    ),
    click.option(
        "--validation",
        metavar="SOURCE",
        help="Samples to judge on.  [default: half of --data, held out]",
    ),
    click.option("--target", default="cpu", show_default=True, help="Where the result shall run."),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Threads of one operator in all measurements; 0 leaves it to the runtime.",
    ),
    click.option(
        "--trials",
        type=click.IntRange(min=1),
        default=12,
        show_default=True,
        help="How many candidates may be built, before the chosen one is repaired.",
    ),
    click.option(
        "--measure-time",
        type=seconds,
        default="6",
        show_default=True,
        help="Time for the final measurement of speed.",
    ),
    click.option(
        "--memory/--no-memory", default=True, show_default=True, help="Also measure peak memory."
    ),
    click.option(
        "--batch",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        help="How many samples one run will take where the model is deployed; decides what is faster.",
    ),
    click.option(
        "--prefer",
        type=click.Choice(["speed", "size"]),
        default="speed",
        show_default=True,
        help="Take the fastest candidate inside the limit, or the smallest one that is not slower.",
    ),
    click.option(
        "--contrib/--no-contrib",
        default=False,
        show_default=True,
        help="Allow operators that only onnxruntime knows (LSTM in int8).",
    ),
    click.option(
        "--prune/--no-prune",
        default=False,
        show_default=True,
        help="Also try candidates with fewer channels, fitted to the samples: give real ones, and many.",
    ),
    seed_option,
)


@click.command(cls=Command)
@model_argument
@output_options
@data_options
@goal_options
@everywhere
def compress(*, model: Path, output: Output, data: Data, goal: Goal) -> int:
    """Makes MODEL small and fast, inside a limit on quality.

    Simplifies, quantizes in several ways, judges each candidate on samples that were held out, times
    them side by side, and keeps the fastest one inside --max-drop. Exits with 3 when the result
    misses the limit or is slower than what came in.

        onnxcomp compress model.onnx --data samples/ --max-drop 1% -o small.onnx
    """
    place = output.place(model)
    if data.data is None:
        raise click.UsageError(
            "compress needs samples: give --data, for example --data samples/",
            click.get_current_context(),
        )
    result = search(model, data, goal)
    from onnxcomp.report.rows import file_row

    hashed = output.report is not None or settings().json
    before = file_row("original", model, digest=hashed)
    with stage("writing the result"):
        result.model.save(place, in_place=output.in_place, external=output.external_data)
    report = _completed(result.report, model, place, (output, data, goal))
    if hashed:
        after = file_row("result", place, digest=True)
        found = {"input": before.digest, "output": after.digest, **report.digests}
        report = report.with_(digests=found)
    code = finish(report, output)
    remark(f"wrote {place}")
    return code if result.met else 3


def search(
    model: Path, data: Data, goal: Goal, *, metric: Callable[..., Any] | None = None
) -> CompressResult:
    """Runs the search on what the command line names.

    Args:
        model: The model file.
        data: Where samples come from.
        goal: What is wanted.
        metric: A function instead of the metric that the goal names.
    """
    from onnxcomp.compression import compress as run
    from onnxcomp.ir import Model

    source = Model.load(model)
    inputs = source.signature().inputs
    samples = data.load(inputs)
    held_out = None
    if goal.validation is not None:
        held_out = dataclasses.replace(data, data=goal.validation).load(inputs)
    return run(
        source,
        samples=samples,
        validation=held_out,
        metric=metric or goal.metric,
        target=goal.target,
        max_drop=goal.max_drop,
        threads=goal.threads,
        trials=goal.trials,
        seconds=goal.measure_time,
        seed=goal.seed,
        memory=goal.memory,
        batch=goal.batch,
        prefer=goal.prefer,
        contrib=goal.contrib,
        prune=goal.prune,
        progress=progress(),
    )


def _completed(
    report: Report, model: Path, place: Path, chosen: tuple[Output, Data, Goal]
) -> Report:
    """Adds what was said on the command line, so that the run can be repeated."""
    said = {key: value for part in chosen for key, value in dataclasses.asdict(part).items()}
    return report.with_(options={"model": model, **said, "output": place, **report.options})
