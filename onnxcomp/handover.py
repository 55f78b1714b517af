"""Handing a model to the runtime: its structure as bytes, its weights by reference.

onnxruntime 1.24 to 1.31, seen by trying:

- A tensor in an external file is memory-mapped by the runtime itself, also for a model that comes as
  bytes, when `session.model_external_initializers_file_folder_path` names the folder. This copies nothing
  and works in bodies of If, Loop and Scan too.
- `SessionOptions.add_external_initializers` takes values of the main graph that are in memory, before
  the graph is optimised. The runtime makes its one copy from them, and no protobuf has to hold them, so
  2 GiB is no limit.
- `SessionOptions.add_initializer` copies nothing, but constant folding reads the file that the stub names
  instead of the value: results are silently wrong when the file holds something else. Not used.
- `add_external_initializers_from_files_in_memory` must be given every external tensor or none, and
  copies as well. Not used.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto

from onnxcomp import elements
from onnxcomp.errors import ModelError, UserError, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onnxcomp.ir import Model, ir

    Source = Model | str | Path | bytes | onnx.ModelProto

# Shape inference of the runtime reads small tensors, and cannot read them from outside the protobuf.
_INLINE_BYTES = 1024
# Above this, the weights of a ModelProto leave it on the way: a message ends at 2 GiB, and writing and
# reading it makes two more copies.
_LEAN_ABOVE_BYTES = 1 << 26
# The runtime refuses longer configuration values, so a longer folder cannot be named.
_CONFIG_VALUE_LIMIT = 1000
_STUB = "onnxcomp-in-memory"
_FLOAT8 = frozenset(
    {
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ,
    }
)
# Nodes stand in front of weights in a file, so that the operator's name is near the start.
_ROUNDING, _HEAD, _LOOKED_INTO = b"QuantizeLinear", 1 << 24, 1 << 28


@dataclass(frozen=True)
class Handover:
    """A model as the runtime takes it.

    Attributes:
        model: A path, or the serialised structure.
        folder: Where external tensors lie, when `model` is not a path.
        arrays: Tensors of the main graph to be passed beside `model`: buffer and element type. The
            buffers must outlive the session.
        float8: Whether there are numbers of type float8 in it.
    """

    model: str | bytes
    folder: Path | None = None
    arrays: dict[str, tuple[np.ndarray, int]] = field(default_factory=dict)
    float8: bool = False


def hand_over(source: Source, extra_outputs: Sequence[str] = ()) -> Handover:
    """Prepares a model for a session.

    Args:
        source: A path (its external data beside it), serialised bytes, a protobuf, or a `Model`.
        extra_outputs: Values of the main graph to give out as well.

    Raises:
        ModelError: If the file is no regular file, or an extra output is not a value of the main graph.
    """
    if isinstance(source, (str, Path)):
        return _from_path(Path(source), extra_outputs)
    if isinstance(source, bytes):
        return Handover(_with_outputs(source, extra_outputs), float8=_float8_in(source))
    if isinstance(source, onnx.ModelProto):
        return _from_proto(source, extra_outputs)
    if hasattr(source, "to_proto"):
        return _from_model(source, extra_outputs)
    raise UserError(f"cannot run a {type(source).__name__}", hint="give a path or a model")


def _from_path(path: Path, extra_outputs: Sequence[str]) -> Handover:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ModelError(f"cannot read {quoted(path)}: {error.strerror}") from error
    if not stat.S_ISREG(mode):  # a pipe would block for ever
        raise ModelError(f"cannot read {quoted(path)}: not a regular file")
    if not extra_outputs:
        return Handover(str(path), float8=_float8_in_file(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {quoted(path)}: {error.strerror}") from error
    return Handover(
        _with_outputs(data, extra_outputs), path.resolve().parent, float8=_float8_in(data)
    )


def _float8_in_file(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            return _float8_in(head + file.read()) if _ROUNDING in head else False
    except OSError:
        return False  # the runtime says it better


def _float8_in(data: bytes) -> bool:
    """Whether a serialised model rounds to float8; not looked into where that would take long."""
    if len(data) > _LOOKED_INTO or _ROUNDING not in data[:_HEAD]:
        return False
    try:
        return _float8_in_proto(onnx.ModelProto.FromString(data))
    except (DecodeError, ValueError):
        return False


def _float8_in_proto(proto: onnx.ModelProto) -> bool:
    return any(tensor.data_type in _FLOAT8 for tensor in proto.graph.initializer)


def _from_proto(proto: onnx.ModelProto, extra_outputs: Sequence[str]) -> Handover:
    heavy = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) > _INLINE_BYTES]
    arrays = {}
    if sum(len(tensor.raw_data) for tensor in heavy) > _LEAN_ABOVE_BYTES:
        arrays = {tensor.name: _array_of(tensor) for tensor in heavy}
        proto = _without_weights(proto, arrays)
    data = _serialised(proto) + _outputs_patch(proto.graph, extra_outputs)
    return Handover(data, arrays=arrays, float8=_float8_in_proto(proto))


def _array_of(tensor: TensorProto) -> tuple[np.ndarray, int]:
    buffer = np.frombuffer(tensor.raw_data, np.uint8)
    return _shaped(buffer, tuple(tensor.dims), tensor.data_type), tensor.data_type


def _shaped(buffer: np.ndarray, shape: tuple[int, ...], code: int) -> np.ndarray:
    if elements.is_packed(code):
        return elements.padded(buffer, shape)
    return buffer.view(onnx.helper.tensor_dtype_to_np_dtype(code)).reshape(shape)


def _without_weights(proto: onnx.ModelProto, arrays: Iterable[str]) -> onnx.ModelProto:
    """Copies a protobuf except the named initializers, for which it makes stubs."""
    lean = onnx.ModelProto()
    _copy_fields(proto, lean, skip="graph")
    _copy_fields(proto.graph, lean.graph, skip="initializer")
    left_out = set(arrays)
    for tensor in proto.graph.initializer:
        if tensor.name in left_out:
            _refer(lean.graph.initializer.add(), tensor, _STUB, 0, len(tensor.raw_data))
        else:
            lean.graph.initializer.add().CopyFrom(tensor)
    return lean


def _copy_fields(
    source: onnx.ModelProto | onnx.GraphProto,
    target: onnx.ModelProto | onnx.GraphProto,
    *,
    skip: str,
) -> None:
    for descriptor, value in source.ListFields():
        if descriptor.name == skip:
            continue
        if hasattr(value, "MergeFrom") and hasattr(value, "add"):
            getattr(target, descriptor.name).MergeFrom(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            setattr(target, descriptor.name, value)


def _refer(target: TensorProto, like: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes a tensor an external reference with the name, type and shape of another."""
    name, code, dims = like.name, like.data_type, list(like.dims)
    target.Clear()
    target.name, target.data_type = name, code
    target.dims.extend(dims)
    target.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        target.external_data.add(key=key, value=value)


def _from_model(model: Model, extra_outputs: Sequence[str]) -> Handover:
    """Hands over a `Model`: what lies in its folder by reference, the rest as arrays or inline."""
    proto = model.to_proto(weights=False)
    folder = _data_folder(model)
    arrays: dict[str, tuple[np.ndarray, int]] = {}
    for stub, tensor, is_main in _tensors_left_out(model, proto):
        reference = _in_folder(tensor, folder)
        if reference is not None:
            _refer(stub, stub, str(reference.location), reference.offset or 0, reference.nbytes)
        elif is_main and tensor.nbytes > _INLINE_BYTES:
            arrays[stub.name] = _array_for(tensor, stub.data_type)
            _refer(stub, stub, _STUB, 0, tensor.nbytes)
        else:
            stub.ClearField("external_data")
            stub.data_location = TensorProto.DEFAULT
            stub.raw_data = tensor.tobytes()
    data = _serialised(proto) + _outputs_patch(proto.graph, extra_outputs)
    return Handover(data, folder, arrays, _float8_in_proto(proto))


def _tensors_left_out(
    model: Model, proto: onnx.ModelProto
) -> Iterator[tuple[TensorProto, ir.TensorProtocol, bool]]:
    """Yields initializers without bytes, the tensors that have them, whether they may go as arrays."""
    from onnxcomp.ir.scopes import proto_graphs

    for graph, written in zip(model.graphs(), proto_graphs(proto), strict=True):
        if not isinstance(written, onnx.GraphProto):
            continue
        unread = {value.name for value in graph.initializers.values() if _is_unread(value)}
        kept = [stub for stub in written.initializer if stub.name not in unread]
        if len(kept) < len(written.initializer):
            # The runtime drops what nobody reads, and then misses it among the arrays it is given.
            copies = [TensorProto.FromString(stub.SerializeToString()) for stub in kept]
            written.ClearField("initializer")
            written.initializer.extend(copies)
        for stub in written.initializer:
            value = graph.initializers[stub.name]
            tensor = value.const_value if _is_external(stub) else None
            if tensor is not None:
                # Also of defaults of inputs, which stay, the runtime drops those that nobody reads.
                yield stub, tensor, graph is model.graph and bool(value.uses())


def _is_unread(value: ir.Value) -> bool:
    return not (value.uses() or value.is_graph_output() or value.is_graph_input())


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _data_folder(model: Model) -> Path | None:
    if model.path is None:
        return None
    folder = model.path.resolve().parent
    return folder if len(str(folder)) < _CONFIG_VALUE_LIMIT and folder.is_dir() else None


def _in_folder(tensor: ir.TensorProtocol, folder: Path | None) -> ir.ExternalTensor | None:
    """Returns the tensor if it is a part of a file below the folder and worth a reference."""
    from onnxcomp.ir import ir as onnx_ir

    if not isinstance(tensor, onnx_ir.ExternalTensor) or tensor.nbytes <= _INLINE_BYTES:
        return None
    return tensor if folder is not None and Path(tensor.base_dir).resolve() == folder else None


def _array_for(tensor: ir.TensorProtocol, code: int) -> tuple[np.ndarray, int]:
    if elements.is_packed(code):
        packed = np.frombuffer(tensor.tobytes(), np.uint8)
        return elements.padded(packed, tuple(tensor.shape.numpy())), code
    # The kernels take a float to lie where a float may lie; in a mapped model file it need not.
    return np.require(tensor.numpy(), requirements=("C", "ALIGNED")), code


def _serialised(proto: onnx.ModelProto) -> bytes:
    try:
        return bytes(proto.SerializeToString())
    except (EncodeError, ValueError) as error:  # above 2 GiB
        raise ModelError(
            "the model is above 2 GiB without its separate weights",
            hint="save it with external data and give the path",
        ) from error


def _with_outputs(data: bytes, extra_outputs: Sequence[str]) -> bytes:
    if not extra_outputs:
        return data
    try:
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError) as error:
        raise ModelError("not an ONNX model: the protobuf cannot be read") from error
    return data + _outputs_patch(proto.graph, extra_outputs)


def _outputs_patch(graph: onnx.GraphProto, extra_outputs: Sequence[str]) -> bytes:
    """Returns bytes which, appended to the model, add outputs: protobuf merges repeated fields.

    The runtime infers the types of outputs that declare none, more often than shape inference of
    the onnx package can.
    """
    if not extra_outputs:
        return b""
    there = {output.name for output in graph.output}
    known = {name for node in graph.node for name in node.output if name}
    known.update(value.name for value in (*graph.input, *graph.initializer))
    patch = onnx.ModelProto()
    for name in dict.fromkeys(extra_outputs):
        if name in there:
            continue
        if name not in known:
            raise ModelError(f"the main graph has no value {quoted(name)} to give out")
        patch.graph.output.add(name=name)
    return bytes(patch.SerializeToString())
