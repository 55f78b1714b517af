"""The one import of onnx-ir, without the symbolic algebra that it would pull in.

onnx-ir imports sympy for arithmetic on symbolic dimensions: 0.2 s at start, and a door through which
names in a file could reach `sympify`, which evaluates text. We treat dimension names as opaque, so the
two modules are loaded only when somebody really touches them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

_DEFERRED = frozenset({"sympy", "onnx_ir._symbolic_shapes"})


class _DeferringFinder:
    """A meta path finder that makes the modules named above load on first use of an attribute."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Returns a lazy spec for a deferred module, None for every other."""
        if name not in _DEFERRED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


def _import_onnx_ir() -> ModuleType:
    finder = _DeferringFinder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("onnx_ir")
    finally:
        sys.meta_path.remove(finder)


if TYPE_CHECKING:
    import onnx_ir as ir
else:
    ir = _import_onnx_ir()

__all__ = ["ir"]
