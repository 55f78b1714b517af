"""Merges what cuts tensors into pieces and puts pieces together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from typing_extensions import override

from onnxcomp.ir.ops import (
    array,
    attribute,
    has_reference_attribute,
    input_at,
    is_op,
    producer_of,
)
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, rewire, shapes_of
from onnxcomp_passes.simplify.support.dims import list_of, normalized
from onnxcomp_passes.simplify.support.focus import FocusToDepth
from onnxcomp_passes.simplify.support.layouts import only_reads
from onnxcomp_passes.simplify.support.noops import slice_ranges
from onnxcomp_passes.simplify.support.pieces import (
    CoarserSplit,
    JoinPieces,
    OneOfSplit,
    ReorderPieces,
    SlicesToSplit,
    SplitOfConcat,
)
from onnxcomp_passes.simplify.support.ranges import set_slice

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

    Ranges = list[tuple[int, int, int, int]]

_MOST_PLACES = 1 << 14
# An end that lies before the first element, for a slice that runs backwards to it.
_BEFORE_ALL = -(1 << 62)


class MergeNestedSlices:
    """A Slice of a Slice along the same axis is one Slice."""

    name = "nested slices merged"
    ops = frozenset({"Slice"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Ranges] | Miss:
        """Finds the ranges of both together."""
        inner = producer_of(node.inputs[0], "Slice")
        if inner is None or not only_reads(node, inner) or "starts" in node.attributes:
            return NOTHING
        shape = shapes_of(facts).shape(inner.inputs[0])
        first, second = slice_ranges(inner), slice_ranges(node)
        if first is None or second is None or "starts" in inner.attributes:
            return NOTHING
        rank = None if shape is None else len(shape)
        axes = [normalized([axis for axis, *_ in found], rank) for found in (first, second)]
        if axes[0] is None or axes[1] is None or not set(axes[0]) & set(axes[1]):
            return NOTHING
        if any(len(set(found)) != len(found) for found in axes if found is not None):
            return NOTHING
        merged = {axis: found[1:] for axis, found in zip(axes[0], first, strict=True)}
        for axis, (_, *late) in zip(axes[1], second, strict=True):
            size = shape[axis] if shape is not None and axis < len(shape) else None
            both = _after(merged[axis], tuple(late), size) if axis in merged else tuple(late)
            if both is None:
                return NOTHING
            merged[axis] = (both[0], both[1], both[2])
        return Match(node, [(axis, *merged[axis]) for axis in sorted(merged)])

    def apply(self, match: Match[Ranges], edit: Edit) -> None:
        """Slices once."""
        inner = producer_of(match.node.inputs[0], "Slice")
        assert inner is not None
        set_slice(edit, match.node, match.found)
        rewire(edit, match.node, 0, inner.inputs[0])


def _after(
    first: tuple[int, ...], second: tuple[int, ...], size: int | str | None
) -> tuple[int, int, int] | None:
    """Returns the range of one slice after another, None when it depends on an unknown size."""
    if isinstance(size, int):
        found = range(size)[slice(*first)][slice(*second)]
        if not found:
            return None
        return found.start, found.stop if found.stop >= 0 else _BEFORE_ALL, found.step
    start, end, step = first
    if step != 1 or second[2] != 1 or min(start, end, *second[:2]) < 0:
        return None
    return start + second[0], min(end, start + second[1]), 1


class MergeGathers:
    """A Gather from a Gather or a Slice along the same axis, at constant places, is one Gather."""

    name = "gathers merged"
    ops = frozenset({"Gather"})

    def match(
        self, node: ir.Node, facts: Facts
    ) -> Match[np.ndarray[tuple[int, ...], np.dtype[np.int64]]] | Miss:
        """Finds the places in what the first one reads."""
        inner = producer_of(node.inputs[0], "Gather", "Slice")
        places = array(input_at(node, 1), limit=_MOST_PLACES)
        if inner is None or places is None or not only_reads(node, inner) or not places.size:
            return NOTHING
        if has_reference_attribute(inner) or has_reference_attribute(node):
            return NOTHING
        shapes = shapes_of(facts)
        shape = shapes.shape(inner.inputs[0])
        found = None if shape is None else _reached(inner, len(shape), shape)
        if found is None or shape is None:
            return NOTHING
        axis, reached = found
        if normalized([attribute(node, "axis", 0)], len(shape)) != [axis]:
            return NOTHING
        if places.min() < -len(reached) or places.max() >= len(reached):
            return NOTHING
        return Match(node, reached[places])

    def apply(
        self, match: Match[np.ndarray[tuple[int, ...], np.dtype[np.int64]]], edit: Edit
    ) -> None:
        """Gathers once."""
        node = match.node
        inner = producer_of(node.inputs[0], "Gather", "Slice")
        assert inner is not None
        assert node.graph is not None
        name = f"{node.outputs[0].name}_places"
        index = edit.initializer(np.asarray(match.found, np.int64), name=name, graph=node.graph)
        rewire(edit, node, 1, index)
        rewire(edit, node, 0, inner.inputs[0])


def _reached(
    inner: ir.Node, rank: int, shape: tuple[int | str | None, ...]
) -> tuple[int, np.ndarray[tuple[int, ...], np.dtype[np.int64]]] | None:
    """Returns along which axis a node picks elements, and which, in order."""
    if is_op(inner, "Gather"):
        axes = normalized([attribute(inner, "axis", 0)], rank)
        found = array(input_at(inner, 1), limit=_MOST_PLACES)
        if axes is None or found is None or found.ndim != 1:
            return None
        return axes[0], found.astype(np.int64)
    ranges = slice_ranges(inner)
    axes = None if ranges is None or len(ranges) != 1 else normalized([ranges[0][0]], rank)
    if ranges is None or axes is None or axes[0] >= rank:
        return None
    size = shape[axes[0]]
    if not isinstance(size, int) or size > _MOST_PLACES:
        return None
    return axes[0], np.arange(size, dtype=np.int64)[slice(*ranges[0][1:])]


class MergePads:
    """A Pad of a Pad with the same number is one Pad."""

    name = "paddings merged"
    ops = frozenset({"Pad"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the padding of both together."""
        del facts
        inner = producer_of(node.inputs[0], "Pad")
        if inner is None or not only_reads(node, inner):
            return NOTHING
        if has_reference_attribute(inner) or has_reference_attribute(node):
            return NOTHING
        modes = {attribute(pad, "mode", "constant") for pad in (inner, node)}
        first, second = list_of(inner, "pads", 1), list_of(node, "pads", 1)
        if modes != {"constant"} or first is None or second is None or _adds(inner) != _adds(node):
            return NOTHING
        if len(first) != len(second) or min(first + second, default=-1) < 0 or _adds(node) is None:
            return NOTHING
        if ("pads" in inner.attributes) is not ("pads" in node.attributes):
            return NOTHING
        axes = [array(input_at(pad, 3)) for pad in (inner, node)]
        if any(input_at(pad, 3) is not None for pad in (inner, node)) and (
            axes[0] is None or axes[1] is None or axes[0].tolist() != axes[1].tolist()
        ):
            return NOTHING
        return Match(node, [one + other for one, other in zip(first, second, strict=True)])

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Pads once."""
        node = match.node
        inner = producer_of(node.inputs[0], "Pad")
        assert inner is not None
        assert node.graph is not None
        if "pads" in node.attributes:
            edit.set_attribute(node, "pads", match.found)
        else:
            name = f"{node.outputs[0].name}_pads"
            pads = edit.initializer(np.array(match.found, np.int64), name=name, graph=node.graph)
            rewire(edit, node, 1, pads)
        rewire(edit, node, 0, inner.inputs[0])


def _adds(pad: ir.Node) -> float | None:
    """What a Pad adds: an attribute up to opset 10, an input that may be left out since."""
    if "pads" in pad.attributes:
        return float(attribute(pad, "value", 0.0))
    if input_at(pad, 2) is None:
        return 0.0
    found = array(input_at(pad, 2), limit=1)
    if found is None or found.size != 1 or found.dtype.kind not in "fiub":
        return None
    return float(found.reshape(()))


class MergeSlices(LocalPass):
    """Merges what cuts tensors into pieces and puts pieces together.

    Slices that together are all of a tensor become one Split; a Slice of a Slice one Slice; a Concat
    of neighbouring pieces reads the larger piece, or what was cut; a Split of a Concat at its seams
    goes; all pieces in another order are a Gather; strided slices of a picture
    that are joined as channels are SpaceToDepth; a Split of which one part is read becomes a Slice; a Gather at constant places from a
    Gather or a Slice reads their source; a Pad of a Pad becomes one. Not a bit changes.

        x -> Split -> a, b, c        Concat(a, b) -> y
        x -> Slice -> y
    """

    name = "merge-slices"
    lossless = True

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (
            JoinPieces(),
            CoarserSplit(),
            ReorderPieces(),
            FocusToDepth(),
            SplitOfConcat(),
            OneOfSplit(),
            MergeNestedSlices(),
            SlicesToSplit(),
            MergeGathers(),
            MergePads(),
        )
