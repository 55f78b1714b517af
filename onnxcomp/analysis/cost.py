"""Arithmetic and memory traffic of each node, as far as its shapes are known.

A multiplication and an addition count as two operations, an elementwise function as one per element,
moving data as none. A graph inside a node (branch, loop body) counts once, however often it runs.
Whatever depends on a dimension that is not known is unknown, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from onnxcomp.analysis.shapes import ShapeMap, Shapes
from onnxcomp.ir.ops import attribute, bit_width, input_at, standard_op

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model, ir

Rule = Callable[["ir.Node", ShapeMap], int | None]


@dataclass(frozen=True)
class NodeCost:
    """What one run of a node costs. `None` where a shape is not known.

    Attributes:
        flops: Arithmetic operations, of whatever type.
        bytes_read: Size of all inputs, weights included.
        bytes_written: Size of all outputs.
    """

    flops: int | None
    bytes_read: int | None
    bytes_written: int | None


@dataclass(frozen=True)
class Costs:
    """The cost of every node of every scope."""

    def compute(self, model: Model, facts: Facts) -> dict[ir.Node, NodeCost]:
        """Applies the rule of each operator to the inferred shapes."""
        return costs(model, facts.get(Shapes()))


def costs(model: Model, shapes: ShapeMap) -> dict[ir.Node, NodeCost]:
    """Returns the cost of every node of every scope, for shapes that are known."""
    return {node: node_cost(node, shapes) for node in model.nodes()}


def node_cost(node: ir.Node, shapes: ShapeMap) -> NodeCost:
    """Returns the cost of one node."""
    return NodeCost(
        flops(node, shapes),
        _bytes([value for value in node.inputs if value is not None], shapes),
        _bytes([value for value in node.outputs if value.name], shapes),
    )


def flops(node: ir.Node, shapes: ShapeMap) -> int | None:
    """Returns the arithmetic operations of a node, `None` when they cannot be told."""
    name = standard_op(node)
    if name is None:
        rule = _FOREIGN.get((node.domain, node.op_type))
        return rule(node, shapes) if rule else None
    if name in _FREE:
        return 0
    if name in _PER_OUTPUT:
        return _times(_PER_OUTPUT[name], shapes.size(node.outputs[0]))
    if name in _PER_INPUT:
        return _times(_PER_INPUT[name], shapes.size(input_at(node, 0)))
    rule = _RULES.get(name)
    return rule(node, shapes) if rule else None


def _bytes(values: list[ir.Value], shapes: ShapeMap) -> int | None:
    total = 0
    for value in values:
        size, dtype = shapes.size(value), shapes.dtype(value)
        if size is None or dtype is None:
            return None
        total += (size * bit_width(dtype) + 7) // 8
    return total


def _times(factor: int, size: int | None) -> int | None:
    return None if size is None else factor * size


def _conv(weight: int, *, transposed: bool = False) -> Rule:
    """Each element of the output (of the input when transposed) meets one filter."""

    def rule(node: ir.Node, shapes: ShapeMap) -> int | None:
        kernel = shapes.static(input_at(node, weight))
        size = shapes.size(input_at(node, 0) if transposed else node.outputs[0])
        if kernel is None or len(kernel) < 2 or size is None:
            return None
        return 2 * size * prod(kernel[1:])

    return rule


def _matmul(node: ir.Node, shapes: ShapeMap) -> int | None:
    inner = shapes.shape(input_at(node, 0))
    size = shapes.size(node.outputs[0])
    if not inner or not isinstance(inner[-1], int) or size is None:
        return None
    return 2 * size * inner[-1]


def _gemm(node: ir.Node, shapes: ShapeMap) -> int | None:
    left = shapes.shape(input_at(node, 0))
    size = shapes.size(node.outputs[0])
    if left is None or len(left) != 2 or size is None:
        return None
    inner = left[0 if attribute(node, "transA", 0) else 1]
    return 2 * size * inner if isinstance(inner, int) else None


def _einsum(node: ir.Node, shapes: ShapeMap) -> int | None:
    """Each combination of all indices is one multiplication (per further operand) and one addition."""
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    terms = equation.partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        shape = shapes.static(value)
        if shape is None or len(shape) != len(term) or "." in term:
            return None
        sizes.update(zip(term, shape, strict=True))
    return max(len(terms), 1) * prod(sizes.values())


def _recurrent(node: ir.Node, shapes: ShapeMap) -> int | None:
    """Both weight matrices meet every step of every sequence; the gates' functions are left out."""
    steps = shapes.static(input_at(node, 0))
    own, recurrent = (shapes.size(input_at(node, index)) for index in (1, 2))
    if steps is None or len(steps) != 3 or own is None or recurrent is None:
        return None
    return 2 * steps[0] * steps[1] * (own + recurrent)


def _attention(node: ir.Node, shapes: ShapeMap) -> int | None:
    """Scores of all queries with all keys, and the same again for the values."""
    query, output = shapes.size(input_at(node, 0)), shapes.size(node.outputs[0])
    keys = shapes.shape(input_at(node, 1))
    past = input_at(node, 4) if standard_op(node) else None
    if past is not None or query is None or output is None or not keys or len(keys) < 3:
        return None
    return 2 * (query + output) * keys[-2] if isinstance(keys[-2], int) else None


def _packed_attention(node: ir.Node, shapes: ShapeMap) -> int | None:
    """The projections to queries, keys and values, then scores and values."""
    data, weights = shapes.static(input_at(node, 0)), shapes.static(input_at(node, 1))
    if data is None or weights is None or len(data) != 3 or len(weights) != 2:
        return None
    batch, steps, _ = data
    hidden = weights[1] // 3
    return 2 * batch * steps * prod(weights) + 4 * batch * steps * steps * hidden


def _pool(node: ir.Node, shapes: ShapeMap) -> int | None:
    kernel: list[int] = [*attribute(node, "kernel_shape", [])]
    return _times(prod(kernel), shapes.size(node.outputs[0])) if kernel else None


def _blockwise_matmul(node: ir.Node, shapes: ShapeMap) -> int | None:
    return _times(2 * int(attribute(node, "K", 0)), shapes.size(node.outputs[0]))


_FREE = frozenset(
    [
        "Cast",
        "CastLike",
        "Compress",
        "Concat",
        "ConcatFromSequence",
        "Constant",
        "ConstantOfShape",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "EyeLike",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "If",
        "Loop",
        "NonZero",
        "OneHot",
        "Optional",
        "Pad",
        "OptionalGetElement",
        "OptionalHasElement",
        "Range",
        "Reshape",
        "ReverseSequence",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "SequenceAt",
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceErase",
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "Shape",
        "Size",
        "Slice",
        "SpaceToDepth",
        "Split",
        "SplitToSequence",
        "Squeeze",
        "TensorScatter",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Upsample",
        "Where",
    ]
)
# Operations per element of the first output.
_PER_OUTPUT: dict[str, int] = {
    **dict.fromkeys(
        [
            "Abs",
            "Acos",
            "Acosh",
            "Add",
            "And",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "BitShift",
            "BitwiseAnd",
            "BitwiseNot",
            "BitwiseOr",
            "BitwiseXor",
            "Ceil",
            "Celu",
            "Clip",
            "Cos",
            "Cosh",
            "DequantizeLinear",
            "Div",
            "Elu",
            "Equal",
            "Erf",
            "Exp",
            "Floor",
            "Gelu",
            "Greater",
            "GreaterOrEqual",
            "HardSigmoid",
            "HardSwish",
            "IsInf",
            "IsNaN",
            "LeakyRelu",
            "Less",
            "LessOrEqual",
            "Log",
            "Max",
            "Mean",
            "Min",
            "Mish",
            "Mod",
            "Mul",
            "Neg",
            "Not",
            "Or",
            "PRelu",
            "Pow",
            "QuantizeLinear",
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
            "Sub",
            "Sum",
            "Swish",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Xor",
        ],
        1,
    ),
    "BatchNormalization": 2,
    "DynamicQuantizeLinear": 3,
    "Resize": 4,
    "GridSample": 8,
}
# Operations per element of the first input.
_PER_INPUT: dict[str, int] = {
    **dict.fromkeys(
        [
            "ArgMax",
            "ArgMin",
            "CumSum",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Hardmax",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "TopK",
        ],
        1,
    ),
    **dict.fromkeys(["GlobalLpPool", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare"], 2),
    **dict.fromkeys(["LpNormalization", "ReduceLogSumExp"], 3),
    "RMSNormalization": 4,
    **dict.fromkeys(["Softmax", "LogSoftmax", "MeanVarianceNormalization"], 5),
    **dict.fromkeys(["GroupNormalization", "InstanceNormalization", "LayerNormalization"], 7),
}
_RULES: dict[str, Rule] = {
    "Attention": _attention,
    "AveragePool": _pool,
    "Conv": _conv(1),
    "ConvInteger": _conv(1),
    "ConvTranspose": _conv(1, transposed=True),
    "DeformConv": _conv(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "LpPool": _pool,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "MaxPool": _pool,
    "QLinearConv": _conv(3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrent,
}
_MICROSOFT: dict[str, Rule] = {
    "Attention": _packed_attention,
    "DynamicQuantizeLSTM": _recurrent,
    "DynamicQuantizeMatMul": _matmul,
    "FusedConv": _conv(1),
    "FusedGemm": _gemm,
    "FusedMatMul": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "MatMulNBits": _blockwise_matmul,
    "MultiHeadAttention": _attention,
    "QGemm": _gemm,
}
_FOREIGN = {("com.microsoft", name): rule for name, rule in _MICROSOFT.items()}
