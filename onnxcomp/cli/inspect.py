"""`onnxcomp inspect`: what a model is made of."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import MODEL
from onnxcomp.cli.output import emit_tables, progress
from onnxcomp.cli.settings import everywhere, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.inspection import Fused, Inspection
    from onnxcomp.signature import TensorSpec

# Rows of a table that are shown unless all are asked for.
SHOWN = 12


def sizes(texts: tuple[str, ...]) -> dict[str, int]:
    """Reads `batch=1` and `input:2=224`."""
    found = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdecimal():
            raise click.BadParameter(f"{text!r} is not of the form NAME=SIZE", param_hint="'--dim'")
        found[name] = int(number)
    return found


@click.command(cls=Command)
@click.argument("models", type=MODEL, nargs=-1, required=True, metavar="MODEL [OTHER]")
@click.option("--diff", is_flag=True, help="Show what changed from MODEL to OTHER instead.")
@click.option(
    "--channels",
    is_flag=True,
    help="Show which channels belong together and could be removed, and what stands in the way.",
)
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=SIZE",
    help="Size of an open dimension: a symbol (batch=1) or input:axis (image:2=224). An open first dimension "
    "counts as 1.  [repeatable]",
)
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=("cpu",),
    show_default=True,
    help="Show what this execution provider makes of the graph.  [repeatable]",
)
@click.option(
    "--fusions/--no-fusions", default=True, show_default=True, help="Ask providers at all."
)
@click.option(
    "--sparsity/--no-sparsity", default=True, show_default=True, help="Count zeros in weights."
)
@everywhere
def inspect(
    *,
    models: tuple[Path, ...],
    diff: bool,
    channels: bool,
    dims: tuple[str, ...],
    providers: tuple[str, ...],
    fusions: bool,
    sparsity: bool,
) -> None:
    """Shows what MODEL is made of.

    Interface, operator sets, size and arithmetic by operator, weights by type, share of zeros, nodes
    by scope, foreign operators, and what execution providers fuse. With --diff, what changed between
    two models: operators, weights by name and contents, interface, versions, texts, functions.
    """
    if len(models) != (2 if diff else 1):
        wanted_models = "two models to compare" if diff else "one model; --diff compares two"
        raise click.UsageError(f"give {wanted_models}", click.get_current_context())
    if diff:
        if dims:
            raise click.UsageError(
                "--diff compares what is in the files: it takes no --dim",
                click.get_current_context(),
            )
        from onnxcomp.cli.inspect_diff import show

        show(*models)
        return
    (model,) = models
    wanted = sizes(dims)
    if channels:
        from onnxcomp.cli import inspect_channels

        inspect_channels.show(model, wanted)
        return
    from onnxcomp.inspection import fused_by, inspect_model
    from onnxcomp.ir import Model
    from onnxcomp.report.rows import file_row

    loaded = Model.load(model)
    found = inspect_model(loaded, dims=wanted, sparsity=sparsity, progress=progress())
    if fusions:
        fused = tuple(fused_by(model, provider) for provider in providers)
        found = dataclasses.replace(found, fused=fused)
    size = file_row("model", model).bytes
    emit_tables(lambda console: _draw(console, model, size, found), _document(model, size, found))


def _document(model: Path, size: int | None, found: Inspection) -> dict[str, object]:
    fields = {entry.name: getattr(found, entry.name) for entry in dataclasses.fields(found)}
    interface = fields.pop("signature")
    return {
        "model": str(model),
        "bytes": size,
        "inputs": [_spec_document(spec) for spec in interface.inputs],
        "outputs": [_spec_document(spec) for spec in interface.outputs],
        "flops": found.flops,
        "nodes_of_unknown_cost": found.unknown,
        **fields,
    }


def _spec_document(spec: TensorSpec) -> dict[str, object]:
    return {
        "name": spec.name,
        "dtype": None if spec.dtype is None else str(spec.dtype),
        "shape": spec.shape,
        "optional": spec.optional,
    }


def _draw(console: Console, model: Path, size: int | None, found: Inspection) -> None:
    from onnxcomp.report.units import size as in_bytes

    _facts(console, [("model", f"{model}, {in_bytes(size)}"), *_header_lines(found)])
    _operators(console, found)
    _weights(console, found)
    if len(found.scopes) > 1:
        rows = [(name or "-", str(nodes)) for name, nodes in found.scopes]
        _table(console, ("scope", "nodes"), rows, numbers=1)
    for fused in found.fused:
        _fused(console, fused)


def _header_lines(found: Inspection) -> list[tuple[str, str]]:
    from onnxcomp.errors import quoted

    header = found.header
    opsets = ", ".join(f"{domain} {version}" for domain, version in header["opsets"].items())
    lines = [
        *(("input", _spec_text(spec)) for spec in found.signature.inputs),
        *(("output", _spec_text(spec)) for spec in found.signature.outputs),
        ("opsets", f"{opsets} (IR {header['ir_version']})"),
        ("producer", header["producer"]),
        ("description", quoted(header["description"])[1:-1]),
        ("metadata", ", ".join(quoted(key)[1:-1] for key in header["metadata"])),
        ("functions", str(header["functions"] or "")),
        (
            "foreign",
            ", ".join(f"{domain}: {nodes} nodes" for domain, nodes in found.foreign.items()),
        ),
    ]
    return [(name, text) for name, text in lines if text]


def _spec_text(spec: TensorSpec) -> str:
    from onnxcomp.errors import quoted

    shape = "?" if spec.shape is None else " x ".join(_dim(dim) for dim in spec.shape)
    kind = "not a tensor" if spec.dtype is None else f"{spec.dtype} [{shape}]"
    return f"{quoted(spec.name)[1:-1]}: {kind}{' (has a default)' if spec.optional else ''}"


def _dim(dim: int | str | None) -> str:
    from onnxcomp.errors import quoted

    return "?" if dim is None else str(dim) if isinstance(dim, int) else quoted(dim, 20)[1:-1]


def _facts(console: Console, lines: Sequence[tuple[str, str]]) -> None:
    from rich.text import Text

    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        safe = "".join(letter if letter.isprintable() else "?" for letter in text)
        console.print(Text(f"{name:<{width}}  {safe}"))


def _operators(console: Console, found: Inspection) -> None:
    from onnxcomp.report.units import MISSING, number, size

    total = found.flops
    rows = [
        (
            row.operator,
            str(row.nodes),
            size(row.weights) if row.weights else MISSING,
            MISSING if row.unknown == row.nodes else number(row.flops),
            f"{row.flops / total:.1%}" if total and row.flops else MISSING,
            size(row.traffic) if row.traffic else MISSING,
        )
        for row in found.operators
    ]
    columns = ("operator", "nodes", "weights", "operations", "share", "memory traffic")
    _table(console, columns, rows, numbers=5)
    assumed = ", ".join(f"{name}={value}" for name, value in found.assumed.items())
    nodes = sum(row.nodes for row in found.operators)
    console.print()
    line = f"{nodes} nodes, {number(total)} operations for one run"
    console.print(f"{line}, with {assumed}" if assumed else line)
    if found.unknown:
        console.print(
            f"not counted: {found.unknown} nodes whose shapes or operators are not known "
            "(--dim sets open dimensions)"
        )


def _weights(console: Console, found: Inspection) -> None:
    from onnxcomp.report.units import MISSING, number, size

    rows = [
        (
            row.dtype,
            str(row.tensors),
            number(row.elements),
            size(row.bytes),
            MISSING if row.zeros != row.zeros else f"{row.zeros:.1%}",
        )
        for row in found.weights
    ]
    if rows:
        _table(console, ("weights", "tensors", "elements", "size", "zeros"), rows, numbers=4)


def _fused(console: Console, fused: Fused) -> None:
    if fused.problem:
        console.print(f"{fused.provider}: does not load the model: {fused.problem}")
        return
    changed = _changes(fused.before, fused.after)
    before, after = sum(fused.before.values()), sum(fused.after.values())
    console.print()
    console.print(f"{fused.provider} runs {after} nodes instead of {before}")
    if changed:
        _table(console, ("operator", "in the model", f"on {fused.provider}"), changed, numbers=2)


def _changes(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, str, str]]:
    # What the provider brought in comes first: that is what the others were fused into.
    names = [*(name for name in after if name not in before), *before]
    differing = [name for name in names if before.get(name, 0) != after.get(name, 0)]
    return [(name, str(before.get(name, 0)), str(after.get(name, 0))) for name in differing]


def _table(
    console: Console, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, numbers: int
) -> None:
    from onnxcomp.report.text import table

    shown = rows if settings().verbose else rows[:SHOWN]
    console.print()
    console.print(table(columns, shown, console, numbers=numbers))
    if len(shown) < len(rows):
        console.print(f"... and {len(rows) - len(shown)} more (--verbose shows all)")
