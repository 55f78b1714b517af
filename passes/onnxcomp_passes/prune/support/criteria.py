"""How much each channel matters."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from onnxcomp.errors import SamplesError
from onnxcomp.ir.ops import array
from onnxcomp_passes.prune.support.activity import Observation, Observed

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
    "median",
    "scale",
    "lamp",
    "random",
    "activation",
    "peak",
    "apoz",
    "wanda",
    "obd",
    "fluctuation",
    "taylor",
    "obs",
]
_SAMPLES = 64


def unit_scores(
    ctx: Context, channels: ChannelMap, name: CriterionName, seed: int
) -> dict[int, Array]:
    """Returns how much each unit of each group matters, by the index of the group.

    Args:
        ctx: The pass; some criteria look at its samples.
        channels: The channels of the model.
        name: What to judge by.
        seed: Seed of `random`.

    Raises:
        SamplesError: The criterion looks at samples, and there are none.
    """
    if name == "auto":
        name = "l2" if ctx.samples is None else "wanda"
    groups = dict(enumerate(channels.groups))
    if name not in get_args(Observed):
        return {i: scores(channels, group, name, (seed, i)) for i, group in groups.items()}
    if ctx.samples is None:
        raise SamplesError(
            f"the criterion {name} looks at samples", hint="give --data, or choose l1 or l2"
        )
    observation = Observation.make(ctx, channels, list(islice(ctx.samples, _SAMPLES)))
    found = observation.costs(name)
    for index, group in groups.items():
        if index not in found:
            found[index] = scores(channels, group, "l2", (seed, index))
    return found


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
            of its normalization (Liu et al., ICCV 2017), `random` nothing at all, for comparison.
        seed: Seed of `random`.

    Returns:
        [units] scores.
    """
    if criterion == "random":
        return np.random.default_rng((*seed, group.units)).random(group.units) + 0.5
    judge = _CRITERIA[criterion]
    opinions = [judge(rows) for rows in _rows(channels, group, criterion)]
    normalized = [found / found.mean() for found in opinions if 0 < found.mean() < np.inf]
    average = np.mean(normalized, axis=0) if normalized else np.ones(group.units)
    return layer_adaptive(average) if criterion == "lamp" else average


def layer_adaptive(squares: Array) -> Array:
    """Returns squared norms as shares of what is left when all smaller ones are gone.

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
        weight = array(member.value)
        if weight is None or weight.dtype.kind != "f":
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
