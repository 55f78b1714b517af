"""Removes nodes that change nothing, and merges chains of which one node would do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir.ops import has_reference_attribute, is_training
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, aliasable, bypass
from onnxcomp_passes.simplify.support.bounds import MergeBounds
from onnxcomp_passes.simplify.support.casts import MergeCasts
from onnxcomp_passes.simplify.support.layouts import (
    FlattenConcats,
    MergeReductions,
    MergeReshapes,
    MergeTransposes,
    MergeUnsqueezes,
    RejoinSplit,
)
from onnxcomp_passes.simplify.support.neutral import NEUTRAL_OPS, adds_positive_zero, neutral
from onnxcomp_passes.simplify.support.noops import NOOPS
from onnxcomp_passes.simplify.support.picks import (
    DropZeroStates,
    GatherFromConcat,
    GatherOne,
    MergeSlices,
    SliceFromConcat,
)
from onnxcomp_passes.simplify.support.sizes import GatherKeepingAxis, ReadPartOfShape

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp_passes.simplify.support.noops import Proof


class RemoveNoOperations:
    """A node whose output equals one of its inputs bit for bit goes.

    An output of a graph that is an input, an initializer or another output keeps an Identity.
    """

    name = "nodes without effect removed"
    proofs: ClassVar[dict[str, Proof]] = {**NOOPS, **dict.fromkeys(NEUTRAL_OPS, neutral)}
    ops = frozenset(proofs)

    def match(self, node: ir.Node, facts: Facts) -> Match[ir.Value] | Miss:
        """Finds the value that the output equals."""
        if has_reference_attribute(node):
            return NOTHING
        source = self.proofs[node.op_type](node, facts)
        if source is None:
            return _left_alone(node)
        if node.op_type == "Identity" and not aliasable(node.outputs[0], source):
            return NOTHING
        return Match(node, source)

    def apply(self, match: Match[ir.Value], edit: Edit) -> None:
        """Lets readers read that value."""
        bypass(edit, match.node, match.found)


def _left_alone(node: ir.Node) -> Miss:
    """Says so where a node looks as if it changed nothing."""
    if node.op_type == "Dropout" and is_training(node):
        return Miss("it may be in training mode, where it draws random numbers", near=True)
    if node.op_type == "Add" and adds_positive_zero(node):
        return Miss("adding 0.0 turns -0.0 into 0.0, which a division can tell apart", near=True)
    return NOTHING


class EliminateIdentity(LocalPass):
    """Removes nodes that change nothing, and merges chains of which one node would do.

    Removed are Identity, Dropout in inference, Cast to the same type, and Reshape, Transpose,
    Squeeze, Unsqueeze, Flatten, Expand, Tile, Slice, Pad, Gather, Clip, Where, Concat and Split
    that are proven to hand on their input; x * 1, x / 1, x - 0 and x + (-0); Not(Not(x)),
    Neg(Neg(x)), Relu(Relu(x)). Pairs and chains of Transpose, Reshape, Squeeze, Unsqueeze, Cast,
    Clip, Relu, Concat, Slice, ReduceMean and their like become one node. What reads one part of a
    Concat reads that part; initial states of an LSTM that are zero are left out.

    Results stay equal bit for bit, except that two ReduceMean or ReduceSum in one are rounded once
    less. That is why x + 0.0 stays: it turns -0.0 into 0.0.

        x -> Transpose -> Transpose -> Relu -> Identity -> y
        x -> Relu -> y
    """

    name = "eliminate-identity"
    lossless = True
    near_miss_code = "EID101"
    codes: ClassVar[Mapping[str, str]] = {
        "EID101": "A node that changes little or nothing stays, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (
            RemoveNoOperations(),
            MergeTransposes(),
            MergeReshapes(),
            MergeUnsqueezes(),
            MergeCasts(),
            MergeBounds(),
            RejoinSplit(),
            FlattenConcats(),
            MergeReductions(),
            GatherFromConcat(),
            SliceFromConcat(),
            MergeSlices(),
            GatherOne(),
            GatherKeepingAxis(),
            ReadPartOfShape(),
            DropZeroStates(),
        )
