"""Numbers that move into the bias of a linear operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, input_at
from onnxcomp_passes.prune.support.constant_rules import is_padded

if TYPE_CHECKING:
    from onnxcomp.passbase import Context


def takes_bias(node: ir.Node) -> bool:
    """Whether numbers can be added to what an operator puts out, the same everywhere."""
    if node.op_type == "MatMul":
        return True
    if node.op_type not in {"Conv", "Gemm"} or is_padded(node) or attribute(node, "group", 1) != 1:
        return False
    if attribute(node, "beta", 1.0) == 0 or attribute(node, "alpha", 1.0) == 0:
        return False
    given = input_at(node, 2)
    if given is None:
        return True
    found = array(given)
    return found is not None and (found.ndim < 2 or found.shape[0] == 1)


def add_to_bias(ctx: Context, node: ir.Node, share: np.ndarray, dtype: ir.DataType | None) -> None:
    """Adds a vector to what a Conv, Gemm or MatMul puts out; a MatMul gets an Add behind it.

    Args:
        ctx: The pass.
        node: The operator; `takes_bias` holds for it.
        share: [outputs] what the operands that go added to its sum.
        dtype: Type of the result.
    """
    kind = (dtype or ir.DataType.FLOAT).numpy()
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError("the node is in no graph")
    if node.op_type == "MatMul":
        _add_behind(ctx, node, share.astype(kind), graph)
        return
    scale = 1.0
    if node.op_type == "Gemm":
        scale = float(attribute(node, "alpha", 1.0)) / float(attribute(node, "beta", 1.0))
    old = array(input_at(node, 2))
    base = np.zeros(1) if old is None else old.reshape(-1).astype(np.float64)
    name = f"{node.name or node.op_type}_bias"
    new = ctx.edit.initializer((base + share * scale).astype(kind), name=name, graph=graph)
    ctx.edit.set_input(node, 2, new)


def _add_behind(ctx: Context, node: ir.Node, share: np.ndarray, graph: ir.Graph) -> None:
    output = node.outputs[0]
    value = ctx.edit.initializer(share, name=f"{node.name or node.op_type}_bias", graph=graph)
    added = ctx.edit.insert("Add", [], after=node, like=output)
    ctx.edit.replace(output, added.outputs[0])
    ctx.edit.set_input(added, 0, output)
    ctx.edit.set_input(added, 1, value)
