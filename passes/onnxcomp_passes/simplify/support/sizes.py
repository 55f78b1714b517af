"""Sizes of a tensor read with fewer operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import (
    array,
    attribute,
    has_reference_attribute,
    input_at,
    producer_of,
)
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import OpsetFloor, rewire, shapes_of, sweep
from onnxcomp_passes.simplify.support.dims import list_of, normalized
from onnxcomp_passes.simplify.support.layouts import only_reads
from onnxcomp_passes.simplify.support.noops import slice_ranges

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.rules import Miss

# From this version on, Shape can be asked for some of the dimensions.
_SHAPE_WITH_RANGE = 15


class GatherKeepingAxis:
    """Unsqueeze of one element that a Gather took, at its place, is a Gather of a list of one."""

    name = "elements taken with their axis"
    ops = frozenset({"Unsqueeze"})

    def match(self, node: ir.Node, facts: Facts) -> Match[int] | Miss:
        """Finds the axis."""
        gather = producer_of(node.inputs[0], "Gather")
        if gather is None or not only_reads(node, gather) or gather.graph is not node.graph:
            return NOTHING
        if has_reference_attribute(node) or has_reference_attribute(gather):
            return NOTHING
        index, axes = array(input_at(gather, 1), limit=1), list_of(node, "axes", 1)
        if index is None or index.ndim != 0 or axes is None or len(axes) != 1:
            return NOTHING
        # The axes of both count in what is gathered from: one goes, one comes.
        rank = shapes_of(facts).rank(gather.inputs[0])
        found = normalized([attribute(gather, "axis", 0), axes[0]], rank)
        return Match(node, found[0]) if found is not None and found[0] == found[1] else NOTHING

    def apply(self, match: Match[int], edit: Edit) -> None:
        """Makes the Unsqueeze the Gather."""
        node, axis = match.node, match.found
        gather = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert gather is not None
        assert node.graph is not None
        index = array(gather.inputs[1])
        assert index is not None
        old = input_at(node, 1)
        wish = f"{node.outputs[0].name}_index"
        edit.set_operator(node, "Gather")
        edit.set_attribute(node, "axes", None)
        edit.set_attribute(node, "axis", axis)
        edit.set_input(node, 1, edit.initializer(index.reshape(1), name=wish, graph=node.graph))
        rewire(edit, node, 0, gather.inputs[0])
        sweep(edit, old)


class ReadPartOfShape:
    """A Gather or Slice of neighbouring dimensions out of a Shape is a Shape of these dimensions."""

    name = "parts of shapes read directly"
    ops = frozenset({"Gather", "Slice"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[int, int]] | Miss:
        """Finds which dimensions are read."""
        shape = producer_of(node.inputs[0], "Shape")
        if shape is None or not only_reads(node, shape) or shape.graph is not node.graph:
            return NOTHING
        if {"start", "end"} & set(shape.attributes) or has_reference_attribute(node):
            return NOTHING
        if facts.get(OpsetFloor()) < _SHAPE_WITH_RANGE:
            return NOTHING
        rank = shapes_of(facts).rank(shape.inputs[0])
        part = _gathered(node, rank) if node.op_type == "Gather" else _sliced(node, rank)
        return NOTHING if part is None else Match(node, part)

    def apply(self, match: Match[tuple[int, int]], edit: Edit) -> None:
        """Makes the Gather the Shape."""
        node, (start, end) = match.node, match.found
        shape = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert shape is not None
        old = list(node.inputs)
        edit.truncate_inputs(node, 1)
        edit.set_attribute(node, "axis", None)
        edit.set_operator(node, "Shape")
        edit.set_attribute(node, "start", start)
        edit.set_attribute(node, "end", end)
        rewire(edit, node, 0, shape.inputs[0])
        sweep(edit, *old[1:])


def _gathered(node: ir.Node, rank: int | None) -> tuple[int, int] | None:
    index = array(input_at(node, 1), limit=64)
    if index is None or index.ndim != 1 or not index.size or rank is None:
        return None
    places = normalized([int(place) for place in index], rank)
    if places is None or list(places) != list(range(places[0], places[0] + len(places))):
        return None
    # A place that is not there is an error that must stay one.
    return (places[0], places[-1] + 1) if places[0] >= 0 and places[-1] < rank else None


def _sliced(node: ir.Node, rank: int | None) -> tuple[int, int] | None:
    ranges = slice_ranges(node)
    if ranges is None or len(ranges) != 1 or rank is None:
        return None
    ((axis, start, end, step),) = ranges
    if axis not in (0, -1) or step != 1:
        return None
    first, last, _ = slice(start, end).indices(rank)
    return (first, max(first, last))
