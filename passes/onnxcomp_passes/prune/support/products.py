"""What units contribute to a product of rows with a matrix, seen from the Gram matrix of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxcomp.quant.gram import Gram

Array = np.ndarray[Any, Any]

_DAMPING = 1e-3
_TINY = np.finfo(np.float64).tiny
# Multiplications that one layer may take, and into how many rounds removals are divided at most.
_EFFORT, _ROUNDS = 1e11, 64


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
    common is lost with the second of them. Costs are shares of the output's variance, and never fall
    in the order of removal.

    Args:
        gram: Of the rows.
        weight: (K, N).
        rows: [units, n] rows of the weight that belong to each unit.
    """
    matrix, target = gram.centred, weight.astype(np.float64)
    size = len(matrix)
    damp = max(_DAMPING * float(np.trace(matrix)) / max(size, 1), 1e-30)
    matrix = matrix + damp * np.eye(size)
    wanted = matrix @ target
    energy = max(float((target * wanted).sum()), _TINY)
    costs = np.zeros(len(rows))
    left = np.arange(len(rows))
    alive = np.ones(size, bool)
    share = _share_of_a_round(size, len(rows))
    least = 0.0
    while left.size:
        found = _costs(matrix, wanted, alive, rows[left])
        gone = np.argsort(found, kind="stable")[: max(1, int(left.size * share))]
        for unit in gone:
            least = max(least, float(found[unit]))
            costs[left[unit]] = least
        alive[rows[left[gone]].reshape(-1)] = False
        left = np.delete(left, gone)
    return costs / energy


def _costs(matrix: Array, wanted: Array, alive: Array, rows: Array) -> Array:
    """What each unit costs now: W_S^T (H^-1_SS)^-1 W_S, with the weights W that are best without the others."""
    index = np.flatnonzero(alive)
    place = np.zeros(alive.size, np.int64)
    place[index] = np.arange(index.size)
    inverse = np.linalg.inv(matrix[np.ix_(index, index)])
    fitted = inverse @ wanted[index]
    own = place[rows]
    blocks = inverse[own[:, :, None], own[:, None, :]]
    lost = fitted[own]
    costs: Array = (lost * np.linalg.solve(blocks, lost)).sum(axis=(1, 2))
    return costs


def _share_of_a_round(size: int, units: int) -> float:
    """Which part of what is left goes at a time: the fewer, the better and the slower."""
    rounds = np.clip(_EFFORT / max(float(size) ** 3, 1.0), 8, _ROUNDS)
    # With a share s going each time, about log(units) / s rounds are made.
    return min(1.0, float(np.log(max(units, 2)) / rounds))
