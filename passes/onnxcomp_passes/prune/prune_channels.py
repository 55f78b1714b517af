"""Removes the channels that matter least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.shapes import Shapes
from onnxcomp_passes.prune.support.criteria import CriterionName, unit_scores
from onnxcomp_passes.prune.support.goals import Goals, preferred_multiple
from onnxcomp_passes.prune.support.reconstruction import Reconstruction
from onnxcomp_passes.prune.support.removal import Removal
from onnxcomp_passes.prune.support.selection import Candidate, Spread, least_units, select

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.selection import Array

_SPREADS: tuple[Spread, ...] = ("uniform", "global")


class PruneChannels(Goals):
    """Removes the channels that matter least, and everything that made or read them.

    Channels that belong together (through residual sums, depthwise convolutions, concatenations,
    heads of attention, gates of recurrent layers...) go together, so that the model that is left is
    an ordinary smaller one. Inputs and outputs stay. Say how much: a share of all channels
    (`ratio`), of the arithmetic (`flops`), of the weights (`parameters`), or the time that may be left
    (`latency`).

    What is left was not trained to be alone. With samples it is fitted, layer after layer, to what the
    layers gave before (`reconstruct`), which brings most of the quality back: measure it, train it on, or
    use it as a starting point.
    Channels that a normalization runs over are left alone unless `normalized` is set.

        x -> Conv(64 filters) -> Relu -> Conv(w[128, 64])
        x -> Conv(32 filters) -> Relu -> Conv(w[128, 32])
    """

    name: ClassVar[str] = "prune-channels"
    lossless: ClassVar[bool] = False
    codes: ClassVar[Mapping[str, str]] = {
        "PRN101": "No channel may be removed: all are tied to inputs, outputs or operators that are not "
        "understood. `onnxcomp inspect --channels` shows what is in the way.",
        "PRN102": "Less was removed than asked for: every group keeps a share of its channels (`keep`), or "
        "no model was found that takes as little time; then it is the fastest that was.",
        "PRN103": "A group of channels was skipped, for the reason given.",
        "PRN104": "How near the outputs are to the original's on held-out samples, before and after the "
        "layers that are left were fitted to what they gave.",
        "PRN105": "Nothing was fitted: there are no samples, or too few (give real ones, --data), or values "
        "between layers are sequences.",
        "PRN106": "A group is judged by its weights, because what it carries on the samples is NaN or "
        "infinite, or cannot be seen.",
        "PRN107": "How much each criterion counts towards `confidence` on this model.",
    }

    criterion: CriterionName = "auto"
    """What tells how much a channel matters.
    Its weights: `l1`, `l2` (norm of its filters; Li et al., ICLR 2017), `std` (their standard deviation),
    `scale` (factor of its normalization; Liu et al., ICCV 2017), `median` (distance to the layer's other
    filters: FPGM, He et al., CVPR 2019), `lamp` (squared norm over that of all that are no smaller; Lee et
    al., ICLR 2021).
    What it carries on samples: `activation` (mean magnitude; Molchanov et al., ICLR 2017), `peak` (largest
    magnitude), `apoz` (how often it is not 0; Hu et al. 2016; where nothing is ever 0, the mean magnitude).
    What it is worth to the layers that read it: `wanda` (sum of |w| times the root mean square of what it
    multiplies; Sun et al., ICLR 2024), `obd` (the same with both squared, which is what the diagonal of the
    Hessian of the layer's squared error says; LeCun et al. 1990), `fluctuation` (`obd` of what differs from
    the mean, which a bias can replace: FLAP, An et al., AAAI 2024), `taylor` (change of the energy of the
    layer's output, to first order, as the channel fades: gradient times activation as in Molchanov et al.
    2017 and 2019), `obs` (what is lost when the other channels make up for it, one after the other, with
    the whole Hessian; Hassibi and Stork 1992).
    What the model's outputs lose: `measured` (channels taken out for a try, less what others make up for),
    `confidence` (agreement of several of these, each weighed by how well it foretells what is measured).
    `random`: nothing, for comparison.
    `auto` is `obs` with samples (`taylor` without `reconstruct`), and `l2` without samples."""
    spread: Literal["auto", "uniform", "global"] = "auto"
    """Where channels go: `uniform`, the same share of each group, or `global`, the least anywhere; `auto` is
    what comes nearer to the original on held-out samples, and uniform without samples."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of its channels that each group keeps at least."""
    multiple: PositiveInt | None = None
    """What is left of a group is a multiple of this; unless given, of the block of channels that the target's
    fast kernels work on, or of the part of a block that they take at least where a group is small. 1 removes
    as exactly as possible, and can leave a model that is slower than before."""
    normalized: bool = False
    """Also remove channels that a normalization or softmax runs over, which changes all the others."""
    skip: tuple[str, ...] = ()
    """Names of nodes whose channels stay; `*` stands for anything."""
    reconstruct: bool = True
    """With samples: fit the weights of the layers that are left to what they gave before."""
    samples: PositiveInt = 128
    """How many samples to fit on; every fourth one only decides what stays."""
    seed: int = 0
    """Seed of the criterion `random`."""

    @override
    def run(self, ctx: Context) -> None:
        shapes = ctx.facts.refresh(Shapes())
        channels = ctx.facts.refresh(Channels())
        candidates = self._candidates(ctx, channels)
        if not candidates:
            ctx.skip("PRN101", "model", "no channel may be removed")
            return
        for spread in self._spreads(ctx, shapes, candidates):
            self._prune(ctx, shapes, candidates, spread)

    def _spreads(
        self, ctx: Context, shapes: ShapeMap, candidates: Sequence[Candidate]
    ) -> list[Spread]:
        """Tries both ways to spread channels where that is asked for; returns the better one."""
        if self.spread != "auto":
            return [self.spread]
        if ctx.samples is None or not self.reconstruct or len(candidates) == 1:
            return ["uniform"]
        reached: dict[Spread, float] = {}
        for spread in _SPREADS:
            mark, stats, said = ctx.edit.mark(), ctx.edit.stats.copy(), len(ctx.diagnostics)
            reached[spread] = self._prune(ctx, shapes, candidates, spread)
            ctx.edit.rollback(mark)
            ctx.edit.stats = stats
            del ctx.diagnostics[said:]
        return [max(_SPREADS, key=lambda spread: reached[spread])]

    def _prune(
        self, ctx: Context, shapes: ShapeMap, candidates: Sequence[Candidate], spread: Spread
    ) -> float:
        """Removes channels and fits what is left; returns how near that came, in dB."""
        share = self._share(ctx, shapes, candidates, spread)
        before = ctx.model.copy() if self.reconstruct and ctx.samples is not None else None
        removal, removed = self._remove(ctx, shapes, candidates, share, spread)
        ctx.edit.count("channels removed", removed)
        if before is not None and removed:
            return self._fit(ctx, Reconstruction(ctx, before, removal))
        if self.reconstruct:
            ctx.note(
                "PRN105", None, "the layers that are left were not fitted: there are no samples"
            )
        return 0.0

    def _fit(self, ctx: Context, reconstruction: Reconstruction) -> float:
        first, last = reconstruction.run(self.samples)
        if math.isnan(first):
            why = reconstruction.problem or "too few samples"
            ctx.note("PRN105", None, f"the layers that are left were not fitted: {why}")
            return 0.0
        fitted = len(reconstruction.fitted)
        if fitted:
            ctx.edit.count("layers fitted", fitted)
            text = f"{fitted} layers fitted: {first:.1f} dB before, {last:.1f} dB after"
        else:
            text = f"fitting the layers did not help ({first:.1f} dB before, {last:.1f} dB after)"
        ctx.note("PRN104", None, f"{text}, on held-out samples")
        return max(first, last)

    def _candidates(self, ctx: Context, channels: ChannelMap) -> list[Candidate]:
        found = []
        scores = unit_scores(ctx, channels, self.criterion, self.seed, fitted=self.reconstruct)
        for index, group in enumerate(channels.groups):
            names = _names(channels, group)
            if not names:
                continue
            if why := self._reason(group, names):
                ctx.skip("PRN103", names[0], why)
                continue
            timed = self.latency is not None
            multiple = self.multiple or preferred_multiple(ctx, group.units, timed=timed)
            least = least_units(group.units, self.keep, multiple)
            found.append(Candidate(group, scores[index], least, multiple))
        return found

    def _reason(self, group: Group, names: Sequence[str]) -> str:
        """Returns why a group is left alone."""
        if group.mixed and not self.normalized:
            return group.mixed[0]
        if any(fnmatchcase(name, pattern) for name in names for pattern in self.skip):
            return "its name is among those to skip"
        return ""

    def _share(
        self, ctx: Context, shapes: ShapeMap, candidates: Sequence[Candidate], spread: Spread
    ) -> float:
        """Returns the share of channels that reaches the goal."""
        gauge = self.gauge(ctx)
        if gauge is None:
            return self.ratio or 0.5

        def left(share: float) -> float:
            mark = ctx.edit.mark()
            self._remove(ctx, shapes, candidates, share, spread)
            found = gauge.left(ctx.model)
            ctx.edit.rollback(mark)
            return found

        share, found = gauge.least_share(left)
        if not found:
            what = "every group is down to what it keeps"
            if self.latency is not None:
                what = f"no share of channels to remove was found that takes {self.latency:.0%} of the time"
            ctx.warn("PRN102", "model", what)
        return share

    def _remove(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        share: float,
        spread: Spread,
    ) -> tuple[Removal, int]:
        removal = Removal(ctx, shapes)
        chosen: list[Array] = select(candidates, share, spread)
        for candidate, dead in zip(candidates, chosen, strict=True):
            if dead.any():
                removal.drop(candidate.group, dead)
        removal.apply()
        return removal, sum(int(dead.sum()) for dead in chosen)


def _names(channels: ChannelMap, group: Group) -> list[str]:
    """Names of the nodes that make the channels of a group, in order."""
    makers = (channels.producers.get((member.value, member.axis)) for member in group.members)
    return list(dict.fromkeys(node.name or node.op_type for node in makers if node is not None))
