"""The npy format read as a stream: header first, then row by row. Nothing is ever unpickled."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from onnxcomp.samples.feeds import Array

_MAGIC = b"\x93NUMPY"
# numpy's own bound: what `ast.literal_eval` handles safely.
_HEADER_BYTES = 10_000


@dataclass(frozen=True)
class ArrayHeader:
    """What an array is, known without reading its values.

    Attributes:
        dtype: Element type.
        shape: Dimensions.
        fortran: True when the first axis is the one that varies fastest in the file.
        offset: Bytes of the file before the values.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool = False
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


class ByteStream(Protocol):
    """Bytes that come in order."""

    def readinto(self, target: memoryview) -> None:
        """Fills the target or raises `SamplesError`."""

    def skip(self, count: int) -> None:
        """Goes on without handing out the next bytes."""


class FileStream:
    """The bytes of an open file."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file = file
        self._place = place

    def readinto(self, target: memoryview) -> None:
        """Fills the target."""
        try:
            count = self._file.readinto(target)  # type: ignore[attr-defined]  # every binary file has it
        except OSError as error:
            raise SamplesError(f"cannot read {self._place}: {error.strerror or error}") from None
        if count != len(target):
            raise SamplesError(f"{self._place}: the file is truncated")

    def skip(self, count: int) -> None:
        """Goes on without reading."""
        self._file.seek(count, 1)


def read_header(stream: ByteStream, size: int, place: str) -> ArrayHeader:
    """Reads the header of an npy file of `size` bytes and checks it against that size."""
    prefix = _bytes(stream, min(size, 8))
    if prefix[:6] != _MAGIC:
        raise SamplesError(f"{place}: not an array in npy format")
    width = {(1, 0): 2, (2, 0): 4}.get((prefix[6], prefix[7])) if len(prefix) == 8 else None
    if width is None:
        raise SamplesError(f"{place}: this version of the npy format is not supported")
    if size < 8 + width:
        raise SamplesError(f"{place}: the file is truncated")
    length = int.from_bytes(_bytes(stream, width), "little")
    if length > _HEADER_BYTES:
        raise SamplesError(
            f"{place}: the npy header has {length} bytes, at most {_HEADER_BYTES} are accepted"
        )
    offset = 8 + width + length
    if size < offset:
        raise SamplesError(f"{place}: the file is truncated")
    header = _parse(_bytes(stream, length), offset, place)
    _check_size(header, size, place)
    return header


class RowReader:
    """Reads rows (entries of the first axis) of an array, in order."""

    def __init__(
        self, stream: ByteStream, header: ArrayHeader, place: str, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self._stream = stream
        self._header = header
        self._place = place
        self._limits = limits
        self._row = 0
        self._loaded: Array | None = None

    def whole(self) -> Array:
        """Reads the complete array."""
        header = self._header
        values = self._values(header.shape[::-1] if header.fortran else header.shape)
        return values.T if header.fortran else values

    def rows(self, start: int, count: int) -> Array:
        """Reads some rows that come after those that were read before."""
        header = self._header
        if header.fortran and len(header.shape) > 1:
            # The rows are strewn over the whole file.
            if self._loaded is None:
                self._loaded = self.whole()
            return self._loaded[start : start + count].copy()
        row_bytes = math.prod(header.shape[1:]) * header.dtype.itemsize
        self._stream.skip((start - self._row) * row_bytes)
        self._row = start + count
        return self._values((count, *header.shape[1:]))

    def _values(self, shape: tuple[int, ...]) -> Array:
        dtype = self._header.dtype
        count = math.prod(shape)
        if count * dtype.itemsize > self._limits.sample_bytes:
            hint = (
                "store C-ordered arrays (numpy.ascontiguousarray)" if self._header.fortran else ""
            )
            raise SamplesError(
                f"{self._place}: one sample would take {count * dtype.itemsize} bytes, "
                f"at most {self._limits.sample_bytes} are accepted",
                hint=hint,
            )
        buffer = np.empty(count * dtype.itemsize, np.uint8)
        if buffer.size:
            self._stream.readinto(buffer.data)
        values = buffer.view(dtype).reshape(shape) if buffer.size else np.empty(shape, dtype)
        return values if dtype.isnative else values.astype(dtype.newbyteorder("="))


def _bytes(stream: ByteStream, count: int) -> bytes:
    buffer = bytearray(count)
    stream.readinto(memoryview(buffer))
    return bytes(buffer)


def _parse(text: bytes, offset: int, place: str) -> ArrayHeader:
    try:
        fields = ast.literal_eval(text.decode("latin-1").strip())
        descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
        dtype = np.lib.format.descr_to_dtype(descr)
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, MemoryError, RecursionError):
        raise SamplesError(f"{place}: the npy header is damaged") from None
    sizes_ok = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes_ok or not isinstance(fortran, bool) or not isinstance(dtype, np.dtype):
        raise SamplesError(f"{place}: the npy header is damaged")
    if len(shape) > 64:
        raise SamplesError(f"{place}: an array of {len(shape)} dimensions is not supported")
    if dtype.hasobject:
        raise SamplesError(
            f"{place}: the array holds pickled Python objects, which are never loaded",
            hint="save plain numeric arrays; for samples of different shapes use keys like 0/x, 1/x",
        )
    if dtype.names is not None or dtype.subdtype is not None or dtype.kind in "mM":
        raise SamplesError(f"{place}: arrays of dtype {quoted(dtype)} are not supported")
    return ArrayHeader(dtype, shape, fortran, offset)


def _check_size(header: ArrayHeader, size: int, place: str) -> None:
    present = size - header.offset
    if present < header.nbytes:
        raise SamplesError(
            f"{place}: the file is truncated: {header.nbytes} bytes of values announced, {present} present"
        )
    if present > header.nbytes:
        raise SamplesError(f"{place}: {present - header.nbytes} bytes follow the array")
