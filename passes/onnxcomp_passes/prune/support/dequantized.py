"""Weights as the numbers that they stand for, whatever they are stored in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir import ir

Array = np.ndarray[Any, Any]

# Where the operators that read integers have a weight, and its scale and zero point (-1: none).
_PLACES = {
    "DequantizeLinear": {0: (1, 2)},
    "ConvInteger": {1: (-1, 3)},
    "MatMulInteger": {1: (-1, 3)},
    "QLinearConv": {3: (4, 5)},
    "QLinearMatMul": {3: (4, 5)},
    "QGemm": {3: (4, 5)},
    "DynamicQuantizeMatMul": {1: (2, 3)},
    "MatMulIntegerToFloat": {1: (3, 5)},
    "DynamicQuantizeLSTM": {1: (8, 9), 2: (10, 11)},
}
_LAST = frozenset(
    {"MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"}
)


def real_numbers(value: ir.Value) -> Array | None:
    """Returns what a constant weight stands for, as floats; None when it is no weight.

    Integers are weights where something dequantizes them: a DequantizeLinear, or an operator on
    integers. Where no scale is known, the numbers are right but for a factor.
    """
    tensor = constant(value)
    if tensor is None:
        return None
    if tensor.dtype.is_floating_point():
        plain: Array = tensor.numpy()
        return plain if plain.dtype.kind == "f" else plain.astype(np.float32)
    return next(_readings(value, tensor), None)


def _readings(value: ir.Value, tensor: ir.TensorProtocol) -> Iterator[Array]:
    """What each reader of integers takes them for."""
    for use in value.uses():
        found = _PLACES.get(use.node.op_type, {}).get(use.idx)
        if found is None:
            continue
        numbers = tensor.numpy().astype(np.float64)
        scale, zero = (_parameter(use.node, place, numbers) for place in found)
        yield (numbers - (0.0 if zero is None else zero)) * (1.0 if scale is None else scale)


def _parameter(node: ir.Node, place: int, weight: Array) -> Array | None:
    """A scale or zero point in the axes of the weight; None when there is none or it is not known."""
    found = None if place < 0 else array(input_at(node, place))
    if found is None:
        return None
    numbers = found.astype(np.float64)
    if numbers.size == 1:
        return numbers.reshape(())
    block = attribute(node, "block_size", 0)
    if numbers.ndim == weight.ndim and block:
        axis = attribute(node, "axis", 1)
        repeated: Array = np.repeat(numbers, block, axis)
        return repeated if repeated.shape == weight.shape else None
    if node.op_type == "DynamicQuantizeLSTM":
        return numbers[:, None, :] if numbers.ndim > 1 else numbers[:, None, None]
    axis = attribute(node, "axis", 1) if node.op_type == "DequantizeLinear" else 0
    if node.op_type in _LAST:
        axis = -1
    if node.op_type == "QGemm":
        axis = 0 if attribute(node, "transB", 0) else 1
    if numbers.size != weight.shape[axis]:
        return None
    shape = [1] * weight.ndim
    shape[axis] = numbers.size
    return numbers.reshape(shape)
