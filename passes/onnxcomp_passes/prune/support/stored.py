"""Weights as the graph uses them: constants, also when they are stored as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_pure, producer_of

Array = np.ndarray[Any, Any]
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_DEEPEST = 8


def is_made_of_constants(value: ir.Value, depth: int = 0) -> bool:
    """Whether a value is computed, from constants alone, other than by dequantizing one."""
    if constant(value) is not None or weight_of(value) is not None or depth > _DEEPEST:
        return False
    node = value.producer()
    if node is None or not is_pure(node) or not any(v is not None for v in node.inputs):
        return False
    return all(
        v is None or constant(v) is not None or is_made_of_constants(v, depth + 1)
        for v in node.inputs
    )


def weight_of(value: ir.Value | None) -> Array | None:
    """Returns the numbers of a constant, also one that is dequantized, cast or transposed first."""
    found = array(value)
    if found is not None:
        return found
    node = producer_of(value, "DequantizeLinear", "Identity", "Cast", "Transpose")
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        return _dequantized(node)
    inner = weight_of(node.inputs[0])
    if inner is None or node.op_type == "Identity":
        return inner
    if node.op_type == "Transpose":
        order: tuple[int, ...] = attribute(node, "perm", ())
        return inner.transpose(order or None) if len(order) in {0, inner.ndim} else None
    return _cast(node, inner)


def _cast(node: ir.Node, inner: Array) -> Array | None:
    """Only between types of floating point, where nothing wraps around."""
    kinds = {kind.value: kind.numpy() for kind in FLOATS}
    kind = kinds.get(attribute(node, "to", 0))
    return None if kind is None or inner.dtype.kind != "f" else inner.astype(kind)


def _dequantized(node: ir.Node) -> Array | None:
    """Computes `(x - zero point) * scale`; None for scales of blocks."""
    stored, scale = array(node.inputs[0]), array(node.inputs[1])
    given = input_at(node, 2)
    zero = np.zeros(1, np.float32) if given is None else array(given)
    if stored is None or scale is None or zero is None or attribute(node, "block_size", 0):
        return None
    if scale.ndim > 1 or zero.ndim > 1:
        return None
    shape = [1] * stored.ndim
    if scale.size > 1:
        axis = attribute(node, "axis", 1)
        if not -stored.ndim <= axis < stored.ndim or stored.shape[axis] != scale.size:
            return None
        shape[axis] = scale.size
    offset = zero.astype(np.float32).reshape(shape if zero.size > 1 else [1] * stored.ndim)
    found: Array = (stored.astype(np.float32) - offset) * scale.astype(np.float32).reshape(shape)
    return found.astype(scale.dtype)
