"""Element types of results that are those of operands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import input_at, standard_op

if TYPE_CHECKING:
    from onnxcomp.ir import ir

_NAMES = (
    "Abs Add AveragePool BatchNormalization Ceil Celu Clip Concat Conv ConvTranspose CumSum DepthToSpace "
    "Div Dropout Elu Erf Exp Expand Flatten Floor Gather GatherElements Gelu Gemm GlobalAveragePool "
    "GlobalMaxPool GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization "
    "LayerNormalization LeakyRelu Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg PRelu Pad "
    "Pow RMSNormalization Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Sigmoid Sign Slice Softmax Softplus "
    "Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tanh Tile Transpose Unsqueeze"
)
_TYPED_LIKE_FIRST = frozenset(_NAMES.split())


def typed_like(value: ir.Value) -> ir.Value | None:
    """Returns the operand whose element type a value has, None when the operator does not say so."""
    node = value.producer()
    if node is None or standard_op(node) not in _TYPED_LIKE_FIRST or value is not node.outputs[0]:
        return None
    return input_at(node, 0)
