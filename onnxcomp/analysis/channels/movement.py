"""Operators that only move elements: which position comes from which."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import array, attribute, integers, is_op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir

_UNKNOWN = "the rank of an operand is not known"
# More picked positions than this are not followed one by one.
_MANY = 1 << 20


def _ends(site: Site) -> tuple[Axes, Axes] | None:
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    if source is None or out is None:
        site.freeze(_UNKNOWN)
        return None
    return source, out


def reshape(site: Site) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order."""
    if (found := _ends(site)) is None:
        return
    if site.node.op_type == "Reshape" and integers(site.input(1)) is None:
        site.freeze("the shape is computed while the model runs")
        return
    site.regroup(*found)


def transpose(site: Site) -> None:
    """Transpose: axes change places."""
    if (found := _ends(site)) is None:
        return
    source, out = found
    order = site.integers("perm", len(site.node.inputs), range(len(source))[::-1])
    if order is None or sorted(order) != list(range(len(source))):
        site.freeze("its order of axes is not known")
        return
    site.tie_all([source[axis] for axis in order], out)


def concat(site: Site) -> None:
    """Concat: positions of the operands one after another."""
    operands = [site.axes(value) for value in site.node.inputs]
    out = site.axes(site.node.outputs[0])
    if out is None or any(axes is None for axes in operands):
        site.freeze(_UNKNOWN)
        return
    axis = site.attribute("axis", 0) % len(out)
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
        _take(site, out[axis], joined, indices)
        start += size


def _keep_joined(site: Site, operands: Sequence[Axes | None], out: Axes, axis: int) -> None:
    for axes in (*operands, out):
        site.keep((axes or [])[axis], "a size that it is joined with is not known")


def split(site: Site) -> None:
    """Split: parts of an axis one after another."""
    source = site.axes(site.input(0))
    if source is None:
        site.freeze(_UNKNOWN)
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
        _take(site, out[axis], source[axis], np.arange(start, start + size))
        start += size


def slice_(site: Site) -> None:
    """Slice with constant bounds: every so manyth position of an axis."""
    if (found := _ends(site)) is None:
        return
    source, out = found
    bounds = _bounds(site, len(source))
    if bounds is None:
        site.freeze("its bounds are not known")
        return
    for place, (one, other) in enumerate(zip(source, out, strict=True)):
        if place not in bounds:
            site.tie(one, other)
            continue
        size = site.size(one)
        if size is None:
            site.keep(other, "it is cut from a size that is not known")
            continue
        start, stop, step = bounds[place].indices(size)
        picked = np.arange(size)[bounds[place]] if step > 0 else np.arange(start, stop, step)
        if site.size(other) != len(picked):
            site.keep(one, "it is cut to a size that is not known")
            site.keep(other, "it is cut from a size that is not known")
            continue
        _take(site, other, one, picked)


def _bounds(site: Site, rank: int) -> dict[int, slice[int, int | None, int]] | None:
    """Returns the slice of each axis that is cut, None when something is not constant."""
    starts, ends = site.integers("starts", 1), site.integers("ends", 2)
    if starts is None or ends is None:
        return None
    axes = site.integers("axes", 3, range(len(starts)))
    steps = site.integers("steps", 4, [1] * len(starts))
    if axes is None or steps is None or 0 in steps:
        return None
    found: dict[int, slice[int, int | None, int]] = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        # Going backwards, an end far below zero stands for "to the beginning".
        stop = None if step < 0 and end < -(1 << 31) else end
        found[axis % rank] = slice(start, stop, step)
    return found


def gather(site: Site) -> None:
    """Gather: rows of a table are picked; with constant indices it is known which."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    picked = site.axes(site.input(1))
    if source is None or out is None or picked is None:
        site.freeze(_UNKNOWN)
        return
    axis = site.attribute("axis", 0) % len(source)
    count = len(picked)
    site.tie_all(source[:axis], out[:axis])
    site.tie_all(source[axis + 1 :], out[axis + count :])
    indices = array(site.input(1), limit=_MANY)
    size = site.size(source[axis])
    if indices is not None and indices.ndim == 1 and size is not None:
        site.keep(picked[0], "it is a parameter")
        _take(site, out[axis], source[axis], np.where(indices < 0, indices + size, indices))
        return
    site.keep(source[axis], "its positions are picked by number")
    site.tie_all(picked, out[axis : axis + count])


def expand(site: Site) -> None:
    """Expand: axes of one position are spread."""
    if (found := _ends(site)) is None:
        return
    if integers(site.input(1)) is None:
        site.freeze("the shape is computed while the model runs")
        return
    site.spread(*found)


def tile(site: Site) -> None:
    """Tile: an axis is repeated."""
    if (found := _ends(site)) is None:
        return
    for one, other in zip(*found, strict=True):
        size, total = site.size(one), site.size(other)
        if size is None or total is None or total % size or total == size:
            site.tie(one, other)
        elif total <= _MANY:
            _take(site, other, one, np.tile(np.arange(size), total // size))


def pad(site: Site) -> None:
    """Pad: an axis that is not padded keeps its positions; a padded one must not lose any."""
    if (found := _ends(site)) is None:
        return
    source, out = found
    for one, other in zip(source, out, strict=True):
        size, total = site.size(one), site.size(other)
        if (
            size is not None
            and size == total
            and not _is_padded(site, source.index(one), len(source))
        ):
            site.tie(one, other)
            continue
        site.keep(one, "it is padded")
        site.keep(other, "it is padded")


def _is_padded(site: Site, axis: int, rank: int) -> bool:
    pads = site.integers("pads", 1)
    axes = site.integers("axes", 3, range(rank))
    if pads is None or axes is None or len(pads) != 2 * len(axes):
        return True
    places = [place for place, found in enumerate(axes) if found % rank == axis]
    return any(pads[place] or pads[place + len(axes)] for place in places)


def reduce(site: Site) -> None:
    """Reduce*, ArgMax, ArgMin: what is not reduced stays."""
    if (found := _ends(site)) is None:
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
        site.freeze(_UNKNOWN)
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


def along(site: Site) -> None:
    """CumSum, TopK: an axis whose positions have an order."""
    if (found := _ends(site)) is None:
        return
    source = found[0]
    given = (
        integers(site.input(1)) if site.node.op_type == "CumSum" else [site.attribute("axis", -1)]
    )
    if given is None:
        site.freeze("its axis is not known")
        return
    axis = given[0] % len(source)
    for output in site.node.outputs:
        out = site.axes(output)
        for place, (one, other) in enumerate(zip(source, out or (), strict=False)):
            if place != axis:
                site.tie(one, other)
            else:
                site.keep(one, "its positions have an order")
                site.keep(other, "its positions have an order")


def shape(site: Site) -> None:
    """Shape and Size: sizes become numbers that anything may be done with."""
    source = site.axes(site.input(0)) or []
    used = None
    if site.node.op_type == "Shape" and not site.attribute("start", 0):
        used = _dimensions_used(site.node.outputs[0], len(source))
    for place, axis in enumerate(source):
        if used is None or place in used:
            site.keep(axis, "its size is read as a number")


def _dimensions_used(sizes: ir.Value, rank: int) -> set[int] | None:
    """Returns the dimensions that are picked out of a Shape; None when all may matter."""
    used: set[int] = set()
    # Of the rank nothing may be known, or that it is 0.
    if not rank or sizes.is_graph_output():
        return None
    for use in sizes.uses():
        picked = integers(use.node.inputs[1]) if is_op(use.node, "Gather") else None
        if picked is None or attribute(use.node, "axis", 0):
            return None
        used.update(index % rank for index in picked)
    return used


def squeeze(site: Site) -> None:
    """Squeeze: axes of one position go."""
    if (found := _ends(site)) is None:
        return
    source, out = found
    axes = _named_axes(site, len(source))
    if axes is None and len(site.node.inputs) < 2:
        axes = {place for place, axis in enumerate(source) if site.size(axis) == 1}
    kept = [axis for place, axis in enumerate(source) if place not in (axes or ())]
    _tie_or_regroup(site, axes, kept, out, found)


def unsqueeze(site: Site) -> None:
    """Unsqueeze: axes of one position come."""
    if (found := _ends(site)) is None:
        return
    source, out = found
    axes = _named_axes(site, len(out))
    kept = [axis for place, axis in enumerate(out) if place not in (axes or ())]
    _tie_or_regroup(site, axes, source, kept, found)


def _tie_or_regroup(
    site: Site, axes: set[int] | None, ones: Axes, others: Axes, ends: tuple[Axes, Axes]
) -> None:
    if axes is not None and len(ones) == len(others):
        site.tie_all(ones, others)
    else:
        site.regroup(*ends)


def _named_axes(site: Site, rank: int) -> set[int] | None:
    axes = site.integers("axes", 1)
    return None if axes is None else {axis % rank for axis in axes}


def _take(site: Site, out: int | None, source: int | None, indices: np.ndarray) -> None:
    if out is None or source is None or len(indices) > _MANY:
        site.keep(out, "its positions are too many to follow")
        site.keep(source, "its positions are too many to follow")
        return
    size = site.size(source) or 0
    if len(indices) != site.size(out) or (indices >= size).any():
        site.keep(out, "it is picked from positions that are not there")
        site.keep(source, "positions are picked from it that are not there")
        return
    site.space.take(out, source, indices)
