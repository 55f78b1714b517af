"""Which rule belongs to which operator. An operator without one keeps all that it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnxcomp.analysis.channels import (
    attention,
    control,
    elementwise,
    indexing,
    layers,
    linear,
    movement,
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


RULES: dict[str, Rule] = {
    **dict.fromkeys(elementwise.UNARY, elementwise.unary),
    **dict.fromkeys(elementwise.BROADCAST, elementwise.broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), elementwise.normalized),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), elementwise.quantized),
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
    "If": control.branches,
    "Loop": control.loop,
    "Scan": control.scan,
    "Constant": nothing,
}
