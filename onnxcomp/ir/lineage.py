"""Proof that two models compute the same because their outputs are made the same way."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import constant, is_op, subgraphs

if TYPE_CHECKING:
    from collections.abc import Hashable

    from onnxcomp.ir.model import Model

# Contents of larger tensors are not read; they count as equal when they are the same object or bytes
# of the same place in a file.
READ_BYTES = 64 << 10


def same_lineage(left: Model, right: Model) -> bool:
    """Whether every output is the same expression of the same inputs and weights in both models.

    Identity nodes do not count, nor do names, order, duplicates and what no output needs. A model
    with functions or with graphs inside nodes is never proven equal this way.

    Args:
        left: A model.
        right: A model whose large weights are shared with the first or lie in the same files.

    Returns:
        True when they are equal; False when this does not show it.
    """
    if left.core.functions or right.core.functions or left.opset_imports != right.opset_imports:
        return False
    expressions: dict[Hashable, int] = {}
    found = [_outputs(model, expressions) for model in (left, right)]
    return found[0] is not None and found[0] == found[1]


def _outputs(model: Model, expressions: dict[Hashable, int]) -> list[int] | None:
    """Returns a number for the expression of each output; equal expressions have equal numbers."""
    known: dict[ir.Value, int] = {}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        known[value] = _number(expressions, _leaf(value))
    for node in model.graph:
        if any(True for _ in subgraphs(node)) or any(v and v not in known for v in node.inputs):
            return None
        inputs = tuple(known[value] if value else -1 for value in node.inputs)
        for index, value in enumerate(node.outputs):
            known[value] = _node_number(node, inputs, index, expressions)
    if any(value not in known for value in model.graph.outputs):
        return None
    return [known[value] for value in model.graph.outputs]


def _node_number(
    node: ir.Node, inputs: tuple[int, ...], index: int, expressions: dict[Hashable, int]
) -> int:
    if is_op(node, "Identity"):
        return inputs[0]
    tensor = constant(node.outputs[0])
    if tensor is not None:
        return _number(expressions, _tensor_key(tensor))
    while inputs and inputs[-1] == -1:
        inputs = inputs[:-1]
    attributes = tuple(
        sorted((name, _attribute_key(attr)) for name, attr in node.attributes.items())
    )
    operator = (node.domain if node.domain != "ai.onnx" else "", node.op_type, node.overload)
    return _number(expressions, ("node", operator, inputs, attributes, index))


def _number(expressions: dict[Hashable, int], key: Hashable) -> int:
    return expressions.setdefault(key, len(expressions))


def _leaf(value: ir.Value) -> Hashable:
    tensor = constant(value)
    return ("input", value.name) if tensor is None else _tensor_key(tensor)


def _tensor_key(tensor: ir.TensorProtocol) -> Hashable:
    kind = ("tensor", tensor.dtype, tuple(tensor.shape.numpy()))
    if isinstance(tensor, ir.ExternalTensor):
        return (*kind, "file", tensor.path, tensor.offset)
    if isinstance(tensor, ir.StringTensor):
        return (*kind, "text", tuple(tensor.string_data()))
    if tensor.nbytes <= READ_BYTES:
        return (*kind, "bytes", hashlib.sha256(tensor.tobytes()).digest())
    return (*kind, "object", id(tensor))


def _attribute_key(attr: ir.Attr) -> str:
    if attr.is_ref():
        return f"reference {attr.ref_attr_name}"
    if attr.type == ir.AttributeType.TENSOR:
        return repr(_tensor_key(attr.as_tensor()))
    if isinstance(attr.value, (int, float, str, bytes, tuple)):
        return repr((attr.type.name, attr.value))
    return f"object {id(attr)}"
