"""Shape inference with onnx's data propagation, kept within bounds.

Propagation follows the contents of shape vectors element by element, in objects of many bytes each,
and takes every one-dimensional tensor of known length for one. A tensor of a few million elements
costs seconds and gigabytes at every Cast, Add, Slice or Gather; a file of 300 bytes can ask for any
number of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxcomp.ir.fragile import make_inferable
from onnxcomp.ir.scopes import proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long a shape vector is taken to be when nothing is known, and how long one may get.
_USUAL_RANK = 8
_MAX_PROPAGATED = 1 << 16
# Operators whose result has the dimensions that an operand contains, and that operand.
_SHAPED_BY = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}


def infer_shapes(proto: onnx.ModelProto, *, strict: bool = False) -> onnx.ModelProto:
    """Infers all types and shapes, following shape vectors where that cannot explode.

    Args:
        proto: A model, with or without its weights.
        strict: Raise what inference finds wrong.

    Raises:
        InferenceError: If something is wrong and `strict` is set.
    """
    if not make_inferable(proto):
        return proto
    plain = onnx.shape_inference.infer_shapes(proto, strict_mode=strict)
    if not _are_concats_short(proto) or any(length > _MAX_PROPAGATED for length in _lengths(plain)):
        return plain
    if _has_computed_length(plain):
        return plain
    return onnx.shape_inference.infer_shapes(proto, strict_mode=strict, data_prop=True)


def _are_concats_short(proto: onnx.ModelProto) -> bool:
    """Whether no chain of Concats makes a long vector of short ones."""
    lengths: dict[str, int] = {}
    for graph in proto_graphs(proto):
        for node in graph.node:
            if node.op_type != "Concat" or any(attr.i for attr in node.attribute):
                continue
            length = sum(lengths.get(name, _USUAL_RANK) for name in node.input)
            if length > _MAX_PROPAGATED:
                return False
            lengths[node.output[0]] = length
    return True


def _has_computed_length(plain: onnx.ModelProto) -> bool:
    """Whether some vector's length is worked out in the graph, so that only propagation would find it."""
    for graph in proto_graphs(plain):
        fixed = {node.output[0] for node in graph.node if node.op_type == "Constant"}
        if isinstance(graph, onnx.GraphProto):
            fixed.update(tensor.name for tensor in graph.initializer)
        shaped = {info.name: info.type.tensor_type for info in graph.value_info}
        for node in graph.node:
            at = _SHAPED_BY.get(node.op_type)
            if at is None or at >= len(node.input) or node.input[at] in fixed:
                continue
            found = shaped.get(node.output[0])
            if found is None or not found.HasField("shape") or len(found.shape.dim) == 1:
                return True
    return False


def _lengths(inferred: onnx.ModelProto) -> Iterator[int]:
    """Yields the lengths of vectors that a graph is fed with or computes."""
    for graph in proto_graphs(inferred):
        inputs = graph.input if isinstance(graph, onnx.GraphProto) else ()
        for info in (*inputs, *graph.value_info):
            dims = info.type.tensor_type.shape.dim
            if len(dims) == 1:
                yield dims[0].dim_value
