"""Fitting what is left of a model, and saying how that went."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from onnxcomp_passes.prune.support.reconstruction import Reconstruction

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.removal import Removal


def fit_rest(ctx: Context, before: Model, removal: Removal, limit: int, code: str) -> None:
    """Fits the layers that are left to what they gave before; tells how near the outputs come.

    Args:
        ctx: The pass.
        before: The model before.
        removal: What was removed of the channels of layers that are left.
        limit: How many samples to look at.
        code: The diagnostic.
    """
    reconstruction = Reconstruction(ctx, before, removal)
    first, last = reconstruction.run(limit)
    if math.isnan(first):
        why = reconstruction.problem or "too few samples"
        ctx.note(code, None, f"the layers that are left were not fitted: {why}")
        return
    fitted = len(reconstruction.fitted)
    if fitted:
        ctx.edit.count("layers fitted", fitted)
        text = f"{fitted} layers fitted: {first:.1f} dB before, {last:.1f} dB after"
    else:
        text = f"fitting the layers did not help ({first:.1f} dB before, {last:.1f} dB after)"
    ctx.note(code, None, f"{text}, on held-out samples")
