"""Brings a model to the opset that per-channel DequantizeLinear needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxcomp.ir.ops import attribute, standard_op
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, Model, ir

# Changed between opset 7 and 13 in ways that no valid older node can notice: more types, more
# attributes with the old behaviour as default, negative axes, optional inputs.
_COMPATIBLE = frozenset(
    [
        "Abs",
        "Acos",
        "Add",
        "And",
        "ArgMax",
        "ArgMin",
        "Asin",
        "Atan",
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "Ceil",
        "Clip",
        "Compress",
        "Concat",
        "Constant",
        "ConstantOfShape",
        "Conv",
        "ConvTranspose",
        "CumSum",
        "DepthToSpace",
        "DequantizeLinear",
        "Det",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Expand",
        "EyeLike",
        "Flatten",
        "Floor",
        "Gather",
        "GatherElements",
        "GatherND",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "HardSigmoid",
        "Identity",
        "If",
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LRN",
        "LSTM",
        "GRU",
        "RNN",
        "LeakyRelu",
        "Less",
        "LessOrEqual",
        "Log",
        "Loop",
        "MatMul",
        "Max",
        "MaxPool",
        "Mean",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "NonMaxSuppression",
        "NonZero",
        "Not",
        "OneHot",
        "Or",
        "PRelu",
        "Pad",
        "Pow",
        "QuantizeLinear",
        "Range",
        "Reciprocal",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSum",
        "ReduceLogSumExp",
        "ReduceMax",
        "ReduceMean",
        "ReduceMin",
        "ReduceProd",
        "ReduceSumSquare",
        "Relu",
        "Reshape",
        "Resize",
        "Round",
        "Scan",
        "ScatterElements",
        "ScatterND",
        "Selu",
        "Shape",
        "Sigmoid",
        "Sign",
        "Sin",
        "Size",
        "Slice",
        "Softplus",
        "Softsign",
        "SpaceToDepth",
        "Sqrt",
        "Sub",
        "Sum",
        "Tan",
        "Tanh",
        "Tile",
        "TopK",
        "Transpose",
        "Unique",
        "Where",
        "Xor",
    ]
)
# Within _COMPATIBLE: older forms of these carry attributes that became inputs, or mean something else.
_CHANGED_AT = {
    "Clip": 11,
    "Pad": 11,
    "Slice": 10,
    "TopK": 10,
    "Resize": 11,
    "Dropout": 12,
    "Scan": 9,
    "Cast": 9,
    "PRelu": 9,
    "BatchNormalization": 9,
    "Hardmax": 13,
    "Upsample": 10,
    "Scatter": 11,
}
_AXES_INPUT = frozenset({"ReduceSum", "Squeeze", "Unsqueeze"})
_LAST_AXIS = frozenset({"LogSoftmax", "Softmax"})
VERSION = 13
_OLDEST = 7


def obstacle(model: Model, ranks: Mapping[str, int]) -> str:
    """Returns why a model cannot be brought to opset 13 without a change of meaning, empty when it can.

    Args:
        model: The model.
        ranks: Number of dimensions of the values in question, from `find_ranks`.
    """
    if model.opset >= VERSION:
        return ""
    if model.opset < _OLDEST:
        return f"opset {model.opset} is older than {_OLDEST}"
    if model.core.functions:
        return "it has local functions"
    for node in model.nodes():
        if reason := _obstacle(node, model.opset, ranks):
            return reason
    return ""


def find_ranks(model: Model, shapes: ShapeMap, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Returns the number of dimensions of what Softmax makes: inferred, or seen in a run."""
    if model.opset >= VERSION:
        return {}
    values = [n.outputs[0] for n in model.nodes() if standard_op(n) in _LAST_AXIS]
    found = {v.name or "": rank for v in values if (rank := shapes.rank(v)) is not None}
    unknown = [v for v in values if v.name and v.name not in found and v.graph is model.graph]
    if unknown:
        taps = [v.name or "" for v in unknown if not v.is_graph_output()]
        with Session.open(model, outputs=taps, optimization="disable") as session:
            outputs = session.run(feeds)
        found.update({v.name or "": np.ndim(outputs[v.name]) for v in unknown if v.name})
    return found


def raise_to_13(model: Model, edit: Edit) -> None:
    """Rewrites the nodes of a model for which `obstacle` found none."""
    if model.opset >= VERSION:
        return
    for node in list(model.nodes()):
        if rewrite := _REWRITES.get(standard_op(node) or ""):
            rewrite(node, edit, model.opset)
    edit.raise_opset(VERSION)


def _obstacle(node: ir.Node, version: int, ranks: Mapping[str, int]) -> str:
    name = standard_op(node)
    if name is None or not _is_changed(name, version):
        return ""
    if name in _LAST_AXIS:
        return "" if _is_last_axis(node, ranks) else f"{name} over more than its last axis"
    if name in _REWRITES:
        return ""
    if name not in _COMPATIBLE or version < _CHANGED_AT.get(name, 0):
        return f"{name} changed between opset {version} and {VERSION}"
    return ""


def _is_changed(name: str, version: int) -> bool:
    try:
        old = onnx.defs.get_schema(name, version)
        new = onnx.defs.get_schema(name, VERSION)
    except onnx.defs.SchemaError:
        return True
    return bool(new.deprecated or old.since_version != new.since_version)


def _is_last_axis(node: ir.Node, ranks: Mapping[str, int]) -> bool:
    """Whether the old Softmax, which flattens from `axis` on, is the new one over the last axis."""
    axis, rank = attribute(node, "axis", 1), ranks.get(node.outputs[0].name or "")
    return axis == -1 or (rank is not None and axis == rank - 1)


def _axes_to_input(node: ir.Node, edit: Edit, version: int) -> None:
    del version
    axes = attribute(node, "axes", None)
    if axes is None or node.graph is None:
        return
    name = f"{node.outputs[0].name}_axes"
    made = edit.initializer(np.asarray(axes, np.int64), name=name, graph=node.graph)
    edit.set_input(node, 1, made)
    edit.set_attribute(node, "axes", None)


def _split_to_input(node: ir.Node, edit: Edit, version: int) -> None:
    del version
    sizes = attribute(node, "split", None)
    if sizes is None or node.graph is None:
        return
    name = f"{node.outputs[0].name}_split"
    made = edit.initializer(np.asarray(sizes, np.int64), name=name, graph=node.graph)
    edit.set_input(node, 1, made)
    edit.set_attribute(node, "split", None)


def _softmax(node: ir.Node, edit: Edit, version: int) -> None:
    del version
    edit.set_attribute(node, "axis", -1)


def _dropout(node: ir.Node, edit: Edit, version: int) -> None:
    """Up to opset 11 Dropout was the identity; now that needs no ratio."""
    del version
    edit.set_attribute(node, "ratio", None)


def _clip(node: ir.Node, edit: Edit, version: int) -> None:
    if version >= _CHANGED_AT["Clip"] or node.graph is None:
        return
    for index, bound in ((1, "min"), (2, "max")):
        number = attribute(node, bound, None)
        if number is not None:
            name = f"{node.outputs[0].name}_{bound}"
            made = edit.initializer(np.asarray(number, np.float32), name=name, graph=node.graph)
            edit.set_input(node, index, made)
            edit.set_attribute(node, bound, None)


_REWRITES: dict[str, Callable[[ir.Node, Edit, int], None]] = {
    **dict.fromkeys(_AXES_INPUT, _axes_to_input),
    **dict.fromkeys(_LAST_AXIS, _softmax),
    "Split": _split_to_input,
    "Dropout": _dropout,
    "Clip": _clip,
}
