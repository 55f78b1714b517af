"""Taking formulas apart: operands of commutative operators, numbers, chains that nobody else reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, is_op
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import bypass, shapes_of

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit
    from onnxcomp.rules import Miss, Rule

# A constant of a formula, stored in single precision, is off by a rounding or two.
_CLOSE = 3e-7
# Operators that the longest formula is made of.
_LONGEST = 24


def number(value: ir.Value | None) -> float | None:
    """Returns a constant of one element, None for everything else.

    It may have more dimensions than what it is combined with, and widen that: see `Unwidened`.
    """
    found = array(value, limit=1)
    if found is None or found.size != 1 or found.dtype.kind != "f":
        return None
    return float(found.reshape(()))


def is_number(value: ir.Value | None, wanted: float) -> bool:
    """Whether a value is a constant as near to a number as single precision gets."""
    found = number(value)
    return found is not None and abs(found - wanted) <= _CLOSE * abs(wanted)


def is_single(value: ir.Value | None) -> bool:
    """Whether a constant is in single precision, which every kernel of the runtime has."""
    found = array(value, limit=1)
    return found is not None and found.dtype == np.float32


def with_number(
    node: ir.Node | None, operator: str, wanted: float | None = None
) -> ir.Value | None:
    """Returns the operand x of `x op c` or `c op x` for a commutative operator and a number c."""
    if node is None or not is_op(node, operator) or len(node.inputs) != 2:
        return None
    for index in (0, 1):
        constant = node.inputs[1 - index]
        fits = number(constant) is not None if wanted is None else is_number(constant, wanted)
        if fits:
            return node.inputs[index]
    return None


def split_number(node: ir.Node | None, *operators: str) -> tuple[ir.Value, float] | None:
    """Returns x and c of `x op c` or `c op x`, in single precision."""
    if node is None or not is_op(node, *operators) or len(node.inputs) != 2:
        return None
    for value, constant in operands(node):
        found = number(constant)
        if value is not None and found is not None and is_single(constant):
            return value, found
    return None


def over_number(node: ir.Node | None, wanted: float) -> ir.Value | None:
    """Returns x of `x / c` or `x * (1 / c)`."""
    if is_op(node, "Div") and node is not None:
        return node.inputs[0] if is_number(node.inputs[1], wanted) else None
    return with_number(node, "Mul", 1 / wanted)


def inner(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """Returns the maker of a value that only one node reads, if it is one of the operators."""
    maker = None if value is None else value.producer()
    # The operator first: it rules out most, and costs less than counting readers.
    if value is None or not is_op(maker, *operators) or only_reader(value) is None:
        return None
    return maker


def operands(node: ir.Node) -> list[tuple[ir.Value | None, ir.Value | None]]:
    """Returns the two operands in both orders."""
    first, second = node.inputs[0], node.inputs[1]
    return [(first, second), (second, first)]


def build(edit: Edit, node: ir.Node, operator: str, source: ir.Value, **options: Any) -> None:  # noqa: ANN401
    """Puts one operator of `source` where `node` stands, with everything that only fed it."""
    made = edit.insert(operator, [source], before=node, attributes=options, like=node.outputs[0])
    bypass(edit, node, made.outputs[0])


class Unwidened:
    """A rule that holds only where no constant of the formula has more dimensions than x.

    `x + [[1]]` is a matrix even when x is a vector; the operator that replaces it would return a
    vector. What the rule found is x, or begins with x.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule, self.name, self.ops = rule, rule.name, rule.ops

    def match(self, node: ir.Node, facts: Facts) -> Match[Any] | Miss:
        """Asks the rule, and then the constants."""
        found = self.rule.match(node, facts)
        if not isinstance(found, Match):
            return found
        first = found.found
        source = first if isinstance(first, ir.Value) else first[0]
        most = most_dimensions(node, source)
        if most == 0:
            return found
        rank = shapes_of(facts).rank(source)
        return found if rank is not None and rank >= most else NOTHING

    def apply(self, match: Match[Any], edit: Edit) -> None:
        """Lets the rule do it."""
        self.rule.apply(match, edit)


def most_dimensions(node: ir.Node, source: ir.Value) -> int:
    """Returns how many dimensions a number has at most in the formula that leads from x to a node."""
    waiting, seen, most = [node], {node}, 0
    while waiting and len(seen) < _LONGEST:
        for value in waiting.pop().inputs:
            if value is None or value is source:
                continue
            found = array(value, limit=1)
            if found is not None:
                most = max(most, found.ndim if found.dtype.kind == "f" else 0)
            elif (maker := value.producer()) is not None and maker not in seen:
                seen.add(maker)
                waiting.append(maker)
    return most
