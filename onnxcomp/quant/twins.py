"""The float layers that quantized ones come from, whatever tool made the quantized model.

Names of nodes or values tell most; where a tool gave new names, the order of the layers does. Equalization
moves scales between layers before they are rounded: how the channels of a layer's output and input are
scaled against the float model is read off the weights, layer after layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, constant, input_at, is_op, single_use
from onnxcomp.quant.readers import layer_of
from onnxcomp.quant.rounded import WEIGHTED
from onnxcomp.quant.rows import MatrixRows, Window

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model, ir
    from onnxcomp.quant.readers import Layer
    from onnxcomp.quant.rounded import QuantizedLayer
    from onnxcomp.quant.rows import Rows

# Operators for which f(x * s) = f(x) * s holds channel by channel, and rounding.
_PASSING = (
    *("Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("QuantizeLinear", "DequantizeLinear", "Identity"),
)
# A rounded weight lies within half a step of the float one; other recovery may have moved it by one.
_ROUNDING_STEPS = 1.6
_LEAST_STEPS = 12.0
_FEW = 1e-30


@dataclass(frozen=True, eq=False)
class Twin:
    """What a layer was in float.

    Attributes:
        float_layer: The layer of the float model.
        own: The quantized layer, read as a product of rows with a matrix.
        value: The value of the float model that the layer's output stands for.
        scale: How many times larger each channel of the output is than in float; NaN if that is not known.
        into: How many times larger each channel of the input is.
        is_exact: Whether the weight is the scaled float one, rounded.
    """

    float_layer: Layer
    own: Layer
    value: str
    scale: NDArray[np.float64]
    into: NDArray[np.float64]
    is_exact: bool

    def weight(self, rounded: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns the float weight in the scale of the quantized model, as (groups, K, N).

        Args:
            rounded: The quantized weight, for what is not known better.
        """
        if not self.is_exact:
            return rounded
        expected = _expected(self.float_layer, self.into)
        found = expected * self.scale.reshape(expected.shape[0], 1, expected.shape[2])
        return np.where(np.isfinite(found), found, rounded)

    @property
    def output_rows(self) -> Rows:
        """How the layer's output becomes rows, at the places where the rows of its input lie."""
        rows = self.float_layer.rows
        if not isinstance(rows, Window):
            return MatrixRows()
        ones = (1,) * len(rows.kernel)
        return Window(ones, ones, ones, (0,) * (2 * len(ones)), "NOTSET", rows.groups)


def matrices(own: Layer, numbers: NDArray[Any]) -> NDArray[Any]:
    """Returns an array that lies as a weight does as (groups, K, N)."""
    whole = np.broadcast_to(numbers, own.shape)
    return own.to_matrix(whole).reshape(own.groups, own.depth, own.outputs)


def twins(
    layers: Sequence[QuantizedLayer], model: Model, reference: Model
) -> dict[QuantizedLayer, Twin]:
    """Finds the layers of the float model that quantized ones come from."""
    found: dict[QuantizedLayer, Twin] = {}
    scales: dict[str, NDArray[np.float64]] = {}
    floats = {node.name: node for node in reference.graph if node.name}
    values = {value.name or "" for node in reference.graph for value in node.outputs}
    trace = _Trace(scales, floats, values, {layer.node for layer in layers})
    for layer, node in _pairs(layers, reference):
        float_layer = layer_of(node)
        if float_layer is None or (own := layer_of(layer.node, like=float_layer)) is None:
            continue
        end = _end(layer, node)
        if end is None or (own.groups > 1 and not isinstance(own.rows, Window)):
            continue
        into = trace.into(own)
        scale = _scale(layer, float_layer, own, into)
        known = np.full(layer.channels, np.nan) if scale is None else scale
        value = end.outputs[0].name or ""
        found[layer] = Twin(float_layer, own, value, known, into, scale is not None)
        scales[layer.name] = scales[layer.node.outputs[0].name or ""] = known
    return found


def _pairs(
    layers: Sequence[QuantizedLayer], reference: Model
) -> Iterator[tuple[QuantizedLayer, ir.Node]]:
    floats = list(_float_layers(reference))
    made = {node.outputs[0].name: node for node, _ in floats}
    named = {node.name: node for node, _ in floats if node.name}
    shapes = dict(floats)
    kinds = [(layer.node.op_type, tuple(layer.grid.shape)) for layer in layers]
    in_order = kinds == [(node.op_type, shape) for node, shape in floats]
    for index, layer in enumerate(layers):
        tries = [made.get(layer.node.outputs[0].name), named.get(layer.node.name or "")]
        if in_order:
            tries.insert(0, floats[index][0])
        for node in tries:
            if node is not None and (node.op_type, shapes[node]) == kinds[index]:
                yield layer, node
                break


def _float_layers(model: Model) -> Iterator[tuple[ir.Node, tuple[int, ...]]]:
    for node in model.graph:
        if is_op(node, *WEIGHTED) and (tensor := constant(input_at(node, 1))) is not None:
            yield node, tuple(tensor.shape.numpy())


def _end(layer: QuantizedLayer, node: ir.Node) -> ir.Node | None:
    """The node of the float model that gives what the layer gives, bias included."""
    if layer.end is layer.node:
        return node
    end = single_use(node.outputs[0])
    return end if is_op(end, "Add") else None


# -- scales -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Trace:
    """How the channels of values are scaled against the float model.

    Attributes:
        scales: What is known of outputs of layers, by name.
        floats: Nodes of the float model by name.
        values: Names of its values.
        quantized: The layers of the quantized model; those that were not matched may be scaled anyhow.
    """

    scales: Mapping[str, NDArray[np.float64]]
    floats: Mapping[str, ir.Node]
    values: set[str]
    quantized: set[ir.Node]

    def into(self, own: Layer) -> NDArray[np.float64]:
        """Returns the scale of each channel that a layer reads."""
        count = own.depth
        if isinstance(own.rows, Window):
            count = own.groups * own.depth // max(prod(own.rows.kernel), 1)
        scale = np.ones(count)
        value: ir.Value | None = own.source
        while value is not None:
            if (known := self.scales.get(value.name or "")) is not None:
                return scale * known if known.size == count else scale
            node = value.producer()
            if node is None:
                return scale
            if node in self.quantized:
                return np.full(count, np.nan)
            if is_op(node, "LayerNormalization"):
                return scale * self._normalized(node, count)
            if is_op(node, "Mul"):
                scale = scale * self._smoothed(node, count)
            elif not is_op(node, *_PASSING):
                return scale
            value = node.inputs[0]
        return scale

    def _normalized(self, node: ir.Node, count: int) -> NDArray[np.float64]:
        other = self.floats.get(node.name or "")
        new = array(input_at(node, 1))
        old = None if other is None else array(input_at(other, 1))
        if new is None or old is None or new.shape != old.shape or new.size != count:
            return np.ones(count)
        safe = np.where(old == 0, 1.0, old).astype(np.float64)
        return np.where(old == 0, 1.0, new.astype(np.float64) / safe).reshape(-1)

    def _smoothed(self, node: ir.Node, count: int) -> NDArray[np.float64]:
        """What a Mul that the float model does not have multiplies with."""
        factor = array(input_at(node, 1))
        if node.outputs[0].name in self.values or factor is None or factor.size != count:
            return np.ones(count)
        return factor.reshape(-1).astype(np.float64)


def _expected(float_layer: Layer, into: NDArray[np.float64]) -> NDArray[np.float64]:
    """The float weight when the channels that it reads are scaled."""
    exact = float_layer.read().astype(np.float64)
    exact = exact.reshape(float_layer.groups, float_layer.depth, float_layer.outputs)
    each = into.reshape(float_layer.groups, -1)
    spread = np.repeat(each, float_layer.depth // max(each.shape[1], 1), axis=1)
    scaled: NDArray[np.float64] = exact / spread[:, :, None]
    return scaled


def _scale(
    layer: QuantizedLayer, float_layer: Layer, own: Layer, into: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """The scale of each channel of a layer's output; None when the weight is another one."""
    rounded = matrices(own, layer.grid.values())
    step = np.abs(matrices(own, layer.grid.steps()))
    plain = _expected(float_layer, np.ones(into.shape))
    if (np.abs(rounded - plain) <= _ROUNDING_STEPS * step).all():
        return np.ones(layer.channels)
    expected = _expected(float_layer, into)
    known = np.isfinite(expected)
    expected = np.where(known, expected, 0.0)
    product = (rounded * expected).sum(axis=1)
    scale = product / np.maximum((expected**2).sum(axis=1), _FEW)
    scale = np.where(scale > 0, scale, 1.0)
    near = np.abs(rounded - expected * scale[:, None, :]) <= _ROUNDING_STEPS * step
    if not (near | ~known).all() or not known.any():
        return None
    # Of a channel that is rounded to a few steps the scale is not known well.
    sure = (np.abs(np.where(known, rounded, 0.0)) >= _LEAST_STEPS * step).any(axis=1)
    return np.asarray(np.where(sure, scale, np.nan).reshape(-1), np.float64)


def is_scaled(value: ir.Value, ends: Mapping[ir.Node, Twin]) -> bool:
    """Whether a value's channels may be scaled against those of the value of the same name in float.

    Args:
        value: A value of the quantized model.
        ends: What is known of its layers, by the nodes they end with.
    """
    node = value.producer()
    while is_op(node, *_PASSING) and node is not None and node not in ends:
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is not None and node in ends:
        return not bool((ends[node].scale == 1.0).all())
    return is_op(node, *WEIGHTED, "LayerNormalization", "Mul")
