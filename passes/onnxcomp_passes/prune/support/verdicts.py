"""Which channels nobody would miss, and what has to move elsewhere when they go."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import gcd
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.channels.table import known_as
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op
from onnxcomp_passes.prune.support.folding import share_of, takes_bias
from onnxcomp_passes.prune.support.stored import weight_of

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import ChannelMap, Group, Member
    from onnxcomp.analysis.channels.site import Contraction
    from onnxcomp_passes.prune.support.constancy import Constancy
    from onnxcomp_passes.prune.support.likeness import Likeness
    from onnxcomp_passes.prune.support.removal import Removal

Array = np.ndarray[Any, Any]
# Axes of a weight whose Conv onnxruntime has a blocked layout for.
_IMAGE = 4
# Sums over channels in which the weights of two equal channels may be added up.
_LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
# Where sums of integers have the zero points of what they multiply.
_ZERO_POINTS: dict[str, tuple[int | None, int | None]] = {
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "QLinearConv": (2, 5),
    "QLinearMatMul": (2, 5),
    "com.microsoft.DynamicQuantizeMatMul": (None, 3),
    "com.microsoft.MatMulIntegerToFloat": (4, 5),
    "com.microsoft.QGemm": (2, 5),
}


@dataclass(frozen=True)
class Merge:
    """Rows of a weight that are added to others: what read `source` reads `target` as well.

    Attributes:
        axis: Along which axis of the weight they lie.
        targets: The positions that stay.
        sources: The positions that go.
        factors: How many times what the target holds the source holds.
    """

    axis: int
    targets: Array
    sources: Array
    factors: Array

    def applied(self, weight: Array) -> Array:
        """Returns the weight with rows added up; rows that go stay where they are."""
        rows = np.moveaxis(weight, self.axis, 0).astype(np.float64)
        shape = (-1,) + (1,) * (rows.ndim - 1)
        np.add.at(rows, self.targets, rows[self.sources] * self.factors.reshape(shape))
        return np.moveaxis(rows, 0, self.axis).astype(weight.dtype)


@dataclass
class Moved:
    """What leaves its place when channels go.

    Attributes:
        shares: What goes into biases, by operator, for the channels as they were.
        merges: What is added up in weights.
    """

    shares: list[tuple[ir.Node, Array]] = field(default_factory=list)
    merges: dict[ir.Value, list[Merge]] = field(default_factory=lambda: defaultdict(list))


class Judge:
    """Decides which units of a group are without effect.

    Args:
        channels: The groups and who reads them.
        constancy: Numbers that channels always hold.
        likeness: Which channels are equal.
        removal: What goes already.

    Attributes:
        moved: What leaves its place.
    """

    def __init__(
        self, channels: ChannelMap, constancy: Constancy, likeness: Likeness, removal: Removal
    ) -> None:
        self.moved = Moved()
        self._constancy = constancy
        self._likeness = likeness
        self._removal = removal
        self._pinned: dict[tuple[ir.Value, int], Array] = {}
        self._contractions: dict[tuple[ir.Value, int], list[Contraction]] = defaultdict(list)
        self._readers: dict[ir.Value, int] = defaultdict(int)
        for found in channels.contractions:
            self._contractions[found.left].append(found)
            self._contractions[found.right].append(found)
            self._readers[found.right[0]] += 1

    def dead(self, group: Group) -> Array:
        """Returns which units nobody would miss."""
        if not self._may_lose(group):
            return np.zeros(group.units, bool)
        dead = ~self._pins(group)
        for contraction in self._of(group):
            dead &= self._is_silent(contraction, group)
        return dead

    def _may_lose(self, group: Group) -> bool:
        dtypes = {self._constancy.shapes.dtype(member.value) for member in group.members}
        return not (group.mixed or group.scaled) and ir.DataType.STRING not in dtypes

    def _of(self, group: Group) -> list[Contraction]:
        found: dict[int, Contraction] = {}
        for member in group.members:
            for contraction in self._contractions.get((member.value, member.axis), ()):
                found[id(contraction)] = contraction
        return list(found.values())

    def _pins(self, group: Group) -> Array:
        """Units that others were merged into."""
        pinned = np.zeros(group.units, bool)
        for member in group.members:
            mask = self._pinned.get((member.value, member.axis))
            if mask is not None:
                pinned |= mask[member.positions].any(1)
        return pinned

    def _is_silent(self, contraction: Contraction, group: Group) -> Array:
        """Whether a unit adds nothing to a sum, or the same number each time."""
        left, right = find(group, contraction.left), find(group, contraction.right)
        if left is None or right is None:
            # A convolution in groups of which whole ones go: what reads the unit goes with it.
            return np.ones(group.units, bool)
        zeros = zero_points(contraction.node)
        silent = _by_unit(self._silence(*contraction.left, zeros[0]), left)
        silent |= _by_unit(self._silence(*contraction.right, zeros[1]), right)
        return silent | self._is_foldable(contraction, left)

    def _silence(self, value: ir.Value, axis: int, zero: float) -> Array:
        """Positions of an axis that hold what stands for zero and nothing else."""
        zeros: Array = self._constancy.of(value, axis) == zero
        weight = weight_of(value)
        if weight is None:
            return zeros
        others = tuple(place for place in range(weight.ndim) if place != axis)
        for place in others:
            # What reads for channels that go does not count any more.
            kept = self._removal.kept(value, place)
            weight = weight if kept is None else weight.compress(kept, place)
        nothing: Array = zeros | ~(weight != zero).any(others)
        return nothing

    def _is_foldable(self, contraction: Contraction, member: Member) -> Array:
        """Whether what a unit holds can move into the bias of its reader."""
        held = self._held_for_bias(contraction)
        if held is None:
            return np.zeros(len(member.positions), bool)
        return _by_unit(~np.isnan(held), member)

    def _held_for_bias(self, contraction: Contraction) -> Array | None:
        """Returns what positions hold whose share may move into a bias; None where there is none."""
        weight, held = array(contraction.right[0]), self._constancy.of(*contraction.left)
        if weight is None or np.isnan(held).all() or not takes_bias(contraction, weight):
            return None
        return held if _has_room(contraction, weight, held) else None

    def absorbed(self, group: Group, dead: Array) -> tuple[Array, list[_Plan]]:
        """Returns which more units can be merged into others that hold the same, or a multiple.

        Args:
            group: The group.
            dead: [units] What goes anyway.

        Returns:
            [units] What can go, and how; `merge` does it.
        """
        none = np.zeros(group.units, bool)
        if not self._may_lose(group):
            return none, []
        able = ~dead & ~self._pins(group)
        plans: list[_Plan] = []
        for contraction in self._of(group):
            left = find(group, contraction.left)
            silent = self._is_silent(contraction, group)
            if left is None or silent.all():
                continue
            partners = self._partners(contraction, left, silent)
            able &= silent | partners.cover(left)
            if not able.any():
                return none, []
            plans.append(_Plan(contraction, left, silent, partners))
        if not plans or self._leaves_nothing(group, able | dead):
            return none, []
        return able, plans

    def merge(self, plans: list[_Plan], gone: Array) -> None:
        """Notes what readers of units that go have to read instead."""
        for plan in plans:
            sources = plan.left.positions[gone & ~plan.silent].reshape(-1)
            self._merge(plan.contraction, sources, plan.partners)

    def _leaves_nothing(self, group: Group, gone: Array) -> bool:
        return bool(gone.all()) and self._removal.empties(group)

    def _partners(self, contraction: Contraction, member: Member, silent: Array) -> _Partners:
        """For each position that a weight reads, another one that holds a multiple of the same."""
        (left, axis), (right, along) = contraction.left, contraction.right
        held = self._constancy.of(left, axis)
        weight = array(right)
        if (
            weight is None
            or not right.is_initializer()
            or self._readers[right] > 1
            or len(right.uses()) > 1
            or not is_op(contraction.node, *_LINEAR)
            or attribute(contraction.node, "group", 1) != 1
            or weight.shape[along] != len(held)
            or _is_large(np.abs(weight.astype(np.float64)).sum(along), weight.dtype)
        ):
            return _Partners(np.full(len(held), -1), np.ones(len(held)))
        numbers, scale = self._likeness.of(left, axis), self._likeness.scale(left, axis)
        staying = self._removal.kept(left, axis)
        staying = np.ones(len(held), bool) if staying is None else staying.copy()
        staying[member.positions[silent].reshape(-1)] = False
        # All readers of a group prefer the same units, or none could go.
        order = np.full(len(held), -1)
        order[member.positions] = np.arange(len(member.positions))[:, None]
        return _leaders(numbers, scale, order, staying)

    def _merge(self, contraction: Contraction, sources: Array, partners: _Partners) -> None:
        if not len(sources):
            return
        right, along = contraction.right
        targets = partners.targets[sources]
        self.moved.merges[right].append(Merge(along, targets, sources, partners.factors[sources]))
        pins = self._pinned.setdefault(contraction.left, np.zeros(len(partners.targets), bool))
        pins[targets] = True

    def fold(self, group: Group, gone: Array) -> None:
        """Notes what units that go add to the sums of their readers."""
        for contraction in self._of(group):
            source, held = find(group, contraction.left), self._held_for_bias(contraction)
            weight = array(contraction.right[0])
            if source is None or weight is None or held is None:
                continue
            mask = np.zeros(len(held), bool)
            mask[source.positions[gone].reshape(-1)] = True
            share = share_of(contraction, weight, np.where(mask & ~np.isnan(held), held, 0.0))
            if share.any():
                self.moved.shares.append((contraction.node, share))


@dataclass(frozen=True)
class _Plan:
    """How a reader of a group can do without units: which it need not read, and which others it can."""

    contraction: Contraction
    left: Member
    silent: Array
    partners: _Partners


@dataclass(frozen=True)
class _Partners:
    """For each position another that holds the same up to a factor, -1 where there is none."""

    targets: Array
    factors: Array

    def cover(self, member: Member) -> Array:
        """Whether all positions of a unit have partners, and outside of the unit."""
        units = np.full(len(self.targets) + 1, -1)
        units[member.positions] = np.arange(len(member.positions))[:, None]
        targets = self.targets[member.positions]
        outside = units[targets] != np.arange(len(targets))[:, None]
        covered: Array = ((targets >= 0) & outside).all(1)
        return covered


def _leaders(numbers: Array, scale: Array, rank: Array, staying: Array) -> _Partners:
    """Of positions with one number the one with the largest scale speaks for all, then by rank."""
    order = np.lexsort((rank, -np.abs(scale), numbers))
    leader: dict[int, int] = {}
    targets = np.full(len(numbers), -1)
    for position in order[staying[order]].tolist():
        first = leader.setdefault(int(numbers[position]), position)
        targets[position] = first if first != position else -1
    factors = np.where(targets >= 0, scale / scale[targets], 1.0)
    return _Partners(targets, factors)


def _has_room(contraction: Contraction, weight: Array, held: Array) -> bool:
    """Whether a bias can hold what all constant inputs add, which a sum in wider numbers may cancel."""
    with np.errstate(over="ignore", invalid="ignore"):
        most = share_of(contraction, np.abs(weight), np.abs(np.nan_to_num(held)))
    return not _is_large(most, weight.dtype)


def _is_large(sums: Array, dtype: np.dtype[Any]) -> bool:
    """Whether sums come near to what a type can hold, or are not numbers at all."""
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return not bool((sums <= float(limits.max) / 2).all())


def zero_points(node: ir.Node) -> tuple[float, float]:
    """Returns which numbers stand for zero in the operands of a sum; NaN where that is not one number."""
    places = _ZERO_POINTS.get(known_as(node), (None, None))
    left, right = (None if place is None else input_at(node, place) for place in places)
    return _one_number(left), _one_number(right)


def _one_number(value: ir.Value | None) -> float:
    if value is None:
        return 0.0
    found = array(value)
    same = found is not None and found.size > 0 and bool((found == found.flat[0]).all())
    return float(found.flat[0]) if same and found is not None else np.nan


def find(group: Group, key: tuple[ir.Value, int]) -> Member | None:
    """Returns the member of a group for an axis of a value."""
    return next((m for m in group.members if m.value is key[0] and m.axis == key[1]), None)


def _by_unit(positions: Array, member: Member) -> Array:
    """Returns for which units something holds at all positions."""
    if len(positions) <= member.positions.max():
        return np.zeros(len(member.positions), bool)
    everywhere: Array = positions[member.positions].all(1)
    return everywhere


def kept_for_kernels(group: Group, gone: Array, multiple: int) -> int:
    """Returns how many units that could go should stay, so that a Conv is left with a multiple."""
    images = [m.value for m in group.members if _is_filter(m)]
    if not images or multiple == 1 or not gone.any():
        return 0
    spread = max(m.positions.shape[1] for m in group.members if m.value in images)
    step = multiple // gcd(multiple, spread)
    left = group.units - int(gone.sum())
    wanted = -(-left // step) * step
    return wanted - left if wanted <= group.units else 0


def _is_filter(member: Member) -> bool:
    """Whether an axis is one of the channels of a weight of a Conv over images."""
    shape = member.value.shape
    return (
        member.axis < 2
        and constant(member.value) is not None
        and shape is not None
        and len(shape) == _IMAGE
        and any(is_op(use.node, "Conv") and use.idx == 1 for use in member.value.uses())
    )
