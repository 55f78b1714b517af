"""Chains of operators that only move elements, made one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, has_reference_attribute, input_at, integers, producer_of
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import bypass, rewire, shapes_of, sweep
from onnxcomp_passes.simplify.support.dims import list_of, normalized, permutation

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit

_ACCURATE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def only_reads(node: ir.Node, maker: ir.Node | None) -> bool:
    """Whether nobody but a node reads what another one makes."""
    return maker is not None and only_reader(maker.outputs[0]) is node


class MergeTransposes:
    """Transpose(Transpose(x)) is one Transpose, or none."""

    name = "transposes merged"
    ops = frozenset({"Transpose"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[int, ...]] | Miss:
        """Finds the order of both together."""
        inner = producer_of(node.inputs[0], "Transpose")
        if inner is None or has_reference_attribute(node) or has_reference_attribute(inner):
            return NOTHING
        rank = shapes_of(facts).rank(inner.inputs[0])
        for known in (permutation(node, None), permutation(inner, None)):
            rank = len(known) if known is not None else rank
        first, second = permutation(inner, rank), permutation(node, rank)
        if first is None or second is None or len(first) != len(second):
            return NOTHING
        return Match(node, tuple(first[axis] for axis in second))

    def apply(self, match: Match[tuple[int, ...]], edit: Edit) -> None:
        """Rewires past the inner one."""
        node, order = match.node, match.found
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        source = inner.inputs[0]
        assert source is not None
        if order == tuple(range(len(order))):
            bypass(edit, node, source)
            return
        edit.set_attribute(node, "perm", list(order))
        rewire(edit, node, 0, source)


class MergeReshapes:
    """A Reshape, Flatten, Squeeze or Unsqueeze of another one is one Reshape.

    The shape it ends in must be known but for one dimension. Only where the first one goes away.
    """

    name = "reshapes merged"
    ops = frozenset(_VIEWS)

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the shape to end in."""
        inner = producer_of(node.inputs[0], *_VIEWS)
        if inner is None or not only_reads(node, inner) or has_reference_attribute(node):
            return NOTHING
        target = absolute_target(node) or known_target(node, facts)
        return _open_dimensions(node, facts) if target is None else Match(node, target)

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Rewires past the inner one and turns the outer one into a Reshape."""
        node, target = match.node, match.found
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        old_shape = input_at(node, 1)
        if node.op_type != "Reshape" or integers(old_shape) != target:
            assert node.graph is not None
            name = f"{node.outputs[0].name}_shape"
            shape = edit.initializer(np.array(target, np.int64), name=name, graph=node.graph)
            edit.set_operator(node, "Reshape")
            for attribute_name in ("axes", "axis", "allowzero"):
                edit.set_attribute(node, attribute_name, None)
            edit.set_input(node, 1, shape)
            sweep(edit, old_shape)
        rewire(edit, node, 0, inner.inputs[0])


def _open_dimensions(node: ir.Node, facts: Facts) -> Miss:
    """Says so where only the number of dimensions that differ between runs is in the way."""
    shape = shapes_of(facts).shape(node.outputs[0]) or ()
    count = sum(not isinstance(dim, int) for dim in shape)
    if count < 2:
        return NOTHING
    hint = "--batch and --input-shape fix open dimensions"
    return Miss(f"{count} dimensions of its result are open", near=True, hint=hint)


def absolute_target(node: ir.Node) -> list[int] | None:
    """The wanted shape of a Reshape when it does not depend on the shape it starts from."""
    if node.op_type != "Reshape":
        return None
    target = integers(input_at(node, 1))
    # An allowzero that matters is rare and needs the attribute to stay.
    return target if target and 0 not in target else None


def known_target(node: ir.Node, facts: Facts) -> list[int] | None:
    """The shape of a value with at most one open dimension, as a Reshape wants it."""
    shape = shapes_of(facts).shape(node.outputs[0])
    if not shape:
        return None
    target = [dim if isinstance(dim, int) else -1 for dim in shape]
    if 0 in target or target.count(-1) > 1:
        return None
    return target


class MergeUnsqueezes:
    """Unsqueeze(Unsqueeze(x)) with axes counted from the front is one Unsqueeze.

    Squeeze(Squeeze(x)) likewise.
    """

    name = "squeezes merged"
    ops = frozenset({"Unsqueeze", "Squeeze"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the axes of both together."""
        inner = producer_of(node.inputs[0], node.op_type)
        if inner is None or not only_reads(node, inner):
            return NOTHING
        rank = shapes_of(facts).rank(inner.inputs[0])
        first, second = list_of(inner, "axes", 1), list_of(node, "axes", 1)
        if not first or not second:
            return NOTHING
        if node.op_type == "Unsqueeze":
            axes = _inserted(first, second, rank)
        else:
            axes = _inserted(second, first, None if rank is None else rank - len(first + second))
        return NOTHING if axes is None else Match(node, axes)

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Rewires past the inner one with all axes."""
        node, axes = match.node, match.found
        inner = node.inputs[0].producer() if node.inputs[0] is not None else None
        assert inner is not None
        assert node.graph is not None
        if "axes" in node.attributes:
            edit.set_attribute(node, "axes", axes)
        else:
            array = np.array(axes, np.int64)
            name = f"{node.outputs[0].name}_axes"
            made = edit.initializer(array, name=name, graph=node.graph)
            rewire(edit, node, 1, made)
        rewire(edit, node, 0, inner.inputs[0])


def _inserted(first: list[int], second: list[int], rank: int | None) -> list[int] | None:
    """Axes in the final shape of dimensions inserted in two steps into a value of a rank."""
    middle = None if rank is None else rank + len(first)
    final = None if middle is None else middle + len(second)
    early, late = normalized(first, middle), normalized(second, final)
    if early is None or late is None:
        return None
    axes = set(late)
    for axis in sorted(early):
        # The axis counts only what is not inserted later.
        place, left = -1, axis + 1
        while left:
            place += 1
            left -= place not in set(late)
        axes.add(place)
    return sorted(axes)


class FlattenConcats:
    """Concat(Concat(a, b), c) along one axis is Concat(a, b, c)."""

    name = "concats merged"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[ir.Value | None]] | Miss:
        """Finds an inner Concat along the same axis that nobody else reads."""
        del facts
        axis, inputs = attribute(node, "axis", 0), list[ir.Value | None]()
        for value in node.inputs:
            inner = producer_of(value, "Concat")
            if (
                inner is not None
                and only_reads(node, inner)
                and inner.graph is node.graph
                and attribute(inner, "axis", 0) == axis
            ):
                inputs.extend(inner.inputs)
            else:
                inputs.append(value)
        return Match(node, inputs) if len(inputs) != len(node.inputs) else NOTHING

    def apply(self, match: Match[list[ir.Value | None]], edit: Edit) -> None:
        """Reads everything directly."""
        node = match.node
        old = list(node.inputs)
        for index, value in enumerate(match.found):
            edit.set_input(node, index, value)
        sweep(edit, *old)


class RejoinSplit:
    """Concat of all outputs of a Split in order along its axis is what was split."""

    name = "splits rejoined"
    ops = frozenset({"Concat"})

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds the Split."""
        split = producer_of(node.inputs[0], "Split")
        if split is None or list(split.outputs) != list(node.inputs):
            return NOTHING
        if has_reference_attribute(split) or has_reference_attribute(node):
            return NOTHING
        rank = shapes_of(facts).rank(split.inputs[0])
        axes = [attribute(split, "axis", 0), attribute(node, "axis", 0)]
        found = normalized(axes, rank)
        source = split.inputs[0]
        same = axes[0] == axes[1] or (found is not None and found[0] == found[1])
        return Match(node, source) if same and source is not None else NOTHING

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Skips both."""
        bypass(edit, match.node, match.found)


class MergeReductions:
    """ReduceMean(ReduceMean(x)) over other axes is one ReduceMean; Sum, Max and Min likewise.

    Each group has as many elements as the others, so that a mean of means is the mean. Means and
    sums are rounded at other places then: integers and half precision are left alone.
    """

    name = "reductions merged"
    ops = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"})

    def match(self, node: ir.Node, facts: Facts) -> Match[list[int]] | Miss:
        """Finds the axes of both together."""
        inner = producer_of(node.inputs[0], node.op_type)
        if inner is None or not only_reads(node, inner):
            return NOTHING
        shapes = shapes_of(facts)
        rank, dtype = shapes.rank(inner.inputs[0]), shapes.dtype(inner.inputs[0])
        first, second = list_of(inner, "axes", 1), list_of(node, "axes", 1)
        keeps = attribute(node, "keepdims", 1)
        if keeps not in (0, 1) or keeps != attribute(inner, "keepdims", 1):
            return NOTHING
        exact = node.op_type in {"ReduceMax", "ReduceMin"}
        if rank is None or not first or not second or not (exact or dtype in _ACCURATE):
            return NOTHING
        if keeps:
            axes = normalized([*first, *second], rank)
            return NOTHING if axes is None else Match(node, sorted(set(axes)))
        axes = _inserted(second, first, rank - len(first) - len(second))
        return NOTHING if axes is None else Match(node, axes)

    def apply(self, match: Match[list[int]], edit: Edit) -> None:
        """Reduces once."""
        MergeUnsqueezes().apply(match, edit)
