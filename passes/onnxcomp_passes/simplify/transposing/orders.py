"""Orders of dimensions, and what each operator becomes when its tensors take another one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import constant

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

    Array = np.ndarray[Any, Any]
    Make = Callable[[], Array]

# As in the attribute of Transpose: dimension i of the result is dimension order[i] of the source.
Order = tuple[int, ...]

# A constant with more elements is turned only where nobody else reads it: the file must not grow.
LARGEST_COPY = 1 << 12


@dataclass
class Move:
    """What a node becomes when its tensors take another order.

    Attributes:
        inputs: The order of each input that takes another one.
        outputs: The same for outputs.
        constants: New constants for inputs.
        attributes: New attributes; None removes one.
        operator: The operator, where it becomes another one.
        weights: Constants of other nodes that follow, by node and input.
        permuted: For a Shape, how to pick the sizes in the old order from those in the new one.
        penalty: Elements that the runtime moves more when the node computes in that order.
    """

    inputs: dict[int, Order] = field(default_factory=dict)
    outputs: dict[int, Order] = field(default_factory=dict)
    constants: dict[int, Make] = field(default_factory=dict)
    attributes: dict[str, object] = field(default_factory=dict)
    operator: str = ""
    weights: dict[tuple[ir.Node, int], Make] = field(default_factory=dict)
    permuted: Order | None = None
    penalty: float = 0.0


@dataclass(frozen=True)
class Place:
    """One tensor of a node and the order it would take, from which the rest follows."""

    is_input: bool
    index: int
    order: Order


def identity(size: int) -> Order:
    """Returns the order that changes nothing."""
    return tuple(range(size))


def inverse(order: Order) -> Order:
    """Returns the order that undoes one."""
    found = [0] * len(order)
    for place, axis in enumerate(order):
        found[axis] = place
    return tuple(found)


def restricted(order: Order, dropped: Collection[int]) -> Order:
    """Returns the order of what is left when some dimensions of the source go."""
    kept = [axis for axis in range(len(order)) if axis not in dropped]
    numbers = {axis: number for number, axis in enumerate(kept)}
    return tuple(numbers[axis] for axis in order if axis in numbers)


def extended(order: Order, added: Collection[int]) -> Order:
    """Returns the order when dimensions are added that stay where they are."""
    rank = len(order) + len(added)
    places = [axis for axis in range(rank) if axis not in added]
    others = iter(places[axis] for axis in order)
    return tuple(axis if axis in added else next(others) for axis in range(rank))


def operand_order(order: Order, rank: int) -> Order | None:
    """Returns the order of an operand that broadcasts to a result, None when it has none.

    An operand of lower rank follows where its dimensions stay among themselves.
    """
    missing = len(order) - rank
    if missing < 0:
        return None
    own = order[missing:]
    return tuple(axis - missing for axis in own) if not own or min(own) >= missing else None


def turned(value: ir.Value, order: Order) -> Make | None:
    """Returns how to turn a constant that broadcasts to a result; None when that is not worth it."""
    tensor = constant(value)
    if tensor is None or (tensor.size > LARGEST_COPY and len(value.uses()) > 1):
        return None
    missing = len(order) - len(tensor.shape)
    if missing < 0:
        return None

    def make() -> Array:
        found = tensor.numpy()
        full = found.reshape((1,) * missing + found.shape)
        return np.ascontiguousarray(full.transpose(order))

    return make


def add_operand(
    move: Move, index: int, value: ir.Value | None, order: Order, shapes: ShapeMap
) -> bool:
    """Adds an operand that broadcasts to a result of an order; False when that cannot be."""
    rank = shapes.rank(value)
    if value is None or rank is None:
        return value is None
    own = operand_order(order, rank)
    # A dimension of one element stands anywhere: one number follows every order.
    if own == identity(rank) or shapes.shape(value) == (1,):
        return True
    make = turned(value, order)
    if make is not None:
        move.constants[index] = make
        return True
    if constant(value) is not None or own is None:
        return False
    move.inputs[index] = own
    return True


def set_output(move: Move, index: int, order: Order) -> None:
    """Notes the order of an output; one that stays as it is needs no note."""
    if order != identity(len(order)):
        move.outputs[index] = order


def axes_in(order: Order, axes: Sequence[int]) -> list[int]:
    """Returns where dimensions of the source stand in the new order."""
    back = inverse(order)
    return [back[axis] for axis in axes]
