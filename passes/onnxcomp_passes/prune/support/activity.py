"""How much each channel matters to what reads it, judged on samples."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.ir.ops import constant
from onnxcomp.quant.grams import collect_grams
from onnxcomp.quant.readers import layer_of
from onnxcomp_passes.prune.support.carried import collect_moments
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.products import removal_costs, shares_of_energy

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.analysis.channels import ChannelMap
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.prune.support.carried import Moments
    from onnxcomp_passes.prune.support.ends import End

    Axis = tuple[ir.Value, int]

Array = np.ndarray[Any, Any]
Observed = Literal["activation", "peak", "apoz", "wanda", "obd", "fluctuation", "taylor", "obs"]

Weighing = Literal["size", "power", "variance"]

_DEEPEST = 4096
_TINY = np.finfo(np.float64).tiny


@dataclass
class Observation:
    """What samples told about the ends of groups.

    Attributes:
        ctx: The pass.
        ends: Where the units of each group end, by its index.
        moments: What values carry, by value and axis.
        samples: Feeds.
        broken: Groups of which something was NaN or infinite.
    """

    ctx: Context
    ends: Mapping[int, Sequence[End]]
    moments: dict[Axis, Moments]
    samples: Sequence[Any]
    broken: frozenset[int] = frozenset()

    @classmethod
    def make(cls, ctx: Context, channels: ChannelMap, samples: Sequence[Any]) -> Observation:
        """Runs the model on samples."""
        ends = ends_of(channels)
        axes = {index: _axes(each) for index, each in ends.items()}
        found = collect_moments(ctx, [axis for each in axes.values() for axis in each], samples)
        known = {axis: each for axis, each in found.items() if each.is_finite}
        broken = frozenset(
            index
            for index, each in axes.items()
            if any(axis in found and axis not in known for axis in each)
        )
        return cls(ctx, ends, known, samples, broken)

    def costs(self, criterion: Observed) -> dict[int, Array]:
        """Returns what removing each unit costs, by the index of the group; without what was not seen.

        With x what a unit carries into a weight w, sums over the positions and outputs of the unit, all as
        shares of the same sum over all units: `wanda` sum |w| sqrt(E x^2), `obd` sum w^2 E x^2,
        `fluctuation` sum w^2 Var x. The layer's squared error has the Hessian X^T X, and
        w^2 E x^2 is its diagonal times w^2: the saliency of OBD is that of Wanda squared, and it is what
        the output loses if products do not correlate. `taylor` is <Y_s, Y> / |Y|^2 with Y_s the unit's
        part of the output Y. `obs` takes all of the Hessian. Products of two activations (attention) count
        with the mean square of the one for w^2. What several readers say is added up.

        Args:
            criterion: What to judge by.
        """
        if criterion in CARRIED:
            return self._carried(criterion)
        known = self._from_grams(criterion) if criterion in {"taylor", "obs"} else {}
        found: dict[int, Array] = {}
        for index, ends in self.ends.items():
            parts = [
                known[index, place]
                if (index, place) in known
                else self._shares(end, _WEIGHED.get(criterion, "power"))
                for place, end in enumerate(ends)
            ]
            seen = [part for part in parts if part is not None]
            if seen:
                # What could not be seen counts as the mean of what could.
                found[index] = np.mean(seen, axis=0) * len(parts)
        return found

    def _carried(self, criterion: Observed) -> dict[int, Array]:
        """What channels carry, 1 on average for each value."""
        found: dict[int, Array] = {}
        for index, ends in self.ends.items():
            opinions = [
                _about_one(CARRIED[criterion](self.moments[axis])[places].mean(axis=1))
                for axis, places in {end.source: end.places for end in ends}.items()
                if axis in self.moments
            ]
            if opinions:
                found[index] = np.mean(opinions, axis=0)
        return found

    def _shares(self, end: End, by: Weighing) -> Array | None:
        """The share of each unit in the power of products that an end sums up, taken one by one."""
        source = self.moments.get(end.source)
        if source is None:
            return None
        carried: Array = source.variance if by == "variance" else source.power
        if end.has_weight:
            strengths = end.strengths(1 if by == "size" else 2, carried.size)
        else:
            other = self.moments.get(end.other)
            if other is None:
                return None
            strengths = np.sqrt(other.power) if by == "size" else other.power
        if strengths.size and carried.size % strengths.size == 0:
            # Filters in groups, computed: the same positions of all groups are not told apart.
            strengths = np.tile(strengths, carried.size // strengths.size)
        if strengths.size != carried.size:
            return None
        products = strengths * (np.sqrt(carried) if by == "size" else carried)
        total = products.sum()
        if not np.isfinite(total):
            return None
        shares: Array = products[end.places].sum(axis=1) / max(total, _TINY)
        return shares

    def _from_grams(self, criterion: Observed) -> dict[tuple[int, int], Array]:
        """What Gram matrices tell, for ends that are plain products of rows with a matrix."""
        wanted: dict[Layer, list[tuple[int, int, End]]] = defaultdict(list)
        layers: dict[ir.Node, Layer | None] = {}
        for index, ends in self.ends.items():
            for place, end in enumerate(ends):
                layer = layers.setdefault(end.node, layer_of(end.node))
                if layer is not None and self._is_plain(layer, end):
                    wanted[layer].append((index, place, end))
        found: dict[tuple[int, int], Array] = {}
        for layer, gram in collect_grams(
            self.ctx.model,
            list(wanted),
            self.samples,
            threads=self.ctx.threads,
            progress=self.ctx.progress,
        ):
            for index, place, end in wanted[layer]:
                size = layer.shape[end.other[1]]
                step = layer.depth // size
                rows = (end.places[:, :, None] * step + np.arange(step)).reshape(
                    len(end.places), -1
                )
                judge = shares_of_energy if criterion == "taylor" else removal_costs
                found[index, place] = judge(gram, layer.read(), rows)
        return found

    def _is_plain(self, layer: Layer, end: End) -> bool:
        return (
            layer.weight is end.other[0]
            and layer.groups == 1
            and layer.depth <= _DEEPEST
            and end.node.graph is self.ctx.model.graph
            and end.source in self.moments
            and layer.depth % layer.shape[end.other[1]] == 0
        )


def _axes(ends: Sequence[End]) -> list[Axis]:
    """What is multiplied at the ends of a group, without weights."""
    both = [axis for end in ends for axis in (end.source, end.other)]
    return [axis for axis in dict.fromkeys(both) if constant(axis[0]) is None]


def _about_one(found: Array) -> Array:
    mean = found.mean()
    scaled: Array = found / mean if mean > 0 else np.ones_like(found)
    return scaled


def _nonzero(moments: Moments) -> Array:
    """How often a position is not 0; where none ever is, how large it is."""
    if not moments.zeros.any():
        return moments.magnitude
    often: Array = moments.count - moments.zeros
    return often


CARRIED: Mapping[str, Any] = {
    "activation": lambda moments: moments.magnitude,
    "peak": lambda moments: moments.peak,
    "apoz": _nonzero,
}
# How products are weighed: `taylor` and `obs` where there is no Gram matrix.
_WEIGHED: Mapping[str, Weighing] = {
    "wanda": "size",
    "fluctuation": "variance",
    "obs": "variance",
}
