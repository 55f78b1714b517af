"""How much each channel matters to the layers that read it, judged on samples."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant.grams import collect_grams, gram_readers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.channels import ChannelMap
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.gram import Gram
    from onnxcomp.quant.readers import Layer

Array = np.ndarray[Any, Any]
Observed = Literal["activation", "wanda", "obs"]
OBSERVED = ("activation", "wanda", "obs")
_SAMPLES = 64
_DEEPEST = 4096
_DAMPING = 1e-3


def unit_costs(ctx: Context, channels: ChannelMap, criterion: Observed) -> dict[int, Array]:
    """Returns what removing each unit costs the layers that read it, by the index of the group.

    Groups that no such layer reads are left out.

    `activation`: the mean magnitude of the channel (Hu et al., "Network Trimming", 2016, and Molchanov et
    al., ICLR 2017, judge by such statistics). `wanda`: the power of its products, sum of w^2 * E[x^2]
    (Sun et al. 2023, for whole channels). `obs`: what the outputs lose when the weights that are left
    make up for it as well as they can: W_S^T (H^-1_SS)^-1 W_S with H = X^T X (Hassibi and Stork, "Second
    order derivatives for network pruning", 1992, for the weights S of a channel at a time, layer-wise as
    in Dong et al. 2017). All are shares of the power of the layer's output, and add up over layers.

    Args:
        ctx: The pass, with samples.
        channels: The channels of the model.
        criterion: What to judge by.
    """
    readers = {layer.weight: layer for layer in gram_readers(ctx.model) if _is_plain(layer)}
    wanted: dict[ir.Value, list[tuple[int, int, Array]]] = {}
    for index, group in enumerate(channels.groups):
        for member in group.members:
            reads = (member.value, member.axis) in channels.consumers
            if reads and member.value in readers:
                places = member.positions.reshape(group.units, -1)
                entry = (index, member.axis, places)
                wanted.setdefault(member.value, []).append(entry)
    samples = list(islice(ctx.samples or (), _SAMPLES))
    found: dict[int, Array] = {}
    layers = [readers[value] for value in wanted]
    grams = collect_grams(ctx.model, layers, samples, threads=ctx.threads, progress=ctx.progress)
    for layer, gram in grams:
        power = max(gram.error(layer.read()), np.finfo(np.float64).tiny)
        for index, axis, places in wanted[layer.weight]:
            costs = _COSTS[criterion](layer, gram, axis, places) / power
            found[index] = found[index] + costs if index in found else costs
    return found


def _is_plain(layer: Layer) -> bool:
    return layer.groups == 1 and layer.depth <= _DEEPEST


def _by_unit(layer: Layer, rows: Array, axis: int, positions: Array) -> Array:
    """Sums numbers of rows of the weight over the rows that belong to each unit."""
    spread = np.broadcast_to(rows[:, None] / layer.outputs, (layer.depth, layer.outputs))
    shaped = np.moveaxis(layer.from_matrix(np.ascontiguousarray(spread)), axis, 0)
    each = shaped.reshape(shaped.shape[0], -1).sum(axis=1)
    summed: Array = each[positions].sum(axis=1)
    return summed


def _wanda(layer: Layer, gram: Gram, axis: int, positions: Array) -> Array:
    weight = layer.read().astype(np.float64)
    return _by_unit(layer, np.diagonal(gram.matrix) * (weight**2).sum(axis=1), axis, positions)


def _activation(layer: Layer, gram: Gram, axis: int, positions: Array) -> Array:
    return _by_unit(layer, gram.magnitude / max(gram.count, 1), axis, positions)


def _obs(layer: Layer, gram: Gram, axis: int, positions: Array) -> Array:
    weight = layer.read().astype(np.float64)
    size = layer.depth
    damp = _DAMPING * float(np.trace(gram.matrix)) / max(size, 1)
    inverse = np.linalg.inv(gram.matrix + max(damp, 1e-30) * np.eye(size))
    numbers = np.broadcast_to(np.arange(size)[:, None], (size, layer.outputs))
    shaped = np.moveaxis(layer.from_matrix(np.ascontiguousarray(numbers)), axis, 0)
    own = shaped.reshape(shaped.shape[0], -1)
    costs = np.zeros(len(positions))
    for unit, places in enumerate(positions):
        rows = np.unique(own[places])
        lost = weight[rows]
        costs[unit] = np.sum(lost * np.linalg.solve(inverse[np.ix_(rows, rows)], lost))
    return costs


_COSTS: Mapping[str, Any] = {"activation": _activation, "wanda": _wanda, "obs": _obs}
