"""Blocks that give what they gave in float."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.passbase import Context, NeedsReference, NeedsSamples, Pass
from onnxcomp.quant.reconstruction import BlockRecovery, search_ranges
from onnxcomp.quant.recovery import Recovery
from onnxcomp_passes.quantize.recovering import CODES, recovery, report
from onnxcomp_passes.quantize.refit import Refit

if TYPE_CHECKING:
    from onnxcomp.quant.reconstruction import Block
    from onnxcomp.quant.recovery import Improve


class ReconstructBlocks(Pass):
    """Refits weights, their scales and the ranges of activations to what blocks gave in float.

    First each layer: the weight is solved for that brings its output nearest to float on the inputs that it
    really gets, rounded anew, and its scales fitted to the integers by least squares. Then each residual or
    attention block, as the graph shows them: the range of each activation in it is made smaller or larger
    where that brings the output of the block nearer to float. Nodes and types stay as they are.

    Layers and blocks change only where their output on samples that were not used gains, and stay changed
    only if the model's output does. Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by
    Block Reconstruction" (2021), in spirit: without gradients.

        x -> Q(s) -> DQ(s) -> Conv(w) -> Add     x -> Q(0.9 s) -> DQ(0.9 s) -> Conv(w') -> Add
    """

    name: ClassVar[str] = "reconstruct-blocks"
    needs = (NeedsSamples(4), NeedsReference())
    codes: ClassVar[Mapping[str, str]] = {
        **CODES,
        "RBL101": "The weight was left as it is: something else reads it too, or it is too large to be "
        "solved for.",
    }

    samples: PositiveInt = 32
    """How many samples to look at; every fourth one only decides whether a change stays."""
    rows: PositiveInt = 256
    """How many places of each sample to look at in a layer."""
    weights: bool = True
    """Refit weights and their scales."""
    activations: bool = True
    """Search ranges of activations."""

    @override
    def run(self, ctx: Context) -> None:
        if self.activations:
            blocks = recovery(ctx, self.samples, BlockRecovery)
            if blocks is not None:
                report(ctx, blocks, blocks.run(self._ranges(ctx), "blocks"), "blocks reconstructed")
        if self.weights:
            layers = recovery(ctx, self.samples, Recovery, rows=self.rows)
            if layers is not None:
                refit = Refit(ctx.edit, reach=None, rescale=True)
                verdicts = layers.run(refit, "refitting weights")
                for name, why in sorted(refit.refused.items()):
                    ctx.skip("RBL101", name, why)
                report(ctx, layers, verdicts, "weights refitted")

    @staticmethod
    def _ranges(ctx: Context) -> Improve:
        def improve(block: Block) -> bool:
            return search_ranges(ctx.edit, block) > 0

        return improve
