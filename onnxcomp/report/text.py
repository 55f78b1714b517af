"""Reports as tables for the terminal, or for a log file."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxcomp.diagnostics import Severity
from onnxcomp.report import explained, units

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import TextIO

    from rich.console import RenderableType

    from onnxcomp.diagnostics import Diagnostic
    from onnxcomp.report.record import Contribution, Report, Step

# Below this width tables become lists.
NARROW = 60
# Width where there is no terminal to ask.
DEFAULT_WIDTH = 120
# Remarks of one code that are shown unless all are asked for.
SHOWN_PER_CODE = 2
# An explanation says these better.
EXPLAINED = frozenset({Severity.SKIP, Severity.NEAR})
# A rule under the headings and nothing else.
_ASCII_LINES = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def draw_on(stream: TextIO, draw: Callable[[Console], None]) -> None:
    """Draws on a terminal in its width and colours, on anything else as plain lines.

    Args:
        stream: Where to.
        draw: Gets the console, which prints text as it is: no markup, no emoji.
    """
    if stream.isatty():
        draw(_console(stream))
        return
    stream.write(plain_text(draw, ascii_only=not _is_unicode(stream)))


def plain_text(
    draw: Callable[[Console], None], *, width: int = DEFAULT_WIDTH, ascii_only: bool = False
) -> str:
    """Returns what is drawn as lines of text without colours and without blanks at their ends."""
    stream = _AsciiText() if ascii_only else io.StringIO()
    draw(_console(stream, width))
    return "".join(f"{line.rstrip()}\n" for line in stream.getvalue().splitlines())


def to_text(report: Report, *, width: int = DEFAULT_WIDTH, verbose: bool = False) -> str:
    """Returns a report as plain text.

    Args:
        report: What to print.
        width: Columns to stay within.
        verbose: Print every remark, not the first few of each kind.
    """
    text = plain_text(lambda console: render(report, console, verbose=verbose), width=width)
    return text.rstrip("\n")


def _console(stream: TextIO, width: int | None = None) -> Console:
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


class _AsciiText(io.StringIO):
    """Makes the console believe that letters beyond ASCII cannot be shown."""

    encoding = "ascii"


def _is_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


def render(report: Report, console: Console, *, verbose: bool = False) -> None:
    """Prints a report on a console."""
    if report.models:
        console.print(models_table(report, console))
        console.print()
    if report.contributions:
        console.print(contributions_table(report.contributions, console))
        console.print()
    explanation = report.explanation
    if explanation is not None and any(step.changed or step.rolled_back for step in report.steps):
        _print_explanation(explained.done_lines(explanation, verbose=verbose), console)
    elif any(step.changed or step.rolled_back or verbose for step in report.steps):
        console.print(steps_table(report, console, verbose=verbose))
        console.print()
    elif report.steps:
        console.print("No pass found anything to change.")
    for gate in report.gates:
        word = "kept" if gate.met else "MISSED"
        line = f"limit {word}: {gate.name} {gate.value:.4g}, allowed {gate.limit:.4g}"
        console.print(Text(line, style="" if gate.met else "bold red"))
    remarked = report.diagnostics
    if explanation is not None:
        _print_explanation(explained.near_lines(explanation, verbose=verbose), console)
        remarked = tuple(found for found in remarked if found.severity not in EXPLAINED)
    for line in remarks(remarked, verbose=verbose):
        console.print(Text(line, style="yellow" if " warning: " in line else "dim"))
    for note in report.notes:
        console.print(Text(note))


def _print_explanation(lines: Sequence[str], console: Console) -> None:
    for line in lines:
        console.print(_indented(line, console))
    if lines:
        console.print()


def _indented(line: str, console: Console) -> RenderableType:
    """Wraps a line so that what follows stands under its beginning."""
    from rich.padding import Padding

    text = line.lstrip(" ")
    # A narrow terminal has no room for more.
    return Padding(Text(text), (0, 0, 0, min(len(line) - len(text), console.width // 4)))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], console: Console, *, numbers: int = 0
) -> Table:
    """Makes a table that survives any terminal: cells wrap, none is cut off.

    Args:
        columns: Headings.
        rows: Cells, as plain text.
        console: Where it will be printed, which decides on the lines around it.
        numbers: How many columns from the right are numbers, and so aligned to the right.
    """
    lines = box.SIMPLE_HEAD if _draws_lines(console) else _ASCII_LINES
    made = Table(box=lines, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for index, name in enumerate(columns):
        right = index >= len(columns) - numbers
        made.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def _draws_lines(console: Console) -> bool:
    return console.is_terminal and not console.options.ascii_only


def models_table(report: Report, console: Console) -> RenderableType:
    """Returns the table of models; columns that nobody measured are left out."""
    metrics = list(dict.fromkeys(name for row in report.models for name in row.metrics))
    columns = {
        "model": [row.label for row in report.models],
        "size": [units.size(row.bytes) for row in report.models],
        "nodes": [units.MISSING if r.nodes is None else str(r.nodes) for r in report.models],
        "latency": [units.latency(row.latency) for row in report.models],
        "speed": [units.ratio(row.ratio) for row in report.models],
        "memory": [units.size(row.peak_memory) for row in report.models],
        **{name: [units.metric(r.metrics.get(name)) for r in report.models] for name in metrics},
    }
    used = {
        name: cells
        for name, cells in columns.items()
        if any(cell != units.MISSING for cell in cells)
    }
    if sum(max(map(len, (name, *cells))) + 2 for name, cells in used.items()) - 2 > console.width:
        return _as_list(used)
    rows = zip(*used.values(), strict=True)
    return table(list(used), rows, console, numbers=len(used) - 1)


def _as_list(columns: dict[str, list[str]]) -> Text:
    labels, *others = columns.items()
    lines = []
    for index, label in enumerate(labels[1]):
        lines.append(label)
        lines += [f"  {name}: {cells[index]}" for name, cells in others]
    return Text("\n".join(lines))


def contribution_cells(
    found: Sequence[Contribution],
) -> tuple[list[str], list[list[str]]]:
    """Returns headings and cells of the table of what each step added; as text."""
    metrics = list(dict.fromkeys(name for each in found for name in each.metrics))
    columns = ["step", "speed", "size", *metrics]
    rows = [
        [
            each.step,
            units.factor(each.speed),
            units.factor(each.size),
            *(units.change(each.metrics.get(name)) for name in metrics),
        ]
        for each in found
    ]
    return columns, rows


def contributions_table(found: Sequence[Contribution], console: Console) -> RenderableType:
    """Returns the table of what each step added to the one before it."""
    columns, rows = contribution_cells(found)
    if console.width < NARROW:
        texts = zip(columns, zip(*rows, strict=True), strict=True)
        return _as_list({name: list(cells) for name, cells in texts})
    return table(columns, rows, console, numbers=len(columns) - 1)


def steps_table(report: Report, console: Console, *, verbose: bool = False) -> RenderableType:
    """Returns the table of passes: what each changed, and what it cost.

    A pass that ran several times is one row, unless everything is asked for.
    """
    groups: dict[str, list[Step]] = {}
    for number, step in enumerate(report.steps):
        groups.setdefault(f"{step.step} {number}" if verbose else step.step, []).append(step)
    rows = []
    for steps in groups.values():
        if verbose or any(step.changed or step.rolled_back for step in steps):
            taken = units.duration(sum(step.seconds for step in steps))
            rows.append((steps[0].step, _done(steps), taken))
    if console.width < NARROW:
        return Text("\n".join(f"{name}: {done} ({taken})" for name, done, taken in rows))
    return table(("pass", "what it did", "time"), rows, console, numbers=1)


def _done(steps: Sequence[Step]) -> str:
    """Returns what runs of one pass did together."""
    total: Counter[str] = Counter()
    for step in steps:
        if not step.rolled_back:
            total.update(step.stats)
    texts = [f"{count} {what}" for what, count in sorted(total.items())]
    texts += [f"taken back: {step.rolled_back}" for step in steps if step.rolled_back]
    return ", ".join(texts) or units.MISSING


def remarks(diagnostics: Sequence[Diagnostic], *, verbose: bool = False) -> list[str]:
    """Returns one line per remark, warnings first; of many alike only the first few."""
    order = list(Severity)
    ranked = sorted(diagnostics, key=lambda remark: order.index(remark.severity))
    by_code: dict[str, list[Diagnostic]] = {}
    near = 0
    for remark in ranked:
        if verbose or remark.severity not in {Severity.NOTE, Severity.NEAR}:
            by_code.setdefault(remark.code, []).append(remark)
        near += remark.severity is Severity.NEAR
    lines = []
    for code, remarks_of_code in by_code.items():
        # A pass that ran again says the same again.
        alike = list(dict.fromkeys(str(remark) for remark in remarks_of_code))
        shown = len(alike) if verbose else min(SHOWN_PER_CODE, len(alike))
        lines += alike[:shown]
        if shown < len(alike):
            lines.append(f"{code} ... and {len(alike) - shown} more (--verbose shows all)")
    if near and not verbose:
        rewrites = "1 rewrite" if near == 1 else f"{near} rewrites"
        lines.append(f"{rewrites} nearly applied: --explain tells which, and what was in the way")
    return lines
