"""Merges chains of arithmetic with constants, and removes negations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.ir.ops import array, is_op, producer_of
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, rewire, shapes_of, sweep
from onnxcomp_passes.simplify.support.chains import LARGEST_CONSTANT, STEPS, Merged, chain_to, merge
from onnxcomp_passes.simplify.support.layouts import only_reads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

_WIDEST_GROWTH = 1 << 12


class MergeChains:
    """Additions and multiplications by constants one after the other are one, or one of each."""

    name = "arithmetic with constants merged"
    ops = frozenset(STEPS)

    def match(self, node: ir.Node, facts: Facts) -> Match[Merged] | Miss:
        """Finds the longest chain that ends here and can be calculated ahead."""
        reader = only_reader(node.outputs[0])
        if is_op(reader, "Erf") or (is_op(reader, *STEPS) and _continues(reader)):
            return NOTHING
        shapes = shapes_of(facts)
        steps, miss = chain_to(node, shapes), NOTHING
        kind = shapes.dtype(node.outputs[0])
        while kind is not None and len(steps) > 1:
            merged = merge(steps, kind.numpy())
            if isinstance(merged, str):
                miss = Miss(merged, near=True)
            elif merged.nodes < len(steps) and not _grows(merged):
                return Match(node, merged)
            steps = steps[1:]
        return miss

    def apply(self, match: Match[Merged], edit: Edit) -> None:
        """The last node does all, after a Mul where both are needed."""
        node, merged = match.node, match.found
        scale, shift, source = merged.scale, merged.shift, merged.source
        old = list(node.inputs)
        if merged.nodes == 2:
            assert scale is not None
            product = edit.insert(
                "Mul",
                [source, _constant(edit, node, scale, "scale")],
                before=node,
                outputs=[f"{node.outputs[0].name}_scaled"],
            )
            source = product.outputs[0]
            if node.outputs[0].dtype is not None:
                edit.set_type(source, node.outputs[0].dtype)
        if shift is None:
            assert scale is not None
            operands = ("Mul", source, _constant(edit, node, scale, "scale"))
        elif merged.negates:
            operands = ("Sub", _constant(edit, node, shift, "shift"), source)
        else:
            operands = ("Add", source, _constant(edit, node, shift, "shift"))
        edit.set_operator(node, operands[0])
        edit.set_input(node, 0, operands[1])
        edit.set_input(node, 1, operands[2])
        sweep(edit, *old)


def _continues(reader: ir.Node | None) -> bool:
    """Whether the chain goes on, so that its end is the place to look from."""
    return reader is not None and (
        reader.op_type == "Neg"
        or any(array(value, limit=LARGEST_CONSTANT) is not None for value in reader.inputs)
    )


def _grows(merged: Merged) -> bool:
    """Whether the constants, widened to fit each other, are larger than they were."""
    before = sum(
        part.size for step in merged.steps for part in (step.scale, step.shift) if part is not None
    )
    after = sum(part.size for part in (merged.scale, merged.shift) if part is not None)
    return after > max(before, _WIDEST_GROWTH)


def _constant(
    edit: Edit,
    node: ir.Node,
    contents: np.ndarray[tuple[int, ...], np.dtype[np.generic]],
    what: str,
) -> ir.Value:
    assert node.graph is not None
    name = f"{node.outputs[0].name}_{what}"
    return edit.initializer(contents, name=name, graph=node.graph)


class SubtractNegated:
    """x + (-y) is x - y, and x - (-y) is x + y; no bit changes."""

    name = "negations made part of a sum"
    ops = frozenset({"Add", "Sub"})

    def match(self, node: ir.Node, facts: Facts) -> Match[int] | Miss:
        """Finds the operand that is negated."""
        del facts
        for index in (1, 0) if node.op_type == "Add" else (1,):
            negation = producer_of(node.inputs[index], "Neg")
            if negation is not None and only_reads(node, negation):
                return Match(node, index)
        return NOTHING

    def apply(self, match: Match[int], edit: Edit) -> None:
        """Subtracts, or adds."""
        node, index = match.node, match.found
        negation = producer_of(node.inputs[index], "Neg")
        assert negation is not None
        source, other = negation.inputs[0], node.inputs[1 - index]
        edit.set_operator(node, "Sub" if node.op_type == "Add" else "Add")
        old = node.inputs[index]
        edit.set_input(node, 0, other)
        edit.set_input(node, 1, source)
        sweep(edit, old)


class ChooseTheOther:
    """Where(Not(c), x, y) is Where(c, y, x)."""

    name = "choices turned around"
    ops = frozenset({"Where"})

    def match(self, node: ir.Node, facts: Facts) -> Match[None] | Miss:
        """Finds the negated condition."""
        del facts
        inverted = producer_of(node.inputs[0], "Not")
        return Match(node, None) if only_reads(node, inverted) else NOTHING

    def apply(self, match: Match[None], edit: Edit) -> None:
        """Swaps the choices."""
        node = match.node
        inverted = producer_of(node.inputs[0], "Not")
        assert inverted is not None
        _, then, otherwise = node.inputs
        edit.set_input(node, 1, otherwise)
        edit.set_input(node, 2, then)
        rewire(edit, node, 0, inverted.inputs[0])


class FlattenExtremes:
    """Max(Max(a, b), c) is Max(a, b, c), and constants among them are one; Min likewise."""

    name = "extremes merged"
    ops = frozenset({"Max", "Min"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[ir.Value]] | Miss:
        """Finds what all of them compare."""
        del facts
        inputs: list[ir.Value] = []
        for value in node.inputs:
            inner = producer_of(value, node.op_type)
            if inner is not None and only_reads(node, inner) and inner.graph is node.graph:
                inputs.extend(item for item in inner.inputs if item is not None)
            elif value is not None:
                inputs.append(value)
        constants = [value for value in inputs if _is_number(value)]
        if len(inputs) == len(node.inputs) and (len(constants) < 2 or len(inputs) == 2):
            return NOTHING
        return Match(node, inputs)

    def apply(self, match: Match[list[ir.Value]], edit: Edit) -> None:
        """Compares all at once."""
        node, inputs = match.node, match.found
        old = list(node.inputs)
        constants = [value for value in inputs if _is_number(value)]
        if 1 < len(constants) < len(inputs):
            numbers = [found for found in map(array, constants) if found is not None]
            pick = np.maximum if node.op_type == "Max" else np.minimum
            best = pick.reduce(np.broadcast_arrays(*numbers))
            inputs = [value for value in inputs if value not in constants]
            inputs.append(_constant(edit, node, np.asarray(best, numbers[0].dtype), "bound"))
        for index, value in enumerate(inputs):
            edit.set_input(node, index, value)
        edit.truncate_inputs(node, len(inputs))
        sweep(edit, *old)


def _is_number(value: ir.Value) -> bool:
    """Whether a value is one constant number; NaN is none."""
    found = array(value, limit=1)
    return found is not None and found.size == 1 and bool((found == found).all())


class MergeArithmetic(LocalPass):
    """Merges chains of arithmetic with constants, and removes negations.

    Additions, subtractions, multiplications and divisions by constants become one Mul, one Add, or
    one of each. Integers wrap around as before, to the bit. Single and double precision are rounded
    at other places, so that it is done only where no product on the way could overflow or vanish and
    no two terms cancel; half precision is left alone. The beginning and the end of a GELU stay as
    runtimes recognise them. x + (-y) becomes x - y, Where(Not(c), x, y) becomes Where(c, y, x),
    Max(Max(x, a), b) becomes Max(x, max(a, b)).

        x -> Div(255) -> Sub(m) -> Div(s) -> y
        x -> Mul(1 / (255 * s)) -> Add(-m / s) -> y
    """

    name = "merge-arithmetic"
    lossless = True
    near_miss_code = "MAR101"
    codes: ClassVar[Mapping[str, str]] = {
        "MAR101": "Constants of a chain of additions and multiplications are not merged, for the "
        "reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (SubtractNegated(), MergeChains(), ChooseTheOther(), FlattenExtremes())
