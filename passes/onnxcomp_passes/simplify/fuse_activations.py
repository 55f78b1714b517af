"""Puts activations that exporters took apart together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp_passes.simplify.activations.gelu import BuildGelu, ShortenTanhGelu
from onnxcomp_passes.simplify.activations.hard import BuildHardSigmoid, BuildHardSwish, BuildSlope
from onnxcomp_passes.simplify.activations.rectifiers import (
    BuildClip,
    BuildLeakyRelu,
    BuildRelu,
    BuildThresholdedRelu,
)
from onnxcomp_passes.simplify.activations.smooth import (
    BuildMish,
    BuildSelu,
    BuildSigmoid,
    BuildSoftsign,
    KeepSoftplus,
)
from onnxcomp_passes.simplify.support.base import LocalPass
from onnxcomp_passes.simplify.support.formulas import Unwidened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.rules import Rule


class FuseActivations(LocalPass):
    """Puts activations that exporters took apart together again.

    Sigmoid, HardSigmoid, Softsign, Selu, LeakyRelu, ThresholdedRelu, Relu and Clip; HardSwish (opset
    14), Mish (opset 18) and Gelu (opset 20, exact and tanh form) where the model's opset has them: the
    opset is not raised. Before opset 20 the tanh form of Gelu becomes the equal one with Sigmoid.
    Constants must be those of the formula to single precision, and nothing else may read what lies
    between. A PRelu with one slope is a LeakyRelu.

        x -> Add(3) -> Clip(0, 6) -> Div(6) -> y
        x -> HardSigmoid(1/6, 0.5) -> y

    Left alone because onnxruntime runs the parts faster than the operator: Softplus, Elu, Celu, PRelu
    with several slopes, Swish (it runs `x * Sigmoid(x)` as one).

    Results agree to a few units in the last place. They can differ where the parts overflow and the
    operator does not (`x * (1 + erf(x))` before the half is taken, above 1.7e38), and in the sign of
    zero (`max(-0, 0)`); infinities and NaN give what the parts give.
    """

    name = "fuse-activations"
    lossless = True
    near_miss_code = "FAC101"
    codes: ClassVar[Mapping[str, str]] = {
        "FAC101": "A formula that is one operator stays as it is, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        found: tuple[Rule, ...] = (
            BuildRelu(),
            BuildClip(),
            BuildLeakyRelu(),
            BuildThresholdedRelu(),
            BuildHardSigmoid(),
            BuildSlope(),
            BuildHardSwish(),
            BuildSigmoid(),
            BuildSoftsign(),
            BuildSelu(),
            BuildMish(),
            BuildGelu(),
            ShortenTanhGelu(),
            KeepSoftplus(),
        )
        return tuple(Unwidened(rule) for rule in found)
