"""How much each channel matters."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from onnxcomp.errors import SamplesError
from onnxcomp_passes.prune.support.activity import CARRIED, Observation, Observed
from onnxcomp_passes.prune.support.dequantized import real_numbers
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.evidence import agreement, measured_costs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxcomp.analysis.channels import ChannelMap, Group
    from onnxcomp.passbase import Context

Array = np.ndarray[Any, Any]
Criterion = Literal["l1", "l2", "std", "median", "scale", "lamp", "random"]
CriterionName = Literal[
    "auto",
    "l1",
    "l2",
    "std",
    "scale",
    "median",
    "lamp",
    "activation",
    "peak",
    "apoz",
    "wanda",
    "fluctuation",
    "taylor",
    "obd",
    "obs",
    "measured",
    "confidence",
    "random",
]
_OBSERVED = (*get_args(Observed), "measured", "confidence")
_TINY = np.finfo(np.float64).tiny
# What samples are looked at; every so-manyth is kept to measure on where something is measured.
_SAMPLES, _HELD_OUT, _FEWEST = 64, 4, 8
# Whose opinions `confidence` weighs.
_ADVISERS: tuple[Observed, ...] = ("activation", "wanda", "fluctuation", "taylor", "obd", "obs")


def unit_scores(
    ctx: Context, channels: ChannelMap, name: CriterionName, seed: int, *, fitted: bool = True
) -> dict[int, Array]:
    """Returns how much each unit of each group matters, by the index of the group.

    Scores of one criterion are comparable between groups: those of weights and of what channels carry are
    multiples of the mean of the group, all others shares of what the layers that read the group sum up.

    Args:
        ctx: The pass; some criteria look at its samples.
        channels: The channels of the model.
        name: What to judge by.
        seed: Seed of `random` and of the trials of `confidence`.
        fitted: Whether what is left will be fitted, for `auto`.

    Raises:
        SamplesError: The criterion looks at samples, and there are none.
    """
    if name == "auto":
        name = _best(ctx, channels, fitted=fitted)
    groups = dict(enumerate(channels.groups))
    if name not in _OBSERVED:
        weighed = cast("Criterion", name)
        return {i: scores(channels, group, weighed, (seed, i)) for i, group in groups.items()}
    samples = list(islice(ctx.samples or (), _SAMPLES))
    if not samples:
        raise SamplesError(
            f"the criterion {name} looks at samples", hint="give --data, or choose l1 or l2"
        )
    if name == "measured" or name == "confidence":
        found, ends = _measured(ctx, channels, samples, name, (seed, fitted))
    else:
        observation = Observation.make(ctx, channels, samples)
        found, ends = observation.costs(cast("Observed", name)), observation
    return _completed(ctx, channels, found, ends, carried=name in CARRIED)


def _best(ctx: Context, channels: ChannelMap, *, fitted: bool) -> CriterionName:
    """What `auto` is. What a recurrence makes of an error, no look at single layers can tell."""
    if ctx.samples is None:
        return "l2"
    recurs = any(end.reads_itself for each in ends_of(channels).values() for end in each)
    return "obs" if fitted and not recurs else "measured"


def _measured(
    ctx: Context, channels: ChannelMap, samples: list[Any], name: str, how: tuple[int, bool]
) -> tuple[dict[int, Array], Observation]:
    """What is measured on samples that nothing was judged by, where there are enough.

    Args:
        ctx: The pass.
        channels: The channels of the model.
        samples: Feeds.
        name: `measured` or `confidence`.
        how: A seed, and whether what is left will be fitted.
    """
    apart = len(samples) >= _FEWEST
    seen = [each for i, each in enumerate(samples) if i % _HELD_OUT != _HELD_OUT - 1 or not apart]
    held_out = samples[_HELD_OUT - 1 :: _HELD_OUT] if apart else samples
    observation = Observation.make(ctx, channels, seen)
    if name == "confidence":
        opinions = {str(adviser): observation.costs(adviser) for adviser in _ADVISERS}
        agreed = agreement(ctx, observation.ends, opinions, opinions["obs"], (held_out, how[0]))
        if agreed is not None:
            weights = sorted(agreed[1].items(), key=lambda item: -item[1])
            said = ", ".join(f"{adviser} {weight:.0%}" for adviser, weight in weights)
            ctx.note("PRN107", None, f"what counts towards confidence: {said}")
            return agreed[0], observation
        return opinions["obs"], observation
    alone = observation.costs("obd")
    left = observation.costs("obs") if how[1] else alone
    found = measured_costs(ctx, observation.ends, alone, left, held_out)
    if not found:
        return left, observation
    # What could not be taken out for a try is put on the scale of what could.
    scale = float(np.median([found[i].sum() / max(left[i].sum(), _TINY) for i in found]))
    return {**{index: costs * scale for index, costs in left.items()}, **found}, observation


def _completed(
    ctx: Context,
    channels: ChannelMap,
    found: dict[int, Array],
    observation: Observation,
    *,
    carried: bool,
) -> dict[int, Array]:
    """Adds what weights say of groups that nothing else is known of, on the scale of the others."""
    known = {index: costs for index, costs in found.items() if np.isfinite(costs).all()}
    ends = {index: len(observation.ends.get(index, ())) for index in range(len(channels.groups))}
    # What the loss of all that one end reads costs.
    scale = float(np.median([costs.sum() / max(ends[i], 1) for i, costs in known.items()] or [1.0]))
    for index, group in enumerate(channels.groups):
        if index in known:
            continue
        norms = scores(channels, group, "l2", (0, index))
        squares = norms**2
        shares = squares / squares.sum() * (max(ends[index], 1) * scale)
        known[index] = norms if carried else shares
        if ends[index]:
            why = "they are NaN or infinite" if index in observation.broken else "they are not seen"
            name = next(iter(observation.ends[index])).source[0].name
            ctx.note("PRN106", name, f"judged by the weights alone: on the samples {why}")
    return known


def scores(
    channels: ChannelMap, group: Group, criterion: Criterion, seed: tuple[int, ...]
) -> Array:
    """Returns how much each unit of a group matters, 1 on average (`lamp`: as it is).

    What several layers say of a unit is averaged after each layer's own average was made 1, so that
    a layer with large weights does not outvote the others.

    Args:
        channels: The channels of the model.
        group: One group of them.
        criterion: `l1` and `l2` are norms of the filters that make a unit (Li et al., ICLR 2017),
            `std` their standard deviation, `median` the distance to all other filters of the layer:
            what others can replace matters little (FPGM, He et al., CVPR 2019), `scale` the factor
            of its normalization (Liu et al., ICCV 2017; `l2` where there is none), `lamp` squared norms as `layer_adaptive` has
            them, `random` nothing at all, for comparison.
        seed: Seed of `random`.

    Returns:
        [units] scores.
    """
    if criterion == "random":
        return np.random.default_rng((*seed, group.units)).random(group.units) + 0.5
    judge = _CRITERIA[criterion]
    opinions = [judge(rows) for rows in _rows(channels, group, criterion)]
    normalized = [found / found.mean() for found in opinions if 0 < found.mean() < np.inf]
    if criterion == "scale" and not normalized:
        return scores(channels, group, "l2", seed)
    average = np.mean(normalized, axis=0) if normalized else np.ones(group.units)
    return layer_adaptive(average) if criterion == "lamp" else average


def layer_adaptive(squares: Array) -> Array:
    """Returns squared norms as shares of what is left when all smaller ones are gone.

    LAMP (Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021), for whole
    filters instead of single weights.

    The largest unit of each group gets 1, so that a global threshold never empties one, and scores are
    comparable: about the relative distortion that removing the unit adds.

    Args:
        squares: [units] Squared norms.
    """
    order = np.argsort(squares, kind="stable")
    ahead = np.cumsum(squares[order][::-1])[::-1]
    found = np.empty_like(squares, float)
    found[order] = squares[order] / np.maximum(ahead, np.finfo(float).tiny)
    return found


def _rows(channels: ChannelMap, group: Group, criterion: Criterion) -> Iterator[Array]:
    """Yields for each layer that makes the units a matrix [units, weights of one unit]."""
    for member in group.members:
        makes = (member.value, member.axis) in channels.producers
        weight = real_numbers(member.value)
        if weight is None:
            continue
        is_matrix = weight.ndim > 1
        scales = not makes and not is_matrix
        if (makes and is_matrix and criterion != "scale") or (scales and criterion == "scale"):
            slices = np.moveaxis(weight, member.axis, 0)[member.positions]
            yield slices.reshape(group.units, -1).astype(np.float64)


def _distance(rows: Array) -> Array:
    """The sum of distances to all other filters."""
    squares = (rows**2).sum(1)
    product = squares[:, None] + squares[None, :] - 2 * rows @ rows.T
    distance: Array = np.sqrt(np.maximum(product, 0)).sum(1)
    return distance


_CRITERIA: dict[str, Callable[[Array], Array]] = {
    "l1": lambda rows: np.abs(rows).sum(1),
    "l2": lambda rows: np.sqrt((rows**2).sum(1)),
    "std": lambda rows: rows.std(1),
    "median": _distance,
    "scale": lambda rows: np.abs(rows).mean(1),
    "lamp": lambda rows: (rows**2).sum(1),
}
