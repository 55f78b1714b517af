"""Goes around sequences and optional values whose elements are known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.ir.ops import array, attribute, input_at, is_op, producer_of
from onnxcomp.rules import NOTHING, Match, Miss, Rule, RulePass
from onnxcomp_passes.simplify.control.carriers import Carriers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context

_READERS = frozenset(
    {
        "SequenceAt",
        "SequenceLength",
        "ConcatFromSequence",
        "OptionalGetElement",
        "OptionalHasElement",
    }
)
_UNKNOWN_PLACE = Miss("the place in the sequence is not constant", near=True)
# Longer chains of SequenceInsert are cut off; exporters unroll lists of some dozens.
_LONGEST = 4096


class SimplifySequences(RulePass):
    """Read elements of sequences where they come from, without the sequence.

    Sequences that are put together out of known elements, however that is done, need not be made for
    SequenceAt, SequenceLength and ConcatFromSequence; a slice of a tensor that was split into rows is a
    Gather. Optional values that are known to be there are themselves.

        s = SequenceConstruct (a, b)             y = Concat <axis = 0> (a, b)
        y = ConcatFromSequence <axis = 0> (s)    z = Neg (b)
        t = SequenceAt (s, 1)             ->
        z = Neg (t)
    """

    name: ClassVar[str] = "simplify-sequences"
    lossless: ClassVar[bool] = True
    near_miss_code: ClassVar[str] = "SEQ101"
    codes: ClassVar[Mapping[str, str]] = {
        "SEQ101": "An element of a sequence was not read where it comes from."
    }

    @override
    def run(self, ctx: Context) -> None:
        if not ctx.facts.get(Carriers()).isdisjoint(_READERS):
            super().run(ctx)

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (_Element(), _Row(), _Length(), _Joined(), _Optional())


def elements(value: ir.Value | None) -> list[ir.Value] | None:
    """Returns the elements of a sequence, None when it is not known how it is put together."""
    steps: list[tuple[str, ir.Value | None, int | None]] = []
    for _ in range(_LONGEST):
        node = producer_of(
            value,
            "SequenceConstruct",
            "SequenceEmpty",
            "SequenceInsert",
            "SequenceErase",
            "Identity",
        )
        if node is None:
            return None
        if is_op(node, "SequenceConstruct", "SequenceEmpty"):
            found = [operand for operand in node.inputs if operand is not None]
            return _replayed(found, steps[::-1])
        value = node.inputs[0]
        if is_op(node, "Identity"):
            continue
        inserted = node.inputs[1] if is_op(node, "SequenceInsert") else None
        position = input_at(node, 2 if inserted is not None else 1)
        place = None if position is None else _place(position)
        if position is not None and place is None:
            return None
        steps.append((node.op_type, inserted, place))
    return None


def _replayed(
    found: list[ir.Value], steps: list[tuple[str, ir.Value | None, int | None]]
) -> list[ir.Value] | None:
    for _, inserted, place in steps:
        size = len(found)
        limit = size if inserted is not None else size - 1
        if place is not None and not -size <= place <= limit:
            return None
        if inserted is None:
            if not found:
                return None
            found.pop(size - 1 if place is None else place % size)
        else:
            found.insert(size if place is None else place + size * (place < 0), inserted)
    return found


def _place(value: ir.Value | None) -> int | None:
    found = array(value, limit=1)
    return int(found) if found is not None and found.ndim == 0 else None


class _Element:
    """SequenceAt of known elements."""

    name = "elements read directly"
    ops = frozenset({"SequenceAt"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Looks at where the sequence comes from."""
        del facts
        found = elements(node.inputs[0])
        if found is None:
            return NOTHING
        place = _place(node.inputs[1])
        if place is None:
            return _UNKNOWN_PLACE
        if not -len(found) <= place < len(found):
            return Miss(f"there is no element {place} of {len(found)}", near=True)
        return Match(node, found[place])

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Goes around the sequence."""
        edit.replace(match.node.outputs[0], match.found)
        edit.remove(match.node)


class _Row:
    """SequenceAt of a tensor that was split into its rows."""

    name = "rows gathered"
    ops = frozenset({"SequenceAt"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Node] | Miss:
        """Looks at where the sequence comes from."""
        del facts
        split = producer_of(node.inputs[0], "SplitToSequence")
        if split is None or input_at(split, 1) is not None:
            return NOTHING
        if attribute(split, "keepdims", 1) != 0 or not isinstance(attribute(split, "axis", 0), int):
            return NOTHING
        if _place(node.inputs[1]) is None:
            return _UNKNOWN_PLACE
        return Match(node, split)

    def apply(self, match: Match[ir.Node], edit: Edit) -> None:
        """Goes around the sequence."""
        node, split = match.node, match.found
        axis = attribute(split, "axis", 0)
        result = node.outputs[0]
        made = edit.insert(
            "Gather",
            [split.inputs[0], node.inputs[1]],
            before=node,
            outputs=[result.name or "row"],
            attributes={"axis": axis},
            like=result,
        )
        edit.replace(result, made.outputs[0])
        edit.remove(node)


class _Length:
    """SequenceLength of known elements."""

    name = "lengths known"
    ops = frozenset({"SequenceLength"})

    def match(self, node: ir.Node, facts: Facts) -> Match[int] | Miss:
        """Looks at where the sequence comes from."""
        del facts
        found = elements(node.inputs[0])
        return NOTHING if found is None else Match(node, len(found))

    def apply(self, match: Match[int], edit: Edit) -> None:
        """Goes around the sequence."""
        _become_constant(match.node, np.array(match.found, np.int64), edit)


class _Joined:
    """ConcatFromSequence of known elements."""

    name = "elements joined directly"
    ops = frozenset({"ConcatFromSequence"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[ir.Value]] | Miss:
        """Looks at where the sequence comes from."""
        del facts
        found = elements(node.inputs[0])
        if not found or not isinstance(attribute(node, "axis"), int):
            return NOTHING
        if attribute(node, "new_axis", 0) != 0:
            return Miss("the elements get a new dimension, each would need a node", near=True)
        return Match(node, found)

    def apply(self, match: Match[list[ir.Value]], edit: Edit) -> None:
        """Goes around the sequence."""
        node, result = match.node, match.node.outputs[0]
        made = edit.insert(
            "Concat",
            match.found,
            before=node,
            outputs=[result.name or "joined"],
            attributes={"axis": attribute(node, "axis")},
            like=result,
        )
        edit.replace(result, made.outputs[0])
        edit.remove(node)


class _Optional:
    """What is asked of an Optional that was made of something, or of nothing."""

    name = "optional values known"
    ops = frozenset({"OptionalGetElement", "OptionalHasElement"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value | None] | Miss:
        """Looks at where the sequence comes from."""
        del facts
        maker = producer_of(input_at(node, 0), "Optional")
        if maker is None:
            return NOTHING
        value = input_at(maker, 0)
        if is_op(node, "OptionalGetElement") and value is None:
            return NOTHING
        if value is not None and producer_of(value, "Optional") is not None:
            return NOTHING
        return Match(node, value)

    def apply(self, match: Match[Any], edit: Edit) -> None:
        """Goes around the sequence."""
        node = match.node
        if is_op(node, "OptionalGetElement"):
            edit.replace(node.outputs[0], match.found)
            edit.remove(node)
        else:
            _become_constant(node, np.array(match.found is not None), edit)


def _become_constant(node: ir.Node, array: np.ndarray, edit: Edit) -> None:
    edit.truncate_inputs(node, 0)
    edit.set_operator(node, "Constant")
    edit.set_attribute(node, "value", array)
