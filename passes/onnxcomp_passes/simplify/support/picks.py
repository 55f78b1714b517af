"""Reading a part of what was just put together: only that part is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import (
    array,
    attribute,
    has_reference_attribute,
    input_at,
    is_op,
    producer_of,
)
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import rewire, shapes_of, sweep
from onnxcomp_passes.simplify.support.dims import TO_THE_END, list_of, normalized
from onnxcomp_passes.simplify.support.layouts import only_reads
from onnxcomp_passes.simplify.support.noops import slice_ranges

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir
    from onnxcomp.rules import Miss

# Operators whose result holds nothing but elements of their first input.
_MOVES = ("Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Expand")
_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_DEEPEST = 32


@dataclass(frozen=True)
class Pick:
    """One input of a Concat, and where it begins along the axis."""

    source: ir.Value
    offset: int


def _sizes(concat: ir.Node, axis: int, shapes: ShapeMap) -> list[int | None]:
    found: list[int | None] = []
    for value in concat.inputs:
        shape = shapes.shape(value)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        found.append(size if isinstance(size, int) else None)
    return found


def _covering(concat: ir.Node, axis: int, start: int, end: int, shapes: ShapeMap) -> Pick | None:
    """Returns the input of a Concat that holds the elements from `start` up to `end`."""
    offset = 0
    for value, size in zip(concat.inputs, _sizes(concat, axis, shapes), strict=True):
        if size is None:
            return None
        if start >= offset and end <= offset + size and value is not None:
            return Pick(value, offset)
        offset += size
    return None


def _concat_before(node: ir.Node, axis: int, shapes: ShapeMap) -> tuple[ir.Node, int] | None:
    """Returns the Concat that a node reads along the same axis, and that axis from the front."""
    concat = producer_of(node.inputs[0], "Concat")
    if concat is None or has_reference_attribute(concat) or has_reference_attribute(node):
        return None
    rank = shapes.rank(node.inputs[0])
    axes = normalized([axis, attribute(concat, "axis", 0)], rank)
    return (concat, axes[0]) if axes is not None and axes[0] == axes[1] else None


class GatherFromConcat:
    """Gather of one element of a Concat reads the input that holds it."""

    name = "parts read directly"
    ops = frozenset({"Gather"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[Pick, int]] | Miss:
        """Finds the input and the index in it."""
        shapes = shapes_of(facts)
        found = array(input_at(node, 1), limit=1)
        before = None
        if found is not None and found.size == 1 and not has_reference_attribute(node):
            before = _concat_before(node, attribute(node, "axis", 0), shapes)
        if before is None or found is None:
            return NOTHING
        concat, axis = before
        index = int(found.reshape(()))
        if index < 0:
            sizes = _sizes(concat, axis, shapes)
            index += sum(size or 0 for size in sizes)
            if None in sizes:
                return NOTHING
        pick = _covering(concat, axis, index, index + 1, shapes)
        return NOTHING if pick is None else Match(node, (pick, index - pick.offset))

    def apply(self, match: Match[tuple[Pick, int]], edit: Edit) -> None:
        """Reads that input."""
        node, (pick, index) = match.node, match.found
        old = array(node.inputs[1])
        assert old is not None
        assert node.graph is not None
        if int(old.reshape(())) != index:
            contents = np.full(old.shape, index, old.dtype)
            name = f"{node.outputs[0].name}_index"
            rewire(edit, node, 1, edit.initializer(contents, name=name, graph=node.graph))
        rewire(edit, node, 0, pick.source)


class SliceFromConcat:
    """Slice along the axis of a Concat that stays within one input reads that input."""

    name = "parts read directly"
    ops = frozenset({"Slice"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[Pick, int, int]] | Miss:
        """Finds the input and the range in it."""
        ranges, shapes = slice_ranges(node), shapes_of(facts)
        if ranges is None or len(ranges) != 1 or ranges[0][3] != 1:
            return NOTHING
        before = _concat_before(node, ranges[0][0], shapes)
        if before is None:
            return NOTHING
        concat, axis = before
        sizes = _sizes(concat, axis, shapes)
        if None in sizes:
            return NOTHING
        total = sum(size or 0 for size in sizes)
        start, end, _ = slice(*ranges[0][1:3]).indices(total)
        pick = _covering(concat, axis, start, end, shapes) if start < end else None
        if pick is None:
            return NOTHING
        return Match(node, (pick, start - pick.offset, end - pick.offset))

    def apply(self, match: Match[tuple[Pick, int, int]], edit: Edit) -> None:
        """Reads that input."""
        node, (pick, start, end) = match.node, match.found
        assert node.graph is not None
        for index, name, number in ((1, "starts", start), (2, "ends", end)):
            if name in node.attributes:
                edit.set_attribute(node, name, [number])
                continue
            old = array(node.inputs[index])
            assert old is not None
            if int(old.reshape(())) != number:
                contents = np.array([number], old.dtype)
                wish = f"{node.outputs[0].name}_{name}"
                rewire(edit, node, index, edit.initializer(contents, name=wish, graph=node.graph))
        rewire(edit, node, 0, pick.source)


class GatherOne:
    """Slice of one element along an axis, and Squeeze of that axis, is Gather with a number.

    Not behind a Transpose: onnxruntime (up to 1.31 at least) merges it with those that follow through
    Slice, Split and Squeeze, but not through Gather; attention takes up to 4 % longer then.
    """

    name = "slices of one element made a Gather"
    ops = frozenset({"Squeeze"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[int, int]] | Miss:
        """Finds the axis and the index."""
        inner = producer_of(node.inputs[0], "Slice")
        if (
            inner is None
            or not only_reads(node, inner)
            or producer_of(inner.inputs[0], "Transpose")
        ):
            return NOTHING
        ranges, axes = slice_ranges(inner), list_of(node, "axes", 1)
        if ranges is None or axes is None or len(ranges) != 1 or len(axes) != 1:
            return NOTHING
        axis, start, end, step = ranges[0]
        both = normalized([axis, axes[0]], shapes_of(facts).rank(inner.inputs[0]))
        one = end == start + 1 != 0 or (start == -1 and end >= TO_THE_END)
        if both is None or both[0] != both[1] or step != 1 or not one:
            return NOTHING
        return Match(node, (both[0], start))

    def apply(self, match: Match[tuple[int, int]], edit: Edit) -> None:
        """Turns the Squeeze into the Gather."""
        node, (axis, index) = match.node, match.found
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        assert node.graph is not None
        old = input_at(node, 1)
        wish = f"{node.outputs[0].name}_index"
        made = edit.initializer(np.array(index, np.int64), name=wish, graph=node.graph)
        edit.set_operator(node, "Gather")
        edit.set_attribute(node, "axes", None)
        edit.set_attribute(node, "axis", axis)
        edit.set_input(node, 1, made)
        sweep(edit, old)
        rewire(edit, node, 0, inner.inputs[0])


class MergeSlices:
    """Slice(Slice(x)) along different axes, with constant ranges, is one Slice."""

    name = "slices merged"
    ops = frozenset({"Slice"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[tuple[int, int, int, int]]] | Miss:
        """Finds the ranges of both together."""
        inner = producer_of(node.inputs[0], "Slice")
        if inner is None or not only_reads(node, inner) or "starts" in node.attributes:
            return NOTHING
        first, second = slice_ranges(inner), slice_ranges(node)
        if first is None or second is None:
            return NOTHING
        both = [*first, *second]
        rank = shapes_of(facts).rank(inner.inputs[0])
        axes = normalized([axis for axis, *_ in both], rank)
        if axes is None or len(set(axes)) != len(axes):
            return NOTHING
        return Match(node, [(axis, *found[1:]) for axis, found in zip(axes, both, strict=True)])

    def apply(self, match: Match[list[tuple[int, int, int, int]]], edit: Edit) -> None:
        """Slices once."""
        node = match.node
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        assert node.graph is not None
        axes, starts, ends, steps = zip(*match.found, strict=True)
        columns = {1: ("starts", starts), 2: ("ends", ends), 3: ("axes", axes), 4: ("steps", steps)}
        old = list(node.inputs[1:])
        for index, (name, numbers) in columns.items():
            if index == 4 and set(numbers) == {1} and input_at(node, 4) is None:
                continue
            wish = f"{node.outputs[0].name}_{name}"
            contents = np.array(numbers, np.int64)
            made = edit.initializer(contents, name=wish, graph=node.graph)
            edit.set_input(node, index, made)
        rewire(edit, node, 0, inner.inputs[0])
        sweep(edit, *old)


class DropZeroStates:
    """The initial state of an LSTM, GRU or RNN that is zero is what it starts from anyway."""

    name = "initial states of zeros dropped"
    ops = frozenset(_STATES)

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the states that hold zeros only."""
        del facts
        found = [
            index
            for index in _STATES[node.op_type]
            if (state := input_at(node, index)) is not None and only_zeros(state)
        ]
        return Match(node, found) if found else NOTHING

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Leaves them out."""
        node = match.node
        states = [input_at(node, index) for index in match.found]
        for index in match.found:
            edit.set_input(node, index, None)
        while len(node.inputs) > 3 and node.inputs[-1] is None:
            edit.truncate_inputs(node, len(node.inputs) - 1)
        sweep(edit, *states)


def only_zeros(value: ir.Value | None) -> bool:
    """Whether a value is proven to hold nothing but (positive or negative) zeros."""
    for _ in range(_DEEPEST):
        found = array(value, limit=1 << 16)
        if found is not None:
            return not found.any()
        node = None if value is None else value.producer()
        if is_op(node, "ConstantOfShape") and node is not None:
            tensor = attribute(node, "value")
            return tensor is None or not tensor.numpy().any()
        if node is None or not is_op(node, *_MOVES):
            return False
        value = node.inputs[0]
    return False
