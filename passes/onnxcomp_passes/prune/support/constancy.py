"""Channels that hold the same number whatever the model is fed: what a mask leaves behind."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import constant, standard_op, subgraphs
from onnxcomp_passes.prune.support.constant_rules import FLOATS, RULES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from onnxcomp.analysis.channels import ChannelMap
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model, ir


Array = np.ndarray[Any, Any]


class Constancy:
    """For positions of axes that are channels, the number that they always hold.

    Inputs are taken to be finite: nothing times zero is anything but zero.

    Args:
        model: The model.
        channels: Its channels.
        shapes: Its shapes.
    """

    def __init__(self, model: Model, channels: ChannelMap, shapes: ShapeMap) -> None:
        self.shapes = shapes
        self.opset = model.opset
        self._units: dict[ir.Value, dict[int, Array]] = defaultdict(dict)
        self._found: dict[ir.Value, dict[int, Array]] = defaultdict(dict)
        self._number_units(channels)
        self._sweep(model.graph)

    def _sweep(self, graph: ir.Graph) -> None:
        """Looks at nodes in order, at bodies before the node that they belong to."""
        for node in graph:
            for body in subgraphs(node):
                self._sweep(body)
            rule = RULES.get(standard_op(node) or "")
            if rule is not None and self.shapes.dtype(node.outputs[0]) in FLOATS:
                rule(self, node)

    def of(self, value: ir.Value, axis: int) -> Array:
        """Returns the number at each position of an axis, NaN where it may vary."""
        tensor = constant(value)
        if tensor is not None:
            return _uniform(tensor.numpy(), axis)
        found = self._found.get(value, {}).get(axis)
        shape = self.shapes.shape(value) or ()
        size = shape[axis] if axis < len(shape) else None
        return np.full(size if isinstance(size, int) else 0, np.nan) if found is None else found

    def axes(self, value: ir.Value) -> Iterable[int]:
        """Returns the axes of a value that are channels."""
        return self._units.get(value, {})

    def store(self, value: ir.Value, axis: int, numbers: Array) -> None:
        """Notes what is known of an axis."""
        if not np.isnan(numbers).all():
            self._found[value][axis] = numbers

    def anything(self, values: Iterable[ir.Value | None]) -> bool:
        """Whether something is known of one of these values."""
        return any(value is not None and value in self._found for value in values)

    def move(
        self, node: ir.Node, sources: Iterable[ir.Value], passes: Callable[[float], bool]
    ) -> None:
        """Hands on what a unit holds from the operands to the results."""
        held: dict[int, set[float]] = defaultdict(set)
        for value in sources:
            for axis, units in self._units.get(value, {}).items():
                for unit, number in zip(units.tolist(), self.of(value, axis).tolist(), strict=True):
                    held[unit].add(number)
        known = {
            unit: numbers.pop()
            for unit, numbers in held.items()
            if unit >= 0 and len(numbers) == 1 and all(map(passes, numbers))
        }
        for output in node.outputs:
            for axis, units in self._units.get(output, {}).items():
                numbers = [known.get(unit, np.nan) for unit in units.tolist()]
                self.store(output, axis, np.asarray(numbers))

    def _number_units(self, channels: ChannelMap) -> None:
        count = 0
        for group in channels.groups:
            for member in group.members:
                shape = self.shapes.shape(member.value) or ()
                size = shape[member.axis]
                units = self._units[member.value].setdefault(
                    member.axis, np.full(size if isinstance(size, int) else 0, -1)
                )
                units[member.positions] = count + np.arange(group.units)[:, None]
            count += group.units


def _uniform(tensor: Array, axis: int) -> Array:
    """Returns the number that all elements at a position of an axis share, NaN where they differ."""
    rows = np.moveaxis(tensor, axis, 0).reshape(tensor.shape[axis], -1)
    if tensor.dtype.kind != "f" or not rows.shape[1]:
        return np.full(tensor.shape[axis], np.nan)
    return np.where((rows == rows[:, :1]).all(1), rows[:, 0], np.nan).astype(np.float64)
