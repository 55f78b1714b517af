"""What is known of conditions in a branch, because of the branch one is in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import is_op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.ir import ir


class Known:
    """Conditions (values of one element) that are known to be true or false in some scope."""

    def __init__(self, truths: Mapping[ir.Value, bool] | None = None) -> None:
        self._truths = dict(truths or {})

    def plus(self, condition: ir.Value | None, truth: bool) -> Known:
        """Returns what is known where, in addition, a condition is true or false."""
        found = Known(self._truths)
        pending = [(condition, truth)]
        while pending:
            value, holds = pending.pop()
            if value is None or value in found._truths:
                continue
            found._truths[value] = holds
            node = value.producer()
            if node is None:
                continue
            if is_op(node, "Not", "Identity"):
                pending.append((node.inputs[0], holds != is_op(node, "Not")))
            elif is_op(node, "And" if holds else "Or"):
                pending += [(operand, holds) for operand in node.inputs]
        return found

    def truth(self, condition: ir.Value | None) -> bool | None:
        """Returns what a condition is, None when that is not known."""
        opposite = False
        while condition is not None:
            if condition in self._truths:
                return self._truths[condition] != opposite
            node = condition.producer()
            if node is None or not is_op(node, "Not", "Identity"):
                break
            opposite ^= is_op(node, "Not")
            condition = node.inputs[0]
        return None
