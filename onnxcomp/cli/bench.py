"""`onnxcomp bench`: which model is faster?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import MODEL, data_options, machine_options, seed_option
from onnxcomp.cli.output import emit_tables
from onnxcomp.cli.settings import everywhere, seconds

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.cli.options import Data, Machine
    from onnxcomp.report import Report


@click.command(cls=Command)
@click.argument("models", type=MODEL, nargs=-1, required=True)
@data_options
@machine_options
@click.option(
    "--provider-option",
    "provider_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the provider, as the runtime documents them.  [repeatable]",
)
@click.option(
    "--rounds", type=click.IntRange(min=5), default=60, show_default=True, help="Rounds at most."
)
@click.option(
    "--seconds",
    "budget",
    type=seconds,
    default="10",
    show_default=True,
    help="Time for all rounds.",
)
@click.option(
    "--memory/--no-memory", default=True, show_default=True, help="Also measure peak memory."
)
@seed_option
@everywhere
def bench(
    *,
    models: tuple[Path, ...],
    data: Data,
    machine: Machine,
    provider_options: tuple[str, ...],
    rounds: int,
    budget: float,
    memory: bool,
    seed: int,
) -> None:
    """Times MODELS against each other.

    The first one is the base. In every round each model runs once, in random order; what counts is the median of the ratios
    within rounds, so that a busy machine slows all models alike. Without --data on made-up inputs.
    """
    from onnxcomp.bench import Limits
    from onnxcomp.cli.measure import benchmark, feeds_for
    from onnxcomp.ir import Model
    from onnxcomp.report import Report
    from onnxcomp.report.rows import model_row, timed_rows

    loaded = {name: Model.load(path) for name, path in _named(models).items()}
    samples = data.load(loaded[next(iter(loaded))].signature().inputs)
    feeds = feeds_for(models[0], samples, provider=machine.provider, seed=seed)
    found = benchmark(
        _named(models),
        feeds,
        Limits(rounds=rounds, seconds=budget, seed=seed),
        machine=machine,
        memory=memory,
        provider_options=_pairs(provider_options),
    )
    rows = tuple(model_row(name, loaded[name], path) for name, path in _named(models).items())
    report = Report(
        command="bench",
        options={"provider": machine.provider, "threads": machine.threads, "rounds": found.rounds},
        models=timed_rows(rows, found),
        notes=(
            f"median of {found.rounds} interleaved rounds, {machine.provider}, "
            f"{machine.threads or 'all'} thread(s), {_inputs(data, len(feeds))}",
        ),
        seeds={"seed": seed},
    )
    emit_tables(lambda console: _draw(report, console), report.to_dict())


def _draw(report: Report, console: Console) -> None:
    from onnxcomp.report.text import render

    render(report, console)


def _inputs(data: Data, count: int) -> str:
    return f"{count} samples" if data.data is not None else f"{count} made-up inputs"


def _named(models: tuple[Path, ...]) -> dict[str, Path]:
    """Returns models under the shortest names that tell them apart."""
    for parts in (1, 2, 3):
        names = ["/".join(path.parts[-parts:]) for path in models]
        if len(set(names)) == len(names):
            return dict(zip(names, models, strict=True))
    return {f"{number}: {path}": path for number, path in enumerate(models, 1)}


def _pairs(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.UsageError(
                f"{text!r} is not of the form KEY=VALUE", click.get_current_context()
            )
        pairs[key] = value
    return pairs
