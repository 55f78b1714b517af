"""What an `Edit` did, told in nodes; kept only where somebody asked for an explanation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.diagnostics import Location
from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.ir.backend import ir

# A weight with more readers than this is no part of what was rewritten around one of them.
_FEW = 4


@dataclass(frozen=True)
class Change:
    """One application of a rule, or all that a pass did which is not made of rules.

    Attributes:
        rule: Name of the rule, empty for a pass without rules.
        before: Nodes that went, and those that changed as they were, in the order of the model.
        after: Nodes that came, and those that changed as they are.
        nodes: How many nodes more the model has.
        bytes: How many bytes of weights more.
    """

    rule: str
    before: tuple[Location, ...]
    after: tuple[Location, ...]
    nodes: int
    bytes: int


@dataclass(frozen=True)
class _Event:
    mark: int
    kind: str
    node: ir.Node | None
    where: Location
    bytes: int = 0


class Trace:
    """Collects what happens to nodes and weights; `close` makes one `Change` of what came since the last.

    A mark is a place in the journal of the `Edit`: what is rolled back is forgotten here too.
    """

    def __init__(self) -> None:
        self._events: list[_Event] = []
        self._changes: list[tuple[int, Change]] = []
        self._order: dict[ir.Node, int] = {}
        self._names: dict[ir.Node, str] = {}
        self._is_stale = True

    def begin(self, nodes: Iterable[ir.Node]) -> None:
        """Starts anew; the nodes tell the order of the model, unless nothing changed since the last time."""
        if self._is_stale:
            self._order = {node: index for index, node in enumerate(nodes)}
            self._is_stale = False
        self._events.clear()
        self._changes.clear()
        self._names.clear()

    def renaming(self, value: ir.Value) -> None:
        """Keeps the name of a node that is told by its output's, before that gets another one."""
        node = value.producer()
        if node is not None:
            self._names.setdefault(node, Location.of(node).name)

    def _where(self, node: ir.Node) -> Location:
        """The place of a node under the name that it had at first: outputs are renamed on the way."""
        known = self._names.get(node)
        return Location.of(node) if known is None else Location(node.op_type, known)

    def added(self, node: ir.Node, mark: int) -> None:
        """Notes a new node."""
        self._events.append(_Event(mark, "added", node, Location.of(node)))

    def removed(self, node: ir.Node, mark: int) -> None:
        """Notes a node that goes, with the graphs that it carries."""
        for graph in subgraphs(node):
            for inner in graph:
                self.removed(inner, mark)
        self._events.append(_Event(mark, "removed", node, self._where(node)))

    def changed(self, node: ir.Node, mark: int) -> None:
        """Notes a node that is about to change, and what it still is."""
        self._events.append(_Event(mark, "changed", node, self._where(node)))

    def read_by(self, nodes: Iterable[ir.Node], mark: int) -> None:
        """Notes the readers of a weight that changes, if they are few."""
        readers = list(nodes)
        for node in readers if len(readers) <= _FEW else ():
            self.changed(node, mark)

    def weighed(self, count: int, mark: int) -> None:
        """Notes bytes of weights that came, or went."""
        self._events.append(_Event(mark, "bytes", None, Location(""), count))

    def rollback(self, mark: int) -> None:
        """Forgets what is taken back."""
        self._events = [event for event in self._events if event.mark <= mark]
        self._changes = [(end, change) for end, change in self._changes if end <= mark]

    def close(self, rule: str, mark: int) -> None:
        """Makes one change of everything since the last one."""
        if not self._events:
            return
        added: dict[ir.Node, Location] = {}
        before: dict[ir.Node, Location] = {}
        gone: set[ir.Node] = set()
        for event in self._events:
            node = event.node
            if node is None:
                continue
            if event.kind == "added":
                added[node] = event.where
            elif event.kind == "removed" and node in added:
                del added[node]
            elif node not in added:
                before.setdefault(node, event.where)
                if event.kind == "removed":
                    gone.add(node)
        kept = [node for node in self._sorted(before) if node not in gone]
        change = Change(
            rule,
            tuple(before[node] for node in self._sorted(before)),
            (*(self._where(node) for node in kept), *added.values()),
            len(added) - len(gone),
            sum(event.bytes for event in self._events),
        )
        self._events.clear()
        if change.before or change.after or change.bytes:
            self._changes.append((mark, change))

    def finish(self, mark: int, nodes: Iterable[ir.Node]) -> tuple[Change, ...]:
        """Returns all changes of a pass.

        Args:
            mark: Where the journal ends; a pass that wrote nothing there changed nothing.
            nodes: The nodes that the model has now: those that moved from one graph to another or came
                inside of others were not told one by one.
        """
        if not mark:
            return ()
        self._is_stale = True
        self.close("", mark)
        made = [change for _, change in self._changes]
        now = sum(1 for _ in nodes)
        rest = now - len(self._order) - sum(change.nodes for change in made)
        if rest:
            made.append(Change("", (), (), rest, 0))
        return tuple(made)

    def _sorted(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        # A node that the pass itself made earlier has no place; it counts as last.
        return sorted(nodes, key=lambda node: self._order.get(node, len(self._order)))

    def changes(self) -> tuple[Change, ...]:
        """Returns the changes so far, in order."""
        return tuple(change for _, change in self._changes)
