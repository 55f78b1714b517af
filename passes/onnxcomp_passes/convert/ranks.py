"""How many dimensions a value has, where shape inference gave up on the dimensions themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, standard_op

if TYPE_CHECKING:
    from onnxcomp.ir import ir
    from onnxcomp_passes.convert.site import Knowledge

_DEPTH = 32
_KEEPING = frozenset(
    {
        "Abs", "AveragePool", "BatchNormalization", "Cast", "Ceil", "Clip", "Conv", "ConvTranspose",
        "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "GlobalAveragePool", "GlobalMaxPool",
        "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "LeakyRelu", "Log",
        "LogSoftmax", "MaxPool", "Neg", "PRelu", "Pad", "Reciprocal", "Relu", "Resize", "Round", "Selu",
        "Sigmoid", "Sign", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Tanh", "Tile", "Upsample",
    }
)  # fmt: skip
_BROADCASTING = frozenset(
    {"Add", "Div", "Equal", "Greater", "Less", "Max", "Min", "Mul", "Pow", "Sub"}
)


def rank_of(value: ir.Value | None, known: Knowledge, depth: int = _DEPTH) -> int | None:
    """Returns the number of dimensions of a value, as far as operators fix it; never a guess."""
    found = known.rank(value)
    node = None if value is None else value.producer()
    if found is not None or node is None or depth == 0:
        return found
    name = standard_op(node) or ""
    if name == "Transpose":
        axes = attribute(node, "perm")
        return len(axes) if isinstance(axes, (tuple, list)) else _first(node, known, depth)
    if name == "Reshape":
        length = known.shape(node.inputs[1]) or ()
        return length[0] if len(length) == 1 and isinstance(length[0], int) else None
    if name in _KEEPING:
        return _first(node, known, depth)
    if name in _BROADCASTING:
        ranks = [rank_of(operand, known, depth - 1) for operand in node.inputs]
        return max(rank or 0 for rank in ranks) if None not in ranks else None
    return _matmul(node, known, depth) if name == "MatMul" else None


def _first(node: ir.Node, known: Knowledge, depth: int) -> int | None:
    return rank_of(node.inputs[0], known, depth - 1)


def _matmul(node: ir.Node, known: Knowledge, depth: int) -> int | None:
    left, right = (rank_of(operand, known, depth - 1) for operand in node.inputs[:2])
    if left is None or right is None or min(left, right) < 2:
        return None
    return max(left, right)
