"""Masks as training frameworks leave them: channels whose weights are zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Edit, Model

if TYPE_CHECKING:
    from onnxcomp.analysis.channels import ChannelMap, Group


def masked(
    model: Model,
    *,
    ratio: float = 0.5,
    side: Literal["made", "read"] = "made",
    seed: int = 0,
    prefer: Literal["large", "outer", "inner"] = "large",
) -> tuple[Model, int]:
    """Zeroes a share of all channels, where they are made (biases too) or where they are read.

    Returns:
        The masked model and how many channels were masked.
    """
    copy = model.copy()
    channels = Facts(copy).get(Channels(prefer))
    rng = np.random.default_rng(seed)
    edit, count = Edit(copy), 0
    for group in channels.groups:
        dead = rng.random(group.units) < ratio
        dead[0] = False
        if not group.mixed and _zero(edit, channels, group, dead, side):
            count += int(dead.sum())
    return copy, count


def _zero(edit: Edit, channels: ChannelMap, group: Group, dead: np.ndarray, side: str) -> bool:
    found = False
    for member in group.members:
        key = (member.value, member.axis)
        if not member.value.is_initializer() or (key in channels.consumers) != (side == "read"):
            continue
        weights = member.value.const_value
        assert weights is not None
        array = np.moveaxis(weights.numpy().copy(), member.axis, 0)
        array[member.positions[dead].reshape(-1)] = 0
        found = True
        edit.set_tensor(member.value, np.ascontiguousarray(np.moveaxis(array, 0, member.axis)))
    return found
