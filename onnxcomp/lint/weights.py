"""Rules about stored tensors: axes, scales, biases, what is stored in float for nothing."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.diagnostics import Severity
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, standard_op
from onnxcomp.lint.grid import Grid, along, dequantize, grid_of
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.lint.view import is_quantizer
from onnxcomp.quant.weights import weight_params
from onnxcomp.targets.features import saturates

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View
    from onnxcomp.quant.scheme import Params

# Relu and Clip behind each other that are looked past.
_CHAIN = 4
# Weights above this many elements are not looked through for single values.
_LOOKED_THROUGH = 1 << 22


def output_axis(node: ir.Node, rank: int) -> int:
    """Returns the axis of the output channels of a weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return rank - 1


def wrong_axis(view: View) -> Iterator[Finding]:
    """Scales of a Conv or Gemm weight along another axis than that of the output channels."""
    for node, weight in view.layers():
        grid, tensor = view.grid(weight), constant(weight.inputs[0])
        if grid is None or tensor is None or grid.single or grid.block:
            continue
        rank = len(tensor.shape)
        axis = grid.axis % rank if rank else 0
        if node.op_type == "MatMul" or axis == output_axis(node, rank):
            continue
        if view.target.refuses("per-channel-axis", node.op_type) is None or not is_unit(view, node):
            continue
        sizes = tensor.shape.numpy()
        if sizes[axis] != grid.scale.size:
            continue
        equal = sizes[axis] == sizes[output_axis(node, rank)]
        what = "gives wrong numbers without a word" if equal else "fails at run time"
        yield finding(
            node,
            f"scales of the weight lie along axis {axis}, not along the output channels: the provider {what}",
            partial(_requantize, node, weight),
        )


def wrong_rows(view: View) -> Iterator[Finding]:
    """Scales of a MatMul weight along the axis that is summed over."""
    for node, weight in view.layers():
        grid, tensor = view.grid(weight), constant(weight.inputs[0])
        if node.op_type != "MatMul" or grid is None or tensor is None or grid.single or grid.block:
            continue
        rank = len(tensor.shape)
        if rank and grid.axis % rank != rank - 1 and is_unit(view, node):
            yield finding(
                node,
                "scales of the weight lie along the axis that is summed over: the kernel fails when it runs",
                partial(_requantize, node, weight),
            )


def is_unit(view: View, node: ir.Node) -> bool:
    """Whether a provider would make an int8 kernel of a node: DQ in front, Q behind where it must be."""
    if view.activation_dq(input_at(node, 0)) is None:
        return False
    return node.op_type in {"MatMul", "Gemm"} or view.quantizer_behind(last_value(node)) is not None


def last_value(node: ir.Node) -> ir.Value:
    """The output of a node, or of the Relu or Clip that is its only reader."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in {"Relu", "Clip"} and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _requantize(node: ir.Node, weight: ir.Node, edit: Edit) -> None:
    """Stores the values of a weight with scales along its output channels."""
    tensor, grid, graph = constant(weight.inputs[0]), grid_of(weight), node.graph
    values = None if tensor is None or grid is None else dequantize(tensor.numpy(), grid)
    if values is None or graph is None:
        return
    axis = output_axis(node, values.ndim) if values.ndim == 2 or node.op_type != "MatMul" else None
    params = weight_params(values, axis)
    name = weight.outputs[0].name or "weight"
    edit.set_input(node, 1, put_weight(edit, node, name, values, params))


def put_weight(
    edit: Edit, node: ir.Node, name: str, values: NDArray[Any], params: Params
) -> ir.Value:
    """Stores a weight as numbers behind a DQ; returns what that makes."""
    graph = node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {node.name}")
    made = edit.insert(
        "DequantizeLinear",
        [
            edit.initializer(params.quantize(values), name=f"{name}_quantized", graph=graph),
            edit.initializer(params.scale, name=f"{name}_scale", graph=graph),
            edit.initializer(params.zero_point, name=f"{name}_zero_point", graph=graph),
        ],
        before=node,
        attributes={} if params.axis is None else {"axis": params.axis},
        outputs=[f"{name}_dequantized"],
        like=node.inputs[1],
    )
    return made.outputs[0]


def rounded_by_runtime(view: View, node: ir.Node) -> bool:
    """Whether onnxruntime rounds a float weight of a node to int8 by itself, with one scale.

    It does for Conv, ConvTranspose and Gemm between a DQ and a Q, with nothing but Relu and Clip before the
    Q (`weight_bias_quantization.cc`), whether there is an int8 kernel for the node or not.
    """
    if standard_op(node) not in {"Conv", "ConvTranspose", "Gemm"} or view.target.provider != "cpu":
        return False
    first = view.activation_dq(input_at(node, 0))
    grid = None if first is None else view.grid(first)
    if grid is None or not grid.single:
        return False
    value = node.outputs[0]
    for _ in range(_CHAIN):
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return False
        reader = uses[0].node
        if is_quantizer(reader):
            return uses[0].idx == 0
        if standard_op(reader) not in {"Relu", "Clip"} or uses[0].idx != 0:
            return False
        value = reader.outputs[0]
    return False


def rounded_in_silence(view: View) -> Iterator[Finding]:
    """Float weights that the provider rounds to int8 without being asked."""
    for node in view.nodes:
        tensor = constant(input_at(node, 1))
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) < 2:
            continue
        if rounded_by_runtime(view, node):
            yield finding(
                node,
                "its weight is float between DQ and Q: the provider rounds it to int8 with one scale for all channels",
                partial(_store_by_channel, node)
                if attribute(node, "group", 1) == 1 or node.op_type == "Conv"
                else None,
            )


def _store_by_channel(node: ir.Node, edit: Edit) -> None:
    """Stores a float weight as int8 with a scale for each output channel."""
    tensor, graph, value = constant(node.inputs[1]), node.graph, node.inputs[1]
    values = None if tensor is None else tensor.numpy()
    if values is None or graph is None or value is None or not np.isfinite(values).all():
        return
    params = weight_params(values, output_axis(node, values.ndim))
    edit.set_input(node, 1, put_weight(edit, node, value.name or "weight", values, params))


def bad_scale(view: View) -> Iterator[Finding]:
    """Scales that are zero, negative, no numbers, or too small to be divided by."""
    for node in (*view.quantizers, *view.dequantizers):
        grid = view.grid(node)
        if grid is None or grid.scale.dtype.kind != "f":
            continue
        scale = grid.scale.astype(np.float32)
        if not np.isfinite(scale).all():
            yield finding(node, "its scale is NaN or infinite: so is everything that it makes")
        elif (scale < 0).any():
            yield finding(node, "its scale is negative: kernels disagree about what that means")
        elif (scale == 0).any():
            if is_quantizer(node):
                yield finding(node, "its scale is 0: it divides by that")
        elif (scale < np.finfo(np.float32).tiny).any():
            yield finding(
                node,
                "its scale is subnormal: processors that flush such numbers to 0 divide by 0",
                severity=Severity.WARNING,
            )


def bad_shape(view: View) -> Iterator[Finding]:
    """Scales, zero points and axes that do not fit each other."""
    for node in (*view.quantizers, *view.dequantizers):
        grid = view.grid(node)
        if grid is None:
            continue
        if grid.zero is not None and grid.zero.shape != grid.scale.shape:
            if grid.zero.size != grid.scale.size or not grid.single:
                yield finding(node, "its scale and its zero point have different shapes")
            continue
        tensor = constant(input_at(node, 0))
        if tensor is None:
            continue
        typed = grid.zero is not None and node.op_type == "DequantizeLinear"
        if typed and tensor.dtype != grid.dtype:
            yield finding(node, "its zero point is of another type than its numbers")
            continue
        rank = len(tensor.shape)
        if not grid.single and not grid.block:
            fits = -rank <= grid.axis < rank and tensor.shape[grid.axis] == grid.scale.size
            if not fits:
                yield finding(node, f"{grid.scale.size} scales do not fit axis {grid.axis}")


def fold_dq(node: ir.Node, edit: Edit) -> None:
    """Puts the float values of a stored tensor in the place of its DQ."""
    tensor, grid, graph = constant(node.inputs[0]), grid_of(node), node.graph
    values = None if tensor is None or grid is None else dequantize(tensor.numpy(), grid)
    if values is None or grid is None or graph is None or node.outputs[0].is_graph_output():
        return
    values = values.astype(grid.scale.dtype)
    made = edit.initializer(values, name=node.outputs[0].name or "weight", graph=graph)
    edit.replace(node.outputs[0], made)


def quantized_at_run(view: View) -> Iterator[Finding]:
    """Constants that are stored in float and quantized when the model is loaded."""
    for node in view.quantizers:
        tensor = constant(input_at(node, 0))
        grid = view.grid(node)
        if tensor is None or grid is None or tensor.dtype != ir.DataType.FLOAT:
            continue
        fits = grid.dtype in {ir.DataType.INT8, ir.DataType.UINT8} and not grid.block
        yield finding(
            node,
            f"a constant of {tensor.size} numbers is stored in float and quantized at load: four times as large",
            partial(_store_numbers, node, grid) if fits and bool((grid.scale > 0).all()) else None,
        )


def _numbers(tensor: ir.TensorProtocol, grid: Grid) -> NDArray[Any] | None:
    """The quantized numbers of a constant, None where parameters do not fit or it holds no numbers."""
    values = tensor.numpy()
    if grid.dtype is None or not np.isfinite(values).all():
        return None
    scale = along(values.shape, grid.scale, grid)
    zero = along(values.shape, np.zeros(1) if grid.zero is None else grid.zero, grid)
    if scale is None or zero is None:
        return None
    # In single precision, as kernels divide.
    rounded = np.rint(values / scale.astype(np.float32)) + zero.astype(np.int64)
    numbers: NDArray[Any] = np.clip(rounded, *grid.limits).astype(grid.dtype.numpy())
    return numbers


def _store_numbers(node: ir.Node, grid: Grid, edit: Edit) -> None:
    tensor, graph = constant(node.inputs[0]), node.graph
    numbers = None if tensor is None else _numbers(tensor, grid)
    if numbers is None or graph is None:
        return
    made = edit.initializer(numbers, name=f"{node.outputs[0].name}_stored", graph=graph)
    edit.replace(node.outputs[0], made)


def saturating(view: View) -> Iterator[Finding]:
    """Weights of 8 bits on a processor whose int8 products saturate."""
    here = view.target.provider == "cpu" and view.target.machine is None and saturates()
    if not here and view.target.weight.bits != 7:
        return
    for node, weight in view.layers():
        tensor = constant(weight.inputs[0])
        if tensor is None or tensor.dtype != ir.DataType.INT8 or tensor.size > _LOOKED_THROUGH:
            continue
        if view.activation_dq(input_at(node, 0)) is None:
            continue
        numbers = tensor.numpy().astype(np.int16)
        if numbers.size and int(np.abs(numbers).max()) > 64:
            yield finding(
                node,
                "its weight uses all 8 bits: without VNNI, sums of two products saturate at 16 bits",
                hint="quantize with reduced range (7 bits)",
            )
