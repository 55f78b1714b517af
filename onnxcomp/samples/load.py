"""Which kind of source a caller means."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.core import Samples, Source, spread
from onnxcomp.samples.files import FolderSource, TableSource, list_files
from onnxcomp.samples.images import IMAGE_SUFFIXES, ImageSource, suggestion
from onnxcomp.samples.limits import DEFAULT_LIMITS, Limits, file_place, open_regular, unreadable
from onnxcomp.samples.script import load_function
from onnxcomp.samples.stream import SpoolSource, StreamSource, reader_source
from onnxcomp.samples.synthetic import RandomSource
from onnxcomp.samples.table import MemoryTable, NpyTable, NpzTable, Table

if TYPE_CHECKING:
    from onnxcomp.samples.preprocess import Preprocess
    from onnxcomp.signature import TensorSpec

_FUNCTION = re.compile(r".+\.py:\w+", re.DOTALL)


def load_samples(
    source: object,
    inputs: Sequence[TensorSpec],
    *,
    preprocess: Preprocess | None = None,
    limit: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Samples:
    """Finds the samples that a source holds and checks that they fit a model.

    Names, shapes and dtypes of files are checked here, from their headers. Values are read when the
    samples are iterated, and a value that is not a finite number is an error then. Python sources are
    gone through once here.

    Args:
        source: An `.npz` or `.npy` file, an image, a folder of one kind of these, `file.py:function`
            (a function that yields feeds), `random:32`; or in Python a dict of arrays, a list,
            iterable, generator or function of feeds, a calibration data reader, or `Samples`.
        inputs: The inputs of the model.
        preprocess: How an image becomes the input; for images only.
        limit: Use at most this many samples: spread evenly over a folder, else the first ones.
        limits: Ceilings on what files may ask for.

    Raises:
        SamplesError: If there are no samples or they do not fit the model.
    """
    if limit is not None and limit < 1:
        raise SamplesError(f"cannot take {limit} samples", hint="at least 1")
    for spec in inputs:
        if spec.dtype is None and not spec.optional:
            raise SamplesError(
                f"input {quoted(spec.name)} is not a plain tensor; no samples can be given for it"
            )
    if isinstance(source, Samples):
        return source if limit is None else source.take(limit)
    loader = _Loader(inputs, preprocess, limit, limits)
    samples = Samples(loader.source(source), inputs)
    if preprocess is not None and not loader.used_preprocess:
        raise SamplesError("preprocess options are for images only", hint="leave them out")
    return samples if limit is None else samples.take(limit)


class _Loader:
    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        preprocess: Preprocess | None,
        limit: int | None,
        limits: Limits,
    ) -> None:
        self._inputs = inputs
        self._preprocess = preprocess
        self._limit = limit
        self._limits = limits
        self.used_preprocess = False

    def source(self, source: object) -> Source:
        if isinstance(source, str):
            return self._text(source)
        if isinstance(source, os.PathLike):
            return self._named(os.fspath(cast("os.PathLike[str]", source)))
        if isinstance(source, np.ndarray):
            return self._table(MemoryTable({self._only_input("an array"): source}, "the array"))
        if isinstance(source, Mapping):
            return self._table(MemoryTable(source, "the dict of arrays"))
        if callable(getattr(source, "get_next", None)):
            return reader_source(source, self._inputs, limit=self._limit, limits=self._limits)
        if isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)):
            return self._iterable(source)
        if callable(source):
            return self._stream(
                cast("Callable[[], Iterable[object]]", source), _function_place(source)
            )
        raise SamplesError(f"a {type(source).__name__} is not a source of samples")

    def _text(self, text: str) -> Source:
        if text == "random" or text.startswith("random:"):
            return RandomSource(text, self._inputs, limit=self._limit)
        return self._named(text)

    def _named(self, text: str) -> Source:
        if _FUNCTION.fullmatch(text):
            return self._stream(load_function(text), f"function {quoted(text, 200)}")
        return self._path(Path(text))

    def _iterable(self, source: Iterable[object]) -> Source:
        place = f"the {type(source).__name__} of samples"
        if isinstance(source, Iterator):
            return SpoolSource(
                source, self._inputs, place=place, limit=self._limit, limits=self._limits
            )
        return self._stream(lambda: source, place)

    def _stream(self, start: Callable[[], Iterable[object]], place: str) -> Source:
        return StreamSource(
            start, self._inputs, place=place, limit=self._limit, limits=self._limits
        )

    def _path(self, path: Path) -> Source:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            raise unreadable(path, error) from None
        except ValueError:  # a null character in the name
            raise SamplesError(f"{file_place(path)}: not a path") from None
        if stat.S_ISDIR(mode):
            return self._folder(path)
        kind = _kind(path) or self._sniffed(path)
        if kind == "images":
            return self._images([path], file_place(path))
        return self._array_file(path, kind)

    def _sniffed(self, path: Path) -> str:
        if path.suffix == ".py":
            hint = f"name the function too: {path.name}:function"
            raise SamplesError(f"{file_place(path)} is a Python file", hint=hint)
        with open_regular(path) as file:
            start = file.read(6)
        if start.startswith(b"PK"):
            return "npz"
        if start == b"\x93NUMPY":
            return "npy"
        hint = "npz, npy, images, file.py:function or random:32"
        raise SamplesError(f"{file_place(path)} is not a file of samples", hint=hint)

    def _folder(self, folder: Path) -> Source:
        place = f"folder {quoted(folder, 200)}"
        files = [(path, kind) for path in list_files(folder, self._limits) if (kind := _kind(path))]
        kinds = sorted({kind for _, kind in files})
        if not kinds:
            raise SamplesError(f"{place} has no npz, npy or image files")
        if len(kinds) > 1:
            raise SamplesError(
                f"{place} mixes {' and '.join(kinds)}", hint="keep one kind per folder"
            )
        paths = [path for path, _ in files]
        count = len(paths)
        if kinds == ["images"]:
            return self._images(paths, place)
        if self._limit is not None and self._limit < count:
            # A sorted folder often has one class after the other.
            paths = [paths[i] for i in spread(self._limit, count)]
        parts = [self._array_file(path, kinds[0]) for path in paths]
        chosen = (
            f" in {count} files"
            if len(paths) == count
            else f" in {len(paths)} files spread evenly over {count}"
        )
        return FolderSource(parts, f"{sum(map(len, parts))} samples{chosen} of {place}")

    def _array_file(self, path: Path, kind: str) -> Source:
        if kind == "npz":
            return self._table(NpzTable(path, self._limits))
        return self._table(NpyTable(path, self._only_input("an npy file"), self._limits))

    def _images(self, paths: Sequence[Path], place: str) -> Source:
        if self._preprocess is None:
            hint = f"for example --preprocess {suggestion(self._inputs)}"
            raise SamplesError(f"{place}: images need to know how the model takes them", hint=hint)
        self.used_preprocess = True
        return ImageSource(
            paths,
            self._inputs,
            self._preprocess,
            place=place,
            limit=self._limit,
            limits=self._limits,
        )

    def _table(self, table: Table) -> Source:
        return TableSource(table, self._inputs)

    def _only_input(self, what: str) -> str:
        required = [spec.name for spec in self._inputs if not spec.optional]
        if len(required) != 1:
            hint = "use npz files with one key per input"
            raise SamplesError(
                f"{what} fits a model with one input, this one has {len(required)}", hint=hint
            )
        return required[0]


def _kind(path: Path) -> str | None:
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return suffix[1:]
    return "images" if suffix in IMAGE_SUFFIXES else None


def _function_place(function: object) -> str:
    return f"function {quoted(getattr(function, '__name__', type(function).__name__))}"
