"""Operators that sum over channels: what they read and what they make are different channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.channels.site import UNKNOWN_RANK
from onnxcomp.ir.ops import attribute, constant

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Axes, Site

_SPACE = "positions in space are neighbours"


def conv(site: Site) -> None:
    """Conv, ConvInteger: filters make channels, their second axis reads those of a group."""
    convolution(site, made=0, read=1)


def fused_conv(site: Site) -> None:
    """FusedConv: a Conv to which something is added before the activation."""
    convolution(site, made=0, read=1)
    added, out = site.axes(site.input(3)), site.axes(site.node.outputs[0])
    if added is not None and out is not None:
        site.spread(added, out)


def deform_conv(site: Site) -> None:
    """DeformConv: a Conv that reads all channels at other places in space."""
    if site.attribute("group", 1) != 1 or site.attribute("offset_group", 1) != 1:
        site.freeze("it convolves in groups")
        return
    convolution(site, made=0, read=1, bias=3)


def causal_conv(site: Site) -> None:
    """CausalConvWithState: a depthwise convolution over time, with what came before as a state."""
    values = [site.input(0), site.input(3), *site.node.outputs]
    found = [axes for value in values if (axes := site.axes(value)) is not None]
    weight, bias = site.axes(site.input(1)), site.axes(site.input(2))
    if weight is None or any(len(axes) != len(weight) for axes in found):
        site.freeze(UNKNOWN_RANK)
        return
    for axes in found:
        site.tie(axes[0], found[0][0])
        site.tie(axes[1], weight[0])
        site.keep(axes[2], _SPACE)
    if bias:
        site.tie(bias[0], weight[0])
    site.makes(site.input(1), 0)


def conv_transpose(site: Site) -> None:
    """ConvTranspose: the first axis of the filters reads all channels, the second makes a group's."""
    convolution(site, made=1, read=0)


def convolution(site: Site, *, made: int, read: int, weights: int = 1, bias: int = 2) -> None:
    """States what a convolution does, wherever its operands are."""
    source, weight = site.axes(site.input(0)), site.axes(site.input(weights))
    out = site.axes(site.node.outputs[0])
    if source is None or weight is None or out is None or None in weight[:2]:
        site.freeze(UNKNOWN_RANK)
        return
    site.tie(source[0], out[0])
    for axis in (*source[2:], *weight[2:], *out[2:]):
        site.keep(axis, _SPACE)
    group = site.attribute("group", 1)
    if group == 1:
        site.tie(weight[made], out[1])
        site.tie(weight[read], source[1])
    else:
        _grouped(site, group, source, weight, out, made)
    site.makes(site.input(weights), made)
    site.contracts(site.input(0), 1, site.input(weights), read)
    added = None if site.node.op_type == "ConvInteger" else site.axes(site.input(bias))
    if added:
        site.tie(added[0], out[1])
        site.makes(site.input(bias), 0)


def _grouped(site: Site, group: int, source: Axes, weight: Axes, out: Axes, made: int) -> None:
    """Groups stay equally large: whole groups go, or the same channels of each group."""
    read_all, made_all = source[1], out[1]
    first, second = weight[0], weight[1]
    sizes = [site.size(axis) for axis in (read_all, made_all, first, second)]
    whole = site.size(first) or 0
    if (
        None in sizes
        or group < 1
        or any((site.size(a) or 0) % group for a in (read_all, made_all, first))
    ):
        site.freeze("its groups do not divide the channels")
        return
    groups = site.space.virtual(group)
    inside = site.space.virtual(whole // group)
    site.space.product(first or 0, [groups, inside])
    # The first axis runs over all groups, the second over one: which of them is read depends on the operator.
    outside, within = (made_all, read_all) if made == 0 else (read_all, made_all)
    site.tie(first, outside)
    if within is not None and second is not None:
        if (site.size(within) or 0) != group * (site.size(second) or 0):
            site.freeze("its groups do not divide the channels")
            return
        site.space.product(within, [groups, second])


def matmul(site: Site) -> None:
    """MatMul: the last axis of the left meets the last but one of the right."""
    matrix_product(site, 0, 1)


def fused_matmul(site: Site) -> None:
    """FusedMatMul: a MatMul of operands whose last two axes are swapped first."""
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        site.freeze("it moves the first axis")
        return
    turned = (site.attribute("transA", 0) == 1, site.attribute("transB", 0) == 1)
    matrix_product(site, 0, 1, turned=turned)


def matrix_product(
    site: Site, first: int, second: int, *, turned: tuple[bool, bool] = (False, False)
) -> None:
    """States what a MatMul does, wherever its operands are."""
    left, right = site.axes(site.input(first)), site.axes(site.input(second))
    out = site.axes(site.node.outputs[0])
    if not left or not right or out is None:
        site.freeze(UNKNOWN_RANK)
        return
    # A vector has no other axis than the one that is summed up, and nothing to be turned.
    inner, row = _matrix_axes(len(left), last=not turned[0])
    read, column = _matrix_axes(len(right), last=len(right) == 1 or turned[1])
    site.tie(left[inner], right[read])
    made = [axes[place] for axes, place in ((left, row), (right, column)) if place is not None]
    batches = out[: len(out) - len(made)]
    site.tie_all(made, out[len(batches) :])
    for axes in (left[:-2], right[:-2]):
        site.spread(axes, batches)
    for axis in batches:
        _both(site, axis, first, second)
    site.contracts(site.input(first), inner, site.input(second), read)
    if column is not None:
        site.makes(site.input(second), column)
    if row is not None:
        site.makes(site.input(first), row)


def _matrix_axes(rank: int, *, last: bool) -> tuple[int, int | None]:
    """Returns which axis is summed up and which one stays: the last and the one before, or the other way."""
    if rank == 1:
        return 0, None
    return (rank - 1, rank - 2) if last else (rank - 2, rank - 1)


def gemm(site: Site) -> None:
    """Gemm: a MatMul of two matrices, either transposed, and a bias that is spread."""
    matrices(site, 0, 1, 2)


def matrices(site: Site, first: int, second: int, bias: int) -> None:
    """States what a Gemm does, wherever its operands are."""
    left, right = site.axes(site.input(first)), site.axes(site.input(second))
    out, added = site.axes(site.node.outputs[0]), site.axes(site.input(bias))
    if any(axes is None or len(axes) != 2 for axes in (left, right, out)):
        site.freeze(UNKNOWN_RANK)
        return
    turned = (site.attribute("transA", 0) == 1, site.attribute("transB", 0) == 1)
    matrix_product(site, first, second, turned=turned)
    site.spread(added or [], out or [])
    if added:
        site.makes(site.input(bias), len(added) - 1)


def einsum(site: Site) -> None:
    """Einsum: equal letters are equal axes."""
    equation = str(attribute(site.node, "equation", "")).replace(" ", "")
    terms, arrow, result = equation.partition("->")
    operands = terms.split(",")
    values = [*site.node.inputs, site.node.outputs[0]]
    axes = [site.axes(value) for value in values]
    letters = [*operands, result]
    if not arrow or "." in equation or len(letters) != len(axes):
        site.freeze("its equation is not spelled out")
        return
    known: dict[str, int | None] = {}
    for term, found in zip(letters, axes, strict=True):
        if found is None or len(found) != len(term) or len(set(term)) != len(term):
            site.freeze("its equation does not fit its operands")
            return
        for letter, axis in zip(term, found, strict=True):
            if letter in known:
                site.tie(known[letter], axis)
            known.setdefault(letter, axis)
    _sums(site, operands, result)


def _sums(site: Site, operands: list[str], result: str) -> None:
    """Notes what is summed up; of more than two operands nobody asks."""
    for index, term in enumerate(operands):
        for place, letter in enumerate(term):
            if letter in result:
                site.makes(site.input(index), place)
                if len(operands) == 2 and letter in operands[1 - index]:
                    _both(site, known_axis(site, index, place), 0, 1)
            elif len(operands) == 2 and index == 0 and letter in operands[1]:
                site.contracts(site.input(0), place, site.input(1), operands[1].index(letter))
            elif len(operands) != 2 or letter not in operands[0]:
                site.mix(known_axis(site, index, place))


def _both(site: Site, axis: int | None, first: int, second: int) -> None:
    """Notes an axis along which products of two activations stand beside each other."""
    if constant(site.input(first)) is None and constant(site.input(second)) is None:
        site.head(axis)


def known_axis(site: Site, index: int, place: int) -> int | None:
    """Returns an axis of an operand."""
    axes = site.axes(site.input(index))
    return None if axes is None else axes[place]
