"""The rows that a weight multiplies, taken from the activation that its operator reads.

Conv, ConvTranspose, Gemm, MatMul and the input part of LSTM, GRU and RNN are all the product of rows with
a matrix; what differs is how rows come about. Windows follow the definitions of Conv and ConvTranspose in
the ONNX operator specification, `auto_pad` and `output_shape` included.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Numbers in one piece of rows, and the most rows whose products are added up in single precision.
_PIECE = 1 << 22
_MOST_ROWS = 4096


class Rows(ABC):
    """How an activation becomes rows. Equal objects make equal rows of equal activations."""

    @abstractmethod
    def pieces(self, array: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
        """Yields rows as (groups, rows, columns), a bounded number at a time.

        Args:
            array: The activation.
            limit: Rows of one sample. More are thinned out: always the same ones, whatever batch the
                sample came in.
        """


@dataclass(frozen=True)
class MatrixRows(Rows):
    """Rows along an axis of a matrix or a stack of them (Gemm, MatMul, LSTM).

    Attributes:
        axis: The axis that is summed over: -1, or -2 where the weight stands on the left.
        batch: The axis of samples.
        stack: Leading dimensions of the weight, when it is a stack of matrices.
    """

    axis: int = -1
    batch: int = 0
    stack: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """How many matrices the weight has."""
        return prod(self.stack)

    @override
    def pieces(self, array: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
        if array.ndim == 1:
            array = array[None, :]
        elif self.axis == -2:
            array = array.swapaxes(-1, -2)
        if self.groups != 1:
            yield from self._stacked(array, limit)
            return
        columns = array.shape[-1]
        if array.ndim > 2:
            array = np.moveaxis(array, self.batch, 0)
            array = array.reshape(array.shape[0], -1, columns)
            array = array[:, chosen(array.shape[1], limit)]
        array = array.reshape(-1, columns)
        step = _rows_of_piece(columns)
        for start in range(0, array.shape[0], step):
            yield array[None, start : start + step]

    def _stacked(self, array: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
        array = array[..., chosen(array.shape[-2], limit), :]
        batch = np.broadcast_shapes(array.shape[:-2], self.stack)
        array = np.broadcast_to(array, (*batch, *array.shape[-2:]))
        extra = len(batch) - len(self.stack)
        own = [extra + index for index, size in enumerate(self.stack) if size != 1]
        rest = [index for index in range(len(batch)) if index not in own]
        array = array.transpose(*own, *rest, len(batch), len(batch) + 1)
        sizes = [batch[index] for index in own]
        for place in np.ndindex(*(batch[index] for index in rest)):
            rows = array[(*(slice(None) for _ in own), *place)]
            step = _rows_of_piece(prod(sizes) * rows.shape[-1])
            for start in range(0, rows.shape[-2], step):
                some = rows[..., start : start + step, :]
                yield some.reshape(prod(sizes), *some.shape[-2:])


@dataclass(frozen=True)
class Window(Rows):
    """Rows of a Conv: what its kernel sees at each place of the output.

    Attributes:
        kernel: Size of the kernel in each spatial dimension.
        strides: Steps between windows.
        dilations: Steps inside of a window.
        pads: Zeros in front in each dimension, then zeros behind.
        auto_pad: How zeros are chosen when `pads` does not say so.
        groups: How many parts the channels have.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    groups: int = 1

    @override
    def pieces(self, array: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
        for item in array:
            padded = _padded(item, self._margins(item.shape[1:]))
            yield from self._windows(padded, self.strides, limit)

    def _reach(self) -> tuple[int, ...]:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def _margins(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        rank = len(self.kernel)
        if self.auto_pad == "NOTSET":
            return list(zip(self.pads[:rank], self.pads[rank:], strict=True))
        if self.auto_pad == "VALID":
            return [(0, 0)] * rank
        margins = []
        for size, stride, reach in zip(sizes, self.strides, self._reach(), strict=True):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            margins.append(_halves(total, upper=self.auto_pad == "SAME_UPPER"))
        return margins

    def _windows(
        self, padded: NDArray[Any], strides: tuple[int, ...], limit: int
    ) -> Iterator[NDArray[Any]]:
        rank, reach = len(self.kernel), self._reach()
        places = tuple(
            (size - r) // s + 1 for size, r, s in zip(padded.shape[1:], reach, strides, strict=True)
        )
        if min(places, default=1) < 1:
            return
        views: Any = sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
        views = views[(..., *(slice(None, None, step) for step in self.dilations))]
        picked = chosen(prod(places), limit)
        step = _rows_of_piece(padded.shape[0] * prod(self.kernel))
        for start in range(0, picked.size, step):
            spots = np.unravel_index(picked[start : start + step], places)
            index = tuple(spot * s for spot, s in zip(spots, strides, strict=True))
            yield self._grouped(views[(slice(None), *index)])

    def _grouped(self, found: NDArray[Any]) -> NDArray[Any]:
        """Turns (channels, rows, kernel) into (groups, rows, channels of the group and kernel)."""
        channels, rows = found.shape[:2]
        found = found.reshape(self.groups, channels // self.groups, rows, prod(self.kernel))
        return found.transpose(0, 2, 1, 3).reshape(self.groups, rows, -1)


@dataclass(frozen=True)
class SpreadWindow(Window):
    """Rows of a ConvTranspose: windows over the input with zeros between its values.

    Attributes:
        output_padding: Places added at the end.
        output_shape: Size of the output, where that decides about the padding.
    """

    output_padding: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()

    @override
    def pieces(self, array: NDArray[Any], limit: int) -> Iterator[NDArray[Any]]:
        rank = len(self.kernel)
        for item in array:
            sizes = [(n - 1) * s + 1 for n, s in zip(item.shape[1:], self.strides, strict=True)]
            spread = np.zeros((item.shape[0], *sizes), item.dtype)
            spread[(slice(None), *(slice(None, None, s) for s in self.strides))] = item
            margins = [
                (reach - 1 - front, reach - 1 - behind + extra)
                for reach, (front, behind), extra in zip(
                    self._reach(),
                    self._margins(item.shape[1:]),
                    self.output_padding or (0,) * rank,
                    strict=True,
                )
            ]
            yield from self._windows(_padded(spread, margins), (1,) * rank, limit)

    @override
    def _margins(self, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
        rank = len(self.kernel)
        wanted = self.output_shape
        if not wanted and self.auto_pad in {"NOTSET", "VALID"}:
            return super()._margins(sizes)
        wanted = wanted or tuple(n * s for n, s in zip(sizes, self.strides, strict=True))
        margins = []
        for index, reach in enumerate(self._reach()):
            extra = self.output_padding[index] if self.output_padding else 0
            full = self.strides[index] * (sizes[index] - 1) + extra + reach
            margins.append(
                _halves(full - wanted[index - rank], upper=self.auto_pad == "SAME_UPPER")
            )
        return margins

    @override
    def _grouped(self, found: NDArray[Any]) -> NDArray[Any]:
        axes = tuple(range(2, found.ndim))
        return super()._grouped(np.flip(found, axes))


@lru_cache(maxsize=64)
def chosen(total: int, limit: int) -> NDArray[np.intp]:
    """Returns which of `total` rows are looked at when there are more than `limit`."""
    if total <= limit:
        return np.arange(total)
    # Not every nth: that may always meet the same columns of an image.
    picked = np.random.default_rng(total).choice(total, limit, replace=False)
    picked.sort()
    return picked


def _halves(total: int, *, upper: bool) -> tuple[int, int]:
    small = total // 2
    return (small, total - small) if upper else (total - small, small)


def _padded(item: NDArray[Any], margins: list[tuple[int, int]]) -> NDArray[Any]:
    """Adds zeros to the spatial dimensions of one sample; negative numbers cut off."""
    crop = tuple(
        slice(max(-front, 0), size + min(behind, 0))
        for size, (front, behind) in zip(item.shape[1:], margins, strict=True)
    )
    room = [(0, 0), *((max(front, 0), max(behind, 0)) for front, behind in margins)]
    cut = item[(slice(None), *crop)]
    return np.pad(cut, room) if any(any(pair) for pair in room) else cut


def _rows_of_piece(columns: int) -> int:
    return int(np.clip(_PIECE // max(columns, 1), 1, _MOST_ROWS))
