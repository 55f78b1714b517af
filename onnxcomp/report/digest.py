"""Hashes of contents, to tell whether two runs started from the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def file_digest(path: str | Path, *, also: Iterable[str | Path] = ()) -> str:
    """Returns the SHA-256 of a file, or of several read one after the other, without loading them.

    Args:
        path: The file.
        also: Files that belong to it, such as external data, in a fixed order.
    """
    total = hashlib.sha256()
    for each in (path, *also):
        with Path(each).open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
