"""Removes channels that are without effect: dead code, one channel at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import OVERRIDABLE, array, is_op, standard_op
from onnxcomp.passbase import Pass
from onnxcomp_passes.prune.support.constancy import Constancy
from onnxcomp_passes.prune.support.folding import add_share
from onnxcomp_passes.prune.support.leftovers import drop_constant_branches, drop_noops
from onnxcomp_passes.prune.support.likeness import Fingerprints, Likeness
from onnxcomp_passes.prune.support.removal import Removal
from onnxcomp_passes.prune.support.stored import is_made_of_constants
from onnxcomp_passes.prune.support.vanishing import Vanishing, vanishing
from onnxcomp_passes.prune.support.verdicts import Judge, kept_for_kernels
from onnxcomp_passes.simplify.eliminate_dead import EliminateDead
from onnxcomp_passes.simplify.fold_constants import FoldConstants

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import Group
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context

# Each round can make more channels unread; a network is no deeper than this in practice.
MAX_ROUNDS = 256


class ShrinkChannels(Pass):
    """Removes channels that have no effect, and the weights that make and read them.

    A channel goes when everybody who reads it multiplies it by zero, or when it always holds the same
    number: that number's share moves into the bias of those who read it. Of channels that are equal for
    every input, or multiples of each other, one stays, and weights are added up; where zero padding keeps
    a constant out of the bias, one channel holds it for all. So a network that was pruned by masks, in any
    framework, loses the masked channels for real, whatever form the masks have: zeros in weights (of
    integers too), a product with a mask, a normalization that scales by zero, a Where. Channels are
    followed through convolutions (grouped, depthwise, transposed), matrix products, normalizations,
    residual sums, Concat, Split, Slice, Reshape, attention heads, embeddings, recurrent layers, branches
    and loops; what is not understood stays. Branches that hold a constant become one, layers that hand on
    what they read go.

    Outputs agree to rounding where activations are finite: zero times infinity is taken for zero. Weights
    that are not finite, or would not be once added up, are neither added up nor moved into a bias. Layers
    keep one channel at least.

        x -> Conv(64 filters, 20 of them zero) -> Relu -> Conv(w[128, 64])
        x -> Conv(44 filters) -> Relu -> Conv(w[128, 44])
    """

    name: ClassVar[str] = "shrink-channels"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "SHR101": "No channel of the model is without effect. Masks must be zeros in the weights that make "
        "or that read a channel; `onnxcomp inspect --channels` shows which channels could go at all."
    }

    multiple: PositiveInt | None = None
    """What is left of the channels of a Conv is a multiple of this, for which some without effect stay;
    unless given, what the target's fast kernels take (4 on a CPU: with other numbers of channels a Conv
    leaves onnxruntime's blocked layout, and is slower with fewer channels than with more). 1 removes all."""

    @override
    def run(self, ctx: Context) -> None:
        mark = ctx.edit.mark()
        if _computes_parameters(ctx.model):
            FoldConstants().run(ctx)
        multiple = self.multiple or ctx.target.alignment
        removed = _shrink(ctx, multiple)
        tidied = False
        while _tidy(ctx):
            tidied = True
            removed += _shrink(ctx, multiple)
        if removed:
            EliminateDead().run(ctx)
            ctx.edit.count("channels removed", removed)
        elif not tidied:
            ctx.edit.rollback(mark)
            ctx.facts.keep(())
            ctx.skip("SHR101", "model", "no channel is without effect", _hint(ctx.model))


def _hint(model: Model) -> str:
    if any(OVERRIDABLE in value.meta for value in model.graph.initializers.values()):
        return "weights are inputs that callers may replace; fix-signature makes them constants"
    return ""


def _computes_parameters(model: Model) -> bool:
    """Whether a node reads what other nodes make of constants: weights times a mask, shapes, pads."""
    return any(
        value is not None and (is_made_of_constants(value) or is_op(value.producer(), "Constant"))
        for node in model.nodes()
        if standard_op(node) is not None
        for value in node.inputs
    )


def _shrink(ctx: Context, multiple: int) -> int:
    """Removes channels until none is left that could go; returns how many went."""
    removed = 0
    prints = Fingerprints()
    for prefer in ("large", "outer", "inner"):
        for _ in range(MAX_ROUNDS):
            found = _Round(ctx, Channels(prefer), prints, multiple)
            removed += found.removed
            if found.merged:
                ctx.edit.count("channels merged", found.merged)
            if not found.removed:
                break
        if not ctx.facts.get(Channels(prefer)).ambiguous:
            break
    return removed


def _tidy(ctx: Context) -> bool:
    """Removes branches that hold a constant and layers that do nothing; returns whether any was."""
    shapes = ctx.facts.refresh(Shapes())
    dropped = drop_constant_branches(ctx, Constancy(ctx.model, shapes))
    if dropped:
        ctx.edit.count("constant branches removed", dropped)
    dropped_layers = drop_noops(ctx, ctx.facts.refresh(Shapes()) if dropped else shapes)
    if dropped_layers:
        ctx.edit.count("layers without effect removed", dropped_layers)
    if dropped or dropped_layers:
        EliminateDead().run(ctx)
    return bool(dropped or dropped_layers)


class _Round:
    """Removes what is without effect now; what that makes unread is seen in the next round.

    Attributes:
        removed: How many units went.
        merged: How many of these live on in others.
    """

    def __init__(
        self, ctx: Context, question: Channels, prints: Fingerprints, multiple: int
    ) -> None:
        self._ctx = ctx
        self._multiple = multiple
        self._shapes = ctx.facts.refresh(Shapes())
        channels = ctx.facts.refresh(question)
        constancy = Constancy(ctx.model, self._shapes)
        axes = [(m.value, m.axis) for group in channels.groups for m in group.members]
        likeness = Likeness(ctx.model, constancy, axes, prints)
        self._removal = Removal(ctx, self._shapes)
        self._judge = Judge(channels, constancy, likeness, self._removal)
        self._vanished: list[Vanishing] = []
        self.merged = 0
        # Backwards: what is read for the sake of channels that go is seen to be unread at once.
        self.removed = sum(self._drop(group) for group in reversed(channels.groups))
        if self.removed:
            self._apply()

    def _drop(self, group: Group) -> int:
        dead = self._judge.dead(group)
        if dead.all() and self._removal.empties(group):
            if (branch := vanishing(group, self._removal)) is not None:
                return self._vanish(group, branch, dead)
            dead[0] = False
        absorbed, plans = self._judge.absorbed(group, dead)
        gone = dead | absorbed
        spared = kept_for_kernels(group, gone, self._multiple)
        # What is left for the sake of the kernels need not be merged.
        order = np.r_[np.flatnonzero(absorbed), np.flatnonzero(dead)]
        gone[order[:spared]] = False
        if gone.any():
            self._judge.merge(plans, gone & absorbed)
            self._removal.drop(group, gone)
            self._judge.fold(group, gone)
        self.merged += int((gone & absorbed).sum())
        return int(gone.sum())

    def _vanish(self, group: Group, branch: Vanishing, gone: np.ndarray[Any, Any]) -> int:
        self._judge.fold(group, gone)
        self._removal.drop(replace(group, members=branch.members), gone)
        self._vanished.append(branch)
        return group.units

    def _apply(self) -> None:
        moved = self._judge.moved
        for value, merges in moved.merges.items():
            if (weight := array(value)) is not None:
                for merge in merges:
                    weight = merge.applied(weight)
                self._ctx.edit.set_tensor(value, weight)
        self._removal.apply()
        for node, share in moved.shares:
            dtype = self._shapes.dtype(node.outputs[0])
            add_share(self._ctx, node, share, self._removal, dtype)
        for branch in self._vanished:
            branch.detach(self._ctx.edit)
        if self._vanished:
            EliminateDead().run(self._ctx)
            self._ctx.edit.count("branches removed", len(self._vanished))
