"""Makes any ONNX model smaller and faster on the runtime it is deployed on, and proves that it works.

The names below are the public interface. They are loaded on first use, so that importing the package
costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from onnxcomp.bench import measure as measure
    from onnxcomp.compression import CompressResult as CompressResult
    from onnxcomp.compression import compress as compress
    from onnxcomp.errors import UserError as UserError
    from onnxcomp.ir import Edit as Edit
    from onnxcomp.ir import Model as Model
    from onnxcomp.optimization import optimize as optimize
    from onnxcomp.passbase import Context as Context
    from onnxcomp.passbase import Pass as Pass
    from onnxcomp.pipeline import Pipeline as Pipeline
    from onnxcomp.pipeline import Result as Result
    from onnxcomp.runtime import Session as Session
    from onnxcomp.samples import Samples as Samples
    from onnxcomp.samples import load_samples as load_samples
    from onnxcomp.targets import Target as Target
    from onnxcomp.targets import load_target as load_target

_WHERE = {
    "CompressResult": "onnxcomp.compression",
    "Context": "onnxcomp.passbase",
    "Edit": "onnxcomp.ir",
    "Model": "onnxcomp.ir",
    "Pass": "onnxcomp.passbase",
    "Pipeline": "onnxcomp.pipeline",
    "Result": "onnxcomp.pipeline",
    "Samples": "onnxcomp.samples",
    "Session": "onnxcomp.runtime",
    "Target": "onnxcomp.targets",
    "UserError": "onnxcomp.errors",
    "compress": "onnxcomp.compression",
    "load_samples": "onnxcomp.samples",
    "load_target": "onnxcomp.targets",
    "measure": "onnxcomp.bench",
    "optimize": "onnxcomp.optimization",
}

__all__ = [
    "CompressResult",
    "Context",
    "Edit",
    "Model",
    "Pass",
    "Pipeline",
    "Result",
    "Samples",
    "Session",
    "Target",
    "UserError",
    "compress",
    "load_samples",
    "load_target",
    "measure",
    "optimize",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module 'onnxcomp' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
