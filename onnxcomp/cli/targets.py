"""`onnxcomp targets`: where models can run, what is fast there, and where that was read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.output import emit, emit_tables
from onnxcomp.cli.settings import everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from onnxcomp.targets import Refusal, Target
    from onnxcomp.targets.table import Number, Row

_STYLES = {
    "units": "around every int8 operator, its outputs too",
    "inputs": "only where int8 operators read; outputs stay float",
}
_USES = {
    "compute": "computed with",
    "weights": "weights stay packed",
    "storage": "stored only",
    "no": "not taken",
}


@click.command(cls=Command)
@click.argument("name", required=False)
@everywhere
def targets(name: str | None) -> None:
    """Lists the targets, or shows what is known about one.

    Every row names its source and says how it was checked: `run` on the provider with a generated model,
    read in its code (`source`), or in its manual (`doc`).
    """
    from onnxcomp.targets import load_target, target_names

    if name is None:
        rows = [_summary(load_target(each)) for each in target_names()]
        emit_tables(lambda console: _draw(console, rows), rows)
    else:
        target = load_target(name)
        emit("\n".join(_lines(target)), {**_summary(target), **target.model_dump(mode="json")})


def _summary(target: Target) -> dict[str, Any]:
    from onnxcomp.targets.features import runs_here

    return {
        "name": target.name,
        "here": runs_here(target),
        "int8": target.int8,
        "summary": target.summary,
    }


def _draw(console: Console, rows: list[dict[str, Any]]) -> None:
    from onnxcomp.report.text import table

    cells = [(row["name"], _yes(row["here"]), _yes(row["int8"]), row["summary"]) for row in rows]
    console.print(table(("target", "here", "int8", "what it wants"), cells, console))


def _yes(value: object) -> str:
    return "yes" if value else "no"


def _lines(target: Target) -> Iterator[str]:
    yield f"{target.name}: {target.summary}"
    yield ""
    yield from _general(target)
    for title, rows in _sections(target).items():
        if rows:
            yield from ("", title, *rows)
    yield from ("", "Sources:")
    yield from (f"  {key}: {address}" for key, address in sorted(target.sources.items()))


def _sections(target: Target) -> dict[str, list[str]]:
    return {
        "In int8:": [
            _row(row, " -> ".join(filter(None, (", ".join(row.types), ", ".join(row.becomes)))))
            for row in target.family
        ],
        "Gone into the Q behind it:": [_row(row, ", ".join(row.types)) for row in target.absorbed],
        "In float:": [_row(row, ", ".join(row.types), row.why) for row in target.float],
        "Number formats:": [
            _row(row, f"{row.name}: {_USES[row.use]}", row.form) for row in target.format
        ],
        "Not taken, or not as meant:": [_refusal(row) for row in target.refuse],
    }


def _refusal(row: Refusal) -> str:
    where = f" ({', '.join(row.types)})" if row.types else ""
    text = f"{row.why}; instead: {row.instead}" if row.instead else row.why
    return _row(row, f"{row.rule}: {row.effect}{where}", text)


def _general(target: Target) -> Iterator[str]:
    if not target.int8:
        yield f"Nothing in int8: {target.instead}."
        return
    yield f"Q/DQ: {_STYLES[target.style]}"
    yield f"Activations: {_number(target.activation)}"
    yield f"Weights: {_number(target.weight)}"
    yield f"Biases: {target.bias.dtype}"
    yield f"Channels: multiples of {target.multiple_of}"


def _number(number: Number) -> str:
    parts = [number.dtype, "symmetric" if number.symmetric else "asymmetric"]
    if number.bits is not None:
        parts.append(f"{number.bits} bits of it")
    if number.per_channel:
        parts.append("a scale for each channel")
    if number.also:
        parts.append(f"or {', '.join(number.also)}")
    return ", ".join(parts)


def _row(row: Row, head: str, text: str = "") -> str:
    lines = [f"  {head}", *(f"      {each}" for each in (text, row.note) if each)]
    return "\n".join([*lines, f"      [{row.checked}: {row.source}]"])
