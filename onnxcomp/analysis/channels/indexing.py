"""Operators that pick or place elements by number: the axis that numbers speak of stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.site import MANY, UNKNOWN_RANK
from onnxcomp.ir.ops import array, integers

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir

_PICKED = "its positions are picked by number"
_WRITTEN = "its positions are written by number"
_ORDER = "its positions have an order"


def gather(site: Site) -> None:
    """Gather: rows of a table are picked; with constant indices it is known which."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    picked = site.axes(site.input(1))
    if source is None or out is None or picked is None:
        site.freeze(UNKNOWN_RANK)
        return
    axis = site.attribute("axis", 0) % len(source)
    count = len(picked)
    site.tie_all(source[:axis], out[:axis])
    site.tie_all(source[axis + 1 :], out[axis + count :])
    indices = array(site.input(1), limit=MANY)
    size = site.size(source[axis])
    if indices is not None and indices.ndim == 1 and size is not None:
        site.keep(picked[0], "it is a parameter")
        site.take(out[axis], source[axis], np.where(indices < 0, indices + size, indices))
        return
    site.keep(source[axis], _PICKED)
    site.tie_all(picked, out[axis : axis + count])
    for place in range(len(source)):
        if place != axis:
            site.makes(site.input(0), place)


def gather_elements(site: Site) -> None:
    """GatherElements: along one axis positions are picked, along the others they are the same."""
    _along(site, [site.input(0), site.input(1), site.node.outputs[0]], picks=1)


def scatter_elements(site: Site) -> None:
    """ScatterElements, Scatter: along one axis positions are replaced, along the others not."""
    operands = [site.input(0), site.node.outputs[0], site.input(1), site.input(2)]
    _along(site, operands, picks=2)


def _along(site: Site, operands: list[ir.Value | None], picks: int) -> None:
    """Ties axes one by one; along the picked axis, operands from `picks` on only among themselves."""
    found = [site.axes(value) for value in operands]
    if any(axes is None or len(axes) != len(found[0] or ()) for axes in found):
        site.freeze(UNKNOWN_RANK)
        return
    axes = [one or [] for one in found]
    axis = site.attribute("axis", 0) % len(axes[0])
    for place, column in enumerate(zip(*axes, strict=True)):
        if place != axis:
            for other in column[1:]:
                site.tie(column[0], other)
            continue
        for one in column[:picks]:
            site.keep(one, _PICKED)
        for other in column[picks + 1 :]:
            site.tie(column[picks], other)
        if picks > 1:
            # What is written changes the result, wherever it goes.
            site.keep(column[picks], _WRITTEN)


def gather_nd(site: Site) -> None:
    """GatherND: leading axes are picked from, the others and those of the batch stay."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    picked = site.axes(site.input(1))
    depth = None if not picked else site.size(picked[-1])
    if source is None or out is None or not picked or depth is None:
        site.freeze(UNKNOWN_RANK)
        return
    batch = site.attribute("batch_dims", 0)
    site.keep(picked[-1], "it is a position")
    for axis in source[batch : batch + depth]:
        site.keep(axis, _PICKED)
    site.tie_all(picked[:-1], out[: len(picked) - 1])
    site.tie_all(source[:batch], out[:batch])
    site.tie_all(source[batch + depth :], out[len(picked) - 1 :])


def scatter_nd(site: Site) -> None:
    """ScatterND: leading axes are written to by number, the others are written whole."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    picked, updates = site.axes(site.input(1)), site.axes(site.input(2))
    depth = None if not picked else site.size(picked[-1])
    if source is None or out is None or not picked or updates is None or depth is None:
        site.freeze(UNKNOWN_RANK)
        return
    site.tie_all(source, out)
    site.keep(picked[-1], "it is a position")
    for axis in source[:depth]:
        site.keep(axis, _WRITTEN)
    for axis in (*picked[:-1], *updates[: len(picked) - 1]):
        site.keep(axis, _WRITTEN)
    site.tie_all(source[depth:], updates[len(picked) - 1 :])


def one_hot(site: Site) -> None:
    """OneHot: a new axis comes, whose positions are numbers."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    if source is None or out is None or len(out) != len(source) + 1:
        site.freeze(UNKNOWN_RANK)
        return
    axis = site.attribute("axis", -1) % len(out)
    site.keep(out[axis], "its positions are numbers")
    site.tie_all(source, [one for place, one in enumerate(out) if place != axis])


def compress(site: Site) -> None:
    """Compress: positions of one axis are picked by a condition."""
    given = site.node.attributes.get("axis")
    if given is None or (found := site.through()) is None:
        site.freeze("it flattens")
        return
    _apart(site, *found, {site.attribute("axis", 0) % len(found[0])}, _PICKED)


def along(site: Site) -> None:
    """TopK, CumSum, CumProd: an axis whose positions have an order."""
    if (found := site.ends()) is None:
        return
    default = -1 if site.node.op_type == "TopK" else None
    given = [site.attribute("axis", -1)] if default is not None else integers(site.input(1))
    if given is None:
        site.freeze("its axis is not known")
        return
    for output in site.node.outputs:
        out = site.axes(output)
        if out is not None and len(out) == len(found[0]):
            _apart(site, found[0], out, {given[0] % len(out)}, _ORDER)
        elif output.name:
            site.freeze(UNKNOWN_RANK)


def reverse_sequence(site: Site) -> None:
    """ReverseSequence: each sequence of the batch is turned around up to its own length."""
    if (found := site.through()) is not None:
        axes = {site.attribute("batch_axis", 1), site.attribute("time_axis", 0)}
        _apart(site, *found, axes, _ORDER)


def triangle(site: Site) -> None:
    """Trilu, Det: matrices in the last two axes."""
    if (found := site.ends()) is None:
        return
    source, out = found
    for axis in (*source[-2:], *out[len(source) - 2 :]):
        site.keep(axis, _ORDER)
    site.tie_all(source[:-2], out[: len(source) - 2])


def center(site: Site) -> None:
    """CenterCropPad: axes that are not cut or padded keep their positions."""
    if (found := site.through()) is None:
        return
    rank = len(found[0])
    named = site.integers("axes", len(site.node.inputs), range(rank)) or range(rank)
    _apart(site, *found, {axis % rank for axis in named}, "it is cut or padded")


def tensor_scatter(site: Site) -> None:
    """TensorScatter: a cache that grows along one axis."""
    cache, update = site.axes(site.input(0)), site.axes(site.input(1))
    if (found := site.through()) is None or cache is None or update is None:
        return
    axis = site.attribute("axis", -2) % len(cache)
    _apart(site, *found, {0, axis}, _ORDER)
    _apart(site, cache, update, {0, axis}, _ORDER)


def _apart(site: Site, source: Axes, out: Axes, kept: set[int], why: str) -> None:
    """Ties axes one by one but for those that stay."""
    for place, (one, other) in enumerate(zip(source, out, strict=True)):
        if place in kept:
            site.keep(one, why)
            site.keep(other, why)
        else:
            site.tie(one, other)
