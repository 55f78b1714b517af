"""What the machine at hand can run, and what its processor does to int8 products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.cpuinfo import cpu

if TYPE_CHECKING:
    from onnxcomp.targets.table import Target

_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def saturates() -> bool:
    """Whether products of u8 and s8 may saturate: x64 without VNNI adds pairs of them in 16 bits.

    onnxruntime uses VPMADDUBSW there; weights of 7 bits (`reduce_range`) stay clear of it.
    """
    found = cpu()
    return found.arch == "x86_64" and not (found.features & _VNNI)


def runs_here(target: Target) -> bool:
    """Whether a target can be run and measured on this machine."""
    from onnxcomp.runtime import available_providers

    if target.provider not in available_providers():
        return False
    machine = target.machine
    if machine is None:
        return True
    found = cpu()
    has_one = not machine.any_of or bool(machine.any_of & found.features)
    return found.arch == machine.arch and has_one and not machine.none_of & found.features
