"""What each operator becomes when its tensors take another order of dimensions."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import (
    array,
    attribute,
    constant,
    has_reference_attribute,
    input_at,
    integers,
    is_training,
    standard_op,
)
from onnxcomp_passes.simplify.support.base import is_used
from onnxcomp_passes.simplify.support.dims import is_left_out, list_of
from onnxcomp_passes.simplify.transposing.orders import (
    Move,
    Place,
    add_operand,
    axes_in,
    extended,
    identity,
    restricted,
    set_output,
)
from onnxcomp_passes.simplify.transposing.reshapes import flatten, reshape, shape_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

    Plan = Callable[[ir.Node, Place, ShapeMap], Move | None]

UNARY = (
    *("Relu", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sigmoid", "HardSigmoid"),
    *(
        "HardSwish",
        "Swish",
        "Mish",
        "Gelu",
        "Softplus",
        "Softsign",
        "Tanh",
        "Erf",
        "Exp",
        "Log",
        "Sqrt",
    ),
    *("Reciprocal", "Neg", "Abs", "Sign", "Floor", "Ceil", "Round", "Sin", "Cos", "Tan", "Asin"),
    *("Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Not", "BitwiseNot", "IsNaN"),
    *("IsInf", "Shrink", "Clip", "Cast", "CastLike", "Dropout", "Identity"),
)
BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Equal", "Less", "Greater"),
    *("LessOrEqual", "GreaterOrEqual", "Max", "Min", "Sum", "Mean", "PRelu", "Where"),
    *("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift"),
)
REDUCTIONS = (
    *("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2"),
    *("ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare"),
)
_EXACT_TRAILING = frozenset({"linear", "cubic"})


def plan(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """Returns what a node becomes when one of its tensors takes another order.

    Returns:
        None when the operator is not known, or cannot compute in that order.
    """
    found = PLANS.get(standard_op(node) or "")
    if found is None or has_reference_attribute(node):
        return None
    move = found(node, place, shapes)
    if move is None:
        return None
    # What is asked for must come out, or the neighbour would wait for it in vain.
    side = move.inputs if place.is_input else move.outputs
    return move if side.get(place.index) == place.order else None


def _unary(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    del shapes
    if place.index or is_training(node) or any(is_used(mask) for mask in node.outputs[1:]):
        return None
    return Move({0: place.order}, {0: place.order})


def _broadcasting(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    order, rank = place.order, shapes.rank(node.outputs[0])
    if rank != len(order):
        return None
    move = Move(outputs={0: order})
    for index, value in enumerate(node.inputs):
        if not add_operand(move, index, value, order, shapes):
            return None
    return move


def _axis_of(node: ir.Node, default: int | None, rank: int) -> int | None:
    axis = attribute(node, "axis", default)
    return axis % rank if isinstance(axis, int) and -rank <= axis < rank else None


def _concat(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    order = place.order
    axis = _axis_of(node, None, len(order))
    if axis is None:
        return None
    move = Move(outputs={0: order}, attributes={"axis": axes_in(order, [axis])[0]})
    for index, value in enumerate(node.inputs):
        # Parts of a Concat have its rank, whatever is known of their shapes.
        if constant(value) is None:
            move.inputs[index] = order
        elif not add_operand(move, index, value, order, shapes):
            return None
    return move


def _along(default: int, node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """Split and TopK: one tensor comes in, all that come out have its order."""
    del shapes
    order = place.order
    axis = _axis_of(node, default, len(order))
    if axis is None or (place.is_input and place.index):
        return None
    outputs = dict.fromkeys(range(len(node.outputs)), order)
    return Move({0: order}, outputs, attributes={"axis": axes_in(order, [axis])[0]})


def _softmax(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """Only along the last dimension, where every opset means the same.

    It must stay the last one: elsewhere onnxruntime turns the tensor itself, and turns it back.
    """
    del shapes
    order, last = place.order, len(place.order) - 1
    if _axis_of(node, None, last + 1) != last or order[last] != last:
        return None
    return Move({0: order}, {0: order}, attributes={"axis": last})


def _reduction(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    rank = shapes.rank(node.inputs[0])
    axes, keeps = list_of(node, "axes", 1), attribute(node, "keepdims", 1)
    if rank is None or keeps not in (0, 1):
        return None
    if is_left_out(node, "axes", 1) or axes == []:
        if attribute(node, "noop_with_empty_axes", 0) != 0:
            return None
        axes = []
    if axes is None:
        return None
    move = _reduced(place, [axis % rank for axis in axes] or list(range(rank)), rank, bool(keeps))
    if move is not None and axes:
        _set_axes(move, node, "axes", 1, axes_in(move.inputs[0], [axis % rank for axis in axes]))
    return move


def _arg(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    rank, keeps = shapes.rank(node.inputs[0]), attribute(node, "keepdims", 1)
    axis = None if rank is None else _axis_of(node, 0, rank)
    if rank is None or axis is None or keeps not in (0, 1):
        return None
    move = _reduced(place, [axis], rank, bool(keeps))
    if move is not None:
        move.attributes["axis"] = axes_in(move.inputs[0], [axis])[0]
    return move


def _reduced(place: Place, axes: Sequence[int], rank: int, keeps: bool) -> Move | None:
    """A node whose first input loses some dimensions, or keeps them as ones."""
    if place.is_input and place.index:
        return None
    order = place.order if place.is_input or keeps else extended(place.order, set(axes))
    if len(order) != rank:
        return None
    move = Move({0: order})
    set_output(move, 0, order if keeps else restricted(order, set(axes)))
    return move


def _set_axes(move: Move, node: ir.Node, name: str, index: int, axes: list[int]) -> None:
    """Writes integers where the node keeps them: in an attribute, or in an input."""
    if name in node.attributes:
        move.attributes[name] = axes
    else:
        move.constants[index] = partial(np.array, axes, np.int64)


def _squeeze(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    axes, rank = list_of(node, "axes", 1), shapes.rank(node.inputs[0])
    if not axes or rank is None:
        return None
    axes = [axis % rank for axis in axes]
    move = _reduced(place, axes, rank, keeps=False)
    if move is not None:
        _set_axes(move, node, "axes", 1, axes_in(move.inputs[0], axes))
    return move


def _unsqueeze(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    axes, rank = list_of(node, "axes", 1), shapes.rank(node.inputs[0])
    if not axes or rank is None or (place.is_input and place.index):
        return None
    axes = [axis % (rank + len(axes)) for axis in axes]
    order = extended(place.order, set(axes)) if place.is_input else place.order
    if len(order) != rank + len(axes):
        return None
    move = Move(outputs={0: order})
    own = restricted(order, set(axes))
    if own != identity(rank):
        move.inputs[0] = own
    _set_axes(move, node, "axes", 1, sorted(axes_in(order, axes)))
    return move


def _slice(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    order, rank = place.order, len(place.order)
    axes = list_of(node, "axes", 3)
    if is_left_out(node, "axes", 3):
        starts, shape = list_of(node, "starts", 1), shapes.static(input_at(node, 1))
        count = len(starts) if starts is not None else shape[0] if shape else None
        axes = None if count is None else list(range(count))
    if axes is None or (place.is_input and place.index):
        return None
    move = Move({0: order}, {0: order})
    moved = axes_in(order, [axis % rank for axis in axes])
    if "starts" in node.attributes:
        move.attributes["axes"] = moved
    else:
        kind = shapes.dtype(input_at(node, 1))
        if kind is None:
            return None
        move.constants[3] = partial(np.array, moved, kind.numpy())
    return move


def _pad(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    del shapes
    order, rank = place.order, len(place.order)
    if place.is_input and place.index:
        return None
    move = Move({0: order}, {0: order})
    axes = input_at(node, 3)
    if axes is not None:
        found = array(axes, limit=1024)
        if found is None:
            return None
        moved = axes_in(order, [int(axis) % rank for axis in found.reshape(-1)])
        move.constants[3] = partial(np.array, moved, found.dtype)
        return move
    pads = list_of(node, "pads", 1)
    if pads is None or len(pads) != 2 * rank:
        return None
    spread = [pads[axis] for axis in order] + [pads[rank + axis] for axis in order]
    _set_axes(move, node, "pads", 1, spread)
    return move


def _quantization(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    order, scale = place.order, shapes.static(input_at(node, 1))
    if scale is None or attribute(node, "block_size", 0) != 0 or (place.is_input and place.index):
        return None
    move = Move({0: order}, {0: order})
    if scale not in ((), (1,)):
        axis = _axis_of(node, 1, len(order))
        if axis is None or len(scale) != 1:
            return None
        move.attributes["axis"] = axes_in(order, [axis])[0]
    return move


def _resize(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """Resize of opset 11 on; onnxruntime interpolates over trailing dimensions only."""
    order, rank = place.order, len(place.order)
    inputs = [input_at(node, index) for index in range(4)]
    roi, scales, sizes = inputs[1:]
    if (place.is_input and place.index) or len(node.inputs) < 3 or "axes" in node.attributes:
        return None
    if roi is not None and shapes.size(roi) != 0:
        return None
    index, value = (3, sizes) if sizes is not None else (2, scales)
    found = array(value, limit=64)
    if found is None or found.shape != (rank,):
        return None
    if attribute(node, "mode", "nearest") in _EXACT_TRAILING:
        resized = _resized(found, index, shapes.shape(node.inputs[0]))
        if resized is None or min(axes_in(order, resized), default=rank) < rank - len(resized):
            return None
    move = Move({0: order}, {0: order})
    move.constants[index] = lambda: np.ascontiguousarray(found[list(order)])
    return move


def _resized(
    found: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    index: int,
    shape: Sequence[int | str | None] | None,
) -> list[int] | None:
    """Dimensions that a Resize changes."""
    if index == 2:
        return [axis for axis, factor in enumerate(found.tolist()) if factor != 1]
    if shape is None:
        return None
    return [axis for axis, size in enumerate(found.tolist()) if size != shape[axis]]


def _vector(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """Tile and Expand: a number for each dimension, given as a constant."""
    order, rank = place.order, len(place.order)
    found = integers(input_at(node, 1))
    if found is None or len(found) > rank or (place.is_input and place.index):
        return None
    if node.op_type == "Tile" and len(found) != rank:
        return None
    full = [1] * (rank - len(found)) + found
    move = Move(outputs={0: order})
    if shapes.rank(node.outputs[0]) != rank:
        return None
    if not add_operand(move, 0, node.inputs[0], order, shapes):
        return None
    move.constants[1] = partial(np.array, [full[axis] for axis in order], np.int64)
    return move


def _normalization(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    del shapes
    order, rank = place.order, len(place.order)
    axis = _axis_of(node, -1, rank)
    if axis is None or (place.is_input and place.index):
        return None
    if order[axis:] != identity(rank)[axis:] or any(is_used(value) for value in node.outputs[1:]):
        return None
    return Move({0: order}, {0: order})


def _gather(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    rank, kind = shapes.rank(node.inputs[0]), shapes.rank(input_at(node, 1))
    axis = None if rank is None else _axis_of(node, 0, rank)
    if rank is None or axis is None or kind not in (0, 1):
        return None
    move = _reduced(place, [axis], rank, keeps=kind == 1)
    if move is not None:
        move.attributes["axis"] = axes_in(move.inputs[0], [axis])[0]
    return move


def _cumsum(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    del shapes
    order, rank, found = place.order, len(place.order), array(input_at(node, 1), limit=1)
    if found is None or found.size != 1 or (place.is_input and place.index):
        return None
    moved = axes_in(order, [int(found.reshape(())) % rank])[0]
    return Move({0: order}, {0: order}, {1: partial(np.full, found.shape, moved, found.dtype)})


PLANS: dict[str, Plan] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BROADCASTING, _broadcasting),
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantization),
    **dict.fromkeys(("Tile", "Expand"), _vector),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalization),
    "Concat": _concat,
    "Split": partial(_along, 0),
    "TopK": partial(_along, -1),
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Pad": _pad,
    "Resize": _resize,
    "Gather": _gather,
    "CumSum": _cumsum,
    "Reshape": reshape,
    "Flatten": flatten,
    "Shape": shape_of,
}
