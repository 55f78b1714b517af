"""Puts softmaxes that exporters took apart together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.ops import producer_of
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, shapes_of
from onnxcomp_passes.simplify.support.formulas import build, inner, operands
from onnxcomp_passes.simplify.support.reductions import Reduction, reduction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})


class BuildSoftmax:
    """`exp(x - max(x)) / sum(exp(x - max(x)))` is Softmax."""

    name = "softmaxes put together"
    ops = frozenset({"Div", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Reduction] | Miss:
        """Finds x and the axis."""
        for power, total in operands(node) if node.op_type == "Mul" else operands(node)[:1]:
            exponential = producer_of(power, "Exp")
            if exponential is None or power is None or not _read_by(power, 2):
                continue
            shapes = shapes_of(facts)
            divided = inner(total, "Reciprocal") if node.op_type == "Mul" else None
            if node.op_type == "Mul" and divided is None:
                continue
            summed = reduction(divided.inputs[0] if divided else total, "ReduceSum", shapes)
            if summed is None or summed.source is not power:
                continue
            return _checked(node, shifted(exponential.inputs[0], 1, shapes), summed, shapes)
        return NOTHING

    def apply(self, match: Match[Reduction], edit: Edit) -> None:
        """Builds it."""
        found = match.found
        build(edit, match.node, "Softmax", found.source, axis=found.rank - 1)


class BuildLogSoftmax:
    """`d - log(sum(exp(d)))` with `d = x - max(x)` is LogSoftmax."""

    name = "logarithms of softmaxes put together"
    ops = frozenset({"Sub", "Log"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Reduction] | Miss:
        """Finds x and the axis."""
        if node.op_type == "Log":
            if inner(node.inputs[0], "Softmax") is None:
                return NOTHING
            why = "where Softmax underflows its logarithm is -inf, and LogSoftmax is not"
            return Miss(why, near=True)
        logarithm = inner(node.inputs[1], "Log")
        if logarithm is None:
            return NOTHING
        shapes = shapes_of(facts)
        summed = reduction(logarithm.inputs[0], "ReduceSum", shapes)
        exponential = None if summed is None else inner(summed.source, "Exp")
        if summed is None or exponential is None or exponential.inputs[0] is not node.inputs[0]:
            return NOTHING
        return _checked(node, shifted(node.inputs[0], 2, shapes), summed, shapes)

    def apply(self, match: Match[Reduction], edit: Edit) -> None:
        """Builds it."""
        found = match.found
        build(edit, match.node, "LogSoftmax", found.source, axis=found.rank - 1)


def _read_by(value: ir.Value, readers: int) -> bool:
    return len(value.uses()) == readers and not value.is_graph_output()


def shifted(value: ir.Value | None, readers: int, shapes: ShapeMap) -> Reduction | None:
    """Returns the maximum m of `x - m` when that has so many readers."""
    difference = producer_of(value, "Sub")
    if value is None or difference is None or not _read_by(value, readers):
        return None
    found = reduction(difference.inputs[1], "ReduceMax", shapes)
    return found if found is not None and found.source is difference.inputs[0] else None


def _checked(
    node: ir.Node, largest: Reduction | None, summed: Reduction, shapes: ShapeMap
) -> Match[Reduction] | Miss:
    """Returns the match if maximum and sum are taken along the last axis."""
    if largest is None:
        why = "the maximum is not subtracted before: the formula overflows where Softmax does not"
        return Miss(why, near=True)
    if largest.axes != summed.axes or len(summed.axes) != 1:
        return NOTHING
    if shapes.dtype(largest.source) not in _TYPES:
        return NOTHING
    if summed.last is None:
        return Miss(
            "along another axis than the last one the runtime is faster this way", near=True
        )
    return Match(node, largest)


class FuseSoftmax(LocalPass):
    """Puts softmaxes that exporters took apart together again.

    Five operators become Softmax, six LogSoftmax, when the maximum is subtracted as the operators do
    it themselves, along the last axis. Along other axes onnxruntime runs the parts several times
    faster than the operator. Forms that overflow or underflow where the operator does not stay as
    they are: `exp(x) / sum(exp(x))`, `log(softmax(x))`. Nothing else may read what lies between.

        x -> Sub(ReduceMax) -> Exp -> Div(ReduceSum) -> y
        x -> Softmax -> y
    """

    name = "fuse-softmax"
    lossless = True
    near_miss_code = "FSM101"
    codes: ClassVar[Mapping[str, str]] = {
        "FSM101": "A softmax stays written apart, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (BuildSoftmax(), BuildLogSoftmax())
