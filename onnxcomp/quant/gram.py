"""The Gram matrix X^T X of the rows that a weight multiplies.

It is all that the error of a layer's output depends on: |X W - X W'|^2 = trace(D^T (X^T X) D) with
D = W - W'. GPTQ, AWQ, SparseGPT, bias correction and the reconstruction after pruning work on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(eq=False)
class Gram:
    """What is known of the rows X (N, K) that a weight multiplies.

    A weight in several parts (Conv with groups, MatMul with a stack of matrices) has a matrix for each.

    Attributes:
        matrix: X^T X as (K, K), or (groups, K, K).
        total: Sum of each column, as (K,) or (groups, K).
        magnitude: Sum of the magnitudes of each column.
        count: Rows seen (by each group).
        cross: X^T R where R are the rows of the same layer in a reference; None without reference.
        reference_total: Sum of each column of R.
    """

    matrix: NDArray[np.float64]
    total: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    count: int
    cross: NDArray[np.float64] | None = None
    reference_total: NDArray[np.float64] | None = None

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each column."""
        return self.total / max(self.count, 1)

    @property
    def centred(self) -> NDArray[np.float64]:
        """The matrix of the rows without their mean: what counts when a bias corrects the mean."""
        outer = self.total[..., :, None] * self.total[..., None, :]
        return self.matrix - outer / max(self.count, 1)

    def error(self, difference: NDArray[Any]) -> float:
        """Returns the sum of squares that a difference of weights (K, N) makes in the layer's output."""
        wide = difference.astype(np.float64)
        return float(np.sum((self.matrix @ wide) * wide))

    def __add__(self, other: Gram) -> Gram:
        """The Gram of the rows of both: of a weight that two layers read."""
        return Gram(
            self.matrix + other.matrix,
            self.total + other.total,
            self.magnitude + other.magnitude,
            self.count + other.count,
            _sum(self.cross, other.cross),
            _sum(self.reference_total, other.reference_total),
        )


def _sum(
    first: NDArray[np.float64] | None, second: NDArray[np.float64] | None
) -> NDArray[np.float64] | None:
    return None if first is None or second is None else first + second


def refit(gram: Gram, weight: NDArray[Any], *, ridge: float = 1e-4) -> NDArray[np.float64]:
    """Returns the weight of a changed layer whose output is nearest to the reference's.

    Args:
        gram: With `cross`.
        weight: The reference's weight, as `Layer.read` gives it.
        ridge: Added to the diagonal, as a share of its mean; more keeps the result near to zero.
    """
    if gram.cross is None:
        raise ValueError("a Gram without reference")
    size = gram.matrix.shape[-1]
    mean = np.trace(gram.matrix, axis1=-2, axis2=-1) / max(size, 1)
    damp = np.maximum(ridge * mean, np.finfo(np.float64).tiny)
    left = gram.matrix + damp[..., None, None] * np.eye(size)
    solved: NDArray[np.float64] = np.linalg.solve(left, gram.cross @ weight.astype(np.float64))
    return solved
