"""Operators on integers, written as operators in float between QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at
from onnxcomp.quant.stored import dequantized, matmul_nbits, unpacked
from onnxcomp_passes.quantize.float_twins import Grid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxcomp.ir import Edit
    from onnxcomp_passes.quantize.float_twins import Twins

_MOST_ELEMENTS = 1 << 30


class _UnsupportedError(Exception):
    """A form that is not turned back, with the reason."""


@dataclass
class Lowering:
    """One node while it is turned into float operators."""

    node: ir.Node
    twins: Twins
    opset: int

    @property
    def edit(self) -> Edit:
        """The way to change the model."""
        return self.twins.edit

    def run(self) -> str:
        """Rewrites the node; returns why not, empty when it was."""
        rule = RULES.get(self.node.op_type)
        if rule is None:
            return "no rule for this operator"
        mark = self.edit.mark()
        try:
            rule(self)
        except _UnsupportedError as error:
            self.edit.rollback(mark)
            return str(error)
        if all(not value.uses() and not value.is_graph_output() for value in self.node.outputs):
            self.edit.remove(self.node)
        self.edit.count("operators turned back")
        return ""

    # -- operands

    def given(self, index: int) -> ir.Value:
        """Returns an input that has to be there."""
        value = input_at(self.node, index)
        if value is None:
            raise _UnsupportedError(f"input {index} is missing")
        return value

    def grid(self, scale: int, zero_point: int, axis: int = 1) -> Grid:
        """Returns scale and zero point among the inputs."""
        return Grid(self.given(scale), input_at(self.node, zero_point), axis)

    def real(self, index: int, grid: Grid) -> ir.Value:
        """Returns a quantized input in float."""
        value = self.given(index)
        if constant(value) is not None:
            found = self.twins.stored(value, grid)
            if found is None:
                raise _UnsupportedError(
                    "the scale of a weight is not constant, or has another shape"
                )
            return found
        if not grid.is_single:
            raise _UnsupportedError("an activation has several scales")
        made = self.edit.insert(
            "DequantizeLinear",
            self._on_grid(value, grid),
            before=self.node,
            outputs=[f"{value.name}_real"],
        )
        self.edit.set_type(made.outputs[0], ir.DataType.FLOAT, value.shape)
        return made.outputs[0]

    def _on_grid(self, value: ir.Value, grid: Grid) -> list[ir.Value | None]:
        scale, zero = self._scalar(grid.scale), self._scalar(grid.zero_point)
        return [value, scale] if zero is None else [value, scale, zero]

    def _scalar(self, value: ir.Value | None) -> ir.Value | None:
        """Returns a value that is one number as a scalar, which older opsets demand."""
        tensor = constant(value)
        if value is None or tensor is None or len(tensor.shape) == 0 or value.graph is None:
            return value
        plain = ir.Tensor(tensor.numpy().reshape(()), dtype=tensor.dtype)
        return self.edit.initializer(plain, name=f"{value.name}_scalar", graph=value.graph)

    def constant(self, number: np.ndarray[Any, Any], name: str) -> ir.Value:
        """Adds a constant."""
        graph = self.node.graph
        if graph is None:
            raise _UnsupportedError("not in a graph")
        return self.edit.initializer(number, name=name, graph=graph)

    def numbers(self, index: int) -> np.ndarray[Any, Any]:
        """Returns a constant input."""
        found = array(input_at(self.node, index), limit=_MOST_ELEMENTS)
        if found is None:
            raise _UnsupportedError(f"input {index} is not constant")
        return found

    def kept(self, *names: str) -> dict[str, ir.Attr]:
        """Returns the attributes of some names."""
        found = self.node.attributes
        return {name: found[name] for name in names if name in found}

    def insert(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, Any] | None = None,
        outputs: int | Sequence[str] = 1,
    ) -> ir.Node:
        """Adds a float operator in front of the node."""
        names = [f"{self.node.outputs[0].name}_real"] if outputs == 1 else outputs
        return self.edit.insert(
            op_type,
            inputs,
            before=self.node,
            outputs=names,
            attributes=attributes,
            name=self.node.name,
        )

    # -- results

    def give(self, value: ir.Value) -> None:
        """Puts a float value in place of the node's float result."""
        old = self.node.outputs[0]
        self.edit.set_type(value, old.dtype, old.shape)
        self.edit.replace(old, value)

    def quantize(self, value: ir.Value, scale: int, zero_point: int) -> None:
        """Puts a float value, quantized, in place of the node's result."""
        grid = self.grid(scale, zero_point)
        if not grid.is_single:
            raise _UnsupportedError("the result has several scales")
        old = self.node.outputs[0]
        self.edit.set_type(value, ir.DataType.FLOAT, old.shape)
        made = self.edit.insert(
            "QuantizeLinear",
            self._on_grid(value, grid),
            before=self.node,
            outputs=[f"{old.name}_quantized"],
            like=old,
        )
        self.edit.replace(old, made.outputs[0])


def _conv(site: Lowering) -> None:
    node = site.node
    if attribute(node, "channels_last", 0) != 0:
        raise _UnsupportedError("channels last")
    x, w = site.real(0, site.grid(1, 2)), site.real(3, site.grid(4, 5, 0))
    inputs: list[ir.Value | None] = [x, w]
    if input_at(node, 8) is not None:
        scale = site.numbers(1).reshape(-1) * site.numbers(4).reshape(-1)
        bias = site.numbers(8).astype(np.float64) * scale
        inputs.append(site.constant(bias.astype(np.float32), f"{site.given(8).name}_float"))
    names = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
    made = site.insert("Conv", inputs, site.kept(*names))
    site.quantize(made.outputs[0], 6, 7)


def _matmul(site: Lowering) -> None:
    a, b = site.real(0, site.grid(1, 2, -2)), site.real(3, site.grid(4, 5, -1))
    site.quantize(site.insert("MatMul", [a, b]).outputs[0], 6, 7)


def _gemm(site: Lowering) -> None:
    node = site.node
    axis = 0 if attribute(node, "transB", 0) else 1
    inputs: list[ir.Value | None] = [
        site.real(0, site.grid(1, 2)),
        site.real(3, site.grid(4, 5, axis)),
    ]
    if input_at(node, 6) is not None:
        scale = site.numbers(1).reshape(-1) * site.numbers(4).reshape(-1)
        bias = site.numbers(6) * scale * attribute(node, "alpha", 1.0)
        inputs.append(site.constant(bias.astype(np.float32), f"{site.given(6).name}_float"))
    made = site.insert("Gemm", inputs, site.kept("alpha", "transA", "transB"))
    if input_at(node, 7) is None:
        site.give(made.outputs[0])
    else:
        site.quantize(made.outputs[0], 7, 8)


def _binary(op_type: str) -> Callable[[Lowering], None]:
    def lower(site: Lowering) -> None:
        a, b = site.real(0, site.grid(1, 2)), site.real(3, site.grid(4, 5))
        site.quantize(site.insert(op_type, [a, b]).outputs[0], 6, 7)

    return lower


def _unary(op_type: str, *names: str) -> Callable[[Lowering], None]:
    def lower(site: Lowering) -> None:
        if attribute(site.node, "channels_last", 0) != 0:
            raise _UnsupportedError("channels last")
        x = site.real(0, site.grid(1, 2))
        site.quantize(site.insert(op_type, [x], site.kept(*names)).outputs[0], 3, 4)

    return lower


def _softmax(site: Lowering) -> None:
    shape, axis = site.node.inputs[0], attribute(site.node, "axis", -1)
    version = attribute(site.node, "opset", site.opset)
    rank = None if shape is None or shape.shape is None else len(shape.shape)
    is_last = axis == -1 or (rank is not None and axis == rank - 1)
    if (version < 13) != (site.opset < 13) and not is_last:
        raise _UnsupportedError("a Softmax of another opset")
    x = site.real(0, site.grid(1, 2))
    site.quantize(site.insert("Softmax", [x], {"axis": axis}).outputs[0], 3, 4)


def _concat(site: Lowering) -> None:
    count = (len(site.node.inputs) - 2) // 3
    parts = [site.real(2 + 3 * i, site.grid(3 + 3 * i, 4 + 3 * i)) for i in range(count)]
    made = site.insert("Concat", parts, {"axis": attribute(site.node, "axis", 0)})
    site.quantize(made.outputs[0], 0, 1)


def _where(site: Lowering) -> None:
    x, y = site.real(1, site.grid(2, 3)), site.real(4, site.grid(5, 6))
    site.quantize(site.insert("Where", [site.given(0), x, y]).outputs[0], 7, 8)


def _matmul_to_float(site: Lowering) -> None:
    a = site.twins.of(site.given(0), site.grid(2, 4))
    a = site.real(0, site.grid(2, 4)) if a is None else a
    _biased(site, a, site.real(1, site.grid(3, 5, -1)), 6)


def _dynamic_matmul(site: Lowering) -> None:
    _biased(site, site.given(0), site.real(1, site.grid(2, 3, -1)), 4)


def _biased(site: Lowering, a: ir.Value, b: ir.Value, bias: int) -> None:
    made = site.insert("MatMul", [a, b])
    given = input_at(site.node, bias)
    if given is not None:
        made = site.insert("Add", [made.outputs[0], given])
    site.give(made.outputs[0])


def _lstm(site: Lowering) -> None:
    """W and R are stored as (directions, inputs, 4 * hidden), the transpose of what LSTM takes."""
    weights = []
    for index, scale, zero in ((1, 8, 9), (2, 10, 11)):
        numbers, scales = site.numbers(index), site.numbers(scale)
        zeros = None if input_at(site.node, zero) is None else site.numbers(zero)
        directions = numbers.shape[0]
        wide = dequantized(
            numbers,
            np.broadcast_to(scales.reshape(directions, 1, -1), numbers.shape),
            None
            if zeros is None
            else np.broadcast_to(zeros.reshape(directions, 1, -1), numbers.shape),
            0,
            1,
        )
        turned = np.ascontiguousarray(wide.transpose(0, 2, 1)).astype(np.float32)
        weights.append(site.constant(turned, f"{site.given(index).name}_float"))
    inputs = [site.given(0), *weights, *(input_at(site.node, i) for i in range(3, 8))]
    while inputs[-1] is None:
        inputs.pop()
    names = [f"{value.name}_real" for value in site.node.outputs]
    made = site.insert("LSTM", inputs, dict(site.node.attributes), names)
    for old, new in zip(site.node.outputs, made.outputs, strict=True):
        site.edit.set_type(new, ir.DataType.FLOAT, old.shape)
        if old.uses() or old.is_graph_output():
            site.edit.replace(old, new)


def _matmul_nbits(site: Lowering) -> None:
    node = site.node
    rows, columns = int(attribute(node, "K", 0)), int(attribute(node, "N", 0))
    bits, block = int(attribute(node, "bits", 4)), int(attribute(node, "block_size", 0))
    if bits not in {2, 4, 8} or block < 1 or input_at(node, 4) is not None:
        raise _UnsupportedError("an order of rows of its own, or bits that are not 2, 4 or 8")
    if attribute(node, "weight_prepacked", 0) != 0 or rows * columns > _MOST_ELEMENTS:
        raise _UnsupportedError("weights are packed for one kind of processor")
    for index in (1, 2):
        site.numbers(index)
    zero = None if input_at(node, 3) is None else site.numbers(3)
    packed, scales = site.numbers(1), site.numbers(2)
    if packed.size * 8 != columns * -(-rows // block) * block * bits or scales.size != columns * -(
        -rows // block
    ):
        raise _UnsupportedError("the size of the weight does not fit")

    def compute() -> np.ndarray[Any, Any]:
        return matmul_nbits(
            packed, scales, zero, rows=rows, columns=columns, bits=bits, block=block
        )

    dtype = ir.DataType.from_numpy(scales.dtype)
    weight = site.twins.lazy(site.given(1), compute, dtype, (rows, columns))
    if weight is None:
        raise _UnsupportedError("not in a graph")
    _biased(site, site.given(0), weight, 5)


def _gather_block(site: Lowering) -> None:
    node = site.node
    axis, block = attribute(node, "quantize_axis", 1), attribute(node, "block_size", 128)
    numbers, scales, tensor = site.numbers(0), site.numbers(2), constant(site.given(0))
    zeros = None if input_at(node, 3) is None else site.numbers(3)
    bits = int(attribute(node, "bits", 4))
    if tensor is not None and tensor.dtype == ir.DataType.UINT8:
        if bits not in {2, 4, 8} or axis not in {-1, numbers.ndim - 1}:
            raise _UnsupportedError("bytes packed along another axis")
        numbers = unpacked(numbers, bits, numbers.shape[-1] * (8 // bits))
        if zeros is None:
            zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
        else:
            zeros = unpacked(zeros, bits, scales.shape[-1])
    wide = dequantized(numbers, scales, zeros, axis, block)
    weight = site.constant(wide, f"{site.given(0).name}_float")
    attributes = {"axis": attribute(node, "gather_axis", 0)}
    site.give(site.insert("Gather", [weight, site.given(1)], attributes).outputs[0])


_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
RULES: Mapping[str, Callable[[Lowering], None]] = {
    "DynamicQuantizeLSTM": _lstm,
    "DynamicQuantizeMatMul": _dynamic_matmul,
    "GatherBlockQuantized": _gather_block,
    "MatMulIntegerToFloat": _matmul_to_float,
    "MatMulNBits": _matmul_nbits,
    "QGemm": _gemm,
    "QLinearAdd": _binary("Add"),
    "QLinearAveragePool": _unary("AveragePool", *_POOL),
    "QLinearConcat": _concat,
    "QLinearConv": _conv,
    "QLinearGlobalAveragePool": _unary("GlobalAveragePool"),
    "QLinearLeakyRelu": _unary("LeakyRelu", "alpha"),
    "QLinearMatMul": _matmul,
    "QLinearMul": _binary("Mul"),
    "QLinearSigmoid": _unary("Sigmoid"),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _where,
}
