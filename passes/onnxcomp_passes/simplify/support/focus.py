"""Strided slices of a picture, put together as channels: the stem of some detectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, has_reference_attribute, is_op, producer_of
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import shapes_of, sweep
from onnxcomp_passes.simplify.support.dims import normalized
from onnxcomp_passes.simplify.support.layouts import only_reads
from onnxcomp_passes.simplify.support.linear import store
from onnxcomp_passes.simplify.support.noops import slice_ranges

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit
    from onnxcomp.rules import Miss
    from onnxcomp.signature import Shape

# onnxruntime has a kernel for these.
_KINDS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_LARGEST_BLOCK = 8


@dataclass(frozen=True)
class Focus:
    """A picture cut into blocks, and where each place of a block stands among the channels."""

    source: ir.Value
    block: int
    order: list[int]
    reader: ir.Node | None


class FocusToDepth:
    """Slices with steps that take every place of a block, joined as channels, are SpaceToDepth.

    Where they are joined in another order, the weights of the Conv behind take that order.
    """

    name = "strided slices made SpaceToDepth"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Focus] | Miss:
        """Finds the block, the order and the Conv."""
        shapes = shapes_of(facts)
        first = producer_of(node.inputs[0], "Slice")
        source = None if first is None else first.inputs[0]
        shape, block = shapes.shape(source), round(len(node.inputs) ** 0.5)
        if source is None or shape is None or not 2 <= block <= _LARGEST_BLOCK:
            return NOTHING
        if block * block != len(node.inputs) or attribute(node, "axis", 0) not in (1, -3):
            return NOTHING
        if len(shape) != 4 or shapes.dtype(source) not in _KINDS or has_reference_attribute(node):
            return NOTHING
        order: list[int] = []
        for value in node.inputs:
            piece = producer_of(value, "Slice")
            if piece is None or piece.inputs[0] is not source or not only_reads(node, piece):
                return NOTHING
            place = _place(piece, shape, block)
            if place is None:
                return NOTHING
            order.append(place)
        if sorted(order) != list(range(block * block)):
            return NOTHING
        reader = None
        if order != sorted(order):
            reader = _conv_behind(node)
            if reader is None:
                return NOTHING
        return Match(node, Focus(source, block, order, reader))

    def apply(self, match: Match[Focus], edit: Edit) -> None:
        """Becomes that operator; the Conv reads its channels in that order."""
        node, found = match.node, match.found
        old = list(node.inputs)
        edit.set_operator(node, "SpaceToDepth")
        edit.set_attribute(node, "axis", None)
        edit.set_attribute(node, "blocksize", found.block)
        edit.truncate_inputs(node, 1)
        edit.set_input(node, 0, found.source)
        sweep(edit, *old)
        if found.reader is None:
            return
        weight = array(found.reader.inputs[1])
        assert weight is not None
        parts = weight.reshape(weight.shape[0], len(found.order), -1, *weight.shape[2:])
        made = np.ascontiguousarray(parts[:, np.argsort(found.order)]).reshape(weight.shape)
        store(edit, found.reader, 1, made, "weight")


def _place(piece: ir.Node, shape: Shape, block: int) -> int | None:
    """Returns which place of each block a Slice takes, counted by rows; None when it takes others."""
    ranges = slice_ranges(piece)
    axes = None if ranges is None else normalized([axis for axis, *_ in ranges], len(shape))
    if ranges is None or axes is None or sorted(axes) != [2, 3]:
        return None
    starts = {}
    for axis, (_, *found) in zip(axes, ranges, strict=True):
        size = shape[axis]
        if not isinstance(size, int) or size % block or found[2] != block:
            return None
        taken = range(size)[slice(*found)]
        if not 0 <= taken.start < block or len(taken) != size // block:
            return None
        starts[axis] = taken.start
    return starts[2] * block + starts[3]


def _conv_behind(node: ir.Node) -> ir.Node | None:
    """Returns the Conv that alone reads all channels, with a constant weight of its own."""
    reader = only_reader(node.outputs[0])
    if reader is None or not is_op(reader, "Conv") or reader.inputs[0] is not node.outputs[0]:
        return None
    weight = reader.inputs[1]
    if weight is None or constant(weight) is None or len(weight.uses()) > 1:
        return None
    fits = attribute(reader, "group", 1) == 1 and not has_reference_attribute(reader)
    return reader if fits and reader.graph is node.graph else None
