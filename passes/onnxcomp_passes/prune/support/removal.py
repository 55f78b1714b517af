"""Taking units of groups out of a model: weights, attributes, constants and declared shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.table import known_as
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, constant, is_op
from onnxcomp_passes.prune.support.adjustments import ADJUSTMENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from onnxcomp.analysis.channels import Group, Member
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

_LONG = 1 << 20


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
        return any(self.is_emptied(member) for member in group.members)

    def is_emptied(self, member: Member) -> bool:
        """Whether an axis would be left without positions if all units of its group went."""
        kept = self._keep.get(member.value, {}).get(member.axis)
        left = self._size(member.value, member.axis) if kept is None else int(kept.sum())
        return left <= member.positions.size

    def apply(self) -> int:
        """Makes all changes; returns how many elements of weights went."""
        changed = {
            value: axes
            for value, axes in self._keep.items()
            if any(not k.all() for k in axes.values())
        }
        for node in _readers_and_writers(changed):
            adjust = ADJUSTMENTS.get(known_as(node))
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

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators that the model declares."""
        return self._model.opset

    def old_size(self, value: ir.Value | None, axis: int) -> int | None:
        """Returns the size that an axis had, None when it is not known."""
        shape = self._shapes.shape(value)
        size = None if shape is None else shape[axis]
        return size if isinstance(size, int) else None

    def items(self, value: ir.Value | None) -> Sequence[object] | None:
        """Returns what is known of the elements of a vector of sizes; None when nothing is."""
        vector = self._shapes.vector(value)
        if vector is not None:
            return vector.items
        shape = self._shapes.static(value)
        return None if shape is None or len(shape) != 1 else (None,) * shape[0]

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
            for name in list(producer.attributes):
                self.edit.set_attribute(producer, name, None)
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

    def constant_for(
        self, node: ir.Node, index: int, numbers: Sequence[int], dtype: type = np.int64
    ) -> None:
        """Gives a node a constant vector of its own as an input."""
        self.edit.set_input(node, index, self._vector(node, index, np.asarray(numbers, dtype)))

    def write_sizes(self, node: ir.Node, index: int, changes: Mapping[int, int]) -> None:
        """Writes new numbers into a vector of sizes that a node reads, computed or not."""
        value = node.inputs[index]
        if not changes or value is None:
            return
        known = array(value, limit=_LONG)
        if known is not None:
            numbers = known.copy()
            numbers[list(changes)] = list(changes.values())
            self.edit.set_input(node, index, self._vector(node, index, numbers))
        elif not self._rejoin(node, index, changes):
            self._choose(node, index, changes)

    def _rejoin(self, node: ir.Node, index: int, changes: Mapping[int, int]) -> bool:
        """Writes into constant parts of a vector that is joined; False when other parts change."""
        joined = node.inputs[index].producer() if node.inputs[index] is not None else None  # type: ignore[union-attr]
        if not is_op(joined, "Concat") or joined is None:
            return False
        parts, start, left = list(joined.inputs), 0, dict(changes)
        for place, part in enumerate(joined.inputs):
            shape = self._shapes.static(part)
            if shape is None or len(shape) != 1:
                return False
            mine = {
                position - start: left.pop(position)
                for position in list(left)
                if start <= position < start + shape[0]
            }
            start += shape[0]
            if mine:
                known = array(part, limit=_LONG)
                if known is None:
                    return False
                numbers = known.copy()
                numbers[list(mine)] = list(mine.values())
                parts[place] = self._vector(node, index, numbers)
        made = self.edit.insert("Concat", parts, before=node, attributes={"axis": 0})
        self.edit.set_input(node, index, made.outputs[0])
        return True

    def _choose(self, node: ir.Node, index: int, changes: Mapping[int, int]) -> None:
        """Takes the new number at some positions and what was computed at the others."""
        items = self.items(node.inputs[index]) or ()
        mask = np.isin(np.arange(len(items)), list(changes))
        numbers = np.zeros(len(items), np.int64)
        numbers[list(changes)] = list(changes.values())
        operands = [
            self._vector(node, index, mask),
            self._vector(node, index, numbers),
            node.inputs[index],
        ]
        made = self.edit.insert("Where", operands, before=node)
        self.edit.set_input(node, index, made.outputs[0])

    def _vector(self, node: ir.Node, index: int, numbers: np.ndarray) -> ir.Value:
        graph = node.graph
        if not isinstance(graph, ir.Graph):
            raise TypeError("the node is in no graph")
        return self.edit.initializer(
            numbers, name=f"{node.name or node.op_type}_{index}", graph=graph
        )


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
