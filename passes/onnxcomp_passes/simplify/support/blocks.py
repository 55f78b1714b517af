"""Reshape, Transpose, Reshape: channels that change places."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import producer_of
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import shapes_of, turn_into_gather
from onnxcomp_passes.simplify.support.dims import permutation, same_shape
from onnxcomp_passes.simplify.support.layouts import only_reads

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.rules import Miss
    from onnxcomp.signature import Shape

# A Gather copies whole blocks; below this size a Transpose is as fast.
_SMALLEST_BLOCK = 32
_MOST_PLACES = 1 << 14


@dataclass(frozen=True)
class Views:
    """A Transpose between two Reshapes, nothing else of which is read: shapes and order."""

    source: ir.Value
    before: Shape
    middle: Shape
    order: tuple[int, ...]
    after: Shape


def views_before(node: ir.Node, facts: Facts) -> Views | None:
    """Returns what ends in a Reshape, if shapes are known."""
    turn = producer_of(node.inputs[0], "Transpose")
    first = None if turn is None else producer_of(turn.inputs[0], "Reshape")
    if turn is None or first is None or not only_reads(node, turn) or not only_reads(turn, first):
        return None
    shapes, source = shapes_of(facts), first.inputs[0]
    before, middle, after = (
        shapes.shape(value) for value in (source, first.outputs[0], node.outputs[0])
    )
    if before is None or middle is None or after is None or source is None:
        return None
    order = permutation(turn, len(middle))
    if order is None or first.graph is not node.graph:
        return None
    return Views(source, before, middle, order, after)


class ShuffleAlongAxis:
    """A dimension that is split, turned and put together again is a Gather along it."""

    name = "channel shuffles made a Gather"
    ops = frozenset({"Reshape"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, int, list[int]]] | Miss:
        """Finds the axis and where its elements go."""
        found = views_before(node, facts)
        if found is None or not same_shape(shapes_of(facts), found.source, node.outputs[0]):
            return NOTHING
        before, middle = found.before, found.middle
        extra = len(middle) - len(before)
        axis = next((at for at, place in enumerate(found.order) if at != place), None)
        if extra < 1 or axis is None or axis >= len(before):
            return NOTHING
        split, behind = middle[axis : axis + extra + 1], middle[axis + extra + 1 :]
        moved = found.order[axis : axis + extra + 1]
        kept = [*range(axis), *moved, *range(axis + extra + 1, len(middle))]
        if list(found.order) != kept or sorted(moved) != list(range(axis, axis + extra + 1)):
            return NOTHING
        if middle[:axis] != before[:axis] or behind != before[axis + 1 :]:
            return NOTHING
        sizes = [dim for dim in (*split, *behind) if isinstance(dim, int)]
        inner = prod(sizes[len(split) :])
        if len(sizes) != len(split) + len(behind) or prod(sizes[: len(split)]) != before[axis]:
            return NOTHING
        if inner < _SMALLEST_BLOCK or not 0 < prod(sizes[: len(split)]) <= _MOST_PLACES:
            return NOTHING
        numbers = np.arange(prod(sizes[: len(split)])).reshape(sizes[: len(split)])
        places = numbers.transpose([at - axis for at in moved]).reshape(-1)
        return Match(node, (found.source, axis, [int(place) for place in places]))

    def apply(self, match: Match[tuple[ir.Value, int, list[int]]], edit: Edit) -> None:
        """Gathers."""
        turn_into_gather(edit, match.node, *match.found)
