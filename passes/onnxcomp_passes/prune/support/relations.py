"""What a single node says of axes: which slices of its operands a slice of a result is made of."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.channels.site import Roles, Site
from onnxcomp.analysis.channels.space import Product, Space, Take
from onnxcomp.analysis.channels.table import rule_of
from onnxcomp.ir.ops import standard_op, subgraphs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

Array = np.ndarray[Any, Any]
# Operators that hand on elements: their results hold nothing but what an operand holds.
MOVES = frozenset(
    [
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    ]
)


@dataclass(frozen=True)
class Carried:
    """Slices of an operand that slices of a result depend on.

    Attributes:
        value: The operand.
        axis: Along which of its axes.
        rows: [size, n] for each position of the result those of the operand; -1 for none.
        offsets: [size] where several positions of the result come from one: which of them it is.
    """

    value: ir.Value
    axis: int
    rows: Array
    offsets: Array | None = None


class Relations:
    """The axes of one node's operands and results, as the rule of its operator ties them.

    A result's slice at a position is the same function, whichever the position, of the slices that
    are carried there and of the operands that are not cut.

    Args:
        node: The node.
        opset: Version of ONNX's own operators that the model declares.
        shapes: Shapes of its values.

    Attributes:
        roles: What it multiplies and sums up.
    """

    def __init__(self, node: ir.Node, opset: int, shapes: ShapeMap) -> None:
        self.node = node
        self.roles = Roles()
        self._space = Space()
        site = Site(node, opset, self._space, shapes, self.roles)
        rule = rule_of(site)
        if rule is not None and next(subgraphs(node), None) is None:
            rule(site)
        self._numbers = dict(self._space.known())
        self._sources = self._operands()
        self._barred = self._find_barred()

    def carried(self, output: ir.Value, axis: int) -> list[Carried]:
        """Returns what slices of a result depend on; nothing where positions depend on each other."""
        number = self._numbers.get((output, axis))
        if number is None or self._kind(number) in self._barred:
            return []
        kind, size = self._kind(number), self._space.sizes[number]
        found = [Carried(*source, np.arange(size)[:, None]) for source in self._sources[kind]]
        for take in self._space.takes:
            found += self._taken(take, kind)
        for product in self._space.products:
            found += self._multiplied(product, kind)
        return found

    def _kind(self, number: int) -> int:
        return self._space.kind(number)

    def _operands(self) -> dict[int, list[tuple[ir.Value, int]]]:
        found: dict[int, list[tuple[ir.Value, int]]] = defaultdict(list)
        operands = {value for value in self.node.inputs if value is not None}
        for (value, axis), number in self._numbers.items():
            if value in operands:
                found[self._kind(number)].append((value, axis))
        return found

    def _find_barred(self) -> set[int]:
        """Axes of which no position stands for itself."""
        barred = {self._kind(number) for number in _without_freedom(self._space)}
        if standard_op(self.node) not in MOVES:
            for product in self._space.products:
                barred |= {self._kind(number) for number in (product.whole, *product.factors)}
        return barred

    def _taken(self, take: Take, kind: int) -> Iterator[Carried]:
        if self._kind(take.out) != kind or self._kind(take.source) in self._barred:
            return
        for value, axis in self._sources[self._kind(take.source)]:
            yield Carried(value, axis, take.indices[:, None])

    def _multiplied(self, product: Product, kind: int) -> Iterator[Carried]:
        sizes = [self._space.sizes[factor] for factor in product.factors]
        if self._kind(product.whole) == kind:
            yield from self._combined(product, sizes)
        places = np.arange(int(np.prod(sizes))).reshape(sizes)
        for place, factor in enumerate(product.factors):
            if self._kind(factor) == kind:
                rows = np.moveaxis(places, place, 0).reshape(sizes[place], -1)
                for value, axis in self._sources[self._kind(product.whole)]:
                    yield Carried(value, axis, rows)

    def _combined(self, product: Product, sizes: list[int]) -> Iterator[Carried]:
        """An axis that runs through combinations: of axes of operands, and of what has no axis."""
        index = np.indices(sizes).reshape(len(sizes), -1)
        operands = [self._sources[self._kind(factor)] for factor in product.factors]
        offsets = np.zeros(index.shape[1], np.int64)
        for size, numbers, found in zip(sizes, index, operands, strict=True):
            offsets = offsets if found else offsets * size + numbers
        for numbers, found in zip(index, operands, strict=True):
            for value, axis in found:
                yield Carried(value, axis, numbers[:, None], offsets)


def _without_freedom(space: Space) -> Iterator[int]:
    yield from space.frozen
    yield from space.mixed
    yield from space.scaled
