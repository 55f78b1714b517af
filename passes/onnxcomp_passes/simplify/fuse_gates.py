"""Folds the residual of squeeze-and-excitation gates into the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, has_reference_attribute
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.affine import Affine, Fused, apply_fused, fused_behind
from onnxcomp_passes.simplify.support.base import LocalPass, OpsetFloor, bypass, shapes_of
from onnxcomp_passes.simplify.support.formulas import (
    inner,
    most_dimensions,
    operands,
    split_number,
)
from onnxcomp_passes.simplify.support.linear import linear_before

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

CLIP_INPUTS = 11  # the opset in which Clip takes its limits as inputs


class GateResidual:
    """`x + x * g` with a gate per channel is `x * (1 + g)`: the sum is made of the gate, not of x."""

    name = "residuals moved into gates"
    ops = frozenset({"Add"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, ir.Value]] | Miss:
        """Finds x and the gate."""
        for source, other in operands(node):
            product = inner(other, "Mul")
            for x, gate in operands(product) if product is not None else ():
                if x is not source or gate is None or source is None or gate is source:
                    continue
                shapes = shapes_of(facts)
                if shapes.dtype(source) == ir.DataType.FLOAT and _is_smaller(gate, source, shapes):
                    return Match(node, (source, gate))
        return NOTHING

    def apply(self, match: Match[tuple[ir.Value, ir.Value]], edit: Edit) -> None:
        """Adds one to the gate."""
        node, (source, gate) = match.node, match.found
        assert node.graph is not None
        one = edit.initializer(np.array(1, np.float32), name="one", graph=node.graph)
        raised = edit.insert("Add", [gate, one], before=node, like=gate).outputs[0]
        made = edit.insert("Mul", [source, raised], before=node, like=node.outputs[0])
        bypass(edit, node, made.outputs[0])


def _is_smaller(gate: ir.Value, source: ir.Value, shapes: ShapeMap) -> bool:
    """Whether a gate is spread over x: x keeps its shape, and has more elements."""
    small, large = shapes.shape(gate), shapes.shape(source)
    if small is None or large is None or len(small) > len(large) or gate.producer() is None:
        return False
    pairs = list(zip(reversed(small), reversed(large), strict=False))
    spread = any(one == 1 and other != 1 for one, other in pairs)
    return spread and all(one == 1 or (one is not None and one == other) for one, other in pairs)


@dataclass(frozen=True)
class Limited:
    """A linear operator that takes slope and offset in, and the limits behind it."""

    fused: Fused
    low: float
    high: float


class ClipGate:
    """`HardSigmoid(conv) + 1` is a Clip between 1 and 2 of a Conv that holds slope and offset."""

    name = "hard sigmoids made clips"
    ops = frozenset({"Add"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Limited] | Miss:
        """Finds the linear operator and computes what it becomes."""
        found = split_number(node, "Add")
        gate = None if found is None else inner(found[0], "HardSigmoid")
        if found is None or gate is None or has_reference_attribute(gate):
            return NOTHING
        source = gate.inputs[0]
        linear = linear_before(source, gate, shapes_of(facts))
        if source is None or linear is None or facts.get(OpsetFloor()) < CLIP_INPUTS:
            return NOTHING
        if most_dimensions(node, source) > (linear.rank or 0):
            return NOTHING
        slope, offset = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
        channels = np.ones(linear.outputs)
        affine = Affine(source, channels * slope, channels * (offset + found[1]))
        fused = fused_behind(linear, affine)
        if isinstance(fused, str):
            return Miss(f"the Conv cannot take the slope of the HardSigmoid in: {fused}", near=True)
        return Match(node, Limited(fused, found[1], 1 + found[1]))

    def apply(self, match: Match[Limited], edit: Edit) -> None:
        """Writes weight and bias, and puts the Clip there."""
        node, found = match.node, match.found
        assert node.graph is not None
        apply_fused(edit, found.fused)
        limits = [
            edit.initializer(np.array(limit, np.float32), name=name, graph=node.graph)
            for name, limit in (("clip_min", found.low), ("clip_max", found.high))
        ]
        source = found.fused.linear.last.outputs[0]
        made = edit.insert("Clip", [source, *limits], before=node, like=node.outputs[0])
        bypass(edit, node, made.outputs[0])


class FuseGates(LocalPass):
    """Folds the residual of squeeze-and-excitation gates into the gate.

    `x + x * g` with a gate per channel is `x * (1 + g)`: the addition is made once per channel, not
    once per pixel. When the gate is a HardSigmoid behind a Conv with constant weights, slope, offset
    and the one go into its weight and bias, and a Clip is left. Nothing else may read what lies
    between. Sums are rounded in another order: results agree to a few units in the last place.

        x -> Mul(HardSigmoid(Conv(p))) -> Add(x) -> y
        x -> Mul(Clip(Conv(p), 1, 2)) -> y
    """

    name = "fuse-gates"
    lossless = True
    near_miss_code = "FGA101"
    codes: ClassVar[Mapping[str, str]] = {
        "FGA101": "A gate keeps its HardSigmoid, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (GateResidual(), ClipGate())
