"""Targets of Reshape that are known but for one size, or repeat the sizes of what is reshaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at

if TYPE_CHECKING:
    from onnxcomp_passes.simplify.folding.partial import PartialValues
    from onnxcomp_passes.simplify.folding.placing import Placer
    from onnxcomp_passes.simplify.folding.vectors import Item


def simplify(node: ir.Node, values: PartialValues, placer: Placer) -> None:
    """Gives a Reshape a constant target when one says the same as the computed one."""
    target = input_at(node, 1)
    if target is None or constant(target) is not None:
        return
    vector = values.vector(target)
    if vector is None or vector.scalar:
        return
    zero_copies = attribute(node, "allowzero", 0) == 0
    sizes = values.sizes(node.inputs[0]) if zero_copies else None
    found = constant_target(vector.items, sizes)
    if found is not None:
        placer.set_operand(node, 1, ir.tensor(np.array(found, np.int64)), target.name or "shape")


def constant_target(items: tuple[Item, ...], sizes: tuple[Item, ...] | None) -> list[int] | None:
    """Returns a target of plain numbers that means the same, None when there is none.

    One open element may be left to be inferred (-1); others must be the size that the operand has in
    the same place (0). What is inferred is right whenever the model was: the number of elements leaves
    no other choice, as long as no known element is 0.

    Args:
        items: The elements of the target, open ones among them.
        sizes: Dimensions of what is reshaped, None where a 0 would not copy them.
    """
    result: list[int | None] = [item if isinstance(item, int) else None for item in items]
    if 0 in result:
        return None
    open_places = [place for place, item in enumerate(result) if item is None]
    if -1 not in result and len(open_places) == 1:
        result[open_places[0]] = -1
        return [item for item in result if item is not None]
    copied = [p for p in open_places if sizes and p < len(sizes) and _same(items[p], sizes[p])]
    for place in copied:
        result[place] = 0
    rest = [place for place in open_places if place not in copied]
    if len(rest) > (0 if -1 in result else 1):
        return None
    for place in rest:
        result[place] = -1
    return [item for item in result if item is not None]


def _same(first: Item, second: Item) -> bool:
    return first is not None and first == second
