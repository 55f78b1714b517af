"""Folds BatchNormalization into the linear operator next to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.rules import Match, Miss, Rule
from onnxcomp_passes.simplify.support.affine import (
    FuseBefore,
    FuseBehind,
    Fused,
    fused_behind,
    normalization,
)
from onnxcomp_passes.simplify.support.base import LocalPass, shapes_of
from onnxcomp_passes.simplify.support.linear import linear_before, why_not_before

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import ir


class NormalizeBehind(FuseBehind):
    """A BatchNormalization goes into the linear operator before it."""

    def __init__(self) -> None:
        super().__init__("normalizations folded into the operator before", "BatchNormalization")

    @override
    def match(self, node: ir.Node, facts: Facts) -> Match[Fused] | Miss:
        """Finds the linear operator and computes what it becomes."""
        linear = linear_before(node.inputs[0], node, shapes_of(facts))
        if linear is None or linear.axis != 1:
            why = why_not_before(node.inputs[0], node, shapes_of(facts))
            return Miss(why or "its channels are not what the operator before makes", near=True)
        affine = normalization(node)
        if isinstance(affine, str):
            return Miss(affine, near=True)
        fused = fused_behind(linear, affine)
        return Miss(fused, near=True) if isinstance(fused, str) else Match(node, fused)


class FuseBatchnorm(LocalPass):
    """Folds BatchNormalization into the linear operator next to it.

    A BatchNormalization in inference multiplies and adds one number per channel. It goes into weight
    and bias of the Conv, ConvTranspose, Gemm or MatMul before it, or of the Conv, Gemm or MatMul
    behind it if no padding is in the way. Parameters must be constant, and nothing else may read
    what lies between. A weight with other readers is copied.

    The arithmetic is done in double precision and rounded once; results agree to a few units in the
    last place. Half precision is left alone. Where a value is infinite, or a sum overflows, other
    elements may be infinite or NaN than before: a smaller weight does not overflow, and zero times
    infinity is NaN.

        x -> Conv(w, b) -> BatchNormalization -> y
        x -> Conv(w', b') -> y
    """

    name = "fuse-batchnorm"
    lossless = True
    near_miss_code = "FBN101"
    codes: ClassVar[Mapping[str, str]] = {
        "FBN101": "A BatchNormalization stays. It can be folded when a Conv, ConvTranspose, Gemm or "
        "MatMul with a constant weight stands next to it, when nothing else reads the value between "
        "them, and when its own parameters are constant.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (
            NormalizeBehind(),
            FuseBefore("normalizations folded into the operator behind", "BatchNormalization"),
        )
