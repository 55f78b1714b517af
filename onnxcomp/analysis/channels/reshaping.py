"""Operators that put the same elements into other axes, and the sizes that are computed for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, integers, is_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir

# What a Shape is handed on by without arithmetic, the number of elements staying as it is.
_HANDED_ON = ("Cast", "Identity", "Squeeze", "Unsqueeze")
_NUMBER = "its size is read as a number"
# Sizes are followed no further than this, and no vectors that are longer.
_DEEPEST = 64
_MOST_READERS = 1024


def reshape(site: Site) -> None:
    """Reshape, Flatten: the same elements in the same order.

    The shape may be computed: whoever removes positions writes the new sizes into it.
    """
    if "shape" in site.node.attributes:
        site.freeze("its shape is an attribute, as in opset 1")
        return
    found = site.ends()
    source = site.input(0)
    if found is not None and source is not None:
        site.regroup(source, site.node.outputs[0])


def squeeze(site: Site) -> None:
    """Squeeze: axes of one position go."""
    if (found := site.ends()) is None:
        return
    source, out = found
    axes = _named_axes(site, len(source))
    if axes is None and site.input(1) is None:
        axes = {place for place, axis in enumerate(source) if site.size(axis) == 1}
    kept = [axis for place, axis in enumerate(source) if place not in (axes or ())]
    _tie_or_regroup(site, axes, kept, out)


def unsqueeze(site: Site) -> None:
    """Unsqueeze: axes of one position come."""
    if (found := site.ends()) is None:
        return
    source, out = found
    axes = _named_axes(site, len(out))
    kept = [axis for place, axis in enumerate(out) if place not in (axes or ())]
    _tie_or_regroup(site, axes, source, kept)


def _tie_or_regroup(site: Site, axes: set[int] | None, ones: Axes, others: Axes) -> None:
    source = site.input(0)
    if axes is not None and len(ones) == len(others):
        site.tie_all(ones, others)
    elif source is not None:
        site.regroup(source, site.node.outputs[0])


def _named_axes(site: Site, rank: int) -> set[int] | None:
    axes = site.integers("axes", 1)
    return None if axes is None else {axis % rank for axis in axes}


def expand(site: Site) -> None:
    """Expand: axes of one position are spread, to sizes that whoever removes positions corrects."""
    length = site.shapes.static(site.input(1))
    if length is None or len(length) != 1:
        site.freeze("how many sizes it is given is not known")
    elif (found := site.ends()) is not None:
        site.spread(*found)


def constant_of_shape(site: Site) -> None:
    """ConstantOfShape: all positions are alike; whoever removes some corrects the sizes."""
    site.axes(site.node.outputs[0])


def shape(site: Site) -> None:
    """Shape: sizes that only shape other values say that axes are equally long, no more.

    An axis whose size is calculated with stays.
    """
    source = site.axes(site.input(0)) or []
    start, end = site.attribute("start", 0), site.attribute("end", len(source))
    places = list(range(len(source)))[start:end]
    _Numbers(site, source).follow(site.node.outputs[0], places, 0)


def size(site: Site) -> None:
    """Size: a product of all sizes, that anything may be done with."""
    site.keep_all(site.input(0), _NUMBER)


class _Numbers:
    """Follows sizes from a Shape to what they shape."""

    def __init__(self, site: Site, source: Axes) -> None:
        self._site = site
        self._source = source
        self._left = _MOST_READERS

    def follow(self, value: ir.Value, places: Sequence[int | None], depth: int) -> None:
        """Looks at all readers of a vector whose elements are the sizes of these axes."""
        self._left -= 1
        long = len(places) > _DEEPEST or depth > _DEEPEST
        if value.is_graph_output() or long or self._left < 0:
            self._keep(places)
            return
        for use in value.uses():
            self._read(use.node, use.idx, places, depth)

    def _keep(self, places: Sequence[int | None]) -> None:
        for place in places:
            if place is not None:
                self._site.keep(self._source[place], _NUMBER)

    def _read(self, node: ir.Node, index: int, places: Sequence[int | None], depth: int) -> None:
        handed: Sequence[int | None] | None = None
        if is_op(node, *_HANDED_ON) and index == 0:
            handed = places
        elif is_op(node, "Gather") and index == 0 and not attribute(node, "axis", 0):
            handed = _picked(node, places)
        elif is_op(node, "Concat"):
            handed = self._joined(node, index, places)
        elif (is_op(node, "Reshape", "Expand") and index == 1) or is_op(node, "ConstantOfShape"):
            self._shaped(node, places)
            return
        if handed is None:
            self._keep(places)
        elif any(place is not None for place in handed):
            self.follow(node.outputs[0], handed, depth + 1)

    def _joined(
        self, node: ir.Node, index: int, places: Sequence[int | None]
    ) -> Sequence[int | None] | None:
        """Where elements are in a vector that is put together; None when a length is not known."""
        found: list[int | None] = []
        for place, value in enumerate(node.inputs):
            shape = self._site.shapes.static(value)
            if shape is None or len(shape) != 1:
                return None
            found += places if place == index else [None] * shape[0]
        return found

    def _shaped(self, node: ir.Node, places: Sequence[int | None]) -> None:
        out = self._site.axes(node.outputs[0])
        if out is None or len(places) > len(out):
            self._keep(places)
            return
        for place, axis in zip(places, out[len(out) - len(places) :], strict=True):
            known = None if place is None else self._site.size(self._source[place])
            if place is not None and known != 1 and (known is not None or axis is not None):
                self._site.tie(self._source[place], axis)


def _picked(node: ir.Node, places: Sequence[int | None]) -> Sequence[int | None] | None:
    given = integers(node.inputs[1])
    if given is None or any(not -len(places) <= number < len(places) for number in given):
        return None
    return [places[number] for number in given]
