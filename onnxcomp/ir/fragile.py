"""Operators at which the standard's inference dies when it does not know the type of their input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.scopes import proto_graphs

if TYPE_CHECKING:
    import onnx

# Found by giving every operator of onnx 1.23 an input of unknown type; a null pointer in native code.
_FRAGILE = frozenset({"EyeLike", "RegexFullMatch", "DictVectorizer", "LabelEncoder"})
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})
# Inference cannot expand it.
_UNKNOWN_RESULT = "MeanVarianceNormalization"


def may_kill_inference(proto: onnx.ModelProto) -> bool:
    """Whether a fragile operator may read something whose type inference does not know."""
    graphs = list(proto_graphs(proto))
    if not any(node.op_type in _FRAGILE for graph in graphs for node in graph.node):
        return False
    functions = {(function.domain, function.name) for function in proto.functions}
    return any(
        node.op_type == _UNKNOWN_RESULT
        or (node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in functions)
        for graph in graphs
        for node in graph.node
    )
