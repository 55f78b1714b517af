"""Branches of which every channel goes: what joins them with others does without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, is_op

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import Group, Member
    from onnxcomp.ir import Edit, ir
    from onnxcomp_passes.prune.support.removal import Removal


@dataclass(frozen=True)
class Vanishing:
    """A group whose channels are all that a branch has.

    Attributes:
        members: What only loses the channels.
        joins: Nodes with the operands that they do without.
    """

    members: tuple[Member, ...]
    joins: tuple[tuple[ir.Node, ir.Value], ...]

    def detach(self, edit: Edit) -> None:
        """Leaves operands out; what made them is dead then."""
        for node, value in self.joins:
            left = [operand for operand in node.inputs if operand is not value]
            for index, operand in enumerate(left):
                edit.set_input(node, index, operand)
            edit.truncate_inputs(node, len(left))


def vanishing(group: Group, removal: Removal) -> Vanishing | None:
    """Returns how a group can go as a whole, None where a channel has to stay for it."""
    emptied = [member for member in group.members if removal.is_emptied(member)]
    axes = {member.value: member.axis for member in emptied}
    joins: list[tuple[ir.Node, ir.Value]] = []
    for value, axis in axes.items():
        joins += [
            (use.node, value)
            for use in value.uses()
            if _joins(use.node, axis, removal) and use.node.outputs[0] not in axes
        ]
    if not joins or any(
        len({v for n, v in joins if n is node}) >= len(node.inputs) for node, _ in joins
    ):
        return None
    gone, dead = _unread(joins)
    for value in axes:
        maker = value.producer()
        if value not in gone or (maker is not None and maker not in dead):
            return None  # part of a Split, or read elsewhere: it would be left without channels
    return Vanishing(tuple(m for m in group.members if m.value not in axes), tuple(joins))


def _joins(node: ir.Node, axis: int, removal: Removal) -> bool:
    rank = removal.rank(node.outputs[0])
    return is_op(node, "Concat") and bool(rank) and attribute(node, "axis", 0) % rank == axis


def _unread(joins: list[tuple[ir.Node, ir.Value]]) -> tuple[set[ir.Value], set[ir.Node]]:
    """Returns values that nobody reads once operands are left out, and nodes that make nothing else."""
    cut = {(id(node), value) for node, value in joins}
    dead: set[ir.Node] = set()
    gone: set[ir.Value] = set()
    waiting = [value for _, value in joins]
    while waiting:
        value = waiting.pop()
        read = any(
            use.node not in dead and (id(use.node), value) not in cut for use in value.uses()
        )
        if value in gone or read or value.is_graph_output():
            continue
        gone.add(value)
        node = value.producer()
        unused = node is not None and all(o in gone or not o.uses() for o in node.outputs)
        if node is not None and unused and not any(o.is_graph_output() for o in node.outputs):
            dead.add(node)
            waiting += [operand for operand in node.inputs if operand is not None]
    return gone, dead
