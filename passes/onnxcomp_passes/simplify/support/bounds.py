"""Relu and Clip one after the other, made one Clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, input_at, producer_of
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import bypass, rewire, shapes_of
from onnxcomp_passes.simplify.support.layouts import only_reads

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.rules import Miss


@dataclass(frozen=True)
class Bounds:
    """What a Relu or a Clip limits to; None is the largest number of the type."""

    low: float | None
    high: float | None


def _number(value: Any) -> float | None:  # noqa: ANN401
    number = float(np.asarray(value).reshape(()))
    return None if np.isnan(number) else number


def bounds_of(node: ir.Node) -> Bounds | None:
    """Returns the limits of a Relu or Clip, None when they differ between runs or are NaN."""
    if node.op_type == "Relu":
        return Bounds(0.0, None)
    found: list[float | None] = []
    for index, name in ((1, "min"), (2, "max")):
        value: Any
        if name in node.attributes:
            value = attribute(node, name)
        elif input_at(node, index) is None:
            found.append(None)
            continue
        else:
            value = array(input_at(node, index), limit=1)
        if isinstance(value, (float, np.ndarray)) and np.size(value) == 1:
            found.append(_number(value))
            if found[-1] is not None:
                continue
        return None
    return Bounds(*found)


def both(inner: Bounds, outer: Bounds) -> Bounds | None:
    """Returns the limits of one after the other, None when one of them is empty."""
    if any(
        one.low is not None and one.high is not None and one.low > one.high
        for one in (inner, outer)
    ):
        return None
    lows = [low for low in (inner.low, outer.low) if low is not None]
    highs = [high for high in (inner.high, outer.high) if high is not None]
    merged = Bounds(max(lows, default=None), min(highs, default=None))
    # Ranges that do not meet make everything one number: rare, and not worth a form of its own.
    if merged.low is not None and merged.high is not None and merged.low > merged.high:
        return None
    return merged


class MergeBounds:
    """Clip(Relu(x)), Relu(Clip(x)) and Clip(Clip(x)) are one Clip."""

    name = "clips merged"
    ops = frozenset({"Clip", "Relu"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Bounds] | Miss:
        """Finds the limits of both together."""
        inner = producer_of(node.inputs[0], "Clip", "Relu")
        if inner is None or not only_reads(node, inner):
            return NOTHING
        if not (_has_bounds(node) or _has_bounds(inner)):
            return NOTHING
        dtype = shapes_of(facts).dtype(node.inputs[0])
        first, second = bounds_of(inner), bounds_of(node)
        if first is None or second is None or dtype is None or not dtype.is_floating_point():
            return NOTHING
        merged = both(first, second)
        return NOTHING if merged is None else Match(node, merged)

    def apply(self, match: Match[Bounds], edit: Edit) -> None:
        """Keeps the Clip, with the limits of both, where the outer node stands."""
        node, bounds = match.node, match.found
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        source = inner.inputs[0]
        assert source is not None
        clip = node if _has_bounds(node) else inner
        _set_bounds(edit, clip, bounds, inner if clip is node else node)
        if clip is node:
            rewire(edit, node, 0, source)
        else:
            bypass(edit, node, inner.outputs[0])


def _has_bounds(node: ir.Node) -> bool:
    """Whether a node is a Clip that shows in which form its opset keeps the limits."""
    return bool({"min", "max"} & set(node.attributes)) or any(node.inputs[1:])


def _set_bounds(edit: Edit, clip: ir.Node, bounds: Bounds, other: ir.Node) -> None:
    like = next((found for found in map(array, clip.inputs[1:]) if found is not None), None)
    have = bounds_of(clip)
    assert have is not None
    for index, name, number, old in (
        (1, "min", bounds.low, have.low),
        (2, "max", bounds.high, have.high),
    ):
        if number is None or number == old:
            continue
        if like is None:
            edit.set_attribute(clip, name, float(number))
            continue
        made = input_at(other, index)
        if made is None:
            assert clip.graph is not None
            wish = f"{clip.outputs[0].name}_{name}"
            made = edit.initializer(np.array(number, like.dtype), name=wish, graph=clip.graph)
        if input_at(clip, index) is None:
            edit.set_input(clip, index, made)
        else:
            rewire(edit, clip, index, made)
