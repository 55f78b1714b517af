"""What an operator needs to be told when positions go: groups, sizes, bounds, numbers of heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from onnxcomp.ir.ops import array, attribute, input_at, integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.ir import ir
    from onnxcomp_passes.prune.support.removal import Removal

    Adjust: TypeAlias = Callable[["Removal", "ir.Node"], None]

_LONG = 1 << 20
_FAR = 1 << 31
_END = 1 << 40
# Since this opset lists of axes and sizes are inputs.
_SPLIT_INPUT = 13
# Axes of [batch, sequence, heads * size].
_FLAT = 3


def _conv(removal: Removal, node: ir.Node) -> None:
    """As many groups as all channels hold a group's: those read by a Conv, made by a ConvTranspose."""
    if attribute(node, "group", 1) == 1:
        return
    all_groups = node.outputs[0] if node.op_type == "ConvTranspose" else node.inputs[0]
    weight = node.inputs[3 if node.op_type == "QLinearConv" else 1]
    whole, part = removal.new_size(all_groups, 1), removal.new_size(weight, 1)
    if whole and part:
        removal.edit.set_attribute(node, "group", whole // part)


def _split(removal: Removal, node: ir.Node) -> None:
    rank = removal.rank(node.inputs[0])
    axis = attribute(node, "axis", 0) % rank
    sizes = [removal.new_size(output, axis) for output in node.outputs]
    if any(size is None for size in sizes) or all(
        removal.kept(o, axis) is None for o in node.outputs
    ):
        return
    numbers = [size or 0 for size in sizes]
    if removal.opset < _SPLIT_INPUT:
        removal.edit.set_attribute(node, "split", numbers)
        return
    removal.edit.set_attribute(node, "num_outputs", None)
    removal.constant_for(node, 1, numbers)


def _picked(removal: Removal, node: ir.Node, axis: int, picked: np.ndarray, out: int) -> list[int]:
    """Returns where the positions that a node picks and that stay will be in the operand."""
    source, result = removal.kept(node.inputs[0], axis), removal.kept(node.outputs[0], out)
    places = np.arange(picked.max() + 1) if source is None else np.cumsum(source) - 1
    return [int(place) for place in places[picked if result is None else picked[result]]]


def _gather(removal: Removal, node: ir.Node) -> None:
    axis = attribute(node, "axis", 0) % removal.rank(node.inputs[0])
    indices = array(node.inputs[1], limit=_LONG)
    source = removal.kept(node.inputs[0], axis)
    if indices is None or indices.ndim != 1 or source is None:
        return
    picked = np.where(indices < 0, indices + len(source), indices)
    removal.constant_for(node, 1, _picked(removal, node, axis, picked, axis))


def _slice(removal: Removal, node: ir.Node) -> None:
    """Cuts what is left of the positions that were cut before."""
    rank = removal.rank(node.inputs[0])
    for axis in range(rank):
        if removal.kept(node.inputs[0], axis) is not None:
            _slice_axis(removal, node, axis, rank)


def _slice_axis(removal: Removal, node: ir.Node, axis: int, rank: int) -> None:
    bounds = _Bounds.read(node, rank)
    kept = removal.kept(node.inputs[0], axis)
    if bounds is None or axis not in bounds.axes or kept is None:
        return
    place = bounds.axes.index(axis)
    picked = np.arange(len(kept))[bounds.slice(place)]
    new = _picked(removal, node, axis, picked, axis)
    step = new[1] - new[0] if len(new) > 1 else 1
    if new == list(range(new[0], new[0] + step * len(new), step)):
        bounds.set(place, new[0], new[-1] + (1 if step > 0 else -1), step)
    else:
        # What is left has no pattern any more: it is picked by number in front of the Slice.
        bounds.set(place, 0, _END, 1)
        gather = removal.edit.insert(
            "Gather", [node.inputs[0]], before=node, attributes={"axis": axis}
        )
        removal.constant_for(gather, 1, new)
        removal.edit.set_input(node, 0, gather.outputs[0])
    bounds.write(removal, node)


@dataclass
class _Bounds:
    """The bounds of a Slice, in attributes or in constant inputs."""

    starts: list[int]
    ends: list[int]
    axes: list[int]
    steps: list[int]

    @classmethod
    def read(cls, node: ir.Node, rank: int) -> _Bounds | None:
        """Reads them; None when one is not constant."""
        if "starts" in node.attributes:
            starts: list[int] = list(attribute(node, "starts", ()))
            ends: list[int] = list(attribute(node, "ends", ()))
            axes: list[int] = list(attribute(node, "axes", range(len(starts))))
            return cls(starts, ends, [axis % rank for axis in axes], [1] * len(starts))
        given = [
            None if input_at(node, i) is None else integers(input_at(node, i)) for i in range(1, 5)
        ]
        if not given[0] or not given[1]:
            return None
        starts, ends = given[0], given[1]
        axes = given[2] or list(range(len(starts)))
        return cls(starts, ends, [axis % rank for axis in axes], given[3] or [1] * len(starts))

    def slice(self, place: int) -> slice[int, int | None, int]:
        """Returns the bounds of one axis; far below zero stands for "to the beginning"."""
        backwards = self.steps[place] < 0 and self.ends[place] < -_FAR
        return slice(self.starts[place], None if backwards else self.ends[place], self.steps[place])

    def set(self, place: int, start: int, end: int, step: int) -> None:
        """Sets the bounds of one axis."""
        self.starts[place], self.steps[place] = start, step
        self.ends[place] = -_END if step < 0 and end < 0 else end

    def write(self, removal: Removal, node: ir.Node) -> None:
        """Stores them where they came from."""
        if "starts" in node.attributes:
            removal.edit.set_attribute(node, "starts", self.starts)
            removal.edit.set_attribute(node, "ends", self.ends)
            return
        for index, numbers in enumerate((self.starts, self.ends, self.axes, self.steps), 1):
            removal.constant_for(node, index, numbers)


def _reshape(removal: Removal, node: ir.Node) -> None:
    """Writes the sizes that are new; what is left to the runtime (-1, 0) stays where that is right."""
    source, out = node.inputs[0], node.outputs[0]
    copies = not attribute(node, "allowzero", 0)
    changes: dict[int, int] = {}
    for axis, item in enumerate(removal.items(input_at(node, 1)) or ()):
        old, new = removal.old_size(out, axis), removal.new_size(out, axis)
        if item == -1 or new is None:
            continue
        copied = removal.new_size(source, axis) if axis < removal.rank(source) else None
        if item == 0 and copies:
            right = copied == new
        else:
            # What is not known may be a size that is copied.
            right = old == new and (item is not None or not _loses(removal, source, axis))
        if not right:
            changes[axis] = new
    removal.write_sizes(node, 1, changes)


def _loses(removal: Removal, value: ir.Value | None, axis: int) -> bool:
    return axis < removal.rank(value) and removal.kept(value, axis) is not None


def _expand(removal: Removal, node: ir.Node) -> None:
    out, items = node.outputs[0], removal.items(input_at(node, 1)) or ()
    offset = removal.rank(out) - len(items)
    changes = {
        place: removal.new_size(out, place + offset) or 0
        for place, item in enumerate(items)
        if item != 1 and removal.kept(out, place + offset) is not None
    }
    removal.write_sizes(node, 1, changes)


def _all_sizes(index: int) -> Adjust:
    """Sizes of all axes of the result, in an operand."""

    def adjust(removal: Removal, node: ir.Node) -> None:
        out = node.outputs[0]
        rank = removal.rank(out)
        if len(removal.items(input_at(node, index)) or ()) != rank:
            return
        changed = [axis for axis in range(rank) if removal.kept(out, axis) is not None]
        removal.write_sizes(node, index, {a: removal.new_size(out, a) or 0 for a in changed})

    return adjust


def _tile(removal: Removal, node: ir.Node) -> None:
    """An axis of one position is repeated as often as positions are left."""
    out = node.outputs[0]
    changes = {
        axis: removal.new_size(out, axis) or 0
        for axis in range(removal.rank(out))
        if removal.old_size(node.inputs[0], axis) == 1 and removal.kept(out, axis) is not None
    }
    removal.write_sizes(node, 1, changes)


def _pad(removal: Removal, node: ir.Node) -> None:
    """What is left of the positions that came before and after."""
    rank = removal.rank(node.outputs[0])
    given = node.attributes.get("pads")
    pads = list(attribute(node, "pads", ())) if given is not None else integers(input_at(node, 1))
    axes = integers(input_at(node, 3)) or list(range(rank))
    changes: dict[int, int] = {}
    for place, axis in enumerate(axes):
        kept = removal.kept(node.outputs[0], axis % rank)
        if kept is None or not pads:
            continue
        before, after = pads[place], pads[place + len(axes)]
        if before or after:
            changes[place] = int(kept[:before].sum())
            changes[place + len(axes)] = int(kept[len(kept) - after :].sum())
    if given is None:
        removal.write_sizes(node, 1, changes)
    elif changes:
        new = [changes.get(place, pad) for place, pad in enumerate(pads or ())]
        removal.edit.set_attribute(node, "pads", new)


def _squeeze(removal: Removal, node: ir.Node) -> None:
    """An axis of which one position is left is no axis that goes."""
    source = node.inputs[0]
    rank = removal.rank(source)
    if "axes" in node.attributes or input_at(node, 1) is not None:
        return
    if all(removal.kept(source, axis) is None for axis in range(rank)):
        return
    axes = [axis for axis in range(rank) if removal.old_size(source, axis) == 1]
    if removal.opset < _SPLIT_INPUT:
        removal.edit.set_attribute(node, "axes", axes)
    else:
        removal.constant_for(node, 1, axes)


def _group_normalization(removal: Removal, node: ir.Node) -> None:
    groups = attribute(node, "num_groups", 1)
    kept = removal.kept(node.inputs[0], 1)
    if kept is not None:
        removal.edit.set_attribute(node, "num_groups", _left(kept, groups))


def _left(kept: np.ndarray, parts: int) -> int:
    """How many parts are left: fewer where whole ones go, all of them where each loses some."""
    return int(kept.reshape(parts, -1).any(1).sum())


def _recurrent(removal: Removal, node: ir.Node) -> None:
    size = removal.new_size(node.inputs[2], 1 if node.op_type == "DynamicQuantizeLSTM" else 2)
    if size is not None and "hidden_size" in node.attributes:
        removal.edit.set_attribute(node, "hidden_size", size)


def _attention(removal: Removal, node: ir.Node) -> None:
    """Heads, queries for each of them, and what is left within: scores are scaled as before."""
    query = node.inputs[0]
    if removal.rank(query) != _FLAT:
        kept = removal.kept(query, 3)
        if kept is not None:
            _keep_scale(removal, node, len(kept))
        return
    names = ("q_num_heads", "kv_num_heads") if not node.domain else ("num_heads", "kv_num_heads")
    asking = int(attribute(node, names[0], 0))
    shared = int(attribute(node, names[1], asking))
    kept = removal.kept(query, 2)
    if kept is None:
        return
    cube = kept.reshape(shared, asking // shared, -1)
    left = [int(cube.any(tuple({0, 1, 2} - {axis})).sum()) for axis in range(3)]
    removal.edit.set_attribute(node, names[0], left[0] * left[1])
    if names[1] in node.attributes:
        removal.edit.set_attribute(node, names[1], left[0])
    if left[2] != cube.shape[2]:
        _keep_scale(removal, node, cube.shape[2])


def _keep_scale(removal: Removal, node: ir.Node, size: int) -> None:
    """Scores were divided by the root of the size of a head, unless a scale was given."""
    if not attribute(node, "scale", 0.0):
        removal.edit.set_attribute(node, "scale", 1.0 / size**0.5)


def _fused_attention(removal: Removal, node: ir.Node) -> None:
    """Heads went from the three parts of one matrix, or something of each head."""
    kept = removal.kept(node.inputs[1], 1)
    if kept is None:
        return
    heads = attribute(node, "num_heads", 1)
    sizes = attribute(node, "qkv_hidden_sizes", (len(kept) // 3,) * 3)
    parts = np.split(kept, np.cumsum(sizes)[:2])
    inside = parts[0].reshape(heads, -1)
    removal.edit.set_attribute(node, "num_heads", _left(parts[0], heads))
    new = [int(part.sum()) for part in parts]
    if "qkv_hidden_sizes" in node.attributes or len(set(new)) > 1:
        removal.edit.set_attribute(node, "qkv_hidden_sizes", new)
    if inside.any(0).sum() != inside.shape[1]:
        _keep_scale(removal, node, inside.shape[1])


def _rotary(removal: Removal, node: ir.Node) -> None:
    heads, kept = attribute(node, "num_heads", 0), removal.kept(node.inputs[0], 2)
    if heads and kept is not None and removal.rank(node.inputs[0]) == _FLAT:
        removal.edit.set_attribute(node, "num_heads", _left(kept, heads))


ADJUSTMENTS: dict[str, Adjust] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "Split": _split,
    "Gather": _gather,
    "Slice": _slice,
    "Reshape": _reshape,
    "Expand": _expand,
    "ConstantOfShape": _all_sizes(0),
    "Resize": _all_sizes(3),
    "Tile": _tile,
    "Pad": _pad,
    "Squeeze": _squeeze,
    "GroupNormalization": _group_normalization,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
    "RotaryEmbedding": _rotary,
    "QLinearConv": _conv,
    "com.microsoft.FusedConv": _conv,
    "com.microsoft.Attention": _fused_attention,
    "com.microsoft.MultiHeadAttention": _attention,
    "com.microsoft.GroupQueryAttention": _attention,
    "com.microsoft.RotaryEmbedding": _rotary,
    "com.microsoft.DynamicQuantizeLSTM": _recurrent,
}
