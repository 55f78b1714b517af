"""Recognises an LSTM that was written as a loop over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.bodies import lift_initializer
from onnxcomp.ir.ops import (
    attribute,
    constant,
    input_at,
    integers,
    is_op,
    is_read,
    is_scalar,
    producer_of,
)
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.carriers import Carriers
from onnxcomp_passes.simplify.control.loops import Cycle, cycle_of
from onnxcomp_passes.simplify.control.lstm import Cell, cells_of
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

_AXES_ARE_INPUTS = 13
_SEQUENCE_RANK = 3


@dataclass(frozen=True)
class _Found:
    """A loop that is an LSTM: cells in the order in which they feed each other."""

    cycle: Cycle
    sequence: ir.Value
    axis: int
    cells: tuple[Cell, ...]
    guarded: bool
    open_batch: bool


class FuseLstm(Pass):
    """Replace a Loop over time whose body is made of LSTM cells by LSTM operators.

    The loop has to go through a whole sequence, from states of zeros, and do nothing else: exporters
    write so what was a loop in Python over cells. A cell is written out in its gates, or is an operator
    for one step; each becomes one operator over the whole sequence, whose sums may be added in another
    order. What the loop collects of hidden states is what the operator gives for each step. Where it is
    not known that there are samples, an If keeps the operators from running without: onnxruntime's end
    the process then. `--batch` makes it known.

        h, c = Loop (length of x, , zeros, zeros)
          <body (t, _, h, c) = cell (x[t], h, c)>        ->        _, h, c = LSTM (x, W, R, B)
    """

    name: ClassVar[str] = "fuse-lstm"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "LSM101": "A loop whose body has cells of an LSTM was left a loop, for the reason given."
    }

    @override
    def run(self, ctx: Context) -> None:
        if "Loop" not in ctx.facts.get(Carriers()):
            return
        versions = scope_versions(ctx.model)
        for node in [node for node in ctx.model.nodes() if is_op(node, "Loop")]:
            graph = node.graph
            version = versions.get(graph, 0) if graph is not None else 0
            cycle = cycle_of(node, version)
            if cycle is None:
                continue
            known = cells_of(cycle)
            if not known:
                continue
            found = _match(cycle, known, ctx.facts.get(Shapes()))
            if isinstance(found, str):
                ctx.skip("LSM101", node, found)
            else:
                _replace(found, ctx.edit, version)


def _match(cycle: Cycle, cells: list[Cell], shapes: ShapeMap) -> _Found | str:
    """What the loop is, or why it is no LSTM."""
    if not cycle.goes_on() or not _starts(cycle):
        return "it may end early"
    ordered = _ordered(cycle, cells)
    if ordered is None:
        return "its body does more than cells that feed each other"
    item, chain = ordered
    gather = producer_of(item, "Gather")
    if gather is None or gather.inputs[1] is not cycle.body.inputs[0] or gather.inputs[0] is None:
        return "its cells do not read a sequence in order"
    sequence, axis = gather.inputs[0], attribute(gather, "axis", 0)
    if (
        sequence.graph is cycle.body
        or shapes.rank(sequence) != _SEQUENCE_RANK
        or axis not in {0, 1}
    ):
        return "the sequence is not known to have the dimensions of one"
    if not _is_length(cycle.node.inputs[0], sequence, axis, shapes):
        return "the number of turns is not the length of the sequence"
    sizes = shapes.shape(sequence) or ()
    known = [isinstance(size, int) and size > 0 for size in sizes]
    for cell in chain:
        for state in (cell.hidden, cell.memory):
            initial = cycle.initial(state)
            if not _is_zero(initial) or shapes.shape(initial) != (sizes[1 - axis], cell.size):
                return "its first state is not known to be zeros for each sample"
    if not known[2]:
        return "the sequence may have no features"
    # onnxruntime ends the process for a batch of none. For a sequence of none it gives a hidden state of
    # zeros, as the loop does, but leaves the cell state as it is in memory.
    memories = any(is_read(cycle.final(cell.memory)) for cell in chain)
    guarded = not known[1 - axis] or (memories and not known[axis])
    return _Found(cycle, sequence, axis, chain, guarded, not known[1 - axis])


def _starts(cycle: Cycle) -> bool:
    start = cycle.node.inputs[1]
    return start is None or is_scalar(start, 1)


def _ordered(cycle: Cycle, cells: list[Cell]) -> tuple[ir.Value, tuple[Cell, ...]] | None:
    """The cells from the first on, with what it reads; None when there is more in the body."""
    by_source = {cell.source: cell for cell in cells}
    outputs = {cycle.after(cell.hidden) for cell in cells}
    first = [cell for cell in cells if cell.source not in outputs]
    if len(by_source) != len(cells) or len(first) != 1:
        return None
    chain = first
    while (following := by_source.get(cycle.after(chain[-1].hidden))) is not None:
        chain.append(following)
    states = {state for cell in chain for state in (cell.hidden, cell.memory)}
    item = chain[0].source
    gather = item.producer()
    made = {node for cell in chain for node in cell.nodes} | {gather}
    rest = [node for node in cycle.body if node not in made and not is_op(node, "Constant")]
    copies = {inside.producer() for inside, _ in cycle.collected() if _copied(inside) in outputs}
    copies.add(cycle.body.outputs[0].producer())
    rest = [node for node in rest if node not in copies]
    if rest or len(states) != 2 * len(chain) or len(states) != cycle.states:
        return None
    if len(item.uses()) != 1 or any(
        _copied(inside) not in outputs for inside, _ in cycle.collected()
    ):
        return None
    reads = [cycle.before(state) for state in states]
    if any(len(value.uses()) != 1 for value in reads):
        return None
    return item, tuple(chain)


def _copied(value: ir.Value) -> ir.Value:
    """What an Identity makes a second value of: a body must not give one value twice."""
    maker = producer_of(value, "Identity")
    source = None if maker is None else maker.inputs[0]
    return value if source is None else source


def _is_length(count: ir.Value | None, sequence: ir.Value, axis: int, shapes: ShapeMap) -> bool:
    """Whether a value is the size of one dimension of another one."""
    known, sizes = shapes.vector(count), shapes.sizes(sequence)
    if known is not None and sizes is not None and known.items == (sizes[axis],):
        return known.items != (None,)
    gather = producer_of(count, "Gather", "Squeeze")
    if gather is None:
        return False
    shape = producer_of(gather.inputs[0], "Shape")
    if shape is None or shape.inputs[0] is not sequence:
        return False
    start, end = attribute(shape, "start", 0), attribute(shape, "end")
    if is_op(gather, "Squeeze"):
        return (start, end) == (axis, axis + 1)
    place = integers(input_at(gather, 1))
    return start == 0 and end is None and place == [axis] and attribute(gather, "axis", 0) == 0


def _is_zero(value: ir.Value | None) -> bool:
    """Whether a value has no element but 0; what a filled tensor holds is told by its maker."""
    maker = producer_of(value, "ConstantOfShape")
    if maker is not None:
        tensor = attribute(maker, "value")
        return tensor is None or bool(not tensor.numpy().any())
    found = constant(value)
    return found is not None and bool(not found.numpy().any())


@dataclass(frozen=True)
class _Place:
    """Where nodes are put: in front of one, or at the end of a body."""

    edit: Edit
    version: int
    graph: ir.Graph
    before: ir.Node | None = None

    def add(self, op_type: str, inputs: Sequence[ir.Value | None], **more: Any) -> ir.Node:  # noqa: ANN401 - what `Edit.insert` takes
        """Adds a node."""
        if self.before is not None:
            return self.edit.insert(op_type, inputs, before=self.before, **more)
        return self.edit.insert(op_type, inputs, graph=self.graph, **more)

    def constant(self, array: np.ndarray[Any, Any], name: str) -> ir.Value:
        """Adds a constant."""
        return self.edit.initializer(array, name=name, graph=self.graph)

    def squeezed(self, value: ir.Value, axis: int) -> ir.Value:
        """Takes an axis of one away."""
        if self.version < _AXES_ARE_INPUTS:
            return self.add("Squeeze", [value], attributes={"axes": [axis]}).outputs[0]
        axes = self.constant(np.array([axis], np.int64), "axes")
        return self.add("Squeeze", [value, axes]).outputs[0]

    def steps_first(self, found: _Found) -> ir.Value:
        """The sequence with its steps along the first axis."""
        if found.axis == 0:
            return found.sequence
        turned = self.add("Transpose", [found.sequence], attributes={"perm": [1, 0, 2]})
        return turned.outputs[0]

    def give(self, results: Sequence[ir.Value]) -> None:
        """Makes values the results of the body; none is one twice, for which onnxruntime gives garbage."""
        given: list[ir.Value] = []
        for value in results:
            same = value in given
            given.append(self.add("Identity", [value]).outputs[0] if same else value)
            self.edit.set_type(given[-1], ir.DataType.FLOAT)
        self.graph.outputs.extend(given)


def _replace(found: _Found, edit: Edit, version: int) -> None:
    node = found.cycle.node
    graph = node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    here = _Place(edit, version, graph, node)
    made = _guarded(found, here) if found.guarded else _operators(found, here)
    for old, new in made.items():
        edit.replace(old, new)
    edit.remove(node)
    edit.count("loops made an LSTM")


def _guarded(found: _Found, here: _Place) -> dict[ir.Value, ir.Value]:
    """Puts the operators in an If: a sequence without elements, or a batch, may end the process."""
    size = here.add("Size", [found.sequence]).outputs[0]
    cast = here.add("Cast", [size], attributes={"to": int(ir.DataType.BOOL)})
    bodies = [ir.Graph([], [], nodes=[], name=name) for name in ("steps", "no_steps")]
    then, other = (_Place(here.edit, here.version, body) for body in bodies)
    results = _operators(found, then)
    then.give(list(results.values()))
    other.give([_without_steps(found, old, other) for old in results])
    choice = here.add(
        "If",
        [cast.outputs[0]],
        outputs=[old.name or "lstm" for old in results],
        attributes={
            "then_branch": ir.AttrGraph("then_branch", bodies[0]),
            "else_branch": ir.AttrGraph("else_branch", bodies[1]),
        },
    )
    return dict(zip(results, choice.outputs, strict=True))


def _without_steps(found: _Found, result: ir.Value, place: _Place) -> ir.Value:
    """What the loop gives for a sequence without elements."""
    cycle = found.cycle
    for state in range(cycle.states):
        if result is cycle.final(state):
            return place.add("Identity", [cycle.initial(state)]).outputs[0]
    inside = next(_copied(each) for each, outside in cycle.collected() if outside is result)
    size = next(cell.size for cell in found.cells if cycle.after(cell.hidden) is inside)
    columns = place.constant(np.zeros(size, np.int64), "columns")
    rows = place.steps_first(found)
    if found.open_batch:
        # Of a loop that collected nothing, onnxruntime takes sizes that it does not know for 0.
        none = place.constant(np.zeros(0, np.int64), "none")
        rows = place.add("Gather", [rows, none], attributes={"axis": 1}).outputs[0]
    return place.add("Gather", [rows, columns], attributes={"axis": 2}).outputs[0]


def _operators(found: _Found, place: _Place) -> dict[ir.Value, ir.Value]:
    """Adds the operators; returns what takes the place of each output of the loop that is read."""
    cycle = found.cycle
    source = place.steps_first(found)
    collected = [
        (_copied(inside), outside) for inside, outside in cycle.collected() if is_read(outside)
    ]
    made: dict[ir.Value, ir.Value] = {}
    for number, cell in enumerate(found.cells):
        inside = cycle.after(cell.hidden)
        lstm = _insert(cell, source, place)
        if number + 1 < len(found.cells) or any(each is inside for each, _ in collected):
            source = place.squeezed(lstm.outputs[0], 1)
        for index, state in ((1, cell.hidden), (2, cell.memory)):
            if is_read(cycle.final(state)):
                made[cycle.final(state)] = place.squeezed(lstm.outputs[index], 0)
        made.update((outside, source) for each, outside in collected if each is inside)
    return made


def _insert(cell: Cell, source: ir.Value, place: _Place) -> ir.Node:
    more: dict[str, Any] = {
        "outputs": ["lstm_Y", "lstm_Y_h", "lstm_Y_c"],
        "attributes": {"hidden_size": cell.size},
    }
    if cell.operator is not None:
        same = [
            lift_initializer(place.edit, value, place.graph)
            if value is not None and value.graph is cell.operator.graph
            else value
            for value in cell.operator.inputs[1:4]
        ]
        return place.add("LSTM", [source, *same], **more)
    weights = [_ordered_gates(value, cell.size)[None] for value in cell.weights]
    rows = 4 * cell.size
    biases = [
        np.zeros(rows, np.float32) if value is None else _ordered_gates(value, cell.size)
        for value in cell.biases
    ]
    arrays = {"W": weights[0], "R": weights[1], "B": np.concatenate(biases)[None]}
    operands = [place.constant(array, f"lstm_{name}") for name, array in arrays.items()]
    return place.add("LSTM", [source, *operands], **more)


def _ordered_gates(value: ir.Value, size: int) -> np.ndarray[Any, Any]:
    """Rows in the order of the operator: input, output, forget, cell."""
    tensor = constant(value)
    if tensor is None:
        raise ValueError(f"not constant: {value.name}")
    array = tensor.numpy()
    entering, forgetting, candidate, leaving = (
        array[size * gate : size * (gate + 1)] for gate in range(4)
    )
    return np.concatenate([entering, leaving, forgetting, candidate])
