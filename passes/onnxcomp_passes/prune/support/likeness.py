"""Channels that are alike: the same function of the inputs, so that one of them is enough."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import attribute, constant, input_at, is_op, is_pure, standard_op, subgraphs
from onnxcomp_passes.prune.support.relations import MOVES, Relations
from onnxcomp_passes.prune.support.stored import weight_of

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable

    from onnxcomp.ir import Model, ir
    from onnxcomp_passes.prune.support.constancy import Constancy
    from onnxcomp_passes.prune.support.relations import Carried

Array = np.ndarray[Any, Any]
# What a multiple of a channel becomes is the multiple of what the channel becomes.
_LINEAR = MOVES | {
    "AveragePool",
    "Dropout",
    "GlobalAveragePool",
    "Identity",
    "Neg",
    "Pad",
    "ReduceMean",
    "ReduceSum",
    "Resize",
    "Upsample",
}
# The same, where the factor is positive.
_POSITIVE = frozenset(
    ["GlobalMaxPool", "LeakyRelu", "MaxPool", "PRelu", "ReduceMax", "ReduceMin", "Relu"]
)
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
    """Tells slices apart by what they hold, and by shape and type: both decide what becomes of them."""
    kind = f"{row.dtype.str}{row.shape}".encode()
    return hashlib.blake2b(kind + row.tobytes(), digest_size=16).digest()


class Likeness:
    """Numbers for positions of axes: slices at positions with equal numbers are multiples of each other.

    Slices of which `scale` is equal too are equal, for every input; channels that hold a constant are
    multiples of one.

    It is value numbering (Alpern, Wegman and Zadeck, POPL 1988) with a channel as the value: equal
    operators of equal slices make equal slices.

    Args:
        model: The model.
        constancy: What is known of its channels.
        wanted: Axes that anybody may ask about.
        prints: Digests of weights.
    """

    def __init__(
        self,
        model: Model,
        constancy: Constancy,
        wanted: Collection[tuple[ir.Value, int]],
        prints: Fingerprints,
    ) -> None:
        self._opset = model.opset
        self._shapes = constancy.shapes
        self._constancy = constancy
        self._prints = prints
        self._axes: dict[ir.Value, list[int]] = defaultdict(list)
        for value, axis in wanted:
            self._axes[value].append(axis)
        self._found: dict[tuple[ir.Value, int], Array] = {}
        self._scale: dict[tuple[ir.Value, int], Array] = {}
        self._numbers: dict[Hashable, int] = {}
        self._count = 0
        self._sweep(model.graph)

    def of(self, value: ir.Value, axis: int) -> Array:
        """Returns the number of each position."""
        key = (value, axis)
        if key not in self._found:
            prints = self._prints.of(value, axis)
            if prints is not None:
                numbers = np.asarray([self._number(item) for item in prints], np.int64)
            else:
                shape = self._shapes.shape(value) or ()
                size = shape[axis] if axis < len(shape) else 0
                numbers = self._fresh(size if isinstance(size, int) else 0)
            self._store(value, axis, numbers, np.ones(len(numbers)))
        return self._found[key]

    def scale(self, value: ir.Value, axis: int) -> Array:
        """Returns how many times what its number stands for each position holds."""
        self.of(value, axis)
        return self._scale[(value, axis)]

    def _store(self, value: ir.Value, axis: int, numbers: Array, scale: Array) -> None:
        """Notes numbers; constants other than zero are multiples of one."""
        held = self._constancy.of(value, axis)
        if len(held) == len(numbers):
            fixed = ~np.isnan(held) & (held != 0) & np.isfinite(held)
            numbers = np.where(fixed, self._number(("one", self._slice_of(value, axis))), numbers)
            scale = np.where(fixed, held, scale)
        self._found[(value, axis)], self._scale[(value, axis)] = numbers, scale

    def _slice_of(self, value: ir.Value, axis: int) -> Hashable:
        """What a slice looks like; that of a value of unknown sizes is like no other's."""
        shape = list(self._shapes.shape(value) or ())
        rest = (*shape[:axis], *shape[axis + 1 :])
        kind = str(self._shapes.dtype(value))
        return (kind, id(value)) if any(dim is None for dim in rest) else (kind, *map(str, rest))

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
            if numbers is not None:
                self._store(output, axis, numbers, np.ones(len(numbers)))
                continue
            relations = relations or Relations(node, self._opset, self._shapes)
            carried = relations.carried(output, axis)
            if is_op(node, "Concat") and all((found.rows < 0).any() for found in carried):
                self._join(output, axis, carried)
            elif carried:
                self._combine(relations, output, axis, carried)

    def _join(self, output: ir.Value, axis: int, carried: list[Carried]) -> None:
        """One operand after another: each position is one operand's."""
        size = len(carried[0].rows) if carried else 0
        numbers, scale = self._fresh(size), np.ones(size)
        for found in carried:
            rows = found.rows[:, 0]
            numbers = np.where(rows < 0, numbers, self.of(found.value, found.axis)[rows])
            scale = np.where(rows < 0, scale, self.scale(found.value, found.axis)[rows])
        self._store(output, axis, numbers, scale)

    def _combine(
        self, relations: Relations, output: ir.Value, axis: int, carried: list[Carried]
    ) -> None:
        """Combines what a position is made of with what is done to it."""
        node = relations.node
        factor = self._factor(relations, carried)
        # Slopes and the like do not scale what they are applied to.
        scaled = set(node.inputs) if is_op(node, "Mul") else {node.inputs[0]}
        columns = [
            self._column(found, exact=factor is None or found.value not in scaled)
            for found in carried
        ]
        if factor is None:
            factor = np.ones(len(columns[0]))
        elif standard_op(node) in _POSITIVE:
            columns.append(np.signbit(factor)[:, None].astype(np.int64))
            factor = np.abs(factor)
        sign = self._signature(relations, output, {found.value for found in carried})
        table = np.concatenate(columns, 1)
        places = [(node.inputs.index(found.value), found.axis) for found in carried]
        number = self._number((sign, tuple(places)))
        made = [self._number((number, row.tobytes())) for row in np.ascontiguousarray(table)]
        unknown = np.any([(found.rows < 0).any(1) for found in carried], 0)
        numbers = np.where(unknown, self._fresh(len(table)), np.asarray(made, np.int64))
        self._store(output, axis, numbers, np.where(unknown, 1.0, factor))

    def _factor(self, relations: Relations, carried: list[Carried]) -> Array | None:
        """Returns by what a result is scaled as its operands are; None where it is not."""
        node = relations.node
        name = standard_op(node)
        if len(set(node.inputs)) < len(node.inputs):
            return None
        if name == "Mul":
            scales = [self._scaled(found)[:, 0] for found in carried]
            return _multiplied(scales)
        homogeneous = name in _POSITIVE or (name in _LINEAR and _hands_on_zero(node))
        if not homogeneous or name == "Concat":
            return None
        data = [found for found in carried if found.value is node.inputs[0]]
        scales = [self._scaled(found) for found in data]
        if not scales or any((scale != scale[:, :1]).any() for scale in scales):
            return None
        # Factors of a Reshape: one of its axes is scaled, or none.
        return _multiplied([scale[:, 0] for scale in scales])

    def _scaled(self, found: Carried) -> Array:
        scale: Array = np.append(self.scale(found.value, found.axis), 1.0)[found.rows]
        return scale

    def _column(self, found: Carried, *, exact: bool) -> Array:
        """Returns the numbers of what positions are made of, and where they must be equal the scales."""
        parts = [np.append(self.of(found.value, found.axis), -1)[found.rows]]
        if exact:
            parts.append(self._scaled(found).view(np.int64))
        if found.offsets is not None:
            parts.append(found.offsets[:, None])
        return np.concatenate(parts, 1)

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
            node.inputs.index(value) if value in cut and value not in summed else self._whole(value)
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
        if weight is None or not weight.size or source is None:
            return None
        read = self.of(source, 1)
        added = None if bias is None else self.of(bias, 0)
        offsets = np.zeros(0) if bias is None else self.scale(bias, 0)
        if node.op_type == "ConvTranspose":
            weight = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
            weight = weight.reshape(-1, *weight.shape[2:])
        if not len(read) or len(read) % group or (added is not None and len(added) != len(weight)):
            return None
        inputs, scales = read.reshape(group, -1), self.scale(source, 1).reshape(group, -1)
        each = len(weight) // group
        sign = (node.op_type, _attributes(node), str(self._shapes.dtype(output)))
        return np.asarray(
            [
                self._number(
                    (
                        sign,
                        inputs[index // each].tobytes(),
                        scales[index // each].tobytes(),
                        _digest(row),
                        None if added is None else (int(added[index]), float(offsets[index])),
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
                scales = self.scale(state, rank - 1)
                numbers = self.of(state, rank - 1)
                rows.append([np.r_[a, b].tobytes() for a, b in zip(numbers, scales, strict=True)])
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


def _multiplied(scales: list[Array]) -> Array:
    product: Array = np.prod(np.stack(scales), 0)
    return product


def _hands_on_zero(node: ir.Node) -> bool:
    """Whether nothing comes in that is not a multiple of what is there."""
    if is_op(node, "Pad"):
        fill = input_at(node, 2)
        given = attribute(node, "value", 0.0) if fill is None else weight_of(fill)
        zero = given is not None and not np.any(given)
        return attribute(node, "mode", "constant") != "constant" or zero
    if is_op(node, "Resize"):
        return attribute(node, "coordinate_transformation_mode", "") != "tf_crop_and_resize"
    return True


def _attributes(node: ir.Node) -> Hashable:
    return tuple(sorted((name, repr(attr.value)) for name, attr in node.attributes.items()))
