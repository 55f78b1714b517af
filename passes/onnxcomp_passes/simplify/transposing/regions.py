"""Tensors and operators that could all take another order of dimensions, and which of them should."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import constant, is_op, single_use
from onnxcomp.quant.mincut import Cut
from onnxcomp_passes.simplify.support.dims import permutation
from onnxcomp_passes.simplify.transposing.operators import plan
from onnxcomp_passes.simplify.transposing.orders import Move, Order, Place, inverse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

    Weigh = Callable[[ir.Value], float]

# A node that is moved for nothing is a change for nothing; but arithmetic that stands next to a
# convolution then becomes part of it.
_TIE, _BONUS = 2.0**-10, 2.0**-6
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
_NEVER = float("inf")


def order_of(node: ir.Node, shapes: ShapeMap) -> Order | None:
    """Returns the order of a Transpose, None when it is not known."""
    rank = None if "perm" in node.attributes else shapes.rank(node.inputs[0])
    return permutation(node, rank)


@dataclass
class Region:
    """Tensors in one of two layouts, between which some Transposes turn.

    Attributes:
        graph: The scope.
        layouts: For each tensor the layout it has, 0 or 1, and the order that leads to the other.
        roots: For what a Transpose makes, the tensor it is made of.
        moves: For each operator that could work in the other layout, what it becomes there.
        turns: The Transposes between the two layouts.
    """

    graph: ir.Graph
    layouts: dict[ir.Value, tuple[int, Order]] = field(default_factory=dict)
    roots: dict[ir.Value, ir.Value] = field(default_factory=dict)
    moves: dict[ir.Node, Move] = field(default_factory=dict)
    turns: dict[ir.Node, None] = field(default_factory=dict)

    def root(self, value: ir.Value) -> ir.Value:
        """Returns the tensor that a value is, but for Transposes of this region."""
        while value in self.roots:
            value = self.roots[value]
        return value

    def layout(self, node: ir.Node) -> int:
        """Returns the layout that an operator works in now."""
        move = self.moves[node]
        for index in move.inputs:
            value = node.inputs[index]
            assert value is not None
            return self.layouts[value][0]
        return self.layouts[node.outputs[next(iter(move.outputs))]][0]


def grow(seed: ir.Node, order: Order, shapes: ShapeMap) -> Region:
    """Returns all that could take the order of a Transpose, or the order it undoes."""
    assert seed.graph is not None
    region = Region(seed.graph)
    source = seed.inputs[0]
    assert source is not None
    region.layouts[source] = (0, order)
    waiting = deque([source])
    while waiting:
        value = waiting.popleft()
        for node, is_input, index in _places(region.graph, value):
            if node in region.turns or node in region.moves:
                continue
            if is_op(node, "Transpose"):
                waiting += _cross(region, node, shapes, forward=is_input)
            else:
                place = Place(is_input, index, region.layouts[value][1])
                waiting += _admit(region, node, place, shapes)
    return region


def _places(graph: ir.Graph, value: ir.Value) -> Iterator[tuple[ir.Node, bool, int]]:
    """Yields where a value stands at the nodes of a scope."""
    maker = value.producer()
    if maker is not None and maker.graph is graph:
        yield maker, False, maker.outputs.index(value)
    for usage in value.uses():
        if usage.node.graph is graph:
            yield usage.node, True, usage.idx


def _cross(region: Region, node: ir.Node, shapes: ShapeMap, *, forward: bool) -> list[ir.Value]:
    """Takes in what stands on the other side of a Transpose that leads to the other layout."""
    source, result, own = node.inputs[0], node.outputs[0], order_of(node, shapes)
    if source is None or own is None or constant(source) is not None:
        return []
    known, other = (source, result) if forward else (result, source)
    layout, order = region.layouts[known]
    if own != (order if forward else inverse(order)):
        return []
    wanted = (1 - layout, inverse(order))
    if region.layouts.get(other, wanted) != wanted:
        return []
    region.turns[node] = None
    region.roots[result] = source
    if other in region.layouts:
        return []
    region.layouts[other] = wanted
    return [other]


def _admit(region: Region, node: ir.Node, place: Place, shapes: ShapeMap) -> list[ir.Value]:
    """Takes in an operator if all its tensors can follow; returns those that are new."""
    move = plan(node, place, shapes)
    if move is None:
        return []
    known = node.inputs[place.index] if place.is_input else node.outputs[place.index]
    assert known is not None
    layout = region.layouts[known][0]
    found: dict[ir.Value, tuple[int, Order]] = {}
    pairs = [(node.inputs[index], order) for index, order in move.inputs.items()]
    pairs += [(node.outputs[index], order) for index, order in move.outputs.items()]
    for value, order in pairs:
        if value is None or value.name == "" or constant(value) is not None:
            return []
        if found.setdefault(value, (layout, order)) != (layout, order):
            return []
        if region.layouts.get(value, (layout, order)) != (layout, order):
            return []
    region.moves[node] = move
    new = [value for value in found if value not in region.layouts]
    region.layouts.update(found)
    return new


@dataclass(frozen=True)
class Tensor:
    """One tensor, in whatever layout: who makes it and who reads it, and in which layout."""

    root: ir.Value
    operators: tuple[ir.Node, ...]
    fixed: frozenset[int]


def tensors(region: Region) -> list[Tensor]:
    """Returns the tensors of a region."""
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in region.layouts:
        members.setdefault(region.root(value), []).append(value)
    return [_tensor(region, root, values) for root, values in members.items()]


def _tensor(region: Region, root: ir.Value, values: list[ir.Value]) -> Tensor:
    operators: dict[ir.Node, None] = {}
    fixed: set[int] = set()
    maker = root.producer()
    if maker is not None and maker in region.moves:
        operators[maker] = None
    else:
        fixed.add(region.layouts[root][0])
    for value in values:
        if value.is_graph_output():
            fixed.add(region.layouts[value][0])
        for usage in value.uses():
            if usage.node in region.moves:
                if usage.idx in region.moves[usage.node].inputs:
                    operators[usage.node] = None
                else:
                    fixed.add(region.layouts[value][0])
            elif usage.node not in region.turns:
                fixed.add(region.layouts[value][0])
    return Tensor(root, tuple(operators), frozenset(fixed))


def moved(region: Region, found: list[Tensor], weigh: Weigh) -> set[ir.Node]:
    """Returns the operators that should change their layout: as few elements as possible turned."""
    cut = Cut()
    vertices = {node: cut.vertex() for node in region.moves}
    for node, move in region.moves.items():
        if region.layout(node) == 0:
            stay, go = (vertices[node], Cut.SINK), (Cut.SOURCE, vertices[node])
        else:
            stay, go = (Cut.SOURCE, vertices[node]), (vertices[node], Cut.SINK)
        cut.charge(*go, move.penalty + _TIE)
        cut.charge(*stay, _BONUS if is_apart(region, node) else 0.0)
    for tensor in found:
        ends = [vertices[node] for node in tensor.operators]
        ends += [(Cut.SOURCE, Cut.SINK)[layout] for layout in tensor.fixed]
        if len(tensor.fixed) < 2:
            _charge(cut, ends, weigh(tensor.root))
    source_side = cut.source_side()
    return {
        node
        for node, vertex in vertices.items()
        if (vertex not in source_side) is not (region.layout(node) == 1)
    }


def is_apart(region: Region, node: ir.Node) -> bool:
    """Whether nothing but a Transpose keeps an operator from becoming part of a convolution."""
    move = region.moves[node]
    if len(move.inputs) != 1 or 0 not in move.outputs:
        return False
    by_constant = is_op(node, *_ARITHMETIC) and len(node.inputs) == 2
    source = node.inputs[next(iter(move.inputs))]
    if (by_constant or is_op(node, *_ACTIVATIONS)) and source is not None:
        maker = region.root(source).producer()
        if is_op(source.producer(), "Transpose") and is_op(maker, *_CONVOLUTIONS):
            return _read_once(region.root(source))
    reader = single_use(node.outputs[0]) if by_constant else None
    if reader is None or reader not in region.turns:
        return False
    return is_op(single_use(reader.outputs[0]), *_CONVOLUTIONS)


def _read_once(root: ir.Value) -> bool:
    turn = single_use(root)
    return turn is not None and single_use(turn.outputs[0]) is not None


def _charge(cut: Cut, ends: list[int], weight: float) -> None:
    """Costs `weight`, once, when not all ends are on one side."""
    if len(ends) == 2:
        cut.charge(ends[0], ends[1], weight)
        cut.charge(ends[1], ends[0], weight)
    elif len(ends) > 2:
        enter, leave = cut.vertex(), cut.vertex()
        cut.charge(enter, leave, weight)
        for end in ends:
            cut.charge(end, enter, _NEVER)
            cut.charge(leave, end, _NEVER)


@dataclass(frozen=True)
class Cost:
    """What the Transposes of a region cost.

    Attributes:
        elements: How many elements they move.
        nodes: How many nodes there are of them, with those that pick sizes out of a turned Shape.
        apart: How many operators would be part of a convolution but for a Transpose.
    """

    elements: float
    nodes: int
    apart: int

    def is_better(self, other: Cost) -> bool:
        """Whether fewer elements move, or as many for something else, by no more nodes."""
        less = (self.elements, self.apart) < (other.elements, other.apart)
        return less and self.nodes <= other.nodes


def cost_now(region: Region, weigh: Weigh) -> Cost:
    """Returns what the Transposes of a region cost as it is."""
    elements = sum(weigh(node.outputs[0]) for node in region.turns)
    apart = sum(is_apart(region, node) for node in region.moves)
    return Cost(elements, len(region.turns), apart)


def cost_then(region: Region, found: list[Tensor], chosen: set[ir.Node], weigh: Weigh) -> Cost:
    """Returns what they cost once the chosen operators work in their other layout."""
    elements, nodes = 0.0, 0
    for tensor in found:
        layouts = set(tensor.fixed)
        layouts |= {region.layout(node) ^ (node in chosen) for node in tensor.operators}
        if len(layouts) == 2:
            elements += weigh(tensor.root)
            nodes += 1
    elements += sum(region.moves[node].penalty for node in chosen)
    nodes += sum(region.moves[node].permuted is not None for node in chosen)
    apart = sum(is_apart(region, node) for node in region.moves if node not in chosen)
    return Cost(elements, nodes, apart)
