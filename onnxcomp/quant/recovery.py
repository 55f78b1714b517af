"""Improves a quantized model layer after layer, and keeps what brings it nearer to float on samples held out."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxcomp.compare import Reference
from onnxcomp.passbase import QUIET
from onnxcomp.quant.rounded import quantized_layers
from onnxcomp.quant.rows import Window
from onnxcomp.quant.segments import NoTensorError, Segment, Walk, split
from onnxcomp.quant.twins import matrices, twins
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Progress
    from onnxcomp.quant.rounded import QuantizedLayer
    from onnxcomp.quant.rows import Rows
    from onnxcomp.quant.twins import Twin

    Feeds = Mapping[str, np.ndarray]

# Numbers of a layer that are kept of one sample.
_ELEMENTS = 1 << 20
# Values of the same name whose channels do not even rise and fall together are not the same thing.
_LEAST_CORRELATION = 0.3
_SURE = 0.95
# Less is luck.
_LEAST_DECIBELS = 0.02
# Beyond these nobody cares how bad or how good a sample is.
_DECIBELS = (-20.0, 80.0)
_FEW = 1e-30


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a layer gave in float on one sample.

    Attributes:
        rows: Outputs at some places: (groups, places, channels of a group).
        mean: Mean of each channel over all places.
        count: How many places there are.
    """

    rows: NDArray[np.float32]
    mean: NDArray[np.float64]
    count: int

    def scaled(self, scale: NDArray[np.float64]) -> Wanted:
        """Returns it in another scale of the channels."""
        each = scale.reshape(self.rows.shape[0], 1, -1).astype(np.float32)
        return Wanted(self.rows * each, self.mean * scale, self.count)


@dataclass(eq=False)
class Site:
    """A layer that can be improved now.

    Attributes:
        layer: The layer.
        twin: What it was in float.
        inputs: What it reads, for each sample, with all that was done before it in effect.
        outputs: What it gives.
        wanted: What it should give.
        limit: Places of a sample that are looked at.
    """

    layer: QuantizedLayer
    twin: Twin
    inputs: Sequence[NDArray[Any]]
    outputs: Sequence[NDArray[Any]]
    wanted: Sequence[Wanted]
    limit: int

    def bias_error(self) -> NDArray[np.float64]:
        """Returns how far the mean of each channel lies from that in float."""
        total = np.zeros(self.layer.channels)
        count = 0
        for output, wanted in zip(self.outputs, self.wanted, strict=True):
            total += (_mean(self.layer, output) - wanted.mean) * wanted.count
            count += wanted.count
        return total / max(count, 1)

    def weight_error(self) -> NDArray[np.float64]:
        """Returns how far the rounding of the weight moves the mean of each channel, 0 if unknown."""
        if not self.twin.is_exact:
            return np.zeros(self.layer.channels)
        rounded = matrices(self.twin.own, self.layer.grid.values())
        error = rounded - self.twin.weight(rounded)
        total = np.zeros((error.shape[0], 1, error.shape[1]))
        count = 0
        for sample in range(len(self.inputs)):
            rows = self.input_rows(sample)
            total += rows.sum(axis=1, keepdims=True, dtype=np.float64)
            count += rows.shape[1]
        shift: NDArray[np.float64] = (total @ error).reshape(-1) / max(count, 1)
        return shift

    def input_rows(self, sample: int) -> NDArray[np.float32]:
        """Returns the rows that the weight multiplies at the places of `wanted`."""
        return _rows(self.twin.own.rows, self.inputs[sample], self.limit)


class Improve(Protocol):
    """A way to improve one layer or block."""

    def __call__(self, site: Any, /) -> bool:  # noqa: ANN401 - a layer, or a block
        """Changes it; says whether it did."""
        ...


@dataclass
class Judge:
    """How near a model is to the float one on samples that nothing else looks at."""

    reference: Reference
    threads: int = 0

    def decibels(self, model: Model) -> float:
        """Returns the signal-to-noise ratio: the mean over samples and outputs.

        Not that of all samples together: one whose class flips would decide alone.
        """
        ratios: list[float] = []
        with Session.open(model, threads=self.threads) as session:
            for feeds, expected in self.reference:
                made = session.run(feeds)
                for name, wanted in expected.items():
                    if isinstance(wanted, np.ndarray) and wanted.dtype.kind == "f" and wanted.size:
                        ratios.append(_decibels(wanted, made[name]))
        return float(np.mean(ratios)) if ratios else -math.inf


def _decibels(wanted: NDArray[Any], made: NDArray[Any]) -> float:
    if made.shape != wanted.shape:
        return -math.inf
    # What is no number in float says nothing of a model.
    known = np.isfinite(wanted)
    wanted, made = wanted[known].astype(np.float64), made[known]
    noise, signal = np.square(made - wanted).sum(), np.square(wanted).sum()
    if not np.isfinite(noise):
        return -math.inf
    return float(np.clip(10.0 * np.log10(max(signal, _FEW) / max(noise, _FEW)), *_DECIBELS))


@dataclass(frozen=True)
class Verdict:
    """What became of some layers.

    Attributes:
        layers: Their names.
        before: Decibels on held-out samples before them.
        after: And after.
        kept: Whether the change stayed.
    """

    layers: tuple[str, ...]
    before: float
    after: float
    kept: bool


@dataclass
class Recovery:
    """Goes through the layers of a quantized model in order.

    Attributes:
        model: The quantized model.
        edit: The way to change it.
        reference: What it was in float.
        samples: What layers are improved on.
        held_out: What decides whether a change stays.
        threads: Threads of sessions.
        rows: Places of a sample that are looked at.
        chunks: Into how many parts the layers are divided; each part stays or goes as a whole.
        progress: Progress bars.
        unmatched: Layers that the float model does not tell anything about.
        problem: Why nothing could be done at all.
    """

    model: Model
    edit: Edit
    reference: Model
    samples: Sequence[Feeds]
    held_out: Sequence[Feeds]
    threads: int = 0
    rows: int = 256
    chunks: int = 6
    progress: Progress = QUIET
    unmatched: list[QuantizedLayer] = field(default_factory=list)
    problem: str = ""
    _twins: dict[QuantizedLayer, Twin] = field(default_factory=dict)
    _ends: dict[ir.Node, QuantizedLayer] = field(default_factory=dict)

    def run(self, improve: Improve, text: str) -> list[Verdict]:
        """Improves layer after layer; returns what was kept and what was not."""
        mark = self.edit.mark()
        try:
            return self._run(improve, text)
        except NoTensorError as error:
            self.edit.rollback(mark)
            self.problem = error.message
            return []

    def _run(self, improve: Improve, text: str) -> list[Verdict]:
        ends = self._find()
        if not ends:
            return []
        segments = split(self.model.graph, ends)
        walk = Walk.start(self.model, self.samples, self.threads)
        verdicts: list[Verdict] = []
        with (
            Session.open(self.reference, threads=self.threads) as session,
            self.progress(len(segments), text) as task,
        ):
            judge = Judge(Reference(session, self.held_out), self.threads)
            best = judge.decibels(self.model)
            if math.isinf(best):
                self.problem = (
                    "its outputs are not floating point numbers, or not finite, on the samples"
                )
                return []
            for chunk in _chunks(segments, self.chunks):
                verdict = self._chunk(walk, chunk, judge, best, improve)
                task.advance(len(chunk))
                if verdict is not None:
                    verdicts.append(verdict)
                    best = verdict.after if verdict.kept else best
        return verdicts

    def _chunk(
        self,
        walk: Walk,
        chunk: Sequence[Segment],
        judge: Judge,
        best: float,
        improve: Improve,
    ) -> Verdict | None:
        """Improves the layers of some pieces and takes it all back if that does not help."""
        wanted = self._wanted(chunk)
        mark, stats, states = self.edit.mark(), self.edit.stats.copy(), walk.mark()
        made = [self._step(walk, segment, wanted, improve) for segment in chunk]
        done = [name for name in made if name]
        if not done:
            return None
        after = judge.decibels(self.model)
        kept = after > best + _LEAST_DECIBELS
        if not kept:
            self.edit.rollback(mark)
            self.edit.stats = stats
            walk.back(states)
            for segment in chunk:
                walk.advance(segment, list(walk.run(segment)))
        return Verdict(tuple(done), best, after, kept)

    def _find(self) -> Collection[ir.Node]:
        """Returns the nodes behind which something can be improved."""
        layers = quantized_layers(self.model.graph)
        self._twins = twins(layers, self.model, self.reference)
        self.unmatched = [layer for layer in layers if layer not in self._twins]
        self._ends = {layer.end: layer for layer in self._twins}
        return self._ends

    def _step(
        self,
        walk: Walk,
        segment: Segment,
        wanted: Mapping[str, list[Any]],
        improve: Improve,
    ) -> str:
        """Runs one piece and improves the layer that it ends with; returns its name if it was changed."""
        layer = self._ends.get(segment.end)
        if layer is None:
            walk.advance(segment, list(walk.run(segment)))
            return ""
        twin = self._twins[layer]
        source = layer.node.inputs[0]
        if source is None:
            raise ValueError(f"a layer that reads nothing: {layer.name}")
        inside = {value for node in segment.nodes for value in node.outputs}
        taps = [layer.output, *([source] if source in inside else [])]
        made = list(walk.run(segment, taps))
        outputs = [each[layer.name] for each in made]
        name = source.name or ""
        inputs = [
            each.get(name, state.get(name)) for each, state in zip(made, walk.states, strict=True)
        ]
        matched = matching(
            layer, twin, outputs, wanted.get(twin.value, [])[: len(outputs)], self._limit(twin)
        )
        changed = False
        if matched is None or any(found is None for found in inputs):
            self.unmatched.append(layer)
        else:
            site = Site(layer, twin, inputs, outputs, matched, self._limit(twin))  # type: ignore[arg-type]
            changed = improve(site)
        if changed and segment.outputs:
            made = list(walk.run(segment))
        walk.advance(segment, made)
        return layer.name if changed else ""

    def _wanted(self, chunk: Sequence[Segment]) -> Mapping[str, list[Any]]:
        """Runs the float model and keeps some of what its layers give."""
        found: dict[str, list[Wanted]] = {}
        layers = [self._ends[segment.end] for segment in chunk if segment.end in self._ends]
        kinds = {self._twins[layer].value: self._twins[layer] for layer in layers}
        for made in self.float_values(kinds):
            for name, array in made.items():
                rows = kinds[name].output_rows
                places = _rows(rows, array, self._limit(kinds[name]))
                axes = _but_channels(array, conv=isinstance(rows, Window))
                mean = _finite_mean(array, axes)
                count = array.size // max(mean.size, 1)
                found.setdefault(name, []).append(Wanted(places, mean, count))
        return found

    def _limit(self, twin: Twin) -> int:
        """How many places of a sample are looked at: fewer where there are very many channels."""
        channels = max(twin.own.outputs * twin.own.groups, twin.own.depth)
        return max(min(self.rows, _ELEMENTS // max(channels, 1)), 1)

    def float_values(self, names: Collection[str]) -> Iterator[dict[str, NDArray[Any]]]:
        """Yields values of the float model for each sample."""
        if not names:
            return
        given = {spec.name for spec in self.reference.signature().outputs}
        extra = [name for name in names if name not in given]
        with Session.open(self.reference, threads=self.threads, outputs=extra) as session:
            for feed in self.samples:
                yield session.run(feed, list(names))


def matching(
    layer: QuantizedLayer,
    twin: Twin,
    outputs: Sequence[NDArray[Any]],
    wanted: Sequence[Wanted],
    limit: int,
) -> list[Wanted] | None:
    """Returns what a layer should give, in the scale that its channels have in the quantized model.

    Where the weights do not tell that scale, the outputs do; channels that do not tell it either keep what
    they have.

    Returns:
        None when the two values are not the same thing.
    """
    if len(wanted) != len(outputs) or not outputs:
        return None
    found = [_rows(twin.output_rows, output, limit) for output in outputs]
    if any(one.shape != want.rows.shape for one, want in zip(found, wanted, strict=True)):
        return None
    slope, correlation = _slopes(found, [want.rows for want in wanted])
    if float(np.median(correlation)) < _LEAST_CORRELATION:
        return None
    known = np.isfinite(twin.scale)
    unknown = ~known & (correlation.reshape(-1) < _SURE)
    scale = np.where(known, twin.scale, slope.reshape(-1))
    made = []
    for want, rows, output in zip(wanted, found, outputs, strict=True):
        scaled = want.scaled(scale)
        places = np.where(unknown.reshape(slope.shape)[:, None, :], rows, scaled.rows)
        made.append(
            Wanted(places, np.where(unknown, _mean(layer, output), scaled.mean), want.count)
        )
    return made


def _slopes(
    got: Sequence[NDArray[Any]], exact: Sequence[NDArray[Any]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How steeply channels follow those in float, and how closely: (groups, channels)."""
    one = np.concatenate(got, axis=1).astype(np.float64)
    two = np.concatenate(exact, axis=1).astype(np.float64)
    one -= one.mean(axis=1, keepdims=True)
    two -= two.mean(axis=1, keepdims=True)
    product, power = (one * two).sum(axis=1), (two**2).sum(axis=1)
    correlation = product / np.sqrt(np.maximum(power * (one**2).sum(axis=1), _FEW))
    return product / np.maximum(power, _FEW), correlation


def _chunks(segments: Sequence[Segment], count: int) -> list[list[Segment]]:
    size = max(-(-len(segments) // count), 1)
    return [list(segments[start : start + size]) for start in range(0, len(segments), size)]


def _rows(rows: Rows, array: NDArray[Any], limit: int) -> NDArray[np.float32]:
    wide = np.asarray(array, np.float32)
    pieces = list(rows.pieces(wide, limit)) if wide.size else []
    if pieces:
        return np.concatenate(pieces, axis=1)
    if isinstance(rows, Window):
        columns = wide.shape[1] // rows.groups * prod(rows.kernel)
        return np.zeros((rows.groups, 0, columns), np.float32)
    return np.zeros((1, 0, wide.shape[-1]), np.float32)


def _mean(layer: QuantizedLayer, array: NDArray[Any]) -> NDArray[np.float64]:
    return _finite_mean(array, _but_channels(array, conv=layer.channel_axis == 1))


def _finite_mean(array: NDArray[Any], axes: tuple[int, ...]) -> NDArray[np.float64]:
    """Means over some axes; those of nothing are 0."""
    count = array.size and prod(array.shape[axis] for axis in axes)
    return np.asarray(array.sum(axis=axes, dtype=np.float64) / max(count, 1), np.float64)


def _but_channels(array: NDArray[Any], *, conv: bool) -> tuple[int, ...]:
    channel = 1 if conv else array.ndim - 1
    return tuple(axis for axis in range(array.ndim) if axis != channel)
