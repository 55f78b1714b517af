"""Which weights can take the division of an activation's channels, so that nothing is computed more.

Dividing channels by a scale goes backwards from a value: through what is homogeneous (Relu, pools), linear
in one operand (Mul, the product of attention and values) or only moves numbers (Transpose, the Reshape
that joins heads), to where constants multiply: the weights of Conv, Gemm and MatMul, of norms (as one
operator or taken apart into Mul and Add), and biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, is_training, single_use

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir

    Channels = NDArray[np.intp]

# A constant that others read too is copied up to this size.
_SMALL = 1 << 16
_MICROSOFT = "com.microsoft"


@dataclass(frozen=True, eq=False)
class Part:
    """A constant that takes the scale.

    Attributes:
        node: The node that reads it.
        index: Which of its inputs it is.
        channels: The channel that each number belongs to, broadcast against the constant's shape.
        is_divisor: Whether the constant divides, so that it is multiplied.
    """

    node: ir.Node
    index: int
    channels: Channels
    is_divisor: bool = False


@dataclass(frozen=True, eq=False)
class Absorber:
    """Everything that has to change so that a value comes out divided.

    Attributes:
        parts: The constants.
        limit: Where the lowest Clip on the way cuts off.
    """

    parts: tuple[Part, ...] = ()
    limit: float = math.inf

    def join(self, other: Absorber | None) -> Absorber | None:
        """Returns both together; None when the other one is missing."""
        if other is None:
            return None
        return Absorber(self.parts + other.parts, min(self.limit, other.limit))

    def takes(self, scale: NDArray[Any]) -> bool:
        """Whether every constant stays a finite number of its type (half precision ends at 65504)."""
        return all(fits(part.node.inputs[part.index], _factor(part, scale)) for part in self.parts)

    def divide(self, edit: Edit, scale: NDArray[Any]) -> None:
        """Divides the value by a scale for each channel."""
        for part in self.parts:
            _multiply(edit, part, _factor(part, scale))


def _factor(part: Part, scale: NDArray[Any]) -> NDArray[np.float64]:
    factor = np.asarray(scale, np.float64)[part.channels]
    return factor if part.is_divisor else 1.0 / factor


def fits(value: ir.Value | None, factor: NDArray[np.float64]) -> bool:
    """Whether a constant times a factor is finite in the constant's type."""
    tensor = constant(value)
    if tensor is None or tensor.dtype.name != "FLOAT16":
        return True
    largest = np.abs(tensor.numpy().astype(np.float64) * factor).max(initial=0.0)
    return bool(largest <= float(np.finfo(np.float16).max))


def find_absorber(
    value: ir.Value, channels: Channels, shapes: ShapeMap | None = None
) -> Absorber | None:
    """Returns what takes the division of a value, None when something in front does not.

    Whoever asks makes sure that all readers of the value itself want it divided.

    Args:
        value: The activation.
        channels: Number of the channel along each axis, aligned to the right as in broadcasting:
            `arange(C)` for the last axis, `arange(C)[:, None, None]` for images.
        shapes: What is known of shapes; without it, joined heads are a barrier.
    """
    node = value.producer()
    if node is None or value is not node.outputs[0]:
        return None
    rule = _RULES.get((node.domain if node.domain != "ai.onnx" else "", node.op_type))
    return None if rule is None else rule(node, _Search(value, channels, shapes))


@dataclass(frozen=True, eq=False)
class _Search:
    """A value and what is asked of it."""

    value: ir.Value
    channels: Channels
    shapes: ShapeMap | None

    def into(self, node: ir.Node, index: int, channels: Channels | None = None) -> Absorber | None:
        """Goes on to an input that nothing else reads."""
        source = input_at(node, index)
        if source is None or single_use(source) is not node:
            return None
        found = self.channels if channels is None else channels
        return find_absorber(source, found, self.shapes)

    @property
    def vector(self) -> Channels | None:
        """The channels when they lie along the last axis."""
        return self.channels if self.channels.ndim == 1 else None

    @property
    def first(self) -> Channels | None:
        """The channels when they lie before spatial axes."""
        behind = self.channels.shape[1:]
        return self.channels.reshape(-1) if behind and prod(behind) == 1 else None


def _part(node: ir.Node, index: int, channels: Channels, **options: bool) -> Absorber | None:
    """A constant whose shape is that of the channels, or contains it."""
    value = input_at(node, index)
    tensor = constant(value)
    if value is None or tensor is None:
        return None
    shape = tuple(tensor.shape.numpy())
    try:
        if np.broadcast_shapes(shape, channels.shape) != shape:
            return None
    except ValueError:
        return None
    if not _is_own(value) and tensor.size > _SMALL:
        return None
    return Absorber((Part(node, index, channels, **options),))


def _is_own(value: ir.Value) -> bool:
    return value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()


def _optional(node: ir.Node, index: int, channels: Channels) -> Absorber | None:
    return Absorber() if input_at(node, index) is None else _part(node, index, channels)


def _linear(node: ir.Node, weight: Channels, bias: Channels) -> Absorber | None:
    found = _part(node, 1, weight)
    return None if found is None else found.join(_optional(node, 2, bias))


def _conv(node: ir.Node, search: _Search) -> Absorber | None:
    tensor, channels = constant(input_at(node, 1)), search.first
    if tensor is None or channels is None:
        return None
    rank = len(tensor.shape)
    if search.channels.ndim != rank - 1:
        return None
    if is_op(node, "Conv"):
        ready = channels.size == tensor.shape[0]
        kernel = channels.reshape(-1, *(1,) * (rank - 1))
    else:
        ready = channels.size == tensor.shape[1] and attribute(node, "group", 1) == 1
        kernel = channels.reshape(-1, *(1,) * (rank - 2))
    return _linear(node, kernel, channels) if ready else None


def _gemm(node: ir.Node, search: _Search) -> Absorber | None:
    channels, tensor = search.vector, constant(input_at(node, 1))
    if channels is None or tensor is None:
        return None
    rows = bool(attribute(node, "transB", 0))
    if tensor.shape[0 if rows else 1] != channels.size:
        return None
    bias = input_at(node, 2)
    if bias is not None and attribute(node, "beta", 1.0) == 0.0:
        return None
    return _linear(node, channels[:, None] if rows else channels, channels)


def _matmul(node: ir.Node, search: _Search) -> Absorber | None:
    tensor = constant(input_at(node, 1))
    if tensor is not None:
        ready = len(tensor.shape) == 2 and tensor.shape[1] == search.channels.size
        return _part(node, 1, search.channels) if ready and search.vector is not None else None
    if search.channels.ndim > 1 and search.channels.shape[-2] != 1:
        return None
    if search.shapes is not None and search.shapes.rank(input_at(node, 1)) == 1:
        return None  # the last axis of the result is one of the other operand
    return search.into(node, 1)


def _norm(node: ir.Node, search: _Search) -> Absorber | None:
    channels, tensor = search.vector, constant(input_at(node, 1))
    if channels is None or tensor is None or tuple(tensor.shape.numpy()) != channels.shape:
        return None
    return _linear(node, channels, channels)


def _batch_norm(node: ir.Node, search: _Search) -> Absorber | None:
    channels, tensor = search.first, constant(input_at(node, 1))
    if channels is None or tensor is None or tuple(tensor.shape.numpy()) != channels.shape:
        return None
    return None if is_training(node) else _linear(node, channels, channels)


def _mul(node: ir.Node, search: _Search) -> Absorber | None:
    for index in (1, 0):
        found = _part(node, index, search.channels)
        if found is not None:
            return found
    return _first(search.into(node, 0), search.into(node, 1))


def _first(*found: Absorber | None) -> Absorber | None:
    return next((each for each in found if each is not None), None)


def _div(node: ir.Node, search: _Search) -> Absorber | None:
    return _first(_part(node, 1, search.channels, is_divisor=True), search.into(node, 0))


def _add(node: ir.Node, search: _Search) -> Absorber | None:
    for index in (1, 0):
        shift = _shift(node, index, search.channels)
        if shift is not None:
            return shift.join(search.into(node, 1 - index))
    return None


def _shift(node: ir.Node, index: int, channels: Channels) -> Absorber | None:
    """A constant that is added; one number for all channels becomes one for each."""
    found = _part(node, index, channels)
    tensor = constant(input_at(node, index))
    if found is None and tensor is not None and tensor.size == 1:
        return Absorber((Part(node, index, channels),))
    return found


def _through(node: ir.Node, search: _Search) -> Absorber | None:
    return search.into(node, 0)


def _pool(node: ir.Node, search: _Search) -> Absorber | None:
    return None if search.first is None else search.into(node, 0)


def _clip(node: ir.Node, search: _Search) -> Absorber | None:
    """From 0 upwards; a limit above stays where it is, which holds for values far below it."""
    lower, upper = array(input_at(node, 1), limit=1), array(input_at(node, 2), limit=1)
    if lower is None or lower.size != 1 or float(lower.reshape(-1)[0]) != 0.0:
        return None
    if upper is None and input_at(node, 2) is not None:
        return None
    found = search.into(node, 0)
    if found is None or upper is None:
        return found
    return replace(found, limit=min(found.limit, float(upper.reshape(-1)[0])))


def _transpose(node: ir.Node, search: _Search) -> Absorber | None:
    order = attribute(node, "perm", ())
    rank, own = len(order), search.channels
    if not rank or own.ndim > rank:
        return None
    full = own.reshape((1,) * (rank - own.ndim) + own.shape)
    back = full.transpose(np.argsort(order))
    return search.into(node, 0, _shortest(back))


def _shortest(channels: Channels) -> Channels:
    """Drops axes in front that have one channel."""
    while channels.ndim > 1 and channels.shape[0] == 1:
        channels = channels[0]
    return channels


def _reshape(node: ir.Node, search: _Search) -> Absorber | None:
    """Joins heads, or takes them apart: the last axes, all with a channel of their own."""
    if search.shapes is None:
        return None
    before = search.shapes.shape(input_at(node, 0))
    after = search.shapes.shape(search.value)
    own = search.channels
    if before is None or after is None or tuple(after[-own.ndim :]) != own.shape:
        return None
    for count in range(1, len(before) + 1):
        sizes = [size for size in before[-count:] if isinstance(size, int)]
        if len(sizes) != count or prod(sizes) > own.size:
            return None
        if prod(sizes) == own.size:
            return search.into(node, 0, own.reshape(sizes))
    return None


_RULES: Mapping[tuple[str, str], Callable[[ir.Node, _Search], Absorber | None]] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv,
    ("", "Gemm"): _gemm,
    ("", "MatMul"): _matmul,
    ("", "LayerNormalization"): _norm,
    ("", "RMSNormalization"): _norm,
    ("", "SimplifiedLayerNormalization"): _norm,
    (_MICROSOFT, "SimplifiedLayerNormalization"): _norm,
    ("", "BatchNormalization"): _batch_norm,
    ("", "InstanceNormalization"): _batch_norm,
    ("", "Mul"): _mul,
    ("", "Div"): _div,
    ("", "Add"): _add,
    ("", "Sub"): _add,
    ("", "Relu"): _through,
    ("", "LeakyRelu"): _through,
    ("", "Identity"): _through,
    ("", "Clip"): _clip,
    ("", "MaxPool"): _pool,
    ("", "AveragePool"): _pool,
    ("", "GlobalAveragePool"): _pool,
    ("", "GlobalMaxPool"): _pool,
    ("", "Transpose"): _transpose,
    ("", "Reshape"): _reshape,
}


def _multiply(edit: Edit, part: Part, factor: NDArray[np.float64]) -> None:
    value = part.node.inputs[part.index]
    tensor = constant(value)
    if value is None or tensor is None:
        return
    old = tensor.numpy()
    new = (old.astype(np.float64) * factor).astype(old.dtype)
    if _is_own(value):
        edit.set_tensor(value, new)
        return
    graph = part.node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {part.node.name}")
    made = edit.initializer(new, name=f"{value.name}_scaled", graph=graph)
    edit.set_input(part.node, part.index, made)
