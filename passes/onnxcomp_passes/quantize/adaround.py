"""Rounding that is learned from samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.passbase import Context, NeedsReference, NeedsSamples, Pass
from onnxcomp.quant.recovery import Recovery
from onnxcomp_passes.quantize.recovering import CODES, recovery, report
from onnxcomp_passes.quantize.refit import Refit


class Adaround(Pass):
    """Rounds weights up or down so that layers give what they gave in float.

    Rounding each number to the nearest one is not best for their sum: errors of weights that are active
    together should cancel out. Layer after layer, the samples are run through the float model and the
    quantized one side by side, and the integers are chosen that bring the layer's output, on the inputs
    that it really gets, nearest to that in float. Scales, types and nodes stay as they are.

    Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020); how the problem is
    solved is told in `onnxcomp.quant.rounding`. A layer changes only if its output on samples that were
    not used comes nearer to float, and layers stay changed only if the model's output does.

        DQ(w = [3, -7, 12]) -> Conv     DQ(w = [4, -7, 11]) -> Conv
    """

    name: ClassVar[str] = "adaround"
    needs = (NeedsSamples(4), NeedsReference())
    codes: ClassVar[Mapping[str, str]] = {
        **CODES,
        "ADR101": "The weight was left as it is: something else reads it too, or it is too large to be "
        "solved for.",
    }

    samples: PositiveInt = 32
    """How many samples to look at; every fourth one only decides whether a change stays."""
    rows: PositiveInt = 256
    """How many places of each sample to look at in a layer."""
    steps: PositiveInt = 1
    """How far a number may move from where it is, in steps of its scale."""

    @override
    def run(self, ctx: Context) -> None:
        work = recovery(ctx, self.samples, Recovery, rows=self.rows)
        if work is None:
            return
        refit = Refit(ctx.edit, reach=self.steps)
        verdicts = work.run(refit, "rounding")
        for name, why in sorted(refit.refused.items()):
            ctx.skip("ADR101", name, why)
        report(ctx, work, verdicts, "layers rounded anew")
