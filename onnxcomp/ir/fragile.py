"""What the standard's inference cannot be given as it is: it dies of it, or gets it wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcomp.ir.scopes import proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

# Found by giving every operator of onnx 1.23 an input of unknown type; a null pointer in native code.
_FRAGILE = frozenset({"EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder"})
# Inference takes an attribute that is left out for another number than the operator does.
_DEFAULTS = {"STFT": ("onesided", 1)}
_ODD = _FRAGILE | set(_DEFAULTS)
_MAIN = frozenset({"", "ai.onnx"})
_BROADCASTING_OPSET = 7
_ENDS, _STEPS = 2, 4
_INT32_MAX = (1 << 31) - 1
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# Inference cannot expand it.
_UNKNOWN_RESULT = "MeanVarianceNormalization"


def make_inferable(proto: onnx.ModelProto) -> bool:
    """Writes out defaults that inference mistakes.

    Args:
        proto: A copy that nobody else needs.

    Returns:
        Whether the model may be given to inference.
    """
    graphs = list(proto_graphs(proto))
    odd = [node for graph in graphs for node in graph.node if node.op_type in _ODD]
    if not odd:
        return True
    for node in odd:
        if node.op_type in _DEFAULTS and not node.domain:
            name, number = _DEFAULTS[node.op_type]
            if all(attr.name != name for attr in node.attribute):
                node.attribute.append(onnx.helper.make_attribute(name, number))
    if not any(node.op_type in _FRAGILE for node in odd):
        return True
    functions = {(function.domain, function.name) for function in proto.functions}
    return not any(_has_unknown(graph.node, functions) for graph in graphs)


def follow_runtime(proto: onnx.ModelProto) -> None:
    """Rewrites what onnxruntime takes in another way than the standard's inference.

    A slope of a PRelu may be larger than its input, which is then broadcast; a Slice that goes backwards to
    an end of INT_MAX goes on to the beginning (`core/providers/cpu/tensor/slice_helper.h`).

    Args:
        proto: A copy that nobody else needs, its small tensors with their contents.
    """
    version = next((entry.version for entry in proto.opset_import if entry.domain in _MAIN), 0)
    for graph in proto_graphs(proto):
        for node in graph.node:
            if node.domain in _MAIN and node.op_type == "PRelu" and version >= _BROADCASTING_OPSET:
                node.op_type = "Mul"
            elif node.domain in _MAIN and node.op_type == "Slice" and len(node.input) > _STEPS:
                _turn_back(node, graph)


def _turn_back(node: onnx.NodeProto, graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Says in the standard's way that a Slice goes to the beginning; unknown ends stay unknown."""
    ends, steps = (_numbers(graph, node.input[index]) for index in (_ENDS, _STEPS))
    if steps is None or not (steps < 0).any():
        return
    if ends is None or not isinstance(graph, onnx.GraphProto):
        node.input[_ENDS] = ""  # nothing is inferred
        return
    beginning = -np.iinfo(ends.dtype).max
    far = np.where((steps < 0) & (ends >= _INT32_MAX), beginning, ends).astype(ends.dtype)
    if (far != ends).any():
        name = f"{node.input[_ENDS]}/{node.output[0]}/onnxcomp"
        graph.initializer.append(onnx.numpy_helper.from_array(far, name))
        node.input[_ENDS] = name


def _numbers(
    graph: onnx.GraphProto | onnx.FunctionProto, name: str
) -> np.ndarray[tuple[int, ...], np.dtype[np.signedinteger[Any]]] | None:
    """Returns integers that are an initializer of a graph or made by a Constant in it."""
    tensors = graph.initializer if isinstance(graph, onnx.GraphProto) else ()
    found = next((tensor for tensor in tensors if tensor.name == name), None)
    if found is None:
        makers = (node for node in graph.node if node.op_type == "Constant" and name in node.output)
        attributes = (attr for node in makers for attr in node.attribute if attr.name == "value")
        found = next((attr.t for attr in attributes), None)
    if found is None or found.data_location == onnx.TensorProto.EXTERNAL:
        return None
    return onnx.numpy_helper.to_array(found)


def _has_unknown(nodes: Iterable[onnx.NodeProto], functions: set[tuple[str, str]]) -> bool:
    """Whether inference knows nothing of what some node makes; a fragile one may read it."""
    return any(
        node.op_type == _UNKNOWN_RESULT
        or (node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in functions)
        for node in nodes
    )
