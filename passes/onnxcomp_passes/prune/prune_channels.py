"""Removes the channels that matter least."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
from onnxcomp_passes.prune.support.rest import fit_rest
from onnxcomp_passes.prune.support.selection import (
    Candidate,
    Spread,
    counts,
    given_back,
    least_units,
    lowest,
)
from onnxcomp_passes.prune.support.trying import tentatively

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.goals import Gauge
    from onnxcomp_passes.prune.support.regression import Choice

# Share of its units that a group loses while it is found out what that saves.
_TRIED = 0.5
# What is this near to the share that was asked for counts as that.
_NEARLY = 0.9
# How often it is tried to give units back where more went than had to.
_RETURNS = 48


@dataclass(frozen=True)
class Trial:
    """A way to spread channels, and what came of it.

    Attributes:
        plan: How many units of each group go.
        decibels: How near to the original that comes on held-out samples, before and after layers are
            fitted; None when it was not tried.
        choices: How the layers were fitted.
        problem: Why they could not be.
    """

    plan: Sequence[int]
    decibels: tuple[float, float] | None = None
    choices: dict[str, list[Choice | None]] = field(default_factory=dict)
    problem: str = ""

    @property
    def reached(self) -> float:
        """How near it came; nothing is nearer than something."""
        known = [each for each in self.decibels or () if not math.isnan(each)]
        return max(known, default=-math.inf)


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
        "understood (`onnxcomp inspect --channels` shows what is in the way), or no group may lose any.",
        "PRN102": "Less was removed than asked for: every group keeps a share of its channels (`keep`) and "
        "a multiple of them (`multiple`), or no model was found that takes as little time; then it is the "
        "fastest that was.",
        "PRN103": "A group of channels was skipped, for the reason given.",
        "PRN104": "How near the outputs are to the original's on held-out samples, before and after the "
        "layers that are left were fitted to what they gave, on the other samples. Then they are fitted once "
        "more, on all, unless that comes less near.",
        "PRN105": "Nothing was fitted: there are no samples, or too few (give real ones, --data), or values "
        "between layers are sequences.",
        "PRN106": "A group is judged by its weights, because what it carries on the samples is NaN or "
        "infinite, or cannot be seen.",
        "PRN107": "How much each criterion counts towards `confidence` on this model, or why nothing was "
        "measured.",
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
    `auto` is `obs` with samples (`measured` without `reconstruct`, or where channels are the state of a
    recurrent layer), and `l2` without samples."""
    spread: Literal["auto", "uniform", "global", "efficient"] = "auto"
    """Where channels go: `uniform`, the same share of each group, `global`, what matters least anywhere, or
    `efficient`, what matters least for the arithmetic or the weights that it saves; `auto` is what comes
    nearest to the original on held-out samples, and uniform without samples."""
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
            reason = channels.main_reason()
            why = f": most weights are kept because {reason}" if reason else ""
            ctx.skip("PRN101", "model", f"no channel may be removed{why}")
            return
        gauge = self.gauge(ctx)
        if gauge is not None and gauge.adds_up:
            candidates = [self._priced(ctx, shapes, each, gauge) for each in candidates]
        plans = self._plans(ctx, shapes, candidates, gauge)
        tried = [self._tried(ctx, shapes, candidates, plan) for plan in plans if len(plans) > 1]
        best = max(tried, key=lambda each: each.reached, default=Trial(plans[0]))
        self._say_less(ctx, candidates, best.plan)
        self._prune(ctx, shapes, candidates, best)

    def _say_less(self, ctx: Context, candidates: Sequence[Candidate], plan: Sequence[int]) -> None:
        """Says when clearly less goes than the share of channels that was asked for."""
        if self.ratio is None or not any(plan):
            return
        units = sum(each.group.units for each in candidates)
        # A group loses whole channels.
        if sum(plan) < _NEARLY * self.ratio * units - len(plan):
            gone = sum(plan) / units
            text = f"{gone:.0%} of the channels that may go went, not {self.ratio:.0%}"
            ctx.warn("PRN102", "model", f"{text}: groups keep a share and a multiple of theirs")

    def _plans(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        gauge: Gauge | None,
    ) -> list[list[int]]:
        """Returns how many units of each group go, for each way to spread them that is to be tried."""
        tried: tuple[Spread, ...] = ("uniform", "global", "efficient")
        if self.spread != "auto":
            tried = (self.spread,)
        elif ctx.samples is None or not self.reconstruct or len(candidates) == 1:
            tried = ("uniform",)
        elif gauge is None or not gauge.adds_up:
            tried = ("uniform", "global")
        found: dict[tuple[int, ...], None] = {}
        for spread in tried:
            plan = counts(candidates, self._share(ctx, shapes, candidates, spread, gauge), spread)
            if gauge is not None and gauge.adds_up:
                plan = self._filled(ctx, shapes, candidates, plan, gauge)
            found[tuple(plan)] = None
        # Nothing is nearer to the original than the original: it would always be the best.
        return [list(plan) for plan in found if any(plan)] or [list(plan) for plan in found]

    def _tried(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        plan: Sequence[int],
    ) -> Trial:
        """Tries a plan, and says how near to the original that comes on held-out samples."""
        before = ctx.model.copy()
        with tentatively(ctx):
            fits = Reconstruction(ctx, before, self._remove(ctx, shapes, candidates, plan))
            decibels = fits.search(self.samples)
        return Trial(plan, decibels, fits.choices, fits.problem)

    def _prune(
        self, ctx: Context, shapes: ShapeMap, candidates: Sequence[Candidate], best: Trial
    ) -> None:
        """Removes channels and fits what is left, as a trial has found to be best if there was one."""
        removed = sum(best.plan)
        if not removed:
            text = "every group is down to what it keeps, or too small for a multiple to go"
            ctx.skip("PRN101", "model", text)
            return
        before = ctx.model.copy()
        removal = self._remove(ctx, shapes, candidates, best.plan)
        ctx.edit.count("channels removed", removed)
        if not self.reconstruct:
            return
        if ctx.samples is None:
            text = "the layers that are left were not fitted: there are no samples"
            ctx.note("PRN105", None, text)
            return
        reconstruction = Reconstruction(ctx, before, removal, best.choices, problem=best.problem)
        fit_rest(reconstruction, self.samples, ("PRN104", "PRN105"), best.decibels)

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
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        spread: Spread,
        gauge: Gauge | None,
    ) -> float:
        """Returns the share of channels that reaches the goal."""
        if gauge is None:
            return self.ratio or 0.5

        def left(share: float) -> float:
            return self._left(ctx, shapes, candidates, counts(candidates, share, spread), gauge)

        share, found = gauge.least_share(left)
        if not found:
            what = "every group is down to what it keeps"
            if self.latency is not None:
                what = f"no share of channels to remove was found that takes {self.latency:.0%} of the time"
            ctx.warn("PRN102", "model", what)
        return share

    def _left(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        plan: Sequence[int],
        gauge: Gauge,
    ) -> float:
        """Returns what would be left of what there should be less of."""
        with tentatively(ctx):
            self._remove(ctx, shapes, candidates, plan)
            return gauge.left(ctx.model)

    def _priced(
        self, ctx: Context, shapes: ShapeMap, candidate: Candidate, gauge: Gauge
    ) -> Candidate:
        """Returns a candidate with what goes with one of its units."""
        units = candidate.group.units
        tried = min(max(int(units * _TRIED), 1), units - 1)
        left = self._left(ctx, shapes, [candidate], [tried], gauge)
        return replace(candidate, saving=max(1 - left, 0.0) / tried)

    def _filled(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        plan: list[int],
        gauge: Gauge,
    ) -> list[int]:
        """Gives units back, those that matter most for their price, as long as the goal is reached."""
        plan = list(plan)
        open_ = {index for index, count in enumerate(plan) if count}
        for _ in range(_RETURNS):
            if not open_:
                break
            back = {index: given_back(candidates[index], plan[index]) for index in open_}
            index = max(back, key=lambda each: back[each][1])
            tried = [*plan]
            tried[index] = back[index][0]
            if self._left(ctx, shapes, candidates, tried, gauge) <= gauge.goal:
                plan = tried
            if plan is not tried or not plan[index]:
                open_.discard(index)
        return plan

    def _remove(
        self,
        ctx: Context,
        shapes: ShapeMap,
        candidates: Sequence[Candidate],
        plan: Sequence[int],
    ) -> Removal:
        removal = Removal(ctx, shapes)
        for candidate, count in zip(candidates, plan, strict=True):
            if count:
                removal.drop(candidate.group, lowest(candidate, count))
        removal.apply()
        return removal


def _names(channels: ChannelMap, group: Group) -> list[str]:
    """Names of the nodes that make the channels of a group, in order."""
    makers = (channels.producers.get((member.value, member.axis)) for member in group.members)
    return list(dict.fromkeys(node.name or node.op_type for node in makers if node is not None))
