"""What the standard's inference cannot be given as it is: it dies of it, or gets it wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxcomp.ir.scopes import proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

# Found by giving every operator of onnx 1.23 an input of unknown type; a null pointer in native code.
_FRAGILE = frozenset({"EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder"})
# Inference takes an attribute that is left out for another number than the operator does.
_DEFAULTS = {"STFT": ("onesided", 1)}
_ODD = _FRAGILE | set(_DEFAULTS)
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


def _has_unknown(nodes: Iterable[onnx.NodeProto], functions: set[tuple[str, str]]) -> bool:
    """Whether inference knows nothing of what some node makes; a fragile one may read it."""
    return any(
        node.op_type == _UNKNOWN_RESULT
        or (node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in functions)
        for node in nodes
    )
