"""An explanation as lines of text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxcomp.report import units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxcomp.diagnostics import Location
    from onnxcomp.explanation import Explanation, NearMiss, PassRow, Rewrite

# Unless everything is asked for: places of one rewrite, forms of one pass, near-misses.
SHOWN_PLACES, SHOWN_REWRITES, SHOWN_MISSES = 3, 8, 8
_QUOTED = re.compile(r'"[^"]*"')
# Operators on one side of an arrow; more than that are counted.
SHOWN_OPERATORS = 8


def lines(explanation: Explanation, *, verbose: bool = False) -> list[str]:
    """Returns what was done and what was nearly done, indented by pass and rule."""
    return [*done_lines(explanation, verbose=verbose), *near_lines(explanation, verbose=verbose)]


def done_lines(explanation: Explanation, *, verbose: bool = False) -> list[str]:
    """Returns what each pass did; passes that did nothing are left out."""
    found = []
    for row in explanation.passes:
        if row.rewrites or row.rolled_back:
            found += [_head(row), *_rewrite_lines(row, verbose=verbose)]
            found += [f"  taken back: {reason}" for reason in dict.fromkeys(row.rolled_back)]
    return ["What was done:", *(f"  {line}" for line in found)] if found else []


def _head(row: PassRow) -> str:
    parts = [_difference(row.nodes, "node"), _bytes(row.bytes), units.duration(row.seconds)]
    return f"{row.step}: {', '.join(part for part in parts if part)}"


def _difference(count: int, what: str) -> str:
    if not count:
        return ""
    return f"{abs(count)} {what}{'s' * (abs(count) != 1)} {'more' if count > 0 else 'less'}"


def _bytes(count: int) -> str:
    return f"{units.size(abs(count))} {'more' if count > 0 else 'less'}" if count else ""


def _rewrite_lines(row: PassRow, *, verbose: bool) -> Iterator[str]:
    shown = row.rewrites if verbose else row.rewrites[:SHOWN_REWRITES]
    for rewrite in shown:
        if not rewrite.rule:
            yield from _counted_lines(rewrite, verbose=verbose)
            continue
        yield f"  {len(rewrite.changes)} x {rewrite.rule}: {_arrow(rewrite)}"
        places = [_names(change.before or change.after) for change in rewrite.changes]
        yield f"      at {_some(places, SHOWN_PLACES, verbose=verbose, separator='; ')}"
    if len(shown) < len(row.rewrites):
        rest = sum(len(rewrite.changes) for rewrite in row.rewrites[len(shown) :])
        yield f"  ... and {rest} more rewrites of other operators (--verbose shows all)"


def _counted_lines(rewrite: Rewrite, *, verbose: bool) -> Iterator[str]:
    for word, operators in (("gone", rewrite.before), ("new", rewrite.after)):
        if operators:
            yield f"  {word}: {_some(operators, SHOWN_OPERATORS, verbose=verbose)}"
    if not rewrite.before and not rewrite.after:
        yield "  weights" if rewrite.bytes else "  connections"


def _arrow(rewrite: Rewrite) -> str:
    before, after = (
        _some(_packed(side), SHOWN_OPERATORS, separator=" + ") or "nothing"
        for side in (rewrite.before, rewrite.after)
    )
    return f"{before} -> {after}"


def _packed(operators: Sequence[str]) -> list[str]:
    """Writes what repeats as `3 Cast`; constants that come along are not worth a word."""
    found: list[tuple[str, int]] = []
    for name in operators:
        if name == "Constant":
            continue
        if found and found[-1][0] == name:
            found[-1] = (name, found[-1][1] + 1)
        else:
            found.append((name, 1))
    return [name if count == 1 else f"{count} {name}" for name, count in found]


def _names(places: Sequence[Location]) -> str:
    from onnxcomp.errors import quoted

    named = [place for place in places if place.kind != "Constant"] or places
    names = [quoted(place.name, 60) for place in named if place.name]
    shown = names if len(names) <= SHOWN_PLACES else [names[0], "...", names[-1]]
    return " + ".join(shown)


def _some(texts: Sequence[str], count: int, *, verbose: bool = False, separator: str = ", ") -> str:
    if verbose or len(texts) <= count:
        return separator.join(texts)
    return f"{separator.join(texts[:count])} and {len(texts) - count} more"


def near_lines(explanation: Explanation, *, verbose: bool = False) -> list[str]:
    """Returns what was left out at the end, and why, the most worthwhile first."""
    groups: dict[object, list[NearMiss]] = {}
    for miss in explanation.near_misses:
        # Reasons that differ in names only are one, unless everything is asked for.
        key = miss if verbose else (miss.code, _QUOTED.sub("", miss.why), miss.hint)
        groups.setdefault(key, []).append(miss)
    alike = list(groups.values())
    shown = alike if verbose else alike[:SHOWN_MISSES]
    found = [line for group in shown for line in _near_lines(group, verbose=verbose)]
    if len(shown) < len(alike):
        rest = sum(len(miss.where) for group in alike[len(shown) :] for miss in group)
        found.append(f"... and {rest} more (--verbose shows all)")
    return ["What was nearly done:", *(f"  {line}" for line in found)] if found else []


def _near_lines(alike: Sequence[NearMiss], *, verbose: bool) -> list[str]:
    first = alike[0]
    places = [str(place) for place in first.where]
    if len(places) == 1:
        found = [f"{first.code} {places[0]}: {first.why}"]
    else:
        shown = _some(places, SHOWN_PLACES, verbose=verbose, separator="; ")
        found = [f"{first.code} {len(places)} x {first.why}", f"    at {shown}"]
    if len(alike) > 1:
        found.append(f"    likewise at {sum(len(miss.where) for miss in alike[1:])} more")
    return [*found, *([f"    hint: {first.hint}"] if first.hint else [])]
