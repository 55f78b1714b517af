"""Finds the cells of an LSTM in the body of a loop, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import can_lift
from onnxcomp.ir.ops import (
    attribute,
    constant,
    input_at,
    integers,
    is_op,
    is_read,
    producer_of,
    single_use,
)

if TYPE_CHECKING:
    from onnxcomp_passes.simplify.control.loops import Cycle

_GATES = 4


@dataclass(frozen=True)
class Cell:
    """One cell: what it reads, its weights with rows for i, f, g, o, and the values it carries.

    Attributes:
        source: What goes into the cell: a part of the sequence, or the output of another cell.
        weights: For the source and for the hidden state, transposed: [4 * hidden, ...].
        biases: To go with them, None for none.
        hidden: Number of the carried hidden state, the cell's output.
        memory: Number of the carried cell state.
        nodes: What the cell is made of.
        operator: The LSTM operator that the cell is, for one step; its weights are in their place then.
    """

    source: ir.Value
    weights: tuple[ir.Value, ir.Value]
    biases: tuple[ir.Value | None, ir.Value | None]
    hidden: int
    memory: int
    nodes: tuple[ir.Node, ...]
    operator: ir.Node | None = None

    @property
    def size(self) -> int:
        """The number of hidden units."""
        tensor = constant(self.weights[1])
        return 0 if tensor is None else int(tensor.shape.numpy()[-1])


def cells_of(cycle: Cycle) -> list[Cell]:
    """Returns the cells in the body of a loop."""
    found = []
    for node in cycle.body:
        cell = None
        if is_op(node, "Split"):
            cell = cell_of(node, cycle)
        elif is_op(node, "LSTM"):
            cell = _operator_cell(node, cycle)
        if cell is not None:
            found.append(cell)
    return found


def _operator_cell(node: ir.Node, cycle: Cycle) -> Cell | None:
    """The cell that an LSTM operator for one step is, between nodes that give and take its first axis."""
    plain = {"hidden_size"} | (
        {"direction"} if attribute(node, "direction") == "forward" else set()
    )
    if set(node.attributes) - plain or len(node.inputs) != 7 or node.inputs[4] is not None:
        return None
    if is_read(node.outputs[0]) or not all(_can_leave(value, node) for value in node.inputs[1:4]):
        return None
    entering = [_given(node.inputs[index], node) for index in (5, 6)]
    leaving = [_taken(value) for value in node.outputs[1:3]]
    source = _source(node)
    nodes = [each for each in (*entering, *leaving) if each is not None]
    if source is None or len(nodes) != 4:
        return None
    befores = {cycle.before(state): state for state in range(cycle.states)}
    hidden, memory = (
        None if value is None else befores.get(value)
        for value in (each.inputs[0] for each in nodes[:2])
    )
    if hidden is None or memory is None:
        return None
    if [each.outputs[0] for each in nodes[2:]] != [cycle.after(hidden), cycle.after(memory)]:
        return None
    weights, biases = (node.inputs[1], node.inputs[2]), (node.inputs[3], None)
    if weights[0] is None or weights[1] is None:
        return None
    made = (node, *nodes, *source.nodes)
    return Cell(source.value, (weights[0], weights[1]), biases, hidden, memory, made, operator=node)


@dataclass(frozen=True)
class _Source:
    """What goes into an operator for one step, and the nodes between."""

    value: ir.Value
    nodes: tuple[ir.Node, ...]


def _given(value: ir.Value | None, node: ir.Node) -> ir.Node | None:
    """The Unsqueeze that puts the axis of steps in front of an operand, for one operator alone."""
    maker = producer_of(value, "Unsqueeze")
    if maker is None or not _is_first_axis(maker) or single_use(maker.outputs[0]) is not node:
        return None
    return maker


def _taken(value: ir.Value) -> ir.Node | None:
    """The Squeeze that takes it away; the next operator may read the value as it is."""
    readers = [
        usage for usage in value.uses() if not (is_op(usage.node, "LSTM") and usage.idx == 0)
    ]
    if len(readers) != 1 or not is_op(readers[0].node, "Squeeze"):
        return None
    return readers[0].node if _is_first_axis(readers[0].node) else None


def _source(node: ir.Node) -> _Source | None:
    operand = node.inputs[0]
    maker = producer_of(operand, "LSTM")
    if maker is not None and operand is maker.outputs[1] and maker.graph is node.graph:
        squeeze = _taken(operand)
        return None if squeeze is None else _Source(squeeze.outputs[0], ())
    unsqueeze = _given(operand, node)
    source = None if unsqueeze is None else unsqueeze.inputs[0]
    if unsqueeze is None or source is None:
        return None
    return _Source(source, (unsqueeze,))


def _can_leave(value: ir.Value | None, node: ir.Node) -> bool:
    """Whether a weight is constant, and there in front of the loop or can be."""
    if value is None:
        return True
    return constant(value) is not None and (value.graph is not node.graph or can_lift(value))


def _is_first_axis(node: ir.Node) -> bool:
    axes = attribute(node, "axes")
    return list(axes or integers(input_at(node, 1)) or ()) == [0]


def cell_of(split: ir.Node, cycle: Cycle) -> Cell | None:
    """Returns the cell whose gates a Split takes apart."""
    added = producer_of(split.inputs[0], "Add")
    if added is None or len(split.outputs) != _GATES or attribute(split, "axis", 0) not in {1, -1}:
        return None
    gates = _gates(split)
    linear = [producer_of(value, "Gemm") for value in added.inputs]
    if gates is None or linear[0] is None or linear[1] is None or not _is_single(added, *linear):
        return None
    befores = {cycle.before(state): state for state in range(cycle.states)}
    if linear[0].inputs[0] in befores:
        linear.reverse()
    first, second = linear
    if first is None or second is None:
        return None
    state, source = second.inputs[0], first.inputs[0]
    hidden = None if state is None else befores.get(state)
    if hidden is None or source is None or not (_is_plain(first) and _is_plain(second)):
        return None
    found = _memory(gates, cycle, befores)
    if found is None or found[1] is not cycle.after(hidden):
        return None
    memory, _, nodes = found
    weights = (first.inputs[1], second.inputs[1])
    if weights[0] is None or weights[1] is None or not _sizes_fit(split, first, second):
        return None
    return Cell(
        source,
        (weights[0], weights[1]),
        (input_at(first, 2), input_at(second, 2)),
        hidden,
        memory,
        (first, second, added, split, *nodes),
    )


def _is_single(*nodes: ir.Node | None) -> bool:
    """Whether one node alone reads what each of some nodes makes."""
    return all(node is not None and single_use(node.outputs[0]) is not None for node in nodes)


def _gates(split: ir.Node) -> list[ir.Node] | None:
    """The activations of the input, forget, cell and output gates."""
    found = []
    for value, name in zip(split.outputs, ("Sigmoid", "Sigmoid", "Tanh", "Sigmoid"), strict=True):
        reader = single_use(value)
        if reader is None or reader.op_type != name or reader.domain:
            return None
        found.append(reader)
    return found if _is_single(*found) else None


def _memory(
    gates: list[ir.Node], cycle: Cycle, befores: dict[ir.Value, int]
) -> tuple[int, ir.Value, tuple[ir.Node, ...]] | None:
    """The number of the carried cell state, the output, and the nodes behind the gates."""
    entering, forgetting, candidate, leaving = (gate.outputs[0] for gate in gates)
    new, kept = single_use(entering), single_use(forgetting)
    if new is None or kept is None or set(new.inputs) != {entering, candidate}:
        return None
    others = [value for value in kept.inputs if value is not forgetting]
    memory = befores.get(others[0]) if len(others) == 1 and others[0] is not None else None
    if memory is None or new.op_type != "Mul" or kept.op_type != "Mul":
        return None
    total = single_use(new.outputs[0])
    if total is None or total.op_type != "Add" or not _is_single(new, kept):
        return None
    if set(total.inputs) != {new.outputs[0], kept.outputs[0]}:
        return None
    if total.outputs[0] is not cycle.after(memory):
        return None
    squashed = [usage.node for usage in total.outputs[0].uses()]
    result = single_use(leaving)
    if len(squashed) != 1 or squashed[0].op_type != "Tanh" or result is None:
        return None
    if result.op_type != "Mul" or set(result.inputs) != {leaving, squashed[0].outputs[0]}:
        return None
    if not _is_single(squashed[0]):
        return None
    nodes = (*gates, new, kept, total, squashed[0], result)
    return memory, result.outputs[0], nodes


def _is_plain(node: ir.Node) -> bool:
    """Whether a Gemm is `x W^T + b` with constant weights."""
    if attribute(node, "transB", 0) != 1 or attribute(node, "transA", 0) != 0:
        return False
    if attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return False
    weight, bias = constant(node.inputs[1]), input_at(node, 2)
    if weight is None or weight.dtype != ir.DataType.FLOAT:
        return False
    rows = int(weight.shape.numpy()[0])
    tensor = constant(bias)
    return bias is None or (tensor is not None and tuple(tensor.shape.numpy()) == (rows,))


def _sizes_fit(split: ir.Node, first: ir.Node, second: ir.Node) -> bool:
    """Whether four gates of one size are what both products make."""
    tensors = [constant(node.inputs[1]) for node in (first, second)]
    rows = {int(tensor.shape.numpy()[0]) for tensor in tensors if tensor is not None}
    hidden = 0 if tensors[1] is None else int(tensors[1].shape.numpy()[1])
    if rows != {_GATES * hidden} or hidden == 0:
        return False
    parts = integers(input_at(split, 1))
    if input_at(split, 1) is None:
        parts = attribute(split, "split")
        parts = [hidden] * _GATES if parts is None else parts
    return parts is not None and list(parts) == [hidden] * _GATES
