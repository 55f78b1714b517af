"""`onnxcomp passes`: what is installed, and what each pass does."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command, Group
from onnxcomp.cli.output import emit, emit_tables
from onnxcomp.cli.settings import everywhere

if TYPE_CHECKING:
    from rich.console import Console

    from onnxcomp.passbase import Pass
    from onnxcomp.registry import PassInfo


@click.group(cls=Group, invoke_without_command=True)
@everywhere
@click.pass_context
def passes(ctx: click.Context) -> None:
    """Lists the installed passes, or shows one."""
    if ctx.invoked_subcommand is not None:
        return
    from onnxcomp import registry

    rows = [_summary(name, info) for name, info in registry.passes().items()]
    emit_tables(lambda console: _draw(console, rows), rows)


@passes.command(cls=Command)
@click.argument("name")
@everywhere
def show(name: str) -> None:
    """Prints what the pass NAME does, its options and the codes it reports."""
    from onnxcomp import registry

    found = registry.get(name)
    emit(_text(found), _document(found, registry.passes()[name]))


def _summary(name: str, info: PassInfo) -> dict[str, Any]:
    problem = info.problem()
    if problem:
        return {"name": name, "distribution": info.distribution, "error": problem}
    found = info.load()
    return {
        "name": name,
        "distribution": info.distribution,
        "lossless": found.lossless,
        "summary": _first_line(found),
    }


def _first_line(found: type[Pass]) -> str:
    return (inspect.getdoc(found) or "").split("\n\n")[0].replace("\n", " ")


def _draw(console: Console, rows: list[dict[str, Any]]) -> None:
    from onnxcomp.report.text import table

    cells = [
        (
            row["name"],
            "" if "error" in row else "yes" if row["lossless"] else "no",
            f"broken: {row['error']}" if "error" in row else row["summary"],
            row["distribution"],
        )
        for row in rows
    ]
    console.print(table(("pass", "lossless", "what it does", "from"), cells, console))


def _text(found: type[Pass]) -> str:
    from onnxcomp.cli.pass_options import default_text, type_text

    lines = [found.name, "", inspect.getdoc(found) or "", ""]
    lines.append(f"Lossless: {'yes' if found.lossless else 'no'}")
    if found.model_fields:
        lines += ["", "Options:"]
    texts = found.option_help()
    for name, field in found.model_fields.items():
        default = default_text(field)
        head = f"  {name.replace('_', '-')}={type_text(field.annotation)}"
        lines.append(f"{head}  (default: {default})" if default else head)
        lines += [f"      {line}" for line in texts[name].splitlines()]
    if found.codes:
        lines += ["", "Codes:"]
        lines += [f"  {code}  {meaning}" for code, meaning in sorted(found.codes.items())]
    return "\n".join(lines)


def _document(found: type[Pass], info: PassInfo) -> dict[str, Any]:
    return {
        "name": found.name,
        "distribution": info.distribution,
        "lossless": found.lossless,
        "help": inspect.getdoc(found) or "",
        "options": found.model_json_schema().get("properties", {}),
        "codes": dict(sorted(found.codes.items())),
    }
