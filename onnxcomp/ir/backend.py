"""The one import of onnx-ir, without the symbolic algebra that it would pull in.

onnx-ir imports sympy for arithmetic on symbolic dimensions: 0.2 s at start, and a door through which
names in a file could reach `sympify`, which evaluates text. We treat dimension names as opaque, so the
two modules are loaded only when somebody really uses them.
"""

from __future__ import annotations

import importlib
import logging
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from typing_extensions import override

_DEFERRED = ("sympy", "onnx_ir._symbolic_shapes")


class _Deferred(ModuleType):
    """Stands for a module until one of its names is used."""

    @override
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # somebody looks at all modules, not at this one
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


def _import_onnx_ir() -> ModuleType:
    stand_ins = {name: _Deferred(name) for name in _DEFERRED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("onnx_ir")
    finally:
        for name in stand_ins:  # whoever imports sympy from now on gets the real one
            del sys.modules[name]


if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = sys.modules.get("onnx_ir") or _import_onnx_ir()

# onnx-ir warns of values that it cannot find: those of sparse initializers, which we carry ourselves.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())

__all__ = ["ir"]
