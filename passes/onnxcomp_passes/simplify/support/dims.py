"""Proofs about dimensions and axes; what is not proven is not assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, input_at, integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir

# An end as large as this means "to the end" whatever the dimension (the specification says so).
TO_THE_END = 2**31 - 1


def same_shape(shapes: ShapeMap, first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two values are proven to have the same shape; symbols count, unknowns do not."""
    one, other = shapes.shape(first), shapes.shape(second)
    return one is not None and one == other and None not in one


def same_after_reshape(shapes: ShapeMap, source: ir.Value | None, result: ir.Value) -> bool:
    """Whether a reshape leaves the shape: the number of elements decides one unknown dimension."""
    if same_shape(shapes, source, result):
        return True
    one, other = shapes.shape(source), shapes.shape(result)
    if one is None or other is None or len(one) != len(other):
        return False
    open_at = [at for at, pair in enumerate(zip(one, other, strict=True)) if not _equal(*pair)]
    # A symbol that is 0 at run time would leave the open dimension undecided: numbers only.
    return len(open_at) == 1 and all(
        isinstance(dim, int) and dim > 0 for at, dim in enumerate(one) if at != open_at[0]
    )


def _equal(one: int | str | None, other: int | str | None) -> bool:
    return one is not None and one == other


def list_of(node: ir.Node, name: str, index: int) -> list[int] | None:
    """Returns integers that older opsets keep in an attribute and newer ones in an input.

    Returns:
        None when they are left out or not the same in every run.
    """
    if name in node.attributes:
        found = attribute(node, name)
        return [int(item) for item in found] if isinstance(found, (list, tuple)) else None
    return integers(input_at(node, index))


def is_left_out(node: ir.Node, name: str, index: int) -> bool:
    """Whether such a list is not given at all."""
    return name not in node.attributes and input_at(node, index) is None


def normalized(axes: Sequence[int], rank: int | None) -> list[int] | None:
    """Returns axes counted from the front; None when one is negative and the rank is unknown."""
    if rank is None:
        return None if any(axis < 0 for axis in axes) else list(axes)
    return [axis % rank if -rank <= axis < rank else axis for axis in axes]


def permutation(node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    """Returns the order of a Transpose, None when it is the default and the rank is unknown."""
    if "perm" in node.attributes:
        found = attribute(node, "perm")
        return tuple(found) if isinstance(found, (list, tuple)) else None
    return None if rank is None else tuple(reversed(range(rank)))


def only_axis(shape: Sequence[int], rank: int, axis: int, size: int) -> bool:
    """Whether a constant of a shape varies at most along one axis of a value of a rank.

    The constant must not widen the value: it has no more dimensions, and along the axis one or
    `size` elements.
    """
    if len(shape) > rank:
        return False
    padded = [1] * (rank - len(shape)) + list(shape)
    return all(dim == 1 or (at == axis and dim == size) for at, dim in enumerate(padded))
