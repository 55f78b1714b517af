"""Dimensions of what onnxruntime's own operators make, of which onnx's inference knows nothing.

As its shape inference states them (onnxruntime/core/graph/contrib_ops).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import windows
from onnxcomp.analysis.symbolic.sizes import aligned, concatenated, multiplied, recurrent
from onnxcomp.ir.ops import attribute, input_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.symbolic.known import Known, Sizes
    from onnxcomp.ir import ir

DOMAIN = "com.microsoft"
_FLAT = 3


def derived_foreign(known: Known, node: ir.Node) -> list[Sizes | None]:
    """Returns the dimensions of each output of a node of that domain, as far as they follow."""
    rule = _RULES.get(node.op_type)
    return [] if rule is None else rule(known, node)


def _same(known: Known, node: ir.Node) -> list[Sizes | None]:
    return [known.sizes(input_at(node, 0))]


def _summed(known: Known, node: ir.Node) -> list[Sizes | None]:
    """A normalization, of which the last result is what was normalized."""
    shape = known.sizes(input_at(node, 0))
    return [shape, None, None, shape]


def _convolved(known: Known, node: ir.Node) -> list[Sizes | None]:
    return [windows.convolved(known.sizes(input_at(node, 0)), node)]


def _joined(known: Known, node: ir.Node) -> list[Sizes | None]:
    """Operands, each with a scale and a zero point, after those of the result."""
    shapes = [known.sizes(value) for value in node.inputs[2::3]]
    return [concatenated(shapes, attribute(node, "axis"))]


def _pooled(known: Known, node: ir.Node) -> list[Sizes | None]:
    if attribute(node, "channels_last", 0) != 0:
        return []
    source = known.sizes(input_at(node, 0))
    whole = node.op_type == "QLinearGlobalAveragePool"
    return [windows.pooled_whole(source, node) if whole else windows.pooled(source, node)]


def _product(first: int, second: int) -> Callable[[Known, ir.Node], list[Sizes | None]]:
    """A product of two operands, either with its last two axes swapped."""

    def rule(known: Known, node: ir.Node) -> list[Sizes | None]:
        if attribute(node, "transBatchA", 0) != 0 or attribute(node, "transBatchB", 0) != 0:
            return []
        sides = []
        for index, name in ((first, "transA"), (second, "transB")):
            shape, turned = known.sizes(input_at(node, index)), attribute(node, name, 0)
            if shape is None or turned not in (0, 1):
                return []
            swap = turned == 1 and len(shape) > 1
            sides.append((*shape[:-2], shape[-1], shape[-2]) if swap else shape)
        return [multiplied(sides[0], sides[1])]

    return rule


def _spread(*indices: int) -> Callable[[Known, ir.Node], list[Sizes | None]]:
    """Operands that are broadcast."""

    def rule(known: Known, node: ir.Node) -> list[Sizes | None]:
        found: Sizes = ()
        for index in indices:
            shape = known.sizes(input_at(node, index))
            if shape is None:
                return []
            found = aligned(found, shape)
        return [found]

    return rule


def _attended(known: Known, node: ir.Node) -> list[Sizes | None]:
    """As long as the queries, as wide as the values; of one query all heads are as wide."""
    query, value = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 2))
    if query is None or value is None or len(query) != _FLAT or len(value) != _FLAT:
        return []
    return [query if node.op_type == "GroupQueryAttention" else (*query[:2], value[2])]


def _fused_attention(known: Known, node: ir.Node) -> list[Sizes | None]:
    source, weight = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 1))
    sizes: object = attribute(node, "qkv_hidden_sizes", ())
    if source is None or weight is None or len(source) != _FLAT or not isinstance(weight[-1], int):
        return []
    if isinstance(sizes, (list, tuple)) and len(sizes) == _FLAT:
        return [(*source[:2], int(sizes[2]))]
    return [(*source[:2], weight[-1] // 3)]


def _embedded(known: Known, node: ir.Node) -> list[Sizes | None]:
    places, table = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 2))
    if places is None or not table:
        return []
    found = (*places, table[-1])
    return [found, None, found]


_RULES: dict[str, Callable[[Known, ir.Node], list[Sizes | None]]] = {
    **dict.fromkeys(
        (
            "BiasGelu",
            "DequantizeLinear",
            "FastGelu",
            "Gelu",
            "QLinearLeakyRelu",
            "QLinearSigmoid",
            "QLinearSoftmax",
            "QuantizeLinear",
            "QuickGelu",
            "RotaryEmbedding",
        ),
        _same,
    ),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _summed),
    "FusedConv": _convolved,
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), _pooled),
    **dict.fromkeys(
        (
            "DynamicQuantizeMatMul",
            "FusedGemm",
            "FusedMatMul",
            "MatMulIntegerToFloat",
            "TransposeMatMul",
        ),
        _product(0, 1),
    ),
    "QGemm": _product(0, 3),
    "QLinearConcat": _joined,
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), _spread(0, 3)),
    "QLinearWhere": _spread(0, 1, 4),
    **dict.fromkeys(("GroupQueryAttention", "MultiHeadAttention"), _attended),
    "Attention": _fused_attention,
    "EmbedLayerNormalization": _embedded,
    "DynamicQuantizeLSTM": recurrent,
}
