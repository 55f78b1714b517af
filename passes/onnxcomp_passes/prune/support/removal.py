"""Taking units of groups out of a model: weights, attributes, constants and declared shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, integers, standard_op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from onnxcomp.analysis.channels import Group
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

    Adjust: TypeAlias = Callable[["Removal", ir.Node], None]

_LONG = 1 << 20
_FAR = 1 << 31
_END = 1 << 40


class Removal:
    """Which positions of which axes stay, and the changes that follow from it.

    Args:
        ctx: The pass that removes.
        shapes: Shapes before the removal.
    """

    def __init__(self, ctx: Context, shapes: ShapeMap) -> None:
        self.edit: Edit = ctx.edit
        self._model = ctx.model
        self._shapes = shapes
        self._keep: dict[ir.Value, dict[int, np.ndarray]] = {}

    def drop(self, group: Group, units: np.ndarray) -> None:
        """Marks units of a group for removal.

        Args:
            group: The group.
            units: [units] True for what goes.
        """
        for member in group.members:
            size = self._size(member.value, member.axis)
            axes = self._keep.setdefault(member.value, {})
            kept = axes.setdefault(member.axis, np.ones(size, bool))
            kept[member.positions[units].reshape(-1)] = False

    def empties(self, group: Group) -> bool:
        """Whether an axis would be left without positions if all units of a group went."""
        for member in group.members:
            kept = self._keep.get(member.value, {}).get(member.axis)
            left = self._size(member.value, member.axis) if kept is None else int(kept.sum())
            if left <= member.positions.size:
                return True
        return False

    def apply(self) -> int:
        """Makes all changes; returns how many elements of weights went."""
        changed = {
            value: axes
            for value, axes in self._keep.items()
            if any(not k.all() for k in axes.values())
        }
        nodes = _readers_and_writers(changed)
        for node in nodes:
            adjust = _ADJUSTMENTS.get(standard_op(node) or "")
            if adjust is not None:
                adjust(self, node)
        return sum(self._shrink(value, axes) for value, axes in changed.items())

    def new_size(self, value: ir.Value | None, axis: int) -> int | None:
        """Returns the size that an axis will have, None when it is not known."""
        shape = self._shapes.shape(value)
        if value is None or shape is None or not isinstance(shape[axis], int):
            return None
        kept = self.kept(value, axis)
        return shape[axis] if kept is None else int(kept.sum())  # type: ignore[return-value]

    def kept(self, value: ir.Value | None, axis: int) -> np.ndarray | None:
        """Returns which positions of an axis stay; None for all."""
        found = None if value is None else self._keep.get(value, {}).get(axis)
        return None if found is None or found.all() else found

    def rank(self, value: ir.Value | None) -> int:
        """Returns the number of axes of a value that is affected."""
        return self._shapes.rank(value) or 0

    def _size(self, value: ir.Value, axis: int) -> int:
        size = (self._shapes.shape(value) or ())[axis]
        if not isinstance(size, int):
            raise TypeError(f"axis {axis} of {value.name} has no known size")
        return size

    def _shrink(self, value: ir.Value, axes: Mapping[int, np.ndarray]) -> int:
        tensor = constant(value)
        if tensor is None:
            self._redeclare(value)
            return 0
        before = tensor.numpy()
        after = before
        for axis, kept in axes.items():
            after = after.compress(kept, axis)
        after = np.ascontiguousarray(after)
        producer = value.producer()
        if producer is None:
            self.edit.set_tensor(value, ir.tensor(after, dtype=tensor.dtype))
        else:
            self.edit.set_attribute(producer, "value", ir.tensor(after, dtype=tensor.dtype))
            self._redeclare(value)
        return before.size - after.size

    def _redeclare(self, value: ir.Value) -> None:
        """Declares the new shape where one was declared."""
        if value.shape is None:
            return
        dims: list[int | str | None] = []
        for axis, dim in enumerate(value.shape):
            size = self.new_size(value, axis)
            dims.append(size if isinstance(dim, int) and size is not None else _plain(dim))
        self.edit.set_type(value, shape=dims)

    def constant_for(self, node: ir.Node, index: int, numbers: Sequence[int]) -> None:
        """Gives a node a constant vector of its own as an input."""
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the node is in no graph")
        value = self.edit.initializer(
            np.asarray(numbers, np.int64), name=f"{node.name or node.op_type}_{index}", graph=graph
        )
        self.edit.set_input(node, index, value)


def _plain(dim: object) -> int | str | None:
    text = getattr(dim, "value", dim)
    return text if isinstance(text, (int, str)) else None


def _readers_and_writers(values: Iterable[ir.Value]) -> list[ir.Node]:
    found: dict[ir.Node, None] = {}
    for value in values:
        if (producer := value.producer()) is not None:
            found[producer] = None
        found.update((use.node, None) for use in value.uses())
    return list(found)


def _conv(removal: Removal, node: ir.Node) -> None:
    """As many groups as all channels hold a group's: those read by a Conv, made by a ConvTranspose."""
    if attribute(node, "group", 1) == 1:
        return
    all_groups = node.inputs[0] if node.op_type == "Conv" else node.outputs[0]
    whole, part = removal.new_size(all_groups, 1), removal.new_size(node.inputs[1], 1)
    if whole and part:
        removal.edit.set_attribute(node, "group", whole // part)


def _split(removal: Removal, node: ir.Node) -> None:
    rank = removal.rank(node.inputs[0])
    axis = attribute(node, "axis", 0) % rank
    sizes = [removal.new_size(output, axis) for output in node.outputs]
    if any(size is None for size in sizes) or all(
        removal.kept(o, axis) is None for o in node.outputs
    ):
        return
    numbers = [size or 0 for size in sizes]
    if (node.version or 13) < 13:
        removal.edit.set_attribute(node, "split", numbers)
        return
    removal.edit.set_attribute(node, "num_outputs", None)
    removal.constant_for(node, 1, numbers)


def _picked(removal: Removal, node: ir.Node, axis: int, picked: np.ndarray, out: int) -> list[int]:
    """Returns where the positions that a node picks and that stay will be in the operand."""
    source, result = removal.kept(node.inputs[0], axis), removal.kept(node.outputs[0], out)
    places = np.arange(picked.max() + 1) if source is None else np.cumsum(source) - 1
    return [int(place) for place in places[picked if result is None else picked[result]]]


def _gather(removal: Removal, node: ir.Node) -> None:
    axis = attribute(node, "axis", 0) % removal.rank(node.inputs[0])
    indices = array(node.inputs[1], limit=_LONG)
    source = removal.kept(node.inputs[0], axis)
    if indices is None or indices.ndim != 1 or source is None:
        return
    picked = np.where(indices < 0, indices + len(source), indices)
    removal.constant_for(node, 1, _picked(removal, node, axis, picked, axis))


def _slice(removal: Removal, node: ir.Node) -> None:
    """Cuts what is left of the positions that were cut before."""
    rank = removal.rank(node.inputs[0])
    for axis in range(rank):
        if removal.kept(node.inputs[0], axis) is not None:
            _slice_axis(removal, node, axis, rank)


def _slice_axis(removal: Removal, node: ir.Node, axis: int, rank: int) -> None:
    bounds = _Bounds.read(node, rank)
    kept = removal.kept(node.inputs[0], axis)
    if bounds is None or axis not in bounds.axes or kept is None:
        return
    place = bounds.axes.index(axis)
    picked = np.arange(len(kept))[bounds.slice(place)]
    new = _picked(removal, node, axis, picked, axis)
    step = new[1] - new[0] if len(new) > 1 else 1
    if new == list(range(new[0], new[0] + step * len(new), step)):
        bounds.set(place, new[0], new[-1] + (1 if step > 0 else -1), step)
    else:
        # What is left has no pattern any more: it is picked by number in front of the Slice.
        bounds.set(place, 0, _END, 1)
        gather = removal.edit.insert(
            "Gather", [node.inputs[0]], before=node, attributes={"axis": axis}
        )
        removal.constant_for(gather, 1, new)
        removal.edit.set_input(node, 0, gather.outputs[0])
    bounds.write(removal, node)


@dataclass
class _Bounds:
    """The bounds of a Slice, in attributes or in constant inputs."""

    starts: list[int]
    ends: list[int]
    axes: list[int]
    steps: list[int]

    @classmethod
    def read(cls, node: ir.Node, rank: int) -> _Bounds | None:
        """Reads them; None when one is not constant."""
        if "starts" in node.attributes:
            starts: list[int] = list(attribute(node, "starts", ()))
            ends: list[int] = list(attribute(node, "ends", ()))
            axes: list[int] = list(attribute(node, "axes", range(len(starts))))
            return cls(starts, ends, [axis % rank for axis in axes], [1] * len(starts))
        given = [
            None if input_at(node, i) is None else integers(input_at(node, i)) for i in range(1, 5)
        ]
        if not given[0] or not given[1]:
            return None
        starts, ends = given[0], given[1]
        axes = given[2] or list(range(len(starts)))
        return cls(starts, ends, [axis % rank for axis in axes], given[3] or [1] * len(starts))

    def slice(self, place: int) -> slice[int, int | None, int]:
        """Returns the bounds of one axis; far below zero stands for "to the beginning"."""
        backwards = self.steps[place] < 0 and self.ends[place] < -_FAR
        return slice(self.starts[place], None if backwards else self.ends[place], self.steps[place])

    def set(self, place: int, start: int, end: int, step: int) -> None:
        """Sets the bounds of one axis."""
        self.starts[place], self.steps[place] = start, step
        self.ends[place] = -_END if step < 0 and end < 0 else end

    def write(self, removal: Removal, node: ir.Node) -> None:
        """Stores them where they came from."""
        if "starts" in node.attributes:
            removal.edit.set_attribute(node, "starts", self.starts)
            removal.edit.set_attribute(node, "ends", self.ends)
            return
        for index, numbers in enumerate((self.starts, self.ends, self.axes, self.steps), 1):
            removal.constant_for(node, index, numbers)


def _reshape(removal: Removal, node: ir.Node) -> None:
    target = integers(input_at(node, 1))
    if target is None:
        return
    new = list(target)
    for axis, entry in enumerate(target):
        size = removal.new_size(node.outputs[0], axis)
        if entry == -1 or size is None:
            continue
        if entry == 0 and not attribute(node, "allowzero", 0):
            same = (
                axis < removal.rank(node.inputs[0])
                and removal.new_size(node.inputs[0], axis) == size
            )
            new[axis] = 0 if same else size
        else:
            new[axis] = size
    if new != target:
        removal.constant_for(node, 1, new)


def _expand(removal: Removal, node: ir.Node) -> None:
    target = integers(input_at(node, 1))
    if target is None:
        return
    offset = removal.rank(node.outputs[0]) - len(target)
    new = [
        entry if entry == 1 else (removal.new_size(node.outputs[0], axis + offset) or entry)
        for axis, entry in enumerate(target)
    ]
    if new != target:
        removal.constant_for(node, 1, new)


def _resize(removal: Removal, node: ir.Node) -> None:
    sizes = integers(input_at(node, 3))
    if not sizes or len(sizes) < 2 or attribute(node, "axes") is not None:
        return
    new = [removal.new_size(node.outputs[0], axis) or size for axis, size in enumerate(sizes)]
    if new != sizes:
        removal.constant_for(node, 3, new)


def _recurrent(removal: Removal, node: ir.Node) -> None:
    size = removal.new_size(node.inputs[2], 2)
    if size is not None and "hidden_size" in node.attributes:
        removal.edit.set_attribute(node, "hidden_size", size)


def _attention(removal: Removal, node: ir.Node) -> None:
    """Whole heads went, or the same part of each."""
    kept = removal.kept(node.outputs[0], 2) if removal.rank(node.outputs[0]) == 3 else None
    heads = attribute(node, "q_num_heads", 0)
    if kept is None or not heads:
        return
    by_head = kept.reshape(heads, -1)
    if (by_head.all(1) | ~by_head.any(1)).all():
        removal.edit.set_attribute(node, "q_num_heads", int(by_head.any(1).sum()))
        removal.edit.set_attribute(node, "kv_num_heads", int(by_head.any(1).sum()))


_ADJUSTMENTS: dict[str, Adjust] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Split": _split,
    "Gather": _gather,
    "Slice": _slice,
    "Reshape": _reshape,
    "Expand": _expand,
    "Resize": _resize,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
}
