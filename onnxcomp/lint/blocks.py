"""Rules about weights in blocks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at
from onnxcomp.lint.rule import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir import Edit
    from onnxcomp.lint.view import View


def unpacked_blocks(view: View) -> Iterator[Finding]:
    """Weights in blocks that do not become MatMulNBits and are unpacked in every run."""
    refusal = view.target.refuses("block-axis", "MatMul")
    for node, weight in view.layers() if refusal else ():
        grid, tensor = view.grid(weight), constant(weight.inputs[0])
        if (
            node.op_type not in {"MatMul", "Gemm"}
            or grid is None
            or tensor is None
            or not grid.block
        ):
            continue
        if len(tensor.shape) != 2 or view.activation_dq(input_at(node, 0)) is not None:
            continue
        turned = bool(node.op_type == "Gemm" and attribute(node, "transB", 0))
        if grid.axis % 2 == 1 and not turned:
            yield finding(
                node, "blocks of its weight lie along axis 1: it is unpacked in every run"
            )
        elif turned:
            fix = partial(_turn_gemm, node, weight) if grid.axis % 2 == 1 else None
            yield finding(
                node, "its weight in blocks is transposed: it is unpacked in every run", fix
            )
        elif grid.block < 16 or grid.block & (grid.block - 1):
            text = f"blocks of {grid.block}: only powers of two from 16 on are computed with, others are unpacked"
            yield finding(node, text)
    yield from _transposed_blocks(view)


def _transposed_blocks(view: View) -> Iterator[Finding]:
    """DQ -> Transpose -> MatMul, as exporters of `x @ w.T` write it."""
    for node in view.nodes:
        if node.op_type != "MatMul" or node.domain not in {"", "ai.onnx"}:
            continue
        value = input_at(node, 1)
        turn = None if value is None else value.producer()
        if turn is None or turn.op_type != "Transpose":
            continue
        weight = view.constant_dq(turn.inputs[0])
        grid = None if weight is None else view.grid(weight)
        tensor = None if weight is None else constant(weight.inputs[0])
        if weight is None or grid is None or tensor is None or len(tensor.shape) != 2:
            continue
        if not grid.block or view.activation_dq(input_at(node, 0)) is not None:
            continue
        if tuple(attribute(turn, "perm", (1, 0))) != (1, 0):
            continue
        fix = partial(_put_turned, node, weight) if grid.axis % 2 == 1 else None
        yield finding(node, "its weight in blocks is transposed: it is unpacked in every run", fix)


def _turn_gemm(node: ir.Node, weight: ir.Node, edit: Edit) -> None:
    _put_turned(node, weight, edit)
    edit.set_attribute(node, "transB", 0)


def _put_turned(node: ir.Node, weight: ir.Node, edit: Edit) -> None:
    """Stores a weight in blocks the other way round: the same numbers."""
    graph = node.graph
    if graph is None:
        return
    name = weight.outputs[0].name or "weight"
    inputs: list[ir.Value | None] = []
    for value in weight.inputs:
        tensor = constant(value)
        if tensor is None:
            return
        turned = ir.tensor(np.ascontiguousarray(tensor.numpy().T), dtype=tensor.dtype)
        inputs.append(edit.initializer(turned, name=f"{name}_turned", graph=graph))
    attributes: dict[str, Any] = {**dict(weight.attributes), "axis": 0}
    made = edit.insert(
        "DequantizeLinear", inputs, before=node, attributes=attributes, outputs=[name]
    )
    edit.set_input(node, 1, made.outputs[0])
