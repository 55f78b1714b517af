"""Biases behind matrices, which can give back what rounding takes from the mean of an output."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, input_at, is_op, single_use

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp_passes.quantize.weight_sites import Site


def bias_of(site: Site) -> tuple[ir.Node, int] | None:
    """Returns the node that adds a constant to the outputs of a matrix, and which input that is."""
    if len(site.uses) != 1 or not site.is_matrix:
        return None
    node = site.uses[0].node
    columns = site.tensor.size // site.depth
    if is_op(node, "Gemm"):
        return (node, 2) if _fits(input_at(node, 2), columns) else None
    add = single_use(node.outputs[0])
    if add is None or not is_op(add, "Add"):
        return None
    index = 0 if add.inputs[1] is node.outputs[0] else 1
    return (add, index) if _fits(add.inputs[index], columns) else None


def _fits(value: ir.Value | None, columns: int) -> bool:
    tensor = constant(value)
    return tensor is not None and tensor.size == columns and tensor.shape.numpy()[-1:] == (columns,)


def correct_bias(edit: Edit, site: Site, shift: NDArray[np.float64]) -> None:
    """Adds to the bias behind a matrix."""
    found = bias_of(site)
    if found is None:
        return
    node, index = found
    value, graph = node.inputs[index], node.graph
    tensor = constant(value)
    if value is None or tensor is None or not isinstance(graph, ir.Graph):
        return
    old: Any = tensor.numpy()
    new = (old.astype(np.float64) + shift.reshape(old.shape)).astype(old.dtype)
    if not np.isfinite(new).all():
        return
    made = edit.initializer(new, name=f"{value.name}_corrected", graph=graph)
    edit.set_input(node, index, made)
    if value.is_initializer() and not value.uses() and not value.is_graph_output():
        edit.drop_initializer(value)
    edit.count("biases corrected")
