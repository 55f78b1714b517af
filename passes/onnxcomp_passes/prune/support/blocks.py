"""Blocks and branches of a graph that can be left out, because what they give has the shape of what they read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import reads
from onnxcomp.ir.ops import constant, is_op

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from onnxcomp.analysis.shapes import ShapeMap

    Item: TypeAlias = "ir.Node | ir.Value"

# What has a weight, or is as dear as if it had one.
_LAYERS = frozenset(
    [
        "Attention",
        "Conv",
        "ConvInteger",
        "ConvTranspose",
        "Einsum",
        "FusedConv",
        "FusedMatMul",
        "GRU",
        "Gemm",
        "GroupQueryAttention",
        "LSTM",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "MultiHeadAttention",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "RNN",
    ]
)


@dataclass(frozen=True, eq=False)
class Form:
    """One way to leave something out: what reads `end` reads `start` instead.

    Attributes:
        start: What the piece reads.
        end: What it gives.
        wanted: Name of what it gives, as the model was.
    """

    start: ir.Value
    end: ir.Value
    wanted: str


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a model that can be left out.

    Attributes:
        name: Name of the node that it ends with.
        layers: Its layers.
        forms: Ways to leave it out, with more or fewer of the normalizations and activations around it.
    """

    name: str
    layers: frozenset[ir.Node]
    forms: tuple[Form, ...]

    @property
    def axis(self) -> int:
        """The axis of channels: 1 among convolutions, else the last."""
        return 1 if any("Conv" in node.op_type for node in self.layers) else -1


@dataclass(eq=False)
class _Atom:
    """A step between two places that everything passes through, with layers in between.

    Attributes:
        start: The first of the two.
        ends: The second, and those behind it up to the next layer.
        layers: The layers.
        inside: All nodes in between.
        residual: Whether what is read is added to what the layers make.
        nested: Whether it lies within the branch of a residual sum.
        before: The step that leads to this one with no layer in between.
        after: The step that this one leads to.
    """

    start: Item
    ends: list[ir.Node]
    layers: frozenset[ir.Node]
    inside: frozenset[ir.Node]
    residual: bool
    nested: bool = False
    before: _Atom | None = field(default=None, repr=False)
    after: _Atom | None = field(default=None, repr=False)

    @property
    def signature(self) -> tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]:
        """What kinds of layers there are; equal where a network repeats itself."""
        return tuple(sorted((node.op_type, _weights(node)) for node in self.layers))


def find_blocks(graph: ir.Graph, shapes: ShapeMap) -> list[Piece]:
    """Returns whole blocks of a network: what is repeated, or bridged by a residual connection.

    A block lies between two values of the same shape that everything passes through (the second
    post-dominates the first; sizes that are read with Shape do not count). A residual sum of x and f(x)
    is one; where kinds of them take turns, as attention and feed-forward in a transformer, one block is
    one turn of all.
    """
    atoms = [atom for atom in _Flow(graph, shapes).atoms() if not atom.nested]
    _link(atoms)
    return [_piece(run) for run in _runs(atoms)]


def find_branches(graph: ir.Graph, shapes: ShapeMap) -> list[Piece]:
    """Returns single branches: of residual sums, of other sums that have layers of their own, and layers."""
    atoms = _Flow(graph, shapes).atoms()
    _link([atom for atom in atoms if not atom.nested])
    pieces = [_piece([atom]) for atom in atoms if atom.residual or not atom.nested]
    taken = {(form.start, form.end) for piece in pieces for form in piece.forms}
    return pieces + [p for p in _summands(graph, shapes) if _pair(p) not in taken]


def _pair(piece: Piece) -> tuple[ir.Value, ir.Value]:
    return piece.forms[0].start, piece.forms[0].end


def is_layer(node: ir.Node) -> bool:
    """Whether a node is a product of matrices, a convolution, or made of them."""
    return node.op_type in _LAYERS


class _Flow:
    """What everything must pass through."""

    def __init__(self, graph: ir.Graph, shapes: ShapeMap) -> None:
        self._shapes = shapes
        self._items: list[Item] = [*graph.inputs, *graph]
        self._index = {item: index for index, item in enumerate(self._items)}
        self._next: list[list[int]] = [[] for _ in self._items]
        self._connect(graph)
        self._exit = len(self._items)
        self._doors = self._dominate(set(graph.outputs))

    def _connect(self, graph: ir.Graph) -> None:
        for node in graph:
            if is_op(node, "Shape", "Size"):
                continue
            makers = (value.producer() or value for value in reads(node))
            for maker in dict.fromkeys(makers):
                if maker in self._index:
                    self._next[self._index[maker]].append(self._index[node])

    def _dominate(self, outputs: set[ir.Value]) -> list[int | None]:
        """Returns for each item the next one that every way from it to an output passes through.

        Cooper, Harvey and Kennedy, "A Simple, Fast Dominance Algorithm" (2001), on a graph without
        cycles, where one sweep is enough.
        """
        doors: list[int | None] = [None] * len(self._items)
        for index in reversed(range(len(self._items))):
            if any(value in outputs for value in _values(self._items[index])):
                doors[index] = self._exit
                continue
            found: int | None = None
            for reader in self._next[index]:
                if doors[reader] is not None:
                    found = reader if found is None else self._meet(doors, found, reader)
            doors[index] = found
        return doors

    def _meet(self, doors: list[int | None], one: int, other: int) -> int:
        while one != other:
            if one < other:
                one = doors[one] or self._exit
            else:
                other = doors[other] or self._exit
        return one

    def atoms(self) -> list[_Atom]:
        """Returns all steps with layers in between whose ends have the same shape."""
        found = []
        steps = {index: self._step(index) for index in range(len(self._items))}
        for index, inside in steps.items():
            layers = frozenset(node for node in inside if is_layer(node))
            door = self._door(index)
            if layers and door is not None and self._alike(self._items[index], door):
                ends = self._ends(door, steps)
                residual = _is_residual(self._items[index], inside)
                found.append(_Atom(self._items[index], ends, layers, frozenset(inside), residual))
        inner = {node for atom in found if atom.residual for node in atom.inside - {atom.ends[0]}}
        for atom in found:
            atom.nested = atom.ends[0] in inner or atom.start in inner
        return found

    def _door(self, index: int) -> ir.Node | None:
        door = self._doors[index]
        if door is None or door == self._exit:
            return None
        item = self._items[door]
        return item if isinstance(item, ir.Node) else None

    def _step(self, index: int) -> list[ir.Node]:
        """Returns the nodes from an item to where its ways meet again."""
        door = self._doors[index]
        if door is None or door == self._exit:
            return []
        seen = {door}
        pending = list(self._next[index])
        while pending:
            item = pending.pop()
            if item not in seen and self._doors[item] is not None:
                seen.add(item)
                pending += self._next[item]
        nodes = (self._items[item] for item in sorted(seen))
        return [node for node in nodes if isinstance(node, ir.Node)]

    def _ends(self, door: ir.Node, steps: dict[int, list[ir.Node]]) -> list[ir.Node]:
        """Returns a place and those behind it up to the next layer, of the same shape."""
        found = [door]
        index = self._index[door]
        while (further := self._door(index)) is not None:
            if any(is_layer(node) for node in steps[index]):
                break
            index = self._index[further]
            if self._alike(door, further):
                found.append(further)
        return found

    def _alike(self, one: Item, other: Item) -> bool:
        first, second = _only(one), _only(other)
        return first is not None and second is not None and alike(self._shapes, first, second)


def alike(shapes: ShapeMap, one: ir.Value, other: ir.Value) -> bool:
    """Whether two values may have the same type and shape, as far as that is known."""
    first, second = shapes.shape(one), shapes.shape(other)
    if first is None or second is None or len(first) != len(second) or not first:
        return False
    if shapes.dtype(one) is None or shapes.dtype(one) != shapes.dtype(other):
        return False
    known = [(a, b) for a, b in zip(first, second, strict=True) if isinstance(a, int)]
    return all(not isinstance(b, int) or a == b for a, b in known)


def _values(item: Item) -> Sequence[ir.Value]:
    return item.outputs if isinstance(item, ir.Node) else [item]


def _only(item: Item) -> ir.Value | None:
    """Returns the one value of an item that somebody reads."""
    used = [value for value in _values(item) if value.uses() or value.is_graph_output()]
    return used[0] if len(used) == 1 else None


def _is_residual(start: Item, inside: Sequence[ir.Node]) -> bool:
    """Whether a sum joins ways from the start with and without layers."""
    free = set(_values(start))
    bound: set[ir.Value] = set()
    for node in inside:
        operands = set(reads(node))
        if is_layer(node) or not operands & free:
            bound.update(node.outputs)
        elif is_op(node, "Add", "Sum") and operands & bound:
            return True
        else:
            free.update(node.outputs)
    return False


def _weights(node: ir.Node) -> tuple[tuple[int, ...], ...]:
    tensors = (constant(value) for value in node.inputs)
    return tuple(tuple(tensor.shape.numpy()) for tensor in tensors if tensor is not None)


def _runs(atoms: Iterable[_Atom]) -> Iterator[list[_Atom]]:
    """Yields steps that make a block each."""
    for atom in atoms:
        if atom.before is not None and atom.before.residual == atom.residual:
            continue
        run = [atom]
        while (after := run[-1].after) is not None and after.residual == atom.residual:
            run.append(after)
        if atom.residual:
            yield from _turns(run)
        else:
            yield from _repeated(run)


def _turns(run: list[_Atom]) -> Iterator[list[_Atom]]:
    """Yields one turn after the other of what takes turns."""
    kinds = [atom.signature for atom in run]
    for period in range(1, len(run) // 2 + 1):
        if kinds[period:] == kinds[:-period]:
            for start in range(0, len(run) - period + 1, period):
                yield run[start : start + period]
            return
    yield from ([atom] for atom in run)


def _repeated(run: list[_Atom]) -> Iterator[list[_Atom]]:
    """Yields layers that stand beside others of their kind."""
    for atom in run:
        beside = (other for other in (atom.before, atom.after) if other is not None)
        if any(other.signature == atom.signature for other in beside):
            yield [atom]


def _link(atoms: Sequence[_Atom]) -> None:
    by_start = {atom.start: atom for atom in atoms}
    for atom in atoms:
        following = by_start.get(atom.ends[-1])
        if following is not None:
            atom.after, following.before = following, atom


def _piece(run: list[_Atom]) -> Piece:
    first, last = run[0], run[-1]
    earliest = first.start if first.before is None else first.before.ends[0]
    pairs = [
        (first.start, last.ends[0]),
        (first.start, last.ends[-1]),
        (earliest, last.ends[0]),
    ]
    forms = [_form(_only(start), _only(end)) for start, end in dict.fromkeys(pairs)]
    layers = frozenset(node for atom in run for node in atom.layers)
    end = last.ends[0]
    known = tuple(form for form in forms if form is not None)
    return Piece(end.name or end.outputs[0].name or "", layers, known)


def _form(start: ir.Value | None, end: ir.Value | None) -> Form | None:
    return None if start is None or end is None else Form(start, end, end.name or "")


def _summands(graph: ir.Graph, shapes: ShapeMap) -> Iterator[Piece]:
    """Yields operands of sums that have layers which nothing else needs."""
    for node in graph:
        if not is_op(node, "Add"):
            continue
        for kept, dropped in (node.inputs, node.inputs[::-1]):
            if kept is None or dropped is None or kept is dropped or constant(kept) is not None:
                continue
            layers = frozenset(n for n in _only_for(dropped, node) if is_layer(n))
            if layers and alike(shapes, kept, node.outputs[0]):
                form = _form(kept, node.outputs[0])
                name = dropped.name or ""
                if form is not None:
                    yield Piece(name, layers, (form,))


def _only_for(value: ir.Value, reader: ir.Node) -> set[ir.Node]:
    """Returns the nodes whose outputs nobody needs but one node for one of its operands."""
    gone: set[ir.Node] = {reader}
    waiting: dict[ir.Node, set[ir.Node]] = defaultdict(set)
    pending = [value]
    while pending:
        maker = pending.pop().producer()
        if maker is None or maker.graph is not reader.graph or maker in gone:
            continue
        users = {use.node for output in maker.outputs for use in output.uses()}
        if any(output.is_graph_output() for output in maker.outputs):
            continue
        if users - gone:
            waiting[maker] = users
            continue
        gone.add(maker)
        pending += [operand for operand in maker.inputs if operand is not None]
        pending += [m.outputs[0] for m, needed in waiting.items() if not needed - gone]
    return gone - {reader}
