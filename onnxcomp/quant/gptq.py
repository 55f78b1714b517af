"""Rounding and pruning of a weight with error feedback: what one row loses, the rows after it make up for.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) and SparseGPT (Frantar and Alistarh 2023, arXiv 2301.00774).
Both minimise |X W - X W'|^2 = |R^T (W - W')|^2 with X^T X = R R^T and R upper triangular. Row i of the
right side holds errors of rows up to i alone, so rows are settled one after another, each at the value
that best makes up for those before (Babai's nearest plane; no inverse of the whole matrix is needed).

The inputs come from elsewhere: `grams.collect_grams` gives the Gram matrix, `Layer.read` the weight as
(K, N), `blocks.block_params` a grid.

    for layer, gram in collect_grams(model, layers, samples):
        grid = block_params(layer.read(), scheme, "mse", importance=np.diagonal(gram.matrix))
        numbers = grid.quantize(gptq(layer.read(), gram.matrix, grid.round_row))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.blocks import BlockGrid, BlockScheme, Method

Order = Literal["activation", "natural"]
RoundRow = Callable[["NDArray[np.float64]", int], "NDArray[Any]"]
"""Takes the values (N,) of one row and its index; returns the nearest values of the grid."""

# More than the 0.01 of the paper: with few samples per row, errors are passed on to what only looks related.
DAMPING = 0.05
# Rows settled one by one before their errors are passed on to all others at once.
_BLOCK = 128
# Each with ten times the damping of the one before.
_ATTEMPTS = 16


@dataclass(frozen=True, eq=False)
class _Factor:
    """R of X^T X = R R^T, with the order in which rows are settled."""

    upper: NDArray[np.float64]
    order: NDArray[np.intp]


def gptq(
    weight: NDArray[Any],
    gram: NDArray[Any],
    quantize_column: RoundRow,
    *,
    damping: float = DAMPING,
    order: Order = "activation",
) -> NDArray[np.float32]:
    """Returns a weight on a grid whose layer's output is near to that of the weight itself.

    Rows (of what the paper calls W^T: they multiply one input each) are rounded one after another by a
    grid that is known beforehand. What was never seen active is rounded to nearest.

    Args:
        weight: (K, N), finite.
        gram: X^T X, (K, K). `Gram.centred` is the better one where the bias is corrected afterwards.
        quantize_column: Rounds a row; `BlockGrid.round_row`, or `per_column(scale, zero, low, high)`.
        damping: Added to the diagonal, as a share of its mean.
        order: `activation` settles rows with large inputs first, when there are still many to make up
            for their error. Blocks of rows keep their grid, so that nothing has to be permuted when the
            model runs ("static groups").
    """
    wide = np.asarray(weight, np.float64)
    factor = _factored(gram, damping, order)
    settled = wide[factor.order].copy()

    def settle(block: _Block) -> None:
        for index in range(block.stop - block.start):
            row = int(factor.order[block.start + index])
            block.fix(index, quantize_column(block.values[index], row))

    _sweep(settled, factor.upper, settle)
    return _in_place(settled, factor.order)


def gptq_grid(
    weight: NDArray[Any],
    gram: NDArray[Any],
    scheme: BlockScheme,
    *,
    method: Method = "mse",
    damping: float = DAMPING,
    scale_dtype: Any = np.float32,  # noqa: ANN401 - a numpy type
) -> tuple[BlockGrid, NDArray[np.float32]]:
    """Chooses the grid of each block of rows when its first row is reached, and rounds by it.

    The grid is that of the values as they are then, with the errors of earlier blocks in them. Rows are
    settled in their natural order. (With a grid known beforehand, `gptq` may go by activation.)

    Args:
        weight: (K, N), finite.
        gram: X^T X, (K, K).
        scheme: How the weight is stored.
        method: How the grid of a block is chosen.
        damping: Added to the diagonal, as a share of its mean.
        scale_dtype: Type that scales are stored in.

    Returns:
        The grid, and the values on it (K, N).
    """
    from onnxcomp.quant.blocks import BlockGrid, block_params

    wide = np.asarray(weight, np.float64)
    factor = _factored(gram, damping, "natural")
    size = scheme.rows_of_block(wide.shape[0])
    importance = np.diagonal(gram)
    grids: list[BlockGrid] = []

    def settle(block: _Block) -> None:
        # A block of a sweep is a block of the grid: the values in front are final when it starts.
        share = importance[block.start : block.stop]
        grid = block_params(block.values, scheme, method, importance=share, scale_dtype=scale_dtype)
        grids.append(grid)
        for index in range(block.stop - block.start):
            block.fix(index, grid.round_row(block.values[index], index))

    settled = wide.copy()
    _sweep(settled, factor.upper, settle, size=size)
    grid = BlockGrid(
        scheme,
        wide.shape[0],
        np.concatenate([found.scales for found in grids]),
        np.concatenate([found.zero_points for found in grids]),
    )
    return grid, settled.astype(np.float32)


def sparsegpt(
    weight: NDArray[Any],
    gram: NDArray[Any],
    sparsity: float | tuple[int, int],
    *,
    damping: float = DAMPING,
    tile: tuple[int, int] = (1, 1),
    quantize_column: RoundRow | None = None,
) -> NDArray[np.float32]:
    """Returns a weight with zeros, its other numbers changed to make up for what is gone.

    Args:
        weight: (K, N), finite.
        gram: X^T X, (K, K).
        sparsity: Share of zeros; or (n, m): no more than n of m consecutive numbers of a column stay
            (of each output's weights), as in 2:4.
        damping: Added to the diagonal, as a share of its mean.
        tile: Rows and columns whose numbers become zero together; (K, N) must divide into them.
        quantize_column: Rounds what stays of a row at the same time; it must keep zeros.
    """
    wide = np.asarray(weight, np.float64)
    factor = _factored(gram, damping, "natural")
    every = sparsity[1] if isinstance(sparsity, tuple) else tile[0]
    size = max(_BLOCK // every, 1) * every
    if not isinstance(sparsity, tuple):
        every = size

    def settle(block: _Block) -> None:
        keep = np.ones(block.values.shape, np.bool_)
        for index in range(block.stop - block.start):
            if index % every == 0:
                part = slice(index, min(index + every, len(keep)))
                keep[part] = _kept(block.cost(part), sparsity, tile)
            row = block.values[index]
            if quantize_column is not None:
                row = quantize_column(row, block.start + index)
            block.fix(index, np.where(keep[index], row, 0.0))

    settled = wide.copy()
    _sweep(settled, factor.upper, settle, size=size)
    return settled.astype(np.float32)


def per_column(
    scale: NDArray[Any], zero_point: NDArray[Any] | int, low: int, high: int
) -> RoundRow:
    """Returns the rounding to a grid with one scale (and zero point) for each column.

    Args:
        scale: (N,) or one number, positive.
        zero_point: (N,) or one number.
        low: Smallest number of the type.
        high: Largest number of the type.
    """
    steps, zero = np.asarray(scale, np.float64), np.asarray(zero_point, np.float64)

    def rounded(values: NDArray[np.float64], row: int) -> NDArray[np.float64]:
        del row
        numbers = np.clip(np.rint(values / steps) + zero, low, high)
        found: NDArray[np.float64] = (numbers - zero) * steps
        return found

    return rounded


class _Block:
    """Rows that are being settled.

    Attributes:
        start: Place of the first row.
        stop: Place behind the last row.
        values: The rows: final up to the last one fixed, the best there is to do from there on.
    """

    def __init__(self, start: int, values: NDArray[np.float64], upper: NDArray[np.float64]) -> None:
        self.start, self.stop = start, start + values.shape[0]
        self.values = values
        self._inverse = np.linalg.inv(upper)

    def fix(self, index: int, row: NDArray[Any]) -> None:
        """Settles a row; the rows behind it in this block make up for the error."""
        error = (self.values[index] - row) / self._inverse[index, index]
        self.values[index] = row
        rest = slice(index + 1, None)
        self.values[rest] -= self._inverse[index, rest, None] * error

    def cost(self, part: slice) -> NDArray[np.float64]:
        """Returns what it adds to the error of the output to set each number to zero."""
        own = np.diagonal(self._inverse)[part, None]
        found: NDArray[np.float64] = np.square(self.values[part] / own)
        return found


def _sweep(
    settled: NDArray[np.float64],
    upper: NDArray[np.float64],
    settle: Callable[[_Block], None],
    size: int = _BLOCK,
) -> None:
    """Settles blocks of rows in order, in place; each block first makes up for those before it."""
    rows = settled.shape[0]
    error = np.zeros_like(settled)
    for start in range(0, rows, size):
        part = slice(start, min(start + size, rows))
        before = settled[part].copy()
        block = _Block(start, settled[part], upper[part, part])
        if start:
            owed = upper[:start, part].T @ error[:start]
            block.values += block._inverse.T @ owed
        settle(block)
        error[part] = before - block.values


def _factored(gram: NDArray[Any], damping: float, order: Order) -> _Factor:
    """Returns the triangular factor of a damped Gram matrix with its rows in order."""
    matrix = np.array(gram, np.float64)
    power = np.diagonal(matrix).copy()
    if order == "activation":
        places = np.argsort(-power, kind="stable")
        matrix = matrix[np.ix_(places, places)]
    else:
        places = np.arange(power.size)
    mean = float(power.mean()) if power.size else 0.0
    if not (np.isfinite(mean) and mean > 0.0):
        return _Factor(np.eye(power.size), places)
    diagonal = np.einsum("ii->i", matrix)
    for power_of_ten in range(_ATTEMPTS):
        diagonal += max(damping, 1e-12) * 10.0**power_of_ten * mean
        try:
            lower = np.linalg.cholesky(matrix[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        return _Factor(np.ascontiguousarray(lower[::-1, ::-1]), places)
    return _Factor(np.eye(power.size), places)


def _in_place(settled: NDArray[np.float64], order: NDArray[np.intp]) -> NDArray[np.float32]:
    found = np.empty(settled.shape, np.float32)
    found[order] = settled
    return found


def _kept(
    cost: NDArray[np.float64], sparsity: float | tuple[int, int], tile: tuple[int, int]
) -> NDArray[np.bool_]:
    """Returns which numbers stay: those whose loss would cost most."""
    if isinstance(sparsity, tuple):
        # The last numbers of a column may be fewer than m.
        gone = max(cost.shape[0] - sparsity[0], 0)
        rank = np.argsort(np.argsort(cost, axis=0, kind="stable"), axis=0, kind="stable")
        few: NDArray[np.bool_] = rank >= gone
        return few
    rows, columns = tile
    if tile != (1, 1):
        cost = cost.reshape(-1, rows, cost.shape[1] // columns, columns).sum(axis=(1, 3))
    gone = round(sparsity * cost.size)
    keep = np.ones(cost.size, np.bool_)
    if gone:
        keep[np.argpartition(cost, gone - 1, axis=None)[:gone]] = False
    return keep.reshape(cost.shape).repeat(rows, axis=0).repeat(columns, axis=1)
