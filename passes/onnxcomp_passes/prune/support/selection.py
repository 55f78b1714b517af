"""Which units go when a share of them has to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import Group

Array = np.ndarray[Any, Any]
Spread = Literal["uniform", "global"]


@dataclass(frozen=True)
class Candidate:
    """A group that may lose units.

    Attributes:
        group: The group.
        scores: [units] How much each unit matters, 1 on average.
        least: How many units must stay.
        multiple: What is left is a multiple of this, where the group had one or more.
    """

    group: Group
    scores: Array
    least: int
    multiple: int = 1


def least_units(units: int, keep: float, multiple: int) -> int:
    """Returns how many units a group keeps at least: a share, rounded up to a multiple."""
    wanted = max(1, int(np.ceil(units * keep)))
    return min(units, -(-wanted // multiple) * multiple)


def select(candidates: Sequence[Candidate], share: float, spread: Spread) -> list[Array]:
    """Returns for each candidate which units go.

    Args:
        candidates: Groups with scores.
        share: Share of all units that goes, 0 to 1, before rounding.
        spread: `uniform` takes the same share of each group, `global` what matters least anywhere.
    """
    if spread == "global" and candidates:
        everything = np.sort(np.concatenate([candidate.scores for candidate in candidates]))
        index = min(int(len(everything) * share), len(everything) - 1)
        wanted = [int((c.scores < everything[index]).sum()) for c in candidates]
    else:
        wanted = [int(c.group.units * share) for c in candidates]
    return [
        _lowest(candidate, _rounded(candidate, count))
        for candidate, count in zip(candidates, wanted, strict=True)
    ]


def _rounded(candidate: Candidate, count: int) -> int:
    """How many units go, so that what stays is a multiple and no less than must stay."""
    units, multiple = candidate.group.units, candidate.multiple
    left = max(units - count, candidate.least)
    if units >= multiple:
        left = min(units, -(-left // multiple) * multiple)
    return units - left


def _lowest(candidate: Candidate, count: int) -> Array:
    dead = np.zeros(candidate.group.units, bool)
    dead[np.argsort(candidate.scores, kind="stable")[:count]] = True
    return dead
