"""Which of the pieces that may be 16 bits wide are: as many as pay for their conversions."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import constant, is_op
from onnxcomp.quant.half.sites import slots_of
from onnxcomp.quant.mincut import Cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.ir import ir
    from onnxcomp.quant.half.sites import Site, Sites

_HEAVY = (
    "Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "Gemm", "GRU", "LSTM", "MatMul",
    "RNN",
)  # fmt: skip
# What moving an element costs, in bytes: half of what is read and written is saved.
_SAVED, _CONVERTED = 2.0, 6.0
# A node more costs as much as moving this many bytes; a multiplication saves far more than traffic.
_LAUNCH, _KERNEL = 4096.0, 1e7
_UNKNOWN_SIZE = 1024
# Turns of a loop, of which the number is seldom known.
_TURNS = 16
_NEVER = math.inf


def choose(sites: Sites, size: Callable[[ir.Value], int | None]) -> set[Site]:
    """Returns the sites that compute in 16 bits.

    A minimum cut: a site that stays in 32 bits costs the traffic that it would save, a value that is
    needed in both types costs a conversion, once for all its readers; in a loop, in every turn.
    """
    cut = Cut()
    vertices = {site: Cut.SOURCE if site.reason else cut.vertex() for site in sites.found}
    for site, vertex in vertices.items():
        if vertex != Cut.SOURCE:
            turns = _TURNS if site.node is not None and site.node.graph in sites.repeated else 1
            cut.charge(vertex, Cut.SINK, turns * _gain(site, size))
    for value, maker in sites.maker.items():
        readers = [
            vertices[sites.reader[slot]] if slot in sites.reader else Cut.SOURCE
            for slot in slots_of(value)
            if slot not in sites.indifferent
        ]
        cost = _LAUNCH + _CONVERTED * _elements(value, size)
        if value.graph in sites.repeated:
            cost *= _TURNS
        _charge(cut, vertices[maker], set(readers), cost)
    kept = cut.source_side()
    return {site for site, vertex in vertices.items() if vertex not in kept}


def _charge(cut: Cut, maker: int, readers: set[int], cost: float) -> None:
    others = readers - {maker}
    if not others:
        return
    narrow, wide = cut.vertex(), cut.vertex()
    if maker != Cut.SINK:
        cut.charge(maker, narrow, cost)
        for reader in others - {Cut.SOURCE}:
            cut.charge(narrow, reader, _NEVER)
    if maker != Cut.SOURCE:
        cut.charge(wide, maker, cost)
        for reader in others:
            cut.charge(reader, wide, _NEVER)


def _gain(site: Site, size: Callable[[ir.Value], int | None]) -> float:
    moved = sum(_elements(value, size) for value in (*site.makes, *site.reads()))
    heavy = is_op(site.node, *_HEAVY) or any(
        len(tensor.shape) > 1 and tensor.size >= _UNKNOWN_SIZE
        for tensor in map(constant, site.reads())
        if tensor is not None
    )
    return _SAVED * moved + 1.0 + (_KERNEL if heavy else 0.0)


def _elements(value: ir.Value, size: Callable[[ir.Value], int | None]) -> int:
    known = size(value)
    return _UNKNOWN_SIZE if known is None else known
