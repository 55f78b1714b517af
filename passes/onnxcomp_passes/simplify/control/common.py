"""What both branches of an If compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.bodies import can_lift, reads
from onnxcomp.ir.ops import is_op
from onnxcomp_passes.simplify.control.numbering import Numbering

if TYPE_CHECKING:
    from onnxcomp.ir import ir

# onnxruntime joins these with what follows, which it cannot from one scope to another.
_JOINED_WITH_READERS = (
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "BatchNormalization",
    "QuantizeLinear",
    "DequantizeLinear",
)


def common_nodes(then: ir.Graph, other: ir.Graph) -> dict[ir.Node, list[ir.Node]]:
    """Returns nodes of one branch, in order, that can be in front of the If, with their twins.

    A node stays where it makes a result of one branch only: an Identity would take its place.
    """
    numbering = Numbering()
    mine, theirs = numbering.of(then), numbering.of(other)
    twins: dict[int, list[ir.Node]] = {}
    for node in other:
        if node.outputs:
            twins.setdefault(theirs[node.outputs[0]], []).append(node)
    fixed = _fixed_results(then, other, mine, theirs)
    banned: set[ir.Node] = set()
    while True:
        found: dict[ir.Node, list[ir.Node]] = {}
        for node in then:
            equal = twins.get(mine[node.outputs[0]]) if node.outputs else None
            if equal is None or node in banned or not _is_free(node, then, found):
                continue
            if not any(value in fixed for each in (node, *equal) for value in each.outputs):
                found[node] = equal
        torn = [node for node in found if _is_torn(node, found, then)]
        if not torn:
            return found
        banned.update(torn)


def _fixed_results(
    then: ir.Graph, other: ir.Graph, mine: dict[ir.Value, int], theirs: dict[ir.Value, int]
) -> set[ir.Value]:
    """Results of a branch that differ from those of the other at the same place."""
    fixed: set[ir.Value] = set()
    for first, second in zip(then.outputs, other.outputs, strict=True):
        if mine.get(first) != theirs.get(second):
            fixed |= {first, second}
    return fixed


def _is_free(node: ir.Node, body: ir.Graph, found: dict[ir.Node, list[ir.Node]]) -> bool:
    """Whether everything that a node reads is there in front of the If as well."""
    for value in reads(node):
        if value.graph is body and not can_lift(value) and value.producer() not in found:
            return False
    return True


def _is_torn(node: ir.Node, found: dict[ir.Node, list[ir.Node]], body: ir.Graph) -> bool:
    if not is_op(node, *_JOINED_WITH_READERS):
        return False
    readers = {usage.node for value in node.outputs for usage in value.uses()}
    return any(reader.graph is not body or reader not in found for reader in readers)


def equal_results(
    then: ir.Graph, other: ir.Graph, moved: dict[ir.Node, list[ir.Node]]
) -> list[int]:
    """Returns the indices of results that are the same, whichever branch runs."""
    numbering = Numbering()
    mine, theirs = numbering.of(then), numbering.of(other)
    found = []
    for index, (first, second) in enumerate(zip(then.outputs, other.outputs, strict=True)):
        if mine.get(first) != theirs.get(second):
            continue
        if can_lift(first) or first.producer() in moved:
            found.append(index)
    return found
