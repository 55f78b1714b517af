"""How many rows are multiplied with a weight at a time."""

from __future__ import annotations

import itertools
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.passbase import Context
    from onnxcomp_passes.quantize.weight_sites import Site

_LOOKED_AT = 3


def rows_of(ctx: Context, shapes: ShapeMap, sites: Sequence[Site]) -> dict[str, int]:
    """Returns the rows that each weight is multiplied with, from shapes, or from a run on samples.

    Args:
        ctx: Model and samples.
        shapes: What is known of shapes.
        sites: Weights of MatMul and Gemm.

    Returns:
        The median over a few samples, by name of the weight; those not known are left out.
    """
    found: dict[str, int] = {}
    unknown: dict[str, list[str]] = {}
    for site in sites:
        sizes = []
        for use in site.uses:
            if use.kind == "table":
                continue
            value = use.node.outputs[0]
            shape = shapes.static(value)
            if shape is not None:
                sizes.append(prod(shape[:-1]))
            elif use.node.graph is ctx.model.graph:
                unknown.setdefault(site.name, []).append(value.name or "")
        if sizes:
            found[site.name] = max(sizes)
    if unknown and ctx.samples is not None:
        for name, rows in _seen(ctx, unknown).items():
            found[name] = max(rows, found.get(name, 0))
    return found


def _seen(ctx: Context, unknown: dict[str, list[str]]) -> dict[str, int]:
    names = list(dict.fromkeys(name for names in unknown.values() for name in names))
    outputs = {value.name for value in ctx.model.graph.outputs}
    taps = [name for name in names if name not in outputs]
    rows: dict[str, list[int]] = {name: [] for name in names}
    with Session.open(ctx.model, outputs=taps, threads=ctx.threads) as session:
        for feed in itertools.islice(ctx.samples or (), _LOOKED_AT):
            for name, array in session.run(feed, names).items():
                rows[name].append(prod(np.shape(array)[:-1]))
    middle = {name: int(np.median(seen)) for name, seen in rows.items() if seen}
    return {site: max(middle.get(name, 0) for name in values) for site, values in unknown.items()}
