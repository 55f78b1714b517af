"""Gives layers zeros in the order in which they run, each on what the layers before it give with theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import constant
from onnxcomp.quant.grams import checked
from onnxcomp.quant.rounded import put_constant
from onnxcomp.quant.segments import Walk, constant_nodes, split
from onnxcomp_passes.prune.support.moments import Moments
from onnxcomp_passes.prune.support.sparse_fit import Problem, refitted
from onnxcomp_passes.prune.support.weights import bias_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.prune.support.sparse_fit import Found, Way
    from onnxcomp_passes.prune.support.sparsity import Pattern

    Feeds = Mapping[str, np.ndarray]

# Every fourth sample only decides.
HELD_OUT = 4
# Rows of a sample that are looked at: more for more columns, within these.
_FEW_ROWS, _MANY_ROWS, _ROWS_PER_COLUMN = 256, 2048, 4
# Bytes of activations that are kept of each of both models.
_ACTIVATIONS = 512 << 20


@dataclass(frozen=True, eq=False)
class Settled:
    """What was done to a layer.

    Attributes:
        layer: Its name.
        found: What was chosen for each part of its weight.
        plain: The error of the smallest weights set to zero, for each part.
        power: Sum of squares of its outputs, for each part.
    """

    layer: str
    found: list[Found]
    plain: list[float]
    power: list[float]


@dataclass
class SparseWalk:
    """Sparsifies layers one after the other.

    Attributes:
        ctx: The pass.
        before: The model before.
        pairs: Layers, each with what it was in `before`.
        shares: Share of zeros by name of layer; layers without are fitted to make up for the others.
        pattern: Where zeros may be.
        ways: How they may be chosen.
    """

    ctx: Context
    before: Model
    pairs: Sequence[tuple[Layer, Layer]]
    shares: Mapping[str, float]
    pattern: Pattern
    ways: Collection[Way]
    settled: list[Settled] = field(default_factory=list)

    def run(self, samples: Sequence[Feeds]) -> None:
        """Settles all layers whose inputs samples reach.

        Raises:
            NoTensorError: If a value between two layers is no tensor.
        SamplesError: If an activation is NaN or infinite.
        """
        now = split(
            self.ctx.model.graph, _ends(self.ctx.model, [new.node for new, _ in self.pairs])
        )
        old = split(self.before.graph, _ends(self.before, [was.node for _, was in self.pairs]))
        walks = tuple(
            Walk.start(model, samples, self.ctx.threads) for model in (self.ctx.model, self.before)
        )
        for walk in walks:
            walk.limit = _ACTIVATIONS
        places = {new.node: (new, was) for new, was in self.pairs}
        with self.ctx.progress(len(now), "choosing zeros") as task:
            for pieces in zip(now, old, strict=True):
                pair = places.get(pieces[0].end)
                if pair is not None:
                    self._settle(walks, *pair)
                for walk, piece in zip(walks, pieces, strict=True):
                    walk.advance(piece, list(walk.run(piece)))
                task.advance()

    def _settle(self, walks: Sequence[Walk], layer: Layer, was: Layer) -> None:
        sums = self._sums(walks, layer, was)
        if sums is None:
            return
        if layer.name in self.shares:
            self._sparsify(layer, *sums)
            return
        bias = bias_of(layer)
        start = None if bias is None else bias.numbers.reshape(layer.groups, layer.outputs)
        weight, offset, changed = refitted(_parts(layer), start, *sums)
        if changed.any():
            _put(self.ctx.edit, layer, weight)
            if bias is not None and offset is not None:
                bias.write(self.ctx.edit, offset.reshape(-1))

    def _sparsify(self, layer: Layer, fitted: Moments, judge: Moments) -> None:
        order = row_order(layer, self.pattern)
        weight = _parts(layer)[:, order]
        share = self.shares[layer.name]
        problems = [
            Problem(part, fitted.part(index), judge.part(index), share, self.pattern)
            for index, part in enumerate(weight)
        ]
        found = [problem.best(self.ways) for problem in problems]
        new = np.empty(weight.shape)
        new[:, order] = np.stack([each.weight for each in found])
        put_sparse(self.ctx.edit, layer, new)
        bias = bias_of(layer)
        if bias is not None:
            shift = [np.zeros(0) if each.bias is None else each.bias for each in found]
            bias.write(self.ctx.edit, np.concatenate(shift))
        plain = [problem.found("magnitude").error for problem in problems]
        self.settled.append(Settled(layer.name, found, plain, [*judge.output_power]))

    def _sums(
        self, walks: Sequence[Walk], layer: Layer, was: Layer
    ) -> tuple[Moments, Moments] | None:
        """Sums of rows that fit and of rows that judge."""
        bias, order = bias_of(was), None
        if layer.name in self.shares:
            order = row_order(layer, self.pattern)
        size = (layer.groups, layer.depth, layer.outputs, bias is not None)
        both = Moments(*size), Moments(*size)
        weight = _parts(was)
        offset = 0.0 if bias is None else bias.numbers.reshape(layer.groups, 1, layer.outputs)
        for index, now, then in _sources(walks, layer, was):
            into = both[index % HELD_OUT == HELD_OUT - 1]
            for rows, original in zip(_rows(layer, now), _rows(was, then), strict=True):
                into.add(rows if order is None else rows[..., order], original @ weight + offset)
        return both if both[0].count and both[1].count else None


def put_sparse(edit: Edit, layer: Layer, matrix: NDArray[Any]) -> None:
    """Gives a layer a weight with zeros."""
    new = _put(edit, layer, matrix)
    edit.count("weights sparse")
    edit.count("zeros", int((new == 0).sum()))


def _put(edit: Edit, layer: Layer, matrix: NDArray[Any]) -> NDArray[Any]:
    """Gives a layer another weight, which nothing else reads, in the type that it had."""
    tensor, maker = constant(layer.weight), layer.weight.producer()
    dtype = np.float32 if tensor is None else tensor.dtype.numpy()
    new = np.ascontiguousarray(layer.from_matrix(matrix).astype(dtype))
    put_constant(edit, layer.node, layer.index, new)
    if maker is not None:
        edit.remove(maker)
    return new


def row_order(layer: Layer, pattern: Pattern) -> NDArray[np.intp]:
    """Returns the rows of a layer's weight in the order in which a pattern sees them.

    In a Conv, input channels at one place of the kernel stand next to each other, which is what TensorRT
    wants: "for each output channel and for each spatial pixel in the kernel weights, every four input
    channels must have at least two zeros" (TensorRT developer guide, "Sparsity").
    """
    rows = np.arange(layer.depth)
    return rows.reshape(channels_of(layer), -1).T.ravel() if pattern.along_channels else rows


def channels_of(layer: Layer) -> int:
    """Returns the input channels of a part of a layer's weight."""
    kernel = prod(layer.shape[2:]) if layer.layout in {"conv", "conv-transpose"} else 1
    return layer.depth // max(kernel, 1)


def _parts(layer: Layer) -> NDArray[Any]:
    return layer.read().reshape(layer.groups, layer.depth, layer.outputs)


def _ends(model: Model, nodes: Collection[ir.Node]) -> set[ir.Node]:
    """The nodes, and those before them: each is then a piece of its own, and runs once."""
    wanted, fixed = set(nodes), constant_nodes(model.graph)
    ends, last = set(wanted), None
    for node in model.graph:
        if node in fixed:
            continue
        if node in wanted and last is not None:
            ends.add(last)
        last = node
    return ends


def _sources(
    walks: Sequence[Walk], layer: Layer, was: Layer
) -> Iterator[tuple[int, NDArray[Any], NDArray[Any]]]:
    """Yields the index of each sample, and what a layer reads in both models where that is to be had."""
    names = (layer.source.name or "", was.source.name or "")
    for index, states in enumerate(zip(*(walk.states for walk in walks), strict=False)):
        now, then = (state.get(name) for state, name in zip(states, names, strict=True))
        if now is not None and then is not None and now.size and then.size:
            yield index, now, then


def _rows(layer: Layer, source: NDArray[Any]) -> Iterator[NDArray[Any]]:
    limit = int(np.clip(_ROWS_PER_COLUMN * layer.depth, _FEW_ROWS, _MANY_ROWS))
    return layer.rows.pieces(checked(source, layer.source.name or ""), limit)
