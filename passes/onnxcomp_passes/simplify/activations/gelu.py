"""Gelu in its exact form and in the one with tanh, in every order of its factors."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from onnxcomp.ir.ops import input_at, is_scalar, producer_of
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import OpsetFloor, bypass
from onnxcomp_passes.simplify.support.formulas import (
    build,
    inner,
    is_single,
    operands,
    over_number,
    with_number,
)

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

GELU = 20  # the opset that brought it
SLOPE, CURVE = sqrt(2 / pi), 0.044715


class Gated(NamedTuple):
    """`x` times a gate: `none` is the exact curve, `tanh` the other one, `sigmoid` the same as that."""

    source: ir.Value
    form: str


class BuildGelu:
    """`0.5 * x * (1 + erf(x / sqrt(2)))` is Gelu, in each order; likewise its forms with tanh."""

    name = "gelus put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Gated] | Miss:
        """Finds x and the form."""
        if facts.get(OpsetFloor()) < GELU:
            return NOTHING
        found = gated(node)
        return NOTHING if found is None else Match(node, found)

    def apply(self, match: Match[Gated], edit: Edit) -> None:
        """Builds it."""
        form = "none" if match.found.form == "none" else "tanh"
        build(edit, match.node, "Gelu", match.found.source, approximate=form)


class ShortenTanhGelu:
    """Before opset 20, `0.5 * x * (1 + tanh(z))` is `x * sigmoid(2 z)`: six operators, not nine."""

    name = "gelus with tanh shortened"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Gated] | Miss:
        """Finds x."""
        if facts.get(OpsetFloor()) >= GELU:
            return NOTHING
        found = gated(node)
        return NOTHING if found is None or found.form != "tanh" else Match(node, found)

    def apply(self, match: Match[Gated], edit: Edit) -> None:
        """Builds `x * sigmoid(x * (c + k * x * x))`."""
        node, x = match.node, match.found.source
        assert node.graph is not None
        values = []
        for name, value in (("gelu_slope", 2 * SLOPE), ("gelu_curve", 2 * SLOPE * CURVE)):
            scalar = np.array(value, np.float32)
            values.append(edit.initializer(scalar, name=name, graph=node.graph))
        slope, curve = values

        def step(operator: str, *inputs: ir.Value) -> ir.Value:
            return edit.insert(operator, inputs, before=node, like=node.outputs[0]).outputs[0]

        bend = step("Add", step("Mul", step("Mul", x, x), curve), slope)
        gate = step("Sigmoid", step("Mul", x, bend))
        bypass(edit, node, step("Mul", x, gate))


def gated(node: ir.Node) -> Gated | None:
    """Returns what a product is the Gelu of, None when it is none."""
    for source, gate in [*_halved_products(node), *operands(node)]:
        if source is None or inner(gate, "Add", "Sigmoid") is None:
            continue
        halved = gate in node.inputs and source in node.inputs
        form = _whole_gate(source, gate) if halved else gelu_form(source, gate)
        if form is not None:
            return Gated(source, form)
    return None


def _halved_products(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Returns (x, gate) of every reading of a node as `0.5 * x * gate`."""
    product = inner(with_number(node, "Mul", 0.5), "Mul")
    if product is not None:
        return operands(product)
    found: list[tuple[ir.Value | None, ir.Value | None]] = []
    for half, other in operands(node):
        maker = inner(half, "Mul")
        source = with_number(maker, "Mul", 0.5)
        if source is not None:
            # Either half of x times the gate, or x times half of the gate.
            found += [(source, other), (other, source)]
    return found


def gelu_form(source: ir.Value, gate: ir.Value | None) -> str | None:
    """Returns which form `gate` is the gate of for x: `none` (exact), `tanh`, or no form at all."""
    curve = inner(with_number(inner(gate, "Add"), "Add", 1.0), "Erf", "Tanh")
    return None if curve is None else _form_of(curve, source)


def _form_of(curve: ir.Node, source: ir.Value) -> str | None:
    argument = curve.inputs[0]
    maker = None if argument is None else argument.producer()
    if not all(is_single(value) for value in _numbers(maker)):
        return None
    if curve.op_type == "Erf":
        return "none" if over_number(maker, sqrt(2.0)) is source else None
    return "tanh" if _is_bent(maker, source, SLOPE) else None


def _numbers(node: ir.Node | None) -> list[ir.Value | None]:
    """The operands of a node that are constant numbers."""
    values = () if node is None else node.inputs
    return [value for value in values if value is not None and value.const_value is not None]


def _is_bent(product: ir.Node | None, source: ir.Value, slope: float) -> bool:
    """Whether a product is `slope * (x + 0.044715 * x^3)`."""
    total = inner(with_number(product, "Mul", slope), "Add")
    return total is not None and any(
        one is source and _is_curved_cube(inner(other, "Mul"), source)
        for one, other in operands(total)
    )


def _is_curved_cube(node: ir.Node | None, source: ir.Value) -> bool:
    """Whether a product is 0.044715 and three times x, in whatever order."""
    if node is None:
        return False
    if _is_cube(with_number(node, "Mul", CURVE), source):
        return True
    # x * (x * (x * c)), as some frameworks write it.
    for one, other in operands(node):
        square = inner(other, "Mul")
        for two, rest in operands(square) if one is source and square is not None else ():
            if two is source and with_number(inner(rest, "Mul"), "Mul", CURVE) is source:
                return True
            if with_number(square, "Mul", CURVE) is rest and _is_square(rest, source):
                return True
    return False


def _is_square(value: ir.Value | None, source: ir.Value) -> bool:
    maker = producer_of(value, "Pow", "Mul")
    if maker is None or maker.inputs[0] is not source:
        return False
    return maker.inputs[1] is source if maker.op_type == "Mul" else is_scalar(maker.inputs[1], 2.0)


def _is_cube(value: ir.Value | None, source: ir.Value) -> bool:
    maker = producer_of(value, "Pow", "Mul")
    if maker is None:
        return False
    if maker.op_type == "Pow":
        return maker.inputs[0] is source and is_scalar(input_at(maker, 1), 3.0)
    return any(one is source and _is_square(other, source) for one, other in operands(maker))


def _whole_gate(source: ir.Value, gate: ir.Value | None) -> str | None:
    """Returns the form of a gate that holds the half already."""
    sigmoid = inner(gate, "Sigmoid")
    if sigmoid is not None:
        return "sigmoid" if _is_sigmoid_argument(sigmoid.inputs[0], source) else None
    # The half is inside: one half, and half of erf.
    halved = inner(with_number(inner(gate, "Add"), "Add", 0.5), "Mul")
    curve = inner(with_number(halved, "Mul", 0.5), "Erf", "Tanh")
    return None if curve is None else _form_of(curve, source)


def _is_sigmoid_argument(value: ir.Value | None, source: ir.Value) -> bool:
    """Whether a value is `2 c (x + k x^3)`, as a product with x too."""
    product = inner(value, "Mul")
    if product is None:
        return False
    if _is_bent(product, source, 2 * SLOPE):
        return True
    for one, other in operands(product):
        if one is source:
            bent = inner(with_number(inner(other, "Add"), "Add", 2 * SLOPE), "Mul")
            if _is_square(with_number(bent, "Mul", 2 * SLOPE * CURVE), source):
                return True
    return False
