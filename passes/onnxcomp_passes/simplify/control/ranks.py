"""Which ranks a value can have, and which its readers insist on.

A branch that makes a matrix where an LSTM behind it wants three dimensions cannot be the one that runs:
the model would stop with an error there. Taking it away changes no result that a run can have, as long
as the reader stays, is in use, and runs whenever the If does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import captures
from onnxcomp.ir.ops import UNKNOWN, attribute, input_at, integers, is_op, standard_op

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap

# Ranks of the operands of LSTM, GRU and RNN; whoever runs a model checks them.
_RECURRENT = {0: 3, 1: 3, 2: 3, 3: 2, 4: 1, 5: 3, 6: 3}
_SAME_RANK = frozenset(
    {"Identity", "Relu", "Sigmoid", "Tanh", "Neg", "Abs", "Exp", "Sqrt", "Erf", "Cast", "Elu"}
)
# A longer way from a value to a reader that insists is none that exporters write.
_FAR = 16


class Ranks:
    """What a graph says about the ranks of its values, beyond what follows from its inputs.

    Args:
        root: A graph that always runs.
        shapes: What follows from the inputs.
    """

    def __init__(self, root: ir.Graph, shapes: ShapeMap) -> None:
        self._shapes = shapes
        self._live = _needed_nodes(root)
        self._possible: dict[ir.Value, frozenset[int] | None] = {}

    def possible(self, value: ir.Value | None) -> frozenset[int] | None:
        """Returns the ranks that a value can have, None when nothing is known."""
        if value is None:
            return None
        if value not in self._possible:
            self._possible[value] = None
            rank = self._shapes.rank(value)
            known = frozenset({rank}) if rank is not None else self._follow(value)
            self._possible[value] = known
        return self._possible[value]

    def _follow(self, value: ir.Value) -> frozenset[int] | None:
        node = value.producer()
        if node is None:
            return None
        if is_op(node, "If"):
            found: frozenset[int] = frozenset()
            for name in ("then_branch", "else_branch"):
                body = attribute(node, name)
                ranks = None
                if isinstance(body, ir.Graph):
                    ranks = self.possible(body.outputs[value.index() or 0])
                if ranks is None:
                    return None
                found |= ranks
            return found
        step = _step(node) if value.index() == 0 else None
        ranks = None if step is None else self.possible(node.inputs[0])
        return None if ranks is None or step is None else frozenset(rank + step for rank in ranks)

    def required(self, value: ir.Value, far: int = _FAR) -> int | None:
        """Returns the rank that a value has in every run that gets through, None when unknown.

        Only readers in the same graph count: a body may not run.
        """
        if far == 0:
            return None
        for usage in value.uses():
            node = usage.node
            if node.graph is not value.graph or node not in self._live:
                continue
            rank = self._wanted(node, usage.idx)
            if rank is None and usage.idx == 0 and (step := _step(node)) is not None:
                after = self.required(node.outputs[0], far - 1)
                rank = None if after is None else after - step
            if rank is not None:
                return rank
        return None

    def _wanted(self, node: ir.Node, index: int) -> int | None:
        if is_op(node, "LSTM", "GRU", "RNN"):
            return _RECURRENT.get(index)
        if is_op(node, "Conv") and index == 0:
            return self._shapes.rank(input_at(node, 1))
        if is_op(node, "Transpose"):
            order = attribute(node, "perm")
            return None if order is None or order is UNKNOWN else len(order)
        return None


def _step(node: ir.Node) -> int | None:
    """By how much the rank of a node's first output exceeds that of its first input."""
    name = standard_op(node)
    if name in _SAME_RANK or (name == "Transpose"):
        return 0
    if name not in {"Squeeze", "Unsqueeze"}:
        return None
    axes = attribute(node, "axes")
    if axes is UNKNOWN:
        return None
    if axes is None:
        axes = integers(input_at(node, 1))
    if axes is None:
        return None
    return len(axes) if name == "Unsqueeze" else -len(axes)


def _needed_nodes(root: ir.Graph) -> set[ir.Node]:
    """Nodes on which an output depends, in the graph and in branches whose results are needed.

    Others may be left out by whoever runs the model, with the checks they make. Bodies of loops may
    not run at all, and are not looked into.
    """
    needed: set[ir.Node] = set()
    seen: set[ir.Value] = set()
    pending = list(root.outputs)
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            continue
        if is_op(node, "If"):
            for name in ("then_branch", "else_branch"):
                body = attribute(node, name)
                if isinstance(body, ir.Graph):
                    pending.append(body.outputs[value.index() or 0])
        if node not in needed:
            needed.add(node)
            pending += [operand for operand in node.inputs if operand is not None]
            if not is_op(node, "If"):
                pending += captures(node)
    return needed
