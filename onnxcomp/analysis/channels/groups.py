"""What may be removed together: groups of positions, and the reasons of those that must stay."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.control import keep_bodies
from onnxcomp.analysis.channels.positions import Positions
from onnxcomp.analysis.channels.site import Roles, Site
from onnxcomp.analysis.channels.space import Prefer, Space
from onnxcomp.analysis.channels.table import BARRIERS, known_as, rule_of
from onnxcomp.analysis.shapes import ShapeMap, Shapes
from onnxcomp.ir.ops import OVERRIDABLE, PROTECTED
from onnxcomp.ir.scopes import ir_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model, ir


# Initializers that are inputs as well, and those that something outside the graph refers to.
REPLACEABLE = "a caller may replace it (the pass fix-signature makes such weights constants)"


@dataclass(frozen=True)
class Member:
    """An axis of a value that a group runs through.

    Attributes:
        value: The value.
        axis: Which of its axes.
        positions: [units, n] positions of the axis that belong to each unit of the group.
    """

    value: ir.Value
    axis: int
    positions: np.ndarray


@dataclass(frozen=True)
class Group:
    """Units that can go one by one, each with all its positions in all members.

    Attributes:
        units: How many units there are.
        members: Axes of values and weights that lose positions with a unit.
        mixed: Why removing a unit changes what the others compute even if it carries nothing (a mean
            over all of them); empty where units are independent.
        scaled: Why removing a unit may round the others in another way (a scale that is measured over
            all of them while the model runs); a unit that holds zeros leaves no trace.
        heads: Whether units are heads of attention.
    """

    units: int
    members: tuple[Member, ...]
    mixed: tuple[str, ...]
    scaled: tuple[str, ...] = ()
    heads: bool = False


@dataclass(frozen=True)
class Barrier:
    """An axis that keeps its positions, and why."""

    value: ir.Value
    axis: int
    reason: str


class ChannelMap:
    """Groups of coupled channels of a model.

    Attributes:
        groups: What may be removed, in the order of the graph.
        producers: For an axis of a weight that makes channels the node that does.
        consumers: For an axis of a weight that reads channels the node that does.
        ambiguous: Whether another preference would give other groups.
        contractions: Nodes that multiply two operands and sum up along an axis of each.
    """

    def __init__(self, space: Space, positions: Positions, roles: Roles) -> None:
        self._space = space
        self._positions = positions
        self.producers = roles.producers
        self.consumers = roles.consumers
        self.ambiguous = positions.chosen
        self.contractions = tuple(
            found
            for found in roles.contractions
            if found.within is None or positions.is_free(found.within)
        )
        self._owners: dict[int, list[tuple[ir.Value, int]]] = defaultdict(list)
        for (value, axis), number in space.known():
            self._owners[space.kind(number)].append((value, axis))
        self._mixed, self._scaled = self._spread(space.mixed), self._spread(space.scaled)
        self._heads = {item for axis in space.heads for item in positions.sets(axis)}
        self.groups = tuple(self._groups())

    def barriers(self) -> Iterator[Barrier]:
        """Yields the axes of which no position may go."""
        for (value, axis), number in self._space.known():
            if self._space.sizes[number] > 1 and not self._positions.is_free(number):
                yield Barrier(value, axis, self._positions.reason(number, 0))

    def main_reason(self) -> str:
        """Returns what keeps the most numbers in weights; empty when nothing keeps any."""
        known = {value for value, _ in (*self.producers, *self.consumers)}
        kept: dict[str, dict[ir.Value, int]] = defaultdict(dict)
        for barrier in self.barriers():
            tensor = barrier.value.const_value if barrier.value.is_initializer() else None
            key = (barrier.value, barrier.axis)
            told = key in self.producers or key in self.consumers or barrier.value not in known
            if tensor is not None and told and len(tensor.shape) > 1:
                kept[barrier.reason][barrier.value] = tensor.size
        totals = {reason: sum(sizes.values()) for reason, sizes in kept.items()}
        return max(totals, key=lambda reason: totals[reason], default="")

    def _groups(self) -> Iterator[Group]:
        """Sorts positions by the set that they are in; sets in the same axes make a group."""
        found: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        ordered: list[tuple[int, int, Group]] = []
        for kind in self._owners:
            if kind in self._positions.linked:
                for place, item in enumerate(self._positions.of(kind).tolist()):
                    if not self._positions.reason(kind, place):
                        found[item][kind].append(place)
            elif self._space.sizes[kind] > 1 and self._positions.is_free(kind):
                ordered.append((kind, 0, self._alone(kind)))
        alike: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for item in sorted(found):
            kinds = found[item]
            alike[tuple((kind, len(kinds[kind])) for kind in sorted(kinds))].append(item)
        for signature, items in alike.items():
            if len(items) > 1:  # an axis of nothing is no axis
                group = self._group([kind for kind, _ in signature], items, found)
                ordered.append((signature[0][0], items[0], group))
        return (group for *_, group in sorted(ordered, key=lambda row: row[:2]))

    def _alone(self, kind: int) -> Group:
        """A group of axes that are equal as a whole, and linked to no others."""
        positions = np.arange(self._space.sizes[kind])[:, None]
        members = [Member(value, axis, positions) for value, axis in self._owners[kind]]
        return self._made(members, self._positions.sets(kind))

    def _group(
        self, kinds: list[int], items: list[int], found: dict[int, dict[int, list[int]]]
    ) -> Group:
        members = []
        for kind in kinds:
            positions = np.asarray([found[item][kind] for item in items], np.int64)
            members += [Member(value, axis, positions) for value, axis in self._owners[kind]]
        return self._made(members, set(items))

    def _made(self, members: list[Member], items: set[int]) -> Group:
        mixed, scaled = (self._reasons(items, table) for table in (self._mixed, self._scaled))
        units = len(members[0].positions)
        return Group(units, tuple(members), mixed, scaled, bool(items & self._heads))

    @staticmethod
    def _reasons(items: set[int], table: dict[int, set[str]]) -> tuple[str, ...]:
        return tuple(sorted(set().union(*(table.get(item, ()) for item in items))))

    def _spread(self, reasons: dict[int, str]) -> dict[int, set[str]]:
        """Returns what is said of axes by the sets that their positions are in."""
        found: dict[int, set[str]] = defaultdict(set)
        for axis, reason in reasons.items():
            for item in self._positions.sets(axis):
                found[item].add(reason)
        return found


@dataclass(frozen=True)
class Channels:
    """Which channels of a model belong together.

    Every operator says how positions along the axes of its operands and results answer to each other
    (one rule per operator, `onnxcomp/analysis/channels/table.py`). Inputs and outputs of the model,
    sizes that are not known, and operators without a rule are barriers. The idea of groups of
    dependent layers is that of DepGraph (Fang et al., CVPR 2023); here they are found on the graph,
    position by position.

    Attributes:
        prefer: Along which factor an axis is cut that is a product of several that could be cut:
            `large` the larger one (channels rather than groups, the inside of heads rather than
            heads), `outer`, `inner`, `heads` (those of attention, else as `outer`).
    """

    prefer: Prefer = "large"

    def compute(self, model: Model, facts: Facts) -> ChannelMap:
        """Applies the rules to all nodes of all scopes."""
        space, roles = Space(), Roles()
        shapes = facts.get(Shapes())
        for graph in ir_graphs(model.core):
            for node in graph:
                _apply(Site(node, model.opset, space, shapes, roles))
        _close(model, space, shapes)
        return ChannelMap(space, Positions(space, self.prefer), roles)


def _apply(site: Site) -> None:
    rule = rule_of(site)
    if rule is None:
        site.freeze(BARRIERS.get(known_as(site.node), "nothing is known of the operator"))
        keep_bodies(site)
        return
    try:
        rule(site)
    except (IndexError, ZeroDivisionError):
        # Files may hold anything; what a rule said before it found out is only more to be kept.
        site.freeze("its attributes do not fit its operands")
        keep_bodies(site)
    site.close()


def _close(model: Model, space: Space, shapes: ShapeMap) -> None:
    """Keeps what belongs to others: inputs, outputs, weights that a caller may replace, functions."""
    graph = model.graph
    owned = [
        (value, REPLACEABLE)
        for scope in ir_graphs(model.core)
        for value in scope.initializers.values()
        if OVERRIDABLE in value.meta or PROTECTED in value.meta
    ]
    owned += [(value, "it is an input of the model") for value in graph.inputs]
    owned += [(value, "it is an output of the model") for value in graph.outputs]
    for function in model.core.functions.values():
        owned += [
            (value, "it is a function's")
            for node in function
            for value in (*node.inputs, *node.outputs)
            if value
        ]
    for value, reason in owned:
        for axis, size in enumerate(shapes.shape(value) or ()):
            if isinstance(size, int) and size > 0:
                space.freeze(space.axis(value, axis, size), reason)
