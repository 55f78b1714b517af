"""Which units go when a share of them has to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import Group

Array = np.ndarray[Any, Any]
Spread = Literal["uniform", "global", "efficient"]

# Prices that are this far below the mean are not known well enough to divide by.
_CHEAP = 1e-3


@dataclass(frozen=True)
class Candidate:
    """A group that may lose units.

    Attributes:
        group: The group.
        scores: [units] How much each unit matters, 1 on average.
        least: How many units must stay.
        multiple: What is left is a multiple of this, where the group had one or more.
        saving: What goes with one unit, of what there should be less of: a share of all there is.
    """

    group: Group
    scores: Array
    least: int
    multiple: int = 1
    saving: float = 1.0


def least_units(units: int, keep: float, multiple: int) -> int:
    """Returns how many units a group keeps at least: a share, rounded up to a multiple."""
    wanted = max(1, int(np.ceil(units * keep)))
    return min(units, -(-wanted // multiple) * multiple)


def counts(candidates: Sequence[Candidate], share: float, spread: Spread) -> list[int]:
    """Returns how many units of each candidate go.

    Args:
        candidates: Groups with scores.
        share: Share of all units that goes, 0 to 1, before rounding.
        spread: `uniform` takes the same share of each group, `global` what matters least anywhere,
            `efficient` what matters least for what it saves.
    """
    if spread == "uniform" or not candidates:
        wanted = [int(each.group.units * share) for each in candidates]
    else:
        scores = [each.scores for each in candidates]
        if spread == "efficient":
            savings = np.asarray([each.saving for each in candidates])
            savings = np.maximum(savings, max(_CHEAP * float(savings.mean()), 1e-30))
            scores = [each / saving for each, saving in zip(scores, savings, strict=True)]
        everything = np.sort(np.concatenate(scores))
        limit = everything[min(int(len(everything) * share), len(everything) - 1)]
        wanted = [int((each < limit).sum()) for each in scores]
    return [_rounded(each, count) for each, count in zip(candidates, wanted, strict=True)]


def lowest(candidate: Candidate, count: int) -> Array:
    """Returns which units go when so many do."""
    dead = np.zeros(candidate.group.units, bool)
    dead[np.argsort(candidate.scores, kind="stable")[:count]] = True
    return dead


def given_back(candidate: Candidate, count: int) -> tuple[int, float]:
    """Returns how many units go when the least number comes back, and what those matter for their price."""
    units = candidate.group.units
    stay = units - count + 1
    if units >= candidate.multiple:
        stay = min(units, -(-stay // candidate.multiple) * candidate.multiple)
    order = np.sort(candidate.scores)[units - stay : count]
    return units - stay, float(order.mean()) / max(candidate.saving, 1e-30)


def _rounded(candidate: Candidate, count: int) -> int:
    """How many units go, so that what stays is a multiple and no less than must stay."""
    units, multiple = candidate.group.units, candidate.multiple
    left = max(units - count, candidate.least)
    if units >= multiple:
        left = min(units, -(-left // multiple) * multiple)
    return units - left
