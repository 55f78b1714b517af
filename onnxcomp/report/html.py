"""Reports as one HTML file that needs nothing else: no scripts, no fonts, nothing from elsewhere."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from onnxcomp.report import units
from onnxcomp.report.record import plain
from onnxcomp.report.text import EXPLAINED, contribution_cells, remarks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from onnxcomp.explanation import Explanation, NearMiss, PassRow, Rewrite
    from onnxcomp.ir.trace import Change
    from onnxcomp.report.record import ModelRow, Report

# Places of one rewrite that are written out; the data at the end of the page has all.
SHOWN_PLACES = 200
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; --mark: #2a7ae2; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 1px solid var(--line); font-weight: 600; }
td { border-bottom: 1px solid var(--line); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.soft { color: var(--soft); } .missed { color: #c22; font-weight: 600; }
code, .names { font: 13px/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
details > summary { cursor: pointer; } details ul { margin: .2rem 0; padding-left: 1.2rem; }
.bar { display: inline-block; height: .6rem; background: var(--mark); border-radius: 2px; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def to_html(report: Report) -> str:
    """Returns a page that shows a report, and holds it as JSON in an element with the id `report`.

    Args:
        report: What to show. Names in it may come from anybody; they are escaped.

    Returns:
        The page, in plain ASCII.
    """
    body = "\n".join(part for part in _parts(report) if part)
    # Within a script element nothing is escaped, but `<` may not end it.
    data = report.to_json().replace("<", "\\u003c")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>onnxcomp {_text(report.command)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f'<body>\n{body}\n<script type="application/json" id="report">\n{data}\n</script>\n'
        "</body>\n</html>\n"
    )
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _parts(report: Report) -> Iterator[str]:
    yield f"<h1>onnxcomp {_text(report.command)}</h1>"
    source = report.options.get("model")
    took = f"in {units.duration(report.seconds)}" if report.seconds else ""
    about = " ".join(
        text for text in (f"<code>{_text(source)}</code>" if source else "", took) if text
    )
    yield f"<p>{about}</p>" if about else ""
    yield _section("Models", _models(report.models))
    yield _section("What each step added", _contributions(report))
    yield _section("Limits", _limits(report))
    if report.explanation is not None:
        yield _section("What was done", _done(report.explanation))
        yield _section("What was nearly done", _near(report.explanation.near_misses))
    else:
        yield _section("Passes", _steps(report))
    told = EXPLAINED if report.explanation is not None else ()
    left = [remark for remark in report.diagnostics if remark.severity not in told]
    yield _section("Remarks", _list(remarks(left, verbose=True)))
    yield _section("Notes", _list(report.notes))
    yield _section("How to repeat this", _repeat(report))


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>\n{content}" if content else ""


def _text(value: object) -> str:
    """What may stand between tags; control characters become question marks."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in str(value))
    return escape(shown)


def _list(texts: Iterable[str]) -> str:
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    return f"<ul>{items}</ul>" if items else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: int = 0) -> str:
    """A table; cells are HTML already."""
    if not rows:
        return ""

    def line(tag: str, cells: Sequence[str]) -> str:
        right = len(cells) - numbers
        made = (
            f'<{tag} class="number">{cell}</{tag}>' if index >= right else f"<{tag}>{cell}</{tag}>"
            for index, cell in enumerate(cells)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f"<table>\n<thead>{line('th', columns)}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _models(rows: Sequence[ModelRow]) -> str:
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    columns = ["model", "", "size", "nodes", "latency", "speed", "memory", *map(_text, metrics)]
    largest = max((row.bytes or 0 for row in rows), default=0)
    cells = [
        [
            _text(row.label),
            _bar((row.bytes or 0) / largest if largest else 0),
            units.size(row.bytes),
            units.MISSING if row.nodes is None else str(row.nodes),
            units.latency(row.latency),
            _text(units.ratio(row.ratio)),
            units.size(row.peak_memory),
            *(units.metric(row.metrics.get(name)) for name in metrics),
        ]
        for row in rows
    ]
    used = [
        index
        for index in range(len(columns))
        if index < 3 or any(row[index] != units.MISSING for row in cells)
    ]
    picked = [[row[index] for index in used] for row in cells]
    return _table([columns[index] for index in used], picked, numbers=len(used) - 2)


def _contributions(report: Report) -> str:
    columns, rows = contribution_cells(report.contributions)
    cells = [[_text(cell) for cell in row] for row in rows]
    return _table([_text(name) for name in columns], cells, numbers=len(columns) - 1)


def _bar(share: float) -> str:
    return f'<span class="bar" style="width: {share * 8:.2f}rem" title="{share:.1%}"></span>'


def _limits(report: Report) -> str:
    rows = [
        [
            _text(gate.name),
            f"{gate.value:.4g}",
            f"{gate.limit:.4g}",
            "kept" if gate.met else '<span class="missed">missed</span>',
        ]
        for gate in report.gates
    ]
    return _table(("limit", "value", "allowed", ""), rows, numbers=3)


def _steps(report: Report) -> str:
    rows = []
    for step in report.steps:
        if not step.changed and not step.rolled_back:
            continue
        done = ", ".join(f"{count} {_text(what)}" for what, count in sorted(step.stats.items()))
        if step.rolled_back:
            done = f'<span class="missed">taken back: {_text(step.rolled_back)}</span>'
        rows.append([f"<code>{_text(step.step)}</code>", done, units.duration(step.seconds)])
    return _table(("pass", "what it did", "time"), rows, numbers=1)


def _done(explanation: Explanation) -> str:
    rows = []
    for row in explanation.passes:
        if row.rewrites or row.rolled_back:
            rows.append(_pass_cells(row))
            rows += [_rewrite_cells(rewrite) for rewrite in row.rewrites]
    columns = ("pass and rule", "operators", "times", "nodes", "weights", "time")
    return _table(columns, rows, numbers=4)


def _pass_cells(row: PassRow) -> list[str]:
    back = "".join(
        f'<br><span class="missed">taken back: {_text(reason)}</span>'
        for reason in dict.fromkeys(row.rolled_back)
    )
    return [
        f"<strong>{_text(row.step)}</strong>{back}",
        "",
        "",
        _signed(row.nodes),
        _signed_size(row.bytes),
        units.duration(row.seconds),
    ]


def _rewrite_cells(rewrite: Rewrite) -> list[str]:
    if rewrite.rule:
        arrow = f"{_operators(rewrite.before)} &rarr; {_operators(rewrite.after)}"
        name, times = _text(rewrite.rule), str(len(rewrite.changes))
    else:
        sides = (("gone", rewrite.before), ("new", rewrite.after))
        arrow = "; ".join(f"{word}: {_text(', '.join(side))}" for word, side in sides if side)
        name, times = '<span class="soft">together</span>', ""
    return [
        name,
        _folded(arrow or "weights or connections", [_change(each) for each in rewrite.changes]),
        times,
        _signed(rewrite.nodes),
        _signed_size(rewrite.bytes),
        "",
    ]


def _operators(names: Sequence[str]) -> str:
    return _text(" + ".join(names)) or '<span class="soft">nothing</span>'


def _change(change: Change) -> str:
    sides = (change.before[:SHOWN_PLACES], change.after[:SHOWN_PLACES])
    before, after = (", ".join(str(place) for place in side) for side in sides)
    return f"{_text(before or 'nothing')} &rarr; {_text(after or 'nothing')}"


def _folded(head: str, items: Sequence[str]) -> str:
    """A line that opens to a list; both are HTML already."""
    shown = "".join(f'<li class="names">{item}</li>' for item in items[:SHOWN_PLACES])
    if len(items) > SHOWN_PLACES:
        shown += f"<li>and {len(items) - SHOWN_PLACES} more</li>"
    return f"<details><summary>{head}</summary><ul>{shown}</ul></details>" if items else head


def _near(misses: Sequence[NearMiss]) -> str:
    rows = []
    for miss in misses:
        hint = f'<br><span class="soft">{_text(miss.hint)}</span>' if miss.hint else ""
        places = [_text(place) for place in miss.where]
        head = places[0] if len(places) == 1 else f"{len(places)} places"
        where = head if len(places) == 1 else _folded(head, places)
        elements = units.number(miss.elements) if miss.elements is not None else units.MISSING
        code = f'<code>{_text(miss.code)}</code><br><span class="soft">{_text(miss.step)}</span>'
        rows.append([code, f"{_text(miss.why)}{hint}", where, elements])
    return _table(("code", "what was in the way", "where", "elements"), rows, numbers=1)


def _signed(count: int) -> str:
    return f"{count:+d}".replace("-", "&minus;") if count else units.MISSING


def _signed_size(count: int) -> str:
    if not count:
        return units.MISSING
    return f"{'+' if count > 0 else '&minus;'}{units.size(abs(count))}"


def _repeat(report: Report) -> str:
    facts: list[tuple[str, Mapping[str, object]]] = [
        ("options", report.options),
        ("seeds", report.seeds),
        ("SHA-256", report.digests),
        ("packages", report.environment.packages),
    ]
    rows = [
        [_text(title), f"<code>{_text(name)}</code>", f"<code>{_text(plain(value))}</code>"]
        for title, values in facts
        for name, value in values.items()
        if value not in (None, "", ())
    ]
    for name in ("python", "platform", "processor", "cores"):
        if value := getattr(report.environment, name):
            rows.append(["machine", f"<code>{name}</code>", f"<code>{_text(value)}</code>"])
    if report.pipeline:
        rows.insert(0, ["pipeline", "", f"<code>{_text(report.pipeline)}</code>"])
    return _table(("", "", ""), rows)
