"""BatchNormalization that no Conv could take up, as a Conv of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, is_op, is_training

if TYPE_CHECKING:
    from onnxcomp.passbase import Context

_FEWEST_DIMENSIONS = 3


def batchnorm_to_conv(ctx: Context) -> None:
    """Writes BatchNormalization on images as depthwise Conv of size 1.

    There is no int8 kernel for the one but there is for the other, and in float the provider does the
    same. What stands right behind a Conv was merged into it before.
    """
    shapes = ctx.facts.get(Shapes())
    for node in list(ctx.model.graph):
        if not is_op(node, "BatchNormalization") or is_training(node):
            continue
        rank = shapes.rank(node.inputs[0]) or shapes.rank(node.outputs[0]) or 0
        tensors = [constant(value) for value in node.inputs[1:5]]
        found = [tensor for tensor in tensors if tensor is not None]
        if rank < _FEWEST_DIMENSIONS or len(found) != 4 or len(node.outputs) != 1:
            continue
        if all(tensor.dtype == ir.DataType.FLOAT for tensor in found):
            _rewrite(ctx, node, [tensor.numpy().astype(np.float64) for tensor in found], rank)


def _rewrite(ctx: Context, node: ir.Node, numbers: list[np.ndarray], rank: int) -> None:
    scale, bias, mean, variance = numbers
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    graph, edit = node.graph, ctx.edit
    if graph is None:
        raise ValueError(f"not in a graph: {node.name}")
    name = node.outputs[0].name
    weight = factor.astype(np.float32).reshape(-1, 1, *(1 for _ in range(rank - 2)))
    offset = (bias - mean * factor).astype(np.float32)
    made = edit.insert(
        "Conv",
        [
            node.inputs[0],
            edit.initializer(weight, name=f"{name}_weight", graph=graph),
            edit.initializer(offset, name=f"{name}_bias", graph=graph),
        ],
        before=node,
        attributes={"group": int(factor.size), "kernel_shape": [1] * (rank - 2)},
        outputs=[f"{name}_affine"],
        like=node.outputs[0],
        name=node.name or None,
    )
    old = [value for value in dict.fromkeys(node.inputs[1:]) if value is not None]
    edit.replace(node.outputs[0], made.outputs[0])
    edit.remove(node)
    unused = [value for value in old if value.is_initializer() and not value.uses()]
    edit.drop_initializers(value for value in unused if not value.is_graph_output())
    edit.count("normalizations written as Conv")
