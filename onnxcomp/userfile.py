"""Python files that the user names on the command line: metrics, GraphSurgeon functions."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType


def run_file(path: Path) -> ModuleType:
    """Runs a Python file as a module; it may import its neighbours, as when it is run by itself.

    No `__pycache__` appears beside it.

    Raises:
        ImportError: If it is not a Python file. Whatever the file raises comes through.
    """
    spec = importlib.util.spec_from_file_location(f"onnxcomp_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
        sys.dont_write_bytecode = writes
    return module
