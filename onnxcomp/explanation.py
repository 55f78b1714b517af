"""What a run did and what it nearly did, by pass and rule, for a person who asks why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.diagnostics import Location, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.ir import Model, ir
    from onnxcomp.ir.trace import Change
    from onnxcomp.passbase import Outcome


@dataclass(frozen=True)
class Rewrite:
    """Applications of one rule that turned the same operators into the same others.

    Attributes:
        rule: Name of the rule; empty for what a pass without rules did.
        before: Operators that went or changed, in the order of the model.
        after: What they became. For a pass without rules both are counted: what stayed is left out.
        nodes: How many nodes more the model has by all of them.
        bytes: How many bytes of weights more.
        changes: Each application, with the names of the nodes.
    """

    rule: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    nodes: int
    bytes: int
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class PassRow:
    """All runs of one pass together.

    Attributes:
        step: The pass and its options as text.
        runs: How often it ran; `changing` of them changed the model.
        changing: How many of them changed the model.
        seconds: How long it took altogether.
        nodes: How many nodes more the model has by it.
        bytes: How many bytes of weights more.
        rewrites: What it did, the most frequent first.
        rolled_back: Why its work was taken back, for each run in which it was.
    """

    step: str
    runs: int
    changing: int
    seconds: float
    nodes: int
    bytes: int
    rewrites: tuple[Rewrite, ...]
    rolled_back: tuple[str, ...] = ()


@dataclass(frozen=True)
class NearMiss:
    """A rewrite that was left out at the end, at each place where the reason is the same.

    Attributes:
        step: The pass that would have done it.
        code: Its code; `onnxcomp explain CODE` tells more.
        why: What was in the way.
        hint: What could be done about it, if anything.
        where: The places, the largest first.
        elements: Numbers that the nodes there make together in one run, open dimensions counted as 1;
            None when it is about the model as a whole.
    """

    step: str
    code: str
    why: str
    hint: str
    where: tuple[Location, ...]
    elements: int | None


@dataclass(frozen=True)
class Explanation:
    """What was done, in the order of the passes, and what was nearly done, the most worthwhile first."""

    passes: tuple[PassRow, ...] = ()
    near_misses: tuple[NearMiss, ...] = ()

    @override
    def __str__(self) -> str:
        from onnxcomp.report.explained import lines

        return "\n".join(lines(self))


def explain(outcomes: Sequence[Outcome], model: Model) -> Explanation:
    """Sums up what passes recorded.

    Args:
        outcomes: What each run of each pass did.
        model: What they made, to tell which near-misses still hold and how much they matter.
    """
    by_step: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_step.setdefault(outcome.step, []).append(outcome)
    rows = tuple(_row(step, runs) for step, runs in by_step.items())
    return Explanation(
        rows, _near_misses({step: runs[-1] for step, runs in by_step.items()}, model)
    )


def _row(step: str, runs: Sequence[Outcome]) -> PassRow:
    changes = [change for run in runs if not run.rolled_back for change in run.changes]
    return PassRow(
        step,
        len(runs),
        sum(run.changed and not run.rolled_back for run in runs),
        sum(run.seconds for run in runs),
        sum(change.nodes for change in changes),
        sum(change.bytes for change in changes),
        _rewrites(changes),
        tuple(run.rolled_back for run in runs if run.rolled_back),
    )


def _rewrites(changes: Sequence[Change]) -> tuple[Rewrite, ...]:
    groups: dict[tuple[str, tuple[str, ...], tuple[str, ...]], list[Change]] = {}
    for change in changes:
        before, after = (_operators(places) for places in (change.before, change.after))
        key = (change.rule, before, after) if change.rule else ("", (), ())
        groups.setdefault(key, []).append(change)
    made = [
        Rewrite(
            rule,
            before if rule else _counted(alike, "before", "after"),
            after if rule else _counted(alike, "after", "before"),
            sum(change.nodes for change in alike),
            sum(change.bytes for change in alike),
            tuple(alike),
        )
        for (rule, before, after), alike in groups.items()
    ]
    return tuple(sorted(made, key=lambda found: (-len(found.changes), found.rule, found.before)))


def _operators(places: Sequence[Location]) -> tuple[str, ...]:
    return tuple(place.kind for place in places)


def _counted(changes: Sequence[Change], side: str, other: str) -> tuple[str, ...]:
    """The operators of one side that the other one does not have, as `3 Shape`, the most first."""
    count: Counter[str] = Counter()
    for change in changes:
        count.update(_operators(getattr(change, side)))
        count.subtract(_operators(getattr(change, other)))
    ranked = sorted(((number, name) for name, number in count.items()), key=_descending)
    return tuple(f"{number} {name}" for number, name in ranked if number > 0)


def _descending(item: tuple[int, str]) -> tuple[int, str]:
    return -item[0], item[1]


def _near_misses(last: Mapping[str, Outcome], model: Model) -> tuple[NearMiss, ...]:
    """What the last run of each pass left out and where it still could."""
    found: dict[tuple[str, str, str, str], list[Location]] = {}
    for step, outcome in last.items():
        for remark in outcome.diagnostics:
            if remark.severity in {Severity.SKIP, Severity.NEAR}:
                key = (step, remark.code, remark.message, remark.hint)
                found.setdefault(key, []).append(remark.where)
    if not found:
        return ()
    nodes = {Location.of(node): node for node in model.nodes()}
    weights = _Weights(model)
    made = []
    for (step, code, why, hint), places in found.items():
        kept = [place for place in dict.fromkeys(places) if _still_there(place, nodes)]
        sizes = {place: weights.of(nodes[place]) for place in kept if place in nodes}
        kept.sort(key=lambda place: -sizes.get(place, 0))
        if kept:
            total = sum(sizes.values()) if sizes else None
            made.append(NearMiss(step, code, why, hint, tuple(kept), total))
    return tuple(sorted(made, key=_worth))


def _worth(miss: NearMiss) -> tuple[float, int, str, str]:
    elements = float("inf") if miss.elements is None else miss.elements
    return -elements, -len(miss.where), miss.code, miss.why


def _still_there(place: Location, nodes: Mapping[Location, ir.Node]) -> bool:
    """Whether a place is no node that a later pass removed."""
    return not place.name or place.kind == "value" or place in nodes


class _Weights:
    """How many numbers nodes make."""

    def __init__(self, model: Model) -> None:
        from onnxcomp.analysis.facts import Facts
        from onnxcomp.analysis.shapes import Shapes

        self._shapes = Facts(model).get(Shapes())

    def of(self, node: ir.Node) -> int:
        """Elements of all outputs of a node, open dimensions counted as 1."""
        total = 0
        for value in node.outputs:
            size = 1
            for dim in self._shapes.shape(value) or ():
                size *= dim if isinstance(dim, int) else 1
            total += size
        return total
