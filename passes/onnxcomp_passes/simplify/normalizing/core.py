"""Normalizations written apart: `d / sqrt(mean(d * d) + epsilon)` in all its spellings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import is_scalar, producer_of
from onnxcomp_passes.simplify.support.formulas import inner, number, operands, split_number
from onnxcomp_passes.simplify.support.reductions import reduction

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp_passes.simplify.support.reductions import Reduction


@dataclass(frozen=True)
class Core:
    """A value over the root of the mean of its squares.

    Attributes:
        value: What is divided: x, or x without its mean.
        mean: Along which axes squares are averaged.
        epsilon: What is added below the root.
        centre: The mean that was taken off, None when there was none.
        root: The node that makes the root.
        factor: What the root's inverse was multiplied by before, None when nothing.
        spelled: Whether it reads as the runtime's own rewrites expect: Pow, Sqrt, Div.
    """

    value: ir.Value
    mean: Reduction
    epsilon: float
    centre: Reduction | None
    root: ir.Node
    factor: ir.Value | None
    spelled: bool

    @property
    def source(self) -> ir.Value:
        """What is normalized."""
        return self.value if self.centre is None else self.centre.source


def divides_by_root(node: ir.Node) -> bool:
    """Whether a Div or Mul has a root below it at all: asked before shapes are."""
    if node.op_type == "Div":
        return _root_below(node.inputs[1], inverted=False) is not None
    below = [value for value in node.inputs if _root_below(value, inverted=True) is not None]
    products = [inner(value, "Mul") for value in node.inputs]
    return bool(below) or any(
        _root_below(value, inverted=True) is not None
        for product in products
        if product is not None
        for value in product.inputs
    )


def core_of(node: ir.Node, shapes: ShapeMap) -> Core | None:
    """Returns what a Div or Mul normalizes, None when it does something else."""
    orders = operands(node)[:1] if node.op_type == "Div" else operands(node)
    for value, other in orders:
        if value is None:
            continue
        inverse, factor = other, None
        product = inner(other, "Mul") if node.op_type == "Mul" else None
        for one, rest in operands(product) if product is not None else ():
            if _root_below(one, inverted=True) is not None:
                inverse, factor = one, rest
        root = _root_below(inverse, inverted=node.op_type == "Mul")
        found = None if root is None else _of_root(value, root, factor, node, shapes)
        if found is not None:
            return found
    return None


def _root_below(value: ir.Value | None, *, inverted: bool) -> ir.Node | None:
    """Returns the Sqrt that a value is, or is the inverse of."""
    if not inverted:
        return inner(value, "Sqrt")
    maker = inner(value, "Reciprocal", "Div")
    if maker is None or (maker.op_type == "Div" and not is_scalar(maker.inputs[0], 1.0)):
        return None
    return inner(maker.inputs[-1], "Sqrt")


def _of_root(
    value: ir.Value, root: ir.Node, factor: ir.Value | None, node: ir.Node, shapes: ShapeMap
) -> Core | None:
    total = split_number(inner(root.inputs[0], "Add"), "Add")
    mean = None if total is None else reduction(total[0], "ReduceMean", shapes)
    if total is None or mean is None or total[1] <= 0:
        return None
    square = inner(mean.source, "Pow", "Mul")
    if square is None or not _is_square(square, value):
        return None
    if shapes.dtype(value) not in {ir.DataType.FLOAT, None}:
        return None
    spelled = square.op_type == "Pow" and node.op_type == "Div" and factor is None
    return Core(value, mean, total[1], _centre(value, mean, shapes), root, factor, spelled)


def _is_square(node: ir.Node, base: ir.Value) -> bool:
    if node.inputs[0] is not base:
        return False
    if node.op_type == "Mul":
        return node.inputs[1] is base
    return number(node.inputs[1]) == 2.0


def _centre(value: ir.Value, mean: Reduction, shapes: ShapeMap) -> Reduction | None:
    """Returns the mean that was taken off a value along the same axes."""
    difference = producer_of(value, "Sub")
    if difference is None or value.is_graph_output() or len(value.uses()) > 3:
        return None
    found = reduction(difference.inputs[1], "ReduceMean", shapes)
    if found is None or found.source is not difference.inputs[0] or found.axes != mean.axes:
        return None
    return found
