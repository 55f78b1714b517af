"""Where weights lie: stand-ins for them while a structure is looked at, and writing them out."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir import envelope
from onnxcomp.ir.atomic import AtomicWriter, check_output, copy_range
from onnxcomp.ir.backend import ir
from onnxcomp.ir.scopes import proto_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir.atomic import OutputFile
    from onnxcomp.ir.model import Model

# A protobuf message ends at 2 GiB; leave room for what is not weights, and for readers' copies.
EXTERNAL_ABOVE_BYTES = 1 << 30
# Small tensors (shapes, axes, scales) stay in the model file: readers need them to infer shapes.
EXTERNAL_TENSOR_BYTES = 1024
# onnxruntime maps a tensor without copying when it starts on a page; small ones get a cache line.
PAGE, LINE, PAGE_ALIGNED_ABOVE = 4096, 64, 1 << 20
STUB_LOCATION = "onnxcomp-stub"


def has_external(proto: onnx.ModelProto, own: str = "") -> bool:
    """Whether some tensor of a protobuf keeps its bytes in another file than the model's `own`."""
    return any(
        t.data_location == onnx.TensorProto.EXTERNAL
        and not (own and any(entry.value == own for entry in t.external_data))
        for t in proto_tensors(proto)
    )


def attribute_tensors(model: Model) -> Iterator[ir.TensorProtocol]:
    """Yields the tensors in attributes of every scope (contents of Constant nodes and the like)."""
    for node in model.nodes():
        for attr in node.attributes.values():
            if attr.is_ref():
                continue
            if attr.type == ir.AttributeType.TENSOR:
                yield cast("ir.TensorProtocol", attr.value)
            elif attr.type == ir.AttributeType.TENSORS:
                yield from attr.as_tensors()


@contextlib.contextmanager
def swapped(replacements: dict[ir.Value, ir.TensorProtocol]) -> Iterator[None]:
    """Gives initializers other tensors for as long as the context lasts."""
    kept = {value: value.const_value for value in replacements}
    try:
        for value, tensor in replacements.items():
            value.const_value = tensor
        yield
    finally:
        for value, original in kept.items():
            value.const_value = original


def stubs(model: Model, above: int) -> contextlib.AbstractContextManager[None]:
    """Stands references to no file in for all initializers above a size in bytes."""
    replacements: dict[ir.Value, ir.TensorProtocol] = {}
    for value in model.initializers():
        tensor = value.const_value
        if tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > above:
            replacements[value] = reference(tensor, value.name or "", STUB_LOCATION, 0)
    return swapped(replacements)


def reference(
    tensor: ir.TensorProtocol, name: str, location: str, offset: int
) -> ir.ExternalTensor:
    """Returns a tensor that stands for another one and says that its bytes lie in a file."""
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def named(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """Returns a tensor under a name: it is written under its own, so a shared one gets a second face."""
    if tensor.name == name:
        return tensor
    if not tensor.name and isinstance(tensor, ir.Tensor):
        tensor.name = name  # made here; others may belong to the caller's protobuf
        return tensor
    if isinstance(tensor, ir.ExternalTensor):
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=tensor.shape, name=name, base_dir=tensor.base_dir,
        )  # fmt: skip
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(tensor.string_data(), shape=tensor.shape, name=name)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape, name=name)


def save(model: Model, path: Path, *, in_place: bool, external: bool | None) -> None:
    """Writes a model and, where asked or needed, its weights beside it. See `Model.save`."""
    inputs = [model.path] if model.path else []
    check_output(path, inputs, in_place)
    if external is None:
        external = model.external or model.nbytes > EXTERNAL_ABOVE_BYTES
    if external:
        _save_external(model, path, in_place=in_place)
        return
    from onnxcomp.ir import streaming

    with AtomicWriter(path) as writer:
        streaming.write(model, writer.open(path))


def _save_external(model: Model, path: Path, *, in_place: bool) -> None:
    data_path = path.with_name(path.name + ".data")
    check_output(data_path, _data_files(model), in_place)
    layout = _layout(model, data_path.name)
    with swapped(dict(layout)):
        proto = model.to_proto().SerializeToString()
    with AtomicWriter(path) as writer:
        data_file = writer.open(data_path)
        for value, reference in layout:
            _write_tensor(data_file, value, reference.offset or 0)
        writer.open(path).write(proto)
    if in_place and model.path is not None and path.samefile(model.path):
        _point_at(layout, path)


def _data_files(model: Model) -> list[Path]:
    """The files that the model reads its weights from."""
    tensors = (value.const_value for value in model.initializers())
    return sorted({Path(t.path) for t in tensors if isinstance(t, ir.ExternalTensor)})


def _layout(model: Model, location: str) -> list[tuple[ir.Value, ir.ExternalTensor]]:
    """Places each initializer in the data file, in the order of the model; shared ones once."""
    placed: dict[int, int] = {}
    layout = []
    end = 0
    for value in model.initializers():
        tensor = value.const_value
        if (
            tensor is None
            or tensor.dtype == ir.DataType.STRING
            or tensor.nbytes < EXTERNAL_TENSOR_BYTES
        ):
            continue
        if id(tensor) not in placed:
            alignment = PAGE if tensor.nbytes >= PAGE_ALIGNED_ABOVE else LINE
            start = -(-end // alignment) * alignment
            placed[id(tensor)] = start
            end = start + tensor.nbytes
        layout.append((value, reference(tensor, value.name or "", location, placed[id(tensor)])))
    return layout


def _write_tensor(file: OutputFile, value: ir.Value, offset: int) -> None:
    if value.const_value is not None:
        file.seek(offset)
        write_bytes(file, value.const_value, value.name or "")


def write_bytes(file: OutputFile, tensor: ir.TensorProtocol, name: str) -> None:
    """Writes the bytes of a tensor where a file stands; one that lies in a file is copied there."""
    if isinstance(tensor, ir.ExternalTensor):
        with open(tensor.path, "rb") as source:  # noqa: PTH123 - the path comes from the checked door
            copy_range(source.fileno(), file.fileno(), tensor.offset or 0, tensor.nbytes)
        return
    data = _in_place(tensor)
    if data is None:
        data = memoryview(tensor.tobytes())
    if data.nbytes != tensor.nbytes:
        raise ModelError(f"tensor {quoted(name)} has {data.nbytes} bytes, not {tensor.nbytes}")
    file.write(data)


def _in_place(tensor: ir.TensorProtocol) -> memoryview | None:
    """The bytes of a tensor without a copy, where memory holds them as files do."""
    if sys.byteorder != "little" or not isinstance(tensor, ir.Tensor):
        return None
    array = tensor.numpy()
    if not array.flags.c_contiguous or array.nbytes != tensor.nbytes or not array.size:
        return None  # several elements to a byte take one each in memory
    return array.reshape(-1).view(np.uint8).data


def _point_at(layout: list[tuple[ir.Value, ir.ExternalTensor]], path: Path) -> None:
    """After writing over its own data file, the model reads from the new one."""
    for value, reference in layout:
        reference.base_dir = path.parent
        value.const_value = reference


def sparse_value_names(model: Model) -> set[str]:
    """Names of values that sparse initializers define, in any scope."""
    return {name for graph in model.graphs() for name in envelope.sparse_names(graph)}
