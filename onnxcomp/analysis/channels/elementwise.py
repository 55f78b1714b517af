"""Operators that treat every element alike: positions of operands and results are the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Axes, Site
    from onnxcomp.ir import ir

UNARY = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BitwiseNot",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Log",
        "Mish",
        "Neg",
        "Not",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ]
)
BROADCAST = frozenset(
    [
        "Add",
        "And",
        "BitShift",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Or",
        "PRelu",
        "Pow",
        "Sub",
        "Sum",
        "Where",
        "Xor",
    ]
)


def unary(site: Site) -> None:
    """The results have the axes of the first operand; what else is read are scalars."""
    source = site.axes(site.input(0))
    for output in site.node.outputs:
        _like(site, source, output)


def broadcast(site: Site) -> None:
    """Axes are compared from the right; an axis of one position gives way."""
    out = site.axes(site.node.outputs[0])
    inputs = [site.axes(value) for value in site.node.inputs if value is not None]
    if out is None or any(axes is None for axes in inputs):
        site.freeze("the rank of an operand is not known")
        return
    if "broadcast" in site.node.attributes:
        site.freeze("it broadcasts as before opset 7")
        return
    for axes in inputs:
        site.spread(axes or [], out)


def normalized(site: Site) -> None:
    """Softmax and its like: each position along the axis depends on all others."""
    source = site.axes(site.input(0))
    _like(site, source, site.node.outputs[0])
    if source is None:
        return
    axis = site.attribute("axis", -1 if site.opset >= 13 else 1)
    # Before opset 13 everything from the axis on was one row.
    for mixed in source[axis:] if site.opset < 13 else source[axis:][:1]:
        site.mix(mixed)


def quantized(site: Site) -> None:
    """QuantizeLinear and DequantizeLinear: scales run along one axis, or are blocks."""
    source = site.axes(site.input(0))
    _like(site, source, site.node.outputs[0])
    if source is None:
        return
    axis = site.attribute("axis", 1)
    for parameter in site.node.inputs[1:]:
        _scales(site, site.axes(parameter), source, axis)


def _scales(site: Site, scales: Axes | None, source: Axes, axis: int) -> None:
    """One number for all, one per position of an axis, or one per block along it."""
    block = site.attribute("block_size", 0)
    if scales is None:
        site.freeze("the rank of a scale is not known")
    elif len(scales) == 1 and not block:
        if site.size(scales[0]) != 1:
            site.tie(scales[0], source[axis])
    elif len(scales) == len(source) and block:
        site.tie_all(
            *(
                [one for i, one in enumerate(axes) if i != axis % len(source)]
                for axes in (scales, source)
            )
        )
        _blocks(site, scales[axis], source[axis], block)
    elif scales:
        site.freeze("its scales have more axes than are understood")


def _blocks(site: Site, counted: int | None, whole: int | None, block: int) -> None:
    """Whole blocks may go."""
    if counted is None or whole is None or site.size(whole) != block * (site.size(counted) or 0):
        site.keep(counted, "it counts blocks")
        site.keep(whole, "it is quantized in blocks")
        return
    inside = site.space.virtual(block)
    site.keep(inside, "it is quantized in blocks")
    site.space.product(whole, [counted, inside])


def _like(site: Site, source: list[int | None] | None, value: ir.Value | None) -> None:
    axes = site.axes(value)
    if value is None or not value.name:
        return
    if axes is None or source is None or len(axes) != len(source):
        site.freeze("the rank of an operand is not known")
        return
    site.tie_all(source, axes)
