"""Moves Transposes through other operators, to where the fewest elements are turned."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import constant, is_op
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.support.base import OLDEST_OPSET, OpsetFloor, shapes_of
from onnxcomp_passes.simplify.transposing.orders import identity, inverse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp_passes.simplify.transposing.orders import Order
    from onnxcomp_passes.simplify.transposing.regions import Region

# Sizes that an unknown dimension may have. What is done must pay for each of them.
_TYPICAL = 32
_EXTREMES = (1, 1 << 12)
# Every round turns fewer elements than the one before; no model needs as many.
_MOST_ROUNDS = 8


class PushTransposes(Pass):
    """Moves Transposes through other operators, to where the fewest elements are turned.

    Models that were exported from a framework which keeps channels last are full of Transposes
    around each convolution. Between them stand operators that can work in either order:
    arithmetic, activations, Concat, Split, Slice, Pad, reductions, Resize, Squeeze, Reshape of
    whole dimensions, QuantizeLinear and so on. For all tensors that Transposes connect, the cheapest
    choice of order is found at once, as a minimum cut, so that pairs cancel however far they are
    apart. It is made only if fewer elements are turned by no more nodes, or as many where arithmetic
    or an activation then stands next to the convolution that it can become a part of.

    A Transpose before a Flatten and a matrix product goes into the rows of the constant.

        x -> Conv -> Transpose -> Relu -> Transpose -> Conv -> y
        x -> Conv -> Relu -> Conv -> y
    """

    name = "push-transposes"
    lossless = True
    # Nothing that stays takes another shape, and shapes of what is new are noted.
    preserves = frozenset({Shapes, OpsetFloor})

    @override
    def run(self, ctx: Context) -> None:
        graphs = [
            graph
            for graph in ctx.model.graphs()
            if any(node.op_type == "Transpose" for node in graph)
        ]
        if not graphs or ctx.facts.get(OpsetFloor()) < OLDEST_OPSET:
            return
        shapes = shapes_of(ctx.facts)
        for graph in graphs:
            for _ in range(_MOST_ROUNDS):
                if not _improve(graph, shapes, ctx):
                    break


def _improve(graph: ir.Graph, shapes: ShapeMap, ctx: Context) -> bool:
    from onnxcomp_passes.simplify.transposing import regions

    changed = False
    for order in _orders(graph, shapes):
        seen: set[ir.Node] = set()
        for node in [node for node in graph if is_op(node, "Transpose")]:
            if node.graph is None or node in seen or constant(node.inputs[0]) is not None:
                continue
            if regions.order_of(node, shapes) not in (order, inverse(order)):
                continue
            own = regions.order_of(node, shapes)
            assert own is not None
            region = regions.grow(node, own, shapes)
            seen.update(region.turns)
            changed |= _settle(region, shapes, ctx)
    return changed


def _orders(graph: ir.Graph, shapes: ShapeMap) -> Iterator[Order]:
    """Yields each order that a Transpose of a scope has, once for it and the one that undoes it."""
    from onnxcomp_passes.simplify.transposing import regions

    seen: set[Order] = set()
    for node in [node for node in graph if is_op(node, "Transpose")]:
        order = regions.order_of(node, shapes)
        if order is None or order in seen or order == identity(len(order)):
            continue
        seen |= {order, inverse(order)}
        yield order


def _settle(region: Region, shapes: ShapeMap, ctx: Context) -> bool:
    """Changes a region if fewer elements are turned then, whatever size is not known."""
    from onnxcomp_passes.simplify.transposing import regions
    from onnxcomp_passes.simplify.transposing.rewriting import Rewriting

    if not region.moves or not region.turns:
        return False
    found = regions.tensors(region)
    chosen = regions.moved(region, found, lambda value: _weight(value, shapes, _TYPICAL))
    if not chosen and len(region.turns) < 2:
        return False
    for size in _EXTREMES:

        def weigh(value: ir.Value, size: int = size) -> float:
            return _weight(value, shapes, size)

        now = regions.cost_now(region, weigh)
        then = regions.cost_then(region, found, chosen, weigh)
        if not then.is_better(now):
            return False
    Rewriting(region, chosen, ctx.edit, shapes).run()
    ctx.edit.count("regions with fewer transposes")
    return True


def _weight(value: ir.Value, shapes: ShapeMap, unknown: int) -> float:
    """Elements of a tensor, where a dimension that is not known has a given size.

    Larger ones count for more, but not in proportion: of as many bytes as floats, bytes are turned.
    """
    shape, dtype = shapes.shape(value), shapes.dtype(value)
    width = 1 + (4 if dtype is None else dtype.itemsize) / 8
    if shape is None:
        return float(unknown**3) * width
    return max(1, prod(dim if isinstance(dim, int) else unknown for dim in shape)) * width
