"""Fitting what is left of a model, and saying how that went."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp_passes.prune.support.reconstruction import Reconstruction

INCOMPARABLE = "outputs cannot be compared: none is of floating point, or some are not finite"


def fit_rest(
    reconstruction: Reconstruction,
    limit: int,
    codes: tuple[str, str],
    known: tuple[float, float] | None = None,
) -> None:
    """Fits the layers that are left to what they gave before; tells how near the outputs come.

    Args:
        reconstruction: The model before and what was removed.
        limit: How many samples to look at.
        codes: The diagnostics, for how it went and for why it did not.
        known: How near the outputs came when it was tried, before and after; None when it was not.
    """
    ctx = reconstruction.ctx
    if known is None or math.isnan(known[0]):
        known = reconstruction.run(limit)
    else:
        reconstruction.finish(limit, known[1])
    first, last = known
    if max(first, last) == -math.inf:
        reconstruction.problem = INCOMPARABLE
        first = math.nan
    if reconstruction.problem or math.isnan(first):
        why = reconstruction.problem or "too few samples"
        near = "" if math.isnan(first) else f" ({first:.1f} dB on held-out samples)"
        ctx.note(codes[1], None, f"the layers that are left were not fitted: {why}{near}")
        return
    fitted = len(reconstruction.fitted)
    if not fitted:
        text = f"fitting the layers did not help ({first:.1f} dB before, {last:.1f} dB after)"
        ctx.note(codes[0], None, f"{text}, on held-out samples")
        return
    ctx.edit.count("layers fitted", fitted)
    text = (
        f"{fitted} layers fitted: {first:.1f} dB before, {last:.1f} dB after, on held-out samples"
    )
    if reconstruction.is_final:
        text += "; then fitted to these too, which came no less near"
    ctx.note(codes[0], None, text)
