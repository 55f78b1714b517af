"""Operators that treat every element alike: positions of operands and results are the same ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import is_training

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
        "BitCast",
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
        "SwiGLU",
        "Where",
        "Xor",
    ]
)

# Since this opset a Softmax works along one axis.
_ONE_AXIS = 13


def unary(site: Site) -> None:
    """The results have the axes of the first operand; what else is read are scalars."""
    if is_training(site.node):
        site.freeze("it draws random numbers")
        return
    source = site.axes(site.input(0))
    for output in site.node.outputs:
        like(site, source, output)


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
    like(site, source, site.node.outputs[0])
    normalize(site, source, site.opset)


def normalize(site: Site, source: Axes | None, opset: int) -> None:
    """States along which axes a Softmax of an opset works."""
    axis = site.attribute("axis", -1 if opset >= _ONE_AXIS else 1)
    # Before, everything from the axis on was one row.
    for mixed in (source or [])[axis:] if opset < _ONE_AXIS else (source or [])[axis:][:1]:
        site.mix(mixed)


def like(site: Site, source: Axes | None, value: ir.Value | None) -> None:
    """States that a result has the axes of an operand."""
    axes = site.axes(value)
    if value is None or not value.name:
        return
    if axes is None or source is None or len(axes) != len(source):
        site.freeze("the rank of an operand is not known")
        return
    site.tie_all(source, axes)
