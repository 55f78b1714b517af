"""`onnxcomp lint`: what is wrong or slow in a quantized model, and mending it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.lines import say
from onnxcomp.cli.options import MODEL, data_options, model_argument
from onnxcomp.cli.output import emit_tables, progress, write_text
from onnxcomp.cli.settings import everywhere, settings

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.cli.options import Data
    from onnxcomp.diagnostics import Diagnostic
    from onnxcomp.lint import Found, LintReport
    from onnxcomp.pipeline import Result
    from onnxcomp.report import ModelRow, Report
    from onnxcomp.samples import Samples

# Findings of one code that are shown unless all are asked for.
SHOWN = 3
_SEVERITIES = ("error", "warning", "never")
_SECONDS = 4.0


@dataclass(frozen=True)
class Looked:
    """What was found, and what became of it.

    Attributes:
        model: The model that was read.
        found: What was found in it.
        left: What is left after mending, else the same.
        result: What mending did, if it was asked for.
        output: Where the mended model is.
        rows: Both models, with their speed where it was measured.
    """

    model: Path
    found: LintReport
    left: LintReport
    result: Result | None = None
    output: Path | None = None
    rows: tuple[ModelRow, ...] = ()

    @property
    def told(self) -> tuple[Diagnostic, ...]:
        """What mending has to say."""
        lines = () if self.result is None else self.result.diagnostics
        return tuple(line for line in lines if line.code.startswith("FIX"))


@click.command(cls=Command)
@model_argument
@click.option(
    "--target", default="cpu", show_default=True, help="Where the model shall run, see `targets`."
)
@click.option("--fix", is_flag=True, help="Mend what can be mended and write the model to -o.")
@click.option("-o", "--output", type=MODEL, metavar="FILE", help="Where the mended model goes.")
@click.option(
    "--simplify/--no-simplify",
    default=True,
    show_default=True,
    help="With --fix: run the lossless passes first.",
)
@click.option(
    "--fail-on",
    type=click.Choice(_SEVERITIES),
    default="error",
    show_default=True,
    help="Exit with 3 when a finding (with --fix: one that is left) matters at least so much.",
)
@click.option(
    "--provider-graph/--no-provider-graph",
    default=True,
    show_default=True,
    help="Look at the graph that the target's provider really runs, where it is installed.",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    show_default=True,
    help="With --fix: measure, and take back what does not make the model faster.",
)
@click.option(
    "--reference",
    type=MODEL,
    metavar="MODEL",
    help="With --fix: the float model; what leads away from it is taken back.",
)
@click.option(
    "--report", type=MODEL, metavar="FILE", help="Also store what was found: .json or .html."
)
@data_options
@everywhere
def lint(  # noqa: PLR0913 - each is an option
    *,
    model: Path,
    target: str,
    fix: bool,
    output: Path | None,
    simplify: bool,
    fail_on: str,
    provider_graph: bool,
    measure: bool,
    reference: Path | None,
    report: Path | None,
    data: Data,
) -> int:
    """Finds what is wrong or slow in a quantized MODEL.

    From whatever tool it comes: scales along the wrong axis, int8 activations that fall back to float,
    Q and DQ that the provider leaves as nodes of their own, each with the reason, Conv quantized in
    every run, and more; `onnxcomp explain LNT101` tells what a code means. With --fix, what can be
    mended is, and is kept where it is measured to be faster (--data gives the samples for that).
    """
    _check_places(model, output, report, fix=fix)
    from onnxcomp.lint import lint as look
    from onnxcomp.stages import stage

    with stage("looking at the model"):
        found = look(model, target=target, provider_graph=provider_graph)
    looked = Looked(model, found, found)
    if fix and output is not None:
        mended = _Mending(target, data, reference, simplify=simplify, measure=measure)
        looked = mended.run(looked, output, provider_graph=provider_graph)
    wanted = () if fail_on == "never" else looked.left.at_least(_severity(fail_on))
    document = {**_document(looked), "passed": not wanted}
    emit_tables(lambda console: _draw(console, looked), document)
    if report is not None:
        write_text(report, _stored(report, document, looked))
    if wanted:
        what = "error" if fail_on == "error" else "error or warning"
        say(f"{len(wanted)} {what}{'s' if len(wanted) > 1 else ''} left", prefix="missed: ")
    return 3 if wanted else 0


def _check_places(model: Path, output: Path | None, report: Path | None, *, fix: bool) -> None:
    from onnxcomp.ir.atomic import check_output

    if fix and output is None:
        raise click.UsageError(
            "where shall the mended model go? give -o", click.get_current_context()
        )
    if output is not None and not fix:
        raise click.UsageError("-o is for the model that --fix makes", click.get_current_context())
    if output is not None:
        check_output(output, [model], in_place=False)
    if report is not None:
        taken = [model] if output is None else [model, output]
        check_output(report, taken, in_place=False)


def _severity(name: str) -> Any:  # noqa: ANN401 - a Severity, imported late
    from onnxcomp.diagnostics import Severity

    return Severity(name)


@dataclass(frozen=True)
class _Mending:
    """How to mend a model."""

    target: str
    data: Data
    reference: Path | None
    simplify: bool
    measure: bool

    def run(self, looked: Looked, output: Path, *, provider_graph: bool) -> Looked:
        """Mends the model, looks at the result, writes and measures it."""
        from onnxcomp.ir import Model
        from onnxcomp.lint import lint as look
        from onnxcomp.pipeline import Pipeline
        from onnxcomp.report.rows import file_row
        from onnxcomp.stages import stage

        source = Model.load(looked.model)
        samples = self.data.load(source.signature().inputs)
        pipeline = Pipeline.parse(self._steps(), target=self.target)
        result = pipeline.run(
            source, samples=samples, threads=1, progress=progress(), reference=self.reference
        )
        with stage("looking at the result"):
            left = look(result.model, target=self.target, provider_graph=provider_graph)
        result.model.save(output)
        rows: tuple[ModelRow, ...] = (
            file_row("original", looked.model),
            file_row("mended", output),
        )
        if self.measure and left.conversions is not None:
            rows = _timed(rows, {"original": looked.model, "mended": output}, samples)
        return Looked(looked.model, looked.found, left, result, output, rows)

    def _steps(self) -> str:
        from onnxcomp.optimization import SIMPLIFY

        step = "fix-quantization" if self.measure else "fix-quantization{only-faster=false}"
        return f"{SIMPLIFY},{step}" if self.simplify else step


def _timed(
    rows: tuple[ModelRow, ...], models: dict[str, Path], samples: Samples | None
) -> tuple[ModelRow, ...]:
    """Adds speed to rows, unless one of the models does not run."""
    from onnxcomp.bench import Limits
    from onnxcomp.cli.measure import benchmark, feeds_for
    from onnxcomp.errors import UserError
    from onnxcomp.report.rows import timed_rows

    try:
        feeds = feeds_for(models["original"], samples)
        return timed_rows(rows, benchmark(models, feeds, Limits(seconds=_SECONDS), memory=False))
    except UserError:
        return rows


def _document(looked: Looked) -> dict[str, Any]:
    document: dict[str, Any] = {
        "command": "lint",
        "model": str(looked.model),
        "target": looked.found.target,
        "quantized": looked.found.quantized,
        **_found_document(looked.found),
    }
    if looked.result is not None:
        document["fixed"] = {
            "model": str(looked.output),
            **_found_document(looked.left),
            "remarks": [dataclasses.asdict(line) for line in looked.told],
            "models": [dataclasses.asdict(row) for row in looked.rows],
        }
    return document


def _found_document(found: LintReport) -> dict[str, Any]:
    return {
        "conversions": found.conversions,
        "counts": found.counts,
        "findings": [
            {
                **dataclasses.asdict(item.diagnostic),
                "title": item.title,
                "fixable": item.fixable,
            }
            for item in found.findings
        ],
    }


def _stored(report: Path, document: dict[str, Any], looked: Looked) -> str:
    if report.suffix.lower() in {".html", ".htm"}:
        from onnxcomp.report.html import to_html

        return to_html(_record(looked))
    import json

    from onnxcomp.report.record import plain

    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def _record(looked: Looked) -> Report:
    from onnxcomp.report import Report, Step
    from onnxcomp.report.rows import file_row

    outcomes = () if looked.result is None else looked.result.outcomes
    return Report(
        command="lint",
        options={"model": looked.model, "target": looked.found.target},
        models=looked.rows or (file_row("original", looked.model),),
        steps=tuple(Step.of(outcome) for outcome in outcomes),
        diagnostics=(*looked.told, *(item.diagnostic for item in looked.left.findings)),
        notes=(_conversions(looked.found), *_left_note(looked)),
    )


def _left_note(looked: Looked) -> tuple[str, ...]:
    return () if looked.result is None else (f"mended: {_conversions(looked.left)}",)


def _conversions(found: LintReport) -> str:
    if not found.quantized:
        return "the model is not quantized"
    if found.conversions is None:
        return "the target's provider was not asked what it makes of the model"
    return f"{found.conversions} Q/DQ run as nodes of their own"


def _draw(console: Console, looked: Looked) -> None:
    from rich.text import Text

    _findings(console, looked.found)
    if looked.result is None:
        return
    console.print()
    for line in looked.told:
        kept = "kept" if line.code == "FIX101" else "taken back" if line.severity == "skip" else ""
        console.print(Text(f"{kept}: {line.message}" if kept else str(line)))
    console.print()
    console.print(Text(f"left in {looked.output}:"))
    _findings(console, looked.left)
    console.print()
    from onnxcomp.report import Report
    from onnxcomp.report.text import models_table

    console.print(models_table(Report("lint", models=looked.rows), console))


def _findings(console: Console, found: LintReport) -> None:
    from onnxcomp.report.text import table

    by_code: dict[str, list[Found]] = {}
    for item in found.findings:
        by_code.setdefault(item.diagnostic.code, []).append(item)
    rows = [
        (
            code,
            str(items[0].diagnostic.severity),
            items[0].title,
            str(len(items)),
            str(sum(item.fixable for item in items) or "-"),
        )
        for code, items in by_code.items()
    ]
    if rows:
        columns = ("code", "severity", "what", "found", "fixable")
        console.print(table(columns, rows, console, numbers=2))
        console.print()
    for items in by_code.values():
        _examples(console, items)
    console.print(f"{_conversions(found)}; {len(found.findings)} findings")


def _examples(console: Console, items: list[Found]) -> None:
    from rich.text import Text

    shown = items if settings().verbose else items[:SHOWN]
    for item in shown:
        text = "".join(c if c.isprintable() else "?" for c in str(item.diagnostic))
        console.print(Text(text))
    if len(shown) < len(items):
        console.print(f"... and {len(items) - len(shown)} more {items[0].diagnostic.code}")
