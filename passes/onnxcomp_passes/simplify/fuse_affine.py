"""Folds multiplications and additions by constants into the weights next to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp_passes.simplify.support.affine import FuseBefore, FuseBehind
from onnxcomp_passes.simplify.support.base import LocalPass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.rules import Rule


class FuseAffine(LocalPass):
    """Folds Mul, Div, Add and Sub by constants per channel into the weights next to them.

    Behind a Conv, ConvTranspose, Gemm or MatMul with a constant weight the factor goes into weight
    and bias. Before one it does too; an addition there needs an operator without padding. Nothing
    else may read what lies between. A weight with other readers is copied. The arithmetic is done
    in double precision and rounded once; where a value is infinite or a sum overflows, other
    elements may be infinite or NaN than before. Half precision is left alone, and so is the end of a GELU
    or of a layer normalization, which runtimes recognise as a whole.

        x -> Conv(w, b) -> Mul(c) -> y        x -> Mul(c) -> MatMul(w) -> y
        x -> Conv(w * c, b * c) -> y          x -> MatMul(c * w) -> y
    """

    name = "fuse-affine"
    lossless = True
    near_miss_code = "FAF101"
    codes: ClassVar[Mapping[str, str]] = {
        "FAF101": "A multiplication or addition by a constant stays beside a Conv, Gemm or MatMul, "
        "for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (
            FuseBehind("factors folded into the operator before", "Mul", "Div", "Sub"),
            FuseBefore("factors folded into the operator behind", "Mul", "Div", "Add", "Sub"),
        )
