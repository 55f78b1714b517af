"""Recognises an LSTM that was written as a loop over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
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
    from typing import Any

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir
    from onnxcomp.passbase import Context

_AXES_ARE_INPUTS = 13
_SEQUENCE_RANK = 3


@dataclass(frozen=True)
class _Found:
    """A loop that is an LSTM: cells in the order in which they feed each other."""

    cycle: Cycle
    sequence: ir.Value
    axis: int
    item: ir.Value
    cells: tuple[Cell, ...]


class FuseLstm(Pass):
    """Replace a Loop over time whose body is made of LSTM cells by LSTM operators.

    The loop has to go through a whole sequence, from states of zeros, and do nothing else: exporters
    write so what was a loop in Python over cells. A cell is written out in its gates, or is an operator
    for one step; each becomes one operator over the whole sequence, whose sums may be added in another
    order. What the loop collects of hidden states is what the operator gives for each step.

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
    length = sizes[axis]
    for cell in chain:
        final = cycle.final(cell.memory)
        # After no step at all the operator gives a hidden state of zeros, as the loop does, but leaves
        # the cell state as it is in memory.
        if is_read(final) and not (isinstance(length, int) and length > 0):
            return "the cell state is used, and the sequence may be empty"
        for state in (cell.hidden, cell.memory):
            initial = cycle.initial(state)
            if not _is_zero(initial) or shapes.shape(initial) != (sizes[1 - axis], cell.size):
                return "its first state is not known to be zeros for each sample"
    return _Found(cycle, sequence, axis, item, chain)


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


def _replace(found: _Found, edit: Edit, version: int) -> None:
    cycle, node = found.cycle, found.cycle.node
    source = found.sequence
    if found.axis == 1:
        turned = edit.insert("Transpose", [source], before=node, attributes={"perm": [1, 0, 2]})
        source = turned.outputs[0]
    collected = [(_copied(inside), outside) for inside, outside in cycle.collected()]
    for number, cell in enumerate(found.cells):
        inside = cycle.after(cell.hidden)
        lstm = _insert(cell, source, node, edit)
        wanted = number + 1 < len(found.cells) or any(each is inside for each, _ in collected)
        if wanted:
            source = _squeezed(lstm.outputs[0], 1, node, edit, version)
        for place, state in ((1, cell.hidden), (2, cell.memory)):
            final = cycle.final(state)
            if is_read(final):
                edit.replace(final, _squeezed(lstm.outputs[place], 0, node, edit, version))
        for each, outside in collected:
            if each is inside:
                edit.replace(outside, source)
    edit.remove(node)
    edit.count("loops made an LSTM")


def _insert(cell: Cell, source: ir.Value, before: ir.Node, edit: Edit) -> ir.Node:
    graph = before.graph
    if graph is None:
        raise ValueError(f"not in a graph: {before.op_type} {before.name}")
    attributes = {"hidden_size": cell.size}
    outputs = ["lstm_Y", "lstm_Y_h", "lstm_Y_c"]
    if cell.operator is not None:
        same = [
            lift_initializer(edit, value, graph)
            if value is not None and value.graph is cell.operator.graph
            else value
            for value in cell.operator.inputs[1:4]
        ]
        return edit.insert(
            "LSTM", [source, *same], before=before, outputs=outputs, attributes=attributes
        )
    weights = [_ordered_gates(value, cell.size)[None] for value in cell.weights]
    rows = 4 * cell.size
    biases = [
        np.zeros(rows, np.float32) if value is None else _ordered_gates(value, cell.size)
        for value in cell.biases
    ]
    arrays = {"W": weights[0], "R": weights[1], "B": np.concatenate(biases)[None]}
    operands = [
        edit.initializer(array, name=f"{before.name or 'lstm'}_{name}", graph=graph)
        for name, array in arrays.items()
    ]
    return edit.insert(
        "LSTM",
        [source, *operands],
        before=before,
        outputs=outputs,
        attributes=attributes,
    )


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


def _squeezed(value: ir.Value, axis: int, before: ir.Node, edit: Edit, version: int) -> ir.Value:
    if version < _AXES_ARE_INPUTS:
        made = edit.insert("Squeeze", [value], before=before, attributes={"axes": [axis]})
        return made.outputs[0]
    if before.graph is None:
        raise ValueError(f"not in a graph: {before.op_type} {before.name}")
    axes = edit.initializer(np.array([axis], np.int64), name="axes", graph=before.graph)
    return edit.insert("Squeeze", [value, axes], before=before).outputs[0]
