"""A weight with zeros whose outputs are nearest to those that are wanted: several ways, judged on held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant.gptq import sparsegpt
from onnxcomp_passes.prune.support.sparsity import Pattern, magnitude, mask, wanda

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    from onnxcomp_passes.prune.support.moments import Moments

    Array = NDArray[np.float64]

Way = Literal["magnitude", "wanda", "sparsegpt", "alps"]

# Shares of the mean of the diagonal that are added to it; held-out rows choose.
_DAMPINGS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Where zeros are is settled with one of the first.
_PROBES = 3
# Above this the eigenvalues of a matrix take too long, and so does trying more than one damping.
_WIDEST = 2048
_ONE_DAMPING = (1e-2,)
_ROUNDS = 60
_PATIENCE = 3
# By what the penalty grows while this share of the weights still changes places.
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
_FIRST_PENALTY = 0.1
_CONJUGATE_STEPS = 10
_EXACT = 1e-6


@dataclass(frozen=True, eq=False)
class Found:
    """A weight with zeros.

    Attributes:
        way: How it was found.
        weight: (K, N).
        bias: (N,) where the layer has one.
        error: Its error on held-out rows.
    """

    way: Way
    weight: Array
    bias: Array | None
    error: float


def _error(found: Found) -> float:
    return found.error


@dataclass(eq=False)
class Problem:
    """One part of a layer that is to get zeros.

    Attributes:
        weight: What it was, (K, N).
        sums: What it reads and should give.
        judge: The same on rows that only decide.
        share: Share of zeros.
        pattern: Where zeros may be.
    """

    weight: NDArray[Any]
    sums: Moments
    judge: Moments
    share: float
    pattern: Pattern

    def best(self, ways: Collection[Way]) -> Found:
        """Returns the nearest on held-out rows of what several ways find."""
        found = [self.found(way) for way in ("magnitude", "wanda") if way in ways]
        if {"sparsegpt", "alps"} & set(ways):
            found += self._refitted(ways)
        return min(found, key=lambda each: each.error)

    def found(self, way: Way) -> Found:
        """Returns what a way finds that changes no weight that stays."""
        if way == "magnitude":
            return self._judged(way, magnitude(self.weight, self.share, self.pattern))
        return self._judged(way, wanda(self.weight, self.sums.power[0], self.share, self.pattern))

    def _refitted(self, ways: Collection[Way]) -> list[Found]:
        gram, cross = self.sums.gram[0], self.sums.cross[0]
        dampings = _DAMPINGS if len(gram) <= _WIDEST else _ONE_DAMPING
        damped = [_damped(gram, cross, self.weight, damping) for damping in dampings]
        systems = [each for each in damped if each is not None]
        if not systems:
            return [self.found("wanda")]
        starts = [self._judged("sparsegpt", self._sparsegpt(each)) for each in systems[:_PROBES]]
        index = min(range(len(starts)), key=lambda each: starts[each].error)
        made = [starts[index]] if "sparsegpt" in ways else []
        if "alps" not in ways:
            return made
        masks = [starts[index].weight]
        if len(gram) <= _WIDEST:
            masks.append(alps(systems[index], self.share, self.pattern))
        best = min((self._polished(systems[index], each) for each in masks), key=_error)
        return [*made, self._best_damped(systems, index, best)]

    def _polished(self, system: System, start: Array) -> Found:
        return self._judged("alps", on_support(system, start))

    def _best_damped(self, systems: Sequence[System], index: int, best: Found) -> Found:
        """Goes on to more or less damping while held-out rows like it."""
        for later in (systems[index + 1 :], systems[:index][::-1]):
            first = best
            for system in later:
                new = self._polished(system, best.weight)
                if new.error >= best.error:
                    break
                best = new
            if best is not first:
                break
        return best

    def _sparsegpt(self, damped: System) -> Array:
        """Frantar and Alistarh, "SparseGPT" (2023), arXiv 2301.00774, from the weight that fits best."""
        pattern = self.pattern
        goal: Any = (pattern.kept, pattern.width) if pattern.width else self.share
        found = sparsegpt(damped.target, damped.matrix(), goal, damping=0.0, tile=pattern.tile)
        return found.astype(np.float64)

    def _judged(self, way: Way, weight: Array) -> Found:
        bias = self.sums.bias(weight)
        error = float(self.judge.errors(weight[None], bias)[0])
        return Found(way, weight, None if bias is None else bias[0], error)


@dataclass(frozen=True, eq=False)
class System:
    """What a weight without zeros would solve.

    Attributes:
        gram: X^T X.
        penalty: What is added to its diagonal.
        target: The weight that fits best.
    """

    gram: Array
    penalty: float
    target: Array

    def matrix(self) -> Array:
        """Returns the damped matrix; it is not kept, being as large as anything here."""
        found = self.gram.copy()
        np.einsum("ii->i", found)[...] += self.penalty
        return found

    def scaled(self) -> tuple[NDArray[np.float32], Array]:
        """Returns the damped matrix with ones on its diagonal, and what its rows were divided by."""
        found = self.matrix()
        norms = np.sqrt(np.diagonal(found))
        found /= norms
        found /= norms[:, None]
        return found.astype(np.float32), norms[:, None]


def refitted(
    weight: NDArray[Any], bias: NDArray[Any] | None, sums: Moments, judge: Moments
) -> tuple[Array, Array | None, NDArray[np.bool_]]:
    """Returns weight and bias of a layer that keeps its zeros to itself, fitted to what it should give.

    Each part takes what is nearest on held-out rows; what it was, if nothing is nearer.

    Args:
        weight: What it was, (groups, K, N).
        bias: (groups, N) where the layer has one.
        sums: What it reads and should give.
        judge: The same on rows that only decide.

    Returns:
        The weight, the bias, and which parts changed.
    """
    best, offset = weight.astype(np.float64), bias
    least = judge.errors(best, bias)
    changed = np.zeros(len(weight), np.bool_)
    for damping in (*_DAMPINGS, np.inf):
        new = best if np.isinf(damping) else _all_damped(sums, weight, damping)
        if new is None:
            continue
        moved = sums.bias(new)
        errors = judge.errors(new, moved)
        better = errors < least
        best = np.where(better[:, None, None], new, best)
        if moved is not None and offset is not None:
            offset = np.where(better[:, None], moved, offset)
        least, changed = np.minimum(errors, least), changed | better
    return best, offset, changed


def _all_damped(sums: Moments, weight: NDArray[Any], damping: float) -> Array | None:
    gram = sums.gram
    mean = np.trace(gram, axis1=1, axis2=2) / max(sums.inputs, 1)
    penalty = np.maximum(damping * mean, np.finfo(np.float64).tiny)[:, None, None]
    near = weight.astype(np.float64)
    try:
        step = np.linalg.solve(gram + penalty * np.eye(sums.inputs), sums.cross - gram @ near)
    except np.linalg.LinAlgError:
        return None
    found: Array = near + step
    return found


def _damped(gram: Array, cross: Array, weight: NDArray[Any], damping: float) -> System | None:
    """Ridge regression towards the weight that was there; None where that cannot be solved."""
    mean = float(np.mean(np.diagonal(gram))) if gram.size else 0.0
    if not (np.isfinite(mean) and mean > 0.0):
        return None
    near = weight.astype(np.float64)
    found = System(gram, damping * mean, near)
    try:
        return replace(found, target=near + np.linalg.solve(found.matrix(), cross - gram @ near))
    except np.linalg.LinAlgError:
        return None


def alps(system: System, share: float, pattern: Pattern) -> Array:
    """Returns a weight with zeros, found by the alternating direction method of multipliers.

    Meng et al., "ALPS: Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models"
    (2024), arXiv 2406.07831: one copy of the weight fits, one has the zeros, and a growing penalty draws
    them together. Zeros are chosen for the layer as a whole and may move until the end.

    Args:
        system: What it would solve without zeros.
        share: Share of zeros.
        pattern: Where they may be.
    """
    scaled, norms = system.scaled()
    wanted = (system.target * norms).astype(np.float32)
    values, vectors = np.linalg.eigh(scaled)
    values = np.maximum(values, 0.0)[:, None]
    turned = np.ascontiguousarray(vectors.T)
    right = scaled @ wanted
    sparse = np.where(mask(np.square(wanted), share, pattern, together=True), wanted, 0.0)
    dual, penalty = np.zeros_like(wanted), _FIRST_PENALTY
    before = sparse != 0
    for round_ in range(_ROUNDS):
        free = vectors @ ((turned @ (right - dual + penalty * sparse)) / (values + penalty))
        moved = free + dual / penalty
        kept = mask(np.square(moved), share, pattern, together=True)
        sparse = np.where(kept, moved, np.float32(0.0))
        dual += penalty * (free - sparse)
        if round_ % _PATIENCE == _PATIENCE - 1:
            changed = float(np.mean(kept != before))
            if not changed:
                break
            penalty *= next(growth for least, growth in _GROWTH if changed >= least)
            before = kept
    return sparse.astype(np.float64) / norms


def on_support(system: System, start: Array) -> Array:
    """Returns the weight that fits best with the zeros of another one: conjugate gradients.

    Args:
        system: What it would solve without zeros.
        start: (K, N), where its zeros are and where to begin.
    """
    gram, norms = system.scaled()
    kept = start != 0
    weight = (start * norms).astype(np.float32)
    target = (system.target * norms).astype(np.float32)
    rest = np.where(kept, gram @ (target - weight), np.float32(0.0))
    step, size = rest, np.square(rest).sum(axis=0)
    least = np.maximum(_EXACT * size, np.finfo(np.float32).tiny)
    for _ in range(_CONJUGATE_STEPS):
        ahead = np.where(kept, gram @ step, np.float32(0.0))
        curved = (step * ahead).sum(axis=0)
        going = (size > least) & (curved > _EXACT * size)
        if not going.any():
            break
        length = np.divide(size, curved, out=np.zeros_like(size), where=going)
        weight += length * step
        rest = rest - length * ahead
        new = np.where(going, np.square(rest).sum(axis=0), size)
        step = rest + step * np.divide(new, size, out=np.zeros_like(size), where=going)
        size = new
    return np.where(kept, weight.astype(np.float64), 0.0) / norms
