"""`onnxcomp sensitivity`: which layers lose accuracy in int8, and what they gain."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import MODEL, bundle, data_options, model_argument
from onnxcomp.cli.output import emit_tables, progress, write_text
from onnxcomp.cli.settings import everywhere, seconds, settings
from onnxcomp.errors import UserError
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.analysis.sensitivity import Sensitivity
    from onnxcomp.cli.options import Data
    from onnxcomp.ir import Model, ir
    from onnxcomp.quant.measure import NodeTimes
    from onnxcomp.samples import Samples

SHOWN = 20
_JUDGED = 8
_TURNS, _ROUNDS = 5, 7
_ABSORBED = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Add")


@dataclass(frozen=True)
class Judging:
    """How models are judged, and for how long."""

    metric: str | None
    judge_samples: int
    budget: float


judging_options = bundle(
    Judging,
    "judging",
    click.option(
        "--metric",
        metavar="METRIC",
        help="top1, cosine, sqnr, or file.py:function with `function(outputs, labels)`; larger is better.  "
        "[default: noise of the outputs relative to their power]",
    ),
    click.option(
        "--judge-samples",
        type=click.IntRange(min=1),
        default=_JUDGED,
        show_default=True,
        help="How many samples every combination is judged on.",
    ),
    click.option(
        "--seconds",
        "budget",
        type=seconds,
        default="120",
        show_default=True,
        help="Time for all layers; those that are not reached are left out.",
    ),
)


@click.command(cls=Command)
@model_argument
@data_options
@click.option(
    "--quantized",
    type=MODEL,
    metavar="FILE",
    help="What was made of MODEL, by whatever tool that keeps names of nodes.  [default: quantize-static "
    "with everything in int8 that can be]",
)
@judging_options
@click.option("--target", default="cpu", show_default=True, help="Where the model shall run.")
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Threads of one operator; 0 leaves it to the runtime.",
)
@click.option("--html", type=MODEL, metavar="FILE", help="Also draw it on a page.")
@everywhere
def sensitivity(
    *,
    model: Path,
    data: Data,
    quantized: Path | None,
    judging: Judging,
    target: str,
    threads: int,
    html: Path | None,
) -> None:
    """Shows what each layer loses in int8, and what it gains.

    The model is judged with each layer alone quantized and with each alone back in float, and every layer
    is timed in both. Those with the most damage for the time they save come first: the ones to leave in
    float, with `quantize static --skip NAME`. The JSON (`--json`) has all layers.
    """
    from onnxcomp.analysis.sensitivity import layer_sensitivity
    from onnxcomp.ir import Model
    from onnxcomp.passbase import follow

    original = Model.load(model)
    samples = data.load(original.signature().inputs)
    if samples is None:
        raise click.UsageError("it needs samples: give --data", click.get_current_context())
    if html is not None:
        from onnxcomp.ir.atomic import check_output

        check_output(html, [model], in_place=True)
    rounded = (
        _quantized(original, samples, target, threads)
        if quantized is None
        else Model.load(quantized)
    )
    judge = _judge(original, judging.metric, samples.take(judging.judge_samples), threads)
    gains = _gains(original, rounded, samples, target, threads)
    with stage("judging layers"), progress()(1.0, "judging layers") as task:
        found = layer_sensitivity(
            original, rounded, judge, gains, seconds=judging.budget, progress=follow(task)
        )
    if not found.layers and not found.left:
        raise UserError(
            "no node of the quantized model reads rounded values and has the name of one of MODEL",
            hint="give the model that --quantized was made from, or leave --quantized out",
        )
    unit = judging.metric or "noise"
    if html is not None:
        from onnxcomp.report.sensitivity import to_page

        write_text(html, to_page(found, str(model), unit))
    emit_tables(
        lambda console: _draw(console, found, unit),
        {"model": str(model), "metric": unit, "target": target, **found.to_json()},
    )


def _quantized(original: Model, samples: Samples, target: str, threads: int) -> Model:
    from onnxcomp.pipeline import Pipeline

    steps = "quantize-static{placement=all prepare=false}"
    found = Pipeline.parse(steps, target=target).run(
        original, samples=samples, threads=threads, progress=progress()
    )
    return found.model


def _judge(
    original: Model, metric: str | None, samples: Samples, threads: int
) -> Callable[[Model], float]:
    """Returns what says how much worse a model is than the original."""
    from onnxcomp.analysis.sensitivity import output_noise
    from onnxcomp.compare import Reference
    from onnxcomp.metrics import evaluate, find_metric
    from onnxcomp.runtime import Session

    with Session.open(original, threads=threads) as session:
        feeds = list(samples)
        known = _Known([session.run(feed) for feed in feeds])
        # They are all in memory already; the session, which could make them again, is closed by then.
        reference = Reference(known, feeds, budget=sys.maxsize)
        if metric is None:
            return lambda model: output_noise(reference, model, threads)
        chosen = find_metric(metric)
        best = evaluate(chosen, session, feeds, reference=reference, labels=samples.labels)

    def drop(model: Model) -> float:
        with Session.open(model, threads=threads) as opened:
            score = evaluate(chosen, opened, feeds, reference=reference, labels=samples.labels)
        return chosen.drop(best, score)

    return drop


class _Known:
    """Outputs that were computed already, in the order of the samples."""

    def __init__(self, outputs: list[dict[str, Any]]) -> None:
        self._outputs = iter(outputs)

    def run(self, feeds: Mapping[str, Any], /) -> Mapping[str, Any]:
        """Returns the next outputs."""
        del feeds
        return next(self._outputs)


def _gains(
    original: Model, rounded: Model, samples: Samples, target: str, threads: int
) -> dict[str, float]:
    """Returns the seconds that nodes save in a run, by name: medians of measurements in turn."""
    from statistics import median

    from onnxcomp.quant.measure import measure_nodes
    from onnxcomp.targets import load_target

    provider = load_target(target).provider
    feeds = samples.first()
    saved: dict[str, list[float]] = {}
    later = {node.name: node for node in rounded.graph if node.name}
    pairs = [(node, later[node.name]) for node in original.graph if node.name in later]
    with stage("measuring layers"):
        for _ in range(_TURNS):
            before, after = (
                measure_nodes(each, feeds, provider=provider, threads=threads, rounds=_ROUNDS)
                for each in (original, rounded)
            )
            for node, same in pairs:
                one, two = _seconds(before, node), _seconds(after, same)
                if one is not None and two is not None:
                    saved.setdefault(node.name or "", []).append(one - two)
    return {name: median(each) for name, each in saved.items()}


def _seconds(times: NodeTimes, node: ir.Node) -> float | None:
    """The time of a node; a kernel that takes in the activation behind it is named after that one."""
    from onnxcomp.ir.ops import is_op, single_use
    from onnxcomp.quant.candidates import key_of

    follower = single_use(node.outputs[0])
    found = times.seconds.get(key_of(node))
    if found is None and follower is not None and is_op(follower, *_ABSORBED):
        return times.seconds.get(key_of(follower))
    return found


def _bar(damage: float, largest: float) -> str:
    share = damage / largest if largest else 0.0
    return "#" * round(12 * share) if math.isfinite(share) else ""


def _draw(console: Console, found: Sensitivity, unit: str) -> None:
    from onnxcomp.report.text import table
    from onnxcomp.report.units import MISSING

    shown = found.layers if settings().verbose else found.layers[:SHOWN]
    largest = max((layer.damage for layer in found.layers), default=0.0)
    rows = [
        (
            layer.name,
            layer.op_type,
            _bar(layer.damage, largest),
            f"{layer.alone:.3g}",
            f"{layer.back:.3g}",
            MISSING if layer.gain is None else f"{layer.gain * 1e6:+.0f} us",
        )
        for layer in shown
    ]
    columns = ("layer", "operator", "damage", "alone in int8", "alone in float", "saves")
    if rows:
        console.print(table(columns, rows, console, numbers=3))
    if len(shown) < len(found.layers):
        console.print(f"... and {len(found.layers) - len(shown)} more (--verbose shows all)")
    console.print(f"damage with everything in int8: {found.everything:.3g} ({unit})")
    if found.left:
        console.print(f"{found.left} layers were not reached in time (--seconds)")
