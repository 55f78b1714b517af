"""How many zeros each layer gets: more where they cost the model's outputs less."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import constant, is_interface
from onnxcomp.quant.gptq import sparsegpt
from onnxcomp.quant.grams import collect_grams
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.support.sparsity import Pattern, wanda

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model
    from onnxcomp.quant.gram import Gram
    from onnxcomp.quant.readers import Layer

    Feeds = Mapping[str, np.ndarray]

# How far the share of zeros of a layer may be from that of all, and the steps between.
_REACH, _STEP = 0.3, 0.05
_MOST = 0.98
# What is left of a sum of steps that add up.
_EXACT = 1e-9
# Samples that are looked at, and what a curve is drawn from.
_SAMPLES = 8
_COLUMNS, _WIDEST = 128, 1024
# How much of a change is made: noise that is small adds up.
_PART = 0.1
_TINY = np.finfo(np.float64).tiny


def shares(
    model: Model,
    layers: Sequence[Layer],
    samples: Sequence[Feeds],
    sparsity: float,
    *,
    threads: int = 0,
) -> dict[str, float]:
    """Returns the share of zeros of each layer.

    What zeros in a layer do to the outputs of the model is measured with the share of all in that layer
    alone; how that changes with the share is taken from the error of the layer's own output. Then the
    layer whose next zeros cost least gets them, until there are enough: the optimum where costs add up and
    each weight costs more than the one before (Everett, "Generalized Lagrange Multiplier Method" (1963)).

    Args:
        model: The model.
        layers: Layers of it.
        samples: Feeds; a few are looked at.
        sparsity: Share of zeros of all these weights together.
        threads: Threads of sessions.
    """
    few = samples[:_SAMPLES]
    levels = _levels(sparsity)
    curves, changed = {}, {}
    for layer, gram in collect_grams(model, layers, few, threads=threads):
        curves[layer.name] = _curve(layer, gram, (*levels, sparsity))
        changed[layer.name] = _changed(layer, gram, sparsity)
    chosen = [layer for layer in layers if layer.name in changed]
    noise = noises(model, chosen, changed, few, threads=threads)
    sizes = {layer.name: layer.read().size for layer in chosen}
    costs = _costs(curves, noise)
    found = spread(costs, sizes, levels, sparsity)
    return {layer.name: found.get(layer.name, sparsity) for layer in layers}


def _levels(sparsity: float) -> NDArray[np.float64]:
    """Shares of zeros that a layer may have: that of all, and equal steps up and down from it."""
    down = int(min(_REACH, sparsity) / _STEP + _EXACT)
    up = int(max(min(_REACH, _MOST - sparsity), 0.0) / _STEP + _EXACT)
    levels: NDArray[np.float64] = np.maximum(sparsity + _STEP * np.arange(-down, up + 1), 0.0)
    return levels


def noises(
    model: Model,
    layers: Sequence[Layer],
    changed: Mapping[str, NDArray[Any]],
    samples: Sequence[Feeds],
    *,
    threads: int = 0,
) -> dict[str, float]:
    """Returns by layer how much noise the outputs get, relative to their power, with another weight in it.

    Weights become inputs with a default, so that one session serves them all.

    Args:
        model: The model.
        layers: Layers of it; those whose weight is no initializer are left out.
        changed: The other weights, as `Layer.read` gives them.
        samples: Feeds.
        threads: Threads of the session.
    """
    open_ = model.copy()
    known = open_.core.graph.initializers
    names = {each.name: each.weight.name or "" for each in layers if not is_interface(each.weight)}
    names = {layer: name for layer, name in names.items() if name in known}
    open_.core.graph.inputs.extend(known[name] for name in names.values())
    total = dict.fromkeys(names, 0.0)
    with Session.open(open_, threads=threads) as session:
        for feeds in samples:
            expected = session.run(feeds)
            for layer in layers:
                if layer.name in names:
                    weight = layer.read()
                    weight = weight + _PART * (changed[layer.name].reshape(weight.shape) - weight)
                    made = session.run({**feeds, names[layer.name]: _stored(layer, weight)})
                    total[layer.name] += _distance(expected, made) / _PART**2
    return total


def _stored(layer: Layer, matrix: NDArray[Any]) -> NDArray[Any]:
    tensor = constant(layer.weight)
    dtype = np.float32 if tensor is None else tensor.dtype.numpy()
    return np.ascontiguousarray(layer.from_matrix(matrix).astype(dtype))


def _distance(expected: Mapping[str, Any], made: Mapping[str, Any]) -> float:
    total = 0.0
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f" and wanted.size:
            if made[name].shape != wanted.shape:
                return 1.0
            power = float(np.square(wanted, dtype=np.float64).sum())
            noise = float(np.square(made[name].astype(np.float64) - wanted).sum())
            total += min(noise / max(power, _TINY), 1.0) if np.isfinite(noise) else 1.0
    return total


def spread(
    costs: Mapping[str, Sequence[float] | NDArray[Any]],
    sizes: Mapping[str, int],
    levels: NDArray[Any],
    sparsity: float,
) -> dict[str, float]:
    """Returns a level for each name, so that together they reach a share of zeros at the least cost.

    Args:
        costs: By name, the cost of each level.
        sizes: How many weights each has.
        levels: Shares of zeros, in equal steps.
        sparsity: Share of zeros of all together.
    """
    place = dict.fromkeys(costs, 0)
    if not costs or len(levels) < 2:
        return dict.fromkeys(costs, sparsity)
    step = float(levels[1] - levels[0])
    queue = [(_slope(costs[name], sizes[name], 0), name) for name in costs]
    heapq.heapify(queue)
    total = sum(sizes[name] for name in costs)
    missing = total * (sparsity - levels[0])
    name = ""
    while queue and missing > _EXACT * total:
        _, name = heapq.heappop(queue)
        place[name] += 1
        missing -= sizes[name] * step
        if place[name] + 1 < len(levels):
            heapq.heappush(queue, (_slope(costs[name], sizes[name], place[name]), name))
    found = {each: float(levels[index]) for each, index in place.items()}
    if name and missing < 0:
        found[name] += missing / sizes[name]  # its last step was more than was left to do
    return found


def _slope(costs: Sequence[float] | NDArray[Any], size: int, index: int) -> float:
    return float(costs[index + 1] - costs[index]) / max(size, 1)


def _costs(
    curves: Mapping[str, NDArray[Any]], noise: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    """Turns errors of layers' outputs into noise of the model's, by what was measured at the last level."""
    gains = {
        name: noise[name] / curve[-1]
        for name, curve in curves.items()
        if name in noise and curve[-1] > _EXACT * curve.max()
    }
    # Where zeros cost nothing at the share of all (inputs that are never active), more may cost something.
    usual = float(np.median([*gains.values()])) if gains else 1.0
    return {
        name: np.maximum.accumulate(curve[:-1]) * gains.get(name, usual)
        for name, curve in curves.items()
    }


def _curve(layer: Layer, gram: Gram, levels: Sequence[float]) -> NDArray[np.float64]:
    """The error of a layer's output at each share of zeros, relative to its power."""
    total, power = np.zeros(len(levels)), 0.0
    for weight, matrix in _parts(layer, gram):
        some = weight[:, :: -(-weight.shape[1] // _COLUMNS)]
        power += float(((matrix @ some) * some).sum())
        for index, level in enumerate(levels):
            found = _zeroed(some, matrix, float(level), fast=layer.depth > _WIDEST)
            lost = some - found
            total[index] += float(((matrix @ lost) * lost).sum())
    return np.maximum(total, 0.0) / max(power, _TINY)


def _changed(layer: Layer, gram: Gram, sparsity: float) -> NDArray[np.float32]:
    parts = [
        _zeroed(weight, matrix, sparsity).astype(np.float32)
        for weight, matrix in _parts(layer, gram)
    ]
    return np.stack(parts)


def _zeroed(
    weight: NDArray[Any], matrix: NDArray[Any], share: float, *, fast: bool = False
) -> NDArray[np.float64]:
    if share <= 0.0:
        return weight.astype(np.float64)
    if fast:
        return wanda(weight, np.diagonal(matrix), share, Pattern())
    return sparsegpt(weight, matrix, share).astype(np.float64)


def _parts(layer: Layer, gram: Gram) -> Iterator[tuple[NDArray[Any], NDArray[np.float64]]]:
    weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)
    matrices = gram.matrix.reshape(layer.groups, layer.depth, layer.depth)
    yield from zip(weight, matrices, strict=True)
