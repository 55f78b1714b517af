"""Operators on integers: quantization itself, and products and layers of quantized operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.channels import layers, linear
from onnxcomp.analysis.channels.elementwise import like, normalize
from onnxcomp.analysis.channels.movement import joined
from onnxcomp.analysis.channels.site import UNKNOWN_RANK

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.analysis.channels.site import Axes, Site


def linear_rounding(site: Site) -> None:
    """QuantizeLinear and DequantizeLinear: scales run along one axis, or are blocks."""
    source = site.axes(site.input(0))
    like(site, source, site.node.outputs[0])
    if source is None:
        return
    axis = site.attribute("axis", 1)
    for parameter in site.node.inputs[1:]:
        if parameter is not None:
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
        for place, (one, other) in enumerate(zip(scales, source, strict=True)):
            if place != axis % len(source):
                site.tie(one, other)
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


def measured(site: Site) -> None:
    """DynamicQuantizeLinear: the scale is measured over everything."""
    source = site.axes(site.input(0))
    like(site, source, site.node.outputs[0])
    for axis in source or ():
        site.scale(axis)


def conv_integer(site: Site) -> None:
    """ConvInteger: operands, then their zero points."""
    linear.conv(site)
    _per_channel(site, (3,), 1)


def q_linear_conv(site: Site) -> None:
    """QLinearConv: each operand with its scale and zero point, then those of the result, then the bias."""
    if site.attribute("channels_last", 0):
        site.freeze("channels are its last axis")
        return
    linear.convolution(site, made=0, read=1, weights=3, bias=8)
    _per_channel(site, (4, 5), 1)


def _per_channel(site: Site, indices: Iterable[int], axis: int) -> None:
    """Numbers of which there is one for each position of an axis of the result, or one for all."""
    out = site.axes(site.node.outputs[0])
    for index in indices:
        axes = site.axes(site.input(index))
        if axes and out is not None and site.size(axes[-1]) != 1:
            site.tie(axes[-1], out[axis])


def matmul_integer(site: Site) -> None:
    """MatMulInteger: a zero point for each row of the left, for each column of the right, or for all."""
    linear.matrix_product(site, 0, 1)
    _rows(site, (2,))
    _per_channel(site, (3,), -1)


def q_linear_matmul(site: Site) -> None:
    """QLinearMatMul: each operand with its scale and zero point."""
    linear.matrix_product(site, 0, 3)
    _rows(site, (1, 2))
    _per_channel(site, (4, 5), -1)


def matmul_integer_to_float(site: Site) -> None:
    """MatMulIntegerToFloat of onnxruntime: operands, scales, zero points, bias."""
    linear.matrix_product(site, 0, 1)
    _rows(site, (2, 4))
    _per_channel(site, (3, 5, 6), -1)


def dynamic_quantize_matmul(site: Site) -> None:
    """DynamicQuantizeMatMul of onnxruntime: the left operand is quantized as it comes."""
    linear.matrix_product(site, 0, 1)
    for axis in site.axes(site.input(0)) or ():
        site.scale(axis)
    _per_channel(site, (2, 3, 4), -1)


def q_gemm(site: Site) -> None:
    """QGemm of onnxruntime: operands with scales and zero points, the bias, those of the result."""
    linear.matrices(site, 0, 3, 6)
    _rows(site, (1, 2))
    _per_channel(site, (4, 5), -1)


def _rows(site: Site, indices: Iterable[int]) -> None:
    """Numbers of the left operand: one for all is understood, one per row is not."""
    for index in indices:
        axes = site.axes(site.input(index)) or []
        if any(site.size(axis) != 1 for axis in axes):
            site.freeze("it has a scale for each row")


def q_linear_binary(site: Site) -> None:
    """QLinearAdd, QLinearMul of onnxruntime: operands at 0 and 3."""
    _spread(site, (0, 3))


def q_linear_where(site: Site) -> None:
    """QLinearWhere of onnxruntime: the condition and operands at 1 and 4."""
    _spread(site, (0, 1, 4))


def _spread(site: Site, indices: Iterable[int]) -> None:
    out = site.axes(site.node.outputs[0])
    operands = [site.axes(site.input(index)) for index in indices]
    if out is None or any(axes is None for axes in operands):
        site.freeze(UNKNOWN_RANK)
        return
    for axes in operands:
        site.spread(axes or [], out)


def q_linear_unary(site: Site) -> None:
    """QLinearSigmoid, QLinearLeakyRelu of onnxruntime."""
    like(site, site.axes(site.input(0)), site.node.outputs[0])


def q_linear_softmax(site: Site) -> None:
    """QLinearSoftmax of onnxruntime, which is told the opset of the Softmax that it was."""
    source = site.axes(site.input(0))
    like(site, source, site.node.outputs[0])
    normalize(site, source, site.attribute("opset", 13))


def q_linear_pool(site: Site) -> None:
    """QLinearAveragePool, QLinearGlobalAveragePool of onnxruntime."""
    if site.attribute("channels_last", 0):
        site.freeze("channels are its last axis")
    else:
        layers.pool(site)


def q_linear_concat(site: Site) -> None:
    """QLinearConcat of onnxruntime: scale and zero point of the result, then each operand with its own."""
    joined(site, list(site.node.inputs[2::3]), site.attribute("axis", 0))
