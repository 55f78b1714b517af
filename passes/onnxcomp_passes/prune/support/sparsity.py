"""Which weights become zero, and what that costs a layer's output."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.gptq import sparsegpt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.quant.gram import Gram

# How far the share of zeros of a layer may be from that of all, and the steps between.
_REACH, _STEP = 0.3, 0.05
_MOST = 0.98
# What is left of a sum of steps that add up.
_EXACT = 1e-9


@dataclass(frozen=True)
class Pattern:
    """Where zeros may be.

    Attributes:
        kept: Of `width` consecutive weights of an output no more than `kept` stay; 0 for anywhere.
        width: See `kept`.
        block: Consecutive outputs whose weights go together; 1 for each weight on its own.
    """

    kept: int = 0
    width: int = 0
    block: int = 1

    def fits(self, inputs: int, outputs: int) -> bool:
        """Whether a weight divides into the parts of the pattern."""
        return outputs % self.block == 0 and (not self.width or inputs % self.width == 0)


def parse_pattern(text: str) -> Pattern:
    """Reads `2:4`, `4x1` (four outputs go together) or nothing.

    Raises:
        ValueError: If it is none of these.
    """
    if not text:
        return Pattern()
    kept, colon, width = text.partition(":")
    if colon and kept.isdigit() and width.isdigit() and 0 < int(kept) < int(width) <= 64:
        return Pattern(int(kept), int(width))
    outputs, cross, inputs = text.partition("x")
    if cross and outputs.isdigit() and inputs == "1" and 1 < int(outputs) <= 64:
        return Pattern(block=int(outputs))
    raise ValueError(
        "must be like 2:4 (of four weights two stay) or 4x1 (four outputs go together)"
    )


def mask(scores: NDArray[Any], sparsity: float, pattern: Pattern) -> NDArray[np.bool_]:
    """Returns which weights stay: those with the highest scores.

    Args:
        scores: (K, N), one for each weight; those of an output are compared with each other.
        sparsity: Share of zeros; a pattern with a width has its own.
        pattern: Where zeros may be.
    """
    inputs, outputs = scores.shape
    if pattern.width:
        parts = scores.reshape(-1, pattern.width, outputs)
        order = np.argsort(np.argsort(-parts, axis=1, kind="stable"), axis=1)
        by_part: NDArray[np.bool_] = (order < pattern.kept).reshape(inputs, outputs)
        return by_part
    if pattern.block > 1:
        together = scores.reshape(inputs, -1, pattern.block).sum(axis=2)
        return np.repeat(mask(together, sparsity, Pattern()), pattern.block, axis=1)
    drop = round(inputs * sparsity)
    order = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0)
    anywhere: NDArray[np.bool_] = order >= drop
    return anywhere


def magnitude(weight: NDArray[Any], sparsity: float, pattern: Pattern) -> NDArray[np.float64]:
    """Keeps the largest weights of each output (Han et al. 2015, arXiv 1506.02626)."""
    return np.where(mask(np.abs(weight), sparsity, pattern), weight, 0.0).astype(np.float64)


def wanda(
    weight: NDArray[Any], gram: Gram, sparsity: float, pattern: Pattern
) -> NDArray[np.float64]:
    """Keeps the weights whose products are largest: |w| times the norm of what it multiplies.

    Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (2023), arXiv
    2306.11695.
    """
    norms = np.sqrt(np.maximum(np.diagonal(gram.matrix), 0.0))
    scores = np.abs(weight) * norms[:, None]
    return np.where(mask(scores, sparsity, pattern), weight, 0.0).astype(np.float64)


def refitted(
    weight: NDArray[Any], gram: Gram, sparsity: float, pattern: Pattern
) -> NDArray[np.float64]:
    """Zeros weights one input after the other; those that follow make up for it (SparseGPT).

    Frantar and Alistarh, "SparseGPT" (2023), arXiv 2301.00774. For outputs that go together the mask is
    that of `wanda`, and what stays of them is fitted to what they gave.
    """
    if pattern.block == 1:
        goal: Any = (pattern.kept, pattern.width) if pattern.width else sparsity
        return sparsegpt(weight, gram.matrix, goal).astype(np.float64)
    start = wanda(weight, gram, sparsity, pattern)
    result = np.zeros_like(start)
    damp = 0.01 * float(np.mean(np.diagonal(gram.matrix))) or 1.0
    matrix = gram.matrix + damp * np.eye(len(weight))
    for first in range(0, weight.shape[1], pattern.block):
        columns = slice(first, first + pattern.block)
        left = np.flatnonzero(start[:, columns].any(axis=1))
        if left.size:
            wanted = matrix[left] @ weight[:, columns].astype(np.float64)
            result[left, columns] = np.linalg.solve(matrix[np.ix_(left, left)], wanted)
    return result


def shares(
    weights: Mapping[str, NDArray[Any]], grams: Mapping[str, Gram], sparsity: float
) -> dict[str, float]:
    """Returns the share of zeros of each layer: more where it costs less of the layer's output.

    Greedy: the layer whose next step costs least, relative to the power of its output, for each zero.

    Args:
        weights: (K, N) by layer.
        grams: What each weight multiplies.
        sparsity: Share of zeros of all weights together.
    """
    levels = np.arange(max(sparsity - _REACH, 0.0), min(sparsity + _REACH, _MOST) + 1e-9, _STEP)
    costs = {name: _costs(weights[name], grams[name], levels) for name in weights}
    place = dict.fromkeys(weights, 0)
    queue = [(_slope(costs[name], weights[name].size, 0), name) for name in weights]
    heapq.heapify(queue)
    total = sum(w.size for w in weights.values())
    missing = total * (sparsity - levels[0])
    while queue and missing > _EXACT * total:
        _, name = heapq.heappop(queue)
        place[name] += 1
        missing -= weights[name].size * _STEP
        if place[name] + 1 < len(levels):
            queued = (_slope(costs[name], weights[name].size, place[name]), name)
            heapq.heappush(queue, queued)
    return {name: float(levels[index]) for name, index in place.items()}


def _costs(weight: NDArray[Any], gram: Gram, levels: NDArray[Any]) -> Sequence[float]:
    power = max(gram.error(weight), np.finfo(np.float64).tiny)
    found = (wanda(weight, gram, float(level), Pattern()) for level in levels)
    return [gram.error(weight - each) / power for each in found]


def _slope(costs: Sequence[float], size: int, index: int) -> float:
    if index + 1 >= len(costs):
        return np.inf
    return (costs[index + 1] - costs[index]) / max(size, 1)
