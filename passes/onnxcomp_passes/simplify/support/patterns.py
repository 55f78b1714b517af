"""Formulas that runtimes recognise and run as one; taking a node out of them costs more than it saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import constant, is_op, producer_of

if TYPE_CHECKING:
    from onnxcomp.ir import ir


def completes_a_formula(node: ir.Node) -> bool:
    """Whether arithmetic with a constant is the end of a GELU or of a layer normalization.

    `0.5 * (x * (1 + erf(x / sqrt(2))))`, likewise with tanh; `(x - mean) / sqrt(var) * scale + bias`.
    """
    source = _varying(node)
    if source is None:
        return False
    if is_op(source, "Mul") and constant(_other(source)) is not None:
        return _is_normalized(_varying(source))
    return _is_gated(source) or _is_normalized(source)


def _varying(node: ir.Node) -> ir.Node | None:
    """The maker of the operand that is not constant."""
    makers = [value.producer() for value in node.inputs if value is not None]
    return next(
        (maker for maker in makers if maker is not None and not is_op(maker, "Constant")), None
    )


def _other(node: ir.Node) -> ir.Value | None:
    return next((value for value in node.inputs if constant(value) is not None), None)


def _is_gated(node: ir.Node) -> bool:
    """Whether a node is `x * (1 + erf(…))` or `x * (1 + tanh(…))`."""
    sums = [producer_of(value, "Add") for value in node.inputs] if is_op(node, "Mul") else []
    return any(
        producer_of(value, "Erf", "Tanh") is not None
        for found in sums
        if found is not None
        for value in found.inputs
    )


def _is_normalized(node: ir.Node | None) -> bool:
    """Whether a node is `(x - mean) / sqrt(variance)`."""
    if node is None or not is_op(node, "Div", "Mul"):
        return False
    return any(producer_of(value, "Sqrt", "Reciprocal", "Pow") is not None for value in node.inputs)
