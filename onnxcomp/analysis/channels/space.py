"""Axes of values, and which positions of them belong together.

The unit is the *position*: channel 17 of this value. Operators say how positions of one axis answer
to positions of another; whoever removes a position has to remove all that belong to it. Axes that
are simply equal are merged whole, which is nearly all of them; only where an axis is a part, a
concatenation or a product of others are positions looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onnxcomp.ir import ir

Axis: TypeAlias = "tuple[ir.Value, int]"
Prefer = Literal["large", "outer", "inner", "heads"]

# Above this many positions to be looked at one by one, the rest of an axis is left alone.
MAX_POSITIONS = 1 << 22
# How often equal axes are looked for among the products of equal axes.
_ROUNDS = 16


class Union:
    """Disjoint sets of numbers; the smallest member speaks for its set."""

    def __init__(self, count: int = 0) -> None:
        self._parent = list(range(count))

    def add(self) -> int:
        """Adds a number, in a set of its own."""
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def find(self, item: int) -> int:
        """Returns who speaks for an item."""
        parent = self._parent
        while parent[item] != item:
            parent[item] = parent[parent[item]]
            item = parent[item]
        return item

    def join(self, one: int, other: int) -> tuple[int, int]:
        """Merges two sets; returns who speaks for the union and who no longer does."""
        one, other = self.find(one), self.find(other)
        low, high = min(one, other), max(one, other)
        self._parent[high] = low
        return low, high


@dataclass(frozen=True)
class Take:
    """Positions of an axis that are positions of another: `out[i]` is `source[indices[i]]`.

    An index of -1 stands for a position that comes from nowhere, such as padding.
    """

    out: int
    source: int
    indices: np.ndarray


@dataclass(frozen=True)
class Product:
    """An axis that runs through all combinations of others, the last one fastest."""

    whole: int
    factors: tuple[int, ...]


@dataclass
class Space:
    """The axes of a model's values and what operators say of them."""

    sizes: list[int] = field(default_factory=list)
    owners: list[Axis | None] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    frozen: dict[int, str] = field(default_factory=dict)
    mixed: dict[int, str] = field(default_factory=dict)
    scaled: dict[int, str] = field(default_factory=dict)
    heads: set[int] = field(default_factory=set)
    _index: dict[Axis, int] = field(default_factory=dict)
    _equal: Union = field(default_factory=Union)

    def axis(self, value: ir.Value, axis: int, size: int) -> int:
        """Returns the number of a value's axis."""
        key = (value, axis)
        if key not in self._index:
            self._index[key] = self.virtual(size)
            self.owners[self._index[key]] = key
        return self._index[key]

    def virtual(self, size: int) -> int:
        """Returns the number of a new axis that no value has: groups of a Conv, heads, gates."""
        self.sizes.append(size)
        self.owners.append(None)
        return self._equal.add()

    def known(self) -> Iterator[tuple[Axis, int]]:
        """Yields the axes of values with their numbers."""
        yield from self._index.items()

    def same(self, one: int, other: int) -> None:
        """States that two axes are equal, position by position."""
        if self.sizes[one] != self.sizes[other]:
            raise ValueError(f"axes of sizes {self.sizes[one]} and {self.sizes[other]}")
        self._equal.join(one, other)

    def take(self, out: int, source: int, indices: Sequence[int] | np.ndarray) -> None:
        """States that positions of one axis are picked from another."""
        self.takes.append(Take(out, source, np.asarray(indices, np.int64)))

    def product(self, whole: int, factors: Sequence[int]) -> None:
        """States that an axis runs through all combinations of others."""
        if len(factors) == 1:
            self.same(whole, factors[0])
        else:
            self.products.append(Product(whole, tuple(factors)))

    def freeze(self, axis: int, reason: str) -> None:
        """States that no position of an axis may go."""
        self.frozen.setdefault(axis, reason)

    def mix(self, axis: int, reason: str) -> None:
        """States that each position has a say in what becomes of the others."""
        self.mixed.setdefault(axis, reason)

    def scale(self, axis: int, reason: str) -> None:
        """States that a scale is measured over all positions while the model runs."""
        self.scaled.setdefault(axis, reason)

    def head(self, axis: int) -> None:
        """States that positions are products of their own, of two activations: heads of attention."""
        self.heads.add(axis)

    def unify(self) -> None:
        """Merges axes that are products of the same factors, and the factors of the same product.

        There is one way only to cut an axis into factors of given sizes, so these are equal position
        by position. Networks repeat themselves: what is left to decide is a few products, not one for
        each layer.
        """
        for _ in range(_ROUNDS):
            before = len(self.products)
            merged = False
            by_whole: dict[tuple[int, ...], Product] = {}
            by_factors: dict[tuple[int, ...], Product] = {}
            for found in self.products:
                kinds = tuple(map(self.kind, found.factors))
                sizes = tuple(self.sizes[factor] for factor in found.factors)
                twin = by_whole.setdefault((self.kind(found.whole), *sizes), found)
                merged |= self._merge(zip(twin.factors, found.factors, strict=True))
                twin = by_factors.setdefault(kinds, found)
                merged |= self._merge([(twin.whole, found.whole)])
            unique = {
                (self.kind(p.whole), *map(self.kind, p.factors)): p for p in reversed(self.products)
            }
            self.products = list(reversed(unique.values()))
            if not merged and len(self.products) == before:
                break

    def _merge(self, pairs: Iterable[tuple[int, int]]) -> bool:
        """Merges axes; returns whether they were not yet the same."""
        merged = False
        for one, other in pairs:
            if self.kind(one) != self.kind(other):
                self.same(one, other)
                merged = True
        return merged

    def kind(self, axis: int) -> int:
        """Returns the number that speaks for all axes equal to this one."""
        return self._equal.find(axis)


@dataclass(frozen=True)
class Factors:
    """How two lists of sizes are made of the same factors.

    Attributes:
        sizes: The factors, outermost first.
        left: For each size on the left the factors that it is the product of.
        right: The same for the right.
    """

    sizes: tuple[int, ...]
    left: tuple[tuple[int, ...], ...]
    right: tuple[tuple[int, ...], ...]


def factorize(left: Sequence[int], right: Sequence[int]) -> Factors | None:
    """Splits two lists of sizes with the same product into common factors.

    `[6, 4]` and `[3, 8]` are `3 * 2, 4` and `3, 2 * 4`; sizes that do not divide have none. A size of
    1 is the product of nothing.
    """
    if prod(left) != prod(right):
        return None
    rests = [list(left), list(right)]
    found: list[list[list[int]]] = [[[] for _ in left], [[] for _ in right]]
    places = [0, 0]
    sizes: list[int] = []
    while True:
        for side, rest in enumerate(rests):
            while places[side] < len(rest) and rest[places[side]] == 1:
                places[side] += 1
        if any(place == len(rest) for place, rest in zip(places, rests, strict=True)):
            one, other = (tuple(map(tuple, side)) for side in found)
            return Factors(tuple(sizes), one, other)
        factor = min(rest[place] for place, rest in zip(places, rests, strict=True))
        if factor < 1 or any(r[p] % factor for p, r in zip(places, rests, strict=True)):
            return None
        for side, rest in enumerate(rests):
            found[side][places[side]].append(len(sizes))
            rest[places[side]] //= factor
        sizes.append(factor)
