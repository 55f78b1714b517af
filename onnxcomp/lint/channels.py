"""Activations with a scale for each channel, whose scales the weights on either side can take."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, standard_op, use_count
from onnxcomp.lint.bypass import clip_limits
from onnxcomp.lint.grid import SIGNED, UNSIGNED, Grid, grid_of
from onnxcomp.lint.rule import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View


@dataclass(frozen=True, eq=False)
class Between:
    """An activation between a Conv and depthwise Conv nodes.

    Attributes:
        maker: The Conv that makes it.
        activation: A Relu or Clip behind that.
        nodes: The Q and the DQ nodes.
        readers: The depthwise Conv nodes.
        grid: The parameters of Q and DQ.
    """

    maker: ir.Node
    activation: ir.Node | None
    nodes: tuple[ir.Node, ...]
    readers: tuple[ir.Node, ...]
    grid: Grid


def for_each_channel(view: View) -> Iterator[Finding]:
    """Activations with a scale for each channel."""
    refusal = view.target.refuses("per-channel-activation")
    for node in view.quantizers if refusal else ():
        grid = view.grid(node)
        if refusal is None or grid is None or grid.single or constant(node.inputs[0]) is not None:
            continue
        between = _between(view, node, grid)
        yield finding(
            node,
            f"an activation with {grid.scale.size} scales: nothing fuses with it",
            None if between is None else partial(_give_to_weights, between),
            hint="" if between is not None else refusal.instead,
        )


def _between(view: View, quantizer: ir.Node, grid: Grid) -> Between | None:
    """Where the scales can go; None where something else reads the value or is in the way."""
    value, behind = quantizer.inputs[0], view.dq_readers(quantizer)
    if value is None or behind is None or grid.block or grid.axis != 1 or not _one_zero(grid):
        return None
    if grid.dtype not in {SIGNED, UNSIGNED} or not grid.scale.size or not (grid.scale > 0).all():
        return None
    grids = [view.grid(node) for node in behind]
    if any(other is None or not other.equals(grid) for other in grids):
        return None
    readers = tuple(use.node for node in behind for use in node.outputs[0].uses())
    if any(node.outputs[0].is_graph_output() for node in behind) or not readers:
        return None
    if not all(_is_depthwise(view, node, grid.scale.size, behind) for node in readers):
        return None
    activation = value.producer() if use_count(value) == 1 else None
    maker = activation
    if activation is not None and standard_op(activation) in {"Relu", "Clip"}:
        inner = activation.inputs[0]
        maker = inner.producer() if inner is not None and use_count(inner) == 1 else None
        if not _is_redundant(activation, grid):
            return None
    else:
        activation = None
    if maker is None or standard_op(maker) != "Conv" or maker.outputs[0].is_graph_output():
        return None
    if not _scalable(view, maker, grid.scale.size) or value.is_graph_output():
        return None
    return Between(maker, activation, (quantizer, *behind), readers, grid)


def _one_zero(grid: Grid) -> bool:
    return grid.zero is None or bool((grid.zero == grid.middle).all())


def _is_redundant(node: ir.Node, grid: Grid) -> bool:
    """Whether a Relu or Clip does nothing that the Q does not, but for half a step at its end."""
    low, high = grid.limits
    if grid.middle != low:
        return False
    if node.op_type == "Relu":
        return True
    limits = clip_limits(node)
    ends = (high - low) * grid.scale
    return (
        limits is not None and limits[0] == 0.0 and bool((ends <= limits[1] + grid.scale / 2).all())
    )


def _is_depthwise(view: View, node: ir.Node, channels: int, sources: list[ir.Node]) -> bool:
    weight = _weight_shape(view, node)
    return (
        standard_op(node) == "Conv"
        and attribute(node, "group", 1) == channels
        and weight is not None
        and weight[1] == 1
        and weight[0] % channels == 0
        and any(node.inputs[0] is source.outputs[0] for source in sources)
        and not any(value in [s.outputs[0] for s in sources] for value in node.inputs[1:])
        and _scalable(view, node, weight[0], bias=False)
    )


def _weight_shape(view: View, node: ir.Node) -> tuple[int, ...] | None:
    source = view.constant_dq(input_at(node, 1))
    tensor = constant(input_at(node, 1) if source is None else source.inputs[0])
    return None if tensor is None or len(tensor.shape) < 3 else tuple(tensor.shape.numpy())


def _scalable(view: View, node: ir.Node, channels: int, *, bias: bool = True) -> bool:
    """Whether weight (and bias) of a Conv are constants whose output channels can be scaled."""
    shape = _weight_shape(view, node)
    if shape is None or shape[0] != channels:
        return False
    values = [input_at(node, 1), *([input_at(node, 2)] if bias else [])]
    return all(value is None or _can_scale(view, value, channels) for value in values)


def _can_scale(view: View, value: ir.Value, channels: int) -> bool:
    source = view.constant_dq(value)
    if source is None:
        tensor = constant(value)
        return tensor is not None and tensor.dtype == ir.DataType.FLOAT
    grid, tensor = view.grid(source), constant(source.inputs[0])
    if grid is None or tensor is None or grid.block or grid.scale.size not in {1, channels}:
        return False
    return grid.single or grid.axis in {0, -len(tensor.shape)}


def _give_to_weights(between: Between, edit: Edit) -> None:
    """Makes one scale of many: the Conv in front is scaled up, those behind are scaled down."""
    grid, graph = between.grid, between.maker.graph
    if graph is None:
        return
    scale = grid.scale.reshape(-1).astype(np.float64)
    common = float(scale.max())
    up, down = common / scale, scale / common
    _scale_input(between.maker, 1, up, edit)
    if input_at(between.maker, 2) is not None:
        _scale_input(between.maker, 2, up, edit)
    for node in between.readers:
        shape = constant_shape(node)
        _scale_input(node, 1, np.repeat(down, shape[0] // down.size), edit)
    name = between.nodes[0].outputs[0].name or "activation"
    step = edit.initializer(np.asarray(common, np.float32), name=f"{name}_scale", graph=graph)
    zero = edit.initializer(
        np.asarray(grid.middle, np.int8 if grid.dtype == SIGNED else np.uint8),
        name=f"{name}_zero_point",
        graph=graph,
    )
    for node in between.nodes:
        edit.set_input(node, 1, step)
        edit.set_input(node, 2, zero)
        edit.set_attribute(node, "axis", None)
    if between.activation is not None and between.activation.op_type == "Clip":
        relu = edit.insert(
            "Relu",
            [between.maker.outputs[0]],
            before=between.nodes[0],
            like=between.activation.outputs[0],
        )
        edit.set_input(between.nodes[0], 0, relu.outputs[0])


def constant_shape(node: ir.Node) -> tuple[int, ...]:
    """Returns the shape of a weight, also behind a DQ."""
    value = node.inputs[1]
    maker = None if value is None else value.producer()
    tensor = constant(value) if constant(value) is not None or maker is None else None
    if tensor is None and maker is not None:
        tensor = constant(maker.inputs[0])
    return () if tensor is None else tuple(tensor.shape.numpy())


def _scale_input(node: ir.Node, index: int, factors: NDArray[np.float64], edit: Edit) -> None:
    """Multiplies a constant by a factor for each output channel; numbers behind a DQ stay."""
    value, graph = node.inputs[index], node.graph
    if value is None or graph is None:
        return
    floats = array(value)
    if floats is not None:
        spread = factors.reshape(-1, *([1] * (floats.ndim - 1)))
        made = (floats.astype(np.float64) * spread).astype(np.float32)
        edit.set_input(
            node, index, edit.initializer(made, name=f"{value.name}_scaled", graph=graph)
        )
        return
    source = value.producer()
    grid = None if source is None else grid_of(source)
    if source is None or grid is None:
        return
    inputs = [source.inputs[0], *_parameters(value, grid, factors, graph, edit)]
    made_dq = edit.insert(
        "DequantizeLinear",
        inputs,
        before=node,
        attributes={"axis": 0},
        outputs=[f"{value.name}_scaled"],
        like=value,
    )
    edit.set_input(node, index, made_dq.outputs[0])


def _parameters(
    value: ir.Value, grid: Grid, factors: NDArray[np.float64], graph: ir.Graph, edit: Edit
) -> list[Any]:
    scale = (grid.scale.reshape(-1).astype(np.float64) * factors).astype(np.float32)
    made = [edit.initializer(scale, name=f"{value.name}_scale", graph=graph)]
    if grid.zero is not None:
        zero = np.broadcast_to(grid.zero.reshape(-1), scale.shape).copy()
        made.append(edit.initializer(zero, name=f"{value.name}_zero_point", graph=graph))
    return made
