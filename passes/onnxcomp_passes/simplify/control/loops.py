"""Loop and Scan seen alike: what is carried from one turn to the next, and what is collected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import (
    drop_body_input,
    drop_operand,
    drop_result,
    reads,
    set_body_outputs,
)
from onnxcomp.ir.envelope import SPARSE_INITIALIZERS
from onnxcomp.ir.ops import UNKNOWN, array, attribute, is_op, standard_op

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from onnxcomp.ir import Edit

# Lists of a Scan with an entry for each scanned input, and for each collected output.
_OF_INPUTS = ("scan_input_axes", "scan_input_directions")
_OF_OUTPUTS = ("scan_output_axes", "scan_output_directions")


@dataclass(frozen=True)
class Cycle:
    """A Loop or a Scan.

    Attributes:
        node: The node.
        body: What it repeats.
        lead: How many operands of the node, and inputs of the body, come before the carried values:
            the trip count and the condition of a Loop.
        states: How many values are carried.
    """

    node: ir.Node
    body: ir.Graph
    lead: int
    states: int

    @property
    def is_loop(self) -> bool:
        """Whether this is a Loop, and not a Scan."""
        return self.lead > 0

    @property
    def first(self) -> int:
        """The index of the first carried value among the outputs of the body."""
        return 1 if self.is_loop else 0

    def initial(self, state: int) -> ir.Value | None:
        """What a carried value is before the first turn."""
        return self.node.inputs[self.lead + state]

    def before(self, state: int) -> ir.Value:
        """A carried value at the start of a turn."""
        return self.body.inputs[self.lead + state]

    def after(self, state: int) -> ir.Value:
        """A carried value at the end of a turn."""
        return self.body.outputs[self.first + state]

    def final(self, state: int) -> ir.Value:
        """A carried value after the last turn."""
        return self.node.outputs[state]

    def collected(self) -> list[tuple[ir.Value, ir.Value]]:
        """What each turn contributes, with the output of the node that it becomes part of."""
        inside = self.body.outputs[self.first + self.states :]
        return list(zip(inside, self.node.outputs[self.states :], strict=True))

    def trips(self) -> int | None:
        """How often the body runs, None when that is not known."""
        if not self.is_loop:
            return None
        count, start, go_on = self.node.inputs[0], self.node.inputs[1], self.body.outputs[0]
        if start is not None and _truth(start) is False:
            return 0
        limit = _number(count)
        if count is not None and limit is None:
            return None
        if limit is not None and limit <= 0:
            return 0
        if start is not None and _truth(start) is None:
            return None
        if limit == 1:
            return 1
        if start is None:
            # Whether the body has a say then is told in different ways.
            return limit if _truth(go_on) is True else None
        if _truth(go_on) is False:
            return 1
        return limit if self.goes_on() else None

    def goes_on(self) -> bool:
        """Whether the body never ends the loop; a turn runs only when its condition was true."""
        go_on = self.body.outputs[0]
        while is_op(go_on.producer(), "Identity"):
            maker = go_on.producer()
            source = maker.inputs[0] if maker is not None else None
            if source is None:
                break
            go_on = source
        return go_on is self.body.inputs[1] or _truth(go_on) is True

    def runs(self) -> bool:
        """Whether the body is known to run at least once."""
        if not self.is_loop:
            return False
        count, start = self.node.inputs[0], self.node.inputs[1]
        if start is not None and _truth(start) is not True:
            return False
        limit = _number(count)
        return count is None or (limit is not None and limit > 0)


def cycle_of(node: ir.Node, version: int) -> Cycle | None:
    """Returns a Loop or Scan in that form, None for everything else and where it is not understood."""
    if not is_op(node, "Loop", "Scan"):
        return None
    body = attribute(node, "body")
    if not isinstance(body, ir.Graph) or SPARSE_INITIALIZERS in body.meta:
        return None
    if standard_op(node) == "Loop":
        if len(node.inputs) < 2:
            return None
        return Cycle(node, body, 2, len(node.inputs) - 2)
    scanned = attribute(node, "num_scan_inputs")
    if version < 9 or not isinstance(scanned, int):
        return None
    return Cycle(node, body, 0, len(node.inputs) - scanned)


def drop_results(
    edit: Edit, cycle: Cycle, states: Sequence[int], collected: Sequence[int] = ()
) -> None:
    """Stops a cycle from giving what nobody reads; `drop_operands` has to follow for the states."""
    gone = [*states, *(cycle.states + index for index in collected)]
    places = {cycle.first + result for result in gone}
    left = [value for index, value in enumerate(cycle.body.outputs) if index not in places]
    set_body_outputs(edit, cycle.body, left)
    for result in sorted(gone, reverse=True):
        drop_result(edit, cycle.node, result)
    for index in sorted(collected, reverse=True):
        _drop_entries(edit, cycle.node, _OF_OUTPUTS, index)


def drop_operands(
    edit: Edit, cycle: Cycle, states: Sequence[int], scanned: Sequence[int] = ()
) -> Cycle:
    """Takes out operands that the body does not read, and returns what is left."""
    gone = [*(cycle.lead + state for state in states)]
    gone += [cycle.states + index for index in scanned]
    for index in sorted(gone, reverse=True):
        drop_body_input(edit, cycle.body, index)
        drop_operand(edit, cycle.node, index)
    left = Cycle(cycle.node, cycle.body, cycle.lead, cycle.states - len(states))
    for index in sorted(scanned, reverse=True):
        _drop_entries(edit, cycle.node, _OF_INPUTS, index)
    if scanned:
        edit.set_attribute(cycle.node, "num_scan_inputs", len(cycle.node.inputs) - left.states)
    return left


def _drop_entries(edit: Edit, node: ir.Node, names: Iterable[str], index: int) -> None:
    for name in names:
        entries = attribute(node, name)
        if entries is None or entries is UNKNOWN:
            continue
        left = [*entries[:index], *entries[index + 1 :]]
        edit.set_attribute(node, name, left or None)


def needed_values(body: ir.Graph, results: Iterable[ir.Value]) -> set[ir.Value]:
    """Returns what results of a body depend on; nodes that may have effects count as results."""
    needed: set[ir.Value] = set()
    pending = list(results)
    for node in body:
        if standard_op(node) is None:
            pending += reads(node)
            pending += node.outputs
    while pending:
        value = pending.pop()
        if value in needed:
            continue
        needed.add(value)
        maker = value.producer()
        if maker is not None and maker.graph is body:
            pending += reads(maker)
    return needed


def _truth(value: ir.Value | None) -> bool | None:
    found = array(value, limit=1)
    return bool(found.reshape(-1)[0]) if found is not None and found.size == 1 else None


def _number(value: ir.Value | None) -> int | None:
    found = array(value, limit=1)
    return int(found.reshape(-1)[0]) if found is not None and found.size == 1 else None
