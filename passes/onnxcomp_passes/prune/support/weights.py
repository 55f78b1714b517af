"""Weights and biases of layers, read and written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, input_at, is_op, single_use
from onnxcomp.quant.rounded import put_constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, ir
    from onnxcomp.quant.readers import Layer

RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, eq=False)
class Bias:
    """Where the bias of a layer is, and what it is; a layer that may have one has zeros.

    Attributes:
        node: The node that adds it: the layer's own, or an Add behind a MatMul.
        index: Which input of it.
        numbers: One for each output.
        shape: Shape of the constant; None when there is none yet.
        rest: What stands behind the numbers in each row of the constant; None for nothing.
    """

    node: ir.Node
    index: int
    numbers: NDArray[np.float32]
    shape: tuple[int, ...] | None
    rest: NDArray[np.float32] | None = None

    def write(self, edit: Edit, new: NDArray[Any]) -> None:
        """Gives the layer another bias, which nobody else reads."""
        leading = (self.shape or (1,))[:-1]
        numbers = new.astype(np.float32).reshape(*leading, -1)
        if self.rest is not None:
            numbers = np.concatenate([numbers, self.rest], axis=-1)
        put_constant(edit, self.node, self.index, numbers)


def put_weight(edit: Edit, layer: Layer, matrix: NDArray[Any]) -> NDArray[np.float32]:
    """Gives a layer another weight, which nothing else reads; returns it in its own shape."""
    new = np.ascontiguousarray(layer.from_matrix(matrix).astype(np.float32))
    maker = layer.weight.producer()
    put_constant(edit, layer.node, layer.index, new)
    if maker is not None:
        edit.remove(maker)
    return new


def bias_of(layer: Layer) -> Bias | None:
    """Returns the bias of a layer; None when it has none that can be written."""
    node, index, size = layer.node, 2, layer.outputs * layer.groups
    if is_op(node, *RECURRENT):
        return _recurrent_bias(layer)
    if is_op(node, "MatMul"):
        add = single_use(node.outputs[0])
        if layer.index != 1 or layer.groups != 1:
            return None  # outputs do not lie along the last axis alone
        if add is None or not is_op(add, "Add") or add.graph is not node.graph:
            return None
        node, index = add, 0 if add.inputs[1] is node.outputs[0] else 1
    elif not is_op(node, "Conv", "ConvTranspose") and not _is_plain_gemm(node):
        return None
    value = input_at(node, index)
    if value is None:
        free = is_op(node, "Conv", "ConvTranspose", "Gemm")
        return Bias(node, index, np.zeros(size, np.float32), None) if free else None
    numbers = array(value)
    if numbers is None or numbers.dtype != np.float32 or numbers.size not in {1, size}:
        return None
    if numbers.shape[-1:] != (numbers.size,):
        return None  # a scalar, or one number for each row
    return Bias(node, index, np.broadcast_to(numbers.reshape(-1), (size,)), numbers.shape)


def _recurrent_bias(layer: Layer) -> Bias | None:
    """The biases of the inputs, in front of those of the state: [directions, 2 * outputs]."""
    numbers, rows = array(input_at(layer.node, 3)), layer.shape[1]
    if numbers is None or numbers.dtype != np.float32:
        return None
    if numbers.shape != (layer.shape[0], 2 * rows):
        return None
    own, rest = numbers[:, :rows], numbers[:, rows:]
    return Bias(layer.node, 3, own.reshape(-1), (layer.shape[0], rows), rest)


def _is_plain_gemm(node: ir.Node) -> bool:
    plain = attribute(node, "alpha", 1.0) == 1.0 == attribute(node, "beta", 1.0)
    return is_op(node, "Gemm") and plain
