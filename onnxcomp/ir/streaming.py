"""Writing a model with its weights as one file, one weight in memory at a time.

A protobuf that is made whole and then turned into bytes has every weight three times. Here the large
ones are left out of the message and written straight into the place where their bytes belong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

from onnxcomp.errors import UserError
from onnxcomp.ir import storage
from onnxcomp.ir.backend import ir
from onnxcomp.ir.wire import varint

if TYPE_CHECKING:
    from onnxcomp.ir.atomic import OutputFile
    from onnxcomp.ir.model import Model

# Below, leaving a tensor out and putting it back costs more than it saves.
STREAMED_BYTES = 1 << 16
PROTO_BYTES = (1 << 31) - 1
_PLACE = "onnxcomp-streamed"
# Fields of the messages that are put together here: number and, for all of them, "so many bytes follow".
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW = (bytes([field << 3 | 2]) for field in (7, 5, 9))


def write(model: Model, file: OutputFile) -> None:
    """Writes a model to the start of a file, weights included.

    Raises:
        UserError: The model is above 2 GiB, which no protobuf can be.
    """
    try:
        _write(model, file)
    except (EncodeError, ValueError) as error:  # upb: message above 2 GiB
        raise UserError("the model is above 2 GiB", hint="save it with external data") from error


def _write(model: Model, file: OutputFile) -> None:
    large = _large(model)
    replaced: dict[ir.Value, ir.TensorProtocol] = {
        value: storage.reference(tensor, value.name or "", _PLACE, 0)
        for value, tensor in large.items()
    }
    with storage.swapped(replaced | _read(model, large)):
        proto = model.to_proto()
    by_name = {value.name: tensor for value, tensor in large.items()}
    streamed = [
        (_without_place(tensor), by_name[tensor.name])
        for tensor in proto.graph.initializer
        if tensor.name in by_name
    ]
    others = [tensor for tensor in proto.graph.initializer if tensor.name not in by_name]
    kept = onnx.GraphProto(initializer=others)
    proto.graph.ClearField("initializer")
    graph = proto.graph.SerializeToString() + kept.SerializeToString()
    proto.ClearField("graph")
    heads = [(head + _TENSOR_RAW + varint(tensor.nbytes), tensor) for head, tensor in streamed]
    sizes = [len(head) + tensor.nbytes for head, tensor in heads]
    inner = len(graph) + sum(1 + len(varint(size)) + size for size in sizes)
    rest = proto.SerializeToString() + _MODEL_GRAPH + varint(inner)
    if len(rest) + inner > PROTO_BYTES:
        raise ValueError("too large")
    file.write(rest + graph)
    for (head, tensor), size in zip(heads, sizes, strict=True):
        file.write(_GRAPH_INITIALIZER + varint(size) + head)
        storage.write_bytes(file, tensor, tensor.name or "")


def _large(model: Model) -> dict[ir.Value, ir.TensorProtocol]:
    """The weights of the main graph that are worth it."""
    return {
        value: tensor
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None
        and tensor.nbytes >= STREAMED_BYTES
        and tensor.dtype != ir.DataType.STRING
    }


def _read(
    model: Model, others: dict[ir.Value, ir.TensorProtocol]
) -> dict[ir.Value, ir.TensorProtocol]:
    """The remaining weights that lie in other files, read: nothing may refer to these files."""
    return {
        value: ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=value.name)
        for value in model.initializers()
        if value not in others and isinstance(tensor := value.const_value, ir.ExternalTensor)
    }


def _without_place(tensor: onnx.TensorProto) -> bytes:
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    head: bytes = tensor.SerializeToString()
    return head
