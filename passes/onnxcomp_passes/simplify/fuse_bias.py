"""Makes the addition of a constant behind a linear operator its bias."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp_passes.simplify.support.affine import FuseBehind
from onnxcomp_passes.simplify.support.base import LocalPass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.rules import Rule


class FuseBias(LocalPass):
    """Makes the addition of a constant behind a linear operator its bias.

    Conv, ConvTranspose and Gemm get the sum of the constant and the bias they have; a MatMul whose
    operands are proven to be matrices becomes a Gemm. Nothing else may read what lies between.

        x -> Conv(w) -> Add(c) -> y        x -> MatMul(w) -> Add(c) -> y
        x -> Conv(w, c) -> y               x -> Gemm(w, c) -> y
    """

    name = "fuse-bias"
    lossless = True
    near_miss_code = "FBI101"
    codes: ClassVar[Mapping[str, str]] = {
        "FBI101": "The addition of a constant stays behind a Conv, Gemm or MatMul, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (FuseBehind("additions made a bias", "Add", "Sub"),)
