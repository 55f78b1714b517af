"""Scales and clipping that protect the weights which large activations meet.

AWQ (Lin et al. 2023, arXiv 2306.00978): rounding costs most where an input is large, so the rows of the
weight that meet large inputs are multiplied by a scale before they are rounded and the input is divided
by it. The paper looks for the scale that costs least when the layer is run; here the cost is exact and
needs no run, because the Gram matrix of the inputs tells the error of any rounding.

Where the division goes is for `absorb` to say (the weights of a LayerNormalization in front, for one).
Where nothing can take it, clipping alone is left: `awq_clip`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.gram import Gram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.quant.blocks import BlockGrid, BlockScheme

Quantizer = Callable[["NDArray[Any]"], "NDArray[Any]"]
"""Returns what a weight (K, N) becomes on its grid: `lambda w: block_params(w, scheme).round(w)`."""

# Scales stay within this factor of their geometric mean.
_FARTHEST = 1e4


def awq_scales(
    weights: NDArray[Any] | Sequence[NDArray[Any]],
    gram: Gram,
    quantizer: Quantizer,
    grid: int = 20,
) -> tuple[NDArray[np.float64], float]:
    """Returns the scale of each row that costs least, and its error as a share of that without.

    Candidates are the mean magnitude of each input to a power between 0 and 1, with and without the
    magnitude of the weights to the rest of that power in the denominator.

    Args:
        weights: One weight (K, N), or all that read the same input; they share the scale.
        gram: Of the rows they multiply.
        quantizer: What rounding does to a weight; it is given `weight * scale[:, None]`.
        grid: Powers tried.

    Returns:
        Scales (K,), positive, all 1 when none helps; multiply rows by them, divide the input.
    """
    several = [weights] if isinstance(weights, np.ndarray) else list(weights)
    wide = [np.asarray(weight, np.float64) for weight in several]
    signals = [max(gram.error(weight), np.finfo(np.float64).tiny) for weight in wide]

    def cost(scale: NDArray[np.float64]) -> float:
        total = 0.0
        for weight, signal in zip(wide, signals, strict=True):
            rounded = np.asarray(quantizer(weight * scale[:, None]), np.float64)
            total += gram.error(weight - rounded / scale[:, None]) / signal
        return total

    best = np.ones(gram.matrix.shape[-1])
    start = least = cost(best)
    for scale in _candidates(gram, wide, grid):
        found = cost(scale)
        if found < least:
            best, least = scale, found
    return best, least / start if start > 0.0 else 1.0


def _candidates(
    gram: Gram, weights: Sequence[NDArray[np.float64]], grid: int
) -> list[NDArray[np.float64]]:
    inputs = gram.magnitude / max(gram.count, 1)
    # The share of a column's largest number that is met on average.
    shares = [
        (np.abs(w) / np.maximum(np.abs(w).max(axis=0, keepdims=True), 1e-30)).mean(axis=1)
        for w in weights
    ]
    outputs = np.mean(shares, axis=0)
    found = []
    for step in range(1, grid + 1):
        power = step / grid
        found.append(_normal(inputs**power, inputs > 0.0))
        if step < grid:
            both = inputs**power / np.maximum(outputs, 1e-30) ** (1.0 - power)
            found.append(_normal(both, (inputs > 0.0) & (outputs > 0.0)))
    return found


def _normal(scale: NDArray[np.float64], used: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Centres scales around 1; rows that are never used stay as they are."""
    if not used.any():
        return np.ones_like(scale)
    middle = np.exp(np.log(scale[used]).mean())
    return np.where(used, np.clip(scale / middle, 1.0 / _FARTHEST, _FARTHEST), 1.0)


def awq_clip(
    weight: NDArray[Any],
    gram: Gram,
    scheme: BlockScheme,
    *,
    grid: int = 20,
    lowest: float = 0.5,
    scale_dtype: Any = np.float32,  # noqa: ANN401 - a numpy type
) -> BlockGrid:
    """Returns the grid whose blocks are each clipped so that the output of that block errs least.

    Args:
        weight: (K, N), finite.
        gram: Of the rows it multiplies.
        scheme: How it is stored.
        grid: Ranges tried.
        lowest: The narrowest range tried, as a share of the full one.
        scale_dtype: Type that scales are stored in.
    """
    from onnxcomp.quant.blocks import block_params

    wide = np.asarray(weight, np.float64)
    blocks = _in_blocks(wide, scheme.rows_of_block(wide.shape[0]))
    low, high = blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)
    candidates = []
    for share in np.linspace(1.0, lowest, grid):
        clipped = np.clip(blocks, low * share, high * share)
        clipped = clipped.reshape(-1, wide.shape[1])[: wide.shape[0]]
        candidates.append(block_params(clipped, scheme, "rtn", scale_dtype=scale_dtype))
    return best_grid(wide, gram, candidates)


def best_grid(weight: NDArray[Any], gram: Gram, candidates: Sequence[BlockGrid]) -> BlockGrid:
    """Returns a grid made of the best one for each block and column.

    The error of a block is that of what it adds to the output: D^T G D with the part of the Gram matrix
    that belongs to it.

    Args:
        weight: (K, N), finite.
        gram: Of the rows it multiplies.
        candidates: Grids of one scheme: of several methods, or of clipped weights.
    """
    from dataclasses import replace

    wide = np.asarray(weight, np.float64)
    size = candidates[0].scheme.rows_of_block(wide.shape[0])
    parts = _diagonal_blocks(gram.matrix, size)
    first = candidates[0]
    scales, zeros = first.scales.copy(), first.zero_points.copy()
    least = np.full(scales.shape, np.inf)
    for grid in candidates:
        blocks = _in_blocks(wide - grid.round(wide), size)
        found = np.sum((parts @ blocks) * blocks, axis=1)
        better = found < least
        least[better], scales[better] = found[better], grid.scales[better]
        zeros[better] = grid.zero_points[better]
    return replace(first, scales=scales, zero_points=zeros)


def scaled(gram: Gram, scale: NDArray[Any]) -> Gram:
    """Returns the Gram of rows that are divided by a scale for each column."""
    inverse = 1.0 / np.asarray(scale, np.float64)
    return Gram(
        gram.matrix * inverse[:, None] * inverse[None, :],
        gram.total * inverse,
        gram.magnitude * inverse,
        gram.count,
    )


def _in_blocks(matrix: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Returns (blocks, rows of a block, N); the last block is filled up with its last row."""
    missing = -matrix.shape[0] % size
    padded = np.pad(matrix, ((0, missing), (0, 0)), mode="edge") if missing else matrix
    return padded.reshape(-1, size, matrix.shape[1])


def _diagonal_blocks(matrix: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Returns the square parts on the diagonal; what lies outside is zero."""
    missing = -matrix.shape[0] % size
    padded = np.pad(matrix, (0, missing)) if missing else matrix
    count = padded.shape[0] // size
    split = padded.reshape(count, size, count, size)
    return split[np.arange(count), :, np.arange(count), :]
