"""`onnxcomp inspect --channels`: which channels could go, and what stands in the way."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from onnxcomp.cli.output import emit_tables
from onnxcomp.cli.settings import settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

    from onnxcomp.channel_report import ChannelReport

# Rows of a table, and names in a cell, that are shown unless all are asked for.
SHOWN, NAMED = 24, 3


def show(path: Path, dims: Mapping[str, int]) -> None:
    """Finds the groups of channels of a model and prints them."""
    from onnxcomp.channel_report import channel_report
    from onnxcomp.ir import Model

    found = channel_report(Model.load(path), dims=dims)
    document = {"model": str(path), **dataclasses.asdict(found)}
    emit_tables(lambda console: _draw(console, found), document)


def _draw(console: Console, found: ChannelReport) -> None:
    from onnxcomp.report.units import number

    share = found.reachable / found.parameters if found.parameters else 0.0
    console.print(
        f"{len(found.groups)} groups of channels; {share:.0%} of {found.parameters:,} parameters belong to one"
    )
    _groups(console, found)
    for barrier in found.barriers:
        at_stake = (
            f"{number(barrier.parameters)} parameters" if barrier.parameters else "parameters"
        )
        console.print(f"kept, {at_stake}: {barrier.reason}", markup=False)
        console.print(f"    {_some(barrier.weights)}", markup=False)


def _groups(console: Console, found: ChannelReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from onnxcomp.report.units import number

    rows = found.groups if settings().verbose else found.groups[:SHOWN]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("channels", "parameters", "flops"):
        table.add_column(name, justify="right")
    for name in ("made by", "read by", "note"):
        table.add_column(name)
    for row in rows:
        flops = "?" if row.flops is None else number(row.flops)
        texts = (_some(row.layers), _some(row.readers), "; ".join((*row.mixed, *row.scaled)))
        table.add_row(str(row.units), number(row.parameters), flops, *map(Text, texts))
    if rows:
        console.print(table)
    if len(rows) < len(found.groups):
        console.print(f"... and {len(found.groups) - len(rows)} more (--verbose shows all)")


def _some(names: Sequence[str]) -> str:
    shown = names if settings().verbose else names[:NAMED]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")
