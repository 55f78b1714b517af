"""Where external data may lie: beside the model, in regular files, and nowhere else.

Every reader of external data resolves locations here. A location comes from whoever made the file;
refused are all ways known to lead out of the folder of the model.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx import TensorProto

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir.tensors import BITS, byte_count
from onnxcomp.ir.walk import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import ModelProto

    from onnxcomp.ir.embedded import Lean

_DRIVE_OR_URI = re.compile(r"^[A-Za-z]:|://|^(file|data|https?|ftp):", re.IGNORECASE)
_MEMORY_MARKER = "_ORT_MEM_ADDR_"
_LINKED_HINT = "copy model and data to a folder of their own with `cp -L`, so that the data is a file by itself"
_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)


@dataclass(frozen=True)
class ExternalData:
    """Where a tensor keeps its bytes.

    Attributes:
        place: What the tensor is, safe to print.
        location: Path as the model states it, relative to the folder of the model.
        offset: First byte.
        length: Number of bytes: what shape and type ask for.
    """

    place: str
    location: str
    offset: int
    length: int


def external_data(tensor: TensorProto, place: str) -> ExternalData:
    """Reads where a tensor keeps its bytes.

    Raises:
        ModelError: The entries make no sense, or the length is not that of the tensor.
    """
    if tensor.data_type not in BITS:
        raise ModelError(f"{place} has external data, but no type that could have")
    entries: dict[str, str] = {}
    for entry in tensor.external_data:
        if entries.setdefault(entry.key, entry.value) != entry.value:
            raise ModelError(f"{place} states {quoted(entry.key)} of its external data twice")
    if not entries.get("location"):
        raise ModelError(f"{place} does not say in which file its external data lies")
    needed = byte_count(tensor)
    offset = _number(entries, "offset", place) or 0
    length = _number(entries, "length", place)
    if length is not None and length != needed:
        raise ModelError(
            f"{place} has {length:,} bytes of external data, its shape needs {needed:,}"
        )
    return ExternalData(place, entries["location"], offset, needed)


def _number(entries: dict[str, str], key: str, place: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise ModelError(f"{place} has external data with {key} {quoted(text)}, not a number")
    return int(text)


def external_tensors(model: ModelProto) -> Iterator[ExternalData]:
    """Yields where every external tensor of a model lies, without touching a file."""
    for place, tensor in tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            yield external_data(tensor, place)


def check_external(
    model: ModelProto, folder: str | os.PathLike[str] | None, own: Lean | None = None
) -> None:
    """Raises `ModelError` unless all external data is there, complete, and beside the model.

    Args:
        model: The model; its structure has been checked.
        folder: Where the model file lies; `None` for a model that has no place, which then may
            not have external data.
        own: Where weights are that were left in the model file.
    """
    sizes: dict[str, int] = {own.location: own.size} if own else {}
    for data in external_tensors(model):
        if folder is None:
            raise ModelError(
                f"{data.place} has external data, but the model does not come from a file",
                hint="load it from its path",
            )
        size = sizes.get(data.location)
        if size is None:
            path = resolve_external(folder, data.location)
            size = sizes[data.location] = path.stat().st_size
        if data.offset + data.length > size:
            raise ModelError(
                f"{data.place} needs bytes {data.offset:,} to {data.offset + data.length:,} of "
                f"{quoted(data.location)}, which has {size:,}",
                hint="the data file is truncated, or belongs to another model",
            )


def resolve_external(folder: str | os.PathLike[str], location: str) -> Path:
    """Returns the file that an external location means.

    Args:
        folder: Where the model file lies.
        location: What the model states.

    Raises:
        ModelError: The location leads out of the folder, through a link, or to no regular file.
    """
    parts = _parts(location)
    base = Path(folder)
    path = base
    for count, part in enumerate(parts, start=1):
        path = path / part
        _check_component(path, location, last=count == len(parts))
    try:
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(base))
        readable = os.access(path, os.R_OK)
    except OSError as error:
        raise _unreadable(location, error) from None
    if not inside:
        raise _refused(location, "leads out of the folder of the model")
    if not readable:
        raise ModelError(f"external data {quoted(location)} cannot be read: permission denied")
    return path


def _parts(location: str) -> list[str]:
    """Splits a location; refuses whatever could mean another place to another reader."""
    if not location:
        raise ModelError("external data has an empty location")
    if "\0" in location or not location.isprintable():
        raise _refused(location, "has a control character in it")
    if location.startswith("/"):
        raise _refused(location, "is absolute")
    if "\\" in location:
        raise _refused(location, "has a backslash in it")
    if _DRIVE_OR_URI.search(location):
        raise _refused(location, "is a drive or an address, not a file beside the model")
    if _MEMORY_MARKER in location:
        raise _refused(location, "is an address in memory")
    parts = [part for part in location.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise _refused(location, "leads out of the folder of the model")
    if not parts or location.endswith("/"):
        raise _refused(location, "is not a file")
    return parts


def _check_component(path: Path, location: str, *, last: bool) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise ModelError(f"external data {quoted(location)} is missing beside the model") from None
    except OSError as error:
        raise _unreadable(location, error) from None
    if stat.S_ISLNK(status.st_mode):
        raise _refused(location, "is a symbolic link", _LINKED_HINT)
    if not last:
        return
    if not stat.S_ISREG(status.st_mode):
        raise _refused(location, "is not a regular file")
    if status.st_nlink > 1:
        raise _refused(location, "is a hard link to a file that has other names", _LINKED_HINT)


def _refused(location: str, why: str, hint: str = "") -> ModelError:
    return ModelError(f"external data {quoted(location)} is refused: it {why}", hint=hint)


def _unreadable(location: str, error: OSError) -> ModelError:
    said = (error.strerror or str(error)).lower()
    return ModelError(f"external data {quoted(location)} cannot be read: {said}")
