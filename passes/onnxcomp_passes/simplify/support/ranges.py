"""Parts of a tensor along one axis: Slice and Split, described by where they begin and end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import attribute, has_reference_attribute, input_at, is_op
from onnxcomp_passes.simplify.support.base import sweep
from onnxcomp_passes.simplify.support.dims import normalized
from onnxcomp_passes.simplify.support.noops import slice_ranges

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir


@dataclass(frozen=True)
class Part:
    """Elements of `source` from `start` up to `end` along an axis of `size` elements."""

    source: ir.Value
    axis: int
    start: int
    end: int
    size: int

    def continues(self, other: Part) -> bool:
        """Whether it begins where another part of the same tensor ends."""
        same = self.source is other.source and self.axis == other.axis
        return same and self.start == other.end

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the source."""
        return self.start == 0 and self.end == self.size


def part_of(value: ir.Value | None, shapes: ShapeMap) -> Part | None:
    """Returns what part of another tensor a value is, None when it is none or sizes are not known."""
    node = None if value is None else value.producer()
    if value is None or node is None or has_reference_attribute(node):
        return None
    if is_op(node, "Slice"):
        return sliced(node, shapes)
    return split_part(node, value, shapes) if is_op(node, "Split") else None


def sliced(node: ir.Node, shapes: ShapeMap) -> Part | None:
    """Returns the part that a Slice along one axis, one step at a time, takes."""
    ranges, source = slice_ranges(node), node.inputs[0]
    shape = shapes.shape(source)
    if ranges is None or len(ranges) != 1 or ranges[0][3] != 1 or shape is None or source is None:
        return None
    axes = normalized([ranges[0][0]], len(shape))
    size = None if axes is None or axes[0] >= len(shape) else shape[axes[0]]
    if axes is None or not isinstance(size, int):
        return None
    start, end, _ = slice(*ranges[0][1:3]).indices(size)
    return Part(source, axes[0], start, end, size) if start < end else None


def split_part(node: ir.Node, value: ir.Value, shapes: ShapeMap) -> Part | None:
    """Returns the part that an output of a Split is."""
    source = node.inputs[0]
    shape = shapes.shape(source)
    axes = None if shape is None else normalized([attribute(node, "axis", 0)], len(shape))
    size = None if shape is None or axes is None or axes[0] >= len(shape) else shape[axes[0]]
    if axes is None or source is None or not isinstance(size, int):
        return None
    start = 0
    for output in node.outputs:
        found = shapes.shape(output)
        width = None if found is None or axes[0] >= len(found) else found[axes[0]]
        if not isinstance(width, int):
            return None
        if output is value:
            end = start + width
            return Part(source, axes[0], start, end, size) if start < end <= size else None
        start += width
    return None


def insert_slice(edit: Edit, part: Part, node: ir.Node, wish: str, shapes: ShapeMap) -> ir.Value:
    """Adds a Slice (of opset 10 on) before a node; returns what it makes."""
    assert node.graph is not None
    numbers = {"starts": part.start, "ends": part.end, "axes": part.axis}
    inputs = [
        edit.initializer(np.array([number], np.int64), name=f"{wish}_{name}", graph=node.graph)
        for name, number in numbers.items()
    ]
    made = edit.insert("Slice", [part.source, *inputs], before=node, outputs=[wish])
    describe(edit, shapes, made.outputs[0], part)
    return made.outputs[0]


def describe(edit: Edit, shapes: ShapeMap, value: ir.Value, part: Part) -> None:
    """Notes type and shape of a value that is a part of another one."""
    shape, dtype = shapes.shape(part.source), shapes.dtype(part.source)
    if shape is not None:
        shape = (*shape[: part.axis], part.end - part.start, *shape[part.axis + 1 :])
    shapes.record(value, dtype, shape)
    if dtype is not None:
        known = shape and [dim if isinstance(dim, int) else None for dim in shape]
        edit.set_type(value, dtype, known)


def insert_split(edit: Edit, parts: list[Part], node: ir.Node, shapes: ShapeMap) -> list[ir.Value]:
    """Adds a Split (of opset 13 on) into neighbouring parts that are all of a tensor."""
    assert node.graph is not None
    source, axis = parts[0].source, parts[0].axis
    sizes = np.array([part.end - part.start for part in parts], np.int64)
    made = edit.insert(
        "Split",
        [source, edit.initializer(sizes, name=f"{source.name}_sizes", graph=node.graph)],
        before=node,
        outputs=[f"{source.name}_part" for _ in parts],
        attributes={"axis": axis},
    )
    for value, part in zip(made.outputs, parts, strict=True):
        describe(edit, shapes, value, part)
    return list(made.outputs)


def set_slice(edit: Edit, node: ir.Node, ranges: list[tuple[int, int, int, int]]) -> None:
    """Gives a Slice other ranges: axis, start, end and step of each."""
    assert node.graph is not None
    axes, starts, ends, steps = zip(*ranges, strict=True)
    columns = {1: ("starts", starts), 2: ("ends", ends), 3: ("axes", axes), 4: ("steps", steps)}
    old = list(node.inputs[1:])
    for index, (name, numbers) in columns.items():
        if index == 4 and set(numbers) == {1} and input_at(node, 4) is None:
            continue
        wish = f"{node.outputs[0].name}_{name}"
        made = edit.initializer(np.array(numbers, np.int64), name=wish, graph=node.graph)
        edit.set_input(node, index, made)
    sweep(edit, *old)
