"""Attention operators: heads, the queries that share a head's keys, and what lies within a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.channels.site import UNKNOWN_RANK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir

_FLAT, _APART = 3, 4


@dataclass(frozen=True)
class Heads:
    """The axes that operands of attention are made of.

    Attributes:
        shared: Heads of keys and values.
        each: Heads of queries for each of those, None when there is one.
        matched: What queries and keys are compared by.
        weighed: What values hold.
    """

    shared: int
    each: int | None
    matched: int
    weighed: int

    @property
    def asking(self) -> list[int]:
        """All heads of queries."""
        return [self.shared] if self.each is None else [self.shared, self.each]


def _heads(site: Site, asking: int, shared: int, matched: int, weighed: int) -> Heads | None:
    """Returns new axes for so many heads of such sizes, None when that does not go together."""
    if min(asking, shared, matched, weighed) < 1 or asking % shared:
        return None
    virtual = site.space.virtual
    each = virtual(asking // shared) if asking != shared else None
    found = Heads(virtual(shared), each, virtual(matched), virtual(weighed))
    site.head(found.shared)
    return found


def _made_of(site: Site, axis: int | None, factors: Sequence[int]) -> None:
    """States that an axis runs through all combinations of others; keeps them when it does not."""
    product = 1
    for factor in factors:
        product *= site.size(factor) or 0
    if axis is not None and site.size(axis) == product:
        site.space.product(axis, factors)
        return
    for one in (axis, *factors):
        site.keep(one, "its heads do not divide the channels")


def attention(site: Site) -> None:
    """Attention of opset 23: [batch, sequence, heads * size] or [batch, heads, sequence, size]."""
    found = _operands(site, (0, 1, 2))
    if found is None:
        return
    query, key, value, _ = found
    flat = len(query) == _FLAT
    if flat:
        counts = site.attribute("q_num_heads", 0), site.attribute("kv_num_heads", 0)
        lasts = [site.size(axes[2]) or 0 for axes in (query, key, value)]
        divided = all(counts) and not (lasts[0] % counts[0] or lasts[2] % counts[1])
        sizes = (lasts[0] // counts[0], lasts[2] // counts[1]) if divided else (0, 0)
    else:
        counts = site.size(query[1]) or 0, site.size(key[1]) or 0
        sizes = site.size(query[3]) or 0, site.size(value[3]) or 0
    heads = _heads(site, *counts, *sizes)
    if heads is None:
        site.freeze("its heads do not divide the channels")
        return
    _attend(site, heads, found)
    _masks(site, heads, (3,))
    _caches(site, heads, [site.input(4), *site.node.outputs[1:2]], heads.matched)
    _caches(site, heads, [site.input(5), *site.node.outputs[2:3]], heads.weighed)
    scores = site.axes(site.node.outputs[3]) if len(site.node.outputs) > 3 else None
    if scores is not None:
        _made_of(site, scores[1], heads.asking)
        _keep(site, (scores[0], *scores[2:]))


def multi_head_attention(site: Site) -> None:
    """MultiHeadAttention of onnxruntime: [batch, sequence, heads * size], and a bias for all three."""
    found = _operands(site, (0, 1, 2))
    count = site.attribute("num_heads", 0)
    if found is None or len(found[0]) != _FLAT or count < 1:
        site.freeze("its operands are packed")
        return
    lasts = [site.size(axes[2]) or 0 for axes in found]
    heads = _heads(site, count, count, lasts[0] // count, lasts[2] // count)
    if heads is None:
        site.freeze("its heads do not divide the channels")
        return
    _attend(site, heads, found, added=site.input(3) is not None)
    _packed(site, site.axes(site.input(3)), 0, found[:3])
    _masks(site, heads, (5,))
    _caches(site, heads, [site.input(6), *site.node.outputs[1:2]], heads.matched)
    _caches(site, heads, [site.input(7), *site.node.outputs[2:3]], heads.weighed)


def group_query_attention(site: Site) -> None:
    """GroupQueryAttention of onnxruntime: heads may go, what lies within one is rotated and stays."""
    found = _operands(site, (0, 1, 2))
    asking, shared = site.attribute("num_heads", 0), site.attribute("kv_num_heads", 0)
    if found is None or len(found[0]) != _FLAT or asking < 1 or shared < 1:
        site.freeze("its operands are packed")
        return
    lasts = [site.size(axes[2]) or 0 for axes in found]
    heads = _heads(site, asking, shared, lasts[0] // asking, lasts[2] // shared)
    if heads is None:
        site.freeze("its heads do not divide the channels")
        return
    _attend(site, heads, found)
    site.keep(heads.matched, "it is rotated by position")
    site.keep(heads.weighed, "runtimes want whole registers")
    _masks(site, heads, (10,))
    _caches(site, heads, [site.input(3), *site.node.outputs[1:2]], heads.matched)
    _caches(site, heads, [site.input(4), *site.node.outputs[2:3]], heads.weighed)
    if (sink := site.axes(site.input(11))) is not None:
        _made_of(site, sink[-1], heads.asking)


def fused_attention(site: Site) -> None:
    """Attention of onnxruntime: one matrix makes queries, keys and values."""
    source, weight, bias = (site.axes(site.input(index)) for index in range(3))
    out, count = site.axes(site.node.outputs[0]), site.attribute("num_heads", 0)
    sizes = site.integers("qkv_hidden_sizes", len(site.node.inputs), ())
    width = None if weight is None else site.size(weight[1])
    if source is None or weight is None or out is None or width is None or count < 1:
        site.freeze(UNKNOWN_RANK)
        return
    if not sizes:
        sizes = [width // 3] * 3
    past = site.input(4) is not None or any(output.name for output in site.node.outputs[1:])
    heads = _heads(site, count, count, sizes[0] // count, sizes[2] // count)
    if past or heads is None or sum(sizes) != width or site.attribute("do_rotary", 0):
        site.freeze(
            "it has a cache, is rotated by position, or its heads do not divide the channels"
        )
        return
    parts: list[Axes] = [[None, None, site.space.virtual(size)] for size in sizes]
    # What queries and keys are compared by is nowhere an axis that somebody else could mask.
    site.mix(heads.matched)
    for part, inside in zip(parts, (heads.matched, heads.matched, heads.weighed), strict=True):
        _made_of(site, part[2], [heads.shared, inside])
    _packed(site, weight, 1, parts)
    _packed(site, bias, 0, parts)
    _made_of(site, out[2], [heads.shared, heads.weighed])
    site.tie(source[0], out[0])
    site.tie(source[1], out[1])
    site.mix(source[1])
    site.tie(source[2], weight[0])
    site.contracts(site.input(0), 2, site.input(1), 0)
    site.makes(site.input(1), 1)
    _masks(site, heads, (5,))


def _operands(site: Site, indices: Sequence[int]) -> list[Axes] | None:
    """Returns the axes of operands and of the result, None (and all kept) when they differ in rank."""
    found = [site.axes(site.input(index)) for index in indices]
    found.append(site.axes(site.node.outputs[0]))
    known = [axes for axes in found if axes is not None]
    if (
        len(known) < len(found)
        or len({len(axes) for axes in known}) > 1
        or len(known[0]) not in {_FLAT, _APART}
    ):
        site.freeze("its operands are packed, or differ in rank")
        return None
    return known


def _attend(site: Site, heads: Heads, operands: list[Axes], *, added: bool = False) -> None:
    """Ties queries, keys, values and the result, flat or with heads apart."""
    query, key, value, out = operands
    flat = len(query) == _FLAT
    for axes in (key, value, out):
        site.tie(query[0], axes[0])
    time = 1 if flat else 2
    site.tie(query[time], out[time])
    site.tie(key[time], value[time])
    for axis in (query[time], key[time]):
        site.mix(axis)
    last = len(query) - 1
    if added:
        # Nobody sees what queries and keys hold once the bias is there.
        site.mix(heads.matched)
    else:
        site.contracts(site.input(0), last, site.input(1), last, within=heads.matched)
    asking = (query, heads.matched), (out, heads.weighed)
    shared = (key, heads.matched), (value, heads.weighed)
    for group, factors in ((asking, heads.asking), (shared, [heads.shared])):
        for axes, inside in group:
            if flat:
                _made_of(site, axes[2], [*factors, inside])
            else:
                _made_of(site, axes[1], factors)
                _made_of(site, axes[3], [inside])


def _packed(site: Site, whole: Axes | None, axis: int, parts: Sequence[Axes]) -> None:
    """States that queries, keys and values lie one after another along an axis."""
    start = 0
    for part in parts if whole else ():
        size = site.size(part[2]) or 0
        site.take(part[2], (whole or [])[axis], np.arange(start, start + size))
        start += size


def _masks(site: Site, heads: Heads, indices: Sequence[int]) -> None:
    """Masks and biases of scores: [.., heads, sequence, sequence], each axis possibly of one position."""
    for index in indices:
        value = site.input(index)
        axes = site.axes(value)
        if value is not None and axes is None:
            _keep(site, heads.asking)
        if axes is None:
            continue
        if len(axes) >= _APART - 1 and site.size(axes[-3]) != 1:
            _made_of(site, axes[-3], heads.asking)
        _keep(site, (*axes[:-3], *axes[-2:]))


def _caches(site: Site, heads: Heads, values: Sequence[ir.Value | None], inside: int) -> None:
    """Keys or values of the past: [batch, heads, sequence, size]."""
    for value in values:
        if value is None or not value.name:
            continue
        axes = site.axes(value)
        if axes is None or len(axes) != _APART:
            _keep(site, (heads.shared, inside))
            continue
        _made_of(site, axes[1], [heads.shared])
        _made_of(site, axes[3], [inside])
        _keep(site, (axes[0], axes[2]))


def _keep(site: Site, axes: Sequence[int | None]) -> None:
    for axis in axes:
        site.keep(axis, "it belongs to a mask or a cache")


def rotary(site: Site) -> None:
    """RotaryEmbedding: heads may go, what lies within one is rotated in pairs and stays."""
    if (found := site.through()) is None:
        return
    source, out = found
    site.tie_all(source, out)
    for parameter in site.node.inputs[1:]:
        site.keep_all(parameter, "it is a table of rotations")
    if len(source) == _APART:
        site.keep(source[3], "it is rotated in pairs")
        return
    count, width = site.attribute("num_heads", 0), site.size(source[-1])
    if not count and site.node.domain == "com.microsoft":
        # Without a number of heads, what the tables hold is half of a head.
        table = site.axes(site.input(2))
        half = site.size(table[-1]) if table else None
        count = (width or 0) // (2 * half) if half else 0
    if len(source) != _FLAT or count < 1 or width is None or width % count:
        site.freeze("its heads do not divide the channels")
        return
    heads, inside = site.space.virtual(count), site.space.virtual(width // count)
    site.keep(inside, "it is rotated in pairs")
    _made_of(site, source[2], [heads, inside])
