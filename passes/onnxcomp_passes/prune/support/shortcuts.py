"""Cheap stand-ins for what was left out: a factor and an offset for each channel, or one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model

    Array = NDArray[np.float64]
    _Part = tuple[NDArray[Any], tuple[int, ...], np.dtype[Any]]

# Rows of all samples together.
_ROWS = 4096
_HELD_OUT = 4
# Shares of the mean square of the inputs, small ones first.
_RIDGES = (1e-6, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True, eq=False)
class Observed:
    """What a value held on samples, at some places.

    Attributes:
        rows: (places, channels).
        owners: The sample of each place.
        shapes: Its shape on each sample.
        dtype: Its type.
    """

    rows: NDArray[np.float32]
    owners: NDArray[np.int64]
    shapes: tuple[tuple[int, ...], ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True, eq=False)
class Shortcut:
    """A map from what a block reads to about what it gives.

    Attributes:
        weight: (channels,) factors, or (channels, channels).
        bias: (channels,).
    """

    weight: Array
    bias: Array

    @property
    def is_full(self) -> bool:
        """Whether channels are mixed."""
        return self.weight.ndim == 2

    def __call__(self, rows: NDArray[Any]) -> Array:
        """Applies it to (rows, channels)."""
        made: Array = (rows @ self.weight if self.is_full else rows * self.weight) + self.bias
        return made

    def build(
        self, edit: Edit, source: ir.Value, like: ir.Value, wanted: Observed, axis: int
    ) -> ir.Value:
        """Adds nodes that compute it behind the node that made a value; returns what they make.

        Args:
            edit: The way to change the model.
            source: What to apply it to.
            like: The value that the result replaces.
            wanted: What that value held.
            axis: The axis of channels: 1, or -1 for the last.
        """
        place = like.producer()
        if place is None or place.graph is None:
            raise ValueError("what is replaced is made by no node")
        behind = len(wanted.shapes[0]) - 2 if axis == 1 else 0
        name = like.name or "shortcut"

        def constant(array: Array, kind: str) -> ir.Value:
            stored = np.ascontiguousarray(array.astype(wanted.dtype))
            return edit.initializer(stored, name=f"{name}_{kind}", graph=_scope(place))

        spread = (-1, *(1,) * behind)
        if self.is_full and axis == 1:
            kernel = self.weight.T.reshape(*self.weight.shape, *(1,) * behind)
            inputs = [source, constant(kernel, "weight"), constant(self.bias, "bias")]
            return edit.insert("Conv", inputs, after=place, like=like).outputs[0]
        operator = "MatMul" if self.is_full else "Mul"
        weight = self.weight if self.is_full else self.weight.reshape(spread)
        inputs = [source, constant(weight, "weight")]
        product = edit.insert(operator, inputs, after=place, like=like)
        inputs = [product.outputs[0], constant(self.bias.reshape(spread), "bias")]
        return edit.insert("Add", inputs, after=product, like=like).outputs[0]


def _scope(node: ir.Node) -> ir.Graph:
    if not isinstance(node.graph, ir.Graph):
        raise TypeError("the node is in no graph")
    return node.graph


def observe(
    model: Model,
    axes: Mapping[str, int],
    samples: Sequence[Mapping[str, np.ndarray]],
    threads: int,
    numbers: int,
) -> dict[str, Observed]:
    """Runs a model and returns what some values held: the same places of each sample in any model.

    Args:
        model: The model.
        axes: For the names of values the axis of channels.
        samples: Feeds.
        threads: Threads of the session.
        numbers: How many numbers of a value are kept; the same ones for the same number.
    """
    names = list(axes)
    fed = {spec.name for spec in model.signature().inputs}
    tapped = [name for name in names if name not in fed]
    found: dict[str, list[_Part]] = {name: [] for name in names}
    with Session.open(model, threads=threads, outputs=tapped) as session:
        for index, feeds in enumerate(samples):
            values = {**feeds, **(session.run(feeds, tapped) if tapped else {})}
            for name in names:
                value = values.get(name)
                if isinstance(value, np.ndarray) and value.ndim > 1 and value.dtype.kind == "f":
                    room = numbers // value.shape[axes[name]] if value.size else 0
                    room = max(1, min(_ROWS, room) // len(samples))
                    rows = _picked(value, axes[name], index, room)
                    found[name].append((rows, value.shape, value.dtype))
    return {name: _joined(parts) for name, parts in found.items() if len(parts) == len(samples)}


def _picked(value: NDArray[Any], axis: int, sample: int, room: int) -> NDArray[Any]:
    rows = np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])
    if len(rows) > room:
        rows = rows[np.random.default_rng(sample).choice(len(rows), room, replace=False)]
    return rows.astype(np.float32)


def _joined(parts: Sequence[_Part]) -> Observed:
    shapes = tuple(shape for _, shape, _ in parts)
    dtype = parts[0][2]
    if len({rows.shape[1] for rows, _, _ in parts}) != 1:
        return Observed(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), shapes, dtype)
    owners = np.concatenate([np.full(len(rows), i) for i, (rows, _, _) in enumerate(parts)])
    return Observed(np.concatenate([rows for rows, _, _ in parts]), owners, shapes, dtype)


def fit_shortcut(source: Observed, wanted: Observed, *, full: bool) -> Shortcut | None:
    """Returns the map that comes nearest on every fourth sample, None when nothing to put there does.

    Ridge regression (Hoerl and Kennard 1970) around the identity. That one matrix stands in for whole
    blocks of a transformer is shown by Shopkhoev et al., "ReplaceMe" (2025).

    Args:
        source: What the block reads, in the model as it is now.
        wanted: What it gave at first.
        full: Whether channels are mixed.
    """
    x, y = source.rows.astype(np.float64), wanted.rows.astype(np.float64)
    if x.shape != y.shape or not x.size or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    held = source.owners % _HELD_OUT == _HELD_OUT - 1
    if held.all() or not held.any():
        return None
    fits = _full(x[~held], y[~held]) if full else [_scales(x[~held], y[~held])]
    least, best = float(np.square(x[held] - y[held]).sum()), None
    for fit in fits:
        error = float(np.square(fit(x[held]) - y[held]).sum())
        if error < least:
            least, best = error, fit
    return best


def _scales(x: Array, y: Array) -> Shortcut:
    means, wanted = x.mean(0), y.mean(0)
    centred = x - means
    power = np.square(centred).mean(0)
    damp = _RIDGES[0] * power.mean() + np.finfo(np.float64).tiny
    scale = 1 + ((y - wanted - centred) * centred).mean(0) / (power + damp)
    return Shortcut(scale, wanted - means * scale)


def _full(x: Array, y: Array) -> list[Shortcut]:
    means, wanted = x.mean(0), y.mean(0)
    centred = x - means
    gram, cross = centred.T @ centred, centred.T @ (y - wanted - centred)
    mean = max(float(np.trace(gram)) / len(gram), float(np.finfo(np.float64).tiny))
    found = []
    for ridge in _RIDGES:
        change = np.linalg.solve(gram + ridge * mean * np.eye(len(gram)), cross)
        weight = np.eye(len(means)) + change
        found.append(Shortcut(weight, wanted - means @ weight))
    return found
