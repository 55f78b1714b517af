"""`graphsurgeon`: a function on a GraphSurgeon graph as a pass."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_serializer
from typing_extensions import override

from onnxcomp import Pass
from onnxcomp.errors import UserError, quoted
from onnxcomp.ir import surgeon
from onnxcomp.userfile import run_file

if TYPE_CHECKING:
    from onnxcomp import Context


class Graphsurgeon(Pass):
    """Runs a function `gs.Graph -> gs.Graph` of yours as a pass.

    Scripts written for onnx-graphsurgeon work unchanged: the function gets the graph, and returns it
    or changes it in place. Unlike a script of its own, the pass keeps what GraphSurgeon drops
    (metadata, doc strings, versions, overridable initializers), leaves weights that the function does
    not touch on disk, and is rolled back if the result does not hang together.

    ```
    graphsurgeon{function="surgery.py:drop_head"}
    ```
    """

    name: ClassVar[str] = "graphsurgeon"
    codes: ClassVar[dict[str, str]] = {
        "GSG101": "The function changed nothing, so the model is the same as before the pass."
    }

    function: str | Callable[[Any], Any]
    """What to run: `file.py:function`, `module:function`, or in Python the function itself."""

    @field_serializer("function")
    def _as_text(self, function: str | Callable[[Any], Any]) -> str:
        if isinstance(function, str):
            return function
        return f"{function.__module__}:{getattr(function, '__qualname__', 'function')}"

    @override
    def run(self, ctx: Context) -> None:
        function = _load(self.function) if isinstance(self.function, str) else self.function
        surgeon.apply(ctx.model, ctx.edit, function)
        if not ctx.edit.changed:
            ctx.note("GSG101", None, f"{self._as_text(self.function)} changed nothing")


def _load(text: str) -> Callable[[Any], Any]:
    place, separator, name = text.rpartition(":")
    if not separator or not name.isidentifier():
        raise UserError(f"{quoted(text)} does not name a function", hint="write file.py:function")
    try:
        module = run_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"cannot import {quoted(place)}: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{quoted(place)} has no function {quoted(name)}")
    function: Callable[[Any], Any] = found
    return function
