"""Gram matrices X^T X of the rows that weights multiply, summed up while a model runs on samples."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.errors import SamplesError, quoted
from onnxcomp.passbase import QUIET
from onnxcomp.quant.gram import Gram, refit
from onnxcomp.quant.readers import Layer, layer_of
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress, Task
    from onnxcomp.quant.rows import Rows

    Feeds = Mapping[str, np.ndarray]

__all__ = [
    "Gram",
    "checked",
    "collect_cross_grams",
    "collect_grams",
    "gram_readers",
    "paired",
    "refit",
]

MEMORY_LIMIT = 1 << 30
ROWS_PER_SAMPLE = 2048
_BYTES = 8
# Products of larger numbers, added up, may not fit single precision.
_LARGE = 1e15
# A matrix of few columns is known well enough from few rows of each sample.
_FEW_ROWS, _ROWS_PER_COLUMN = 256, 4
# Rows, or numbers, from which on products are made.
_ENOUGH_ROWS, _ENOUGH_NUMBERS = 1024, 1 << 21


def gram_readers(model: Model) -> list[Layer]:
    """Returns the layers of the main graph whose output is rows times a constant weight, in order.

    Conv, ConvTranspose, Gemm, MatMul (the constant on either side, also a stack of matrices), and the
    input weights of LSTM, GRU and RNN.
    """
    found = (layer_of(node) for node in model.graph)
    return [layer for layer in found if layer is not None]


def paired(model: Model, layers: Iterable[Layer]) -> list[tuple[Layer, Layer]]:
    """Returns layers of a changed model with those of its reference of the same name.

    The changed model may be quantized (its weights need not be constant) or pruned (its weights may have
    fewer rows); layers that are gone are left out.

    Args:
        model: The changed model.
        layers: Layers of the reference.
    """
    nodes = {node.name or node.outputs[0].name: node for node in model.graph if node.outputs}
    pairs = []
    for layer in layers:
        node = nodes.get(layer.name)
        if node is not None and node.op_type == layer.node.op_type:
            found = layer_of(node, like=layer)
            if found is not None and found.groups == layer.groups:
                pairs.append((found, layer))
    return pairs


def collect_grams(
    model: Model,
    layers: Sequence[Layer],
    samples: Iterable[Feeds],
    *,
    threads: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress = QUIET,
    rows_per_sample: int = ROWS_PER_SAMPLE,
) -> Iterator[tuple[Layer, Gram]]:
    """Runs a model on samples and yields the Gram of each layer.

    The samples are run once for each group of layers whose matrices fit the memory limit. Layers that
    read the same rows get the same object. What is found does not depend on how samples are batched.

    Args:
        model: The model.
        layers: What to look at, from `gram_readers`. One whose matrix alone is above the memory limit,
            or whose activation is empty in every sample, is left out.
        samples: Feeds; iterated once for each group.
        threads: Threads of the session, 0 for the runtime's choice.
        memory_limit: Bytes of matrices and activations at a time.
        progress: Progress bars.
        rows_per_sample: Most rows of one sample that are looked at (fewer where rows are short); always
            the same ones.

    Raises:
        SamplesError: If an activation is NaN or infinite, or there is no sample.
    """
    pairs = [(layer, None) for layer in layers]
    run = _Run(model, None, threads, rows_per_sample)
    yield from _collect(run, pairs, samples, memory_limit, progress)


def collect_cross_grams(
    model: Model,
    reference: Model,
    pairs: Sequence[tuple[Layer, Layer]],
    samples: Iterable[Feeds],
    *,
    threads: int = 0,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress = QUIET,
    rows_per_sample: int = ROWS_PER_SAMPLE,
) -> Iterator[tuple[Layer, Gram]]:
    """Runs a changed model and its reference side by side, for reconstruction.

    With X the rows in the changed model and R those in the reference, the weight W that comes nearest to
    the reference's output R V solves (X^T X) W = (X^T R) V: `gram.matrix` and `gram.cross`. In a pruned
    model X may have fewer columns than R. `refit` solves it.

    Args:
        model: The changed model.
        reference: What it was.
        pairs: Layers of both, from `paired`.
        samples: Feeds.
        threads: Threads of the sessions.
        memory_limit: Bytes of matrices and activations at a time.
        progress: Progress bars.
        rows_per_sample: Most rows of one sample that are looked at.

    Raises:
        SamplesError: If an activation is NaN or infinite, there is no sample, or the rows of a layer
            are not as many in both models.
    """
    run = _Run(model, reference, threads, rows_per_sample)
    yield from _collect(run, pairs, samples, memory_limit, progress)


class _Sums:
    """Sums over rows of one layer. Small pieces wait until a product of them is worth its while."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.count = 0
        self.parts: dict[str, NDArray[np.float64]] = {}
        self._waiting: list[tuple[NDArray[Any], NDArray[Any] | None]] = []

    def add(self, rows: NDArray[Any], other: NDArray[Any] | None) -> None:
        """Takes in rows as (groups, rows, columns)."""
        self.count += rows.shape[1]
        self._waiting.append((rows, other))
        waiting = sum(each.shape[1] for each, _ in self._waiting)
        if waiting >= _ENOUGH_ROWS or waiting * rows.shape[0] * rows.shape[2] >= _ENOUGH_NUMBERS:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        rows = _joined([each for each, _ in self._waiting])
        others = [other for _, other in self._waiting if other is not None]
        self._waiting.clear()
        ones = np.ones((1, 1, rows.shape[1]), rows.dtype)
        self._add("matrix", _product(rows, rows))
        self._add("total", (ones @ rows)[:, 0])
        self._add("magnitude", (ones @ np.abs(rows))[:, 0])
        if others:
            other = _joined(others)
            self._add("cross", _product(rows, other))
            self._add("reference_total", (ones @ other)[:, 0])

    def _add(self, name: str, part: NDArray[Any]) -> None:
        if name in self.parts:
            self.parts[name] += part
        else:
            self.parts[name] = part.astype(np.float64)

    def gram(self) -> Gram:
        """Returns what was summed up; one group has no axis of its own."""
        self._flush()
        parts = {k: v[0] if self.groups == 1 else v for k, v in self.parts.items()}
        return Gram(count=self.count, **parts)


def _joined(pieces: list[NDArray[Any]]) -> NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _product(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    if first.shape[0] == 1:
        # numpy hands a matrix times itself to a routine that computes half of it.
        product: NDArray[Any] = (first[0].T @ second[0])[None]
        return product
    stacked: NDArray[Any] = first.transpose(0, 2, 1) @ second
    return stacked


@dataclass
class _Run:
    """The model, its reference if there is one, how to run them, and on how many samples that was done."""

    model: Model
    reference: Model | None
    threads: int
    rows_per_sample: int
    samples: int = 0

    def sums(
        self, keys: Mapping[_Key, tuple[Layer, Layer | None]], samples: Iterable[Feeds], task: Task
    ) -> dict[_Key, _Sums]:
        """Returns sums by key after one pass over the samples."""
        found = {key: _Sums(layer.groups) for key, (layer, _) in keys.items()}
        own = _Tap(self.model, [layer.source.name or "" for layer, _ in keys.values()])
        names = [other.source.name or "" for _, other in keys.values() if other is not None]
        with own.open(self.threads):
            other = _Tap(self.reference, names) if self.reference is not None else None
            if other is None:
                for feed in samples:
                    self._look(found, keys, own.run(feed), None)
                    task.advance()
                return found
            with other.open(self.threads):
                for feed in samples:
                    self._look(found, keys, own.run(feed), other.run(feed))
                    task.advance()
        return found

    def _look(
        self,
        found: Mapping[_Key, _Sums],
        keys: Mapping[_Key, tuple[Layer, Layer | None]],
        arrays: Feeds,
        references: Feeds | None,
    ) -> None:
        self.samples += 1
        for key, (layer, other) in keys.items():
            limit = min(self.rows_per_sample, max(_FEW_ROWS, _ROWS_PER_COLUMN * layer.depth))
            rows = _pieces(layer.rows, arrays, layer.source.name or "", limit)
            if other is None or references is None:
                for piece in rows:
                    found[key].add(piece, None)
                continue
            name = other.source.name or ""
            beside = _pieces(other.rows, references, name, limit)
            for piece, match in _in_step(rows, beside, name):
                found[key].add(piece, match)


def _pieces(rows: Rows, arrays: Feeds, name: str, limit: int) -> Iterator[NDArray[Any]]:
    array = arrays.get(name)
    if isinstance(array, np.ndarray) and array.size:
        yield from rows.pieces(checked(array, name), limit)


def _in_step(
    first: Iterator[NDArray[Any]], second: Iterator[NDArray[Any]], name: str
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yields pieces of as many rows from both."""
    one, two = next(first, None), next(second, None)
    while one is not None and two is not None:
        count = min(one.shape[1], two.shape[1])
        yield one[:, :count], two[:, :count]
        one = one[:, count:] if one.shape[1] > count else next(first, None)
        two = two[:, count:] if two.shape[1] > count else next(second, None)
    if one is not None or two is not None:
        raise SamplesError(f"the tensor {quoted(name)} has another number of rows in the reference")


def checked(array: NDArray[Any], name: str) -> NDArray[Any]:
    """Returns the tensor in single precision, double where its squares would not fit.

    Raises:
        SamplesError: If it is NaN or infinite somewhere.
    """
    if array.dtype != np.float64:
        array = array.astype(np.float32, copy=False)
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        kind = "NaN" if np.isnan(low) or np.isnan(high) else "infinite values"
        raise SamplesError(
            f"the tensor {quoted(name)} has {kind} on the samples",
            hint="look at the samples, or leave the nodes around it out with skip",
        )
    return array.astype(np.float64) if max(-low, high) > _LARGE else array


class _Tap:
    """A session that gives some values of the main graph, inputs included."""

    def __init__(self, model: Model, names: Iterable[str]) -> None:
        self._model = model
        inputs = {spec.name for spec in model.signature().inputs}
        self._names = [name for name in dict.fromkeys(names) if name not in inputs]
        self._session: Session | None = None

    def open(self, threads: int) -> Session | _Tap:
        """Loads the model unless only its inputs are asked for."""
        if not self._names:
            return self
        self._session = Session.open(self._model, threads=threads, outputs=self._names)
        return self._session

    def run(self, feed: Feeds) -> dict[str, Any]:
        """Returns the values for a sample."""
        made = self._session.run(feed, self._names) if self._session is not None else {}
        return {**feed, **made}

    def __enter__(self) -> _Tap:
        return self

    def __exit__(self, *_: object) -> None:
        return None


_Key = tuple[str, "Rows", str, "Rows | None"]


def _key(layer: Layer, other: Layer | None) -> _Key:
    own = (layer.source.name or "", layer.rows)
    return (*own, "", None) if other is None else (*own, other.source.name or "", other.rows)


def _collect(
    run: _Run,
    pairs: Sequence[tuple[Layer, Layer | None]],
    samples: Iterable[Feeds],
    memory_limit: int,
    progress: Progress,
) -> Iterator[tuple[Layer, Gram]]:
    groups = list(_groups(pairs, memory_limit))
    feeds = samples if len(groups) < 2 or iter(samples) is not samples else list(samples)
    count = len(feeds) if isinstance(feeds, Sized) else 1
    with progress(len(groups) * count, "looking at what weights multiply") as task:
        for group in groups:
            keys = {_key(*pair): pair for pair in group}
            sums = run.sums(keys, feeds, task)
            if not run.samples:
                raise SamplesError("no sample gave any activation")
            grams = {key: found.gram() for key, found in sums.items() if found.count}
            del sums
            for pair in group:
                if _key(*pair) in grams:
                    yield pair[0], grams[_key(*pair)]


def _groups(
    pairs: Sequence[tuple[Layer, Layer | None]], limit: int
) -> Iterator[list[tuple[Layer, Layer | None]]]:
    """Splits layers so that the matrices of each group fit the limit, those of the same rows once."""
    group: list[tuple[Layer, Layer | None]] = []
    room, seen = limit, set[_Key]()
    for layer, other in pairs:
        matrices = layer.groups * layer.depth * (layer.depth + (other.depth if other else 0))
        need = matrices * _BYTES + layer.activation_bytes
        if matrices * _BYTES > limit:
            continue
        key = _key(layer, other)
        if key in seen:
            need = 0
        elif group and need > room:
            yield group
            group, room, seen = [], limit, set()
        seen.add(key)
        group.append((layer, other))
        room -= need
    if group:
        yield group
