"""Normalizations, pooling and what else knows channels from positions in space."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.site import UNKNOWN_RANK
from onnxcomp.ir.ops import array, attribute, integers

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Axes, Site


def _per_channel(site: Site, channel: int | None, first: int) -> None:
    """Parameters from an operand on are vectors with one number per channel."""
    for index in range(first, len(site.node.inputs)):
        axes = site.axes(site.input(index))
        if axes:
            site.tie(axes[-1], channel)


def batch_normalization(site: Site) -> None:
    """BatchNormalization: a number per channel, and nothing between channels."""
    if (found := site.through()) is None:
        return
    source, out = found
    if site.attribute("spatial", 1) == 0:
        site.freeze("it has numbers for each position in space")
        return
    site.tie_all(source, out)
    _per_channel(site, source[1] if len(source) > 1 else None, 1)
    for output in site.node.outputs[1:]:
        for axis in site.axes(output) or ():
            site.tie(axis, source[1])


def instance_normalization(site: Site) -> None:
    """InstanceNormalization: mean and variance within a channel."""
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source, out)
    for axis in source[2:]:
        site.mix(axis)
    _per_channel(site, source[1], 1)


def group_normalization(site: Site) -> None:
    """GroupNormalization: mean and variance over groups of channels."""
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source, out)
    for axis in source[2:]:
        site.mix(axis)
    groups, channels = site.attribute("num_groups", 1), site.size(source[1])
    if source[1] is None or not channels or channels % groups:
        site.freeze("its groups do not divide the channels")
        return
    # Whole groups go, which leaves the others' means alone, or the same part of each.
    inside = site.space.virtual(channels // groups)
    counted = site.space.virtual(groups)
    for index in (1, 2):
        axes = site.axes(site.input(index))
        if axes:
            site.tie(axes[0], source[1] if site.size(axes[0]) == channels else counted)
    site.space.product(source[1], [counted, inside])
    if groups != channels:
        site.mix(inside)


def layer_normalization(site: Site) -> None:
    """LayerNormalization and RMSNormalization: mean and variance over the axes from one on."""
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source, out)
    start = site.attribute("axis", -1)
    for axis in source[start:]:
        site.mix(axis)
    for index in (1, 2):
        site.spread(site.axes(site.input(index)) or [], source)
    for output in site.node.outputs[1:]:
        axes = site.axes(output)
        for one, other in zip(axes or (), source, strict=False):
            if site.size(one) != 1 or site.size(other) == 1:
                site.tie(one, other)


def over_channels(site: Site) -> None:
    """LRN, LpNormalization, MeanVarianceNormalization: neighbours or the whole axis have a say."""
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source, out)
    if site.node.op_type == "LpNormalization":
        site.mix(source[site.attribute("axis", -1)])
        return
    if site.node.op_type == "LRN":
        site.mix(source[1])
        return
    for axis in site.integers("axes", len(site.node.inputs), (0, 2, 3)) or range(len(source)):
        site.mix(source[axis])


def pool(site: Site) -> None:
    """Pooling and resampling: batch and channels stay, space does not."""
    if any(output.name for output in site.node.outputs[1:]):
        site.freeze("it also returns where in the whole each number was")
        return
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source[:2], out[:2])
    for axis in (*source[2:], *out[2:]):
        site.keep(axis, "positions in space are neighbours")


def resize(site: Site) -> None:
    """Resize and Upsample: an axis that keeps its size keeps its positions."""
    if (found := site.through()) is None:
        return
    # A region of interest speaks of all axes by position; nobody removes channels under one.
    if attribute(site.node, "coordinate_transformation_mode", "") == "tf_crop_and_resize":
        site.freeze("it crops")
        return
    for place, (one, other) in enumerate(zip(*found, strict=True)):
        same = one is not None and site.size(one) == site.size(other)
        if same and _scale(site, place, len(found[0])) == 1:
            site.tie(one, other)
        else:
            site.keep(one, "it is resampled")
            site.keep(other, "it is resampled")


def _scale(site: Site, axis: int, rank: int) -> float | None:
    """Returns how much longer an axis that stays as long becomes; None when it is not known."""
    named = attribute(site.node, "axes")
    if named is not None:
        return None if axis in {place % rank for place in named} else 1.0
    if site.node.op_type == "Resize" and site.opset > 10:
        if site.input(3) is not None:
            return 1.0
        scales = array(site.input(2), limit=64)
    elif "scales" in site.node.attributes:
        scales = np.asarray(attribute(site.node, "scales", ()))
    else:
        scales = array(site.input(1), limit=64)
    known = scales is not None and scales.shape == (rank,)
    return float(scales[axis]) if known and scales is not None else None


def sampled(site: Site) -> None:
    """GridSample, AffineGrid, RoiAlign: channels are read at other places in space."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    if source is None or out is None or len(source) != len(out):
        site.freeze(UNKNOWN_RANK)
        return
    for axis in (*source[:1], *source[2:], *out[:1], *out[2:]):
        site.keep(axis, "positions in space are picked by number")
    site.tie(source[1], out[1])


def col2im(site: Site) -> None:
    """Col2Im: channels times blocks of space, the blocks added up."""
    source, out = site.axes(site.input(0)), site.axes(site.node.outputs[0])
    block = integers(site.input(2))
    if source is None or out is None or block is None or len(source) != 3 or len(out) < 3:
        site.freeze(UNKNOWN_RANK)
        return
    site.tie(source[0], out[0])
    for axis in (source[2], *out[2:]):
        site.keep(axis, "positions in space are neighbours")
    inside = site.space.virtual(prod(block))
    site.keep(inside, "positions in space are neighbours")
    if (
        source[1] is None
        or out[1] is None
        or site.size(source[1]) != prod(block) * (site.size(out[1]) or 0)
    ):
        site.freeze("its blocks do not divide the channels")
        return
    site.space.product(source[1], [out[1], inside])


def depth_to_space(site: Site) -> None:
    """DepthToSpace: channels are blocks times what stays a channel."""
    if (found := site.through()) is not None:
        inner_last = attribute(site.node, "mode", "DCR") == "DCR"
        _blocks(site, *found, whole=found[0], part=found[1], inner_last=inner_last)


def space_to_depth(site: Site) -> None:
    """SpaceToDepth: blocks of space become the outer part of the channels."""
    if (found := site.through()) is not None:
        _blocks(site, *found, whole=found[1], part=found[0], inner_last=True)


def _blocks(
    site: Site, source: Axes, out: Axes, *, whole: Axes, part: Axes, inner_last: bool
) -> None:
    """Ties channels that are blocks of space times other channels."""
    site.tie(source[0], out[0])
    for axis in (*source[2:], *out[2:]):
        site.keep(axis, "positions in space are neighbours")
    block = site.attribute("blocksize", 1)
    blocks = site.space.virtual(block * block)
    site.keep(blocks, "positions in space are neighbours")
    channels, inner = whole[1], part[1]
    if (
        channels is None
        or inner is None
        or site.size(channels) != block**2 * (site.size(inner) or 0)
    ):
        site.freeze("its blocks do not divide the channels")
        return
    site.space.product(channels, [blocks, inner] if inner_last else [inner, blocks])
