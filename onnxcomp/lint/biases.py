"""Rules about biases: their scales, and whether they are float or int32."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at
from onnxcomp.lint.grid import Grid, dequantize, grid_of
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.lint.weights import fold_dq, is_unit, last_value, output_axis, put_weight
from onnxcomp.quant.scheme import Params

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View

# A bias may be off by this share of its scale before anybody can see it.
_TOLERANCE = 1e-3
_INT32 = np.iinfo(np.int32)
# Leaves a factor of two for the sums of products that are added.
_ROOM = float(2**30)


def bias_scale(view: View) -> Iterator[Finding]:
    """Biases stored with another scale than the product of the scales of activation and weight."""
    for node, weight in view.layers():
        bias = view.constant_dq(input_at(node, 2)) if node.op_type != "MatMul" else None
        first = view.activation_dq(input_at(node, 0))
        if bias is None or first is None or not is_unit(view, node) or _is_scaled(node):
            continue
        grids = [view.grid(n) for n in (first, weight, bias)]
        wanted = None if None in grids else _bias_scale([g for g in grids if g is not None])
        stored = grids[2]
        if wanted is None or stored is None or stored.dtype != ir.DataType.INT32:
            continue
        scale = np.broadcast_to(stored.scale.reshape(-1), wanted.shape).astype(np.float64)
        off = np.abs(scale - wanted) > _TOLERANCE * wanted
        shifted = stored.zero is not None and bool(stored.zero.any())
        if not off.any() and not shifted:
            continue
        worst = float(np.max(np.maximum(scale, wanted) / np.minimum(scale, wanted)))
        yield finding(
            bias,
            "the scale of the bias is not the product of the scales of activation and weight (up to "
            f"{worst:.3g} times apart): the int8 kernel adds the bias as if it were",
            partial(_rescale_bias, node, bias, wanted),
        )


def _is_scaled(node: ir.Node) -> bool:
    """Whether a Gemm multiplies its products with a number: then there is no kernel in int8 for it."""
    return node.op_type == "Gemm" and attribute(node, "alpha", 1.0) != 1.0


def _bias_scale(grids: list[Grid]) -> NDArray[np.float64] | None:
    first, weight, bias = grids
    if not first.single or weight.block or bias.block:
        return None
    size = max(weight.scale.size, bias.scale.size)
    if weight.scale.size not in {1, size} or bias.scale.size not in {1, size}:
        return None
    wanted = first.scale.reshape(-1).astype(np.float64) * weight.scale.reshape(-1)
    found: NDArray[np.float64] = np.broadcast_to(wanted, (size,)).copy()
    return found if np.isfinite(found).all() and (found > 0).all() else None


def _rescale_bias(node: ir.Node, bias: ir.Node, wanted: NDArray[np.float64], edit: Edit) -> None:
    grid, tensor, graph = grid_of(bias), constant(bias.inputs[0]), node.graph
    values = None if grid is None or tensor is None else dequantize(tensor.numpy(), grid)
    if values is None or graph is None:
        return
    put_bias(edit, node, values.reshape(-1), wanted)


def put_bias(edit: Edit, node: ir.Node, values: NDArray[Any], scale: NDArray[np.float64]) -> None:
    """Gives Conv or Gemm a bias as int32 behind a DQ with these scales."""
    graph, old = node.graph, input_at(node, 2)
    if graph is None or old is None:
        return
    if scale.size != 1 and scale.size != values.size:
        return
    numbers = np.clip(np.rint(values.astype(np.float64) / scale), _INT32.min, _INT32.max)
    name = old.name or "bias"
    single = scale.size == 1
    steps = scale.astype(np.float32).reshape(() if single else (-1,))
    made = edit.insert(
        "DequantizeLinear",
        [
            edit.initializer(numbers.astype(np.int32), name=f"{name}_quantized", graph=graph),
            edit.initializer(steps, name=f"{name}_scale", graph=graph),
            edit.initializer(np.zeros(steps.shape, np.int32), name=f"{name}_zero", graph=graph),
        ],
        before=node,
        attributes={} if single else {"axis": 0},
        outputs=[name],
        like=old,
    )
    edit.set_input(node, 2, made.outputs[0])


def overflowing(view: View) -> Iterator[Finding]:
    """Biases that do not fit into int32 in steps of the scales of activation and weight."""
    if view.target.bias.dtype != "int32":
        return
    for node, weight in view.layers():
        first = view.activation_dq(input_at(node, 0))
        values = _values(view, node) if node.op_type != "MatMul" else None
        if first is None or values is None or not is_unit(view, node):
            continue
        grids = view.grid(first), view.grid(weight)
        if grids[0] is None or grids[1] is None or not grids[0].single or grids[1].block:
            continue
        scale = grids[1].scale.reshape(-1).astype(np.float64)
        if scale.size not in {1, values.size} or grids[1].dtype != ir.DataType.INT8:
            continue
        needed = np.abs(values.astype(np.float64)) / (grids[0].step * _ROOM)
        over = needed > scale
        if bool(over.any()):
            yield finding(
                node,
                f"{int(over.sum())} numbers of its bias do not fit into int32, because scales of its weight are tiny: "
                "they are cut off",
                partial(_widen, node, weight, needed, values, grids[0].step),
            )


def _values(view: View, node: ir.Node) -> NDArray[Any] | None:
    """The bias of a node in float."""
    value = input_at(node, 2)
    source = view.constant_dq(value)
    if source is None:
        found = array(value, limit=1 << 20)
        return None if found is None or found.dtype != np.float32 else found.reshape(-1)
    grid, numbers = view.grid(source), array(source.inputs[0], limit=1 << 20)
    made = None if grid is None or numbers is None else dequantize(numbers, grid)
    return None if made is None else made.reshape(-1)


def _widen(
    node: ir.Node,
    weight: ir.Node,
    needed: NDArray[np.float64],
    bias: NDArray[Any],
    step: float,
    edit: Edit,
) -> None:
    """Gives channels whose bias does not fit larger scales; their weights are next to nothing anyway."""
    grid, numbers, graph = grid_of(weight), array(weight.inputs[0]), node.graph
    values = None if grid is None or numbers is None else dequantize(numbers, grid)
    if values is None or grid is None or graph is None:
        return
    axis = output_axis(node, values.ndim)
    size = values.shape[axis]
    scale = np.broadcast_to(grid.scale.reshape(-1).astype(np.float64), (size,))
    params = Params(
        np.maximum(scale, np.broadcast_to(needed, (size,))).astype(np.float32),
        np.zeros(size, np.int8),
        axis,
    )
    name = weight.outputs[0].name or "weight"
    edit.set_input(node, 1, put_weight(edit, node, name, values, params))
    put_bias(edit, node, bias, params.scale.astype(np.float64) * step)


def float_bias(view: View) -> Iterator[Finding]:
    """Gemm between DQ nodes whose bias is float and that no Q follows: it runs in float for that alone."""
    if view.target.bias.dtype != "int32":
        return
    for node, weight in view.layers():
        first = view.activation_dq(input_at(node, 0))
        bias = array(input_at(node, 2), limit=1 << 20)
        if node.op_type != "Gemm" or first is None or bias is None or bias.dtype != np.float32:
            continue
        if bias.shape[-1:] != (bias.size,) or _is_scaled(node):
            continue  # numbers for rows too, which no kernel takes
        if (
            view.quantizer_behind(last_value(node)) is not None
            or attribute(node, "beta", 1.0) != 1.0
        ):
            continue
        grids = view.grid(first), view.grid(weight)
        if grids[0] is None or grids[1] is None or not grids[0].single or grids[1].block:
            continue
        scale = grids[0].scale.reshape(-1).astype(np.float64) * grids[1].scale.reshape(-1)
        if not (scale > 0).all() or (scale.size > 1 and scale.size != bias.size):
            continue
        yield finding(
            node,
            "runs in float because its bias is float; with a bias of int32 it runs in int8 and writes float",
            partial(_put_bias_of, node, bias.reshape(-1), scale),
        )


def _put_bias_of(
    node: ir.Node, values: NDArray[Any], scale: NDArray[np.float64], edit: Edit
) -> None:
    put_bias(edit, node, values, scale)


def int32_bias(view: View) -> Iterator[Finding]:
    """Biases behind a DQ, for a target that wants them in float."""
    refusal = view.target.refuses("int32-bias")
    if refusal is None:
        return
    for node, _ in view.layers():
        bias = view.constant_dq(input_at(node, 2)) if node.op_type != "MatMul" else None
        if bias is not None:
            yield finding(
                bias, f"the bias stands behind a DQ: {refusal.why}", partial(fold_dq, bias)
            )
