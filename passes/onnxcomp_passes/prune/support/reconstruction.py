"""Fits the layers that are left after pruning to what they gave before, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.compare import Reference
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, single_use
from onnxcomp.quant.readers import layer_of
from onnxcomp.quant.recovery import Judge
from onnxcomp.quant.rounded import put_constant
from onnxcomp.quant.segments import NoTensorError, Segment, Walk, split
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.support.regression import Sums, best_fit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.prune.support.removal import Removal

    State = dict[str, np.ndarray]

_ROWS = 1024
# Every fourth sample only decides whether what was found stays.
_HELD_OUT = 4
_FEWEST = 4
_DEEPEST = 8192


@dataclass(frozen=True, eq=False)
class Twin:
    """A layer of the pruned model and what it was.

    Attributes:
        layer: The layer.
        before: The same layer of the model before.
        outputs: Which of its outputs are left.
    """

    layer: Layer
    before: Layer
    outputs: NDArray[np.bool_]

    def wanted(self, source: NDArray[Any], *, biased: bool) -> NDArray[Any]:
        """Returns what the layer gave for an activation, as (groups, rows, outputs) of what is left."""
        before = self.before
        weight = before.read().reshape(before.groups, before.depth, before.outputs)
        left = self.outputs.reshape(before.groups, before.outputs)
        result: NDArray[Any]
        if before.groups == 1:
            result = _rows(before, source) @ weight[:, :, left[0]]
        else:  # whole groups went
            result = _rows(before, source)[left[:, 0]] @ weight[left[:, 0]]
        bias = bias_of(before) if biased else None
        if bias is not None:
            result += bias.numbers[self.outputs].reshape(result.shape[0], 1, -1)
        return result


@dataclass
class Reconstruction:
    """Fits layers in order, each on what the layers before it give after they were fitted.

    He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), section 3.1, with the
    inputs of the pruned model and the outputs of the original one.

    Attributes:
        ctx: The pass that prunes.
        before: The model before.
        removal: What was removed.
        problem: Why nothing could be fitted, where it was not for want of samples.
    """

    ctx: Context
    before: Model
    removal: Removal
    fitted: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problem: str = ""

    def run(self, limit: int) -> tuple[float, float]:
        """Fits all layers; returns the signal-to-noise ratio on held-out samples before and after, in dB."""
        samples = list(islice(self.ctx.samples or (), limit))
        held_out = samples[_HELD_OUT - 1 :: _HELD_OUT]
        if len(samples) < _FEWEST:
            return math.nan, math.nan
        with Session.open(self.before, threads=self.ctx.threads) as session:
            judge = Judge(Reference(session, held_out), self.ctx.threads)
            first = judge.decibels(self.ctx.model)
            mark = self.ctx.edit.mark()
            try:
                self._walk(samples)
            except NoTensorError as error:
                self.ctx.edit.rollback(mark)
                self.problem = error.message
                return math.nan, math.nan
            last = judge.decibels(self.ctx.model)
        if not last > first:
            self.ctx.edit.rollback(mark)
            self.fitted.clear()
        return first, last

    def _walk(self, samples: Sequence[State]) -> None:
        twins = self._twins()
        new = split(self.ctx.model.graph, [twin.layer.node for twin in twins.values()])
        old = split(self.before.graph, [twin.before.node for twin in twins.values()])
        walks = (
            Walk.start(self.ctx.model, samples, self.ctx.threads),
            Walk.start(self.before, samples, self.ctx.threads),
        )
        with self.ctx.progress(len(new), "fitting what is left") as task:
            for segment, original in zip(new, old, strict=True):
                twin = twins.get(_name(segment.end))
                if twin is None:
                    walks[0].advance(segment, list(walks[0].run(segment)))
                    walks[1].advance(original, list(walks[1].run(original)))
                else:
                    self._step(walks, (segment, original), twin)
                task.advance()

    def _twins(self) -> dict[str, Twin]:
        """Layers by name that multiply with a constant, before and after."""
        nodes = {_name(node): node for node in self.ctx.model.graph}
        found: dict[str, Twin] = {}
        for node in self.before.graph:
            now, was = nodes.get(_name(node)), layer_of(node)
            layer = None if now is None else layer_of(now)
            if layer is None or was is None or not (_is_plain(layer) and _is_plain(was)):
                continue
            left = self.removal.kept(layer.node.outputs[0], _axis(layer, self.removal))
            total = was.outputs * was.groups
            outputs = np.ones(total, bool) if left is None else left
            if outputs.size == total and int(outputs.sum()) == layer.outputs * layer.groups:
                found[_name(node)] = Twin(layer, was, outputs)
        return found

    def _step(
        self, walks: tuple[Walk, Walk], segments: tuple[Segment, Segment], twin: Twin
    ) -> None:
        """Runs a piece of both models and fits the layer that it ends with."""
        now, sources = _with_source(walks[0], segments[0], twin.layer)
        was, originals = _with_source(walks[1], segments[1], twin.before)
        if self._fit(twin, sources, originals):
            now = list(walks[0].run(segments[0]))
        walks[0].advance(segments[0], now)
        walks[1].advance(segments[1], was)

    def _fit(
        self, twin: Twin, sources: Sequence[NDArray[Any]], originals: Sequence[NDArray[Any]]
    ) -> bool:
        layer, bias = twin.layer, bias_of(twin.layer)
        sums = [Sums(layer.groups, layer.depth, layer.outputs) for _ in range(2)]
        for index, (source, original) in enumerate(zip(sources, originals, strict=False)):
            rows, outputs = _rows(layer, source), twin.wanted(original, biased=bias is not None)
            if rows.shape[1] != outputs.shape[1]:
                return False
            sums[index % _HELD_OUT == _HELD_OUT - 1].add(rows, outputs)
        weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)
        start = None if bias is None else bias.numbers.reshape(layer.groups, layer.outputs)
        best = best_fit(sums[0], sums[1], weight, start)
        if best is None:
            self.kept.append(layer.name)
            return False
        put_weight(self.ctx.edit, layer, best[0])
        if bias is not None and best[1] is not None:
            bias.write(self.ctx.edit, best[1].reshape(-1))
        self.fitted.append(layer.name)
        return True


@dataclass(frozen=True, eq=False)
class Bias:
    """Where the bias of a layer is, and what it is; a layer that may have one has zeros.

    Attributes:
        node: The node that adds it: the layer's own, or an Add behind a MatMul.
        index: Which input of it.
        numbers: One for each output.
        shape: Shape of the constant; None when there is none yet.
    """

    node: ir.Node
    index: int
    numbers: NDArray[np.float32]
    shape: tuple[int, ...] | None

    def write(self, edit: Edit, new: NDArray[Any]) -> None:
        """Gives the layer another bias, which nobody else reads."""
        leading = (self.shape or (1,))[:-1]
        put_constant(edit, self.node, self.index, new.astype(np.float32).reshape(*leading, -1))


def put_weight(edit: Edit, layer: Layer, matrix: NDArray[Any]) -> NDArray[np.float32]:
    """Gives a layer another weight, which nothing else reads; returns it in its own shape."""
    new = np.ascontiguousarray(layer.from_matrix(matrix).astype(np.float32))
    maker = layer.weight.producer()
    put_constant(edit, layer.node, layer.index, new)
    if maker is not None:
        edit.remove(maker)
    return new


def bias_of(layer: Layer) -> Bias | None:
    """Returns the bias of a layer; None when it has none that can be written."""
    node, index, size = layer.node, 2, layer.outputs * layer.groups
    if is_op(node, "MatMul"):
        add = single_use(node.outputs[0])
        if layer.index != 1 or layer.groups != 1:
            return None  # outputs do not lie along the last axis alone
        if add is None or not is_op(add, "Add") or add.graph is not node.graph:
            return None
        node, index = add, 0 if add.inputs[1] is node.outputs[0] else 1
    elif not is_op(node, "Conv", "ConvTranspose") and not _is_plain_gemm(node):
        return None
    value = input_at(node, index)
    if value is None:
        zeros = np.zeros(size, np.float32)
        return Bias(node, index, zeros, None) if is_op(node, "Conv", "Gemm") else None
    numbers = array(value)
    if numbers is None or numbers.dtype != np.float32 or numbers.size not in {1, size}:
        return None
    if numbers.shape[-1:] != (numbers.size,):
        return None  # a scalar, or one number for each row
    return Bias(node, index, np.broadcast_to(numbers.reshape(-1), (size,)), numbers.shape)


def _is_plain(layer: Layer) -> bool:
    """Whether a layer's output is its rows times its weight, of float32, and a constant bias."""
    node = layer.node
    if layer.is_shared or layer.depth > _DEEPEST or (layer.groups != 1 and layer.outputs != 1):
        return False
    tensor = constant(layer.weight)
    if tensor is None or tensor.numpy().dtype != np.float32:
        return False
    if is_op(node, "MatMul"):
        return layer.index == 1 and layer.groups == 1
    return is_op(node, "Conv") or _is_plain_gemm(node)


def _is_plain_gemm(node: ir.Node) -> bool:
    plain = attribute(node, "alpha", 1.0) == 1.0 == attribute(node, "beta", 1.0)
    return is_op(node, "Gemm") and plain


def _axis(layer: Layer, removal: Removal) -> int:
    """The axis of the outputs."""
    return removal.rank(layer.node.outputs[0]) - 1 if is_op(layer.node, "MatMul") else 1


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _with_source(
    walk: Walk, segment: Segment, layer: Layer
) -> tuple[list[State], list[NDArray[Any]]]:
    """Runs a piece; returns what it makes and what the layer at its end reads, for each sample.

    The latter is empty where it is not to be had: a constant, or an input with a default.
    """
    inside = any(layer.source in node.outputs for node in segment.nodes)
    name = layer.source.name or ""
    made = list(walk.run(segment, [layer.source] if inside else []))
    states = made if inside else walk.states
    known = all(name in state for state in states)
    return made, [state[name] for state in states] if known else []


def _rows(layer: Layer, source: NDArray[Any]) -> NDArray[Any]:
    pieces = list(layer.rows.pieces(source, _ROWS)) if source.size else []
    if not pieces:
        return np.zeros((layer.groups, 0, layer.depth), np.float32)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)
