"""Lets Gemm read transposed matrices as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, has_reference_attribute
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, OpsetFloor, bypass, shapes_of
from onnxcomp_passes.simplify.support.dims import permutation
from onnxcomp_passes.simplify.support.formulas import inner

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit

NO_BIAS = 11  # the opset in which Gemm can do without one
FLAGS = ("transA", "transB")
_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})


@dataclass(frozen=True)
class Untransposed:
    """Operands with their Transposes taken off, and which of them had one."""

    operands: tuple[ir.Value, ir.Value]
    flipped: tuple[bool, bool]


class ReadTransposed:
    """`transpose(x) @ y` of matrices is a Gemm that transposes x."""

    name = "transposes left to Gemm"
    ops = frozenset({"MatMul", "Gemm"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Untransposed] | Miss:
        """Finds operands that only this node reads transposed."""
        if has_reference_attribute(node):
            return NOTHING
        found = [_untransposed(value) for value in node.inputs[:2]]
        flipped = tuple(
            value is not other for value, other in zip(node.inputs, found, strict=False)
        )
        first, second = found[0], found[1]
        if first is None or second is None or not any(flipped):
            return NOTHING
        shapes = shapes_of(facts)
        if any(shapes.rank(value) != 2 for value in found):
            return NOTHING
        if node.op_type == "MatMul" and (
            facts.get(OpsetFloor()) < NO_BIAS or shapes.dtype(first) not in _TYPES
        ):
            return NOTHING
        return Match(node, Untransposed((first, second), (flipped[0], flipped[1])))

    def apply(self, match: Match[Untransposed], edit: Edit) -> None:
        """Turns the flags, and a MatMul into a Gemm."""
        node, found = match.node, match.found
        options = dict(node.attributes)
        for name, flips in zip(FLAGS, found.flipped, strict=True):
            if flips:
                options.pop(name, None)
                if attribute(node, name, 0) == 0:
                    options[name] = ir.AttrInt64(name, 1)
        made = edit.insert(
            "Gemm",
            [*found.operands, *node.inputs[2:]],
            before=node,
            attributes=options,
            like=node.outputs[0],
        )
        bypass(edit, node, made.outputs[0])


def _untransposed(value: ir.Value | None) -> ir.Value | None:
    """Returns what a Transpose of a matrix, read once, transposes; the value itself otherwise."""
    turn = inner(value, "Transpose")
    if turn is None or permutation(turn, 2) != (1, 0) or turn.inputs[0] is None:
        return value
    return turn.inputs[0]


class FuseTranspose(LocalPass):
    """Lets Gemm read transposed matrices as they are.

    A Transpose before a Gemm, or before a MatMul of matrices, becomes a flag of the Gemm. As fast as
    before in onnxruntime, which has such a flag for MatMul itself, and one node less.

        x -> Transpose -> MatMul(y) -> z
        x -> Gemm(transA, y) -> z
    """

    name = "fuse-transpose"
    lossless = True

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (ReadTransposed(),)
