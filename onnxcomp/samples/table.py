"""Named arrays: an npz file, an npy file, or a dict in memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from typing_extensions import override

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.archive import MemberStream, read_members
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits, file_place, open_regular
from onnxcomp.samples.npy import ArrayHeader, ByteStream, FileStream, RowReader, read_header

if TYPE_CHECKING:
    from pathlib import Path

    from onnxcomp.samples.feeds import Array


class Rows(Protocol):
    """An array that is read in order."""

    def whole(self) -> Array:
        """Reads the complete array."""

    def rows(self, start: int, count: int) -> Array:
        """Reads some rows that come after those that were read before."""


OpenRows: TypeAlias = Callable[[str], Rows]


class Table(ABC):
    """Arrays by name, whose headers are known and whose values are read on demand.

    Attributes:
        place: How the table is called in messages.
        headers: What the arrays are.
        path: The file, if it is one.
    """

    place: str
    headers: Mapping[str, ArrayHeader]
    path: Path | None = None

    @abstractmethod
    def open(self) -> AbstractContextManager[OpenRows]:
        """Opens the table for one pass through the values of each array."""


class NpzTable(Table):
    """An npz file."""

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = self._file = path
        self.place = file_place(path)
        self._limits = limits
        self._members = read_members(path, limits)
        headers = {}
        with open_regular(path) as file:
            for key, member in self._members.items():
                place = self._place_of(key)
                stream = MemberStream(file, member, place, limits)
                headers[key] = read_header(stream, member.size, place)
        self.headers = headers

    @override
    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        with open_regular(self._file) as file:

            def open_rows(key: str) -> Rows:
                member, place = self._members[key], self._place_of(key)
                stream = MemberStream(file, member, place, self._limits)
                header = _unchanged(stream, self.headers[key], member.size, place)
                return RowReader(stream, header, place, self._limits)

            yield open_rows

    def _place_of(self, key: str) -> str:
        return f"{self.place}, key {quoted(key)}"


class NpyTable(Table):
    """An npy file: one array, under the name that the caller gives it."""

    def __init__(self, path: Path, key: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self.path = self._file = path
        self.place = file_place(path)
        self._limits = limits
        with open_regular(path) as file:
            self._size = os.fstat(file.fileno()).st_size
            if not self._size:
                raise SamplesError(f"{self.place} is empty")
            self.headers = {key: read_header(FileStream(file, self.place), self._size, self.place)}

    @override
    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        with open_regular(self._file) as file:

            def open_rows(key: str) -> Rows:
                stream = FileStream(file, self.place)
                header = _unchanged(stream, self.headers[key], self._size, self.place)
                return RowReader(stream, header, self.place, self._limits)

            yield open_rows


class MemoryTable(Table):
    """Arrays that the caller holds in memory."""

    def __init__(self, arrays: Mapping[str, object], place: str) -> None:
        self.place = place
        self._arrays = {
            str(key): _array(value, f"{place}, key {quoted(key)}") for key, value in arrays.items()
        }
        self.headers = {
            key: ArrayHeader(array.dtype, array.shape) for key, array in self._arrays.items()
        }

    @override
    @contextmanager
    def open(self) -> Iterator[OpenRows]:
        yield lambda key: _MemoryRows(self._arrays[key])


class _MemoryRows:
    def __init__(self, array: Array) -> None:
        self._array = array

    def whole(self) -> Array:
        return self._array

    def rows(self, start: int, count: int) -> Array:
        return self._array[start : start + count]


def _array(value: object, place: str) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise SamplesError(f"{place}: not an array: {str(error).splitlines()[0]}") from error


def _unchanged(stream: ByteStream, before: ArrayHeader, size: int, place: str) -> ArrayHeader:
    header = read_header(stream, size, place)
    if header != before:
        raise SamplesError(f"{place}: the file was changed while it was in use")
    return header
