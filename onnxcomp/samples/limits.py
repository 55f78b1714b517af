"""Ceilings on what data files may ask for, and the one way to open such a file."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from onnxcomp.errors import SamplesError, quoted

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """What is accepted from data files; everything above is refused with a clear error.

    Attributes:
        members: Arrays in one npz file.
        total_bytes: Unpacked size of one npz file.
        ratio: Unpacked to packed size of an array that is larger than 16 MiB.
        decoder_bytes: Memory that a decompressor may ask for.
        sample_bytes: Size of one array of one sample (and of an array that cannot be streamed).
        samples: Samples of a source whose number is not known beforehand.
        files: Files in a folder.
        spool_bytes: Disk space for samples that can be read only once.
        image_pixels: Pixels of one image.
    """

    members: int = 200_000
    total_bytes: int = 64 << 30
    ratio: int = 10_000
    decoder_bytes: int = 256 << 20
    sample_bytes: int = 2 << 30
    samples: int = 1_000_000
    files: int = 1_000_000
    spool_bytes: int = 16 << 30
    image_pixels: int = 128 << 20


DEFAULT_LIMITS = Limits()


def file_place(path: Path) -> str:
    """Returns how a file is called in messages."""
    return f"file {quoted(path, 200)}"


def unreadable(path: Path, error: OSError) -> SamplesError:
    """Returns the error for a file or folder that the system refuses to read."""
    return SamplesError(f"cannot read {quoted(path, 200)}: {error.strerror or error}")


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading; a pipe or device is refused without waiting for it."""
    try:
        file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (Path.open has no opener)
    except IsADirectoryError:
        raise SamplesError(f"{file_place(path)} is a folder") from None
    except OSError as error:
        raise unreadable(path, error) from None
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        raise SamplesError(f"{file_place(path)} is not a regular file (a pipe or a device)")
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe for reading would block until somebody writes into it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
