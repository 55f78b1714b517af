"""Which rule belongs to which operator. An operator without one keeps all that it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from onnxcomp.analysis.channels import (
    attention,
    control,
    elementwise,
    layers,
    linear,
    movement,
    recurrent,
)
from onnxcomp.ir.ops import standard_op

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.channels.site import Site

    Rule: TypeAlias = Callable[["Site"], None]


def nothing(site: Site) -> None:
    """Constant: a table that others read."""
    del site


def rule_of(site: Site) -> Rule | None:
    """Returns the rule of a node's operator, None when there is none."""
    return RULES.get(standard_op(site.node) or "")


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
    **dict.fromkeys(("Reshape", "Flatten"), movement.reshape),
    "Squeeze": movement.squeeze,
    "Unsqueeze": movement.unsqueeze,
    "Transpose": movement.transpose,
    "Concat": movement.concat,
    "Split": movement.split,
    "Slice": movement.slice_,
    "Gather": movement.gather,
    "Expand": movement.expand,
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
    **dict.fromkeys(("CumSum", "TopK"), movement.along),
    **dict.fromkeys(("Shape", "Size"), movement.shape),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent.recurrent),
    "Attention": attention.attention,
    "If": control.branches,
    "Loop": control.loop,
    "Scan": control.scan,
    "Constant": nothing,
}
