"""Channels that hold the same number whatever the model is fed: what a mask leaves behind."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import is_op, is_training, standard_op, subgraphs
from onnxcomp_passes.prune.support.constant_rules import RULES, is_known_type
from onnxcomp_passes.prune.support.relations import Relations
from onnxcomp_passes.prune.support.repetition import repeat
from onnxcomp_passes.prune.support.stored import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp_passes.prune.support.relations import Carried


Array = np.ndarray[Any, Any]
# Longer axes are signals, not channels.
LONGEST = 1 << 14
_EXACT = 2.0**53
# What arithmetic in 64 bits cannot see: sums that overflow in the model's own type.
_LARGEST = {
    kind: float(np.finfo(kind.numpy()).max) for kind in (ir.DataType.FLOAT16, ir.DataType.FLOAT)
}


class Constancy:
    """For positions of axes, the number that they always hold.

    Inputs are taken to be finite: nothing times zero is anything but zero.

    Args:
        model: The model.
        shapes: Its shapes.
    """

    def __init__(self, model: Model, shapes: ShapeMap) -> None:
        self.shapes = shapes
        self.opset = model.opset
        self._found: dict[ir.Value, dict[int, Array]] = defaultdict(dict)
        self._uniform: dict[tuple[ir.Value, int], Array] = {}
        self.sweep(model.graph)

    def sweep(self, graph: ir.Graph) -> None:
        """Looks at nodes in order, at bodies before the node that they belong to."""
        for node in graph:
            if is_op(node, "Loop", "Scan"):
                repeat(self, node)
                continue
            for body in subgraphs(node):
                self.sweep(body)
            rule = RULES.get(standard_op(node) or "")
            if rule is not None and is_known_type(self.shapes, node) and not is_training(node):
                rule(self, node)

    def forget(self, graph: ir.Graph) -> None:
        """Forgets what is known of the values of a body, and of those within."""
        for value in graph.inputs:
            self._found.pop(value, None)
        for node in graph:
            for value in node.outputs:
                self._found.pop(value, None)
            for body in subgraphs(node):
                self.forget(body)

    def of(self, value: ir.Value, axis: int) -> Array:
        """Returns the number at each position of an axis, NaN where it may vary."""
        found = self._found.get(value, {}).get(axis)
        if found is not None:
            return found
        weight = weight_of(value)
        if weight is not None:
            key = (value, axis)
            if key not in self._uniform:
                self._uniform[key] = _uniform(weight, axis)
            return self._uniform[key]
        shape = self.shapes.shape(value) or ()
        size = shape[axis] if axis < len(shape) else None
        return np.full(size if isinstance(size, int) else 0, np.nan)

    def axes(self, value: ir.Value) -> Iterable[int]:
        """Returns the axes of a value that may be channels."""
        for axis, size in enumerate(self.shapes.shape(value) or ()):
            if isinstance(size, int) and 0 < size <= LONGEST:
                yield axis

    def store(self, value: ir.Value, axis: int, numbers: Array) -> None:
        """Notes what is known of an axis."""
        limit = _LARGEST.get(self.shapes.dtype(value) or ir.DataType.DOUBLE, np.inf)
        finite = np.where(np.isfinite(numbers) & (np.abs(numbers) <= limit), numbers, np.nan)
        if not np.isnan(finite).all():
            self._found[value][axis] = finite

    def is_known(self, value: ir.Value | None) -> bool:
        """Whether something is known of a value that is not a constant."""
        return value is not None and value in self._found

    def anything(self, values: Iterable[ir.Value | None]) -> bool:
        """Whether something is known of one of these values."""
        return any(map(self.is_known, values))

    def whole(self) -> Iterable[tuple[ir.Value, int, Array]]:
        """Yields values of which every number is known: an axis, and the number at each position."""
        for value, axes in self._found.items():
            for axis, numbers in axes.items():
                if not np.isnan(numbers).any():
                    yield value, axis, numbers
                    break

    def move(
        self, node: ir.Node, sources: Iterable[ir.Value], passes: Callable[[float], bool]
    ) -> None:
        """Hands on what slices hold from the operands to the results."""
        operands = list(sources)
        if not self.anything(operands) and not _has_tables(operands):
            return
        relations = Relations(node, self.opset, self.shapes)
        for output in node.outputs:
            for axis in self.axes(output) if output.name else ():
                carried = [c for c in relations.carried(output, axis) if c.value in operands]
                if carried:
                    numbers = self._carry(carried, every=node.op_type == "Concat")
                    self.store(output, axis, np.where(_passing(numbers, passes), numbers, np.nan))

    def _carry(self, carried: list[Carried], *, every: bool) -> Array:
        """Returns what all slices of a position hold, as far as they hold the same number.

        Args:
            carried: What each position is made of.
            every: Whether it is made of all of these side by side; else each alone says enough.
        """
        merged = np.full(len(carried[0].rows), np.nan)
        filled = np.zeros(len(merged), bool)
        for found in carried:
            held = np.append(self.of(found.value, found.axis), np.nan)[found.rows]
            numbers = np.where((held == held[:, :1]).all(1), held[:, 0], np.nan)
            given = (found.rows >= 0).all(1)
            fresh = given & ~filled if every else np.isnan(merged)
            agrees = ~given | (merged == numbers) if every else np.ones(len(merged), bool)
            merged = np.where(fresh, numbers, np.where(agrees, merged, np.nan))
            filled |= given
        return merged


def _has_tables(values: list[ir.Value]) -> bool:
    return any(weight_of(value) is not None for value in values)


def _passing(numbers: Array, passes: Callable[[float], bool]) -> Array:
    return np.asarray([passes(number) for number in numbers.tolist()], bool)


def _uniform(tensor: Array, axis: int) -> Array:
    """Returns the number that all elements at a position of an axis share, NaN where they differ."""
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    if tensor.dtype.kind not in "fbiu" or not rows.shape[1]:
        return np.full(tensor.shape[axis], np.nan)
    first = rows[:, 0].astype(np.float64)
    # Larger integers are not told apart from their neighbours.
    exact = rows.dtype.kind == "f" or np.abs(first) < _EXACT
    return np.where((rows == rows[:, :1]).all(1) & exact, first, np.nan)
