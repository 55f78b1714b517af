"""Short names of execution providers, and how messages of the runtime become one clear line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxcomp.errors import RuntimeUnavailableError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
_SHORT = {full: short for short, full in PROVIDERS.items()}

# Providers that run on a device of their own: copies and waiting have to be kept out of timings.
DEVICE_PROVIDERS = frozenset({"cuda", "tensorrt"})

_MESSAGE_LIMIT = 300
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")
# A file, a line, and then either a whole C++ signature or only the name of a function.
_SOURCE_PLACE = re.compile(
    r"(?:[\w./\\-]*[/\\])?\w+\.(?:h|cc|cpp|cu|cuh):\d+ (?:[^()\n]*\(.*?\)(?: const)? (?=\S)|\w+ )"
)
# What onnxruntime says when a valid model needs something that this build does not have.
_NOT_SUPPORTED = re.compile(
    r"is not a registered function/op|No Op registered for|Unsupported model IR version"
    r"|under development and support|Could not find an implementation|NOT_IMPLEMENTED"
    r"|not supported|No schema registered|Failed to find kernel",
    re.IGNORECASE,
)


def full_name(provider: str, available: Sequence[str]) -> str:
    """Returns the runtime's name of a provider.

    Args:
        provider: A short name such as `cuda`, or the runtime's own.
        available: The runtime's names of the providers that are there.

    Raises:
        RuntimeUnavailableError: If the name is unknown or the provider is not in this build.
    """
    full = PROVIDERS.get(provider.lower(), provider)
    if full in available:
        return full
    there = ", ".join(short_name(name) for name in available)
    if full not in _SHORT:
        raise RuntimeUnavailableError(
            f"no execution provider is called {quoted(provider)}",
            hint=f"known: {', '.join(PROVIDERS)}; available here: {there}",
        )
    raise RuntimeUnavailableError(
        f"the execution provider {provider} is not in this build of onnxruntime",
        hint=f"available here: {there}",
    )


def short_name(full: str) -> str:
    """Returns `cuda` for `CUDAExecutionProvider`, and the name itself where there is no short one."""
    return _SHORT.get(full, full)


def clear_line(message: str) -> str:
    """Returns a runtime's message as one printable line without its source code locations."""
    text = " ".join(_PREFIX.sub("", message).split())
    text = _SOURCE_PLACE.sub("", text)
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 1] + "…"


def says_not_supported(message: str) -> bool:
    """Whether a runtime's message means that the model may be valid but this build cannot run it."""
    return bool(_NOT_SUPPORTED.search(message))
