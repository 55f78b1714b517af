"""Merges Reshapes and Transposes that have something between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.ir.ops import has_reference_attribute, input_at, integers, producer_of
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, rewire, shapes_of
from onnxcomp_passes.simplify.support.blocks import ShuffleAlongAxis
from onnxcomp_passes.simplify.support.views import (
    JoinTransposes,
    MoveViews,
    SingleReductions,
    ThinTransposes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.signature import Shape

_BROADCASTING = (
    *("Add", "Sub", "Mul", "Div", "Pow", "Mod", "And", "Or", "Xor", "Equal", "Less", "Greater"),
    *("LessOrEqual", "GreaterOrEqual", "Max", "Min", "Sum", "Where"),
)


class DropExpansions:
    """What broadcasts its operands needs no Expand, and no Tile of one element, before it."""

    name = "expansions left to broadcasting"
    ops = frozenset(_BROADCASTING)

    def match(self, node: ir.Node, facts: Facts) -> Match[int] | Miss:
        """Finds an operand without whose widening the result has the same shape."""
        shapes = shapes_of(facts)
        wanted = shapes.shape(node.outputs[0])
        if wanted is None or None in wanted:
            return NOTHING
        for index, value in enumerate(node.inputs):
            maker = producer_of(value, "Expand", "Tile")
            if maker is None or has_reference_attribute(maker):
                continue
            parts = [shapes.shape(other) for other in node.inputs]
            parts[index] = shapes.shape(maker.inputs[0])
            if maker.op_type == "Tile" and not _widens(maker, parts[index]):
                continue
            if broadcast(parts) == wanted:
                return Match(node, index)
        return NOTHING

    def apply(self, match: Match[int], edit: Edit) -> None:
        """Reads what was widened."""
        value = match.node.inputs[match.found]
        maker = None if value is None else value.producer()
        assert maker is not None
        rewire(edit, match.node, match.found, maker.inputs[0])


def _widens(tile: ir.Node, shape: Shape | None) -> bool:
    """Whether a Tile repeats nothing but dimensions of one element."""
    repeats = integers(input_at(tile, 1))
    if repeats is None or shape is None or len(repeats) != len(shape) or 0 in repeats:
        return False
    return all(times == 1 or dim == 1 for times, dim in zip(repeats, shape, strict=True))


def broadcast(parts: Sequence[Shape | None]) -> Shape | None:
    """Returns the shape of what is made of operands, None when it does not follow from theirs.

    A dimension that is not known to be 1 and not equal to the others may still be 1.
    """
    result: list[int | str | None] = []
    rank = max((len(part) for part in parts if part is not None), default=0)
    for place in range(-rank, 0):
        found: set[int | str | None] = set()
        for part in parts:
            if part is None:
                return None
            if -place <= len(part):
                found.add(part[place])
        wide = found - {1}
        if len(wide) > 1 or None in wide:
            return None
        result.append(wide.pop() if wide else 1)
    return tuple(result)


class MergeViews(LocalPass):
    """Merges Reshapes and Transposes that have something between them.

    A Reshape before arithmetic on single elements merges with one behind it; two Transposes with a
    Reshape between that only splits, or only merges dimensions, become one; a Transpose that moves
    nothing but dimensions of one element is a Reshape. Reshape, Transpose, Reshape that shuffles
    channels becomes a Gather along one axis, which copies whole blocks. An Expand goes where the operator behind it
    broadcasts anyway. Not a bit changes.

        x -> Reshape -> Relu -> Reshape -> y        x -> Expand -> Add(z) -> y
        x -> Relu -> Reshape -> y                   x -> Add(z) -> y
    """

    name = "merge-views"
    lossless = True

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (
            ShuffleAlongAxis(),
            JoinTransposes(),
            ThinTransposes(),
            MoveViews(),
            SingleReductions(),
            DropExpansions(),
        )
