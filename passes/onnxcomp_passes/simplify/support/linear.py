"""Weights and biases of linear operators, seen per channel.

`y = W x + b` followed by `y * s + t` is `(W s) x + (b s + t)`; what stands before goes in likewise.
Everything is computed in double precision and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.diagnostics import Location
from onnxcomp.ir import ir
from onnxcomp.ir.ops import (
    array,
    attribute,
    constant,
    has_reference_attribute,
    input_at,
    producer_of,
    standard_op,
)
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import read_beside
from onnxcomp_passes.simplify.support.base import sweep
from onnxcomp_passes.simplify.support.dims import only_axis

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

    Array = np.ndarray[Any, Any]

ACCURATE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# A weight with other readers is copied, and the file grows by it, up to this size.
LARGEST_COPY = 16 << 20
# Factors outside would push ordinary weights into subnormals or towards infinity.
SMALLEST, LARGEST = 1e-20, 1e20


@dataclass(frozen=True)
class Linear:
    """A Conv, ConvTranspose, Gemm or MatMul with a constant weight.

    Attributes:
        node: The operator.
        weight: Its weight.
        inputs: Number of channels read.
        outputs: Number of channels made.
        groups: Number of groups of channels.
        rank: Number of dimensions of the output, None when it is not known (MatMul).
        adder: The Add behind a MatMul that acts as its bias, if there is one.
    """

    node: ir.Node
    weight: ir.Value
    inputs: int
    outputs: int
    groups: int
    rank: int | None
    adder: ir.Node | None = None

    @property
    def is_conv(self) -> bool:
        """Whether channels are axis 1, not the last one."""
        return self.node.op_type in {"Conv", "ConvTranspose"}

    @property
    def axis(self) -> int | None:
        """The axis of the channels in the output, None when it is not known."""
        return 1 if self.is_conv else None if self.rank is None else self.rank - 1

    @property
    def last(self) -> ir.Node:
        """The node that makes the result."""
        return self.adder or self.node

    @property
    def transposed(self) -> bool:
        """Whether a matrix weight is stored as outputs by inputs."""
        return self.node.op_type == "Gemm" and attribute(self.node, "transB", 0) == 1

    def bias_place(self) -> tuple[ir.Node, int]:
        """Returns the node and the input that hold the bias, or would hold it."""
        if self.adder is None:
            return self.node, 2
        return self.adder, int(self.adder.inputs[0] is self.node.outputs[0])

    def bias(self) -> Array | None:
        """Returns the bias per channel, zeros when there is none, None when it is not constant."""
        node, index = self.bias_place()
        value = input_at(node, index)
        if value is None:
            return np.zeros(self.outputs)
        found = array(value)
        rank = 1 if self.is_conv else 2 if self.adder is None else self.rank or 0
        if found is None or not only_axis(found.shape, rank, rank - 1, self.outputs):
            return None
        beta = float(attribute(self.node, "beta", 1.0)) if self.node.op_type == "Gemm" else 1.0
        return np.broadcast_to(found.astype(np.float64).reshape(-1) * beta, (self.outputs,))

    def along_outputs(self, values: Array) -> Array:
        """Lays one number per output channel out so that it multiplies the weight."""
        return self._laid_out(values, conv_axis=0, transposed=self.transposed)

    def along_inputs(self, values: Array) -> Array:
        """Lays one number per input channel out so that it multiplies the weight."""
        return self._laid_out(values, conv_axis=1, transposed=not self.transposed)

    def _laid_out(self, values: Array, *, conv_axis: int, transposed: bool) -> Array:
        if not self.is_conv:
            return values.reshape((-1, 1) if transposed else (1, -1))
        tail = (1,) * (len(self.weight_shape) - 2)
        # ConvTranspose stores inputs before outputs. The first axis runs through the groups, the
        # second one through the channels of one group only.
        if conv_axis == (0 if self.node.op_type == "Conv" else 1):
            return values.reshape(-1, 1, *tail)
        first, second = self.weight_shape[:2]
        table = values.reshape(self.groups, 1, second)
        return np.repeat(table, first // self.groups, axis=1).reshape(first, second, *tail)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        tensor = constant(self.weight)
        assert tensor is not None
        return tuple(tensor.shape.numpy())

    def shift_through(self, shift: Array) -> Array:
        """Returns what a constant per input channel adds to each output channel."""
        weight = array(self.weight)
        assert weight is not None
        product = np.asarray(weight, np.float64) * self.along_inputs(shift)
        if self.is_conv:
            return np.asarray(product.sum(axis=tuple(range(1, product.ndim))))
        alpha = float(attribute(self.node, "alpha", 1.0)) if self.node.op_type == "Gemm" else 1.0
        return np.asarray(product.sum(axis=1 if self.transposed else 0) * alpha)

    def scaled(self, factor: Array) -> Array | None:
        """Returns the weight times a factor that is laid out for it, None if that is not sound."""
        weight = array(self.weight)
        size = np.abs(factor[factor != 0])
        if weight is None or (size.size and not (size.min() > SMALLEST and size.max() < LARGEST)):
            return None
        made = np.empty_like(weight)
        # A buffered loop: in double precision, without a whole copy in double precision.
        np.multiply(weight, factor, out=made, dtype=np.float64, casting="unsafe")
        return made if bool(np.isfinite(made).all()) else None

    def may_change(self) -> bool:
        """Whether the weight is read here only, or small enough to be copied."""
        tensor = constant(self.weight)
        return tensor is not None and (
            len(self.weight.uses()) == 1 or tensor.nbytes <= LARGEST_COPY
        )


def linear_of(node: ir.Node | None, shapes: ShapeMap) -> Linear | None:
    """Returns a linear operator with a constant floating-point weight as one, else None."""
    if node is None or standard_op(node) not in LINEAR or len(node.inputs) < 2:
        return None
    if has_reference_attribute(node):
        return None
    weight = node.inputs[1]
    tensor = constant(weight)
    if weight is None or tensor is None or not tensor.dtype.is_floating_point():
        return None
    shape = tuple(tensor.shape.numpy())
    if node.op_type in {"Conv", "ConvTranspose"}:
        groups = attribute(node, "group", 1)
        first, second = shape[0], shape[1] * groups
        makes, reads = (first, second) if node.op_type == "Conv" else (second, first)
        return Linear(node, weight, reads, makes, groups, len(shape))
    if len(shape) != 2:
        return None
    transposed = node.op_type == "Gemm" and attribute(node, "transB", 0) == 1
    reads, makes = reversed(shape) if transposed else shape
    rank = 2 if node.op_type == "Gemm" else shapes.rank(node.inputs[0])
    # A vector times a matrix has one dimension; that form is left alone.
    return None if rank == 1 else Linear(node, weight, reads, makes, 1, rank)


def linear_before(value: ir.Value | None, node: ir.Node, shapes: ShapeMap) -> Linear | None:
    """Returns the linear operator whose result only `node` reads, a MatMul with its Add as one."""
    maker = producer_of(value, *LINEAR, "Add")
    if maker is None or value is None or only_reader(value) is not node:
        return None
    if maker.graph is not node.graph:
        return None
    if maker.op_type != "Add":
        return linear_of(maker, shapes)
    for operand in maker.inputs:
        inner = linear_of(producer_of(operand, "MatMul"), shapes)
        if (
            inner is not None
            and inner.rank is not None
            and only_reader(inner.node.outputs[0]) is maker
        ):
            found = Linear(
                inner.node, inner.weight, inner.inputs, inner.outputs, 1, inner.rank, maker
            )
            return found if found.bias() is not None else None
    return None


def why_not_before(value: ir.Value | None, node: ir.Node, shapes: ShapeMap) -> str:
    """Returns why `linear_before` finds nothing, as a sentence part for a near-miss."""
    maker = None if value is None else value.producer()
    if maker is None or value is None:
        return "no Conv, Gemm or MatMul stands before it"
    where = Location.of(maker)
    if standard_op(maker) not in LINEAR:
        return f"{where} stands between it and what could take it in"
    if maker.graph is not node.graph:
        return f"{where} before it is in another graph"
    if beside := read_beside(value, node):
        return f"{where} before it {beside}"
    return "" if linear_of(maker, shapes) else f"the weight of {where} before it is not constant"


def shared_linear(value: ir.Value | None, shapes: ShapeMap) -> Linear | None:
    """Returns the linear operator that makes a value, whoever else reads it."""
    return linear_of(producer_of(value, *LINEAR), shapes)


def store(edit: Edit, node: ir.Node, index: int, contents: Array, wish: str) -> None:
    """Gives a node a constant of its own; other readers of the old one keep it."""
    old = input_at(node, index)
    if (
        old is not None
        and old.is_initializer()
        and len(old.uses()) == 1
        and not old.is_graph_output()
        and constant(old) is not None
        and (not old.is_graph_input() or old.shape == contents.shape)
    ):
        edit.set_tensor(old, contents)
        return
    assert node.graph is not None
    name = (old.name if old is not None else None) or wish
    edit.set_input(node, index, edit.initializer(contents, name=name, graph=node.graph))
    sweep(edit, old)


def store_bias(edit: Edit, linear: Linear, bias: Array) -> None:
    """Sets the bias; a MatMul of rank 2 without an Add becomes a Gemm to have one."""
    node, index = linear.bias_place()
    if input_at(node, index) is None and not bias.any():
        return
    tensor = constant(linear.weight)
    assert tensor is not None
    if node.op_type == "MatMul":
        edit.set_operator(node, "Gemm")
    if node.op_type == "Gemm":
        edit.set_attribute(node, "beta", None)
    wish = f"{linear.weight.name}_bias"
    store(edit, node, index, bias.astype(tensor.dtype.numpy()), wish)
