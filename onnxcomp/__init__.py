"""Makes any ONNX model smaller and faster on the runtime it is deployed on, and proves that it works.

The names below are the public interface. They are loaded on first use, so that importing the package
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxcomp.errors import UserError as UserError
    from onnxcomp.ir import Edit as Edit
    from onnxcomp.ir import Model as Model
    from onnxcomp.passbase import Context as Context
    from onnxcomp.passbase import Pass as Pass
    from onnxcomp.pipeline import Pipeline as Pipeline
    from onnxcomp.pipeline import Result as Result

_WHERE = {
    "CompressResult": "onnxcomp.compress",
    "Context": "onnxcomp.passbase",
    "Edit": "onnxcomp.ir",
    "Model": "onnxcomp.ir",
    "Pass": "onnxcomp.passbase",
    "Pipeline": "onnxcomp.pipeline",
    "Result": "onnxcomp.pipeline",
    "UserError": "onnxcomp.errors",
}

__all__ = ["Context", "Edit", "Model", "Pass", "Pipeline", "Result", "UserError"]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
