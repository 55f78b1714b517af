"""`onnxcomp inspect --diff`: what changed from one model to another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any

from onnxcomp.cli.output import emit_tables, progress
from onnxcomp.cli.settings import settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.model_diff import ModelDiff, OperatorChange
    from onnxcomp.signature import TensorSpec
    from onnxcomp.weight_diff import WeightChange

# Rows of a table that are shown unless all are asked for.
SHOWN = 12


def show(before: Path, after: Path) -> None:
    """Compares two files and prints what changed."""
    from onnxcomp.model_diff import diff_models
    from onnxcomp.report.rows import file_row

    found = diff_models(before, after, progress=progress())
    sizes = tuple(file_row("model", path).bytes or 0 for path in (before, after))
    document = {"before": str(before), "after": str(after), "bytes": sizes, **_document(found)}
    emit_tables(lambda console: _draw(console, (before, after), sizes, found), document)


def _document(found: ModelDiff) -> dict[str, Any]:
    values = {entry.name: getattr(found, entry.name) for entry in dataclasses.fields(found)}
    values["interface"] = [
        {
            "side": change.side,
            "name": change.name,
            "before": _spec(change.before),
            "after": _spec(change.after),
        }
        for change in found.interface
    ]
    return {"same": found.same, **values}


def _spec(spec: TensorSpec | None) -> dict[str, Any] | None:
    if spec is None:
        return None
    dtype = None if spec.dtype is None else str(spec.dtype)
    return {"dtype": dtype, "shape": spec.shape, "optional": spec.optional}


def _draw(console: Console, paths: Sequence[Path], sizes: Sequence[int], found: ModelDiff) -> None:
    _totals(console, paths, sizes, found)
    _header(console, found)
    columns = ("operator", "before", "after", "difference")
    if found.operators:
        _table(console, columns, [_counts(row) for row in found.operators], numbers=3)
    if found.scopes:
        counted = [(_plain(row.scope), *_counts(row)) for row in found.scopes]
        _table(console, ("scope", *columns), counted, numbers=3)
    if found.weights:
        _weights(console, found.weights)
    if found.functions:
        rows = [
            (_plain(row.name), _count(row.before), _count(row.after)) for row in found.functions
        ]
        _table(console, ("function", "nodes before", "nodes after"), rows, numbers=2)
    if found.attributes:
        changed = [
            (row.operator, row.node, row.attribute, _text(row.before), _text(row.after))
            for row in found.attributes
        ]
        cells = [tuple(_plain(cell) for cell in row) for row in changed]
        _table(console, ("operator", "node", "attribute", "before", "after"), cells, numbers=0)
    if found.rewired:
        counts = ", ".join(f"{count} {_plain(name)}" for name, count in found.rewired.items())
        console.print()
        console.print(f"nodes that read other values: {counts}")
    if found.same:
        console.print()
        console.print("Nothing changed.")


def _counts(row: OperatorChange) -> tuple[str, ...]:
    return _plain(row.operator), str(row.before), str(row.after), f"{row.difference:+d}"


def _totals(
    console: Console, paths: Sequence[Path], sizes: Sequence[int], found: ModelDiff
) -> None:
    from onnxcomp.report.text import table
    from onnxcomp.report.units import number, size

    def row(index: int) -> tuple[str, ...]:
        values = {name: pair[index] for name, pair in found.totals.items()}
        return (
            _plain(str(paths[index])),
            size(sizes[index]),
            f"{values['nodes']:.0f}",
            number(values["parameters"]),
            size(values["weight_bytes"]),
            f"{values['quantized']:.1%}",
        )

    columns = ("model", "size", "nodes", "parameters", "weights", "quantized")
    console.print(table(columns, [row(0), row(1)], console, numbers=5))


def _header(console: Console, found: ModelDiff) -> None:
    rows = [(name, _text(old), _text(new)) for name, (old, new) in found.header.items()]
    rows += [
        (f"{change.side} {change.name}", _interface(change.before), _interface(change.after))
        for change in found.interface
    ]
    if found.order:
        rows.append(("order of inputs or outputs", "", "another"))
    cells = [tuple(_plain(cell) for cell in row) for row in rows]
    if cells:
        _table(console, ("what", "before", "after"), cells, numbers=0)


def _text(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _interface(spec: TensorSpec | None) -> str:
    if spec is None:
        return "-"
    kind = str(spec).removeprefix(f"{spec.name}: ")
    return f"{kind} (has a default)" if spec.optional else kind


def _weights(console: Console, weights: Sequence[WeightChange]) -> None:
    from onnxcomp.report.units import size

    def what(row: WeightChange) -> str:
        if row.change == "renamed":
            return f"now {_plain(row.now)}"
        if row.change == "changed":
            return row.before if row.distance is None else f"{row.before}, by {row.distance:.2g}"
        return " -> ".join(text for text in (row.before, row.after) if text)

    rows = [
        (row.change, _plain(row.name), what(row), size(row.size), _more(row.bytes))
        for row in weights
    ]
    _table(console, ("weight", "name", "what", "size", "difference"), rows, numbers=2)
    kinds = Counter(row.change for row in weights)
    console.print()
    console.print(f"weights: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")


def _more(count: int) -> str:
    from onnxcomp.report.units import MISSING, size

    return f"{'+' if count > 0 else '-'}{size(abs(count))}" if count else MISSING


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _plain(text: str) -> str:
    from onnxcomp.errors import quoted

    return quoted(text, 200)[1:-1]


def _table(
    console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers: int
) -> None:
    from onnxcomp.report.text import table

    shown = rows if settings().verbose else rows[:SHOWN]
    console.print()
    console.print(table(columns, shown, console, numbers=numbers))
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more (--verbose shows all)")
