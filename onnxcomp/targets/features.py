"""What the processor at hand does to int8 products."""

from __future__ import annotations

from onnxcomp.cpuinfo import cpu

_VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def saturates() -> bool:
    """Whether products of u8 and s8 may saturate: x64 without VNNI adds pairs of them in 16 bits.

    onnxruntime uses VPMADDUBSW there; weights of 7 bits (`reduce_range`) stay clear of it.
    """
    found = cpu()
    return found.arch == "x86_64" and not (found.features & _VNNI)
