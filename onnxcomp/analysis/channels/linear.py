"""Operators that sum over channels: what they read and what they make are different channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, constant

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Axes, Site


def conv(site: Site) -> None:
    """Conv: filters make channels, their second axis reads those of a group."""
    _convolution(site, made=0, read=1)


def conv_transpose(site: Site) -> None:
    """ConvTranspose: the first axis of the filters reads all channels, the second makes a group's."""
    _convolution(site, made=1, read=0)


def _convolution(site: Site, made: int, read: int) -> None:
    source, weight = site.axes(site.input(0)), site.axes(site.input(1))
    out = site.axes(site.node.outputs[0])
    if source is None or weight is None or out is None or None in weight[:2]:
        site.freeze("the rank of an operand is not known")
        return
    site.tie(source[0], out[0])
    for axis in (*source[2:], *weight[2:], *out[2:]):
        site.keep(axis, "positions in space are neighbours")
    bias = site.axes(site.input(2))
    if bias is not None:
        site.tie(bias[0], out[1])
    group = site.attribute("group", 1)
    if group == 1:
        site.tie(weight[made], out[1])
        site.tie(weight[read], source[1])
    else:
        _grouped(site, group, source, weight, out, made)
    site.makes(site.input(1), made)
    site.makes(site.input(2), 0)
    site.contracts(site.input(0), 1, site.input(1), read)


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
    left, right = site.axes(site.input(0)), site.axes(site.input(1))
    out = site.axes(site.node.outputs[0])
    if left is None or right is None or out is None or not left or not right:
        site.freeze("the rank of an operand is not known")
        return
    site.tie(left[-1], right[-2] if len(right) > 1 else right[0])
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else []
    matrix = len(rows) + len(columns)
    site.tie_all([*rows, *columns], out[len(out) - matrix :])
    batches = out[: len(out) - matrix]
    for axes in (left[:-2], right[:-2]):
        site.spread(axes, batches)
    for axis in batches:
        _both(site, axis)
    site.contracts(
        site.input(0), len(left) - 1, site.input(1), len(right) - 2 if len(right) > 1 else 0
    )
    if len(right) > 1:
        site.makes(site.input(1), len(right) - 1)
    if len(left) > 1:
        site.makes(site.input(0), len(left) - 2)


def gemm(site: Site) -> None:
    """Gemm: a MatMul of two matrices, either transposed, and a bias that is spread."""
    left, right = site.axes(site.input(0)), site.axes(site.input(1))
    out = site.axes(site.node.outputs[0])
    if (
        left is None
        or right is None
        or out is None
        or not (len(left) == len(right) == len(out) == 2)
    ):
        site.freeze("the rank of an operand is not known")
        return
    rows, inner = (1, 0) if site.attribute("transA", 0) else (0, 1)
    read, made = (1, 0) if site.attribute("transB", 0) else (0, 1)
    site.tie(left[rows], out[0])
    site.tie(left[inner], right[read])
    site.tie(right[made], out[1])
    site.contracts(site.input(0), inner, site.input(1), read)
    site.makes(site.input(1), made)
    bias = site.axes(site.input(2))
    site.spread(bias or [], out)
    if bias:
        site.makes(site.input(2), len(bias) - 1)


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
                    _both(site, known_axis(site, index, place))
            elif len(operands) == 2 and index == 0 and letter in operands[1]:
                site.contracts(site.input(0), place, site.input(1), operands[1].index(letter))
            elif len(operands) != 2 or letter not in operands[0]:
                site.mix(known_axis(site, index, place))


def _both(site: Site, axis: int | None) -> None:
    """Notes an axis along which products of two activations stand beside each other."""
    if constant(site.input(0)) is None and constant(site.input(1)) is None:
        site.head(axis)


def known_axis(site: Site, index: int, place: int) -> int | None:
    """Returns an axis of an operand."""
    axes = site.axes(site.input(index))
    return None if axes is None else axes[place]
