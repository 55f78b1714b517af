"""Where units of channels end: products that sum over them, beyond which nothing is known of single ones."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, is_op

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import ChannelMap
    from onnxcomp.ir import ir

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class End:
    """A product of two operands that is summed up along an axis that units run through.

    Conv, Gemm, MatMul, Einsum, the input and the recurrence of LSTM, GRU and RNN, and the products of
    attention. Each reader of a shared weight is an end of its own.

    Attributes:
        node: The product.
        source: What is known on samples only, and its axis.
        places: [units, n] positions of the source's axis that belong to each unit.
        other: The weight, or another activation, and its axis.
    """

    node: ir.Node
    source: tuple[ir.Value, int]
    places: Array
    other: tuple[ir.Value, int]

    @property
    def has_weight(self) -> bool:
        """Whether the other operand is a constant."""
        return constant(self.other[0]) is not None

    @property
    def reads_itself(self) -> bool:
        """Whether this is a recurrence: what it reads is what it gave before."""
        return self.source[0].producer() is self.node

    def strengths(self, power: int, size: int) -> Array:
        """Returns for each position of the source the sum of |w|^power of the weights that read it.

        Args:
            power: 1 or 2.
            size: Positions of the source's axis.
        """
        value, axis = self.other
        weight = array(value)
        if weight is None:
            raise ValueError(f"no constant weight: {self.node.name}")
        groups = attribute(self.node, "group", 1) if is_op(self.node, "Conv") else 1
        if groups > 1 and axis == 1:
            # Each part of the filters reads channels of its own.
            weight = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
            weight = np.moveaxis(weight, 2, 1).reshape(size, -1)
        else:
            weight = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
        # Numbers without a sign stand around their middle: their zero point is not looked up.
        middle = 2.0 ** (8 * weight.dtype.itemsize - 1) if weight.dtype.kind == "u" else 0.0
        wide = np.abs(weight.astype(np.float64) - middle)
        summed: Array = (wide if power == 1 else wide**2).sum(axis=1)
        return summed


def ends_of(channels: ChannelMap) -> dict[int, list[End]]:
    """Returns the ends of each group that has any, by the index of the group."""
    owners: dict[tuple[ir.Value, int], list[tuple[int, Array]]] = defaultdict(list)
    for index, group in enumerate(channels.groups):
        for member in group.members:
            places = member.positions.reshape(group.units, -1)
            owners[member.value, member.axis].append((index, places))
    found: dict[int, list[End]] = defaultdict(list)
    for product in channels.contractions:
        source, other = product.left, product.right
        if constant(source[0]) is not None:
            source, other = other, source
        if constant(source[0]) is not None:
            continue
        readers = {index for index, _ in owners[other]}
        for index, places in owners[source]:
            # A depthwise filter reads one channel to make one: that is no end.
            if index in readers:
                found[index].append(End(product.node, source, places, other))
    return dict(found)
