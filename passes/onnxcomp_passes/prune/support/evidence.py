"""Criteria held against what is measured on the whole model."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp_passes.prune.support.arithmetic import OPEN_SIZE, arithmetic
from onnxcomp_passes.prune.support.effects import Effects

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.ends import End

    # The units of a group, by its index, in about so many blocks.
    Blocks = Callable[[int, int], list["Array"]]

Array = np.ndarray[Any, Any]
Costs = dict[int, Array]

# Operations that all measurements together may take, how many there are at most, and on how many samples.
_EFFORT, _MOST, _SAMPLES = 1e12, 2048, 8
# Blocks of units that are taken out of a group at least, and those that criteria are held against.
_FEWEST_BLOCKS, _TRIALS = 4, 8
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class Trial:
    """Some units of a group that were taken out together.

    Attributes:
        index: The group.
        units: Which units.
        loss: What the outputs lost.
    """

    index: int
    units: Array
    loss: float


def measured_costs(
    ctx: Context,
    ends: Mapping[int, Sequence[End]],
    alone: Mapping[int, Array],
    fitted: Mapping[int, Array],
    samples: Sequence[Any],
) -> Costs | None:
    """Returns what the outputs of the model lose with each unit, by the index of the group.

    Units of a group that cost the layers after it about as much are taken out together. What that does
    to the outputs is shared out among them, less what others make up for. With as many blocks as there
    are units, each is measured alone; how many there are follows from the arithmetic of the model.

    Args:
        ctx: The pass.
        ends: Where units end.
        alone: What units cost the layers that read them when nothing makes up for them.
        fitted: What they cost when the others do.
        samples: Feeds.

    Returns:
        None when nothing can be measured.
    """

    def blocks(index: int, count: int) -> list[Array]:
        return np.array_split(np.argsort(alone[index], kind="stable"), count)

    trials = _run(ctx, {i: each for i, each in ends.items() if i in alone}, samples, blocks)
    if trials is None:
        return None
    found = {index: np.zeros(len(alone[index])) for index in {each.index for each in trials}}
    for trial in trials:
        lost = alone[trial.index][trial.units].sum()
        scale = trial.loss / max(float(lost), _TINY)
        found[trial.index][trial.units] = scale * fitted[trial.index][trial.units]
    return found


def agreement(
    ctx: Context,
    ends: Mapping[int, Sequence[End]],
    opinions: Mapping[str, Mapping[int, Array]],
    scale: Mapping[int, Array],
    trial: tuple[Sequence[Any], int],
) -> tuple[Costs, dict[str, float]] | None:
    """Returns what several criteria agree on, each as far as it foretells what is measured.

    Random blocks of units of each group are taken out of the model. A criterion counts with the square of
    the correlation, over all blocks, of what it says they cost and what the outputs lost, both as
    multiples of the mean of the group. Ranks are averaged with these weights; the unit of the k-th lowest
    rank gets the k-th lowest cost of `scale`, so that groups can be compared.

    Args:
        ctx: The pass.
        ends: Where units end.
        opinions: Costs by criterion, for the same groups.
        scale: Costs that are comparable between groups.
        trial: Feeds to measure on, and the seed of the blocks.

    Returns:
        Costs, and the weight of each criterion; None when nothing can be measured.
    """
    samples, seed = trial
    groups = set.intersection(*(set(each) for each in opinions.values()))
    sizes = {index: len(next(iter(opinions.values()))[index]) for index in groups}

    def blocks(index: int, count: int) -> list[Array]:
        mixed = np.random.default_rng((seed, index)).permutation(sizes[index])
        return np.array_split(mixed, max(count, _TRIALS))[: min(count, _TRIALS)]

    known = {index: each for index, each in ends.items() if index in groups}
    trials = _run(ctx, known, samples, blocks)
    if not trials:
        return None
    weights = {name: _skill(trials, costs) for name, costs in opinions.items()}
    total = sum(weights.values())
    if not total > 0:
        weights, total = dict.fromkeys(weights, 1.0), float(len(weights))
    weights = {name: weight / total for name, weight in weights.items()}
    found = {}
    for index in {each.index for each in trials}:
        each = [weights[name] * _ranks(costs[index]) for name, costs in opinions.items()]
        order = np.argsort(np.sum(each, axis=0), kind="stable")
        found[index] = np.empty(sizes[index])
        found[index][order] = np.sort(scale[index])
    return found, weights


def _run(
    ctx: Context,
    ends: Mapping[int, Sequence[End]],
    samples: Sequence[Any],
    blocks: Blocks,
) -> list[Trial] | None:
    """Takes blocks of units out of groups, and measures what that does."""
    plan = _plan(ctx, samples, len(ends))
    if plan is None:
        text = "nothing was measured: that would take too long; obs decides"
        ctx.note("PRN107", None, text)
        return None
    count, some = plan
    effects = Effects.prepare(ctx, ends, some)
    if effects is None:
        return None
    found = []
    with effects.session, ctx.progress(len(effects.names), "measuring what outputs lose") as task:
        for index in effects.names:
            units = len(ends[index][0].places)
            for block in blocks(index, min(count, units)):
                gone = np.zeros(units, bool)
                gone[block] = True
                if len(block):
                    found.append(Trial(index, block, effects.of(index, gone)))
            task.advance()
    return found


def _plan(ctx: Context, samples: Sequence[Any], groups: int) -> tuple[int, Sequence[Any]] | None:
    """Into how many blocks the units of a group are divided, and on which samples that is measured.

    It follows from the arithmetic of one run, not from the time that it takes: results do not depend on
    what else the machine does. None where a few blocks and one sample would be too much.
    """
    runs = min(_EFFORT / _operations(ctx, samples[0]), _MOST * _SAMPLES) / max(groups, 1)
    count = min(len(samples), _SAMPLES, int(runs / _FEWEST_BLOCKS))
    if count < 1:
        return None
    return int(runs / count), samples[:: max(len(samples) // count, 1)][:count]


def _operations(ctx: Context, sample: Mapping[str, Any]) -> float:
    """Operations of a run on a sample whose open dimensions may be larger than what is assumed."""
    ratio = 1.0
    for spec in ctx.model.signature().inputs:
        dims = [dim for dim in (spec.shape or ())[1:] if not isinstance(dim, int)]
        known = [dim for dim in spec.shape or () if isinstance(dim, int)]
        assumed = prod(known) * OPEN_SIZE ** len(dims)
        if spec.name in sample and assumed:
            ratio = max(ratio, np.size(sample[spec.name]) / assumed)
    # Where shapes are not known, at least each weight is used once.
    return max(arithmetic(ctx.model), float(ctx.model.nbytes), 1.0) * ratio


def _skill(trials: Sequence[Trial], costs: Mapping[int, Array]) -> float:
    """The square of the correlation of costs and losses, 0 where it is negative."""
    said, lost = [], []
    for index in {each.index for each in trials}:
        own = [each for each in trials if each.index == index]
        pair = np.asarray([[costs[index][t.units].sum(), t.loss] for t in own])
        mean = pair.mean(axis=0)
        if np.isfinite(pair).all() and (mean > 0).all():
            relative = pair / mean - 1
            said += relative[:, 0].tolist()
            lost += relative[:, 1].tolist()
    one, two = np.asarray(said), np.asarray(lost)
    norm = float(np.sqrt((one @ one) * (two @ two)))
    return max(float(one @ two) / norm, 0.0) ** 2 if norm > 0 else 0.0


def _ranks(costs: Array) -> Array:
    ranks = np.empty(len(costs))
    ranks[np.argsort(costs, kind="stable")] = np.arange(len(costs)) / max(len(costs) - 1, 1)
    return ranks
