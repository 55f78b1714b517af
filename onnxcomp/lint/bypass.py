"""Taking a Q and DQ pair out without losing what it does besides rounding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, standard_op
from onnxcomp.lint.grid import grid_of
from onnxcomp.quant.provider_graph import MOVING

if TYPE_CHECKING:
    from onnxcomp.ir import Edit, ir

_MARK = "onnxcomp.clip-of"
_CLIP_WITH_INPUTS = 11
_DEPTH = 8
# Results of these are never negative.
_NOT_NEGATIVE = frozenset(
    {
        "Abs",
        "Exp",
        "HardSigmoid",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Sqrt",
    }
)
_AVERAGES = frozenset(
    {"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMax", "ReduceMean"}
)


def bypass(opset: int, dequantizer: ir.Node, edit: Edit) -> None:
    """Lets all readers of a DQ read the float value in front of its Q."""
    quantizer = quantizer_of(dequantizer)
    if quantizer is None or dequantizer.outputs[0].is_graph_output():
        return
    value = in_float(quantizer, opset, edit)
    if value is not None:
        edit.replace(dequantizer.outputs[0], value)


def quantizer_of(dequantizer: ir.Node) -> ir.Node | None:
    """Returns the Q that makes what a DQ reads."""
    value = dequantizer.inputs[0] if dequantizer.op_type == "DequantizeLinear" else None
    maker = None if value is None else value.producer()
    return maker if maker is not None and maker.op_type == "QuantizeLinear" else None


def in_float(quantizer: ir.Node, opset: int, edit: Edit) -> ir.Value | None:
    """Returns what a Q reads, cut off where the Q would have cut it off on purpose.

    Quantizers take a Relu or Clip in front of a Q away when its range does the same. A Q that starts at 0
    may be all that is left of one, unless what it reads is never negative.
    """
    source, grid, graph = quantizer.inputs[0], grid_of(quantizer), quantizer.graph
    if source is None or graph is None:
        return None
    if grid is None or not grid.single or grid.middle != grid.limits[0] or is_not_negative(source):
        return source
    for use in source.uses():
        if use.node.metadata_props.get(_MARK) == quantizer.outputs[0].name:
            return use.node.outputs[0]
    ends = [np.asarray(end, grid.scale.dtype) for end in (0.0, grid.range[1])]
    name = f"{source.name}_clipped"
    if opset >= _CLIP_WITH_INPUTS:
        limits = [edit.initializer(end, name=f"{name}_limit", graph=graph) for end in ends]
        node = edit.insert("Clip", [source, *limits], before=quantizer, outputs=[name], like=source)
    else:
        attributes = {"min": float(ends[0]), "max": float(ends[1])}
        node = edit.insert(
            "Clip", [source], before=quantizer, outputs=[name], attributes=attributes, like=source
        )
    node.metadata_props[_MARK] = quantizer.outputs[0].name or ""
    return node.outputs[0]


def is_not_negative(value: ir.Value, depth: int = _DEPTH) -> bool:
    """Whether an activation is known to be 0 or more everywhere."""
    node = value.producer()
    if node is None or depth == 0:
        return False
    kind = standard_op(node)
    if kind in _NOT_NEGATIVE:
        return True
    if kind == "Clip":
        limits = clip_limits(node)
        return limits is not None and limits[0] >= 0
    if kind == "DequantizeLinear":
        grid = grid_of(node)
        return grid is not None and grid.single and grid.middle == grid.limits[0]
    if kind == "Resize" and attribute(node, "mode", "nearest") == "cubic":
        return False  # it swings over the ends
    if kind in MOVING or kind in _AVERAGES:
        first = input_at(node, 0)
        return first is not None and is_not_negative(first, depth - 1)
    if kind in {"Add", "Mul", "Concat"}:
        return all(
            v is not None and constant(v) is None and is_not_negative(v, depth - 1)
            for v in node.inputs
        )
    return False


def clip_limits(node: ir.Node) -> tuple[float, float] | None:
    """Returns the limits of a Clip, None where they are not constant."""
    found = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), 1):
        value = input_at(node, index)
        if value is None:
            found.append(float(attribute(node, name, default)))
            continue
        number = array(value, limit=1)
        if number is None or number.size != 1:
            return None
        found.append(float(number.reshape(-1)[0]))
    return found[0], found[1]
