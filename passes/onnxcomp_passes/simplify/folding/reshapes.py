"""Targets of Reshape that are known but for one size, or repeat the sizes of what is reshaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.analysis.symbolic import dims
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, producer_of

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Sizes
    from onnxcomp_passes.simplify.folding.placing import Placer

# How many reshapes in a row are looked through.
_MAX_VIEWS = 4


def simplify(node: ir.Node, shapes: ShapeMap, placer: Placer) -> None:
    """Gives a Reshape a constant target when one says the same as the computed one.

    A Reshape that only takes away or adds dimensions of 1 becomes a Squeeze or an Unsqueeze.
    """
    target = input_at(node, 1)
    if target is None or constant(target) is not None:
        return
    source = shapes.sizes(node.inputs[0])
    if _as_view(node, shapes, placer):
        return
    vector = shapes.vector(target)
    if vector is None or vector.scalar:
        return
    zero_copies = attribute(node, "allowzero", 0) == 0
    usable = zero_copies or 0 not in vector.items
    found = constant_target(vector.items, source if usable else None)
    # With a size of 0 and one to infer, an empty batch would have no answer any more.
    unsure = found is None or ({0, -1} <= set(found) and -1 not in vector.items)
    if unsure and _as_matrix(node, shapes, placer):
        return
    if found is not None:
        placer.set_operand(node, 1, ir.tensor(np.array(found, np.int64)), target.name or "shape")
        if usable and 0 in found:
            placer.set_attribute(node, "allowzero", None)


def _as_view(node: ir.Node, shapes: ShapeMap, placer: Placer) -> bool:
    """Makes a Reshape a Squeeze or Unsqueeze of what it reads, or of what that is a Reshape of."""
    result = shapes.sizes(node.outputs[0])
    for origin in reversed(_origins(node)):
        source = shapes.sizes(origin)
        if source is not None and result is not None and len(source) != len(result):
            short, long = sorted((source, result), key=len)
            ones = _ones_between(short, long)
            if ones:
                placer.view(node, "Unsqueeze" if short is source else "Squeeze", ones, origin)
                return True
    return False


def _origins(node: ir.Node) -> list[ir.Value | None]:
    """What a Reshape reads, what that is a reshape of, and so on."""
    found = [node.inputs[0]]
    while len(found) < _MAX_VIEWS:
        maker = producer_of(found[-1], "Reshape", "Flatten", "Squeeze", "Unsqueeze")
        if maker is None or maker.graph is not node.graph:
            break
        found.append(maker.inputs[0])
    return found


def _as_matrix(node: ir.Node, shapes: ShapeMap, placer: Placer) -> bool:
    """Makes a Reshape to two dimensions a Flatten, which knows an answer when the first one is 0."""
    source, result = shapes.sizes(node.inputs[0]), shapes.sizes(node.outputs[0])
    if source is None or result is None or len(result) != 2 or None in result:
        return False
    for axis in range(1, len(source)):
        if (dims.product(source[:axis]), dims.product(source[axis:])) == result:
            return placer.flatten(node, axis)
    return False


def _ones_between(short: Sizes, long: Sizes) -> list[int] | None:
    """Places of the 1s that a shape has and another one has not, None when more than 1s differ."""
    found: list[int] = []
    left = list(short)
    for place, item in enumerate(long):
        if left and item is not None and item == left[0]:
            left.pop(0)
        elif item == 1:
            found.append(place)
        else:
            return None
    return None if left else found


def constant_target(items: tuple[Item, ...], sizes: tuple[Item, ...] | None) -> list[int] | None:
    """Returns a target of plain numbers that means the same, None when there is none.

    A single open element is inferred (-1), which is right whenever the model was: the number of
    elements leaves no other choice, as long as no known element is 0. Of several, those that are
    the size that the operand has in the same place are copied (0), and one more is inferred if it is
    proven to be what is left. A copied size that turns out to be 0 beside one that is inferred is an
    error, as it is with the fusion that onnxruntime does.

    Args:
        items: The elements of the target, open ones among them.
        sizes: Dimensions of what is reshaped, None where a 0 would not copy them.
    """
    result: list[int | None] = [item if isinstance(item, int) else None for item in items]
    zeros = [place for place, item in enumerate(result) if item == 0]
    if zeros and (sizes is None or zeros[-1] >= len(sizes)):
        return None
    open_places = [place for place, item in enumerate(result) if item is None]
    if -1 not in result and len(open_places) == 1 and not zeros:
        result[open_places[0]] = -1
        return [item for item in result if item is not None]
    copied = [p for p in open_places if sizes and p < len(sizes) and items[p] == sizes[p]]
    for place in copied:
        if items[place] is not None:
            result[place] = 0
    rest = [place for place, item in enumerate(result) if item is None]
    if len(rest) > (0 if -1 in result else 1):
        return None
    if rest and (sizes is None or not _is_left_over(items, sizes, rest[0])):
        return None
    for place in rest:
        result[place] = -1
    return [item for item in result if item is not None]


def _is_left_over(items: Sizes, sizes: Sizes, place: int) -> bool:
    """Whether an element is proven to be what the other ones leave of the operand's elements.

    Beside a copied dimension that turns out to be 0, anything would do for the number of elements.
    """
    others = [sizes[at] if item == 0 else item for at, item in enumerate(items) if at != place]
    whole, rest = dims.product(sizes), dims.product(others)
    return items[place] is not None and dims.exact_quotient(whole, rest) == items[place]
