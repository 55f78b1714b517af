"""Taking formulas apart: operands of commutative operators, numbers, chains that nobody else reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import array, is_op
from onnxcomp.ir.ops import single_use as only_reader

if TYPE_CHECKING:
    from onnxcomp.ir import ir

# A constant of a formula, stored in single precision, is off by a rounding or two.
_CLOSE = 3e-7


def number(value: ir.Value | None) -> float | None:
    """Returns a constant of one element that widens nothing, None for everything else."""
    found = array(value, limit=1)
    if found is None or found.size != 1 or found.ndim > 1 or found.dtype.kind != "f":
        return None
    return float(found.reshape(()))


def is_number(value: ir.Value | None, wanted: float) -> bool:
    """Whether a value is a constant as near to a number as single precision gets."""
    found = number(value)
    return found is not None and bool(np.isclose(found, wanted, rtol=_CLOSE, atol=0))


def with_number(
    node: ir.Node | None, operator: str, wanted: float | None = None
) -> ir.Value | None:
    """Returns the operand x of `x op c` or `c op x` for a commutative operator and a number c."""
    if node is None or not is_op(node, operator):
        return None
    for index in (0, 1):
        constant = node.inputs[1 - index]
        fits = number(constant) is not None if wanted is None else is_number(constant, wanted)
        if fits:
            return node.inputs[index]
    return None


def over_number(node: ir.Node | None, wanted: float) -> ir.Value | None:
    """Returns x of `x / c` or `x * (1 / c)`."""
    if is_op(node, "Div") and node is not None:
        return node.inputs[0] if is_number(node.inputs[1], wanted) else None
    return with_number(node, "Mul", 1 / wanted)


def inner(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Returns the maker of a value that only one node reads, if it is one of the operators."""
    if value is None or only_reader(value) is None:
        return None
    maker = value.producer()
    return maker if is_op(maker, *operators) else None


def operands(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Returns the two operands in both orders."""
    first, second = node.inputs[0], node.inputs[1]
    return [(first, second), (second, first)]
