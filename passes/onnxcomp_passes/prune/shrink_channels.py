"""Removes channels that are without effect: dead code, one channel at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array
from onnxcomp.passbase import Pass
from onnxcomp_passes.prune.support.constancy import Constancy
from onnxcomp_passes.prune.support.folding import add_to_bias, takes_bias
from onnxcomp_passes.prune.support.removal import Removal

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import ChannelMap, Group, Member
    from onnxcomp.analysis.channels.site import Contraction
    from onnxcomp.passbase import Context

Array = np.ndarray[Any, Any]
# Each round can make more channels unread; a network is no deeper than this in practice.
MAX_ROUNDS = 256


class ShrinkChannels(Pass):
    """Removes channels that have no effect, and the weights that make and read them.

    A channel goes when everybody who reads it multiplies it by zero, or when it always holds the same
    number: that number's share moves into the bias of those who read it (where zero padding does not
    get in between). So a network that was pruned by masks, in any framework, loses the masked
    channels for real. Channels are followed through convolutions (grouped, depthwise, transposed),
    matrix products, normalizations, residual sums, Concat, Split, Slice, Reshape, attention heads,
    recurrent layers and branches; what is not understood stays.

    Outputs agree to rounding for finite inputs. Layers keep one channel at least.

        x -> Conv(64 filters, 20 of them zero) -> Relu -> Conv(w[128, 64])
        x -> Conv(44 filters) -> Relu -> Conv(w[128, 44])
    """

    name: ClassVar[str] = "shrink-channels"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "SHR101": "No channel of the model is without effect. Masks must be zeros in the weights that make "
        "or that read a channel; `onnxcomp inspect --channels` shows which channels could go at all."
    }

    @override
    def run(self, ctx: Context) -> None:
        removed = 0
        for prefer in ("large", "outer", "inner"):
            for _ in range(MAX_ROUNDS):
                found = _Round(ctx, Channels(prefer))
                removed += found.removed
                if not found.removed:
                    break
            if not ctx.facts.get(Channels(prefer)).ambiguous:
                break
        if removed:
            ctx.edit.count("channels removed", removed)
        else:
            ctx.skip("SHR101", "model", "no channel is without effect")


class _Round:
    """Removes what is without effect now; what that makes unread is seen in the next round.

    Attributes:
        channels: The channels before.
        removed: How many units went.
    """

    def __init__(self, ctx: Context, question: Channels) -> None:
        self._shapes = ctx.facts.refresh(Shapes())
        self.channels = ctx.facts.refresh(question)
        constancy = Constancy(ctx.model, self.channels, self._shapes)
        self._judge = _Judge(self.channels, constancy)
        self._removal = Removal(ctx, self._shapes)
        self.removed = sum(self._drop(group) for group in self.channels.groups)
        if self.removed:
            shares = list(self._judge.shares)
            self._removal.apply()
            for node, share in shares:
                self._add(ctx, node, share)

    def _drop(self, group: Group) -> int:
        dead = self._judge.dead(group)
        if dead.all() and self._removal.empties(group):
            dead[0] = False
        if dead.any():
            self._judge.fold(group, dead)
            self._removal.drop(group, dead)
        return int(dead.sum())

    def _add(self, ctx: Context, node: ir.Node, share: Array) -> None:
        output = node.outputs[0]
        axis = 1 if node.op_type == "Conv" else (self._shapes.rank(output) or 1) - 1
        kept = self._removal.kept(output, axis)
        dtype = self._shapes.dtype(output)
        add_to_bias(ctx, node, share if kept is None else share[kept], dtype)


class _Judge:
    """Decides which units of a group are without effect.

    Attributes:
        shares: What goes into biases, by operator, for the channels as they were.
    """

    def __init__(self, channels: ChannelMap, constancy: Constancy) -> None:
        self.shares: list[tuple[ir.Node, Array]] = []
        self._constancy = constancy
        self._contractions: dict[tuple[ir.Value, int], list[Contraction]] = {}
        for found in channels.contractions:
            self._contractions.setdefault(found.left, []).append(found)
            self._contractions.setdefault(found.right, []).append(found)

    def dead(self, group: Group) -> Array:
        """Returns which units nobody would miss."""
        dtypes = {self._constancy.shapes.dtype(member.value) for member in group.members}
        if group.mixed or ir.DataType.STRING in dtypes:
            return np.zeros(group.units, bool)
        dead = np.ones(group.units, bool)
        for member in group.members:
            key = (member.value, member.axis)
            for contraction in self._contractions.get(key, ()):
                dead &= self._is_silent(contraction, group)
        return dead

    def _is_silent(self, contraction: Contraction, group: Group) -> Array:
        """Whether a unit adds nothing to a sum, or the same number each time."""
        left, right = _find(group, contraction.left), _find(group, contraction.right)
        if left is None or right is None:
            # A convolution in groups of which whole ones go: what reads the unit goes with it.
            return np.ones(group.units, bool)
        silent = _by_unit(self._silence(*contraction.left), left)
        silent |= _by_unit(self._silence(*contraction.right), right)
        return silent | self._is_foldable(contraction, group)

    def _silence(self, value: ir.Value, axis: int) -> Array:
        """Positions of an axis that hold zeros and nothing else."""
        zeros: Array = self._constancy.of(value, axis) == 0
        return self._zero_slices(value, axis) | zeros

    @staticmethod
    def _zero_slices(value: ir.Value, axis: int) -> Array:
        weight = array(value)
        if weight is None:
            return np.zeros(1, bool)
        others = tuple(place for place in range(weight.ndim) if place != axis)
        nonzero: Array = (weight != 0).any(others)
        return ~nonzero

    def _is_foldable(self, contraction: Contraction, group: Group) -> Array:
        """Whether what a unit holds can move into the bias of its reader."""
        weight = array(contraction.right[0])
        member = _find(group, contraction.left)
        if weight is None or member is None or not takes_bias(contraction.node):
            return np.zeros(group.units, bool)
        held = self._constancy.of(*contraction.left)
        return _by_unit(~np.isnan(held), member)

    def fold(self, group: Group, dead: Array) -> None:
        """Notes what dead units add to the sums of their readers."""
        seen: set[int] = set()
        for member in group.members:
            for contraction in self._contractions.get((member.value, member.axis), ()):
                source = _find(group, contraction.left)
                weight = array(contraction.right[0])
                if id(contraction) in seen or source is None or weight is None:
                    continue
                if not takes_bias(contraction.node):
                    continue
                seen.add(id(contraction))
                held = np.nan_to_num(self._constancy.of(*contraction.left))
                mask = np.zeros(len(held), bool)
                mask[source.positions[dead].reshape(-1)] = True
                share = _share(weight, contraction, np.where(mask, held, 0.0))
                if share is not None and share.any():
                    self.shares.append((contraction.node, share))


def _find(group: Group, key: tuple[ir.Value, int]) -> Member | None:
    return next((m for m in group.members if m.value is key[0] and m.axis == key[1]), None)


def _by_unit(positions: Array, member: Member) -> Array:
    """Returns for which units something holds at all positions."""
    if len(positions) <= member.positions.max():
        return np.zeros(len(member.positions), bool)
    everywhere: Array = positions[member.positions].all(1)
    return everywhere


def _share(weight: Array, contraction: Contraction, held: Array) -> Array | None:
    """Returns what constant inputs add to each output of a linear operator."""
    if not held.any():
        return None
    read = contraction.right[1]
    rows = np.moveaxis(weight.astype(np.float64), read, -1)
    if contraction.node.op_type == "Conv":
        rows = rows.reshape(len(weight), -1, weight.shape[read]).sum(1)
    elif rows.ndim != 2:
        return None
    share: Array = rows @ held
    return share
