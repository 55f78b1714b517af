"""Removes the heads of attention that matter least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.passbase import NeedsSamples, Requirement
from onnxcomp_passes.prune.support.ablation import (
    Ablation,
    add_shares,
    find_readers,
    shares_of,
    why_none,
)
from onnxcomp_passes.prune.support.criteria import unit_scores
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.goals import Goals
from onnxcomp_passes.prune.support.ranking import Ranking
from onnxcomp_passes.prune.support.reconstruction import Reconstruction
from onnxcomp_passes.prune.support.removal import Removal
from onnxcomp_passes.prune.support.rest import INCOMPARABLE, fit_rest
from onnxcomp_passes.prune.support.trying import tentatively

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.ablation import Reader

Array = np.ndarray[Any, Any]
# Samples on which single heads are tried.
_TRIED = 16


class PruneHeads(Goals):
    """Removes whole heads of attention that matter least: their queries, keys, values and what reads them.

    Heads are found in the graph: attention is the product of two activations beside each other, so what
    runs along the axis of these and of the weights that make and read them is a head. Any exported form
    will do (one matrix for queries, keys and values or three, with Split, Slice or Gather; heads that
    share keys go together with these), and the Attention operator. The scale of the scores stays, and so
    does the size of a head.

    What a head adds on average moves into the bias behind it. Then what is left is fitted to what it gave
    before (`reconstruct`).

        x -> q, k, v [12 heads of 32] -> softmax(q k^T / sqrt(32)) v -> MatMul(w[384, 384])
        x -> q, k, v [ 8 heads of 32] -> softmax(q k^T / sqrt(32)) v -> MatMul(w[256, 384])

    Michel, Levy and Neubig, "Are Sixteen Heads Really Better than One?" (2019).
    """

    name: ClassVar[str] = "prune-heads"
    lossless: ClassVar[bool] = False
    needs: ClassVar[tuple[Requirement, ...]] = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "PRH101": "The model has no heads of attention that may be removed.",
        "PRH102": "Less was removed than asked for: every layer is down to the heads that it keeps.",
        "PRH103": "The heads of a layer were left alone, for the reason given.",
        "PRH104": "Heads of a layer were removed: which, and what the criterion says of each; `effect` is "
        "what share of the power of the outputs changes when it alone is replaced by what it is on average.",
        "PRH105": "How near the outputs are to the original's on held-out samples, before and after what is "
        "left was fitted to what it gave on the others (then once more, on all, unless that comes less "
        "near), or why it was not.",
        "PRH106": "Another criterion than `effect` decides, for the reason given.",
    }

    criterion: Literal["effect", "wanda", "fluctuation", "obs", "l2", "random"] = "effect"
    """What tells how much a head matters: what the outputs of the model lose without it (effect), what it
    carries into the matrix that reads it (wanda), how much of that changes (fluctuation), what that loses
    when the other heads make up for it (obs), its weights (l2), or nothing (random)."""
    spread: Literal["global", "uniform"] = "global"
    """Where heads go: the least anywhere (`global`), or the same share of each layer (`uniform`)."""
    keep: PositiveInt = 1
    """How many heads each layer keeps at least."""
    skip: tuple[str, ...] = ()
    """Names of nodes whose heads stay; `*` stands for anything."""
    reconstruct: bool = True
    """Fit the weights of the layers that are left to what they gave before."""
    samples: PositiveInt = 128
    """How many samples to look at; every fourth one only judges what is fitted."""
    seed: int = 0
    """Seed of the criterion `random`."""

    @override
    def run(self, ctx: Context) -> None:
        shapes, channels = ctx.facts.refresh(Shapes()), ctx.facts.refresh(Channels("heads"))
        readers = self._readers(ctx, channels)
        if not readers:
            ctx.skip("PRH101", "model", "no heads of attention may be removed")
            return
        scores = self._scores(ctx, shapes, channels, readers)
        layers = {index: channels.groups[index] for index in readers}
        gone = self._chosen(ctx, shapes, layers, scores)
        before = ctx.model.copy()
        shares = shares_of(readers, gone)
        removal = _remove(ctx, shapes, layers, gone)
        add_shares(ctx, shapes, removal, shares)
        for index, dead in gone.items():
            self._tell(ctx, readers[index][0], dead, scores[index])
        ctx.edit.count("heads removed", sum(int(dead.sum()) for dead in gone.values()))
        if self.reconstruct:
            reconstruction = Reconstruction(ctx, before, removal)
            fit_rest(reconstruction, self.samples, ("PRH105", "PRH105"))

    def _readers(self, ctx: Context, channels: ChannelMap) -> dict[int, list[Reader]]:
        """Returns the layers that read heads, by the index of the group."""
        ends = ends_of(channels)
        found: dict[int, list[Reader]] = {}
        groups = {index: each for index, each in enumerate(channels.groups) if each.heads}
        samples = list(islice(ctx.samples or (), _TRIED))
        wanted = [end for index in groups for end in ends.get(index, ())]
        known = find_readers(ctx.model, wanted, samples, ctx.threads)
        for index, group in groups.items():
            mine = ends.get(index, [])
            names = [end.node.name or end.node.op_type for end in mine]
            if why := self._reason(group, names) or why_none(mine, known):
                ctx.skip("PRH103", names[0] if names else group.members[0].value.name, why)
            else:
                found[index] = [known[end] for end in mine]
        return found

    def _reason(self, group: Group, names: Sequence[str]) -> str:
        """Returns why the heads of a layer are left alone."""
        if group.mixed:
            return group.mixed[0]
        if group.units <= self.keep:
            return f"there are no more than {self.keep} of them"
        if any(fnmatchcase(name, pattern) for name in names for pattern in self.skip):
            return "its name is among those to skip"
        return ""

    def _scores(
        self,
        ctx: Context,
        shapes: ShapeMap,
        channels: ChannelMap,
        readers: Mapping[int, Sequence[Reader]],
    ) -> dict[int, Array]:
        if self.criterion != "effect":
            found = unit_scores(ctx, channels, self.criterion, self.seed)
            return {index: found[index] for index in readers}
        samples = list(islice(ctx.samples or (), _TRIED))
        ablation = Ablation.prepare(ctx, shapes, readers, samples)
        units = {index: channels.groups[index].units for index in readers}
        scores: dict[int, Array] = {}
        if not math.isfinite(ablation.noise({})):
            ablation.session.close()
            ctx.note("PRH106", None, f"obs decides: {INCOMPARABLE}")
            other = unit_scores(ctx, channels, "obs", self.seed)
            return {index: other[index] for index in readers}
        with (
            ablation.session,
            ctx.progress(sum(units.values()), "trying the model without each head") as task,
        ):
            for index, count in units.items():
                scores[index] = np.zeros(count)
                for unit in range(count):
                    scores[index][unit] = ablation.noise({index: np.arange(count) == unit})
                    task.advance()
        return scores

    def _chosen(
        self,
        ctx: Context,
        shapes: ShapeMap,
        layers: Mapping[int, Group],
        scores: Mapping[int, Array],
    ) -> dict[int, Array]:
        """Returns which heads go, by the index of the group."""
        keep = dict.fromkeys(layers, self.keep)
        ranking = Ranking(scores, keep, level=self.spread == "uniform")

        def left(share: float) -> float:
            with tentatively(ctx):
                _remove(ctx, shapes, layers, ranking.share(share))
                return gauge.left(ctx.model) if gauge is not None else 0.0

        gauge = self.gauge(ctx)
        if gauge is None:
            share = self.ratio or 0.5
            found = round(share * ranking.total) <= len(ranking)
        else:
            share, found = gauge.least_share(left)
        if not found:
            ctx.warn("PRH102", "model", "every layer is down to the heads that it keeps")
        gone = ranking.share(share)
        # One head goes at least.
        return gone if any(dead.any() for dead in gone.values()) else ranking.first(1)

    def _tell(self, ctx: Context, reader: Reader, dead: Array, scores: Array) -> None:
        if not dead.any():
            return
        which = np.flatnonzero(dead).tolist()
        lost = ", ".join(f"{score:.2g}" for score in scores[dead])
        text = f"{len(which)} of {len(dead)} heads are gone: {which}, {self.criterion} {lost}"
        ctx.note("PRH104", reader.node, text)


def _remove(
    ctx: Context, shapes: ShapeMap, layers: Mapping[int, Group], gone: Mapping[int, Array]
) -> Removal:
    removal = Removal(ctx, shapes)
    for index, dead in gone.items():
        if dead.any():
            removal.drop(layers[index], dead)
    removal.apply()
    return removal
