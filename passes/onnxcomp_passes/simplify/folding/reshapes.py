"""Targets of Reshape that are known but for one size, or repeat the sizes of what is reshaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
    found = constant_target(vector.items, source if zero_copies else None)
    if found is not None:
        placer.set_operand(node, 1, ir.tensor(np.array(found, np.int64)), target.name or "shape")


def _as_view(node: ir.Node, shapes: ShapeMap, placer: Placer) -> bool:
    """Makes a Reshape a Squeeze or Unsqueeze of what it reads, or of what that is a Reshape of."""
    result = shapes.sizes(node.outputs[0])
    origin = node.inputs[0]
    for _ in range(_MAX_VIEWS):
        source = shapes.sizes(origin)
        if source is not None and result is not None and len(source) != len(result):
            short, long = sorted((source, result), key=len)
            ones = _ones_between(short, long)
            if ones:
                placer.view(node, "Unsqueeze" if short is source else "Squeeze", ones, origin)
                return True
        maker = producer_of(origin, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
        if maker is None or maker.graph is not node.graph:
            break
        origin = maker.inputs[0]
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

    Open elements that are the size that the operand has in the same place are copied (0). One of
    those left, if it is the only one, is inferred (-1), which is right whenever the model was: the
    number of elements leaves no other choice, as long as no known element is 0. A size in the
    result that turns out to be 0 beside one that is inferred is an error, as it is with the fusion
    that onnxruntime does; a single open element is inferred alone, which holds for 0 too.

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
    for place in rest:
        result[place] = -1
    return [item for item in result if item is not None]
