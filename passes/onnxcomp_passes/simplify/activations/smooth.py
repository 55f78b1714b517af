"""Sigmoid, Softsign, Mish and Selu, written apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, has_reference_attribute, is_op
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import OpsetFloor
from onnxcomp_passes.simplify.support.formulas import (
    build,
    inner,
    is_number,
    is_single,
    operands,
    split_number,
)

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

MISH = 18  # the opset that brought it
SELU_SLOPE, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _is_one(value: ir.Value | None) -> bool:
    return is_number(value, 1.0) and is_single(value)


def _plus_one(value: ir.Value | None) -> ir.Value | None:
    """Returns z of `z + 1`."""
    found = split_number(inner(value, "Add"), "Add")
    return found[0] if found is not None and found[1] == 1.0 else None


class BuildSigmoid:
    """`1 / (1 + exp(-x))` is Sigmoid."""

    name = "sigmoids put together"
    ops = frozenset({"Div", "Reciprocal"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        del facts
        if node.op_type == "Div" and not _is_one(node.inputs[0]):
            return NOTHING
        power = inner(_plus_one(node.inputs[-1]), "Exp")
        negated = inner(power.inputs[0], "Neg", "Mul") if power is not None else None
        if negated is None:
            return NOTHING
        source = negated.inputs[0]
        if negated.op_type == "Mul":
            product = split_number(negated, "Mul")
            source = product[0] if product is not None and product[1] == -1.0 else None
        return NOTHING if source is None else Match(node, source)

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "Sigmoid", match.found)


class BuildSoftsign:
    """`x / (1 + |x|)` is Softsign."""

    name = "softsigns put together"
    ops = frozenset({"Div"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        del facts
        source = node.inputs[0]
        size = inner(_plus_one(node.inputs[1]), "Abs")
        if source is None or size is None or size.inputs[0] is not source:
            return NOTHING
        return Match(node, source)

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "Softsign", match.found)


class BuildSelu:
    """Elu with the constants of Selu, times the other constant, is Selu."""

    name = "selus put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        del facts
        found = split_number(node, "Mul")
        elu = None if found is None else inner(found[0], "Elu")
        if found is None or elu is None or has_reference_attribute(elu) or elu.inputs[0] is None:
            return NOTHING
        slope = attribute(elu, "alpha", 1.0)
        if abs(found[1] - SELU_SCALE) > 3e-7 or abs(slope - SELU_SLOPE) > 3e-7:
            return NOTHING
        return Match(node, elu.inputs[0])

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "Selu", match.found)


class BuildMish:
    """`x * tanh(softplus(x))` is Mish."""

    name = "mishes put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        for source, gate in operands(node):
            tanh = inner(gate, "Tanh")
            softplus = inner(tanh.inputs[0], "Softplus") if tanh is not None else None
            if softplus is None or source is None or softplus.inputs[0] is not source:
                continue
            return Match(node, source) if facts.get(OpsetFloor()) >= MISH else NOTHING
        return NOTHING

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "Mish", match.found)


class KeepSoftplus:
    """`log(1 + exp(x))` stays: onnxruntime's Softplus takes three to five times as long."""

    name = "softplus"
    ops = frozenset({"Log"})

    def match(self, node: ir.Node, facts: Facts) -> Match[None] | Miss:
        """Says why."""
        del facts
        if not is_op(inner(_plus_one(node.inputs[0]), "Exp"), "Exp"):
            return NOTHING
        return Miss("log(1 + exp(x)) is faster than Softplus on this target", near=True)

    def apply(self, match: Match[None], edit: Edit) -> None:
        """Never called."""
