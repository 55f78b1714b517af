"""Blocks of a quantized model, and the ranges of activations that bring their outputs nearest to float.

What a layer loses may not matter behind the next one, so a block is judged as a whole, on what it gives to
the next block (Li et al., "BRECQ", 2021, arXiv 2102.05426). There ranges and rounding are learned by
gradients; here ranges are searched, one after the other, with blocks short enough to run often.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from onnxcomp.ir.bodies import reads
from onnxcomp.ir.ops import array, input_at, is_interface, is_op, use_count
from onnxcomp.quant.grid import grid_of
from onnxcomp.quant.recovery import Recovery
from onnxcomp.quant.rounded import WEIGHTED, quantized_layers, rescale_bias
from onnxcomp.quant.rows import chosen
from onnxcomp.quant.segments import constant_nodes
from onnxcomp.quant.twins import is_scaled, twins

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, ir
    from onnxcomp.quant.recovery import Improve
    from onnxcomp.quant.segments import Segment, Walk

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
# Between these a provider drops DQ and Q only if both have the same scale.
_HANDING_ON = (
    *("MaxPool", "Concat", "Reshape", "Transpose", "Slice", "Gather", "Split", "Resize", "Flatten"),
    *("Squeeze", "Unsqueeze", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Identity", "Pad"),
    *("GatherElements", "ReduceMax", "ReduceMin", "Where"),
)
# Elements of a block's output that are compared for each sample.
ELEMENTS = 8192
FACTORS = (0.75, 0.9, 1.12)
_MOST_STEPS = 6
# A block is run for every trial, so its samples and ranges are not too many.
_SAMPLES = 12
_MOST_RANGES = 32
_LEAST_GAIN = 2e-3
_EVERY = 4


def block_ends(graph: ir.Graph, known: set[str]) -> list[ir.Node]:
    """Returns the nodes behind which only one value that was made since the last of them is read later.

    Residual blocks and the parts of attention blocks end there. What is not on the way of the data through
    quantized layers (a mask, shapes) does not count, and neither does what was made before (a skip).

    Args:
        graph: The graph, in an order in which it can run.
        known: Names of values that the float model has too; blocks end with these.
    """
    data = _first_data(graph)
    left = {value: use_count(value) for value in graph.inputs if value in data}
    new: set[ir.Value] = set(left)
    ends: list[ir.Node] = []
    weighted = False
    fixed = constant_nodes(graph)
    for node in graph:
        if node in fixed:
            continue
        weighted = weighted or _is_layer(node)
        touched = any(value in left for value in reads(node)) and not is_op(node, "Shape", "Size")
        for value in node.inputs:
            if value is not None and value in left:
                left[value] -= 1
                if not left[value]:
                    new.discard(value)
        for value in node.outputs:
            # An output of the graph is read once more, behind everything.
            readers = use_count(value) + value.is_graph_output()
            if readers and (touched or value in data):
                left[value] = readers
                new.add(value)
        if weighted and len(new) == 1 and _may_end(node, new, known):
            ends.append(node)
            new, weighted = set(), False
    return ends


def _is_layer(node: ir.Node) -> bool:
    return is_op(node, *WEIGHTED) and grid_of(input_at(node, 1)) is not None


def _first_data(graph: ir.Graph) -> set[ir.Value]:
    """What quantized layers read, before it was rounded."""
    found = set()
    for node in graph:
        value = node.inputs[0] if _is_layer(node) else None
        while value is not None and is_op(value.producer(), *_ROUNDING):
            maker = value.producer()
            value = None if maker is None else maker.inputs[0]
        if value is not None:
            found.add(value)
    return found


def _may_end(node: ir.Node, new: set[ir.Value], known: set[str]) -> bool:
    (value,) = new
    final = value.is_graph_output() or not is_op(node, *_ROUNDING)
    return final and value.producer() is node and value.name in known


@dataclass(eq=False)
class Range:
    """The scale of an activation, with everything that has the same one.

    Attributes:
        scale: The value that holds it.
        zero: The zero point, when it may move: with it, both ends of the range can.
        biases: DequantizeLinear nodes of biases whose steps follow from it.
    """

    scale: ir.Value
    zero: ir.Value | None
    biases: tuple[ir.Node, ...]

    def moves(self) -> Iterator[tuple[float, float]]:
        """Yields factors for the lower and the upper end of the range that are worth trying."""
        for factor in FACTORS:
            yield factor, factor
            if self.zero is not None:
                yield 1.0, factor
                yield factor, 1.0

    def stretch(self, edit: Edit, low: float, high: float) -> None:
        """Moves the ends of the range; biases stay what they are."""
        old = array(self.scale)
        if old is None:
            raise ValueError(f"not a constant: {self.scale.name}")
        factor = low
        zero = array(self.zero)
        if self.zero is not None and zero is not None and low != high:
            least, most = np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max
            point = float(zero.reshape(-1)[0])
            bottom, top = (least - point) * low, (most - point) * high
            factor = (top - bottom) / (most - least)
            moved = np.clip(np.rint(least - bottom / factor), least, most)
            edit.set_tensor(self.zero, np.full(zero.shape, moved, zero.dtype))
        edit.set_tensor(self.scale, (old * old.dtype.type(factor)).astype(old.dtype))
        for node in self.biases:
            rescale_bias(edit, node, np.asarray(factor))


def ranges(segment: Segment) -> Iterator[Range]:
    """Yields the ranges that a block alone has, in order."""
    inside = set(segment.nodes)
    seen: set[ir.Value] = set()
    for node in segment.nodes:
        scale = input_at(node, 1)
        found = array(scale, limit=1)
        if not is_op(node, "QuantizeLinear") or scale is None or scale in seen or found is None:
            continue
        seen.add(scale)
        readers = [use.node for use in scale.uses()]
        if is_interface(scale) or not scale.is_initializer():
            continue
        if not all(reader in inside and is_op(reader, *_ROUNDING) for reader in readers):
            continue
        biases = _biases(readers)
        if biases is not None and _is_alone(scale, readers):
            yield Range(scale, _movable_zero(node, readers), biases)


def _movable_zero(quantize: ir.Node, readers: Sequence[ir.Node]) -> ir.Value | None:
    """The zero point that belongs to a scale, unless it is fixed: 0, the least number, or shared."""
    value = input_at(quantize, 2)
    found = array(value, limit=1)
    if value is None or found is None or found.dtype.name not in {"int8", "uint8"}:
        return None
    if is_interface(value) or not value.is_initializer() or found.reshape(-1)[0] == 0:
        return None
    if found.reshape(-1)[0] == np.iinfo(found.dtype).min:
        return None
    return value if {use.node for use in value.uses()} == set(readers) else None


def _is_alone(scale: ir.Value, readers: Sequence[ir.Node]) -> bool:
    """Whether no operator that hands numbers on ties the scale to another one of the same size."""
    around: list[ir.Node] = []
    for reader in readers:
        source = reader.inputs[0]
        if is_op(reader, "DequantizeLinear"):
            around += [use.node for use in reader.outputs[0].uses()]
        elif source is not None and (maker := source.producer()) is not None:
            around.append(maker)
    for node in around:
        if is_op(node, *_HANDING_ON):
            makers = [value.producer() for value in node.inputs if value is not None]
            beside = [use.node for value in node.outputs for use in value.uses()]
            for other in (*makers, *beside):
                if is_op(other, *_ROUNDING) and other is not None and other.inputs[1] is not scale:
                    return False
    return True


def _biases(readers: Sequence[ir.Node]) -> tuple[ir.Node, ...] | None:
    """The biases in steps of an activation's scale; None when one of them has other readers."""
    found = []
    for dequantize in readers:
        for use in dequantize.outputs[0].uses() if dequantize.op_type == "DequantizeLinear" else ():
            if use.idx != 0 or not is_op(use.node, "Conv", "ConvTranspose", "Gemm"):
                continue
            bias = input_at(use.node, 2)
            grid = grid_of(bias)
            if grid is None or grid.dtype != "INT32":
                continue
            if len(grid.node.outputs[0].uses()) != 1:
                return None
            found.append(grid.node)
    return tuple(found)


@dataclass(eq=False)
class Block:
    """A block that can be improved now.

    Attributes:
        segment: Its nodes.
        walk: What it reads, for each sample.
        wanted: Some elements of what it gives in float, for each sample.
        judged: Samples that only judge.
    """

    segment: Segment
    walk: Walk
    wanted: Sequence[NDArray[Any]]
    judged: frozenset[int]

    def errors(self) -> tuple[float, float]:
        """Returns the squared error relative to the signal on samples to fit, and on those to judge."""
        value = self.segment.end.outputs[0]
        sums = np.zeros((2, 2))
        for index, made in enumerate(self.walk.run(self.segment, [value])):
            wanted = self.wanted[index]
            got = picked(made[value.name or ""])
            if got.shape != wanted.shape:
                return np.inf, np.inf
            part = int(index in self.judged)
            sums[part] += float(np.square(got - wanted).sum()), float(np.square(wanted).sum())
        share = sums[:, 0] / np.maximum(sums[:, 1], 1e-30)
        return float(share[0]), float(share[1] if self.judged else share[0])


def picked(whole: NDArray[Any]) -> NDArray[np.float64]:
    """Returns some elements of an array, always the same ones of the same size."""
    flat = whole.reshape(-1)
    return np.asarray(flat[chosen(flat.size, ELEMENTS)], np.float64)


def search_ranges(edit: Edit, block: Block) -> int:
    """Tries ranges of the activations in a block; returns how many were changed for the better."""
    changed = 0
    best = block.errors()
    for each in itertools.islice(list(ranges(block.segment)), _MOST_RANGES):
        found = best
        for low, high in each.moves():
            found = _follow(edit, block, each, (low, high), found)
        changed += found is not best
        best = found
    return changed


def _follow(
    edit: Edit,
    block: Block,
    each: Range,
    factors: tuple[float, float],
    best: tuple[float, float],
) -> tuple[float, float]:
    """Moves a range as long as the block gains; returns its errors in the end."""
    for _ in range(_MOST_STEPS):
        mark, stats = edit.mark(), edit.stats.copy()
        each.stretch(edit, *factors)
        errors = block.errors()
        if not all(new < old * (1.0 - _LEAST_GAIN) for new, old in zip(errors, best, strict=True)):
            edit.rollback(mark)
            edit.stats = stats
            break
        best = errors
    return best


@dataclass
class BlockRecovery(Recovery):
    """Goes through the blocks of a quantized model in order."""

    _blocks: dict[ir.Node, str] = field(default_factory=dict)

    @override
    def _find(self) -> Collection[ir.Node]:
        layers = twins(quantized_layers(self.model.graph), self.model, self.reference)
        ends = {layer.end: twin for layer, twin in layers.items()}
        names = {value.name for node in self.reference.graph for value in node.outputs}
        values = (value for node in self.model.graph for value in node.outputs)
        known = {v.name or "" for v in values if v.name in names and not is_scaled(v, ends)}
        found = block_ends(self.model.graph, known)
        self._blocks = {node: node.outputs[0].name or "" for node in found}
        return self._blocks

    @override
    def _wanted(self, chunk: Sequence[Segment]) -> Mapping[str, list[Any]]:
        names = [self._blocks[each.end] for each in chunk if each.end in self._blocks]
        found: dict[str, list[NDArray[np.float64]]] = {}
        for made in self.float_values(names):
            for name, whole in made.items():
                found.setdefault(name, []).append(picked(whole))
        return found

    @override
    def _step(
        self, walk: Walk, segment: Segment, wanted: Mapping[str, list[Any]], improve: Improve
    ) -> str:
        name = self._blocks.get(segment.end, "")
        some = walk.first(_SAMPLES)
        expected = wanted.get(name, [])[: len(some.states)]
        judged = frozenset(range(_EVERY - 1, len(expected), _EVERY))
        changed = bool(expected) and improve(Block(segment, some, expected, judged))
        walk.advance(segment, list(walk.run(segment)))
        return name if changed else ""
