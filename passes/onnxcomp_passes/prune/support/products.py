"""What units contribute to a product of rows with a matrix, seen from the Gram matrix of the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxcomp.quant.gram import Gram

Array = np.ndarray[Any, Any]

_DAMPING = 1e-3
_TINY = np.finfo(np.float64).tiny
# The share of the units that are left that goes at a time, the costs of the others being what they were.
_SHARE = 1 / 16


def shares_of_energy(gram: Gram, weight: Array, rows: Array) -> Array:
    """Returns the first-order change of the energy of a layer's output as units are faded out.

    Y = sum of Y_s over units, and the derivative of |Y|^2 / 2 by a factor before Y_s is <Y_s, Y>. Magnitudes
    of these, over |Y|^2; without magnitudes they would add up to 1.

    Args:
        gram: Of the rows.
        weight: (K, N).
        rows: [units, n] rows of the weight that belong to each unit.
    """
    wide = weight.astype(np.float64)
    each = (wide * (gram.matrix @ wide)).sum(axis=1)
    shares: Array = np.abs(each[rows].sum(axis=1)) / max(float(each.sum()), _TINY)
    return shares


def removal_costs(gram: Gram, weight: Array, rows: Array) -> Array:
    """Returns what a layer's output loses as units go one after the other, the cheapest first.

    Those that are left make up for each as well as they can, a bias included: what two units have in
    common is lost with the second of them. Costs are shares of the power of the products that the layer
    sums up, taken one by one, and never fall in the order of removal.

    Args:
        gram: Of the rows.
        weight: (K, N).
        rows: [units, n] rows of the weight that belong to each unit.
    """
    target = weight.astype(np.float64)
    energy = float(np.diagonal(gram.matrix) @ (target**2).sum(axis=1))
    if not energy > 0:
        return np.zeros(len(rows))
    rest = _Rest(np.linalg.inv(shrunk(gram.centred, gram.count)), target, rows)
    costs = np.zeros(len(rows))
    left = np.arange(len(rows))
    least = 0.0
    while left.size:
        found = rest.costs()
        gone = np.argsort(found, kind="stable")[: max(1, int(left.size * _SHARE))]
        costs[left[gone]] = np.maximum(found[gone], least)
        least = float(costs[left[gone]].max())
        rest.remove(gone)
        left = np.delete(left, gone)
    return costs / energy


@dataclass(eq=False)
class _Rest:
    """What is left of a layer: the inverse of its Gram matrix, and the weights that are best now.

    Attributes:
        inverse: (K, K).
        weight: (K, N).
        rows: [units, n] rows of each unit that is left.
    """

    inverse: Array
    weight: Array
    rows: Array

    def costs(self) -> Array:
        """What each unit costs now: W_S^T (H^-1_SS)^-1 W_S."""
        blocks = self.inverse[self.rows[:, :, None], self.rows[:, None, :]]
        lost = self.weight[self.rows]
        costs: Array = (lost * np.linalg.solve(blocks, lost)).sum(axis=(1, 2))
        return np.maximum(costs, 0.0)

    def remove(self, units: Array) -> None:
        """Takes units out; the weights of the others make up for them."""
        gone = self.rows[units].reshape(-1)
        stay = np.ones(len(self.inverse), bool)
        stay[gone] = False
        beside = self.inverse[np.ix_(stay, gone)]
        step = np.linalg.solve(self.inverse[np.ix_(gone, gone)], beside.T).T
        self.weight = self.weight[stay] - step @ self.weight[gone]
        self.inverse = self.inverse[np.ix_(stay, stay)] - step @ beside.T
        place = np.cumsum(stay) - 1
        self.rows = place[np.delete(self.rows, units, axis=0)]


def shrunk(centred: Array, count: int) -> Array:
    """Returns a Gram matrix in which few rows make no accidental likeness: shrunk towards its diagonal.

    How far follows from how much the entries of the matrix of `count` rows vary by chance, as if rows were
    normal (Ledoit and Wolf, "A well-conditioned estimator", 2004; the target is that of Schaefer and
    Strimmer, 2005).

    Args:
        centred: (K, K) X^T X of rows without their mean.
        count: How many rows.
    """
    diagonal = np.diagonal(centred)
    beside = float((centred**2).sum() - (diagonal**2).sum())
    chance = (float(diagonal.sum()) ** 2 + float((centred**2).sum())) / max(count, 1)
    share = min(1.0, chance / max(beside, _TINY))
    damp = _DAMPING * float(diagonal.mean()) if len(diagonal) else 0.0
    made: Array = centred * (1 - share)
    np.fill_diagonal(made, diagonal + max(damp, 1e-30))
    return made
