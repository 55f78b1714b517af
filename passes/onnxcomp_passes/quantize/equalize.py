"""Cross-layer equalization and SmoothQuant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.passbase import Context, NeedsSamples, Pass
from onnxcomp.quant.balance import best_scale, noise, observe_halves
from onnxcomp_passes.quantize.scaling import Link, apply_scale, find_links

_LEAST_GAIN_DB = 0.5
# A Clip cuts scaled channels off elsewhere for values never seen; that takes a reason.
_LEAST_GAIN_CLIPPED_DB = 1.5


class Equalize(Pass):
    """Moves range from channels that have much to channels that have little.

    A tensor in int8 has one scale for all its channels; where one channel is a hundred times larger than
    another one, that other one is all noise. Dividing channels by numbers, and multiplying the weights
    that read them, changes nothing in float: through Conv, Relu, pools and depthwise Conv the weights in
    front take the division (cross-layer equalization), as do those of a norm, of a Mul, or of the layer
    that makes the values of attention; elsewhere, where it pays, a Mul does (SmoothQuant).

        Conv(w, b) -> Relu -> Conv(v)     Conv(w/s, b/s) -> Relu -> Conv(v*s)
    """

    name: ClassVar[str] = "equalize"
    needs = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "EQL101": "The channels of this activation were scaled; the gain is the expected one.",
    }

    smooth_above_db: float = 3.0
    """Expected gain from which on a Mul is put in where no weight can take the scale; it costs time."""
    smooth_below_db: float = 40.0
    """Expected ratio of signal to noise above which no Mul is put in."""
    samples: PositiveInt = 32
    """How many samples to look at."""

    @override
    def run(self, ctx: Context) -> None:
        links = find_links(ctx.model.graph, ctx.facts.refresh(Shapes()))
        if not links or ctx.samples is None:
            return
        stats = observe_halves(
            ctx.model,
            {link.value.name or "": link.axis for link in links},
            {link.value.name or "": link.channels for link in links},
            itertools.islice(ctx.samples, self.samples),
            threads=ctx.threads,
            progress=ctx.progress,
        )
        for link in links:
            found = stats[link.value.name or ""]
            readers = link.weights()
            # Channels of images have so many values that their range is known well enough.
            known = found if link.axis == -1 else found.all
            scale, gain = best_scale(known, readers, limit=link.limit)
            if gain < self._least_gain(link, noise(found.all, readers, np.ones(link.channels))):
                continue
            if not link.takes(scale.astype(np.float32)):
                continue
            apply_scale(ctx.edit, link, scale.astype(np.float32))
            ctx.note("EQL101", link.value, f"channels scaled, expected gain {gain:.1f} dB")
            ctx.edit.count("activations equalized" if link.maker else "activations smoothed")

    def _least_gain(self, link: Link, noise_share: float) -> float:
        if link.maker is not None:
            return _LEAST_GAIN_DB if math.isinf(link.limit) else _LEAST_GAIN_CLIPPED_DB
        if noise_share <= 0.0 or -10.0 * math.log10(noise_share) > self.smooth_below_db:
            return math.inf
        return self.smooth_above_db
