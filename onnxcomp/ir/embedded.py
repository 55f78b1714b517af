"""Weights inside a large model file, left where they are.

A protobuf parser copies every weight. Here the file is walked field by field, large weights of the
main graph are replaced by references into the same file, and what remains is parsed: kilobytes
instead of hundreds of megabytes. The weights are mapped when somebody reads them.

Fields are those of onnx.proto; anything unusual (a field twice, a length that leads out of the file)
makes this give up, and the ordinary parser reads the file and says what is wrong with it.
"""

from __future__ import annotations

import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.wire import tag, varint

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

# A smaller file is read whole: it takes no time, and whoever writes over it disturbs nobody.
LARGE_FILE_BYTES = 64 << 20
_LARGE_WEIGHT_BYTES = 64 << 10
_MAX_VARINT_BYTES = 10
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_GRAPH, _INITIALIZER = 7, 5
_RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 9, 13, 14
_KEY, _VALUE = 1, 2
_EXTERNAL = 1
# Types whose bytes numpy can look at in place.
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.DOUBLE,
        ir.DataType.FLOAT16,
        ir.DataType.BFLOAT16,
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT16,
        ir.DataType.UINT16,
        ir.DataType.INT32,
        ir.DataType.UINT32,
        ir.DataType.INT64,
        ir.DataType.UINT64,
        ir.DataType.BOOL,
    }
)


class _UnusualError(Exception):
    """The file is not built as expected."""


@dataclass(frozen=True)
class Lean:
    """A model file without its large weights.

    Attributes:
        message: The model; large weights are external data at `location`.
        location: A name that nobody could guess, so that no file can state it.
        mapped: The file itself, whatever its name comes to stand for later.
    """

    message: bytes
    location: str
    mapped: mmap.mmap

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.mapped)


def new_location() -> str:
    """Returns a name for references into the file itself."""
    return f"onnxcomp-own-{secrets.token_hex(16)}"


def without_weights(mapped: mmap.mmap) -> Lean | None:
    """Takes large weights out of a model file.

    Args:
        mapped: The file; it must stay open as long as the weights are in use.

    Returns:
        What remains; None when there is nothing to take out or the file is unusual.
    """
    if sys.byteorder != "little":
        return None
    location = new_location()
    with memoryview(mapped) as view:
        try:
            parts, found = _model(view, location.encode())
            message = b"".join(parts) if found else b""
        except _UnusualError:
            return None
    return Lean(message, location, mapped) if found else None


def _model(view: memoryview, location: bytes) -> tuple[list[bytes | memoryview], int]:
    parts: list[bytes | memoryview] = []
    found = graphs = 0
    for number, kind, start, begin, end in _fields(view, 0, len(view)):
        if number != _GRAPH or kind != _BYTES:
            parts.append(view[start:end])
            continue
        graphs += 1
        if graphs > 1:
            raise _UnusualError
        inner, found = _graph(view, begin, end, location)
        size = sum(map(len, inner))
        parts += [tag(_GRAPH, _BYTES), varint(size), *inner]
    return parts, found


def _graph(
    view: memoryview, begin: int, end: int, location: bytes
) -> tuple[list[bytes | memoryview], int]:
    parts: list[bytes | memoryview] = []
    found = 0
    for number, kind, start, first, last in _fields(view, begin, end):
        weight = None
        if number == _INITIALIZER and kind == _BYTES and last - first >= _LARGE_WEIGHT_BYTES:
            weight = _reference(view, first, last, location)
        if weight is None:
            parts.append(view[start:last])
            continue
        found += 1
        size = sum(map(len, weight))
        parts += [tag(_INITIALIZER, _BYTES), varint(size), *weight]
    return parts, found


def _reference(
    view: memoryview, begin: int, end: int, location: bytes
) -> list[bytes | memoryview] | None:
    """A tensor with a reference in the place of its bytes; None when it has no large bytes."""
    parts: list[bytes | memoryview] = []
    place: tuple[int, int] | None = None
    for number, kind, start, first, last in _fields(view, begin, end):
        if number in {_EXTERNAL_DATA, _DATA_LOCATION}:
            return None
        if number != _RAW_DATA:
            parts.append(view[start:last])
            continue
        if kind != _BYTES or place is not None:
            raise _UnusualError
        place = (first, last - first)
    if place is None or place[1] < _LARGE_WEIGHT_BYTES:
        return None
    for key, value in (
        (b"location", location),
        (b"offset", b"%d" % place[0]),
        (b"length", b"%d" % place[1]),
    ):
        entry = _text(_KEY, key) + _text(_VALUE, value)
        parts += [tag(_EXTERNAL_DATA, _BYTES), varint(len(entry)), entry]
    parts.append(tag(_DATA_LOCATION, _VARINT) + varint(_EXTERNAL))
    return parts


def _fields(view: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yields number, kind, start of the field, and begin and end of its contents."""
    while position < end:
        start = position
        head, position = _read_varint(view, position, end)
        number, kind = head >> 3, head & 7
        begin = position
        if kind == _VARINT:
            _, position = _read_varint(view, position, end)
        elif kind == _BYTES:
            size, begin = _read_varint(view, position, end)
            position = begin + size
        elif kind in {_FIXED64, _FIXED32}:
            position += 8 if kind == _FIXED64 else 4
        else:
            raise _UnusualError
        if position > end or not number:
            raise _UnusualError
        yield number, kind, start, begin, position


def _read_varint(view: memoryview, position: int, end: int) -> tuple[int, int]:
    number = 0
    for index in range(_MAX_VARINT_BYTES):
        if position >= end:
            break
        byte = view[position]
        position += 1
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, position
    raise _UnusualError


def _text(number: int, text: bytes) -> bytes:
    return tag(number, _BYTES) + varint(len(text)) + text


def map_weights(core: ir.Model, lean: Lean) -> None:
    """Gives weights that were left in the file arrays that look into it."""
    for value in core.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and str(tensor.location) == lean.location:
            value.const_value = _mapped(tensor, lean.mapped)


def _mapped(tensor: ir.ExternalTensor, mapped: mmap.mmap) -> ir.TensorProtocol:
    offset, size = tensor.offset or 0, tensor.nbytes
    shape = tuple(tensor.shape.numpy())
    details: dict[str, Any] = {
        "name": tensor.name,
        "doc_string": tensor.doc_string,
        "metadata_props": dict(tensor.metadata_props),
    }
    if tensor.dtype in _PLAIN:
        kind = tensor.dtype.numpy()
        array = np.frombuffer(mapped, kind, size // kind.itemsize, offset).reshape(shape)
        return ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(shape), **details)
    packed = np.frombuffer(mapped, np.uint8, size, offset)
    return ir.PackedTensor(packed, tensor.dtype, shape=ir.Shape(shape), **details)
