"""What matters least anywhere goes first, and every group keeps some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

Array = np.ndarray[Any, Any]


class Ranking:
    """An order in which units of groups go.

    Args:
        scores: For groups what each unit costs.
        keep: For groups how many units stay at least.
        level: Whether groups take turns, so that each loses the same share, instead of the least anywhere.
    """

    def __init__(
        self, scores: Mapping[int, Array], keep: Mapping[int, int], *, level: bool = False
    ) -> None:
        self._units = {index: len(found) for index, found in scores.items()}
        order: list[tuple[float, int, int]] = []
        for index, found in scores.items():
            going = np.argsort(found, kind="stable")[: max(len(found) - keep[index], 0)]
            for place, unit in enumerate(going.tolist()):
                cost = (place + 1) / len(found) if level else float(found[unit])
                order.append((cost, index, unit))
        self._order = sorted(order, key=lambda entry: entry[0])

    @property
    def total(self) -> int:
        """How many units there are, also those that stay."""
        return sum(self._units.values())

    def __len__(self) -> int:
        """Returns how many units may go."""
        return len(self._order)

    def first(self, count: int) -> dict[int, Array]:
        """Returns for each group which units are among the first of all."""
        gone = {index: np.zeros(units, bool) for index, units in self._units.items()}
        for _, index, unit in self._order[:count]:
            gone[index][unit] = True
        return gone

    def share(self, share: float) -> dict[int, Array]:
        """Returns for each group which units go when a share of all has to."""
        return self.first(round(share * self.total))
