"""Operators that treat every element alike: positions of operands and results are the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Site
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
# Vectors and scalars beside the data: their axes say nothing about the data's.
_PARAMETERS_FROM = 1


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
    for axes in inputs:
        site.spread(axes or [], out)


def normalized(site: Site) -> None:
    """Softmax and its like: each position along the axis depends on all others."""
    source = site.axes(site.input(0))
    _like(site, source, site.node.outputs[0])
    version = site.node.version or 13
    axis = site.attribute("axis", -1 if version >= 13 else 1)
    if source is None:
        return
    flattened = version < 13 and site.node.op_type in {"Softmax", "LogSoftmax", "Hardmax"}
    for mixed in source[axis:] if flattened else source[axis:][:1]:
        site.mix(mixed)


def quantized(site: Site) -> None:
    """QuantizeLinear and DequantizeLinear: scales run along one axis, or are blocks."""
    source = site.axes(site.input(0))
    _like(site, source, site.node.outputs[0])
    if source is None:
        return
    axis = site.attribute("axis", 1)
    block = attribute(site.node, "block_size", 0)
    for parameter in site.node.inputs[_PARAMETERS_FROM:]:
        axes = site.axes(parameter)
        if axes is None:
            site.freeze("the rank of a scale is not known")
        elif len(axes) == 1 and site.size(axes[0]) != 1 and -len(source) <= axis < len(source):
            site.tie(axes[0], source[axis])
        elif len(axes) > 1:
            _blocks(site, axes, source, axis)
    if block and -len(source) <= axis < len(source):
        site.keep(source[axis], "it is quantized in blocks")


def _blocks(site: Site, axes: list[int | None], source: list[int | None], axis: int) -> None:
    for place, (one, other) in enumerate(zip(axes, source, strict=False)):
        if place == axis % len(source):
            site.keep(one, "it counts blocks")
        else:
            site.tie(one, other)


def _like(site: Site, source: list[int | None] | None, value: ir.Value | None) -> None:
    axes = site.axes(value)
    if value is None or not value.name:
        return
    if axes is None or source is None or len(axes) != len(source):
        site.freeze("the rank of an operand is not known")
        return
    site.tie_all(source, axes)
