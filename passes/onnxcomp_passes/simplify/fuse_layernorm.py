"""Puts normalizations that exporters took apart together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp_passes.simplify.normalizing.absorb import AbsorbBehind
from onnxcomp_passes.simplify.normalizing.build import BuildNormalization, SpellNormalization
from onnxcomp_passes.simplify.support.base import LocalPass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.rules import Rule


class FuseLayernorm(LocalPass):
    """Puts normalizations that exporters took apart together again.

    Nine operators become LayerNormalization where the model's opset has it (17), or
    InstanceNormalization when all axes behind the channels are averaged; without the mean they become
    RMSNormalization (23). The opset is not raised; where it is too old, the normalization is spelled
    in the way that onnxruntime recognises. Multiplications and additions behind a normalization, also
    one that was there before, go into its scale and bias. GroupNormalization is left alone: the
    runtime takes it apart, at twice the time.

        x -> (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias -> y
        x -> LayerNormalization(scale, bias) -> y

    Single precision only, because other types are computed in another precision. Results agree to a
    few units in the last place.
    """

    name = "fuse-layernorm"
    lossless = True
    near_miss_code = "FLN101"
    codes: ClassVar[Mapping[str, str]] = {
        "FLN101": "A normalization stays written apart, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (BuildNormalization(), SpellNormalization(), AbsorbBehind())
