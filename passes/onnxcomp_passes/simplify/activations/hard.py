"""HardSigmoid and HardSwish, written apart as clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, has_reference_attribute
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import OpsetFloor, bypass
from onnxcomp_passes.simplify.support.bounds import bounds_of
from onnxcomp_passes.simplify.support.formulas import (
    build,
    inner,
    operands,
    over_number,
    split_number,
)

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

HARD_SWISH = 14  # the opset that brought it


class BuildHardSigmoid:
    """`clip(x + 3, 0, 6) / 6` is HardSigmoid, `x * clip(x + 3, 0, 6) / 6` that times x."""

    name = "hard sigmoids put together"
    ops = frozenset({"Div", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, ir.Value | None]] | Miss:
        """Finds x, and the factor beside the clip if there is one."""
        del facts
        found = self._found(over_number(node, 6.0))
        return NOTHING if found is None else Match(node, found)

    @staticmethod
    def _found(scaled: ir.Value | None) -> tuple[ir.Value, ir.Value | None] | None:
        clip = inner(scaled, "Clip")
        if clip is not None and (source := _shifted_and_clipped(clip)) is not None:
            return source, None
        product = inner(scaled, "Mul")
        for factor, other in operands(product) if product is not None else ():
            clip = inner(other, "Clip")
            source = None if clip is None else _shifted_and_clipped(clip)
            if source is not None and factor is not None:
                return source, factor
        return None

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
    found = split_number(inner(clip.inputs[0], "Add"), "Add")
    return found[0] if found is not None and found[1] == 3.0 else None


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
        build(edit, match.node, "HardSwish", match.found)


class BuildSlope:
    """`clip(a * x + b, 0, 1)` is HardSigmoid(a, b)."""

    name = "hard sigmoids put together"
    ops = frozenset({"Clip"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, float, float]] | Miss:
        """Finds x, the slope and the offset."""
        del facts
        limits = bounds_of(node)
        if limits is None or (limits.low, limits.high) != (0.0, 1.0):
            return NOTHING
        total = split_number(inner(node.inputs[0], "Add"), "Add")
        product = None if total is None else split_number(inner(total[0], "Mul"), "Mul")
        if total is None or product is None:
            return NOTHING
        return Match(node, (product[0], product[1], total[1]))

    def apply(self, match: Match[tuple[ir.Value, float, float]], edit: Edit) -> None:
        """Builds it."""
        source, slope, offset = match.found
        build(edit, match.node, "HardSigmoid", source, alpha=slope, beta=offset)
