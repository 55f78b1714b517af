"""The onnx-graphsurgeon dialect: functions `gs.Graph -> gs.Graph` run as passes, without its losses.

GraphSurgeon forgets metadata, doc strings, versions and which initializers may be overridden, and
loads every weight that is touched. Here the structure alone goes through it; weights that the function
does not ask for stay where they are, and what GraphSurgeon forgets is put back by name.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx

from onnxcomp.errors import ModelError, UserError, quoted
from onnxcomp.ir import storage
from onnxcomp.ir.backend import ir
from onnxcomp.ir.envelope import ATTRIBUTES, SPARSE_INITIALIZERS, TRAINING, TYPES
from onnxcomp.ir.model import core_from_proto
from onnxcomp.ir.scopes import ir_graphs, proto_graphs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxcomp.ir.edit import Edit
    from onnxcomp.ir.model import Model

TOKEN = "onnxcomp-tensor-"
_KEPT_ABOVE_BYTES = 256
# Attribute types that GraphSurgeon 0.6 leaves out with a warning.
_UNSUPPORTED = {
    onnx.AttributeProto.TENSORS,
    onnx.AttributeProto.GRAPHS,
    onnx.AttributeProto.TYPE_PROTO,
    onnx.AttributeProto.TYPE_PROTOS,
    onnx.AttributeProto.SPARSE_TENSOR,
    onnx.AttributeProto.SPARSE_TENSORS,
}


def is_graph(source: object) -> bool:
    """Whether something is a GraphSurgeon graph; does not import GraphSurgeon."""
    module = sys.modules.get("onnx_graphsurgeon")
    return module is not None and isinstance(source, module.Graph)


def to_proto(graph: Any) -> onnx.ModelProto:  # noqa: ANN401 - GraphSurgeon has no types
    """Returns the model that a GraphSurgeon graph stands for; the graph is not changed."""
    with _quiet():
        proto: onnx.ModelProto = _surgeon().export_onnx(graph)
    return proto


def apply(model: Model, edit: Edit, function: Callable[[Any], Any]) -> None:
    """Runs a function on the model as a GraphSurgeon graph and takes over what it made.

    Args:
        model: The model.
        edit: Where the change is recorded.
        function: Takes a `gs.Graph`; returns a graph, or None after changing it in place.

    Raises:
        UserError: If the model has parts that GraphSurgeon would lose, or the function returns
            something else.
    """
    gs = _surgeon()
    _refuse_what_would_be_lost(model)
    tensors = _tokens(model)
    with storage.swapped({value: token for value, (token, _) in tensors.items()}):
        proto = model.to_proto()
    originals = {str(token.location): tensor for token, tensor in tensors.values()}
    before = _bytes(proto)
    with _quiet():
        untouched = gs.export_onnx(_import(gs, proto, originals))
        graph = _import(gs, onnx.ModelProto.FromString(before), originals)
        made = function(graph)
        if made is not None and not isinstance(made, gs.Graph):
            raise UserError(
                f"the function returned {type(made).__name__}, not a GraphSurgeon graph"
            )
        exported = gs.export_onnx(graph if made is None else made)
    if _bytes(exported) == _bytes(untouched):
        return
    _carry(proto, untouched, exported)
    core = core_from_proto(exported)
    _bind(core, originals)
    edit.replace_model(core)


def _bytes(proto: onnx.ModelProto) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _surgeon() -> Any:  # noqa: ANN401 - GraphSurgeon has no types
    try:
        import onnx_graphsurgeon as gs
    except ImportError:
        raise UserError(
            "onnx-graphsurgeon is not installed", hint="pip install 'onnxcomp[surgeon]'"
        ) from None
    return gs


@contextmanager
def _quiet() -> Iterator[None]:
    """GraphSurgeon logs to standard output; only its errors matter here, and those it raises."""
    from onnx_graphsurgeon.logger import G_LOGGER

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = severity


def _refuse_what_would_be_lost(model: Model) -> None:
    """Some parts of a model cannot be expressed in GraphSurgeon at all."""
    if model.core.meta.get(TRAINING):
        raise UserError("a GraphSurgeon function cannot run on a model with training information")
    for function in model.core.functions.values():
        if function.overload:
            raise UserError(
                f"a GraphSurgeon function cannot run on function overloads ({quoted(function.name)})"
            )
    for graph in model.graphs():
        if graph.meta.get(SPARSE_INITIALIZERS) or graph.meta.get(TYPES):
            raise UserError(
                "GraphSurgeon cannot hold the sparse tensors or map types of this model"
            )
        for node in graph:
            kinds = {attr.type.value for attr in node.attributes.values()}
            if kinds & _UNSUPPORTED or node.meta.get(ATTRIBUTES) or node.overload:
                raise UserError(
                    f"GraphSurgeon cannot hold an attribute of {node.op_type} {quoted(node.name)}"
                )


def _tokens(model: Model) -> dict[ir.Value, tuple[ir.ExternalTensor, ir.TensorProtocol]]:
    """Numbers the weights; the numbers travel through GraphSurgeon in place of the bytes."""
    found: dict[ir.Value, tuple[ir.ExternalTensor, ir.TensorProtocol]] = {}
    for value in model.initializers():
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype == ir.DataType.STRING
            or tensor.nbytes <= _KEPT_ABOVE_BYTES
        ):
            continue
        token = storage.reference(tensor, value.name or "", f"{TOKEN}{len(found)}", 0)
        found[value] = (token, tensor)
    return found


def _import(gs: Any, proto: onnx.ModelProto, originals: dict[str, ir.TensorProtocol]) -> Any:  # noqa: ANN401
    """Imports a structure and lets its constants read the real weights when they are asked for."""
    from onnx_graphsurgeon.ir.tensor import LazyValues

    class Borrowed(LazyValues):  # type: ignore[misc]
        def load(self) -> Any:  # noqa: ANN401
            return originals[_token_of(self.tensor)].numpy().copy()

    graph = gs.import_onnx(proto)
    for scope in _surgeon_scopes(gs, graph):
        for tensor in scope.tensors().values():
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, LazyValues):
                if _token_of(tensor._values.tensor):
                    tensor.values = Borrowed(tensor._values.tensor)
                tensor.data_location = None
    return graph


def _surgeon_scopes(gs: Any, graph: Any) -> Iterator[Any]:  # noqa: ANN401
    stack = [graph]
    while stack:
        scope = stack.pop()
        yield scope
        for node in scope.nodes:
            stack.extend(value for value in node.attrs.values() if isinstance(value, gs.Graph))


def _token_of(tensor: onnx.TensorProto) -> str:
    """Returns the token in a stand-in tensor, empty for a tensor with contents of its own."""
    for entry in getattr(tensor, "external_data", ()):
        if entry.key == "location" and entry.value.startswith(TOKEN):
            return str(entry.value)
    return ""


def _bind(core: ir.Model, originals: dict[str, ir.TensorProtocol]) -> None:
    """Puts the weights back where their tokens ended up."""
    for graph in ir_graphs(core):
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                original = originals.get(str(tensor.location))
                if original is None:
                    raise ModelError(
                        f"the function made a reference to a file: {quoted(value.name)}"
                    )
                value.const_value = storage.named(original, value.name or "")


def _carry(
    original: onnx.ModelProto, untouched: onnx.ModelProto, exported: onnx.ModelProto
) -> None:
    """Puts back what GraphSurgeon forgot, wherever the function did not change it."""
    for name in ("domain", "model_version", "doc_string", "ir_version"):
        setattr(exported, name, getattr(original, name))
    exported.metadata_props.extend(original.metadata_props)
    if list(untouched.opset_import) == list(exported.opset_import):
        exported.ClearField("opset_import")
        exported.opset_import.extend(original.opset_import)
    functions = {(f.domain, f.name): f for f in original.functions}
    same = {(f.domain, f.name): _function_bytes(f) for f in untouched.functions}
    for function in exported.functions:
        key = (function.domain, function.name)
        if key in functions and same.get(key) == _function_bytes(function):
            function.CopyFrom(functions[key])
    graphs = {graph.name: graph for graph in proto_graphs(original)}
    plain = {graph.name: graph for graph in proto_graphs(untouched)}
    for graph in proto_graphs(exported):
        if graph.name in graphs and isinstance(graph, onnx.GraphProto):
            _carry_graph(graphs[graph.name], plain.get(graph.name), graph)


def _function_bytes(function: onnx.FunctionProto) -> bytes:
    data: bytes = function.SerializeToString(deterministic=True)
    return data


def _carry_graph(original: Any, untouched: Any, exported: onnx.GraphProto) -> None:  # noqa: ANN401
    exported.metadata_props.extend(original.metadata_props)
    _carry_nodes(original, exported)
    known = {tensor.name for tensor in exported.initializer}
    present = {info.name for info in exported.input}
    overridable = {tensor.name for tensor in getattr(original, "initializer", ())}
    order = [info.name for info in original.input]
    for info in original.input:
        if info.name in overridable and info.name in known and info.name not in present:
            exported.input.append(info)
    if {info.name for info in exported.input} == set(order):
        infos = {info.name: info for info in [*exported.input]}
        copies = [onnx.ValueInfoProto.FromString(infos[n].SerializeToString()) for n in order]
        exported.ClearField("input")
        exported.input.extend(copies)
    _carry_infos(original, untouched, exported)
    made = {name for node in exported.node for name in node.output} | known | present
    exported.quantization_annotation.extend(
        note for note in original.quantization_annotation if note.tensor_name in made
    )


def _carry_nodes(original: onnx.GraphProto, exported: onnx.GraphProto) -> None:
    nodes = {(node.op_type, tuple(node.output)): node for node in original.node}
    for node in exported.node:
        known = nodes.get((node.op_type, tuple(node.output)))
        if known is not None:
            node.doc_string = known.doc_string
            node.metadata_props.extend(known.metadata_props)


def _carry_infos(original: Any, untouched: Any, exported: onnx.GraphProto) -> None:  # noqa: ANN401
    """Declarations that the function did not touch come back as they were, denotations included."""
    for field in ("input", "output", "value_info"):
        kept = {info.name: info for info in getattr(original, field)}
        plain = {info.name: info for info in getattr(untouched, field, ())}
        for info in getattr(exported, field):
            if info.name in kept and plain.get(info.name, info) == info:
                info.CopyFrom(kept[info.name])
