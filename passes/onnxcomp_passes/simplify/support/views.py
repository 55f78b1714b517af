"""Reshapes and Transposes around each other and around arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import (
    array,
    has_reference_attribute,
    input_at,
    integers,
    is_training,
    producer_of,
    standard_op,
)
from onnxcomp.rules import NOTHING, Match
from onnxcomp_passes.simplify.support.base import is_used, shapes_of, sweep
from onnxcomp_passes.simplify.support.dims import list_of, permutation
from onnxcomp_passes.simplify.support.layouts import absolute_target, known_target, only_reads
from onnxcomp_passes.simplify.transposing.operators import UNARY
from onnxcomp_passes.simplify.transposing.orders import identity, restricted
from onnxcomp_passes.simplify.transposing.reshapes import groups_of

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir
    from onnxcomp.rules import Miss
    from onnxcomp.signature import Shape

VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow")
_DEEPEST = 16


@dataclass(frozen=True)
class Between:
    """What stands between two views.

    Attributes:
        source: What the first view reads.
        chain: Operators that work on each element alone, the first one first.
        places: Which input of each is the element's.
        target: The shape that the second view makes.
        shapes: Where to note the shapes of what is made.
    """

    source: ir.Value
    chain: list[ir.Node]
    places: list[int]
    target: list[int]
    shapes: ShapeMap


def _element_input(node: ir.Node) -> int | None:
    """Which input an operator works on element by element, whatever the shape; None for no such."""
    operator = standard_op(node)
    if operator in UNARY:
        aside = is_training(node) or any(is_used(value) for value in node.outputs[1:])
        return None if aside or has_reference_attribute(node) else 0
    if operator in _ARITHMETIC and len(node.inputs) == 2:
        for index, value in enumerate(node.inputs):
            found = array(value, limit=1)
            if found is not None and found.ndim == 0:
                return 1 - index
    return None


class MoveViews:
    """A Reshape, arithmetic on each element, and another Reshape need one Reshape."""

    name = "reshapes merged across arithmetic"
    ops = frozenset(VIEWS)

    def match(self, node: ir.Node, facts: Facts) -> Match[Between] | Miss:
        """Finds the other view and what stands between."""
        chain: list[ir.Node] = []
        places: list[int] = []
        reader, value = node, node.inputs[0]
        while value is not None and len(chain) < _DEEPEST:
            maker = value.producer()
            if maker is None or not only_reads(reader, maker) or maker.graph is not node.graph:
                return NOTHING
            if standard_op(maker) in VIEWS:
                break
            place = _element_input(maker)
            if place is None:
                return NOTHING
            chain.append(maker)
            places.append(place)
            reader, value = maker, maker.inputs[place]
        view = producer_of(value, *VIEWS)
        if not chain or view is None or has_reference_attribute(node):
            return NOTHING
        target = absolute_target(node) or known_target(node, facts)
        source = view.inputs[0]
        shapes = shapes_of(facts)
        if target is None or source is None or shapes.shape(source) is None:
            return NOTHING
        return Match(node, Between(source, chain[::-1], places[::-1], target, shapes))

    def apply(self, match: Match[Between], edit: Edit) -> None:
        """Does the arithmetic in the first shape."""
        node, found = match.node, match.found
        value, old = found.source, node.inputs[0]
        for step, place in zip(found.chain, found.places, strict=True):
            inputs = list(step.inputs)
            inputs[place] = value
            made = edit.insert(
                step.op_type,
                inputs,
                before=step,
                attributes=step.attributes,
                domain=step.domain,
                outputs=[item.name or "" for item in step.outputs],
                name=step.name,
            )
            value = made.outputs[0]
            _describe(edit, found.shapes, value, step.outputs[0], found.shapes.shape(found.source))
        set_reshape(edit, node, found.target)
        edit.set_input(node, 0, value)
        sweep(edit, old)


def _describe(
    edit: Edit, shapes: ShapeMap, value: ir.Value, like: ir.Value, shape: Shape | None
) -> None:
    dtype = shapes.dtype(like)
    shapes.record(value, dtype, shape)
    if dtype is not None:
        known = shape and [dim if isinstance(dim, int) else None for dim in shape]
        edit.set_type(value, dtype, known)


def set_reshape(edit: Edit, node: ir.Node, target: list[int]) -> None:
    """Turns a node that moves its first input's elements into a Reshape."""
    assert node.graph is not None
    if node.op_type == "Reshape" and integers(input_at(node, 1)) == target:
        return
    old = list(node.inputs[1:])
    name = f"{node.outputs[0].name}_shape"
    shape = edit.initializer(np.array(target, np.int64), name=name, graph=node.graph)
    edit.set_operator(node, "Reshape")
    for attribute_name in [*node.attributes]:
        edit.set_attribute(node, attribute_name, None)
    edit.set_input(node, 1, shape)
    sweep(edit, *old)


class ThinTransposes:
    """A Transpose that moves nothing but dimensions of one element is a Reshape."""

    name = "transposes made reshapes"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the shape to end in."""
        shape = shapes_of(facts).shape(node.inputs[0])
        order = permutation(node, None if shape is None else len(shape))
        if shape is None or order is None or len(order) != len(shape):
            return NOTHING
        ones = {axis for axis, dim in enumerate(shape) if dim == 1}
        left = restricted(order, ones)
        target = [dim if isinstance(dim, int) else -1 for dim in (shape[axis] for axis in order)]
        if left != identity(len(left)) or target.count(-1) > 1 or 0 in target or not ones:
            return NOTHING
        return Match(node, target)

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Reshapes."""
        set_reshape(edit, match.node, match.found)


@dataclass(frozen=True)
class Joined:
    """What two Transposes with a Reshape between them are.

    Attributes:
        source: What the first one reads.
        order: The one Transpose.
        target: The one Reshape.
        reshape_first: Whether it stands before the Transpose.
    """

    source: ir.Value
    order: list[int]
    target: list[int]
    reshape_first: bool


class JoinTransposes:
    """Two Transposes with a Reshape between that splits dimensions, or merges some, are one."""

    name = "transposes merged across a reshape"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Joined] | Miss:
        """Finds the Reshape and the other Transpose."""
        reshape = producer_of(node.inputs[0], "Reshape")
        first = None if reshape is None else producer_of(reshape.inputs[0], "Transpose")
        if reshape is None or first is None or not only_reads(node, reshape):
            return NOTHING
        if not only_reads(reshape, first) or first.graph is not node.graph:
            return NOTHING
        shapes = shapes_of(facts)
        before, after = shapes.shape(reshape.inputs[0]), shapes.shape(reshape.outputs[0])
        source = first.inputs[0]
        if before is None or after is None or source is None or 0 in before:
            return NOTHING
        orders = permutation(first, len(before)), permutation(node, len(after))
        groups = groups_of(before, after)
        if groups is None or orders[0] is None or orders[1] is None:
            return NOTHING
        joined = _joined(source, groups, (orders[0], orders[1]), after)
        return NOTHING if joined is None else Match(node, joined)

    def apply(self, match: Match[Joined], edit: Edit) -> None:
        """Puts one of each in their place."""
        node, found = match.node, match.found
        old, name = node.inputs[0], f"{node.outputs[0].name}"
        assert node.graph is not None
        if found.reshape_first:
            shape = edit.initializer(
                np.array(found.target, np.int64), name=f"{name}_shape", graph=node.graph
            )
            made = edit.insert(
                "Reshape", [found.source, shape], before=node, outputs=[f"{name}_reshaped"]
            )
            edit.set_attribute(node, "perm", found.order)
        else:
            made = edit.insert(
                "Transpose",
                [found.source],
                before=node,
                outputs=[f"{name}_transposed"],
                attributes={"perm": found.order},
            )
            set_reshape(edit, node, found.target)
        if node.outputs[0].dtype is not None:
            edit.set_type(made.outputs[0], node.outputs[0].dtype)
        edit.set_input(node, 0, made.outputs[0])
        sweep(edit, old)


def _joined(
    source: ir.Value,
    groups: list[tuple[list[int], list[int]]],
    orders: tuple[tuple[int, ...], tuple[int, ...]],
    after: Shape,
) -> Joined | None:
    first, second = orders
    if all(len(ins) == 1 for ins, _ in groups):
        # Dimensions in the order of the source, each split where it stands.
        split = [outs for _, outs in sorted(groups, key=lambda group: first[group[0][0]])]
        places = {axis: place for place, axis in enumerate(axis for outs in split for axis in outs)}
        order, shown = [places[axis] for axis in second], [axis for outs in split for axis in outs]
    elif all(len(outs) == 1 for _, outs in groups):
        merged = {outs[0]: ins for ins, outs in groups}
        order = [first[axis] for out in second for axis in merged[out]]
        shown = list(second)
    else:
        return None
    dims = [after[axis] for axis in shown]
    target = [dim if isinstance(dim, int) else -1 for dim in dims]
    if target.count(-1) > 1 or 0 in target:
        return None
    return Joined(source, order, target, all(len(ins) == 1 for ins, _ in groups))


class SingleReductions:
    """A reduction over dimensions of one element takes the maximum, or the mean, of one number."""

    name = "reductions of single elements removed"
    ops = frozenset({"ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the shape of the result."""
        shape, axes = shapes_of(facts).shape(node.inputs[0]), list_of(node, "axes", 1)
        if shape is None or not axes or has_reference_attribute(node):
            return NOTHING
        if any(not -len(shape) <= axis < len(shape) or shape[axis] != 1 for axis in axes):
            return NOTHING
        target = known_target(node, facts)
        return NOTHING if target is None else Match(node, target)

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Reshapes, if there is anything to do at all."""
        set_reshape(edit, match.node, match.found)
