"""Dynamic quantization."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import Reference
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.candidates import Filter
from onnxcomp.quant.dynamic import Sites, find_sites, is_finite, rounded_node
from onnxcomp.quant.regions import find_regions
from onnxcomp.runtime import Session
from onnxcomp.samples import joined
from onnxcomp.targets.features import saturates
from onnxcomp_passes.quantize.dynamic_numbers import Numbers
from onnxcomp_passes.quantize.dynamic_trials import DynamicBench, DynamicPlacement, Recovery
from onnxcomp_passes.quantize.dynamic_tuning import find_smoothing, round_together
from onnxcomp_passes.quantize.dynamic_writing import FINE
from onnxcomp_passes.quantize.opset import find_ranks, obstacle, raise_to

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from onnxcomp.quant.dynamic import Site

    Feeds = Mapping[str, np.ndarray]

# The opset of DynamicQuantizeLinear, and the one to go to from an older one.
_NEEDED, _RAISED = 11, 13
# Samples that are looked at; every fifth one is kept for judging.
_LOOKED_AT, _KEPT_BACK, _JUDGED = 40, 5, 8
# What is tuned has to gain this much on other samples; above that many decibels nothing is smoothed.
_GAINED_DB, _ENOUGH_DB = 0.3, 45.0


class QuantizeDynamic(Pass):
    """Computes products with constant matrices in int8, with activations rounded while the model runs.

    No ranges have to be known beforehand: DynamicQuantizeLinear finds them in each run. Weights have a
    scale for each column, nodes that read the same activation share its rounding, and the form is the one
    that onnxruntime turns into a single kernel. All of it is standard ONNX.

        x -> MatMul -> Add      x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul -> Add
              |         |                                       |                      |      |
              w         b                                       w (int8)      scales (product) b

    It works without samples. With samples it does three things more: it measures which nodes gain; it
    divides channels of an activation by numbers that even out their ranges where that helps (SmoothQuant,
    Xiao et al. 2023); and where the result is too far from float on samples kept back for that, it rounds
    the activations of the most harmful nodes in two digits (16 bits in two products), or leaves these
    nodes in float.
    """

    name: ClassVar[str] = "quantize-dynamic"
    codes: ClassVar[Mapping[str, str]] = {
        "DYN101": "The model has activations that are rounded already; it was left as it is. Start from "
        "the float model.",
        "DYN102": "DynamicQuantizeLinear needs opset 11, and an operator of this model means something else "
        "there. Export the model with opset 11 or later.",
        "DYN103": "There is no int8 form of this node, or an option left it out.",
        "DYN104": "From its size, or measured on the samples, the node takes no less time in int8. Use "
        "placement=all to quantize it all the same.",
        "DYN105": "The int8 model was not faster than float on the samples, so nothing was quantized. "
        "placement=all does it all the same, for size.",
        "DYN106": "int8 with one rounding for the whole activation cost too much accuracy at this node, "
        "judged on samples that nothing was tuned on. floor-db says how much is too much.",
        "DYN107": "This processor adds products of int8 numbers in 16 bits, which can overflow, so weights "
        "have 7 bits. On one with VNNI give reduce-range=false.",
        "DYN108": "How near the result comes to float on samples that nothing was tuned on, and how long it "
        "takes next to float.",
        "DYN109": "Nothing in the model is worth computing in int8.",
        "DYN110": "Channels of activations are divided before they are rounded; the gain was measured on "
        "samples that nothing was tuned on.",
        "DYN111": "The numbers of weights were chosen together (GPTQ); the gain was measured on samples "
        "that nothing was tuned on.",
    }

    placement: Literal["measured", "sizes", "all"] = "measured"
    """What is quantized: what measurably gains, what should gain by its size, or all that can be. Without
    samples `measured` means `sizes`."""
    allow_contrib: bool = False
    """Take onnxruntime's own DynamicQuantizeLSTM for LSTM, which only onnxruntime runs."""
    pointwise: bool = True
    """Also Conv with kernels of one element, as a product between two Transposes, where samples show that
    this is faster (of other Conv in int8 with activations rounded in the run none ever was)."""
    per_channel: bool = True
    """One scale for each column of a weight instead of one for all."""
    reduce_range: bool | None = None
    """Weights of 7 bits; by default where the processor needs it."""
    smooth: bool = True
    """With samples: even out the channels of activations where that brings the result nearer to float."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """With samples: round the numbers of a weight one by one, or so that their errors make up for each other
    (GPTQ), which takes longer."""
    floor_db: Annotated[float, Field(ge=0)] = 20.0
    """With samples: compute the most harmful nodes more finely until the ratio of signal to noise is this."""
    skip: tuple[str, ...] = ()
    """Patterns for names of nodes or of their outputs to leave in float."""
    skip_ops: tuple[str, ...] = ()
    """Operators to leave in float."""
    only: tuple[str, ...] = ()
    """Operators to quantize, all others stay float."""
    batch: PositiveInt = 1
    """How many samples make one run when times are measured."""

    @override
    def run(self, ctx: Context) -> None:
        if node := rounded_node(ctx.model):
            ctx.skip("DYN101", node, "activations are rounded already; the model was left as it is")
            return
        mark = ctx.edit.mark()
        if not self._raised(ctx):
            return
        sites = self._sites(ctx)
        numbers = Numbers(self.per_channel, self._reduces_range(ctx) if sites else False)
        bench = DynamicBench(ctx.model, ctx.edit, ctx.target.provider, ctx.threads, numbers)
        bench, grades = self._chosen(ctx, bench, sites)
        if grades:
            bench.apply(grades)
            return
        ctx.edit.rollback(mark)
        if not sites:
            ctx.skip("DYN109", None, "nothing in the model is worth computing in int8")

    def _raised(self, ctx: Context) -> bool:
        """Brings the model to an opset that has DynamicQuantizeLinear; False when that is not possible."""
        if ctx.model.opset >= _NEEDED:
            return True
        feeds = self._feeds(ctx)
        ranks = find_ranks(ctx.model, ctx.facts.get(Shapes()), feeds, _RAISED if feeds else 0)
        if reason := obstacle(ctx.model, ctx.edit, ranks, _RAISED):
            ctx.skip("DYN102", None, reason, hint="export the model with opset 11 or later")
            return False
        raise_to(ctx.model, ctx.edit, ranks, _RAISED)
        return True

    def _sites(self, ctx: Context) -> list[Site]:
        shapes = ctx.facts.refresh(Shapes())
        options = Filter(self.skip, self.only, self.skip_ops)
        by_size = self.placement == "sizes" or (self.placement == "measured" and not ctx.samples)
        sites = find_sites(
            ctx.model,
            shapes,
            options,
            contrib=self.allow_contrib,
            pointwise=self.pointwise and not by_size,
        )
        kept = Sites(refused=sites.refused)
        for site in sites:
            if by_size and not site.pays(shapes):
                ctx.skip("DYN104", site.node, f"{site.depth} x {site.width} is too little")
            elif not is_finite(site):
                kept.refused.append((site.node, "a weight is NaN or infinite"))
            else:
                kept.found.append(site)
        for node, reason in kept.refused:
            ctx.skip("DYN103", node, reason)
        return kept.found

    def _reduces_range(self, ctx: Context) -> bool:
        if self.reduce_range is not None:
            return self.reduce_range
        if saturates():
            ctx.note("DYN107", None, "weights have 7 bits: this processor has no VNNI")
            return True
        return False

    def _chosen(
        self, ctx: Context, bench: DynamicBench, sites: Sequence[Site]
    ) -> tuple[DynamicBench, dict[Site, int]]:
        """What is quantized, and how finely."""
        if not ctx.samples or not sites:
            return bench, {site: FINE if site.kind == "lstm" else 1 for site in sites}
        looked_at, judged = _split(list(itertools.islice(ctx.samples, _LOOKED_AT)))
        regions = find_regions(ctx.model, bench.provider)
        search = DynamicPlacement(bench, sites, regions, self._feeds(ctx), ctx.progress)
        chosen = self._placed(ctx, search)
        grades = dict.fromkeys(chosen, 1)
        if not grades:
            return bench, {}
        with Session.open(ctx.model, provider=bench.provider, threads=ctx.threads) as session:
            reference = Reference(session, judged)
            decibels = bench.decibels(grades, reference)
            bench, decibels = self._improved(ctx, bench, grades, reference, looked_at, decibels)
            search.bench = bench
            recovery = Recovery(bench, search, reference, self.floor_db, ctx.progress)
            grades, decibels = recovery.run(grades, decibels)
        for site, what in recovery.changed.items():
            ctx.skip("DYN106", site.node, what)
        return bench, self._judged(ctx, search, grades, decibels)

    def _improved(
        self,
        ctx: Context,
        bench: DynamicBench,
        grades: Mapping[Site, int],
        reference: Reference,
        samples: Sequence[Feeds],
        decibels: float,
    ) -> tuple[DynamicBench, float]:
        """Divides channels and rounds weights together, as far as each of it helps."""
        start = decibels
        if self.smooth and decibels < _ENOUGH_DB:
            smoothing = find_smoothing(ctx, list(grades), samples)
            numbers = replace(bench.numbers, smoothing=smoothing)
            if smoothing:
                bench, decibels, kept = _tuned(bench, grades, reference, numbers, decibels)
                text = f"{len(smoothing)} activations smoothed: {start:.1f} to {decibels:.1f} dB"
                ctx.note("DYN110", None, text if kept else "smoothing activations did not help")
        start = decibels
        if self.rounding == "gptq":
            rounded = round_together(ctx, list(grades), bench.numbers, samples)
            numbers = replace(bench.numbers, rounded=rounded)
            bench, decibels, kept = _tuned(bench, grades, reference, numbers, decibels)
            text = f"{len(rounded)} weights rounded together: {start:.1f} to {decibels:.1f} dB"
            ctx.note("DYN111", None, text if kept else "rounding weights together did not help")
        return bench, decibels

    def _placed(self, ctx: Context, search: DynamicPlacement) -> list[Site]:
        if self.placement != "measured":
            return list(search.sites)
        chosen, spread = search.run()
        if not chosen:
            ratio = "" if spread is None else f": {spread.median:.2f} of its time"
            ctx.skip("DYN105", None, f"int8 was not faster than float{ratio}")
            return []
        for site in search.sites:
            if site not in chosen:
                ctx.skip("DYN104", site.node, "measured: no gain in int8")
        return chosen

    def _judged(
        self, ctx: Context, search: DynamicPlacement, grades: dict[Site, int], decibels: float
    ) -> dict[Site, int]:
        """Takes everything back when what is left is no longer faster than float."""
        if not grades:
            return {}
        spread = search.compare([grades])[0]
        text = f"{decibels:.1f} dB, {spread.median:.2f} of the time of float"
        if self.placement == "measured" and spread.high >= 1.0:
            ctx.skip("DYN105", None, f"int8 was not faster than float: {text}")
            return {}
        ctx.note("DYN108", None, text)
        return grades

    def _feeds(self, ctx: Context) -> Feeds:
        """A run's worth of samples; nothing without samples."""
        some = list(itertools.islice(ctx.samples or (), self.batch))
        return joined(some) if some else {}


def _split(samples: list[Feeds]) -> tuple[list[Feeds], list[Feeds]]:
    """Samples to look at and samples to judge on; the same ones where there are too few."""
    if len(samples) < _KEPT_BACK:
        return samples, samples
    judged = samples[_KEPT_BACK - 1 :: _KEPT_BACK]
    return [s for i, s in enumerate(samples) if (i + 1) % _KEPT_BACK], judged[:_JUDGED]


def _tuned(
    bench: DynamicBench,
    grades: Mapping[Site, int],
    reference: Reference,
    numbers: Numbers,
    decibels: float,
) -> tuple[DynamicBench, float, bool]:
    """Makes numbers in another way, and keeps that if it brings samples nearer that it was not made from."""
    tuned = replace(bench, numbers=numbers)
    found = tuned.decibels(grades, reference)
    return (tuned, found, True) if found >= decibels + _GAINED_DB else (bench, decibels, False)
