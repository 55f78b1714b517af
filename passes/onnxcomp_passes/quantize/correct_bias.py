"""Bias correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.passbase import Context, NeedsReference, NeedsSamples, Pass
from onnxcomp.quant.recovery import Recovery
from onnxcomp.quant.rounded import BiasWriter
from onnxcomp_passes.quantize.recovering import CODES, recovery, report

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.quant.recovery import Site


class CorrectBias(Pass):
    """Takes out of each bias what rounding adds to the mean of the layer's output.

    Rounding a weight moves the mean of what it makes, and so do activations that are cut off. The samples
    are run through the float model and the quantized one side by side; the difference of the means of
    each channel goes into the bias, layer after layer, so that a layer is corrected on what the corrected
    layers before it give. Biases in int32 move in their own steps, those in float freely; a Conv or Gemm
    without one gets one, which costs nothing in an int8 kernel.

    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019), section
    4.2, and "A White Paper on Neural Network Quantization" (2021), section 3.2.

        Conv(x, w, b) -> y     Conv(x, w, b - (mean(y) - mean(y in float))) -> y
    """

    name: ClassVar[str] = "correct-bias"
    needs = (NeedsSamples(2), NeedsReference())
    codes: ClassVar[Mapping[str, str]] = {
        **CODES,
        "CBI101": "This layer has no bias that can be moved: there is none, it is computed, or it is rounded "
        "in steps that are too large.",
    }

    samples: PositiveInt = 32
    """How many samples to look at; every fourth one only decides whether a correction stays."""
    add: bool = True
    """Give a bias to a Conv or Gemm that has none."""
    method: Literal["empirical", "analytic"] = "empirical"
    """Measure the means of outputs, or compute them from the means of inputs and the errors of weights."""

    @override
    def run(self, ctx: Context) -> None:
        writer = BiasWriter(ctx.edit, self.add)
        work = recovery(ctx, self.samples, Recovery)
        if work is None:
            return

        def improve(site: Site) -> bool:
            moved = writer.move(site.layer, -self._error(site))
            return moved is not None and bool(moved.any())

        verdicts = work.run(improve, "correcting biases")
        for name, why in sorted(writer.refused.items()):
            ctx.skip("CBI101", name, why)
        report(ctx, work, verdicts, "biases corrected")

    def _error(self, site: Site) -> np.ndarray:
        return site.bias_error() if self.method == "empirical" else site.weight_error()
