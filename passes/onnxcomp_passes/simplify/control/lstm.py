"""Finds the cells of an LSTM in the body of a loop, operator by operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, integers, producer_of, single_use

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
    """

    source: ir.Value
    weights: tuple[ir.Value, ir.Value]
    biases: tuple[ir.Value | None, ir.Value | None]
    hidden: int
    memory: int
    nodes: tuple[ir.Node, ...]

    @property
    def size(self) -> int:
        """The number of hidden units."""
        tensor = constant(self.weights[1])
        return 0 if tensor is None else int(tensor.shape.numpy()[1])


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
