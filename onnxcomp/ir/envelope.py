"""What onnx-ir 1.1 cannot hold, kept beside it and put back on the way out.

Sparse initializers, sparse-tensor attributes, map and opaque types and training information are taken
out of the protobuf before it becomes an IR, remembered in the `meta` of the object they belong to
(which travels along when a model is copied), and written back when the model is serialised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import PROTECTED
from onnxcomp.ir.scopes import ir_graphs, proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SPARSE_INITIALIZERS = "onnxcomp.sparse_initializers"
ATTRIBUTES = "onnxcomp.attributes"
TYPES = "onnxcomp.types"
TRAINING = "onnxcomp.training_info"
PASSED_THROUGH = "onnxcomp.passed_through"

_SPARSE_ATTRIBUTES = {onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS}


class Envelope:
    """The parts of one model that were taken out of its protobuf, by place."""

    def __init__(self) -> None:
        self.sparse: dict[int, list[onnx.SparseTensorProto]] = {}
        self.types: dict[int, dict[str, onnx.TypeProto]] = {}
        self.attributes: dict[tuple[int, int], list[onnx.AttributeProto]] = {}
        self.training: list[onnx.TrainingInfoProto] = []

    def __bool__(self) -> bool:
        return bool(self.sparse or self.types or self.attributes or self.training)


def needs_envelope(proto: onnx.ModelProto) -> bool:
    """Whether a model has parts that would not survive, so that its protobuf must be changed."""
    if proto.training_info:
        return True
    return any(
        (isinstance(graph, onnx.GraphProto) and graph.sparse_initializer)
        or any(True for _ in _foreign_types(graph))
        or any(_sparse_attributes(node) for node in graph.node)
        for graph in proto_graphs(proto)
    )


def take_out(proto: onnx.ModelProto) -> Envelope:
    """Removes from `proto` what the IR cannot hold and returns it. Changes `proto`."""
    envelope = Envelope()
    envelope.training = list(proto.training_info)
    proto.ClearField("training_info")
    for ordinal, graph in enumerate(proto_graphs(proto)):
        types = {info.name: _detached_type(info) for info in _foreign_types(graph)}
        if types:
            envelope.types[ordinal] = types
        if isinstance(graph, onnx.GraphProto) and graph.sparse_initializer:
            envelope.sparse[ordinal] = list(graph.sparse_initializer)
            graph.ClearField("sparse_initializer")
        for index, node in enumerate(graph.node):
            if found := _sparse_attributes(node):
                envelope.attributes[ordinal, index] = _detach_attributes(node, found)
    return envelope


def attach(envelope: Envelope, model: ir.Model) -> None:
    """Remembers what was taken out in the `meta` of the IR objects it belongs to."""
    if not envelope:
        return
    model.meta[TRAINING] = envelope.training
    for ordinal, graph in enumerate(ir_graphs(model)):
        if ordinal in envelope.sparse:
            graph.meta[SPARSE_INITIALIZERS] = envelope.sparse[ordinal]
        if ordinal in envelope.types:
            graph.meta[TYPES] = envelope.types[ordinal]
        for index, node in enumerate(graph):
            if (ordinal, index) in envelope.attributes:
                node.meta[ATTRIBUTES] = envelope.attributes[ordinal, index]
    _protect(model, envelope.training)


def put_back(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Writes into a serialised model what its IR remembers in `meta`. Changes `proto`."""
    proto.training_info.extend(model.meta.get(TRAINING, ()))
    for graph, graph_proto in zip(ir_graphs(model), proto_graphs(proto), strict=True):
        if sparse := graph.meta.get(SPARSE_INITIALIZERS):
            graph_proto.sparse_initializer.extend(sparse)
        if types := graph.meta.get(TYPES):
            _restore_types(graph_proto, types)
        if infos := graph.meta.get(PASSED_THROUGH):
            _restore_passed_through(graph_proto, infos)
        for node, node_proto in zip(graph, graph_proto.node, strict=True):
            if attributes := node.meta.get(ATTRIBUTES):
                node_proto.attribute.extend(attributes)


def keep_passed_through(graph: ir.Graph, proto: onnx.GraphProto | onnx.FunctionProto) -> None:
    """Remembers what is declared of inputs that are outputs as well, where the two say different things.

    For the IR they are one value, which would come out with the declaration of the output alone.
    """
    if not isinstance(proto, onnx.GraphProto):
        return
    # A type that the IR cannot hold was taken out before this.
    inputs = {info.name: info for info in proto.input if info.type.WhichOneof("value")}
    outputs = {info.name: info for info in proto.output if info.name in inputs}
    kept = {name: (inputs[name], info) for name, info in outputs.items() if inputs[name] != info}
    if not kept:
        return
    graph.meta[PASSED_THROUGH] = {
        name: tuple(onnx.ValueInfoProto.FromString(info.SerializeToString()) for info in pair)
        for name, pair in kept.items()
    }
    for value in graph.inputs:
        if value.name in kept:
            declared = kept[value.name][0].type
            value.type = ir.serde.deserialize_type_proto_for_type(declared)
            value.shape = ir.serde.deserialize_type_proto_for_shape(declared)


def _restore_passed_through(
    proto: onnx.GraphProto | onnx.FunctionProto,
    infos: dict[str, tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]],
) -> None:
    if not isinstance(proto, onnx.GraphProto):
        return
    for index, declared in enumerate((proto.input, proto.output)):
        for info in declared:
            if info.name in infos:
                info.CopyFrom(infos[info.name][index])


def sparse_names(graph: ir.Graph) -> set[str]:
    """Names that sparse initializers define in a scope (values without a producer in the IR)."""
    return {sparse.values.name for sparse in graph.meta.get(SPARSE_INITIALIZERS, ())}


def _protect(model: ir.Model, training: Iterable[onnx.TrainingInfoProto]) -> None:
    """Marks the initializers that training information refers to by name: they must stay."""
    names: set[str] = set()
    for info in training:
        for binding in (*info.initialization_binding, *info.update_binding):
            names.add(binding.key)
    for name in names & set(model.graph.initializers):
        model.graph.initializers[name].meta[PROTECTED] = True


def _infos(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.ValueInfoProto]:
    if isinstance(graph, onnx.GraphProto):
        yield from graph.input
        yield from graph.output
    yield from graph.value_info


def _foreign_types(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.ValueInfoProto]:
    return (info for info in _infos(graph) if _is_foreign(info.type))


def _is_foreign(proto: onnx.TypeProto, depth: int = 0) -> bool:
    kind = proto.WhichOneof("value")
    if depth > 16:
        raise ModelError(f"a type is nested deeper than 16 levels: {quoted(kind)}")
    if kind == "sequence_type":
        return _is_foreign(proto.sequence_type.elem_type, depth + 1)
    if kind == "optional_type":
        return _is_foreign(proto.optional_type.elem_type, depth + 1)
    return kind in {"map_type", "opaque_type"}


def _detached_type(info: onnx.ValueInfoProto) -> onnx.TypeProto:
    kept = onnx.TypeProto()
    kept.CopyFrom(info.type)
    info.ClearField("type")
    return kept


def _sparse_attributes(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    return [attr for attr in node.attribute if attr.type in _SPARSE_ATTRIBUTES]


def _detach_attributes(
    node: onnx.NodeProto, found: list[onnx.AttributeProto]
) -> list[onnx.AttributeProto]:
    kept = []
    for attr in found:
        copied = onnx.AttributeProto()
        copied.CopyFrom(attr)
        kept.append(copied)
        node.attribute.remove(attr)
    return kept


def _restore_types(
    graph: onnx.GraphProto | onnx.FunctionProto, types: dict[str, onnx.TypeProto]
) -> None:
    missing = dict(types)
    for info in _infos(graph):
        if info.name in types and info.type.WhichOneof("value") is None:
            info.type.CopyFrom(types[info.name])
            missing.pop(info.name, None)
    outputs = {name for node in graph.node for name in node.output}
    for name in missing.keys() & outputs:
        graph.value_info.add(name=name).type.CopyFrom(missing[name])
