"""The layers of a model with quantized weights, written by whatever tool, and their biases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, is_interface, is_op, single_use
from onnxcomp.quant.grid import Grid, grid_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, ir

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A node whose weight comes out of a DequantizeLinear.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        grid: Where the weight's numbers are, and their scales.
        end: The node that adds the bias: the same one, or the Add behind a MatMul.
        bias_index: Which input of `end` is the bias, or would be; None where it has no place.
    """

    node: ir.Node
    grid: Grid
    end: ir.Node
    bias_index: int | None

    @property
    def output(self) -> ir.Value:
        """The value that the layer makes, bias included."""
        return self.end.outputs[0]

    @property
    def name(self) -> str:
        """The name of that value."""
        return self.output.name or ""

    @property
    def channel_axis(self) -> int:
        """Axis of the output's channels."""
        return 1 if is_op(self.node, "Conv", "ConvTranspose") else -1

    @property
    def channels(self) -> int:
        """How many channels the output has."""
        return _channels(self.node, self.grid.shape)


def quantized_layers(graph: ir.Graph) -> list[QuantizedLayer]:
    """Returns the layers of a scope that have rounded weights, in order."""
    found = []
    for node in graph:
        if not is_op(node, *WEIGHTED) or not _is_plain(node):
            continue
        grid = grid_of(input_at(node, 1))
        if grid is None or _channels(node, grid.shape) < 1:
            continue
        end, index = _bias_place(node, _channels(node, grid.shape))
        found.append(QuantizedLayer(node, grid, end, index))
    return found


def _is_plain(node: ir.Node) -> bool:
    """Whether a node is rows of its first input times its weight, and nothing more."""
    return attribute(node, "transA", 0) == 0 and attribute(node, "alpha", 1.0) == 1.0


def _channels(node: ir.Node, shape: Sequence[int]) -> int:
    if is_op(node, "Conv"):
        return shape[0]
    if is_op(node, "ConvTranspose"):
        return shape[1] * int(attribute(node, "group", 1)) if len(shape) > 1 else 0
    if len(shape) < 2:
        return 0
    return shape[0] if attribute(node, "transB", 0) else shape[-1]


def _bias_place(node: ir.Node, channels: int) -> tuple[ir.Node, int | None]:
    if not is_op(node, "MatMul"):
        return node, 2 if attribute(node, "beta", 1.0) == 1.0 else None
    add = single_use(node.outputs[0])
    if not is_op(add, "Add") or add is None:
        return node, None
    index = 0 if add.inputs[1] is node.outputs[0] else 1
    found = constant(add.inputs[index])
    is_bias = found is not None and tuple(found.shape.numpy()) == (channels,)
    return (add, index) if is_bias else (node, None)


# -- biases -----------------------------------------------------------------------------------------


@dataclass(eq=False)
class BiasWriter:
    """Moves biases in the steps that they have.

    Attributes:
        edit: The way to change the model.
        add: Whether a layer without a bias may get one, where that costs nothing.
    """

    edit: Edit
    add: bool = True
    refused: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def can_move(layer: QuantizedLayer) -> bool:
        """Whether the bias of a layer, or one that it may get, can be moved."""
        value = None if layer.bias_index is None else input_at(layer.end, layer.bias_index)
        if layer.bias_index is None:
            return False
        grid = grid_of(value)
        return (
            value is None
            or constant(value) is not None
            or (grid is not None and grid.dtype == "INT32")
        )

    def move(self, layer: QuantizedLayer, shift: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """Adds a shift to the bias of each channel.

        Returns:
            What was really added, None where the layer has no bias that can move; `refused` says why.
        """
        index = layer.bias_index
        if not np.isfinite(shift).all():
            return self._refuse(layer, "its outputs on the samples are not finite")
        if index is None:
            return self._refuse(layer, "it has no bias, and an Add behind it would cost time")
        value = input_at(layer.end, index)
        if value is None:
            return self._new(layer, index, shift)
        if (tensor := constant(value)) is not None:
            return self._float(layer, index, tensor.numpy(), shift)
        grid = grid_of(value)
        if grid is None:
            return self._refuse(layer, "its bias is computed while the model runs")
        return self._rounded(layer, index, grid, shift)

    def _refuse(self, layer: QuantizedLayer, why: str) -> NDArray[np.float64] | None:
        self.refused[layer.name] = why
        return None

    def _float(
        self,
        layer: QuantizedLayer,
        index: int,
        old: NDArray[Any],
        shift: NDArray[np.float64],
    ) -> NDArray[np.float64] | None:
        by_channel = old.size == 1 or old.shape[-1:] == (layer.channels,) == (old.size,)
        if not by_channel or old.dtype.kind != "f":
            return self._refuse(layer, "its bias is not one number for each channel")
        wide = np.broadcast_to(old.reshape(-1).astype(np.float64), (layer.channels,))
        new = (wide + shift).astype(old.dtype)
        if not np.isfinite(new).all():
            return self._refuse(layer, "its bias would leave the range of its type")
        shape = old.shape if old.size == layer.channels else (layer.channels,)
        put_constant(self.edit, layer.end, index, new.reshape(shape))
        return np.asarray(new.astype(np.float64) - wide, np.float64)

    def _rounded(
        self, layer: QuantizedLayer, index: int, grid: Grid, shift: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        old = grid.numbers
        if old.dtype != np.int32 or grid.shape != (layer.channels,):
            return self._refuse(layer, "its bias is not in int32, one number for each channel")
        steps = np.broadcast_to(grid.steps(), (layer.channels,))
        moves = np.divide(shift, steps, out=np.zeros_like(shift), where=steps != 0)
        wished = old.astype(np.float64) + np.round(moves)
        new = np.clip(wished, _INT32.min, _INT32.max).astype(np.int32)
        dequantize = self._own(layer.end, index, grid)
        put_constant(self.edit, dequantize, 0, new)
        return np.asarray((new.astype(np.float64) - old) * steps, np.float64)

    def _own(self, node: ir.Node, index: int, grid: Grid) -> ir.Node:
        """A DequantizeLinear that only this node reads."""
        if len(grid.node.outputs[0].uses()) == 1:
            return grid.node
        made = self.edit.insert(
            "DequantizeLinear",
            list(grid.node.inputs),
            before=node,
            attributes=dict(grid.node.attributes),
            outputs=[grid.node.outputs[0].name or "bias"],
            like=grid.node.outputs[0],
        )
        self.edit.set_input(node, index, made.outputs[0])
        return made

    def _new(
        self, layer: QuantizedLayer, index: int, shift: NDArray[np.float64]
    ) -> NDArray[np.float64] | None:
        """Gives a layer a bias: int32 in steps of its products where the input is rounded."""
        source = input_at(layer.node, 0)
        maker = None if source is None else source.producer()
        dtype = layer.grid.scale.dtype
        if not self.add or not is_op(layer.node, "Conv", "Gemm"):
            return self._refuse(layer, "it has no bias")
        if not is_op(maker, "DequantizeLinear") or maker is None:
            return self._float_bias(layer, index, shift.astype(dtype))
        scale = array(input_at(maker, 1), limit=1)
        if scale is None or layer.grid.numbers.dtype.itemsize != 1 or layer.grid.block:
            return self._refuse(layer, "it has no bias, and none that the kernel takes")
        steps = scale.reshape(-1).astype(np.float64) * layer.grid.scale.reshape(-1)
        steps = np.broadcast_to(steps, (layer.channels,)).astype(dtype)
        moves = np.divide(shift, steps, out=np.zeros_like(shift), where=steps != 0)
        numbers = np.clip(np.round(moves), _INT32.min, _INT32.max).astype(np.int32)
        made = self.edit.insert(
            "DequantizeLinear",
            [
                self._constant(layer.node, numbers, "bias_int32"),
                self._constant(layer.node, steps.copy(), "bias_scale"),
                self._constant(layer.node, np.zeros(layer.channels, np.int32), "bias_zero_point"),
            ],
            before=layer.node,
            attributes={"axis": 0},
            outputs=[f"{layer.name}_bias"],
        )
        self.edit.set_input(layer.node, index, made.outputs[0])
        self.edit.count("biases added")
        return np.asarray(numbers * steps.astype(np.float64), np.float64)

    def _float_bias(
        self, layer: QuantizedLayer, index: int, bias: NDArray[Any]
    ) -> NDArray[np.float64]:
        made = self._constant(layer.node, bias, f"{layer.name}_bias")
        self.edit.set_input(layer.node, index, made)
        self.edit.count("biases added")
        return bias.astype(np.float64)

    def _constant(self, node: ir.Node, numbers: NDArray[Any], name: str) -> ir.Value:
        if node.graph is None:
            raise ValueError(f"not in a graph: {node.name}")
        return self.edit.initializer(numbers, name=name, graph=node.graph)


# -- scales -----------------------------------------------------------------------------------------


def can_rescale(layer: QuantizedLayer) -> bool:
    """Whether the scales of a weight may change: they are one, or one for each output, and no bias minds."""
    grid = layer.grid
    if grid.block or grid.scale.size not in {1, layer.channels} or not np.all(grid.zero == 0):
        return False
    if grid.scale.size > 1 and grid.axis != _output_axis(layer.node, len(grid.shape)):
        return False
    bias = grid_of(input_at(layer.node, 2)) if layer.end is layer.node else None
    if bias is None:
        return True
    alone = len(bias.node.outputs[0].uses()) == 1
    return alone and grid.scale.size in {1, bias.scale.size}


def _output_axis(node: ir.Node, rank: int) -> int:
    """The axis of a weight's outputs."""
    if is_op(node, "Conv"):
        return 0
    if is_op(node, "ConvTranspose"):
        return 1
    return 0 if attribute(node, "transB", 0) else rank - 1


def rescale(edit: Edit, layer: QuantizedLayer, factor: NDArray[np.float64]) -> None:
    """Multiplies the scales of a weight; an int32 bias, whose steps follow from them, stays what it is."""
    node, each = layer.grid.node, factor if layer.grid.scale.size > 1 else factor[:1]
    new = (layer.grid.scale.reshape(-1) * each).astype(layer.grid.scale.dtype)
    put_constant(edit, node, 1, new.reshape(layer.grid.scale.shape))
    bias = grid_of(input_at(layer.node, 2)) if layer.end is layer.node else None
    if bias is not None and bias.dtype == "INT32":
        rescale_bias(edit, bias.node, each)


def rescale_bias(edit: Edit, node: ir.Node, factor: NDArray[np.float64]) -> None:
    """Gives an int32 bias steps that are larger by a factor, and fewer of them."""
    numbers, scale = array(node.inputs[0]), array(node.inputs[1])
    if numbers is None or scale is None:
        raise ValueError(f"not a constant: {node.name}")
    steps = np.asarray(scale * factor, scale.dtype).reshape(scale.shape)
    wide = numbers * scale.astype(np.float64) / np.where(steps == 0, 1.0, steps)
    fewer = np.clip(np.rint(wide), _INT32.min, _INT32.max).astype(np.int32)
    put_constant(edit, node, 0, fewer)
    put_constant(edit, node, 1, steps)


def put_constant(edit: Edit, node: ir.Node, index: int, new: NDArray[Any]) -> None:
    """Gives a node a constant of its own: others may read the one that was there."""
    old = input_at(node, index)
    alone = old is not None and old.is_initializer() and len(old.uses()) == 1
    if old is not None and alone and not is_interface(old):
        edit.set_tensor(old, new)
    elif node.graph is not None:
        name = "constant" if old is None else old.name or "constant"
        edit.set_input(node, index, edit.initializer(new, name=name, graph=node.graph))
