"""Finding texts that are not text: protobuf decodes a name only when somebody looks at it.

What it then does depends on its version: it raises, or hands out the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.errors import ModelError
from onnxcomp.ir.walk import scopes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import (
        AttributeProto,
        GraphProto,
        ModelProto,
        NodeProto,
        StringStringEntryProto,
        TensorProto,
        TypeProto,
        ValueInfoProto,
    )


def check_texts(model: ModelProto) -> None:
    """Raises `ModelError` when a text of a model is not valid UTF-8.

    Readers decode when they come across it, deep in code that does not expect it to fail.
    """
    try:
        _read_texts(model)
    except UnicodeDecodeError:
        raise ModelError("the model is corrupt: a name in it is not valid UTF-8") from None


def _hold(*texts: str) -> None:
    """Raises unless everything is text."""
    for text in texts:
        if type(text) is not str:
            raise UnicodeDecodeError("utf-8", b"", 0, 1, "not text")


def _read_texts(model: ModelProto) -> None:
    _hold(model.doc_string, model.domain, model.producer_name, model.producer_version)
    _read_entries(model.metadata_props)
    for entry in model.opset_import:
        _hold(entry.domain)
    for function in model.functions:
        _hold(function.name, function.domain, function.overload, function.doc_string)
        _hold(*function.input, *function.output, *function.attribute)
        for entry in function.opset_import:
            _hold(entry.domain)
        _read_entries(function.metadata_props)
        _read_values(function.value_info)
        _read_attributes(function.attribute_proto)
    for scope in scopes(model):
        if scope.graph is not None:
            _read_graph(scope.graph)
        _read_nodes(scope.nodes)


def _read_graph(graph: GraphProto) -> None:
    _hold(graph.name, graph.doc_string)
    _read_entries(graph.metadata_props)
    _read_values(graph.input)
    _read_values(graph.output)
    _read_values(graph.value_info)
    _read_tensors(graph.initializer)
    for sparse in graph.sparse_initializer:
        _read_tensors((sparse.values, sparse.indices))
    for annotation in graph.quantization_annotation:
        _hold(annotation.tensor_name)
        _read_entries(annotation.quant_parameter_tensor_names)


def _read_nodes(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        _hold(node.name, node.op_type, node.domain, node.overload, node.doc_string)
        _hold(*node.input, *node.output)
        if node.metadata_props:
            _read_entries(node.metadata_props)
        if node.attribute:
            _read_attributes(node.attribute)


def _read_attributes(attributes: Iterable[AttributeProto]) -> None:
    for attribute in attributes:
        _hold(attribute.name, attribute.ref_attr_name, attribute.doc_string)
        if attribute.HasField("t"):
            _read_tensors((attribute.t,))
        if attribute.tensors:
            _read_tensors(attribute.tensors)
        if attribute.HasField("sparse_tensor"):
            _read_tensors((attribute.sparse_tensor.values, attribute.sparse_tensor.indices))
        for sparse in attribute.sparse_tensors:
            _read_tensors((sparse.values, sparse.indices))
        if attribute.HasField("tp"):
            _read_type(attribute.tp)
        for each in attribute.type_protos:
            _read_type(each)


def _read_tensors(tensors: Iterable[TensorProto]) -> None:
    for tensor in tensors:
        _hold(tensor.name, tensor.doc_string)
        _read_entries(tensor.external_data)
        _read_entries(tensor.metadata_props)


def _read_values(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        _hold(value.name, value.doc_string)
        _read_type(value.type)
        if value.metadata_props:
            _read_entries(value.metadata_props)


def _read_type(kind: TypeProto) -> None:
    waiting = [kind]
    while waiting:
        kind = waiting.pop()
        _hold(kind.denotation)
        which = kind.WhichOneof("value")
        if which in {"tensor_type", "sparse_tensor_type"}:
            for dim in getattr(kind, which).shape.dim:
                _hold(dim.dim_param, dim.denotation)
        elif which == "map_type":
            waiting.append(kind.map_type.value_type)
        elif which in {"sequence_type", "optional_type"}:
            waiting.append(getattr(kind, which).elem_type)


def _read_entries(entries: Iterable[StringStringEntryProto]) -> None:
    for entry in entries:
        _hold(entry.key, entry.value)
