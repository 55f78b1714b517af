"""`onnxcomp lint`: what is wrong or slow in a quantized model, and mending it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.lines import say
from onnxcomp.cli.options import MODEL, data_options, model_argument, reference_option
from onnxcomp.cli.output import emit_tables, progress, write_text
from onnxcomp.cli.settings import everywhere, settings

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.cli.options import Data
    from onnxcomp.lint import Found, LintReport
    from onnxcomp.pipeline import Result
    from onnxcomp.report import Report

# Findings of one code that are shown unless all are asked for.
SHOWN = 3
_SEVERITIES = ("error", "warning", "never")


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
    "--report", type=MODEL, metavar="FILE", help="Also store what was found: .json or .html."
)
@data_options
@reference_option
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
    report: Path | None,
    data: Data,
    reference: Path | None,
) -> int:
    """Finds what is wrong or slow in a quantized MODEL.

    From whatever tool it comes: scales along the wrong axis, int8 activations that fall back to float, Q and DQ that the provider
    leaves as nodes of their own, each with the reason, Conv quantized in every run, and more;
    `onnxcomp explain LNT101` tells what a code means. With --fix, what can be mended is, and is kept
    where it is measured to be faster (--data gives the samples for that).
    """
    _check_places(model, output, report, fix=fix)
    from onnxcomp.lint import lint as look
    from onnxcomp.stages import stage

    with stage("looking at the model"):
        found = look(model, target=target, provider_graph=provider_graph)
    result, left = None, found
    if fix and output is not None:
        result = _fixed(model, target, data, reference, simplify=simplify)
        with stage("looking at the result"):
            left = look(result.model, target=target, provider_graph=provider_graph)
        result.model.save(output)
    document = _document(model, found, left, result, output)
    passed = fail_on == "never" or not left.at_least(_severity(fail_on))
    document["passed"] = passed
    emit_tables(lambda console: _draw(console, found, left, result, output), document)
    if report is not None:
        write_text(report, _stored(report, document, _report(model, found, left, result, output)))
    if not passed:
        count = len(left.at_least(_severity(fail_on)))
        what = "error" if fail_on == "error" else "error or warning"
        say(f"{count} {what}{'s' if count > 1 else ''} left", prefix="missed: ")
    return 0 if passed else 3


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


def _fixed(
    model: Path, target: str, data: Data, reference: Path | None, *, simplify: bool
) -> Result:
    from onnxcomp.ir import Model
    from onnxcomp.optimization import SIMPLIFY
    from onnxcomp.pipeline import Pipeline

    source = Model.load(model)
    samples = data.load(source.signature().inputs)
    steps = f"{SIMPLIFY},fix-quantization" if simplify else "fix-quantization"
    pipeline = Pipeline.parse(steps, target=target)
    return pipeline.run(
        source, samples=samples, threads=1, progress=progress(), reference=reference
    )


def _document(
    model: Path, found: LintReport, left: LintReport, result: Result | None, output: Path | None
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "command": "lint",
        "model": str(model),
        "target": found.target,
        "quantized": found.quantized,
        "conversions": found.conversions,
        "counts": found.counts,
        "findings": [_plain(item) for item in found.findings],
    }
    if result is not None:
        document["fixed"] = {
            "model": str(output),
            "conversions": left.conversions,
            "counts": left.counts,
            "findings": [_plain(item) for item in left.findings],
            "remarks": [_remark(line) for line in result.diagnostics if line.code[:3] == "FIX"],
        }
    return document


def _plain(found: Found) -> dict[str, Any]:
    return {
        **dataclasses.asdict(found.diagnostic),
        "title": found.title,
        "fixable": found.fixable,
    }


def _remark(diagnostic: Any) -> dict[str, Any]:  # noqa: ANN401 - a Diagnostic, imported late
    return dataclasses.asdict(diagnostic)


def _report(
    model: Path, found: LintReport, left: LintReport, result: Result | None, output: Path | None
) -> Report:
    from onnxcomp.report import Step
    from onnxcomp.report.rows import file_row

    rows = [file_row("original", model)]
    remarks = tuple(item.diagnostic for item in found.findings)
    if result is None or output is None:
        return _as_report(model, found, rows, remarks, ())
    rows.append(file_row("fixed", output))
    told = tuple(line for line in result.diagnostics if line.code[:3] == "FIX")
    remarks = (*told, *(item.diagnostic for item in left.findings))
    steps = tuple(Step.of(outcome) for outcome in result.outcomes)
    made: Report = _as_report(model, found, rows, remarks, steps)
    return made


def _as_report(
    model: Path,
    found: LintReport,
    rows: list[Any],
    remarks: tuple[Any, ...],
    steps: tuple[Any, ...],
) -> Report:
    from onnxcomp.report import Report

    return Report(
        command="lint",
        options={"model": model, "target": found.target},
        models=tuple(rows),
        steps=steps,
        diagnostics=remarks,
        notes=(_conversions(found),),
    )


def _stored(report: Path, document: dict[str, Any], record: Report) -> str:
    if report.suffix.lower() in {".html", ".htm"}:
        from onnxcomp.report.html import to_html

        return to_html(record)
    import json

    from onnxcomp.report.record import plain

    return json.dumps(plain(document), indent=2, allow_nan=False) + "\n"


def _conversions(found: LintReport) -> str:
    if not found.quantized:
        return "the model is not quantized"
    if found.conversions is None:
        return "the target's provider was not asked what it makes of the model"
    return f"{found.conversions} Q/DQ run as nodes of their own"


def _draw(
    console: Console,
    found: LintReport,
    left: LintReport,
    result: Result | None,
    output: Path | None,
) -> None:
    _findings(console, found)
    if result is None:
        return
    console.print()
    for line in result.diagnostics:
        if line.code[:3] == "FIX":
            word = (
                "kept" if line.code == "FIX101" else "not kept" if line.severity == "skip" else ""
            )
            console.print(f"{line.code} {word}: {line.message}" if word else str(line))
    console.print()
    console.print(f"left in {output}:")
    _findings(console, left)


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
