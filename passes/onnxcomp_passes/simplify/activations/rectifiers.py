"""LeakyRelu, ThresholdedRelu, Relu and Clip, written apart with Max, Min and Where."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import array
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import OpsetFloor, bypass
from onnxcomp_passes.simplify.support.formulas import (
    build,
    inner,
    is_single,
    number,
    operands,
    split_number,
)

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

# Opsets in which Clip takes its limits as inputs, and PRelu is what it is today.
CLIP_INPUTS = 11
SLOPES_READ = 4096


class BuildLeakyRelu:
    """`max(x, a * x)`, `where(x > 0, x, a * x)` and `relu(x) - a * relu(-x)` are LeakyRelu(a)."""

    name = "leaky relus put together"
    ops = frozenset({"Max", "Min", "Where", "Add", "Sub", "PRelu"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, float]] | Miss:
        """Finds x and the slope."""
        del facts
        found: tuple[ir.Value, float] | Miss | None
        if node.op_type in {"Max", "Min"}:
            found = _of_extremes(node)
        elif node.op_type == "Where":
            found = _of_where(node)
        elif node.op_type == "PRelu":
            found = _of_prelu(node)
        else:
            found = _of_relus(node)
        if isinstance(found, Miss):
            return found
        # Times zero, infinity would become NaN in one of the forms.
        if found is None or not isfinite(found[1]) or found[1] == 0:
            return NOTHING
        return Match(node, found)

    def apply(self, match: Match[tuple[ir.Value, float]], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "LeakyRelu", match.found[0], alpha=match.found[1])


def _of_extremes(node: ir.Node) -> tuple[ir.Value, float] | None:
    if len(node.inputs) != 2:
        return None
    for source, other in operands(node):
        found = split_number(inner(other, "Mul"), "Mul")
        if found is None or found[0] is not source:
            continue
        fits = 0 < found[1] < 1 if node.op_type == "Max" else found[1] > 1
        return found if fits else None
    return None


def _of_where(node: ir.Node) -> tuple[ir.Value, float] | None:
    condition, yes, no = node.inputs
    test = inner(condition, "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    if test is None or number(test.inputs[1]) != 0 or not is_single(test.inputs[1]):
        return None
    kept, scaled = (yes, no) if test.op_type.startswith("Greater") else (no, yes)
    found = split_number(inner(scaled, "Mul"), "Mul")
    return found if found is not None and found[0] is kept is test.inputs[0] else None


def _of_prelu(node: ir.Node) -> tuple[ir.Value, float] | None:
    source, slopes = node.inputs[0], array(node.inputs[1], limit=SLOPES_READ)
    if source is None or slopes is None or slopes.size == 0 or slopes.dtype != np.float32:
        return None
    first = slopes.reshape(-1)[0]
    return (source, float(first)) if bool((slopes == first).all()) else None


def _of_relus(node: ir.Node) -> tuple[ir.Value, float] | Miss | None:
    """Reads `relu(x) - a * relu(-x)`, or with a plus and -a."""
    orders = operands(node) if node.op_type == "Add" else operands(node)[:1]
    for positive, negative in orders:
        relu, product = inner(positive, "Relu"), inner(negative, "Mul")
        if relu is None or product is None:
            continue
        for mirrored, slope in operands(product):
            other = inner(mirrored, "Relu")
            flipped = inner(other.inputs[0], "Neg") if other is not None else None
            if flipped is None or flipped.inputs[0] is not relu.inputs[0]:
                continue
            found = number(slope)
            if found is None or relu.inputs[0] is None or not is_single(slope):
                return Miss("relu(x) - a * relu(-x) is faster than PRelu on this target", near=True)
            return relu.inputs[0], found if node.op_type == "Sub" else -found
    return None


class BuildThresholdedRelu:
    """`where(x > a, x, 0)` is ThresholdedRelu(a)."""

    name = "thresholded relus put together"
    ops = frozenset({"Where"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, float]] | Miss:
        """Finds x and the threshold."""
        if facts.get(OpsetFloor()) < 10:
            return NOTHING
        test, kept = inner(node.inputs[0], "Greater"), node.inputs[1]
        if (
            test is None
            or kept is None
            or test.inputs[0] is not kept
            or number(node.inputs[2]) != 0
        ):
            return NOTHING
        threshold = number(test.inputs[1])
        if threshold is None or not isfinite(threshold) or not is_single(test.inputs[1]):
            return NOTHING
        return Match(node, (kept, threshold))

    def apply(self, match: Match[tuple[ir.Value, float]], edit: Edit) -> None:
        """Builds it."""
        build(edit, match.node, "ThresholdedRelu", match.found[0], alpha=match.found[1])


class BuildRelu:
    """`max(x, 0)` is Relu; a limit of infinity is none."""

    name = "relus put together"
    ops = frozenset({"Max", "Min"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, bool]] | Miss:
        """Finds x, and whether nothing is limited at all."""
        del facts
        found = split_number(node, "Max", "Min")
        if found is None:
            return NOTHING
        if found[1] == (float("-inf") if node.op_type == "Max" else float("inf")):
            return Match(node, (found[0], True))
        fits = node.op_type == "Max" and found[1] == 0
        return Match(node, (found[0], False)) if fits else NOTHING

    def apply(self, match: Match[tuple[ir.Value, bool]], edit: Edit) -> None:
        """Builds it, or makes readers read x."""
        source, unlimited = match.found
        if unlimited:
            bypass(edit, match.node, source)
        else:
            build(edit, match.node, "Relu", source)


class BuildClip:
    """`min(max(x, low), high)`, in either order, is Clip(x, low, high)."""

    name = "clips put together"
    ops = frozenset({"Max", "Min"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[ir.Value, float, float]] | Miss:
        """Finds x and the limits."""
        outer = split_number(node, "Max", "Min")
        before = None if outer is None else inner(outer[0], "Max", "Min", "Relu")
        if outer is None or before is None or before.op_type == node.op_type:
            return NOTHING
        source = before.inputs[0]
        limit = 0.0
        if before.op_type == "Relu":
            if node.op_type == "Max":
                return NOTHING
        else:
            found = split_number(before, "Max", "Min")
            if found is None:
                return NOTHING
            source, limit = found
        low, high = (limit, outer[1]) if node.op_type == "Min" else (outer[1], limit)
        # Limits that cross, and NaN, mean something else in one of the forms.
        if source is None or not low <= high or facts.get(OpsetFloor()) < CLIP_INPUTS:
            return NOTHING
        return Match(node, (source, low, high))

    def apply(self, match: Match[tuple[ir.Value, float, float]], edit: Edit) -> None:
        """Builds it."""
        node, (source, low, high) = match.node, match.found
        assert node.graph is not None
        limits = [
            edit.initializer(np.array(limit, np.float32), name=name, graph=node.graph)
            for name, limit in (("clip_min", low), ("clip_max", high))
        ]
        made = edit.insert("Clip", [source, *limits], before=node, like=node.outputs[0])
        bypass(edit, node, made.outputs[0])
