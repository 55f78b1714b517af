"""Reshape, Flatten and Shape of a tensor whose dimensions take another order."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import (
    attribute,
    constant,
    has_reference_attribute,
    input_at,
    is_op,
    single_use,
)
from onnxcomp_passes.simplify.transposing.orders import (
    LARGEST_COPY,
    Move,
    Order,
    Place,
    extended,
    identity,
    inverse,
    restricted,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir
    from onnxcomp.signature import Shape

    Dims = Sequence[int | str | None]

# Dimensions before, and dimensions after, that hold the same elements.
Group = tuple[list[int], list[int]]


def reshape(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """A Reshape that splits or merges neighbours lets groups of dimensions change places."""
    if place.index or attribute(node, "allowzero", 0) != 0:
        return None
    before, after = shapes.shape(node.inputs[0]), shapes.shape(node.outputs[0])
    if before is None or after is None or constant(input_at(node, 1)) is None:
        return None
    return _flattened(node, place, shapes) or _regrouped(place, before, after)


def flatten(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """A Flatten before a matrix product, whose constant rows can change places."""
    return None if place.index else _flattened(node, place, shapes)


def shape_of(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """The sizes of a tensor are those of the turned one, in another order."""
    del shapes
    if not place.is_input or node.attributes:
        return None
    return Move({0: place.order}, permuted=inverse(place.order))


def _regrouped(place: Place, before: Shape, after: Shape) -> Move | None:
    if 0 in before or 0 in after:
        return None
    own, other = (before, after) if place.is_input else (after, before)
    # Dimensions of one element have no place of their own: they are left out, and put back.
    own_ones, other_ones = _ones(own), _ones(other)
    groups = groups_of(
        [own[axis] for axis in range(len(own)) if axis not in own_ones],
        [other[axis] for axis in range(len(other)) if axis not in other_ones],
    )
    if groups is None:
        return None
    blocks = _block_order([group[0] for group in groups], restricted(place.order, own_ones))
    if blocks is None:
        return None
    opposite = extended(tuple(axis for block in blocks for axis in groups[block][1]), other_ones)
    order_out = opposite if place.is_input else place.order
    numbers = [dim if isinstance(dim, int) else -1 for dim in (after[axis] for axis in order_out)]
    if numbers.count(-1) > 1:
        return None
    move = Move(constants={1: partial(np.array, numbers, np.int64)})
    asked, follows = (move.inputs, move.outputs) if place.is_input else (move.outputs, move.inputs)
    asked[0] = place.order
    if opposite != identity(len(opposite)):
        follows[0] = opposite
    return move


def _ones(shape: Shape) -> set[int]:
    return {axis for axis, dim in enumerate(shape) if dim == 1}


def _block_order(groups: Sequence[Sequence[int]], order: Order) -> list[int] | None:
    """Returns in which order whole groups come, None when an order tears one apart."""
    first = {group[0]: (number, group) for number, group in enumerate(groups)}
    blocks: list[int] = []
    place = 0
    while place < len(order):
        if order[place] not in first:
            return None
        number, group = first[order[place]]
        if list(order[place : place + len(group)]) != list(group):
            return None
        blocks.append(number)
        place += len(group)
    return blocks


def groups_of(before: Dims, after: Dims) -> list[Group] | None:
    """Returns the finest groups of neighbours that a reshape keeps apart."""
    front = _paired(before, after)
    rest_before = list(range(sum(len(pair[0]) for pair in front), len(before)))
    rest_after = list(range(sum(len(pair[1]) for pair in front), len(after)))
    if rest_before or rest_after:
        ends = _paired(
            [before[axis] for axis in reversed(rest_before)],
            [after[axis] for axis in reversed(rest_after)],
        )
        back: list[Group] = [
            (
                sorted(len(before) - 1 - axis for axis in one),
                sorted(len(after) - 1 - axis for axis in other),
            )
            for one, other in reversed(ends)
        ]
        open_before = rest_before[: len(rest_before) - sum(len(pair[0]) for pair in back)]
        open_after = rest_after[: len(rest_after) - sum(len(pair[1]) for pair in back)]
        if bool(open_before) is not bool(open_after):
            return None
        if open_before:
            # What is left holds the same elements, because all the rest does.
            front.append((open_before, open_after))
        front += back
    return front


def _paired(before: Dims, after: Dims) -> list[Group]:
    """Pairs dimensions from the front, as far as their sizes are known to be equal."""
    found: list[Group] = []
    one = other = 0
    while one < len(before) and other < len(after):
        if before[one] is not None and before[one] == after[other]:
            found.append(([one], [other]))
            one, other = one + 1, other + 1
            continue
        sizes = _equal_products(before[one:], after[other:])
        if sizes is None:
            break
        found.append((list(range(one, one + sizes[0])), list(range(other, other + sizes[1]))))
        one, other = one + sizes[0], other + sizes[1]
    return found


def _equal_products(before: Dims, after: Dims) -> tuple[int, int] | None:
    """Returns how many dimensions of both have the same product, as few as possible."""
    counts, products = [0, 0], [1, 1]
    sides = (before, after)
    while not (counts[0] and counts[1]) or products[0] != products[1]:
        behind = 0 if products[0] < products[1] or not counts[0] else 1
        if counts[behind] >= len(sides[behind]):
            return None
        size = sides[behind][counts[behind]]
        if not isinstance(size, int) or size < 1:
            return None
        counts[behind] += 1
        products[behind] *= size
    return counts[0], counts[1]


def _flattened(node: ir.Node, place: Place, shapes: ShapeMap) -> Move | None:
    """All dimensions but the first made one, for a product whose rows are constant."""
    order = place.order
    before, after = shapes.shape(node.inputs[0]), shapes.shape(node.outputs[0])
    if not place.is_input or order[0] != 0 or before is None or len(before) != len(order):
        return None
    sizes = [dim for dim in before[1:] if isinstance(dim, int)]
    if len(sizes) != len(before) - 1 or after is None or len(after) != 2:
        return None
    if after[1] != prod(sizes) or not after[1]:
        return None
    if node.op_type == "Flatten" and attribute(node, "axis", 1) not in (1, 1 - len(before)):
        return None
    move = _with_rows(node, order, sizes)
    if move is not None and node.op_type == "Reshape":
        # A zero in the target would copy another dimension now.
        move.constants[1] = partial(np.array, [-1, prod(sizes)], np.int64)
    return move


def _with_rows(node: ir.Node, order: Order, sizes: list[int]) -> Move | None:
    reader = single_use(node.outputs[0])
    if reader is None or not is_op(reader, "Gemm", "MatMul") or has_reference_attribute(reader):
        return None
    weight, tensor = reader.inputs[1], constant(reader.inputs[1])
    if reader.inputs[0] is not node.outputs[0] or weight is None or tensor is None:
        return None
    transposed = reader.op_type == "Gemm" and attribute(reader, "transB", 0) != 0
    if len(tensor.shape) != 2 or (reader.op_type == "Gemm" and attribute(reader, "transA", 0) != 0):
        return None
    if tensor.size > LARGEST_COPY and len(weight.uses()) > 1:
        return None
    rest = [axis - 1 for axis in order[1:]]
    rows = np.arange(prod(sizes)).reshape(sizes).transpose(rest).reshape(-1)

    def make() -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        return np.ascontiguousarray(tensor.numpy().take(rows, axis=1 if transposed else 0))

    return Move({0: order}, weights={(reader, 1): make})
