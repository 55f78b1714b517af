"""Dimensions of parts of a tensor, and of a tensor with a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import dims
from onnxcomp.ir.ops import attribute, input_at

if TYPE_CHECKING:
    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Known, Sizes
    from onnxcomp.ir import ir

# An end as large as this means "to the end" whatever the dimension (the specification says so).
TO_THE_END = 2**31 - 1


def split(known: Known, node: ir.Node) -> list[Sizes | None]:
    """Returns the dimensions of each output of a Split, none where the parts are not known."""
    shape, axis = known.sizes(input_at(node, 0)), attribute(node, "axis") or 0
    given = "split" in node.attributes or input_at(node, 1) is not None
    parts = _bound(known, node, "split", 1) if given else None
    if not shape or not isinstance(axis, int) or (given and parts is None):
        return []
    if parts is None:
        # Equal parts, of which the last may be smaller in newer versions: only one is no question.
        parts = (shape[axis],) if len(node.outputs) == 1 else (None,) * len(node.outputs)
    axis %= len(shape)
    return [(*shape[:axis], part, *shape[axis + 1 :]) for part in parts]


def sliced(known: Known, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a Slice takes."""
    shape = known.sizes(input_at(node, 0))
    if shape is None:
        return None
    starts, ends = _bound(known, node, "starts", 1), _bound(known, node, "ends", 2)
    if starts is None or ends is None or len(starts) != len(ends):
        return tuple(None for _ in shape)
    given = "axes" in node.attributes or input_at(node, 3) is not None
    axes = _bound(known, node, "axes", 3) if given else tuple(range(len(starts)))
    steps = _bound(known, node, "steps", 4) if input_at(node, 4) else (1,) * len(starts)
    if axes is None or steps is None or not all(isinstance(axis, int) for axis in axes):
        return tuple(None for _ in shape)
    result = list(shape)
    for axis, *ranged in zip(axes, starts, ends, steps, strict=True):
        if isinstance(axis, int) and -len(shape) <= axis < len(shape):
            result[axis] = _length(result[axis], *ranged)
    return tuple(result)


def _bound(known: Known, node: ir.Node, name: str, index: int) -> Sizes | None:
    if name in node.attributes:
        found = attribute(node, name)
        return tuple(found) if isinstance(found, (list, tuple)) else None
    vector = known.vector(input_at(node, index))
    return None if vector is None else vector.items


def _length(size: Item, start: Item, end: Item, step: Item) -> Item:
    """How many elements of `size` a Slice takes."""
    if step != 1:
        return None
    if isinstance(end, int) and end >= TO_THE_END:
        if isinstance(start, int) and start < 0:
            return dims.minimum(size, -start)
        return dims.maximum(dims.subtract(size, start), 0) if dims.is_nonnegative(start) else None
    last = _clamped(end, size)
    return dims.maximum(dims.subtract(last, _clamped(start, size)), 0)


def _clamped(bound: Item, size: Item) -> Item:
    if isinstance(bound, int) and bound < 0:
        return dims.maximum(dims.add(size, bound), 0)
    return dims.minimum(bound, size) if dims.is_nonnegative(bound) else None


def padded(known: Known, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of what a Pad makes."""
    shape = known.sizes(input_at(node, 0))
    pads = attribute(node, "pads") if "pads" in node.attributes else _bound(known, node, "", 1)
    if shape is None or input_at(node, 3) is not None or not isinstance(pads, (list, tuple)):
        return None
    if len(pads) != 2 * len(shape):
        return None
    both = zip(pads[: len(shape)], pads[len(shape) :], strict=True)
    return tuple(dims.add(item, dims.add(*ends)) for item, ends in zip(shape, both, strict=True))
