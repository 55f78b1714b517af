"""Local rewrites: a rule looks at one node, says what it found, and changes it.

A user's rule is about ten lines; see the README for one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from typing_extensions import override

from onnxcomp.diagnostics import Location
from onnxcomp.ir.ops import RELEASED, standard_op, use_count
from onnxcomp.passbase import Pass

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context

Found = TypeVar("Found")

# A rewrite that undoes another one would go on for ever; no honest sequence is this long.
MAX_APPLICATIONS_PER_NODE = 16
MANY_NEIGHBOURS = 32


@dataclass(frozen=True)
class Miss:
    """Why a rule does not apply.

    Attributes:
        why: The reason, as a sentence part: `the weight is not constant`.
        near: Whether the node nearly matched, so that a user would like to know.
        hint: What the user could do about it, if anything.
    """

    why: str
    near: bool = False
    hint: str = ""


@dataclass(frozen=True)
class Match(Generic[Found]):
    """What a rule found at a node and needs for the rewrite."""

    node: ir.Node
    found: Found


NOTHING = Miss("")


class Rule(Protocol):
    """One local rewrite.

    Attributes:
        name: Shown in statistics and near-misses.
        ops: ONNX operators to try it on.
    """

    name: str
    ops: frozenset[str]

    def match(self, node: ir.Node, facts: Facts) -> Match[Any] | Miss:
        """Looks, changes nothing. Everything that could go wrong in `apply` is ruled out here."""
        ...

    def apply(self, match: Match[Any], edit: Edit) -> None:
        """Rewrites; cannot fail."""
        ...


class RulePass(Pass):
    """A pass made of local rules, tried on every node of every scope until none applies."""

    near_miss_code: ClassVar[str] = ""

    @abstractmethod
    def rules(self) -> tuple[Rule, ...]:
        """Returns the rules, in order of preference."""

    @override
    def run(self, ctx: Context) -> None:
        by_operator: dict[str, list[Rule]] = {}
        for rule in self.rules():
            for operator in rule.ops:
                by_operator.setdefault(operator, []).append(rule)
        queue = deque(ctx.model.nodes())
        queued = set(queue)
        budget = MAX_APPLICATIONS_PER_NODE * max(len(queue), 64)
        near: dict[ir.Node, Miss] = {}
        hubs: dict[ir.Node, None] = {}
        while queue or hubs:
            if not queue:
                _requeue([found for hub in hubs for found in _neighbours(hub)], queue, queued)
                hubs.clear()
                continue
            node = queue.popleft()
            queued.discard(node)
            candidates = by_operator.get(standard_op(node) or f"{node.domain}.{node.op_type}", [])
            if not candidates or budget <= 0 or _is_gone(node):
                continue
            ctx.edit.touched.clear()
            if self._try(node, candidates, ctx, near):
                budget -= 1
                _requeue(_around(ctx.edit.touched, hubs), queue, queued)
        for node, miss in near.items():
            if self.near_miss_code and not _is_gone(node):
                ctx.near(self.near_miss_code, node, miss.why, miss.hint)

    @staticmethod
    def _try(node: ir.Node, rules: list[Rule], ctx: Context, near: dict[ir.Node, Miss]) -> bool:
        near.pop(node, None)  # what was in the way when it was looked at before
        for rule in rules:
            match = rule.match(node, ctx.facts)
            if isinstance(match, Match):
                rule.apply(match, ctx.edit)
                ctx.edit.count(rule.name)
                if ctx.edit.trace is not None:
                    ctx.edit.trace.close(rule.name, ctx.edit.mark())
                near.pop(node, None)
                return True
            if match.near:
                near.setdefault(node, match)
        return False


def _is_gone(node: ir.Node) -> bool:
    """Whether a node was removed, or the body that it is in."""
    return node.graph is None or RELEASED in node.graph.meta


def read_beside(value: ir.Value, node: ir.Node) -> str:
    """Returns who needs a value beside a node, for a near-miss; empty if nobody does.

    Returns:
        `is also read by Add "sum"`, or that it is an output of the graph.
    """
    if value.is_graph_output():
        return "is also an output of the graph"
    others = [usage.node for usage in value.uses() if usage.node is not node]
    if not others:
        return ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"is also read by {Location.of(others[0])}{more}"


def _around(touched: list[ir.Node], hubs: dict[ir.Node, None]) -> Iterator[ir.Node]:
    """Yields what changed and its neighbours, in order.

    Neighbours of a node with very many are looked at again when all else is done, and all together:
    one by one, each change beside a hub would cost as much as the hub has neighbours.
    """
    for node in touched:
        yield node
        if len(node.inputs) + sum(use_count(value) for value in node.outputs) > MANY_NEIGHBOURS:
            hubs[node] = None
        else:
            yield from _neighbours(node)


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    yield from node.predecessors()
    yield from node.successors()


def _requeue(nodes: Iterable[ir.Node], queue: deque[ir.Node], queued: set[ir.Node]) -> None:
    """Puts nodes that are still in a graph at the end of the queue."""
    for node in nodes:
        if node.graph is not None and node not in queued:
            queue.append(node)
            queued.add(node)
