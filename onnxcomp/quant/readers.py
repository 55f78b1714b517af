"""Operators that multiply rows of an activation with a constant matrix, and that matrix as one sees it."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import attribute, constant, input_at, is_op, use_count
from onnxcomp.quant.rows import MatrixRows, SpreadWindow, Window

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.rows import Rows

Layout = Literal["columns", "rows", "conv", "conv-transpose"]

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_RECURRENT = ("LSTM", "GRU", "RNN")


@dataclass(frozen=True, eq=False)
class Layer:
    """A node whose output is rows of an activation times a weight (and a bias, a nonlinearity...).

    Attributes:
        node: The node.
        index: Which input the weight is.
        source: The activation.
        weight: The weight; an initializer or the output of a Constant node.
        shape: Shape of the weight.
        layout: How the weight's numbers lie: one output is a column, a row, or a kernel.
        rows: How the activation becomes rows.
        groups: Parts that the weight has; each part multiplies rows of its own.
    """

    node: ir.Node
    index: int
    source: ir.Value
    weight: ir.Value
    shape: tuple[int, ...]
    layout: Layout
    rows: Rows
    groups: int = 1

    @property
    def name(self) -> str:
        """Name of the node, or of its output when it has none."""
        return self.node.name or self.node.outputs[0].name or ""

    @property
    def depth(self) -> int:
        """K: how many numbers of a row one output sums over."""
        shape = self.shape
        if self.layout == "conv":
            return prod(shape[1:])
        if self.layout == "conv-transpose":
            return shape[0] // self.groups * prod(shape[2:])
        return shape[-2] if self.layout == "columns" else shape[-1]

    @property
    def outputs(self) -> int:
        """N: how many outputs one part of the weight has."""
        return prod(self.shape) // max(self.depth * self.groups, 1)

    @property
    def is_shared(self) -> bool:
        """Whether something else reads the weight too."""
        return use_count(self.weight) > 1 or self.weight.is_graph_output()

    @property
    def activation_bytes(self) -> int:
        """Size of the activation where its shape is declared, else 0."""
        dims = self.source.shape
        sizes = [dim for dim in dims or () if isinstance(dim, int)]
        return 4 * prod(sizes) if dims is not None and len(sizes) == len(dims) else 0

    def read(self) -> NDArray[Any]:
        """Returns the weight as (K, N), or (groups, K, N); one output each column.

        Raises:
            ValueError: If the weight is not constant.
        """
        tensor = constant(self.weight)
        if tensor is None:
            raise ValueError(f"no constant weight: {self.name}")
        return self.to_matrix(tensor.numpy())

    def to_matrix(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns an array that lies as the weight does as (K, N), or (groups, K, N)."""
        groups, depth, outputs = self.groups, self.depth, self.outputs
        if self.layout == "columns":
            array = array.reshape(groups, depth, outputs)
        elif self.layout == "conv-transpose":
            split: Any = array.reshape(groups, self.shape[0] // groups, outputs, -1)
            array = split.swapaxes(2, 3).reshape(groups, depth, outputs)
        else:
            array = array.reshape(groups, outputs, depth).swapaxes(1, 2)
        return array[0] if groups == 1 else array

    def from_matrix(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """Returns what `to_matrix` gave in the weight's own shape; the element type stays."""
        groups, depth, outputs = self.groups, self.depth, self.outputs
        array: Any = matrix.reshape(groups, depth, outputs)
        if self.layout == "conv-transpose":
            array = array.reshape(groups, self.shape[0] // groups, -1, outputs).swapaxes(2, 3)
        elif self.layout != "columns":
            array = array.swapaxes(1, 2)
        shaped: NDArray[Any] = array.reshape(self.shape)
        return shaped


def layer_of(node: ir.Node, *, like: Layer | None = None) -> Layer | None:
    """Returns a node as a layer, None when it is no product of rows with a constant weight.

    Args:
        node: The node.
        like: The same layer of another model, for a node whose weight is computed (dequantized): the
            weight's shape is taken from there.
    """
    for index in (1, 0) if is_op(node, "MatMul") else (1,):
        weight, source = input_at(node, index), input_at(node, 1 - index)
        shape = _weight_shape(weight, index, like)
        if weight is None or source is None or not shape or 0 in shape:
            continue
        if constant(source) is not None:
            continue
        found = _described(node, index, shape)
        if found is not None:
            layout, rows, groups = found
            return Layer(node, index, source, weight, shape, layout, rows, groups)
    return None


def _weight_shape(weight: ir.Value | None, index: int, like: Layer | None) -> tuple[int, ...]:
    tensor = constant(weight)
    if tensor is not None:
        return tuple(tensor.shape.numpy()) if tensor.dtype in _FLOATS else ()
    return like.shape if like is not None and like.index == index else ()


def _described(
    node: ir.Node, index: int, shape: tuple[int, ...]
) -> tuple[Layout, Rows, int] | None:
    if any(attr.is_ref() for attr in node.attributes.values()):
        return None
    if is_op(node, "MatMul"):
        return _matmul(index, shape)
    if is_op(node, "Gemm"):
        axis = -2 if attribute(node, "transA", 0) else -1
        return ("rows" if attribute(node, "transB", 0) else "columns"), MatrixRows(axis), 1
    if is_op(node, *_RECURRENT):
        # Both directions read the same rows: one matrix (outputs of both, inputs).
        return "rows", MatrixRows(-1, batch=0 if attribute(node, "layout", 0) else 1), 1
    if is_op(node, "Conv", "ConvTranspose"):
        return _convolution(node, shape)
    return None


def _matmul(index: int, shape: tuple[int, ...]) -> tuple[Layout, Rows, int] | None:
    if len(shape) < 2:
        return None
    stack = shape[:-2] if prod(shape[:-2]) != 1 else ()
    if index == 1:
        return "columns", MatrixRows(-1, stack=stack), prod(stack)
    return "rows", MatrixRows(-2, stack=stack), prod(stack)


def _convolution(node: ir.Node, shape: tuple[int, ...]) -> tuple[Layout, Rows, int] | None:
    rank = len(shape) - 2
    groups = attribute(node, "group", 1)
    if rank < 1 or groups < 1 or shape[0] % groups:
        return None
    auto_pad: str = attribute(node, "auto_pad", "NOTSET")
    pads = tuple(attribute(node, "pads", (0,) * (2 * rank)))
    strides = tuple(attribute(node, "strides", (1,) * rank))
    dilations = tuple(attribute(node, "dilations", (1,) * rank))
    if len(pads) != 2 * rank or {len(strides), len(dilations)} != {rank}:
        return None
    if min(*strides, *dilations) < 1:
        return None
    kernel = shape[2:]
    if is_op(node, "Conv"):
        return "conv", Window(kernel, strides, dilations, pads, auto_pad, groups), groups
    extra: tuple[int, ...] = tuple(attribute(node, "output_padding", ()))
    wanted: tuple[int, ...] = tuple(attribute(node, "output_shape", ()))
    spread = SpreadWindow(kernel, strides, dilations, pads, auto_pad, groups, extra, wanted)
    return "conv-transpose", spread, groups
