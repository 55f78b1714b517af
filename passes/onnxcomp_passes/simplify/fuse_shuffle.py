"""Puts pixel shuffles that exporters took apart together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, OpsetFloor, shapes_of
from onnxcomp_passes.simplify.support.dims import permutation
from onnxcomp_passes.simplify.support.formulas import build, inner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.signature import Shape

MODES = 11  # the opset that gave DepthToSpace its mode
# Orders of the axes of what has six of them.
DCR, CRD, GATHERED = (0, 3, 4, 1, 5, 2), (0, 1, 4, 2, 5, 3), (0, 3, 5, 1, 2, 4)
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Shuffle:
    """A pixel shuffle, or its inverse."""

    source: ir.Value
    operator: str
    attributes: Mapping[str, int | str]


class BuildShuffle:
    """Reshape, Transpose and Reshape that move channels into pixels, or pixels into channels."""

    name = "pixel shuffles put together"
    ops = frozenset({"Reshape"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Shuffle] | Miss:
        """Follows the shapes backwards."""
        turn = inner(node.inputs[0], "Transpose")
        split = inner(turn.inputs[0], "Reshape") if turn is not None else None
        if turn is None or split is None or split.inputs[0] is None:
            return NOTHING
        order = permutation(turn, None)
        if order not in {DCR, CRD, GATHERED}:
            return NOTHING
        source, shapes = split.inputs[0], shapes_of(facts)
        if shapes.dtype(source) not in _TYPES or (order == CRD and facts.get(OpsetFloor()) < MODES):
            return NOTHING
        size = _block_size(order, source, split.outputs[0], node.outputs[0], shapes)
        if size is None:
            return NOTHING
        if order == GATHERED:
            return Match(node, Shuffle(source, "SpaceToDepth", {"blocksize": size}))
        mode = {"mode": "CRD"} if order == CRD else {}
        return Match(node, Shuffle(source, "DepthToSpace", {"blocksize": size, **mode}))

    def apply(self, match: Match[Shuffle], edit: Edit) -> None:
        """Builds it."""
        found = match.found
        build(edit, match.node, found.operator, found.source, **found.attributes)


def _block_size(
    order: Sequence[int], source: ir.Value, middle: ir.Value, result: ir.Value, shapes: ShapeMap
) -> int | None:
    """Returns the size of the blocks if all three shapes are those of a shuffle."""
    before, between, after = (shapes.shape(value) for value in (source, middle, result))
    if before is None or between is None or after is None or len(before) != 4 or len(between) != 6:
        return None
    size = between[3] if order == GATHERED else between[2]
    batch, channels, height, width = before
    if not (isinstance(size, int) and isinstance(channels, int) and size > 1):
        return None
    if not (isinstance(height, int) and isinstance(width, int)):
        return None
    wanted: Shape
    last: Shape
    if order == GATHERED:
        if height % size or width % size:
            return None
        wanted = (batch, channels, height // size, size, width // size, size)
        last = (batch, channels * size * size, height // size, width // size)
    else:
        if channels % (size * size):
            return None
        deep = channels // (size * size)
        blocks = (size, size, deep) if order == DCR else (deep, size, size)
        wanted = (batch, *blocks, height, width)
        last = (batch, deep, height * size, width * size)
    return size if _is(between, wanted) and _is(after, last) else None


def _is(shape: Shape, wanted: Shape) -> bool:
    """Whether a reshaped value has a shape: all numbers agree, the batch is what is left then."""
    if len(shape) != len(wanted):
        return False
    pairs = list(zip(shape, wanted, strict=True))
    if any(not isinstance(dim, int) or dim != goal or dim == 0 for dim, goal in pairs[1:]):
        return False
    return not (isinstance(shape[0], int) and isinstance(wanted[0], int)) or shape[0] == wanted[0]


class FuseShuffle(LocalPass):
    """Puts pixel shuffles that exporters took apart together again.

    Reshape, Transpose and Reshape become DepthToSpace or SpaceToDepth, which move the numbers once and
    in longer runs: three to ten times as fast in onnxruntime. Sizes must be known, the batch aside.

        x -> Reshape(n, c, 2, 2, h, w) -> Transpose(0, 1, 4, 2, 5, 3) -> Reshape(n, c, 2 h, 2 w) -> y
        x -> DepthToSpace(2, CRD) -> y
    """

    name = "fuse-shuffle"
    lossless = True

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (BuildShuffle(),)
