"""Samples from npz and npy files and from folders of them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.core import Source, update
from onnxcomp.samples.feeds import Array
from onnxcomp.samples.layout import Column, plan_layout
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits, open_regular, unreadable

if TYPE_CHECKING:
    from onnxcomp.samples.table import OpenRows, Rows, Table
    from onnxcomp.signature import TensorSpec

_CHUNK = 1 << 20


class TableSource(Source):
    """The samples of one table of arrays."""

    def __init__(self, table: Table, inputs: Sequence[TensorSpec]) -> None:
        self._table = table
        self._layout = plan_layout(table, inputs)
        self.notes = self._layout.notes
        self.description = f"{len(self)} samples from {table.place} ({self._layout.how})"

    @override
    def __len__(self) -> int:
        return self._layout.count

    @override
    def place(self, index: int) -> str:
        return self._table.place if len(self) == 1 else f"{self._table.place}, sample {index}"

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        with self._table.open() as open_rows:
            if self._layout.keyed:
                for index in indices:
                    yield index, self._keyed(index, open_rows)
            else:
                readers = {
                    name: open_rows(column.key) for name, column in self._layout.columns.items()
                }
                for index in indices:
                    yield index, self._row(index, readers, open_rows)

    @override
    def labels(self) -> Mapping[str, Array]:
        return _TableLabels(self._table, self._layout.labels)

    @override
    def digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        if self._table.path is not None:
            hash_file(state, self._table.path)
        else:
            with self._table.open() as open_rows:
                for key in self._table.headers:
                    update(state, {key: open_rows(key).whole()})
        return state.hexdigest()

    def _keyed(self, index: int, open_rows: OpenRows) -> dict[str, Array]:
        columns = self._layout.keyed[index]
        return {
            name: open_rows(column.key).whole().reshape(column.shape)
            for name, column in columns.items()
        }

    def _row(
        self, index: int, readers: Mapping[str, Rows], open_rows: OpenRows
    ) -> dict[str, Array]:
        return {
            name: self._value(index, column, readers[name], open_rows)
            for name, column in self._layout.columns.items()
        }

    def _value(self, index: int, column: Column, reader: Rows, open_rows: OpenRows) -> Array:
        if column.rows:
            return reader.rows(index * column.rows, column.rows).reshape(column.shape)
        # Used for every sample, so it is opened afresh each time.
        return open_rows(column.key).whole().reshape(column.shape)


class FolderSource(Source):
    """The samples of several sources, one after the other."""

    def __init__(self, parts: Sequence[Source], description: str) -> None:
        self._parts = parts
        self._starts = list(itertools.accumulate((len(part) for part in parts), initial=0))
        self.notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
        self.description = description

    @override
    def __len__(self) -> int:
        return self._starts[-1]

    @override
    def place(self, index: int) -> str:
        part = self._part(index)
        return self._parts[part].place(index - self._starts[part])

    @override
    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, object]]]:
        for part, group in itertools.groupby(indices, self._part):
            start = self._starts[part]
            inner = [index - start for index in group]
            yield from map(_Shift(start), self._parts[part].read(inner))

    @override
    def digest(self) -> str:
        return " ".join(str(part.digest()) for part in self._parts)

    def _part(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1


def list_files(folder: Path, limits: Limits = DEFAULT_LIMITS) -> list[Path]:
    """Returns the files below a folder in natural order; hidden ones and linked folders are left out."""
    found: list[Path] = []

    def refuse(error: OSError) -> None:
        raise unreadable(Path(error.filename or folder), error) from None

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
        if len(found) > limits.files:
            raise SamplesError(f"folder {quoted(folder, 200)} has more than {limits.files} files")
    return sorted(found, key=lambda path: natural_key(path.relative_to(folder)))


def natural_key(path: Path) -> tuple[tuple[tuple[int | str, ...], ...], str]:
    """Returns a key that sorts `s2.npz` before `s10.npz`."""
    return tuple(_natural(part) for part in path.parts), str(path)


def hash_file(state: hashlib.blake2b, path: Path) -> None:
    """Adds the content of a file to a hash."""
    with open_regular(path) as file:
        state.update(f"{os.fstat(file.fileno()).st_size} ".encode())
        while chunk := file.read(_CHUNK):
            state.update(chunk)


def _natural(text: str) -> tuple[int | str, ...]:
    # Text and numbers alternate, so that keys of different names can be compared.
    parts = re.split(r"([0-9]+)", text.casefold())
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts))


class _Shift:
    # For `map`, which unlike a loop keeps no reference to the item.
    def __init__(self, start: int) -> None:
        self._start = start

    def __call__(self, item: tuple[int, Mapping[str, object]]) -> tuple[int, Mapping[str, object]]:
        return item[0] + self._start, item[1]


class _TableLabels(Mapping[str, Array]):
    def __init__(self, table: Table, keys: Sequence[str]) -> None:
        self._table = table
        self._keys = keys

    @override
    def __getitem__(self, key: str) -> Array:
        if key not in self._keys:
            raise KeyError(key)
        with self._table.open() as open_rows:
            return open_rows(key).whole()

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    @override
    def __len__(self) -> int:
        return len(self._keys)
