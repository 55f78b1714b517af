"""Channels that are alike: the same function of the inputs, so that one of them is enough."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import attribute, constant, input_at, is_op, is_pure, subgraphs
from onnxcomp_passes.prune.support.relations import Relations
from onnxcomp_passes.prune.support.weights import weight_of

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model, ir
    from onnxcomp_passes.prune.support.relations import Carried

Array = np.ndarray[Any, Any]
# Constants up to this size are compared by what they hold, larger ones by which they are.
_SMALL = 1 << 10
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class Fingerprints:
    """Digests of slices of weights, kept as long as the weights stay what they are."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[object, list[bytes]]] = {}

    def of(self, value: ir.Value, axis: int) -> list[bytes] | None:
        """Returns a digest for each position along an axis, None for what is no constant."""
        tensor = constant(value)
        key = (id(tensor), axis)
        if tensor is not None and key in self._known:
            return self._known[key][1]
        weight = weight_of(value)
        if weight is None or weight.dtype.kind not in "fbiu":
            return None
        rows = np.moveaxis(weight, axis, 0)
        found = [_digest(row) for row in rows]
        if tensor is not None:
            self._known[key] = (tensor, found)
        return found


def _digest(row: Array) -> bytes:
    return hashlib.blake2b(row.tobytes(), digest_size=16).digest()


class Likeness:
    """Numbers for positions of axes: slices at positions with equal numbers are equal for every input.

    It is value numbering (Alpern, Wegman and Zadeck, POPL 1988) with a channel as the value: equal
    operators of equal slices make equal slices.

    Args:
        model: The model.
        shapes: Its shapes.
        wanted: Axes that anybody may ask about.
        prints: Digests of weights.
    """

    def __init__(
        self,
        model: Model,
        shapes: ShapeMap,
        wanted: Collection[tuple[ir.Value, int]],
        prints: Fingerprints,
    ) -> None:
        self._opset = model.opset
        self._shapes = shapes
        self._prints = prints
        self._axes: dict[ir.Value, list[int]] = defaultdict(list)
        for value, axis in wanted:
            self._axes[value].append(axis)
        self._found: dict[tuple[ir.Value, int], Array] = {}
        self._numbers: dict[Hashable, int] = {}
        self._count = 0
        self._sweep(model.graph)

    def of(self, value: ir.Value, axis: int) -> Array:
        """Returns the number of each position."""
        key = (value, axis)
        if key not in self._found:
            prints = self._prints.of(value, axis)
            if prints is not None:
                self._found[key] = np.asarray([self._number(item) for item in prints], np.int64)
            else:
                shape = self._shapes.shape(value) or ()
                size = shape[axis] if axis < len(shape) else 0
                self._found[key] = self._fresh(size if isinstance(size, int) else 0)
        return self._found[key]

    def _sweep(self, graph: ir.Graph) -> None:
        for node in graph:
            for body in subgraphs(node):
                self._sweep(body)
            wanted = [(o, axis) for o in node.outputs for axis in self._axes.get(o, ())]
            if wanted and is_pure(node) and next(subgraphs(node), None) is None:
                self._visit(node, wanted)

    def _visit(self, node: ir.Node, wanted: list[tuple[ir.Value, int]]) -> None:
        relations: Relations | None = None
        for output, axis in wanted:
            numbers = self._of_layer(node, output, axis)
            if numbers is None:
                relations = relations or Relations(node, self._opset, self._shapes)
                numbers = self._of_relation(relations, output, axis)
            if numbers is not None:
                self._found[(output, axis)] = numbers

    def _of_relation(self, relations: Relations, output: ir.Value, axis: int) -> Array | None:
        """Combines what a position is made of with what is done to it."""
        node, carried = relations.node, relations.carried(output, axis)
        if not carried:
            return None
        columns = [self._column(found) for found in carried]
        if is_op(node, "Concat") and all((found.rows < 0).any() for found in carried):
            # One after another: each position is one operand's.
            joined: Array = np.max(np.stack([column[:, 0] for column in columns]), 0)
            return joined
        sign = self._signature(relations, output, {found.value for found in carried})
        table = np.concatenate(columns, 1)
        places = [(node.inputs.index(found.value), found.axis) for found in carried]
        number = self._number((sign, tuple(places)))
        made = [self._number((number, row.tobytes())) for row in np.ascontiguousarray(table)]
        return np.where((table < 0).any(1), self._fresh(len(table)), np.asarray(made, np.int64))

    def _column(self, found: Carried) -> Array:
        numbers = np.append(self.of(found.value, found.axis), -1)[found.rows]
        return numbers if found.offsets is None else np.c_[numbers, found.offsets]

    def _signature(
        self, relations: Relations, output: ir.Value, cut: Collection[ir.Value]
    ) -> Hashable:
        """What is done, and with which operands that are read whole."""
        node = relations.node
        summed = {c.left[0] for c in relations.roles.contractions}
        summed |= {
            c.right[0] for c in relations.roles.contractions if weight_of(c.right[0]) is None
        }
        whole = tuple(
            None if value in cut and value not in summed else self._whole(value)
            for value in node.inputs
        )
        return (node.domain, node.op_type, _attributes(node), node.outputs.index(output), whole)

    def _whole(self, value: ir.Value | None) -> Hashable:
        tensor = constant(value)
        if value is None or tensor is None or tensor.size > _SMALL:
            return None if value is None else ("value", id(value))
        found = tensor.numpy()
        return (str(tensor.dtype), found.shape, found.tobytes())

    def _of_layer(self, node: ir.Node, output: ir.Value, axis: int) -> Array | None:
        """Operators whose channels are in groups or in gates."""
        if is_op(node, "Conv", "ConvTranspose") and attribute(node, "group", 1) != 1:
            return self._of_groups(node, output) if axis == 1 else None
        if is_op(node, *_GATES):
            rank = self._shapes.rank(output) or 0
            return self._of_gates(node, output) if axis == rank - 1 else None
        return None

    def _of_groups(self, node: ir.Node, output: ir.Value) -> Array | None:
        """A filter, its bias, and the channels of its group."""
        weight, source = weight_of(node.inputs[1]), node.inputs[0]
        bias, group = input_at(node, 2), attribute(node, "group", 1)
        if weight is None or source is None:
            return None
        read = self.of(source, 1)
        added = None if bias is None else self.of(bias, 0)
        if node.op_type == "ConvTranspose":
            weight = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
            weight = weight.reshape(-1, *weight.shape[2:])
        if not len(read) or len(read) % group or (added is not None and len(added) != len(weight)):
            return None
        inputs = read.reshape(group, -1)
        each = len(weight) // group
        sign = (node.op_type, _attributes(node), str(self._shapes.dtype(output)))
        return np.asarray(
            [
                self._number(
                    (
                        sign,
                        inputs[index // each].tobytes(),
                        _digest(row),
                        None if added is None else int(added[index]),
                    )
                )
                for index, row in enumerate(weight)
            ],
            np.int64,
        )

    def _of_gates(self, node: ir.Node, output: ir.Value) -> Array | None:
        """All weights of a hidden unit, in all gates and directions, and where it starts."""
        recurrence = weight_of(node.inputs[2])
        if recurrence is None:
            return None
        units = recurrence.shape[2]
        rows: list[list[bytes]] = []
        for index in (1, 2, 3, 7):
            weight = weight_of(input_at(node, index))
            if weight is None and input_at(node, index) is not None:
                return None
            if weight is not None:
                gates = weight.reshape(len(weight), -1, units, *weight.shape[2:])
                rows.append([_digest(row) for row in np.moveaxis(gates, 2, 0)])
        for index in (5, 6):
            state = input_at(node, index)
            if state is not None:
                rank = self._shapes.rank(state) or 1
                rows.append([number.tobytes() for number in self.of(state, rank - 1)])
        place = node.outputs.index(output)
        if any(len(column) != units for column in rows):
            return None
        made = [self._number((id(node), place, *unit)) for unit in zip(*rows, strict=True)]
        return np.asarray(made, np.int64)

    def _fresh(self, size: int) -> Array:
        self._count += size
        return np.arange(self._count - size, self._count)

    def _number(self, key: Hashable) -> int:
        if key not in self._numbers:
            self._numbers[key] = self._count
            self._count += 1
        return self._numbers[key]


def _attributes(node: ir.Node) -> Hashable:
    return tuple(sorted((name, repr(attr.value)) for name, attr in node.attributes.items()))
