"""What a rule of an operator sees: its node, the axes of its operands, and where to state relations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from onnxcomp.analysis.channels.space import factorize
from onnxcomp.ir.ops import attribute, constant, input_at, integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.space import Axis, Space
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

# The axes of a value by their numbers in the space; None for one whose size is not known.
Axes: TypeAlias = "list[int | None]"


class Site:
    """A node, seen by the rule of its operator.

    Attributes:
        node: The node.
        space: Where relations between axes are stated.
        shapes: Types and shapes of all values.
        producers: Axes of weights along which channels are made, by rules that know.
        consumers: Axes of weights along which channels are read and summed up.
    """

    def __init__(self, node: ir.Node, space: Space, shapes: ShapeMap, roles: Roles) -> None:
        self.node = node
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
            for axis in self.axes(value) or ():
                self.keep(axis, "it is a parameter")

    def spread(self, axes: Axes, out: Axes) -> None:
        """States that an operand is spread over a result, compared from the right (broadcasting)."""
        for one, other in zip(reversed(axes), reversed(out), strict=False):
            if self.size(one) != 1 or self.size(other) == 1:
                self.tie(one, other)

    def keep(self, axis: int | None, why: str) -> None:
        """States that an axis must keep all its positions."""
        if axis is not None:
            self.space.freeze(axis, f"{why} ({self.node.op_type})")

    def mix(self, axis: int | None) -> None:
        """States that the operator mixes all positions of an axis: a mean, a softmax, a norm."""
        if axis is not None:
            self.space.mix(axis, f"{self.node.op_type} works over the whole axis")

    def freeze(self, why: str) -> None:
        """Keeps every axis of everything that the node reads or writes."""
        for value in (*self.node.inputs, *self.node.outputs):
            for axis in self.axes(value) or ():
                self.keep(axis, why)

    def makes(self, value: ir.Value | None, axis: int) -> None:
        """Notes that a weight makes channels along an axis."""
        if value is not None and constant(value) is not None:
            self.roles.producers[(value, axis)] = self.node

    def reads(self, value: ir.Value | None, axis: int) -> None:
        """Notes that a weight is summed up over an axis."""
        if value is not None and constant(value) is not None:
            self.roles.consumers[(value, axis)] = self.node

    def contracts(
        self, left: ir.Value | None, axis: int, right: ir.Value | None, along: int
    ) -> None:
        """Notes that two values are multiplied and summed up along an axis of each."""
        if left is not None and right is not None:
            self.roles.contractions.append(Contraction(self.node, (left, axis), (right, along)))
            self.reads(left, axis)
            self.reads(right, along)

    def regroup(self, ones: Sequence[int | None], others: Sequence[int | None]) -> bool:
        """States that two lists of axes hold the same elements in the same order (a reshape).

        Sizes that are not known may stand at the same place from the left or from the right; what is
        between must be known.

        Returns:
            Whether that could be stated; otherwise all axes are kept.
        """
        left = [axis for axis in ones if axis is not None]
        right = [axis for axis in others if axis is not None]
        if len(left) == len(ones) and len(right) == len(others):
            return self._regroup(left, right)
        return self._regroup_tail(list(ones), list(others))

    def _regroup_tail(self, ones: Axes, others: Axes) -> bool:
        """Compares from the right, as far as products agree; the rest is kept."""
        left: list[int] = []
        right: list[int] = []
        while ones or others:
            matched = _product(self, left) == _product(self, right)
            if matched and left and self._ends_here(ones, others):
                break
            take_left = _product(self, left) <= _product(self, right)
            side, parts = (ones, left) if take_left else (others, right)
            if not side or side[-1] is None:
                break
            parts.insert(0, side.pop() or 0)
        for axis in (*ones, *others):
            self.keep(axis, "it is reshaped together with a size that is not known")
        if _product(self, left) != _product(self, right):
            for axis in (*left, *right):
                self.keep(axis, "it is reshaped together with a size that is not known")
            return False
        return self._regroup(left, right)

    @staticmethod
    def _ends_here(ones: Axes, others: Axes) -> bool:
        return not ones or not others or ones[-1] is None or others[-1] is None

    def _regroup(self, ones: Sequence[int], others: Sequence[int]) -> bool:
        sizes = self.space.sizes
        factors = factorize([sizes[axis] for axis in ones], [sizes[axis] for axis in others])
        if factors is None:
            for axis in (*ones, *others):
                self.keep(axis, "it is reshaped to sizes that do not divide")
            return False
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
        return True


@dataclass(frozen=True)
class Contraction:
    """A node that multiplies two operands and sums up along an axis of each."""

    node: ir.Node
    left: Axis
    right: Axis


class Roles:
    """Which axes of weights make channels, and which read them."""

    def __init__(self) -> None:
        self.contractions: list[Contraction] = []
        self.producers: dict[Axis, ir.Node] = {}
        self.consumers: dict[Axis, ir.Node] = {}


def _product(site: Site, axes: Sequence[int]) -> int:
    product = 1
    for axis in axes:
        product *= site.space.sizes[axis]
    return product
