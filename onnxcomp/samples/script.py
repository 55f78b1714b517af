"""Functions in Python files that the user names."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, cast

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.samples.limits import file_place, open_regular
from onnxcomp.samples.stream import failed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_SOURCE_BYTES = 16 << 20


def load_function(text: str) -> Callable[[], Iterable[object]]:
    """Returns the function that `file.py:function` names, after running the file.

    Raises:
        SamplesError: If the file or function is not there, or the file cannot be run.
    """
    file, _, name = text.rpartition(":")
    path = Path(file)
    with open_regular(path) as stream:
        source = stream.read(_SOURCE_BYTES)
    module = types.ModuleType(f"onnxcomp_user_{path.stem}")
    module.__file__ = str(path)
    # Compiled here and not imported, so that no __pycache__ appears beside the user's file. The
    # file may import its neighbours, and dataclasses look their module up in sys.modules.
    sys.modules[module.__name__] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise failed(file_place(path), error, str(path)) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [
            key for key, value in vars(module).items() if isinstance(value, types.FunctionType)
        ]
        hint = f"it has {', '.join(map(quoted, known))}" if known else "it has no functions"
        raise SamplesError(f"{file_place(path)} has no function {quoted(name)}", hint=hint)
    return cast("Callable[[], Iterable[object]]", function)
