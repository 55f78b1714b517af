"""The door through which model files come in: what is read, and what is refused before that."""

from __future__ import annotations

import mmap
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from onnxcomp.errors import ModelError, UserError, quoted
from onnxcomp.ir.budget import ACTIVE_LIMITS, PROTO_BYTES, Limits, check_budget
from onnxcomp.ir.embedded import LARGE_FILE_BYTES, Lean, without_weights
from onnxcomp.ir.external import check_external
from onnxcomp.ir.structure import Structure, check_structure

if TYPE_CHECKING:
    import os

# First bytes of what people pass by mistake, and what it is.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"\x89HDF", "an HDF5 file (Keras?); export it to ONNX first"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive; unpack it first"),
    (b"\xfd7zXZ", "an xz archive; unpack it first"),
    (b"(\xb5/\xfd", "a zstd archive; unpack it first"),
    (b"BZh", "a bzip2 archive; unpack it first"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80\x02", "a Python pickle (PyTorch?); export it to ONNX first"),
    (b"\x80\x04", "a Python pickle; export it to ONNX first"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"ORTM", "an onnxruntime ORT-format model; start from the .onnx file it was made of"),
)
_SAVED_MODEL_HINT = "a TensorFlow model; export it to ONNX first"


def read_model(path: str | os.PathLike[str]) -> ModelProto:
    """Reads a model file without its external weights.

    Only regular files are opened (a pipe would hang, a device never ends), only the binary form is
    understood. The file is mapped while it is parsed, so that its bytes exist once, as the message.

    Args:
        path: The model file. It may be a symbolic link.

    Raises:
        UserError: The file cannot be read.
        ModelError: The file is not a model.
    """
    return _read(Path(path), lean=False)[0]


def read_lean(path: str | os.PathLike[str]) -> tuple[ModelProto, Lean | None]:
    """Reads a model file like `read_model`, but leaves large weights of a large file where they are.

    Returns:
        The model, and where to find what was left; None when everything was read. Weights that were
        left are external data at a location that only this call knows.
    """
    return _read(Path(path), lean=True)


def read_structure(path: str | os.PathLike[str]) -> ModelProto:
    """Reads a model file for its nodes; large weights of a large file have no bytes."""
    model, lean = read_lean(path)
    for tensor in model.graph.initializer if lean else ():
        if any(entry.value == lean.location for entry in tensor.external_data if lean):
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    return model


def _read(path: Path, *, lean: bool) -> tuple[ModelProto, Lean | None]:
    try:
        size = _regular_size(path)
        with path.open("rb") as file:
            model, left = _parse(file.fileno(), path, size, lean=lean and size >= LARGE_FILE_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {_named(path)}: {reason(error)}") from None
    if not model.HasField("graph"):
        raise ModelError(f"{_named(path)} is not an ONNX model: {_not_a_model(path)}")
    return model, left


def check_model(
    model: ModelProto,
    folder: str | os.PathLike[str] | None,
    limits: Limits | None = None,
    own: Lean | None = None,
) -> Structure:
    """Checks everything about a model that needs no native code, cheapest and safest first.

    Args:
        model: The model, with or without its weights.
        folder: Where the model file lies; `None` when external data is not allowed.
        limits: How much the model may ask for, by default `ACTIVE_LIMITS`.
        own: Where weights are that were left in the model file.

    Returns:
        What a reader should know about a valid model: nodes to sort or rename, and remarks.

    Raises:
        ModelError: The model is not valid; one line that names the place.
    """
    limits = limits or ACTIVE_LIMITS.get()
    check_budget(model, limits)
    structure = check_structure(model, limits)
    check_external(model, folder, own)
    return structure


def reason(error: OSError) -> str:
    """Returns what the operating system said, without the number and the path."""
    return (error.strerror or str(error)).lower()


def _named(path: Path) -> str:
    return quoted(path, 200)


def _regular_size(path: Path) -> int:
    """Returns the size of a regular file; refuses everything else without opening it."""
    try:
        status = path.stat()
    except ValueError:  # a NUL in the name
        raise UserError(f"cannot read {_named(path)}: not a file name") from None
    if stat.S_ISDIR(status.st_mode):
        inside = sorted(path.glob("*.onnx"))
        hint = f"did you mean {_named(inside[0])}?" if inside else ""
        raise UserError(f"{_named(path)} is a folder, not a model file", hint=hint)
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{_named(path)} is not a regular file")
    if status.st_size == 0:
        raise ModelError(f"{_named(path)} is empty")
    if status.st_size > PROTO_BYTES:
        raise ModelError(
            f"{_named(path)} has {status.st_size:,} bytes; a model file cannot exceed 2 GiB",
            hint="store its weights as external data",
        )
    return status.st_size


def _parse(descriptor: int, path: Path, size: int, *, lean: bool) -> tuple[ModelProto, Lean | None]:
    model = ModelProto()
    left = None
    try:
        mapped = mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)
        left = without_weights(mapped) if lean else None
        if left is not None:
            model.ParseFromString(left.message)
        else:
            with mapped, memoryview(mapped) as view:
                model.ParseFromString(view)
    except (DecodeError, ValueError):  # ValueError: the file shrank since it was measured
        raise ModelError(f"{_named(path)} is not an ONNX model: {_not_a_model(path)}") from None
    except MemoryError:
        raise ModelError(f"{_named(path)} needs more memory to read than there is") from None
    return model, left


def _not_a_model(path: Path) -> str:
    """Says what a file that did not parse looks like."""
    with path.open("rb") as file:
        head = file.read(4096)
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            return f"it looks like {what}"
    if head.startswith(b"PK"):
        return f"it looks like {_zip_kind(path)}"
    if head[4:8] == b"TFL3":
        return "it looks like a TensorFlow Lite model"
    if head[8:9] == b"{" and b'"dtype"' in head:
        return "it looks like a safetensors file, which holds weights but no graph"
    if path.name.endswith((".pb", ".pbtxt")) or b"saved_model" in head:
        return f"it looks like {_SAVED_MODEL_HINT}"
    if _is_text(head):
        return "it looks like text; only the binary form is read"
    return "it is truncated or corrupt"


def _zip_kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(65536)
    if b"data.pkl" in head:
        return "a PyTorch file; export it to ONNX first"
    if b".npy" in head:
        return "a NumPy archive (.npz)"
    return "a zip archive; unpack it first"


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", errors="replace")
    strange = sum(
        1
        for letter in text
        if letter == "\ufffd" or not (letter.isprintable() or letter in "\r\n\t")
    )
    return strange <= len(text) // 100
