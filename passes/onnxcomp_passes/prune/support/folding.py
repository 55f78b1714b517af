"""Numbers that move into the bias of a linear operator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, input_at, is_op
from onnxcomp_passes.prune.support.constant_layers import is_padded

if TYPE_CHECKING:
    from onnxcomp.analysis.channels.site import Contraction
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.removal import Removal

Array = np.ndarray[Any, Any]
_RECURRENT = ("LSTM", "GRU", "RNN")


def takes_bias(contraction: Contraction, weight: Array) -> bool:
    """Whether constant inputs of an operator add the same numbers everywhere to what it puts out.

    Args:
        contraction: The operator and the axis that it sums up.
        weight: Its weight, a constant.
    """
    node = contraction.node
    if is_op(node, "MatMul"):
        return weight.ndim == 2
    if is_op(node, *_RECURRENT):
        return contraction.left[0] is input_at(node, 0) and _has_known_bias(node, 3)
    if is_op(node, "Gemm"):
        scaled = attribute(node, "beta", 1.0) != 0 and attribute(node, "alpha", 1.0) != 0
        return scaled and _has_known_bias(node, 2)
    if is_op(node, "Conv"):
        return not is_padded(node) and _has_known_bias(node, 2)
    return is_op(node, "ConvTranspose") and _is_pointwise(node, weight) and _has_known_bias(node, 2)


def _has_known_bias(node: ir.Node, index: int) -> bool:
    given = input_at(node, index)
    return given is None or array(given) is not None


def _is_pointwise(node: ir.Node, weight: Array) -> bool:
    """Whether each output of a transposed convolution is made from one input."""
    moved = any(attribute(node, "output_padding", ())) or "output_shape" in node.attributes
    steps: tuple[int, ...] = attribute(node, "strides", ())
    return set(weight.shape[2:]) <= {1} and set(steps) <= {1} and not moved and not is_padded(node)


def share_of(contraction: Contraction, weight: Array, held: Array) -> Array:
    """Returns what constant inputs add to each output of an operator for which `takes_bias` holds.

    Args:
        contraction: The operator and the axis that it sums up.
        weight: Its weight.
        held: What the inputs hold, 0 for those that stay.
    """
    node, wide = contraction.node, weight.astype(np.float64)
    if not is_op(node, "Conv", "ConvTranspose"):
        rows: Array = np.moveaxis(wide, contraction.right[1], -1) @ held
        return rows
    group = attribute(node, "group", 1)
    taps = wide.reshape(*wide.shape[:2], -1).sum(2)
    inputs = held.reshape(group, -1)
    if node.op_type == "Conv":
        taps = taps.reshape(group, -1, taps.shape[1]).swapaxes(1, 2)
    each = taps.reshape(group, inputs.shape[1], -1)
    shares: Array = (inputs[:, None] @ each).reshape(-1)
    return shares


def add_share(
    ctx: Context, node: ir.Node, share: Array, removal: Removal, dtype: ir.DataType | None
) -> None:
    """Adds numbers to what an operator puts out, after channels were removed.

    Args:
        ctx: The pass.
        node: The operator.
        share: What `share_of` returned, for the channels as they were.
        removal: What was removed.
        dtype: Type of the result.
    """
    kind = (dtype or ir.DataType.FLOAT).numpy()
    if is_op(node, *_RECURRENT):
        kept = removal.kept(node.inputs[1], 1)
        _add_to_gates(ctx, node, share if kept is None else share[:, kept], kind)
        return
    output = node.outputs[0]
    kept = removal.kept(
        output, 1 if is_op(node, "Conv", "ConvTranspose") else removal.rank(output) - 1
    )
    left = share if kept is None else share[kept]
    if is_op(node, "MatMul"):
        _add_behind(ctx, node, left.astype(kind))
        return
    scale = 1.0
    if is_op(node, "Gemm"):
        scale = float(attribute(node, "alpha", 1.0)) / float(attribute(node, "beta", 1.0))
    old = array(input_at(node, 2))
    base = np.zeros(1) if old is None else old.astype(np.float64)
    _set_bias(ctx, node, 2, (base + left * scale).astype(kind))


def _add_to_gates(ctx: Context, node: ir.Node, share: Array, kind: np.dtype[Any]) -> None:
    """The first half of a recurrent layer's bias is that of its input."""
    old = array(input_at(node, 3))
    added = np.concatenate([share, np.zeros_like(share)], 1)
    _set_bias(ctx, node, 3, (added if old is None else old + added).astype(kind))


def _set_bias(ctx: Context, node: ir.Node, index: int, bias: Array) -> None:
    name = f"{node.name or node.op_type}_bias"
    ctx.edit.set_input(node, index, ctx.edit.initializer(bias, name=name, graph=_graph_of(node)))


def _add_behind(ctx: Context, node: ir.Node, share: Array) -> None:
    output = node.outputs[0]
    name = f"{node.name or node.op_type}_bias"
    value = ctx.edit.initializer(share, name=name, graph=_graph_of(node))
    added = ctx.edit.insert("Add", [], after=node, like=output)
    ctx.edit.replace(output, added.outputs[0])
    ctx.edit.set_input(added, 0, output)
    ctx.edit.set_input(added, 1, value)


def _graph_of(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise TypeError("the node is in no graph")
    return node.graph
