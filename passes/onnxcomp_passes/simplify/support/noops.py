"""Operators that hand on their input unchanged, each with the proof that it does.

A function of this module looks at a node and returns the value that its first output equals, or
None. Equal means bit for bit, for every input: NaN, infinities and the sign of zero included.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import array, attribute, input_at, integers, is_training, producer_of
from onnxcomp_passes.simplify.support.base import is_used, shapes_of
from onnxcomp_passes.simplify.support.dims import (
    TO_THE_END,
    is_left_out,
    list_of,
    normalized,
    permutation,
    same_after_reshape,
    same_shape,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import ir
    from onnxcomp.signature import Shape

    Proof = Callable[[ir.Node, Facts], ir.Value | None]

# Elements that no machine can address, at a byte each.
LARGEST_TENSOR = 1 << 46


def _first(node: ir.Node, facts: Facts) -> ir.Value | None:
    del facts
    return input_at(node, 0)


def _alone(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Concat, Sum, Mean, Max and Min of one input; Split into one output."""
    del facts
    counted = node.outputs if node.op_type == "Split" else node.inputs
    return input_at(node, 0) if len(counted) == 1 else None


def _dropout(node: ir.Node, facts: Facts) -> ir.Value | None:
    if is_training(node) or any(is_used(mask) for mask in node.outputs[1:]):
        return None
    return _first(node, facts)


def _cast(node: ir.Node, facts: Facts) -> ir.Value | None:
    shapes, source = shapes_of(facts), input_at(node, 0)
    dtype = shapes.dtype(source)
    if node.op_type == "CastLike":
        same = dtype is not None and dtype == shapes.dtype(input_at(node, 1))
    else:
        same = dtype is not None and dtype.value == attribute(node, "to")
    return source if same else None


def _reshape(node: ir.Node, facts: Facts) -> ir.Value | None:
    shapes, source = shapes_of(facts), input_at(node, 0)
    if same_after_reshape(shapes, source, node.outputs[0]):
        return source
    return source if _keeps_every_dimension(node, facts) else None


def _keeps_every_dimension(node: ir.Node, facts: Facts) -> bool:
    """Whether the wanted shape says so itself: zeros that copy, known numbers, one -1."""
    target, shape = integers(input_at(node, 1)), shapes_of(facts).shape(input_at(node, 0))
    if target is None or shape is None or len(target) != len(shape):
        return False
    copies = attribute(node, "allowzero", 0) == 0
    pairs = zip(target, shape, strict=True)
    kept = [(copies and want == 0) or want == have for want, have in pairs]
    # With a dimension of 0 the -1 is undefined, and so an error: nothing that works is changed.
    return all(same or want == -1 for same, want in zip(kept, target, strict=True))


def _squeeze(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Squeeze and Unsqueeze of no axes, Flatten of what is flat; or the inverse of their input."""
    source = input_at(node, 0)
    if node.op_type != "Flatten" and list_of(node, "axes", 1) == []:
        # For onnxruntime an empty list of axes to squeeze stands for all axes of size 1.
        return source if node.op_type == "Unsqueeze" else None
    if same_shape(shapes_of(facts), source, node.outputs[0]):
        return source
    if node.op_type == "Flatten":
        flat = shapes_of(facts).rank(source) == 2 and attribute(node, "axis", 1) in (1, -1)
        return source if flat else None
    return _before_inverse(node)


def _before_inverse(node: ir.Node) -> ir.Value | None:
    """What Squeeze(Unsqueeze(x)) or Unsqueeze(Squeeze(x)) with the same axes is: x.

    Axes of both count in the longer shape, so that equal lists mean equal axes, negative or not.
    """
    wanted = "Squeeze" if node.op_type == "Unsqueeze" else "Unsqueeze"
    maker = producer_of(input_at(node, 0), wanted)
    if maker is None:
        return None
    axes = list_of(node, "axes", 1)
    made = list_of(maker, "axes", 1)
    if axes is None or made is None or sorted(axes) != sorted(made):
        return None
    return maker.inputs[0]


def _transpose(node: ir.Node, facts: Facts) -> ir.Value | None:
    source = input_at(node, 0)
    rank = None if "perm" in node.attributes else shapes_of(facts).rank(source)
    order = permutation(node, rank)
    return source if order is not None and order == tuple(range(len(order))) else None


def slice_ranges(node: ir.Node) -> list[tuple[int, int, int, int]] | None:
    """Returns (axis, start, end, step) of a Slice, None when they differ between runs."""
    starts, ends = list_of(node, "starts", 1), list_of(node, "ends", 2)
    if starts is None or ends is None:
        return None
    default = range(len(starts))
    axes = list(default) if is_left_out(node, "axes", 3) else list_of(node, "axes", 3)
    steps = [1 for _ in default] if input_at(node, 4) is None else integers(input_at(node, 4))
    if axes is None or steps is None:
        return None
    return list(zip(axes, starts, ends, steps, strict=True))


def _slice(node: ir.Node, facts: Facts) -> ir.Value | None:
    ranges, source = slice_ranges(node), input_at(node, 0)
    if ranges is None:
        return None
    shape = shapes_of(facts).shape(source)
    rank = None if shape is None else len(shape)
    for axis, start, end, step in ranges:
        at = normalized([axis], rank)
        dim = None if shape is None or at is None or at[0] >= len(shape) else shape[at[0]]
        if step != 1 or not (_takes_all(dim, start, end) or (start == 0 and _is_huge(shape, end))):
            return None
    return source


def _takes_all(dim: int | str | None, start: int, end: int) -> bool:
    if isinstance(dim, int):
        return (start == 0 or start <= -dim) and end >= dim
    return start == 0 and end >= TO_THE_END


def _is_huge(shape: Shape | None, end: int) -> bool:
    """Whether a tensor with more than `end` in an unknown dimension has no room in any memory.

    Exporters write 1,000,000,000 for "to the end".
    """
    known = prod(dim for dim in shape or () if isinstance(dim, int))
    return known > 0 and known * end >= LARGEST_TENSOR


def _pad(node: ir.Node, facts: Facts) -> ir.Value | None:
    pads = list_of(node, "pads", 1)
    return _first(node, facts) if pads is not None and not any(pads) else None


def _expand(node: ir.Node, facts: Facts) -> ir.Value | None:
    shapes, source = shapes_of(facts), input_at(node, 0)
    if same_shape(shapes, source, node.outputs[0]):
        return source
    target, shape = integers(input_at(node, 1)), shapes.shape(source)
    if target is None or shape is None or len(target) > len(shape):
        return None
    pairs = zip(target, shape[len(shape) - len(target) :], strict=True)
    return source if all(want in (1, have) for want, have in pairs) else None


def _tile(node: ir.Node, facts: Facts) -> ir.Value | None:
    repeats = integers(input_at(node, 1))
    return _first(node, facts) if repeats is not None and set(repeats) <= {1} else None


def _gather(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Gather of 0, 1, 2 … along a whole axis."""
    shapes, source = shapes_of(facts), input_at(node, 0)
    shape, axis = shapes.shape(source), attribute(node, "axis", 0)
    if shape is None or shapes.rank(input_at(node, 1)) != 1:
        return None
    size = shape[axis]
    found = array(input_at(node, 1), limit=size) if isinstance(size, int) else None
    whole = found is not None and list(found) == list(range(len(found))) and len(found) == size
    return source if whole else None


def _involution(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Not(Not(x)), Neg(Neg(x)): a change that undoes itself."""
    del facts
    maker = producer_of(node.inputs[0], node.op_type)
    return None if maker is None else maker.inputs[0]


def _projection(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Relu(Relu(x)), Floor(Floor(x)): a second time changes nothing."""
    del facts
    return None if producer_of(node.inputs[0], node.op_type) is None else node.inputs[0]


def _clip(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Clip to the whole range of the type.

    A bound that is left out stands for the largest finite number, which turns an infinity into it:
    for floating point only explicit infinities have no effect.
    """
    source = input_at(node, 0)
    dtype = shapes_of(facts).dtype(source)
    if dtype is None or "min" in node.attributes or "max" in node.attributes:
        return None
    low, high = input_at(node, 1), input_at(node, 2)
    if dtype.is_integer() and low is None and high is None:
        return source
    if dtype.is_floating_point() and _is_infinite(low, -1) and _is_infinite(high, 1):
        return source
    return None


def _is_infinite(value: ir.Value | None, sign: int) -> bool:
    found = array(value, limit=1)
    return found is not None and found.size == 1 and bool((found == sign * np.inf).all())


def _where(node: ir.Node, facts: Facts) -> ir.Value | None:
    """Where both choices are the same value, or the condition is the same everywhere."""
    condition, then, otherwise = node.inputs
    found = array(condition, limit=1 << 16)
    source = then if then is otherwise else None
    if found is not None and found.size and (found.all() or not found.any()):
        source = then if found.all() else otherwise
    return source if same_shape(shapes_of(facts), source, node.outputs[0]) else None


NOOPS: dict[str, Proof] = {
    "Identity": _first,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Flatten": _squeeze,
    "Transpose": _transpose,
    "Slice": _slice,
    "Pad": _pad,
    "Expand": _expand,
    "Tile": _tile,
    "Gather": _gather,
    "Clip": _clip,
    "Where": _where,
    **dict.fromkeys(("Concat", "Sum", "Mean", "Max", "Min", "Split"), _alone),
    **dict.fromkeys(("Not", "Neg", "BitwiseNot"), _involution),
    **dict.fromkeys(("Relu", "Abs", "Ceil", "Floor", "Round", "Sign"), _projection),
}
