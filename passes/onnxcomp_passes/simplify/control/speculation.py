"""Which nodes may run although nobody may need them: those that are cheap and cannot fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import UNKNOWN, attribute, input_at, integers, standard_op

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxcomp.analysis.shapes import ShapeMap

_ANY_SHAPE_NAMES = (
    "Identity Relu Sigmoid Tanh Neg Abs Exp Log Sqrt Reciprocal Erf Floor Ceil Round Sign Sin Cos Not "
    "Softplus Softsign HardSigmoid HardSwish Elu LeakyRelu Selu ThresholdedRelu IsNaN Shape Size "
    "Constant"
)
_ANY_SHAPE = frozenset(_ANY_SHAPE_NAMES.split())
_BROADCAST_NAMES = (
    "Add Sub Mul Div Pow Max Min Sum Mean And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual "
    "Where"
)
_BROADCAST = frozenset(_BROADCAST_NAMES.split())
# Undefined, or a trap, for some integers.
_FLOAT_ONLY = frozenset({"Div", "Pow", "Reciprocal"})


def cannot_fail(node: ir.Node, shapes: ShapeMap) -> bool:
    """Whether a node works on whatever it gets, as far as that is known, and costs little."""
    name = standard_op(node) or ""
    if name in _FLOAT_ONLY:
        dtypes = [shapes.dtype(value) for value in node.inputs]
        if any(dtype is None or not dtype.is_floating_point() for dtype in dtypes):
            return False
    if name in _ANY_SHAPE:
        return True
    if name in _BROADCAST:
        return _broadcasts(node, shapes)
    check = _CHECKS.get(name)
    return check is not None and check(node, shapes)


def _broadcasts(node: ir.Node, shapes: ShapeMap) -> bool:
    """Whether operands are known to fit: their sizes are equal numbers or expressions, or 1."""
    found = [shapes.shape(value) for value in node.inputs]
    large = [shape for shape in found if shape is None or any(dim != 1 for dim in shape)]
    if len(large) <= 1:
        return True
    known = [shape for shape in large if shape is not None]
    if len(known) < len(large):
        return False
    for axis in range(1, max(len(shape) for shape in known) + 1):
        dims = {shape[-axis] for shape in known if len(shape) >= axis} - {1}
        if None in dims or len(dims) > 1:
            return False
    return True


def _cast(node: ir.Node, shapes: ShapeMap) -> bool:
    source, to = shapes.dtype(input_at(node, 0)), attribute(node, "to")
    if source is None or not isinstance(to, int):
        return False
    return ir.DataType.STRING not in {source, ir.DataType(to)}


def _transpose(node: ir.Node, shapes: ShapeMap) -> bool:
    order = attribute(node, "perm")
    if order is None or order is UNKNOWN:
        return order is None
    return shapes.rank(input_at(node, 0)) == len(order)


def _axes(node: ir.Node) -> list[int] | None:
    found = attribute(node, "axes")
    if found is UNKNOWN:
        return None
    return list(found) if found is not None else integers(input_at(node, 1))


def _unsqueeze(node: ir.Node, shapes: ShapeMap) -> bool:
    axes, rank = _axes(node), shapes.rank(input_at(node, 0))
    if axes is None or rank is None:
        return False
    rank += len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    return len(places) == len(axes)


def _squeeze(node: ir.Node, shapes: ShapeMap) -> bool:
    axes, shape = _axes(node), shapes.shape(input_at(node, 0))
    if axes is None or shape is None:
        return False
    rank = len(shape)
    places = {axis % rank for axis in axes if rank and -rank <= axis < rank}
    return len(places) == len(axes) and all(shape[axis] == 1 for axis in places)


def _gather(node: ir.Node, shapes: ShapeMap) -> bool:
    """One or a few constant places of a vector whose length is known: a size out of a shape."""
    shape, places = shapes.static(input_at(node, 0)), integers(input_at(node, 1))
    if shape is None or places is None or len(shape) != 1:
        return False
    return all(-shape[0] <= place < shape[0] for place in places)


def _concat(node: ir.Node, shapes: ShapeMap) -> bool:
    """Vectors, as shapes are made of."""
    return all(shapes.rank(value) == 1 for value in node.inputs)


_CHECKS: Mapping[str, Callable[[ir.Node, ShapeMap], bool]] = {
    "Cast": _cast,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Concat": _concat,
}
