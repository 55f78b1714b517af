"""Removes the blocks and branches that matter least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, FiniteFloat, PositiveInt, model_validator
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import subgraphs
from onnxcomp.passbase import NeedsSamples, Requirement
from onnxcomp_passes.prune.support.blocks import find_blocks, find_branches, is_layer
from onnxcomp_passes.prune.support.goals import Goals
from onnxcomp_passes.prune.support.omission import Omissions, Replacement
from onnxcomp_passes.prune.support.reconstruction import Reconstruction
from onnxcomp_passes.prune.support.removal import Removal
from onnxcomp_passes.prune.support.rest import INCOMPARABLE, fit_rest
from onnxcomp_passes.prune.support.trying import divide, judge_by

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    import numpy as np

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.blocks import Piece
    from onnxcomp_passes.prune.support.goals import Gauge
    from onnxcomp_passes.prune.support.omission import Left

# As many are enough to tell blocks apart.
_JUDGING = 16


class PruneLayers(Goals):
    """Removes whole blocks that matter least: layers of a transformer, residual blocks of a network.

    A block can go when what it gives has the shape of what it reads: what comes behind it then reads what
    it read. Which blocks there are is seen from the graph, not from names: everything passes through
    their ends, and between them there is a residual sum, or layers that stand beside their like. What
    each one costs is measured on the outputs of the model, with samples, and again after each removal.

    In the place of a block a cheap layer may stand (`replacement`), fitted to what the block gave; what is
    left of the model is fitted too (`reconstruct`). Both stay only where they bring the outputs nearer to
    the original's on samples that nothing was fitted to.

        x -> LayerNorm -> attention -> + -> LayerNorm -> feed-forward -> + -> y
        x -> MatMul(w[384, 384]) -> y

    How much a block matters is judged by its effect as in Men et al., "ShortGPT" (2024) and Gromov et al.,
    "The Unreasonable Ineffectiveness of the Deeper Layers" (2024), here on the outputs themselves.
    """

    name: ClassVar[str] = "prune-layers"
    lossless: ClassVar[bool] = False
    needs: ClassVar[tuple[Requirement, ...]] = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "PRL101": "No block may be removed: none reads and gives values of the same shape, or all are to be "
        "skipped, or the model does not run without them.",
        "PRL102": "Less was removed than asked for: no other block may go, or the outputs would be further "
        "from the original's than allowed (`least_decibels`).",
        "PRL103": "A block was removed: how near the outputs are to the original's on held-out samples "
        "without it and all that went before, and what stands in its place.",
        "PRL104": "Layers in the body of an If, Loop or Scan were left alone; only whole ones go.",
        "PRL105": "How near the outputs are to the original's on held-out samples, before and after what is "
        "left was fitted, or why it was not.",
    }

    count: PositiveInt | None = None
    """How many blocks to remove."""
    least_decibels: FiniteFloat | None = None
    """Stop before the outputs are further from the original's than this signal-to-noise ratio on held-out
    samples, in dB; without another goal, remove all that this allows."""
    unit: Literal["blocks", "branches", "all"] = "blocks"
    """What goes: `blocks` as a whole, single `branches` of residual and other sums (and layers between
    values of the same shape), or `all` of these."""
    replacement: Replacement = "auto"
    """What stands in the place of a block: nothing (`none`), a factor and an offset for each channel
    (`scale`), one matrix where that has at most half of the block's weights (`linear`), or what brings
    most (`auto`)."""
    skip: tuple[str, ...] = ()
    """Names of nodes whose blocks stay; `*` stands for anything."""
    reconstruct: bool = True
    """Fit the weights of the layers that are left to what they gave before."""
    samples: Annotated[int, Field(ge=1)] = 128
    """How many samples to look at; every fourth one only judges."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        others = (self.ratio, self.flops, self.parameters, self.latency)
        if self.count is not None and any(other is not None for other in others):
            raise ValueError("give one of count, ratio, flops, parameters and latency")
        return self

    @override
    def run(self, ctx: Context) -> None:
        pieces = self._pieces(ctx)
        if not pieces:
            return
        samples = list(islice(ctx.samples or (), self.samples))
        before = ctx.model.copy()
        shapes = ctx.facts.get(Shapes())
        left = self._leave_out(ctx, pieces, before, samples)
        if left and self.reconstruct:
            reconstruction = Reconstruction(ctx, before, Removal(ctx, shapes))
            fit_rest(reconstruction, self.samples, ("PRL105", "PRL105"))

    def _pieces(self, ctx: Context) -> list[Piece]:
        shapes = ctx.facts.refresh(Shapes())
        found: list[Piece] = []
        if self.unit != "branches":
            found += find_blocks(ctx.model.graph, shapes)
        if self.unit != "blocks":
            known = {piece.layers for piece in found}
            found += [
                piece
                for piece in find_branches(ctx.model.graph, shapes)
                if piece.layers not in known
            ]
        for node in ctx.model.graph:
            if any(is_layer(inner) for body in subgraphs(node) for inner in body):
                ctx.skip("PRL104", node, "layers in a body stay")
        left = [piece for piece in found if not self._is_skipped(piece)]
        if not left:
            why = "the names of all are among those to skip"
            if not found:
                why = "no block reads and gives values of the same shape"
            ctx.skip("PRL101", "model", why)
        return left

    def _is_skipped(self, piece: Piece) -> bool:
        names = [node.name or "" for node in piece.layers] + [piece.name]
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.skip)

    def _leave_out(
        self,
        ctx: Context,
        pieces: Sequence[Piece],
        before: Model,
        samples: Sequence[Mapping[str, np.ndarray]],
    ) -> list[Left]:
        """Removes blocks until the goal is reached; returns them."""
        gauge = self.gauge(ctx)
        enough = self._enough(len(pieces))
        fitted, held_out = divide(samples) if len(samples) > 1 else ([], samples)
        done: list[Left] = []
        with (
            judge_by(ctx, before, held_out[:_JUDGING]) as judge,
            ctx.progress(len(pieces), "measuring blocks") as task,
        ):
            if judge.decibels(before) == -math.inf:
                ctx.skip("PRL101", "model", INCOMPARABLE)
                return []
            saving = None if gauge is None or not gauge.adds_up else gauge.left
            omissions = Omissions(ctx, before, judge, fitted, self.replacement, saving)
            mark, stats, reached = ctx.edit.mark(), ctx.edit.stats.copy(), False
            for left in omissions.run(pieces, task):
                if self.least_decibels is not None and left.decibels < self.least_decibels:
                    ctx.edit.rollback(mark)
                    ctx.edit.stats = stats
                    break
                done.append(left)
                _tell(ctx, left)
                mark, stats = ctx.edit.mark(), ctx.edit.stats.copy()
                reached = len(done) >= enough or _is_reached(gauge, ctx.model)
                if reached:
                    break
            if not reached:
                self._say_less(ctx, done)
        if done:
            ctx.edit.count("blocks removed", len(done))
        else:
            why = "the model does not run without any one of them"
            if self.least_decibels is not None:
                why = "no block may be removed within the limits that were given"
            ctx.skip("PRL101", "model", why)
        return done

    def _enough(self, pieces: int) -> float:
        """How many pieces to remove at most."""
        if self.count is not None:
            return self.count
        others = (self.flops, self.parameters, self.latency)
        if self.ratio is None and any(goal is not None for goal in (*others, self.least_decibels)):
            return math.inf
        return max(1, round(pieces * (self.ratio or 0.5)))

    def _say_less(self, ctx: Context, done: Sequence[Left]) -> None:
        goals = (self.count, self.ratio, self.flops, self.parameters, self.latency)
        if done and any(goal is not None for goal in goals):
            ctx.warn("PRL102", "model", f"only {len(done)} blocks could be removed")


def _is_reached(gauge: Gauge | None, model: Model) -> bool:
    return gauge is not None and gauge.left(model) <= gauge.goal


def _tell(ctx: Context, left: Left) -> None:
    instead = f", {left.instead} in its place" if left.instead else ""
    text = f"the block that ends with {left.piece.name} is gone{instead}: {left.decibels:.1f} dB"
    ctx.note("PRL103", left.piece.name, text)
