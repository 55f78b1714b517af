"""Attention operators: heads, and what lies within a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Site


def attention(site: Site) -> None:
    """Attention of opset 23: operands [batch, sequence, heads * size] or [batch, heads, sequence, size]."""
    operands = [site.axes(site.input(index)) for index in range(3)]
    out = site.axes(site.node.outputs[0])
    if out is None or any(axes is None for axes in operands) or len(site.node.outputs) > 1:
        site.freeze("the rank of an operand is not known, or it returns more than one result")
        return
    query, key, value = (axes or [] for axes in operands)
    if any(len(axes) != len(query) for axes in (key, value, out)):
        site.freeze("its operands differ in rank")
        return
    for extra in site.node.inputs[3:]:
        for axis in site.axes(extra) or ():
            site.keep(axis, "it is a mask or a cache")
    for axis in (query[-2], key[-2]):
        site.mix(axis)
    if len(query) == 4:
        for axes in (key, value, out):
            site.tie(query[0], axes[0])
        for one, other in ((query, out), (key, value)):
            site.tie(one[1], other[1])
            site.tie(one[2], other[2])
        site.head(query[1])
        if site.size(query[1]) == site.size(key[1]):
            site.tie(query[1], key[1])
        else:
            site.keep(query[1], "several heads share keys")
            site.keep(key[1], "several heads share keys")
        site.tie(query[3], key[3])
        site.mix(query[3])
        site.tie(value[3], out[3])
        return
    _flat(site, query, key, value, out)


def _flat(
    site: Site,
    query: list[int | None],
    key: list[int | None],
    value: list[int | None],
    out: list[int | None],
) -> None:
    heads, shared = site.attribute("q_num_heads", 0), site.attribute("kv_num_heads", 0)
    for axes in (key, value, out):
        site.tie(query[0], axes[0])
    site.tie(query[1], out[1])
    site.tie(key[1], value[1])
    sizes = [site.size(axes[2]) for axes in (query, key, value, out)]
    if not heads or heads != shared or any(not size or size % heads for size in sizes):
        site.freeze("several heads share keys, or heads do not divide the channels")
        return
    count = site.space.virtual(heads)
    site.head(count)
    matched, weighed = (site.space.virtual((sizes[index] or 0) // heads) for index in (0, 2))
    # Without an attribute that says otherwise, scores are divided by the root of a head's size.
    site.mix(matched)
    for axes, inside in ((query, matched), (key, matched), (value, weighed), (out, weighed)):
        if axes[2] is not None:
            site.space.product(axes[2], [count, inside])
