"""Arithmetic with a constant that changes no bit: x * 1, x / 1, x - 0, x + (-0), x and true.

`x + 0.0` is not among them for floating point: it turns -0.0 into 0.0, which a later division can
tell apart. `x - 0.0` and `x + -0.0` keep the sign of zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array
from onnxcomp_passes.simplify.support.base import shapes_of
from onnxcomp_passes.simplify.support.dims import same_shape

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts

# Larger constants are weights, and reading them costs more than the node.
LARGEST = 1 << 16

# The neutral element, with the sign that floating point needs.
_NEUTRAL: dict[str, float] = {
    "Add": -0.0,
    "Sub": 0.0,
    "Mul": 1.0,
    "Div": 1.0,
    "Pow": 1.0,
    "And": 1.0,
    "Or": 0.0,
    "Xor": 0.0,
}
_EXACT_POWERS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.INT32}
)
_COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor"})


def neutral(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Returns the operand that the result of a binary operator equals bit for bit, or None."""
    left, right = node.inputs
    # onnxruntime raises wide integers in double precision, which changes large ones.
    if node.op_type == "Pow" and shapes_of(facts).dtype(left) not in _EXACT_POWERS:
        return None
    if _is_neutral(right, node.op_type):
        source = left
    elif node.op_type in _COMMUTATIVE and _is_neutral(left, node.op_type):
        source = right
    else:
        return None
    return (
        source
        if same_shape(shapes_of(facts), source, node.outputs[0])
        else _narrow(node, facts, source)
    )


def _narrow(node: ir.Node, facts: Facts, source: ir.Value | None) -> ir.Value | None:
    """A constant of ones in its shape cannot widen an operand of at least its rank."""
    other = node.inputs[1] if source is node.inputs[0] else node.inputs[0]
    shapes = shapes_of(facts)
    shape, rank = shapes.shape(other), shapes.rank(source)
    if shape is None or rank is None or len(shape) > rank:
        return None
    return source if set(shape) <= {1} else None


def _is_neutral(value: ir.Value | None, operator: str) -> bool:
    found = array(value, limit=LARGEST)
    if found is None or not found.size or found.dtype.kind not in "fiub":
        return False
    return _all_equal(found, _NEUTRAL[operator])


def _all_equal(found: np.ndarray[Any, Any], number: float) -> bool:
    if not bool((found == number).all()):
        return False
    if number or found.dtype.kind in "iub":
        return True
    return bool((np.signbit(found) == np.signbit(number)).all())


def adds_positive_zero(node: ir.Node) -> bool:
    """Whether a node is `x + 0.0` in floating point, which changes nothing but the sign of zero."""
    for value in node.inputs:
        found = array(value, limit=LARGEST)
        if found is not None and found.size and found.dtype.kind == "f" and found.flat[0] == 0:
            return not found.any()
    return False


NEUTRAL_OPS = frozenset(_NEUTRAL)
