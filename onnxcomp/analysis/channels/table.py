"""Which rule belongs to which operator. An operator without one keeps all that it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnxcomp.analysis.channels import (
    attention,
    contrib,
    control,
    elementwise,
    indexing,
    layers,
    linear,
    movement,
    quantized,
    recurrent,
    reshaping,
)
from onnxcomp.ir.ops import standard_op

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.channels.site import Site
    from onnxcomp.ir import ir

    Rule: TypeAlias = Callable[["Site"], None]


def nothing(site: Site) -> None:
    """Constant: a table that others read."""
    del site


def known_as(node: ir.Node) -> str:
    """Returns the name of an operator, with its domain unless it is ONNX's own."""
    return standard_op(node) or f"{node.domain}.{node.op_type}"


def rule_of(site: Site) -> Rule | None:
    """Returns the rule of a node's operator, None when there is none."""
    return RULES.get(known_as(site.node))


_ORT = "com.microsoft"
_CONTRIB: dict[str, Rule] = {
    "Attention": attention.fused_attention,
    "MultiHeadAttention": attention.multi_head_attention,
    "GroupQueryAttention": attention.group_query_attention,
    "RotaryEmbedding": attention.rotary,
    **dict.fromkeys(("Gelu", "QuickGelu"), elementwise.unary),
    **dict.fromkeys(("BiasGelu", "FastGelu"), contrib.biased),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
        contrib.skip_layer_normalization,
    ),
    "EmbedLayerNormalization": contrib.embed_layer_normalization,
    "FusedConv": linear.fused_conv,
    "FusedGemm": linear.gemm,
    **dict.fromkeys(("FusedMatMul", "TransposeMatMul"), linear.fused_matmul),
    "DynamicQuantizeLSTM": recurrent.dynamic_quantize_lstm,
    "DynamicQuantizeMatMul": quantized.dynamic_quantize_matmul,
    "MatMulIntegerToFloat": quantized.matmul_integer_to_float,
    "QGemm": quantized.q_gemm,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantized.linear_rounding),
    **dict.fromkeys(("QLinearAdd", "QLinearMul"), quantized.q_linear_binary),
    "QLinearWhere": quantized.q_linear_where,
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid"), quantized.q_linear_unary),
    "QLinearSoftmax": quantized.q_linear_softmax,
    **dict.fromkeys(("QLinearAveragePool", "QLinearGlobalAveragePool"), quantized.q_linear_pool),
    "QLinearConcat": quantized.q_linear_concat,
}

RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BROADCAST, elementwise.broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), elementwise.normalized),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantized.linear_rounding),
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    "Einsum": linear.einsum,
    "BatchNormalization": layers.batch_normalization,
    "InstanceNormalization": layers.instance_normalization,
    "GroupNormalization": layers.group_normalization,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layers.layer_normalization),
    **dict.fromkeys(("LRN", "LpNormalization", "MeanVarianceNormalization"), layers.over_channels),
    **dict.fromkeys(
        ["AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool"],
        layers.pool,
    ),
    **dict.fromkeys(("Resize", "Upsample"), layers.resize),
    "DepthToSpace": layers.depth_to_space,
    "SpaceToDepth": layers.space_to_depth,
    "Col2Im": layers.col2im,
    **dict.fromkeys(("GridSample", "MaxRoiPool", "RoiAlign"), layers.sampled),
    **dict.fromkeys(("Reshape", "Flatten"), reshaping.reshape),
    "Squeeze": reshaping.squeeze,
    "Unsqueeze": reshaping.unsqueeze,
    "Expand": reshaping.expand,
    "ConstantOfShape": reshaping.constant_of_shape,
    "Shape": reshaping.shape,
    "Size": reshaping.size,
    "Transpose": movement.transpose,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    **dict.fromkeys(("Scatter", "ScatterElements"), indexing.scatter_elements),
    "ScatterND": indexing.scatter_nd,
    "OneHot": indexing.one_hot,
    "Compress": indexing.compress,
    "ReverseSequence": indexing.reverse_sequence,
    **dict.fromkeys(("Det", "Trilu"), indexing.triangle),
    "CenterCropPad": indexing.center,
    "TensorScatter": indexing.tensor_scatter,
    "Tile": movement.tile,
    "Pad": movement.pad,
    **dict.fromkeys(
        [
            "ArgMax",
            "ArgMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceMax",
            "ReduceMean",
            "ReduceMin",
            "ReduceProd",
            "ReduceSum",
            "ReduceSumSquare",
        ],
        movement.reduce,
    ),
    **dict.fromkeys(("CumProd", "CumSum", "TopK"), indexing.along),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent.recurrent),
    "Attention": attention.attention,
    "RotaryEmbedding": attention.rotary,
    "CausalConvWithState": linear.causal_conv,
    "DeformConv": linear.deform_conv,
    "ConvInteger": quantized.conv_integer,
    "MatMulInteger": quantized.matmul_integer,
    "DynamicQuantizeLinear": quantized.measured,
    "QLinearConv": quantized.q_linear_conv,
    "QLinearMatMul": quantized.q_linear_matmul,
    "If": control.branches,
    "Loop": control.loop,
    "Scan": control.scan,
    "Constant": nothing,
    # onnxruntime writes it with ONNX's own domain.
    "SimplifiedLayerNormalization": layers.layer_normalization,
    **{f"{_ORT}.{name}": rule for name, rule in _CONTRIB.items()},
}

# Operators of ONNX without a rule, and why: whatever they touch stays as it is.
BARRIERS: dict[str, str] = {
    **dict.fromkeys(
        (
            "Bernoulli",
            "Multinomial",
            "RandomNormal",
            "RandomNormalLike",
            "RandomUniform",
            "RandomUniformLike",
        ),
        "it draws random numbers",
    ),
    **dict.fromkeys(
        (
            "BlackmanWindow",
            "EyeLike",
            "HammingWindow",
            "HannWindow",
            "MelWeightMatrix",
            "Range",
            "AffineGrid",
        ),
        "what it makes depends on positions",
    ),
    **dict.fromkeys(("DFT", "STFT"), "positions become frequencies"),
    **dict.fromkeys(
        ("NonMaxSuppression", "NonZero", "Unique", "MaxUnpool"),
        "positions become numbers, or numbers positions",
    ),
    **dict.fromkeys(
        (
            "ConcatFromSequence",
            "Optional",
            "OptionalGetElement",
            "OptionalHasElement",
            "SequenceAt",
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceErase",
            "SequenceInsert",
            "SequenceLength",
            "SequenceMap",
            "SplitToSequence",
        ),
        "what is in a sequence is not followed",
    ),
    **dict.fromkeys(
        ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "it is a loss of training"
    ),
    **dict.fromkeys(
        (
            "ImageDecoder",
            "RegexFullMatch",
            "StringConcat",
            "StringNormalizer",
            "StringSplit",
            "TfIdfVectorizer",
        ),
        "it works on texts or files",
    ),
    "LinearAttention": "what lies within a head is a state over time",
}
