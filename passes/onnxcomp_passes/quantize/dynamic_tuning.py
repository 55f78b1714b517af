"""What makes rounding cost less at no or little time: channels evened out, weights rounded together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.quant.balance import Reader, best_scale, noise, observe_channels
from onnxcomp.quant.gptq import gptq, per_column
from onnxcomp.quant.grams import collect_grams, gram_readers
from onnxcomp.quant.weights import FULL_RANGE, REDUCED_RANGE
from onnxcomp_passes.quantize.dynamic_numbers import Numbers, grid_of, smoothed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.dynamic import Site

    Feeds = Mapping[str, np.ndarray]

# Smoothing costs a Mul: it has to be expected to gain this much at the nodes that read an activation,
_EXPECTED_DB = 1.0
# and to take away this share of the noise of all activations together.
_NOTABLE = 0.01


def find_smoothing(
    ctx: Context, sites: Sequence[Site], samples: Sequence[Feeds]
) -> dict[ir.Value, NDArray[np.float32]]:
    """Returns what to divide the channels of activations by, for those where it is expected to help.

    SmoothQuant (Xiao et al. 2023), with the scales chosen for the least expected noise of the products.
    """
    readers: dict[ir.Value, list[Site]] = {}
    for site in _products(ctx, [site for site in sites if not site.rank]):
        readers.setdefault(site.source, []).append(site)
    if not readers:
        return {}
    stats = observe_channels(
        ctx.model,
        {value.name or "": -1 for value in readers},
        {value.name or "": found[0].depth for value, found in readers.items()},
        samples,
        threads=ctx.threads,
        progress=ctx.progress,
    )
    scales: dict[ir.Value, NDArray[np.float32]] = {}
    saved: dict[ir.Value, float] = {}
    total = 0.0
    for value, found in readers.items():
        seen = stats[value.name or ""]
        weights = [Reader(site.matrix().T[:, :, None]) for site in found]
        scale, gain = best_scale(seen, weights)
        before = noise(seen, weights, np.ones(found[0].depth))
        total += before
        if gain >= _EXPECTED_DB:
            scales[value] = scale.astype(np.float32)
            saved[value] = before * (1.0 - 10.0 ** (-gain / 10.0))
    return {value: scales[value] for value in scales if saved[value] >= _NOTABLE * total}


def round_together(
    ctx: Context, sites: Sequence[Site], numbers: Numbers, samples: Sequence[Feeds]
) -> dict[Site, NDArray[np.int8]]:
    """Returns weights rounded by GPTQ (Frantar et al. 2022), for those that a single node reads."""
    users = Counter(site.weight for site in sites)
    alone = {s.node: s for s in _products(ctx, sites) if users[s.weight] == 1}
    layers = [layer for layer in gram_readers(ctx.model) if layer.node in alone]
    found: dict[Site, NDArray[np.int8]] = {}
    grams = collect_grams(ctx.model, layers, samples, threads=ctx.threads, progress=ctx.progress)
    for layer, gram in grams:
        site = alone[layer.node]
        if gram.matrix.shape != (site.depth, site.depth):
            continue
        scale = None if site.rank else numbers.smoothing.get(site.source)
        rows = np.ones(site.depth) if scale is None else scale.astype(np.float64)
        steps = grid_of(site, numbers).scale
        most = REDUCED_RANGE if numbers.reduce_range else FULL_RANGE
        matrix = gram.matrix / np.outer(rows, rows)
        settled = gptq(smoothed(site, numbers), matrix, per_column(steps, 0, -most, most))
        found[site] = np.rint(settled / steps).clip(-most, most).astype(np.int8)
    return found


def _products(ctx: Context, sites: Sequence[Site]) -> list[Site]:
    """The sites whose activations can be looked at."""
    graph = ctx.model.graph
    return [s for s in sites if s.kind != "lstm" and s.node.graph is graph and s.source.name]
