"""Puts activations that exporters took apart together again."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.ir.ops import attribute, has_reference_attribute, input_at, is_scalar, producer_of
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, OpsetFloor, bypass
from onnxcomp_passes.simplify.support.bounds import bounds_of
from onnxcomp_passes.simplify.support.formulas import inner, operands, over_number, with_number

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

# Opsets that brought an operator.
HARD_SWISH, MISH, GELU = 14, 18, 20


class BuildHardSigmoid:
    """`clip(x + 3, 0, 6) / 6` is HardSigmoid, `x * clip(x + 3, 0, 6) / 6` that times x."""

    name = "hard sigmoids put together"
    ops = frozenset({"Div", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, ir.Value | None]] | Miss:
        """Finds x, and the factor beside the clip if there is one."""
        del facts
        for scaled in self._scaled(node):
            clip = inner(scaled, "Clip")
            if clip is not None and (source := _shifted_and_clipped(clip)) is not None:
                return Match(node, (source, None))
            product = inner(scaled, "Mul")
            for factor, other in operands(product) if product is not None else ():
                clip = inner(other, "Clip")
                source = None if clip is None else _shifted_and_clipped(clip)
                if source is not None and factor is not None:
                    return Match(node, (source, factor))
        return NOTHING

    @staticmethod
    def _scaled(node: ir.Node) -> list[ir.Value]:
        found = over_number(node, 6.0)
        return [] if found is None else [found]

    def apply(self, match: Match[tuple[ir.Value, ir.Value | None]], edit: Edit) -> None:
        """Builds the HardSigmoid before the last node."""
        node, (source, factor) = match.node, match.found
        slope = {"alpha": 1 / 6, "beta": 0.5}
        gate = edit.insert(
            "HardSigmoid", [source], before=node, attributes=slope, like=node.outputs[0]
        ).outputs[0]
        if factor is not None:
            gate = edit.insert("Mul", [factor, gate], before=node, like=node.outputs[0]).outputs[0]
        bypass(edit, node, gate)


def _shifted_and_clipped(clip: ir.Node) -> ir.Value | None:
    """Returns x of `clip(x + 3, 0, 6)`."""
    limits = bounds_of(clip)
    if limits is None or (limits.low, limits.high) != (0.0, 6.0):
        return None
    return with_number(inner(clip.inputs[0], "Add"), "Add", 3.0)


class BuildHardSwish:
    """`x * HardSigmoid(x)` with the slope 1/6 is HardSwish."""

    name = "hard swishes put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        if facts.get(OpsetFloor()) < HARD_SWISH:
            return NOTHING
        for source, gate in operands(node):
            maker = inner(gate, "HardSigmoid")
            if maker is None or source is None or maker.inputs[0] is not source:
                continue
            if has_reference_attribute(maker):
                continue
            slope, offset = attribute(maker, "alpha", 0.2), attribute(maker, "beta", 0.5)
            if abs(slope - 1 / 6) < 1e-7 and offset == 0.5:
                return Match(node, source)
        return NOTHING

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        _build(edit, match.node, "HardSwish", match.found)


class BuildMish:
    """`x * tanh(softplus(x))` is Mish."""

    name = "mishes put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds x."""
        if facts.get(OpsetFloor()) < MISH:
            return NOTHING
        for source, gate in operands(node):
            tanh = inner(gate, "Tanh")
            softplus = inner(tanh.inputs[0], "Softplus") if tanh is not None else None
            if softplus is not None and source is not None and softplus.inputs[0] is source:
                return Match(node, source)
        return NOTHING

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Builds it."""
        _build(edit, match.node, "Mish", match.found)


class BuildGelu:
    """`0.5 * x * (1 + erf(x / sqrt(2)))` is Gelu, in each order; likewise its form with tanh."""

    name = "gelus put together"
    ops = frozenset({"Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, str]] | Miss:
        """Finds x and the form."""
        if facts.get(OpsetFloor()) < GELU:
            return NOTHING
        for source, gate in _halved_products(node):
            form = None if source is None else gelu_form(source, gate)
            if source is not None and form is not None:
                return Match(node, (source, form))
        return NOTHING

    def apply(self, match: Match[tuple[ir.Value, str]], edit: Edit) -> None:
        """Builds it."""
        source, form = match.found
        _build(edit, match.node, "Gelu", source, approximate=form)


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
    if curve is None:
        return None
    argument = curve.inputs[0]
    maker = None if argument is None else argument.producer()
    if curve.op_type == "Erf":
        return "none" if over_number(maker, sqrt(2.0)) is source else None
    total = inner(with_number(maker, "Mul", sqrt(2 / pi)), "Add")
    for one, other in operands(total) if total is not None else ():
        if one is source and _is_cube(with_number(inner(other, "Mul"), "Mul", 0.044715), source):
            return "tanh"
    return None


def _is_cube(value: ir.Value | None, source: ir.Value) -> bool:
    maker = producer_of(value, "Pow", "Mul")
    if maker is None:
        return False
    if maker.op_type == "Pow":
        return maker.inputs[0] is source and is_scalar(input_at(maker, 1), 3.0)
    for one, other in operands(maker):
        square = producer_of(other, "Mul")
        if one is source and square is not None and list(square.inputs) == [source, source]:
            return True
    return False


def _build(edit: Edit, node: ir.Node, operator: str, source: ir.Value, **options: str) -> None:
    made = edit.insert(operator, [source], before=node, attributes=options, like=node.outputs[0])
    bypass(edit, node, made.outputs[0])


class FuseActivations(LocalPass):
    """Puts activations that exporters took apart together again.

    HardSigmoid from `clip(x + 3, 0, 6) / 6`; HardSwish (opset 14), Mish (opset 18) and Gelu (opset
    20, exact and tanh form) where the model's opset has them: the opset is not raised. Constants
    must be those of the formula to single precision, and nothing else may read what lies between.
    Results agree to a few units in the last place.

        x -> Add(3) -> Clip(0, 6) -> Div(6) -> y
        x -> HardSigmoid(1/6, 0.5) -> y
    """

    name = "fuse-activations"
    lossless = True

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (BuildHardSigmoid(), BuildHardSwish(), BuildMish(), BuildGelu())
