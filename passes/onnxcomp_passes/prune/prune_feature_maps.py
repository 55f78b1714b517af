"""Replaces feature maps that carry little by what they are on average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field, FiniteFloat, PositiveInt
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
from onnxcomp_passes.prune.support.arithmetic import arithmetic
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.goals import ArithmeticGauge, Goals
from onnxcomp_passes.prune.support.ranking import Ranking
from onnxcomp_passes.prune.support.reconstruction import Reconstruction
from onnxcomp_passes.prune.support.removal import Removal
from onnxcomp_passes.prune.support.rest import INCOMPARABLE, fit_rest
from onnxcomp_passes.prune.support.trying import divide, judge_by, tentatively

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.ablation import Reader
    from onnxcomp_passes.prune.support.goals import Gauge

Array = np.ndarray[Any, Any]
# How many samples tell what maps are on average, and how many judge.
_AVERAGED, _JUDGING = 64, 16
# Operations that all trials together may take, and how many trials there are at most.
_EFFORT, _MOST = 1e12, 2048
_FEWEST_BLOCKS = 4
# What the outputs may lose when nothing else is asked for: a hundredth of their magnitude.
_DECIBELS = 40.0
_LEAST_SAVING = 1e-9
_TINY = float(np.finfo(np.float64).tiny)


class PruneFeatureMaps(Goals):
    """Replaces feature maps that hardly change by what they are on average, and removes what made them.

    A map that is the same on every sample (because it is dead behind a Relu, or far into saturation) adds
    the same numbers to what its readers give. These move into their biases, and the map goes with the
    filters that made it. So nothing is lost by maps that are constant, and little by those that hardly
    change: other than with `prune-channels`, the rest of the model needs no fitting (`reconstruct` does it).

    Which ones go is measured on the outputs: maps that change least before their readers are tried first,
    a block of each layer at a time. Without a goal, as many go as `least_decibels` allows.

        x -> Conv(64 filters) -> Relu -> Conv(w[128, 64], b)
        x -> Conv(41 filters) -> Relu -> Conv(w[128, 41], b + w[:, gone] mean)

    An et al., "Fluctuation-based Adaptive Structured Pruning" (2024), replace by the mean too; Molchanov et
    al., "Pruning Convolutional Neural Networks for Resource Efficient Inference" (2017), compare criteria
    with what leaving out each map costs.
    """

    name: ClassVar[str] = "prune-feature-maps"
    lossless: ClassVar[bool] = False
    needs: ClassVar[tuple[Requirement, ...]] = (NeedsSamples(2),)
    codes: ClassVar[Mapping[str, str]] = {
        "PRM101": "No feature map may be replaced: all are tied to inputs, outputs or operators whose output "
        "has no place for a constant, or all carry more than may be lost.",
        "PRM102": "Less was removed than asked for: every layer is down to the maps that it keeps, or more "
        "would take the outputs further from the original's than allowed (`least_decibels`).",
        "PRM103": "The maps of a layer were left alone, for the reason given.",
        "PRM104": "Maps of a layer were replaced by what they are on average: how many, and what share of the "
        "power of the outputs that changes.",
        "PRM105": "How near the outputs are to the original's on held-out samples, and before and after what "
        "is left was fitted.",
    }

    least_decibels: FiniteFloat | None = None
    """Keep the outputs at least as near to the original's as this signal-to-noise ratio on held-out samples,
    in dB; 40 when nothing else is asked for."""
    keep: PositiveInt = 1
    """How many maps each layer keeps at least."""
    normalized: bool = False
    """Also replace maps that a normalization or softmax runs over, which changes all the others."""
    skip: tuple[str, ...] = ()
    """Names of nodes that read maps which stay; `*` stands for anything."""
    reconstruct: bool = False
    """Fit the weights of the layers that are left to what they gave before; pays where a goal takes more
    than what hardly matters."""
    samples: Annotated[int, Field(ge=2)] = 128
    """How many samples to look at; every fourth one judges, of two or three the last."""

    @override
    def run(self, ctx: Context) -> None:
        shapes, channels = ctx.facts.refresh(Shapes()), ctx.facts.refresh(Channels())
        samples = list(islice(ctx.samples or (), self.samples))
        averaged, held_out = divide(samples)
        judging = held_out[:_JUDGING]
        readers = self._readers(ctx, channels, averaged[:_AVERAGED])
        if not readers:
            ctx.skip("PRM101", "model", "no feature map may be replaced")
            return
        ablation = Ablation.prepare(ctx, shapes, readers, judging)
        with ablation.session:
            if not math.isfinite(ablation.noise({})):
                ctx.skip("PRM101", "model", INCOMPARABLE)
                return
            maps = _Maps(ctx, shapes, channels, readers, ablation)
            ranking = self._ranking(ctx, maps, maps.scores(len(judging)))
            gone = self._chosen(ctx, maps, ranking)
            if not any(dead.any() for dead in gone.values()):
                ctx.skip("PRM101", "model", "every feature map carries more than may be lost")
                return
            noises = {i: ablation.noise({i: dead}) for i, dead in gone.items() if dead.any()}
        before = ctx.model.copy()
        shares = shares_of(readers, gone)
        removal = maps.remove(gone)
        add_shares(ctx, shapes, removal, shares)
        for index, noise in noises.items():
            _tell(ctx, readers[index][0], gone[index], noise)
        ctx.edit.count("maps removed", sum(int(dead.sum()) for dead in gone.values()))
        if self.reconstruct:
            reconstruction = Reconstruction(ctx, before, removal)
            fit_rest(reconstruction, self.samples, ("PRM105", "PRM105"))
        else:
            with judge_by(ctx, before, judging) as judge:
                found = judge.decibels(ctx.model)
            text = f"{found:.1f} dB on held-out samples" if math.isfinite(found) else INCOMPARABLE
            ctx.note("PRM105", None, text)

    def _readers(
        self, ctx: Context, channels: ChannelMap, samples: Sequence[Mapping[str, Array]]
    ) -> dict[int, list[Reader]]:
        """Returns the layers that read maps, by the index of the group."""
        ends = ends_of(channels)
        wanted = [
            end for each in ends.values() for end in each if end.node.graph is ctx.model.graph
        ]
        known = find_readers(ctx.model, wanted, samples, ctx.threads)
        found: dict[int, list[Reader]] = {}
        for index, group in enumerate(channels.groups):
            mine = ends.get(index, [])
            if not mine:
                continue
            names = [end.node.name or end.node.op_type for end in mine]
            if why := self._reason(group, names) or why_none(mine, known):
                ctx.skip("PRM103", mine[0].node, why)
            else:
                found[index] = [known[end] for end in mine]
        return found

    def _reason(self, group: Group, names: Sequence[str]) -> str:
        """Returns why the maps of a layer are left alone."""
        if group.mixed and not self.normalized:
            return group.mixed[0]
        if any(fnmatchcase(name, pattern) for name in names for pattern in self.skip):
            return "its name is among those to skip"
        return ""

    def _ranking(self, ctx: Context, maps: _Maps, costs: Mapping[int, Array]) -> Ranking:
        """Orders maps by what they cost, for what they save where a goal says what that is."""
        gauge = self.gauge(ctx)
        if gauge is not None and not gauge.adds_up:  # too small to be timed
            gauge = ArithmeticGauge(gauge.goal, ctx.model)
        if gauge is not None:
            savings = maps.savings(gauge)
            costs = {index: found / savings[index] for index, found in costs.items()}
        return Ranking(costs, dict.fromkeys(costs, self.keep))

    def _chosen(self, ctx: Context, maps: _Maps, ranking: Ranking) -> dict[int, Array]:
        """Returns which maps go, by the index of the group."""
        gauge = self.gauge(ctx)
        limit = self.least_decibels
        count, reached = len(ranking), True
        if self.ratio is not None:
            count = max(round(self.ratio * ranking.total), 1)  # one map goes at least
            reached = count <= len(ranking)
        elif gauge is not None:
            share, reached = gauge.least_share(lambda s: gauge.left(maps.without(ranking.share(s))))
            count = round(share * ranking.total)
        elif limit is None:
            limit = _DECIBELS
        if limit is not None:
            allowed = maps.most(ranking, min(count, len(ranking)), 10 ** (-limit / 10))
            aimed = self.ratio is not None or gauge is not None
            count, reached = allowed, reached and (allowed >= count or not aimed)
        if not reached:
            ctx.warn("PRM102", "model", f"only {min(count, len(ranking))} maps could go")
        return ranking.first(count)


@dataclass(eq=False)
class _Maps:
    """The maps of a model, and what it loses without them."""

    ctx: Context
    shapes: ShapeMap
    channels: ChannelMap
    readers: Mapping[int, Sequence[Reader]]
    ablation: Ablation

    def scores(self, samples: int) -> dict[int, Array]:
        """Returns what the outputs lose with each map, by the index of the group.

        Maps go in the order in which they change what is behind them, block after block; what a block
        costs is shared out among its maps.
        """
        local = {i: sum(reader.changes for reader in each) for i, each in self.readers.items()}
        count = self._blocks(samples)
        found: dict[int, Array] = {}
        with self.ctx.progress(len(local), "trying the model without maps") as task:
            for index, changes in local.items():
                found[index] = self._costs(index, np.asarray(changes), count)
                task.advance()
        return found

    def _costs(self, index: int, changes: Array, count: int) -> Array:
        """Returns what maps cost: alone, or together with those that go first, whichever is more."""
        found = np.zeros(len(changes))
        together, before = np.zeros(len(changes), bool), 0.0
        for block in np.array_split(np.argsort(changes, kind="stable"), min(count, len(changes))):
            alone = np.zeros(len(changes), bool)
            alone[block] = together[block] = True
            noise = self.ablation.noise({index: together})
            cost = max(noise - before, self.ablation.noise({index: alone}))
            share = changes[block] / max(float(changes[block].sum()), _TINY)
            found[block] = cost * share if math.isfinite(cost) else np.inf
            before = max(noise, before)
        return found

    def savings(self, gauge: Gauge) -> dict[int, float]:
        """Returns what share of the goal one map saves, by the index of the group."""
        found = {}
        for index in self.readers:
            gone = np.arange(self.channels.groups[index].units) == 0
            found[index] = max(1 - gauge.left(self.without({index: gone})), _LEAST_SAVING)
        return found

    def _blocks(self, samples: int) -> int:
        """Into how many blocks the maps of a layer are divided."""
        one = max(arithmetic(self.ctx.model), 1.0) * samples
        return int(max(min(_EFFORT / one, _MOST) / len(self.readers) / 2, _FEWEST_BLOCKS))

    def most(self, ranking: Ranking, count: int, noise: float) -> int:
        """Returns how many maps may go, of the first so many, until more than that is lost."""
        if self.ablation.noise(ranking.first(count)) <= noise:
            return count
        low, high = 0, count
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.ablation.noise(ranking.first(middle)) <= noise
            low, high = (middle, high) if fits else (low, middle)
        return low

    def remove(self, gone: Mapping[int, Array]) -> Removal:
        """Removes maps for good."""
        removal = Removal(self.ctx, self.shapes)
        for index, dead in gone.items():
            if dead.any():
                removal.drop(self.channels.groups[index], dead)
        removal.apply()
        return removal

    def without(self, gone: Mapping[int, Array]) -> Model:
        """Returns a copy of the model without some maps."""
        with tentatively(self.ctx):
            self.remove(gone)
            return self.ctx.model.copy()


def _tell(ctx: Context, reader: Reader, dead: Array, noise: float) -> None:
    text = f"{int(dead.sum())} of {len(dead)} maps that it reads are gone"
    cost = f"{noise:.2g} of the power of the outputs" if math.isfinite(noise) else INCOMPARABLE
    ctx.note("PRM104", reader.node, f"{text}: {cost}")
