"""What a rule of an operator sees: its node, the axes of its operands, and where to state relations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from onnxcomp.analysis.channels.space import factorize
from onnxcomp.ir.ops import attribute, constant, input_at, integers, is_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from onnxcomp.analysis.channels.space import Axis, Space
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Sizes
    from onnxcomp.ir import ir

# The axes of a value by their numbers in the space; None for one whose size is not known.
Axes: TypeAlias = "list[int | None]"
Run: TypeAlias = "tuple[int, int]"
UNKNOWN_RANK = "the rank of an operand is not known"
# More picked positions than this are not followed one by one.
MANY = 1 << 20


class Site:
    """A node, seen by the rule of its operator.

    Attributes:
        node: The node.
        opset: Version of ONNX's own operators that the model declares.
        space: Where relations between axes are stated.
        shapes: Types and shapes of all values.
        producers: Axes of weights along which channels are made, by rules that know.
        consumers: Axes of weights along which channels are read and summed up.
    """

    def __init__(
        self, node: ir.Node, opset: int, space: Space, shapes: ShapeMap, roles: Roles
    ) -> None:
        self.node = node
        self.opset = opset
        self.space = space
        self.shapes = shapes
        self.roles = roles
        self._seen: set[ir.Value] = set()

    def input(self, index: int) -> ir.Value | None:
        """Returns an input, None when it is left out."""
        return input_at(self.node, index)

    def axes(self, value: ir.Value | None) -> Axes | None:
        """Returns the axes of a value; None when its rank is not known or there is no value."""
        shape = self.shapes.shape(value)
        if value is None or shape is None:
            return None
        self._seen.add(value)
        return [
            self.space.axis(value, index, size) if isinstance(size, int) and size > 0 else None
            for index, size in enumerate(shape)
        ]

    def attribute(self, name: str, default: int) -> int:
        """Returns an integer attribute; the default also when only a function's caller knows it."""
        found: object = attribute(self.node, name, default)
        return found if isinstance(found, int) else default

    def integers(
        self, name: str, index: int, default: Sequence[int] | None = None
    ) -> list[int] | None:
        """Returns integers that are an attribute in old opsets and a constant input in new ones.

        The default when neither is there, None when what is there is not known.
        """
        given: object = self.node.attributes.get(name)
        if given is not None:
            found: object = attribute(self.node, name)
            return [int(item) for item in found] if isinstance(found, (list, tuple)) else None
        if self.input(index) is not None:
            return integers(self.input(index))
        return None if default is None else list(default)

    def size(self, axis: int | None) -> int | None:
        """Returns how many positions an axis has."""
        return None if axis is None else self.space.sizes[axis]

    def tie(self, one: int | None, other: int | None) -> None:
        """States that two axes are equal; where sizes are unknown or differ, both must stay."""
        if one is not None and other is not None and self.size(one) == self.size(other):
            self.space.same(one, other)
            return
        for axis in (one, other):
            self.keep(axis, "what it must equal is not known")

    def tie_all(self, ones: Sequence[int | None], others: Sequence[int | None]) -> None:
        """States that axes are equal one by one."""
        for one, other in zip(ones, others, strict=True):
            self.tie(one, other)

    def close(self) -> None:
        """Keeps what the rule did not look at: shapes, bounds and other parameters."""
        for value in dict.fromkeys((*self.node.inputs, *self.node.outputs)):
            if value in self._seen:
                continue
            self.keep_all(value, "it is a parameter")

    def spread(self, axes: Axes, out: Axes) -> None:
        """States that an operand is spread over a result, compared from the right (broadcasting)."""
        for one, other in zip(reversed(axes), reversed(out), strict=False):
            if self.size(one) != 1 or self.size(other) == 1:
                self.tie(one, other)

    def ends(self) -> tuple[Axes, Axes] | None:
        """Returns the axes of the first operand and of the first result; keeps all if not known."""
        source, out = self.axes(self.input(0)), self.axes(self.node.outputs[0])
        if source is None or out is None:
            self.freeze(UNKNOWN_RANK)
            return None
        return source, out

    def through(self) -> tuple[Axes, Axes] | None:
        """Returns the axes of the first operand and of the first result if they are as many."""
        found = self.ends()
        if found is not None and len(found[0]) != len(found[1]):
            self.freeze(UNKNOWN_RANK)
            return None
        return found

    def take(self, out: int | None, source: int | None, indices: np.ndarray) -> None:
        """States that positions of one axis are picked from another; -1 is picked from nowhere."""
        if out is None or source is None or len(indices) > MANY:
            self.keep(out, "its positions are too many to follow")
            self.keep(source, "its positions are too many to follow")
            return
        size = self.size(source) or 0
        if len(indices) != self.size(out) or (indices >= size).any() or (indices < -1).any():
            self.keep(out, "it is picked from positions that are not there")
            self.keep(source, "positions are picked from it that are not there")
            return
        self.space.take(out, source, indices)

    def keep_all(self, value: ir.Value | None, why: str) -> None:
        """States that all axes of a value must keep all their positions."""
        for axis in self.axes(value) or ():
            self.keep(axis, why)

    def keep(self, axis: int | None, why: str) -> None:
        """States that an axis must keep all its positions."""
        if axis is not None:
            self.space.freeze(axis, f"{why} ({self.node.op_type})")

    def scale(self, axis: int | None) -> None:
        """States that the operator measures a scale over all positions of an axis as it runs."""
        if axis is not None:
            self.space.scale(axis, f"{self.node.op_type} measures a scale over the whole axis")

    def mix(self, axis: int | None) -> None:
        """States that the operator mixes all positions of an axis: a mean, a softmax, a norm."""
        if axis is not None:
            self.space.mix(axis, f"{self.node.op_type} works over the whole axis")

    def head(self, axis: int | None) -> None:
        """States that an axis is one of heads: products of activations that stand beside each other."""
        if axis is not None:
            self.space.head(axis)

    def freeze(self, why: str) -> None:
        """Keeps every axis of everything that the node reads or writes."""
        for value in (*self.node.inputs, *self.node.outputs):
            self.keep_all(value, why)

    def makes(self, value: ir.Value | None, axis: int) -> None:
        """Notes that a weight makes channels along an axis."""
        if (found := origin(value, axis)) is not None:
            self.roles.producers[found] = self.node

    def reads(self, value: ir.Value | None, axis: int) -> None:
        """Notes that a weight is summed up over an axis."""
        if (found := origin(value, axis)) is not None:
            self.roles.consumers[found] = self.node

    def contracts(
        self,
        left: ir.Value | None,
        axis: int,
        right: ir.Value | None,
        along: int,
        *,
        within: int | None = None,
    ) -> None:
        """Notes that two values are multiplied and summed up along an axis of each.

        Along a factor of it only, if one is named: the inside of heads.
        """
        if left is not None and right is not None:
            found = Contraction(self.node, (left, axis), (right, along), within)
            self.roles.contractions.append(found)
            self.reads(left, axis)
            self.reads(right, along)

    def regroup(self, one: ir.Value, other: ir.Value) -> None:
        """States that two values hold the same elements in the same order (a reshape).

        Sizes are compared from the left and from the right, as far as products are proven equal; equal
        expressions are equal sizes. What is left in the middle is kept.
        """
        ones, others = self.axes(one), self.axes(other)
        left, right = self.shapes.sizes(one), self.shapes.sizes(other)
        if ones is None or others is None:
            return
        if left is None or right is None:
            left, right = (None,) * len(ones), (None,) * len(others)
        runs = aligned_runs(left, right)
        for first, second in runs:
            inner = [axis for axis in ones[slice(*first)] if axis is not None]
            outer = [axis for axis in others[slice(*second)] if axis is not None]
            self._regroup(inner, outer)
        seen = {place for first, _ in runs for place in range(*first)}
        met = {place for _, second in runs for place in range(*second)}
        for axes, known in ((ones, seen), (others, met)):
            for place, axis in enumerate(axes):
                if place not in known and self.size(axis) != 1:
                    self.keep(axis, "it is reshaped together with a size that is not known")

    def _regroup(self, ones: Sequence[int], others: Sequence[int]) -> None:
        sizes = self.space.sizes
        factors = factorize([sizes[axis] for axis in ones], [sizes[axis] for axis in others])
        if factors is None:
            for axis in (*ones, *others):
                self.keep(axis, "it is reshaped to sizes that do not divide")
            return
        parts: dict[int, int] = {}
        for axes, made_of in ((ones, factors.left), (others, factors.right)):
            for axis, numbers in zip(axes, made_of, strict=True):
                if len(numbers) == 1:
                    known = parts.setdefault(numbers[0], axis)
                    self.space.same(known, axis)
        for number, size in enumerate(factors.sizes):
            parts.setdefault(number, self.space.virtual(size))
        for axes, made_of in ((ones, factors.left), (others, factors.right)):
            for axis, numbers in zip(axes, made_of, strict=True):
                if len(numbers) > 1:
                    self.space.product(axis, [parts[number] for number in numbers])


@dataclass(frozen=True)
class Contraction:
    """A node that multiplies two operands and sums up along an axis of each.

    Attributes:
        within: The factor of the axis that is summed over, None for the whole axis.
    """

    node: ir.Node
    left: Axis
    right: Axis
    within: int | None = None


class Roles:
    """Which axes of weights make channels, and which read them."""

    def __init__(self) -> None:
        self.contractions: list[Contraction] = []
        self.producers: dict[Axis, ir.Node] = {}
        self.consumers: dict[Axis, ir.Node] = {}


# What hands on a weight with its axes where they were.
_SAME_AXES = ("Identity", "Cast", "DequantizeLinear", "QuantizeLinear")


def origin(value: ir.Value | None, axis: int) -> Axis | None:
    """Returns the axis of the constant that an axis of a weight comes from, None when there is none.

    Weights reach their reader dequantized, cast or transposed.
    """
    while value is not None and constant(value) is None:
        node = value.producer()
        if is_op(node, *_SAME_AXES):
            pass
        elif is_op(node, "Transpose") and node is not None:
            order = attribute(node, "perm")
            if not isinstance(order, (list, tuple)) or axis >= len(order):
                return None
            axis = int(order[axis])
        else:
            return None
        value = input_at(node, 0) if node is not None else None
    return None if value is None else (value, axis)


def aligned_runs(left: Sizes, right: Sizes) -> list[tuple[Run, Run]]:
    """Returns stretches of two lists of sizes, from both ends, whose products are known and equal."""
    front = _runs(left, right)
    first, second = front[-1][0][1] if front else 0, front[-1][1][1] if front else 0
    back = _runs(left[first:][::-1], right[second:][::-1])
    ends = len(left), len(right)
    mirrored = [((ends[0] - b, ends[0] - a), (ends[1] - d, ends[1] - c)) for (a, b), (c, d) in back]
    return [*front, *mirrored]


def _runs(left: Sizes, right: Sizes) -> list[tuple[Run, Run]]:
    """Stretches from the left on; each side of one starts where the last one ended."""
    found: list[tuple[Run, Run]] = []
    places = (0, 0)
    while (ends := _stretch(left, right, places)) is not None and ends != places:
        found.append(((places[0], ends[0]), (places[1], ends[1])))
        places = ends
    return found


def _stretch(left: Sizes, right: Sizes, places: tuple[int, int]) -> tuple[int, int] | None:
    """Returns where the shortest stretch ends that has the same product on both sides."""
    first, second = places
    if first < len(left) and second < len(right) and _is_same(left[first], right[second]):
        return first + 1, second + 1
    products = [1, 1]
    while True:
        sides = (left, first, 0) if products[0] <= products[1] else (right, second, 1)
        if products == [1, 1] and first >= len(left):
            sides = (right, second, 1)
        sizes, place, side = sides
        if place >= len(sizes) or not isinstance(size := sizes[place], int) or size < 1:
            return None
        products[side] *= size
        first, second = (first + 1, second) if side == 0 else (first, second + 1)
        if products[0] == products[1]:
            return first, second


def _is_same(one: Item, other: Item) -> bool:
    return one is not None and one == other
