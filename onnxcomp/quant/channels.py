"""Means of channels, and some of the vectors along them, of an activation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import SamplesError, quoted

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Items that means are taken over, and positions of each of them.
MEAN_ITEMS, POSITIONS = 32, 1024
# Vectors that are kept of an item.
_KEPT = 8
# The golden section: its multiples spread evenly over the unit interval.
_TURN = (5.0**0.5 - 1.0) / 2.0


def as_positions(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """Views a tensor as items by positions by channels.

    Args:
        array: The tensor.
        axis: Axis of the channels. Along axis 0 there is but one item.
    """
    if axis == 0:
        return np.moveaxis(array, 0, -1).reshape(1, -1, array.shape[0])
    if axis == 1:
        return array.reshape(array.shape[0], array.shape[1], -1).swapaxes(1, 2)
    return array.reshape(array.shape[0] if array.ndim > 1 else 1, -1, array.shape[-1])


def coprime_step(size: int, enough: int) -> int:
    """Returns a step that leaves no more than enough, and meets every column of whatever is in rows."""
    step = max(-(-size // enough), 1)
    while step > 1 and math.gcd(step, size) > 1:
        step += 1
    return step


class Channels:
    """What is known of the channels of an activation: their means, and some vectors along them.

    Both come from the first items along axis 0, so that they do not depend on how samples are batched.

    Attributes:
        axis: Axis of the channels, 1 or -1.
        size: How many channels there are.
        wanted: How many vectors to keep.
        count: Values that each mean is taken over.
        items: Items that were looked at.
    """

    def __init__(self, axis: int, size: int, wanted: int = 0) -> None:
        self.axis = axis
        self.size = size
        self.wanted = wanted
        self.count = 0
        self.items = 0
        self._total = np.zeros(size, np.float64)
        self._kept: list[NDArray[np.float32]] = []
        self._missing = wanted

    def add(self, array: NDArray[Any], name: str = "") -> None:
        """Takes in a tensor.

        Raises:
            SamplesError: If its number of channels is another one.
        """
        if self._missing <= 0 and self.items >= MEAN_ITEMS:
            return
        if array.ndim <= max(self.axis, 0) or array.shape[self.axis] != self.size:
            raise SamplesError(f"the tensor {quoted(name)} changes its channels")
        if array.size == 0:
            return
        items = as_positions(array, self.axis)
        room = max(MEAN_ITEMS - self.items, -(-self._missing // min(_KEPT, items.shape[1])), 0)
        for item in items[:room]:
            self._mean(item)
            self._keep(item)
            self.items += 1

    def _mean(self, item: NDArray[Any]) -> None:
        if self.items < MEAN_ITEMS:
            some = item[:: coprime_step(len(item), POSITIONS)]
            self._total += some.sum(axis=0)
            self.count += len(some)

    def _keep(self, item: NDArray[Any]) -> None:
        if self._missing > 0:
            number = min(_KEPT, len(item), self._missing)
            # Other positions in each item: some, as the first of a text, are like no others.
            start = int(self.items * _TURN % 1.0 * len(item))
            places = (np.arange(number) * len(item) + start) // number
            self._kept.append(np.ascontiguousarray(item[places]))
            self._missing -= number

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each channel."""
        return self._total / max(self.count, 1)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors that were kept, as rows."""
        if len(self._kept) > 1:
            self._kept = [np.concatenate(self._kept)]
        return self._kept[0] if self._kept else np.zeros((0, self.size), np.float32)

    def state(self) -> dict[str, NDArray[Any]]:
        """Returns everything as arrays, which `from_state` reads."""
        head = np.array([self.axis, self.size, self.wanted, self.count, self.items], np.int64)
        return {"head": head, "total": self._total, "vectors": self.vectors}

    def check(self, state: dict[str, NDArray[Any]]) -> None:
        """Refuses what `state` cannot have given for the same axis, size and number of vectors.

        Raises:
            ValueError: If it does not fit.
        """
        head, total, vectors = (state[name] for name in ("head", "total", "vectors"))
        fits = bool(head.shape == (5,) and head.dtype == np.int64)
        fits = fits and head[:3].tolist() == [self.axis, self.size, self.wanted]
        fits = fits and bool((head[3:] >= 0).all())
        fits = fits and total.shape == (self.size,) and total.dtype == np.float64
        fits = fits and vectors.dtype == np.float32 and vectors.shape[1:] == (self.size,)
        fits = fits and len(vectors) <= self.wanted
        if not (fits and np.isfinite(total).all() and np.isfinite(vectors).all()):
            raise ValueError("not the state of channels")

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Takes over what `state` gave, which must have been checked."""
        head, total, vectors = (state[name] for name in ("head", "total", "vectors"))
        self.count, self.items = int(head[3]), int(head[4])
        self._total, self._kept = total, [vectors]
        self._missing = self.wanted - len(vectors)
