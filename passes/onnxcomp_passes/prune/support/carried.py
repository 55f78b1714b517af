"""What channels carry on samples: a few sums for each position of an axis."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onnxcomp.ir import Model, ir
    from onnxcomp.passbase import Context

    Axis = tuple[ir.Value, int]

Array = np.ndarray[Any, Any]

MEMORY_LIMIT = 1 << 30


@dataclass(eq=False)
class Moments:
    """Sums over everything but one axis of a value, over samples.

    Attributes:
        count: How many numbers each position has had.
        total: Their sum.
        magnitude: Sum of magnitudes.
        squares: Sum of squares.
        zeros: How many were 0.
        peak: The largest magnitude.
    """

    count: int
    total: Array
    magnitude: Array
    squares: Array
    zeros: Array
    peak: Array

    @classmethod
    def of(cls, values: Array, axis: int) -> Moments:
        """Returns the sums of one array."""
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        if rows.dtype != np.float64:
            rows = rows.astype(np.float32, copy=False)
        sizes = np.abs(rows)
        return cls(
            rows.shape[1],
            rows.sum(axis=1, dtype=np.float64),
            sizes.sum(axis=1, dtype=np.float64),
            np.einsum("ij,ij->i", rows, rows).astype(np.float64),
            (rows.shape[1] - np.count_nonzero(rows, axis=1)).astype(np.float64),
            sizes.max(axis=1, initial=0.0).astype(np.float64),
        )

    def __add__(self, other: Moments) -> Moments:
        """The sums of both."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.magnitude + other.magnitude,
            self.squares + other.squares,
            self.zeros + other.zeros,
            np.maximum(self.peak, other.peak),
        )

    @property
    def is_finite(self) -> bool:
        """Whether there was neither NaN nor infinity, nor numbers whose squares are."""
        return bool(np.isfinite(self.squares).all())

    @property
    def power(self) -> Array:
        """Mean square."""
        return self.squares / max(self.count, 1)

    @property
    def variance(self) -> Array:
        """Mean square of the distance from the mean."""
        spread: Array = np.maximum(self.power - (self.total / max(self.count, 1)) ** 2, 0.0)
        return spread


def collect_moments(
    ctx: Context, axes: Iterable[Axis], samples: Sequence[Any]
) -> dict[Axis, Moments]:
    """Runs a model on samples and sums up what values carry along axes.

    Values of bodies of control flow, sequences, and values that are empty in every sample are left out.

    Args:
        ctx: The pass.
        axes: Values and the axes along which positions are told apart.
        samples: Feeds.
    """
    wanted = [axis for axis in dict.fromkeys(axes) if _is_seen(ctx.model, axis[0])]
    found: dict[Axis, Moments] = {}
    chunks = list(_chunks(wanted))
    with ctx.progress(len(chunks) * len(samples), "looking at what channels carry") as task:
        for chunk in chunks:
            names = list(dict.fromkeys(value.name or "" for value, _ in chunk))
            inputs = {value.name for value in ctx.model.graph.inputs}
            made = [name for name in names if name not in inputs]
            with Session.open(ctx.model, threads=ctx.threads, outputs=made) as session:
                for feed in samples:
                    values = {**feed, **(session.run(feed, made) if made else {})}
                    for axis in chunk:
                        _add(found, axis, values.get(axis[0].name or ""))
                    task.advance()
    return found


def _add(found: dict[Axis, Moments], axis: Axis, values: object) -> None:
    if not isinstance(values, np.ndarray) or not values.size or values.ndim <= axis[1]:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        new = Moments.of(values, axis[1])
        before = found.get(axis)
        if before is None:
            found[axis] = new
        elif before.total.size == new.total.size:
            found[axis] = before + new


def _is_seen(model: Model, value: ir.Value) -> bool:
    maker = value.producer()
    if maker is None:
        return bool(value.name) and value in model.graph.inputs
    return bool(value.name) and maker.graph is model.graph


def _chunks(axes: Sequence[Axis]) -> Iterator[list[Axis]]:
    """Splits values so that those of one chunk fit into memory, as far as sizes are declared."""
    chunk: list[Axis] = []
    room = MEMORY_LIMIT
    for axis in axes:
        dims = [dim for dim in axis[0].shape or () if isinstance(dim, int)]
        need = 4 * prod(dims)
        if chunk and need > room:
            yield chunk
            chunk, room = [], MEMORY_LIMIT
        chunk.append(axis)
        room -= need
    if chunk:
        yield chunk
