"""Means, sums and maxima along axes, read as one thing however the kept axis came about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, has_reference_attribute, input_at, integers
from onnxcomp_passes.simplify.support.dims import list_of
from onnxcomp_passes.simplify.support.formulas import inner

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir


@dataclass(frozen=True)
class Reduction:
    """A reduction that keeps its axes, which are counted from the front.

    Attributes:
        source: What is reduced.
        axes: Along which axes, in order.
        rank: Number of dimensions of the source.
    """

    source: ir.Value
    axes: tuple[int, ...]
    rank: int

    @property
    def last(self) -> int | None:
        """The first axis counted from the back, when all axes from it on are reduced."""
        count = len(self.axes)
        return -count if self.axes == tuple(range(self.rank - count, self.rank)) else None


def reduction(value: ir.Value | None, operator: str, shapes: ShapeMap) -> Reduction | None:
    """Returns a value that one node reads as a reduction that keeps its axes.

    An Unsqueeze or Reshape that puts dropped axes back counts as keeping them.
    """
    node = inner(value, operator, "Reshape", "Unsqueeze")
    if node is None or node.op_type == operator:
        return None if node is None else _direct(node, shapes, keeps=1)
    maker = inner(node.inputs[0], operator)
    found = None if maker is None else _direct(maker, shapes, keeps=0)
    return found if found is not None and _puts_back(node, found, shapes) else None


def _direct(node: ir.Node, shapes: ShapeMap, *, keeps: int) -> Reduction | None:
    axes, source = list_of(node, "axes", 1), node.inputs[0]
    rank = shapes.rank(source)
    if not axes or source is None or rank is None or has_reference_attribute(node):
        return None
    if attribute(node, "keepdims", 1) != keeps or not all(-rank <= axis < rank for axis in axes):
        return None
    return Reduction(source, tuple(sorted({axis % rank for axis in axes})), rank)


def _puts_back(node: ir.Node, found: Reduction, shapes: ShapeMap) -> bool:
    if node.op_type == "Unsqueeze":
        axes = list_of(node, "axes", 1)
        return axes is not None and sorted(axis % found.rank for axis in axes) == list(found.axes)
    target, shape = integers(input_at(node, 1)), shapes.shape(found.source)
    if target is None or shape is None or len(target) != found.rank:
        return False
    if attribute(node, "allowzero", 0) != 0 and 0 in target:
        return False
    open_places = 0
    for axis, (wanted, dim) in enumerate(zip(target, shape, strict=True)):
        kept: int | str | None = 1 if axis in found.axes else dim
        if wanted == -1:
            open_places += 1
        elif wanted != kept or wanted == 0:
            return False
    # With all other dimensions equal and not 0, the open one is what is left.
    return open_places <= 1
