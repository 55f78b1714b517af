"""`onnxcomp compare`: do two models say the same?"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.lines import say
from onnxcomp.cli.options import MODEL, bundle, data_options, machine_options, seed_option, warn
from onnxcomp.cli.output import emit_tables, progress
from onnxcomp.cli.settings import everywhere, settings, share
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    from rich.console import Console

    from onnxcomp.cli.options import Data, Machine
    from onnxcomp.compare import Comparison, Tolerance
    from onnxcomp.report import Gate
    from onnxcomp.runtime import Optimization, Session
    from onnxcomp.signature import Signature

    Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Limits:
    """How far the outputs may be apart."""

    rtol: float | None
    atol: float | None
    min_sqnr: float | None
    min_cosine: float | None
    min_top1: float | None

    def on_the_whole(self) -> dict[str, float]:
        """Returns the limits that are not about single elements."""
        wanted = {
            "min-sqnr": self.min_sqnr,
            "min-cosine": self.min_cosine,
            "min-top1": self.min_top1,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    def tolerance(self) -> Tolerance | None:
        """Returns the limits for single elements, the default ones if there are no limits at all."""
        from onnxcomp.compare import Tolerance

        if self.rtol is None and self.atol is None:
            return None if self.on_the_whole() else Tolerance()
        # Who sets one of the two does not want the default of the other to let more pass.
        return Tolerance(rtol=self.rtol or 0.0, atol=self.atol or 0.0)


limit_options = bundle(
    Limits,
    "limits",
    click.option(
        "--rtol",
        type=click.FloatRange(min=0),
        help="Allowed share of the expected element.  [default: 0.001]",
    ),
    click.option(
        "--atol", type=click.FloatRange(min=0), help="Allowed difference.  [default: 1e-05]"
    ),
    click.option("--min-sqnr", type=float, help="Least signal-to-noise ratio in dB."),
    click.option("--min-cosine", type=float, help="Least cosine between outputs."),
    click.option("--min-top1", type=share, help="Least share of equal largest classes: 99%."),
)


@click.command(cls=Command)
@click.argument("expected", type=MODEL)
@click.argument("actual", type=MODEL)
@data_options
@limit_options
@click.option(
    "--optimization",
    type=click.Choice(["disable", "basic", "extended", "all"]),
    default="all",
    show_default=True,
    help="How far the runtime may rewrite both models first.",
)
@machine_options
@seed_option
@everywhere
def compare(
    *,
    expected: Path,
    actual: Path,
    data: Data,
    limits: Limits,
    optimization: Optimization,
    machine: Machine,
    seed: int,
) -> int:
    """Says how the outputs of EXPECTED and ACTUAL differ.

    Both run on the same samples, without --data on made-up inputs. Exits with 3 when something is outside the limits: element by
    element within --rtol and --atol, unless only limits on the whole are given.
    """
    from onnxcomp.cli.checks import gates_of

    found = _compared((expected, actual), data, limits.tolerance(), optimization, machine, seed)
    gates = gates_of(limits.on_the_whole(), found)
    passed = bool(found) and all(gate.met for gate in gates)
    document = {"command": "compare", **found.to_json(), "gates": gates, "passed": passed}
    emit_tables(lambda console: _draw(console, found, gates), document)
    if not passed:
        reason = found.reason or ", ".join(str(gate) for gate in gates if not gate.met)
        say(reason, prefix="missed: ")
    return 0 if passed else 3


def _compared(
    models: tuple[Path, Path],
    data: Data,
    tolerance: Tolerance | None,
    optimization: Optimization,
    machine: Machine,
    seed: int,
) -> Comparison:
    from onnxcomp.compare import compare as compare_models
    from onnxcomp.ir import Model
    from onnxcomp.runtime import Session

    loaded = [Model.load(path) for path in models]
    signature = _narrowed(loaded[0].signature(), loaded[1].signature())
    samples = data.load(signature.inputs)

    def session(path: Path) -> Session:
        return Session.open(
            path,
            provider=machine.provider,
            threads=machine.threads,
            optimization=optimization,
        )

    with stage("comparing outputs"), session(models[0]) as first, session(models[1]) as second:
        feeds = samples if samples is not None else _made_up(signature, first, seed)
        return compare_models(first, second, _watched(feeds), tolerance=tolerance)


def _narrowed(first: Signature, second: Signature) -> Signature:
    """The first signature with the numbers of the second: a model whose sizes were fixed takes no others."""
    others = {spec.name: spec.shape for spec in second.inputs}
    inputs = []
    for spec in first.inputs:
        shape, other = spec.shape, others.get(spec.name)
        if shape is None or other is None or len(shape) != len(other):
            inputs.append(
                spec if shape is not None or other is None else replace(spec, shape=other)
            )
            continue
        both = zip(shape, other, strict=True)
        inputs.append(replace(spec, shape=tuple(b if isinstance(b, int) else a for a, b in both)))
    return replace(first, inputs=tuple(inputs))


def _made_up(signature: Signature, session: Session, seed: int) -> list[Feeds]:
    from onnxcomp.probe import probe_feeds

    if not settings().json:
        warn("no --data: the models are compared on made-up inputs")
    return [*probe_feeds(signature, seed=seed, runner=session)]


def _watched(feeds: Iterable[Feeds]) -> Iterator[Feeds]:
    total = len(feeds) if isinstance(feeds, Sized) else 0
    with progress()(total, "comparing") as task:
        for sample in feeds:
            yield sample
            task.advance()


def _draw(console: Console, found: Comparison, gates: tuple[Gate, ...]) -> None:
    from onnxcomp.errors import quoted
    from onnxcomp.report.text import table
    from onnxcomp.report.units import metric

    columns = (
        "output",
        "type",
        "elements",
        "differ",
        "max abs",
        "max rel",
        "cosine",
        "SQNR dB",
        "top-1",
    )
    rows = [
        (
            quoted(output.name)[1:-1],
            output.dtype,
            str(output.elements),
            str(output.differing),
            *(metric(value) for value in (output.max_abs, output.max_relative)),
            metric(output.cosine),
            metric(output.sqnr_db),
            metric(output.top1),
        )
        for output in found.outputs
    ]
    console.print(table(columns, rows, console, numbers=7))
    verdict = (
        "identical" if found.identical else "within the limits" if found else "outside the limits"
    )
    limits = f" ({found.tolerance})" if found.tolerance else ""
    if all(gate.met for gate in gates):
        console.print(f"{found.samples} samples: {verdict}{limits}")
