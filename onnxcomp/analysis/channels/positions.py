"""Which positions of axes belong together, once all operators have said what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.space import MAX_POSITIONS, Union

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.analysis.channels.space import Prefer, Product, Space, Take


class Positions:
    """Which positions belong together, and which of them may go.

    An axis that is a product can lose whole slices along one factor only: heads, or the same part of
    each head. Where several factors could, `prefer` decides; the others keep their positions.

    Attributes:
        frozen: Why a set must stay, by the number that speaks for it; axes that stay whole and are
            linked to no other are not in here.
        chosen: Whether `prefer` decided anything.
        linked: Kinds of axes of which some positions belong to those of other axes.
    """

    def __init__(self, space: Space, prefer: Prefer = "large") -> None:
        space.unify()
        self._space = space
        self._prefer = prefer
        self._start: dict[int, int] = {}
        self._union = Union()
        self._whole: dict[int, str] = {}
        self.frozen: dict[int, str] = {}
        self.chosen = False
        self._mixed = _mixed_kinds(space)
        self._heads = _head_kinds(space)
        self.linked: frozenset[int] = frozenset()
        self._lay_out()
        for kind, size in ((space.kind(axis), size) for axis, size in enumerate(space.sizes)):
            if size > MAX_POSITIONS:
                self._whole[kind] = "it has more positions than are followed"
        for take in space.takes:
            if not self._is_whole((take.out, take.source)):
                self._join_take(take)
        for axis, reason in space.frozen.items():
            self._freeze(axis, reason)
        for products in _components(space):
            self._settle([p for p in products if not self._is_whole((p.whole, *p.factors))])

    def of(self, axis: int) -> np.ndarray:
        """Returns the set that each position of a linked axis is in."""
        return np.asarray([self._union.find(item) for item in self._range(axis)], np.int64)

    def sets(self, axis: int) -> set[int]:
        """Returns the sets that positions of an axis are in; one number for an axis without links."""
        kind = self._space.kind(axis)
        return set(self.of(axis).tolist()) if kind in self.linked else {-1 - kind}

    def reason(self, axis: int, place: int) -> str:
        """Returns why a position of an axis may not go; empty when it may."""
        kind = self._space.kind(axis)
        if kind not in self.linked:
            return self._whole.get(kind, "")
        return self.frozen.get(self._union.find(self._start[kind] + place), "")

    def is_free(self, axis: int) -> bool:
        """Whether some position of an axis may go."""
        kind = self._space.kind(axis)
        if kind not in self.linked:
            return kind not in self._whole
        return any(self._union.find(item) not in self.frozen for item in self._range(axis))

    def _lay_out(self) -> None:
        """Gives positions of linked axes a number each, as long as those are not too many."""
        total = 0
        for kind in sorted(_linked_kinds(self._space)):
            size = self._space.sizes[kind]
            if total + size > MAX_POSITIONS:
                self._whole[kind] = "it has more positions than are followed"
            else:
                self._start[kind] = total
                total += size
        self.linked = frozenset(self._start)
        self._union = Union(total)

    def _is_whole(self, axes: Iterable[int]) -> bool:
        """Whether one of linked axes has too many positions; the others are kept with it."""
        kinds = [self._space.kind(axis) for axis in axes]
        if all(kind in self.linked for kind in kinds):
            return False
        for kind in kinds:
            self._freeze(kind, "it belongs to an axis with more positions than are followed")
        return True

    def _range(self, axis: int) -> range:
        start = self._start[self._space.kind(axis)]
        return range(start, start + self._space.sizes[axis])

    def _join(self, one: int, other: int) -> None:
        low, high = self._union.join(one, other)
        if low != high and high in self.frozen:
            self.frozen.setdefault(low, self.frozen.pop(high))

    def _join_take(self, take: Take) -> None:
        out, source = self._range(take.out), self._range(take.source)
        for position, index in zip(out, take.indices, strict=True):
            if index >= 0:
                self._join(position, source[index])

    def _freeze(self, axis: int, reason: str) -> None:
        kind = self._space.kind(axis)
        if kind not in self.linked:
            self._whole.setdefault(kind, reason)
            return
        for item in self._range(axis):
            self.frozen.setdefault(self._union.find(item), reason)

    def _why(self, axis: int) -> str:
        reasons = (self.frozen.get(self._union.find(item), "") for item in self._range(axis))
        return next((reason for reason in reasons if reason), "an axis without positions")

    def _settle(self, products: list[Product]) -> None:
        """Decides for each product along which factor it is cut, those without a choice first."""
        while products:
            undecided = [product for product in products if not self._decide(product)]
            if len(undecided) == len(products):
                product, factor = self._choose(undecided)
                self.chosen = True
                self._cut(product, factor)
                undecided.remove(product)
            products = undecided

    def _decide(self, product: Product) -> bool:
        free = [factor for factor in product.factors if self.is_free(factor)]
        if not self.is_free(product.whole):
            for factor in free:
                self._freeze(factor, self._why(product.whole))
        elif not free:
            self._freeze(product.whole, self._why(product.factors[-1]))
        elif len(free) == 1:
            self._cut(product, free[0])
        else:
            return False
        return True

    def _choose(self, products: Iterable[Product]) -> tuple[Product, int]:
        """Picks a product and the factor to cut it along."""
        options = [
            (product, factor, place)
            for product in products
            for place, factor in enumerate(product.factors)
            if self.is_free(factor)
        ]
        if self._prefer == "heads":
            options = [o for o in options if self._space.kind(o[1]) in self._heads] or options
        if self._prefer in {"outer", "heads"}:
            best = min(options, key=lambda option: option[2])
        elif self._prefer == "inner":
            best = max(options, key=lambda option: option[2])
        else:
            sizes, mixed = self._space.sizes, self._mixed
            best = max(
                options,
                key=lambda option: (self._space.kind(option[1]) not in mixed, sizes[option[1]]),
            )
        return best[0], best[1]

    def _cut(self, product: Product, factor: int) -> None:
        """Ties each position of a factor to the slice of the whole that it stands for."""
        sizes = [self._space.sizes[item] for item in product.factors]
        place = product.factors.index(factor)
        whole = np.asarray(self._range(product.whole)).reshape(sizes)
        slices = np.moveaxis(whole, place, 0).reshape(sizes[place], -1)
        for position, row in zip(self._range(factor), slices, strict=True):
            for item in row:
                self._join(position, int(item))
        # A factor that is there twice (all pairs of channels) is kept with this: rows and columns would go.
        for other in (*product.factors[:place], *product.factors[place + 1 :]):
            self._freeze(other, "the axis is cut along another of its factors")


def _head_kinds(space: Space) -> set[int]:
    """Returns the kinds of axes of heads, and of their factors: heads that share keys, and sets of these."""
    found = {space.kind(axis) for axis in space.heads}
    for product in space.products:
        if space.kind(product.whole) in found:
            found.update(map(space.kind, product.factors))
    return found


def _mixed_kinds(space: Space) -> set[int]:
    """Axes that a normalization runs over, alone or as a factor of what it runs over."""
    found = {space.kind(axis) for axis in space.mixed}
    grown = 0
    while grown != len(found):
        grown = len(found)
        for product in space.products:
            if space.kind(product.whole) in found:
                found.update(map(space.kind, product.factors))
    return found


def _linked_kinds(space: Space) -> set[int]:
    """Axes that are a part, a concatenation or a product of others, and those others."""
    taken = {space.kind(axis) for take in space.takes for axis in (take.out, take.source)}
    made = {space.kind(axis) for found in space.products for axis in (found.whole, *found.factors)}
    return taken | made


def _components(space: Space) -> list[list[Product]]:
    """Products that have nothing to do with each other can be decided one after another."""
    union = Union(len(space.sizes))
    links = [(take.out, take.source) for take in space.takes]
    links += [(found.whole, factor) for found in space.products for factor in found.factors]
    for one, other in links:
        union.join(space.kind(one), space.kind(other))
    found: dict[int, list[Product]] = {}
    for product in space.products:
        found.setdefault(union.find(space.kind(product.whole)), []).append(product)
    return list(found.values())
