"""The machine and the software that a result was made with."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from onnxcomp.cpuinfo import cpu

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGES = ("onnxcomp", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "numpy")
# Instructions on which the speed of 8-bit models depends.
_NOTABLE_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "neon",
    "dotprod",
    "i8mm",
)


@dataclass(frozen=True)
class Environment:
    """Versions and hardware.

    Attributes:
        packages: Version by package, those that are not installed left out.
        python: Version of Python.
        platform: Operating system and machine.
        processor: The model of the CPU, empty when it is not known.
        features: Instructions of the CPU that matter for 8-bit arithmetic.
        cores: How many the process may use.
    """

    packages: Mapping[str, str] = field(default_factory=dict)
    python: str = ""
    platform: str = ""
    processor: str = ""
    features: tuple[str, ...] = ()
    cores: int = 0

    @classmethod
    def current(cls) -> Environment:
        """Describes this process; imports none of the packages."""
        processor = cpu()
        return cls(
            packages=_versions(),
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.release()} {platform.machine()}",
            processor=processor.name,
            features=tuple(name for name in _NOTABLE_FEATURES if name in processor.features),
            cores=_cores(),
        )


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
