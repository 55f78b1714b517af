"""Operators that only move elements: which position comes from which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.site import MANY, UNKNOWN_RANK
from onnxcomp.ir.ops import attribute, integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir


def transpose(site: Site) -> None:
    """Transpose: axes change places."""
    if (found := site.ends()) is None:
        return
    source, out = found
    order = site.integers("perm", len(site.node.inputs), range(len(source))[::-1])
    if order is None or sorted(order) != list(range(len(source))):
        site.freeze("its order of axes is not known")
        return
    site.tie_all([source[axis] for axis in order], out)


def concat(site: Site) -> None:
    """Concat: positions of the operands one after another."""
    joined(site, list(site.node.inputs), site.attribute("axis", 0))


def joined(site: Site, values: Sequence[ir.Value | None], along: int) -> None:
    """States that operands follow one another along an axis of the result."""
    operands = [site.axes(value) for value in values]
    out = site.axes(site.node.outputs[0])
    if out is None or any(axes is None for axes in operands):
        site.freeze(UNKNOWN_RANK)
        return
    axis = along % len(out)
    for axes in operands:
        for place, (one, other) in enumerate(zip(axes or (), out, strict=True)):
            if place != axis:
                site.tie(one, other)
    start = 0
    total = site.size(out[axis])
    for axes in operands:
        joined = (axes or [])[axis]
        size = site.size(joined)
        if joined is None or size is None or total is None:
            _keep_joined(site, operands, out, axis)
            return
        indices = np.full(total, -1, np.int64)
        indices[start : start + size] = np.arange(size)
        site.take(out[axis], joined, indices)
        start += size


def _keep_joined(site: Site, operands: Sequence[Axes | None], out: Axes, axis: int) -> None:
    for axes in (*operands, out):
        site.keep((axes or [])[axis], "a size that it is joined with is not known")


def split(site: Site) -> None:
    """Split: parts of an axis one after another."""
    source = site.axes(site.input(0))
    if source is None:
        site.freeze(UNKNOWN_RANK)
        return
    axis = site.attribute("axis", 0) % len(source)
    start = 0
    for output in site.node.outputs:
        out = site.axes(output)
        size = None if out is None else site.size(out[axis])
        if out is None or size is None or source[axis] is None:
            site.freeze("the size of a part is not known")
            return
        for place, (one, other) in enumerate(zip(source, out, strict=True)):
            if place != axis:
                site.tie(one, other)
        site.take(out[axis], source[axis], np.arange(start, start + size))
        start += size


def slice_(site: Site) -> None:
    """Slice: every so manyth position of an axis; where bounds are not known, the axis stays."""
    if (found := site.through()) is None:
        return
    source, out = found
    bounds = _bounds(site, len(source))
    if bounds is None:
        site.freeze("the axes that it cuts are not known")
        return
    for place, (one, other) in enumerate(zip(source, out, strict=True)):
        if place not in bounds:
            site.tie(one, other)
            continue
        cut, size = bounds[place], site.size(one)
        if cut is None or size is None:
            site.keep(one, "its bounds are not known")
            site.keep(other, "its bounds are not known")
            continue
        start, stop, step = cut.indices(size)
        site.take(other, one, np.arange(start, stop, step))


def _bounds(site: Site, rank: int) -> dict[int, slice[int, int | None, int] | None] | None:
    """Returns the slice of each axis that is cut; None for all when it is not known which those are."""
    starts, ends = site.integers("starts", 1), site.integers("ends", 2)
    count = starts or ends or site.shapes.static(site.input(1))
    axes = site.integers("axes", 3, range(len(starts or ends or ())))
    if axes is None or (site.input(3) is None and not (starts or ends)) or not count:
        return None
    steps = site.integers("steps", 4, [1] * len(axes))
    if starts is None or ends is None or steps is None or 0 in steps:
        return {axis % rank: None for axis in axes}
    found: dict[int, slice[int, int | None, int] | None] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Going backwards, an end far below zero stands for "to the beginning".
        stop = None if step < 0 and end < -(1 << 31) else end
        found[axis % rank] = slice(start, stop, step)
    return found


def tile(site: Site) -> None:
    """Tile: an axis is repeated; one of a single position like in Expand."""
    if (found := site.through()) is None:
        return
    repeats = integers(site.input(1))
    for one, other in zip(*found, strict=True):
        size, total = site.size(one), site.size(other)
        if (
            size == 1
            and total is not None
            and repeats is not None
            and len(repeats) == len(found[0])
        ):
            continue
        if size is None or total is None or total % size or total == size or total > MANY:
            site.tie(one, other)
        else:
            site.take(other, one, np.tile(np.arange(size), total // size))


def pad(site: Site) -> None:
    """Pad: an axis that is not padded keeps its positions; what comes around a padded one is constant."""
    if (found := site.through()) is None:
        return
    constant = attribute(site.node, "mode", "constant") == "constant"
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        widths = _pads(site, place, len(found[0]))
        if widths == (0, 0):
            site.tie(one, other)
        elif (
            widths is None
            or min(widths) < 0
            or not constant
            or one is None
            or site.integers("pads", 1) is None
        ):
            site.keep(one, "it is padded")
            site.keep(other, "it is padded")
        else:
            size = site.size(one) or 0
            picked = np.pad(np.arange(size), widths, constant_values=-1)
            site.take(other, one, picked)


def _pads(site: Site, axis: int, rank: int) -> tuple[int, int] | None:
    """Returns how much comes before and after an axis; None when that is not known."""
    axes = site.integers("axes", 3, range(rank))
    pads: Sequence[object] | None = site.integers("pads", 1)
    if pads is None and (vector := site.shapes.vector(site.input(1))) is not None:
        pads = vector.items
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return None
    for place, found in enumerate(axes):
        if found % rank == axis:
            before, after = pads[place], pads[place + len(axes)]
            known = isinstance(before, int) and isinstance(after, int)
            return (before, after) if known else None  # type: ignore[return-value]
    return 0, 0


def reduce(site: Site) -> None:
    """Reduce*, ArgMax, ArgMin: what is not reduced stays."""
    if (found := site.ends()) is None:
        return
    source, out = found
    axes = _reduced(site, len(source))
    if axes is None:
        site.freeze("the axes that it reduces are not known")
        return
    kept = [axis for place, axis in enumerate(source) if place not in axes]
    if site.attribute("keepdims", 1) and len(out) == len(source):
        site.tie_all(kept, [axis for place, axis in enumerate(out) if place not in axes])
    elif len(out) == len(kept):
        site.tie_all(kept, out)
    else:
        site.freeze(UNKNOWN_RANK)
    for place in axes:
        if site.node.op_type in {"ArgMax", "ArgMin"}:
            site.keep(source[place], "its positions are returned by number")
        else:
            site.mix(source[place])


def _reduced(site: Site, rank: int) -> set[int] | None:
    if site.node.op_type in {"ArgMax", "ArgMin"}:
        return {site.attribute("axis", 0) % rank}
    axes = site.integers("axes", 1, ())
    if axes is None:
        return None
    if not axes:
        return set() if site.attribute("noop_with_empty_axes", 0) else set(range(rank))
    return {axis % rank for axis in axes}
