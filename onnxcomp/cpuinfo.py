"""What the processor can do: the instruction sets that decide which int8 kernels are fast and exact."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# Names of the operating systems for one feature -> the name used here (Linux's for x86).
_ALIASES = {
    "avx512vnni": "avx512_vnni",
    "avxvnni": "avx_vnni",
    "avx512bf16": "avx512_bf16",
    "avx1.0": "avx",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "asimd": "neon",
    "advsimd": "neon",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "feat_i8mm": "i8mm",
    "feat_bf16": "bf16",
    "feat_fp16": "fphp",
    "feat_sme": "sme",
}
_ARCHITECTURES = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class Cpu:
    """The processor of this machine.

    Attributes:
        arch: `x86_64`, `aarch64`, or what the system calls it.
        name: The marketing name, empty when unknown.
        features: Instruction sets such as `avx2`, `avx512f`, `avx512_vnni`, `avx_vnni`, `amx_int8`, `neon`,
            `dotprod`, `i8mm`; empty when they cannot be found out.
    """

    arch: str
    name: str
    features: frozenset[str]


@functools.cache
def cpu() -> Cpu:
    """Returns the processor of this machine."""
    machine = platform.machine().lower()
    arch = _ARCHITECTURES.get(machine, machine)
    if sys.platform == "darwin":
        name, features = parse_sysctl(_sysctl())
    else:
        name, features = parse_cpuinfo(_cpuinfo())
    return Cpu(arch, name or platform.processor(), features)


def cpu_features() -> frozenset[str]:
    """Returns the instruction sets of this machine's processor, empty when unknown."""
    return cpu().features


def parse_cpuinfo(text: str) -> tuple[str, frozenset[str]]:
    """Reads the name and the features of the first processor from Linux's `/proc/cpuinfo`."""
    name, features = "", frozenset[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key.lower() in ("model name", "hardware") and not name:
            name = value
        elif key.lower() in ("flags", "features") and not features:
            features = _normal(value.split())
    return name, features


def parse_sysctl(text: str) -> tuple[str, frozenset[str]]:
    """Reads the name and the features from the output of macOS's `sysctl machdep.cpu hw.optional`."""
    name, found = "", set[str]()
    for line in text.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "machdep.cpu.brand_string":
            name = value
        elif key in ("machdep.cpu.features", "machdep.cpu.leaf7_features"):
            found.update(value.split())
        elif key.startswith("hw.optional.") and value == "1":
            found.add(key.rpartition(".")[2])
    return name, _normal(found)


def _normal(names: list[str] | set[str]) -> frozenset[str]:
    lowered = (name.lower() for name in names)
    return frozenset(_ALIASES.get(name, name) for name in lowered)


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl() -> str:
    command = ["/usr/sbin/sysctl", "machdep.cpu", "hw.optional"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return found.stdout
