"""Static quantization."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import RecipeError, SamplesError, quoted
from onnxcomp.passbase import Context, NeedsSamples, Pass
from onnxcomp.quant.calibrate import Looker
from onnxcomp.quant.calibration_cache import CalibrationCache, cache_folder
from onnxcomp.quant.candidates import Filter, find_candidates
from onnxcomp.quant.fusion import check_fusion
from onnxcomp.quant.plan import Formats
from onnxcomp.quant.recognize import is_quantized
from onnxcomp.quant.regions import Regions, find_regions
from onnxcomp.quant.scheme import DType, QScheme
from onnxcomp.samples import joined
from onnxcomp_passes.quantize.batchnorm import batchnorm_to_conv
from onnxcomp_passes.quantize.elsewhere import (
    CODES,
    computes_no_int8,
    is_measurable,
    is_readable,
    needs_reduced_range,
    note_refusals,
    place_by_table,
    testable,
)
from onnxcomp_passes.quantize.equalize import Equalize
from onnxcomp_passes.quantize.fuse_pointwise import FusePointwise
from onnxcomp_passes.quantize.inner import bodies_with_samples, quantize_bodies
from onnxcomp_passes.quantize.insertion import Weights
from onnxcomp_passes.quantize.means import channel_means, read_channels, same_values
from onnxcomp_passes.quantize.observing import ObserverSearch
from onnxcomp_passes.quantize.opset import SIXTEEN_BITS, VERSION, find_ranks, obstacle, raise_to
from onnxcomp_passes.quantize.placing import HEAVY, PlacementSearch
from onnxcomp_passes.quantize.pool_means import PoolMeans
from onnxcomp_passes.quantize.trial import Bench

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.ir import ir
    from onnxcomp.quant.bodies import Body
    from onnxcomp.quant.candidates import Candidate
    from onnxcomp.quant.observers import Histogram, Method
    from onnxcomp.samples import Samples
    from onnxcomp.targets import Target

# Samples that channels are equalized by; more make no difference that shows.
_EQUALIZED = 8
# Samples on which placements are compared, and observers.
_PLACED, _JUDGED = 8, 16
_CHECKS = 6


class QuantizeStatic(Pass):
    """Computes in int8 what the target computes faster in int8.

    Looks at activations on calibration samples, plans from the table of the target, finds out by
    measurement which nodes are worth it, and writes QuantizeLinear/DequantizeLinear around them:
    standard ONNX that every runtime understands. Then it reads the graph that the provider really runs
    and takes back what did not become int8 there.

        x -> Conv -> Relu -> y      x -> Q -> DQ -> Conv -> Relu -> Q -> DQ -> y
              |                                      |
              w (float)                              DQ <- w (int8, a scale for each channel)
    """

    name: ClassVar[str] = "quantize-static"
    needs = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "QNT101": "The model has quantized operators already; it was left as it is, because rounding twice "
        "only loses. Start from the float model.",
        "QNT102": "Per-channel Q/DQ needs opset 13, Q/DQ of 16 bits opset 21, and an operator of this model "
        "means something else there. Export the model with a newer opset.",
        "QNT103": "The target has no int8 kernel for this form of the operator, or an option left it out.",
        "QNT104": "The provider runs this node inside a fused float kernel, which Q/DQ would take apart.",
        "QNT105": "Measured on the samples, the node costs less time in float than in int8 with the "
        "conversions around it. Use placement=all to quantize it all the same.",
        "QNT106": "The provider left this node in float although Q/DQ were around it, so these were "
        "taken out again.",
        "QNT107": "No placement was faster than float, so nothing was quantized. placement=all does it "
        "all the same, for size.",
        "QNT108": "The bodies of If and Loop are quantized like models of their own, with what comes into them on "
        "the samples. Nothing came into this one. The bodies of Scan stay float.",
        "QNT109": "This processor adds products of int8 numbers in 16 bits, which can overflow, so weights "
        "have 7 bits. On one with VNNI give reduce-range=false.",
        "QNT110": "For each activation the observer was taken that its readers suffer least from, or for all of "
        "them one, where that came nearer to float.",
        **Equalize.codes,
        "QNT111": "Nothing in the model can be computed in int8.",
        "QNT112": "The provider runs this QuantizeLinear or DequantizeLinear as a node of its own, for the "
        "reason given.",
        **CODES,
    }

    observer: Literal["auto", "min-max", "moving-average", "percentile", "mse", "entropy"] = "auto"
    """How ranges are chosen; `auto` takes what comes nearest to float on the samples."""
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.99
    """Share of values that `percentile` keeps on each side."""
    placement: Literal["measured", "all", "weighted"] = "measured"
    """What is quantized: what measurably gains, all that can be, or Conv, Gemm and MatMul only."""
    activations: Literal["auto", "uint8", "int8", "uint16", "int16"] = "auto"
    """Element type of activations; `auto` is what the target computes fastest."""
    symmetric: bool | None = None
    """Whether the zero point of activations is the middle of the type; by default as the target wants it."""
    weights: Literal["int8", "uint8", "int16"] = "int8"
    """Element type of weights, whose zero point is the middle of it."""
    mixed: Mapping[str, str] = Field(default_factory=dict)
    """Other element types for activations whose name, or whose operator's name, matches a pattern: `/head/*=uint16`."""
    per_channel: bool = True
    """One scale for each output channel of a weight instead of one for all."""
    reduce_range: bool | None = None
    """Weights of 7 bits; by default where the processor needs it."""
    prepare: bool = True
    """First do what `pool-means`, `fuse-pointwise` and `equalize` do, which makes rounding cost less. In the bodies of If and
    Loop that is always done."""
    withdraw: bool = True
    """Take Q/DQ out again around nodes that the provider leaves in float; `false` for another runtime than this."""
    correct_bias: bool = True
    """Take out of each bias what the rounding of the weight adds to the mean of the output."""
    skip: tuple[str, ...] = ()
    """Patterns for names of nodes or of their outputs to leave in float."""
    skip_ops: tuple[str, ...] = ()
    """Operators to leave in float."""
    only: tuple[str, ...] = ()
    """Operators to quantize, all others stay float."""
    batch: PositiveInt = 1
    """How many samples make one run when placements are measured."""
    memory_limit: PositiveInt | None = None
    """Bytes of activations that one run of the calibration may give out; by default 1 GiB or an eighth of
    what the process may use."""
    cache: bool = True
    """Keep what a long calibration finds, to go on from there when it is stopped or done again."""
    cache_folder: str = ""
    """Where; by default `$ONNXCOMP_CACHE` or the user's folder for caches."""

    @override
    def run(self, ctx: Context) -> None:
        if self._is_quantized(ctx) or computes_no_int8(ctx):
            return
        note_refusals(ctx)
        version = self._opset()
        ranks = find_ranks(ctx.model, ctx.facts.get(Shapes()), self._feeds(ctx), version)
        if reason := obstacle(ctx.model, ctx.edit, ranks, version):
            ctx.skip("QNT102", None, reason, hint=f"export the model with opset {version} or later")
            return
        mark = ctx.edit.mark()
        raise_to(ctx.model, ctx.edit, ranks, version)
        bodies = bodies_with_samples(ctx)
        start = ctx.edit.mark()
        if self._quantize_main(ctx, start) + self._quantize_bodies(ctx, bodies) == 0:
            ctx.edit.rollback(mark)

    def _quantize_bodies(self, ctx: Context, bodies: list[Body]) -> int:
        options = {"batch": 1, "prepare": True}
        return quantize_bodies(ctx, self.model_copy(update=options), bodies, "QNT108")

    def _quantize_main(self, ctx: Context, mark: int) -> int:
        """Quantizes the main graph; returns how many nodes."""
        if self.prepare:
            PoolMeans().run(ctx)
            FusePointwise().run(ctx)
            batchnorm_to_conv(ctx)
            Equalize(samples=_EQUALIZED).run(ctx)
        bench = self._bench(ctx)
        keys = self._place(ctx, bench) if bench.candidates.found else frozenset()
        methods = self._observers(ctx, bench, keys)
        checks = _CHECKS if self.withdraw and is_readable(ctx.target) else 0
        keys = _written(ctx, bench, keys, methods, checks)
        if not keys:
            if not bench.candidates.found:
                ctx.skip("QNT111", None, "nothing can be computed in int8")
            ctx.edit.rollback(mark)
            ctx.diagnostics[:] = [d for d in ctx.diagnostics if d.code not in Equalize.codes]
            return 0
        ctx.edit.count("nodes in int8", len(keys))
        return len(keys)

    def _opset(self) -> int:
        """The opset that the formats need."""
        wide = any("16" in kind for kind in (self.activations, self.weights, *self.mixed.values()))
        return SIXTEEN_BITS if wide else VERSION

    @staticmethod
    def _is_quantized(ctx: Context) -> bool:
        found = is_quantized(ctx.model)
        if found:
            ctx.skip(
                "QNT101",
                next(iter(found.nodes)),
                f"it is quantized already ({found}) and was left as it was",
            )
        return bool(found)

    def _bench(self, ctx: Context) -> Bench:
        model, target = ctx.model, testable(ctx.target)
        options = Filter(self.skip, self.only, self.skip_ops)
        shapes = ctx.facts.refresh(Shapes())
        candidates = find_candidates(model.graph, target, shapes, options)
        for node, reason in candidates.refused:
            ctx.skip("QNT103", node, reason)
        regions = find_regions(model, target.provider) if is_readable(ctx.target) else Regions()
        for key in list(candidates.found):
            if key in regions.sealed:
                node = candidates.found.pop(key).node
                ctx.skip("QNT104", node, f"it is part of a fused {regions.sealed[key]}")
        points = [v.name or "" for c in candidates for v in (*c.inputs, *c.points)]
        sizes = {name: shapes.size(v) or 0 for name, v in _values(model.graph).items()}
        looker = Looker(
            model,
            sizes,
            self.memory_limit,
            ctx.threads,
            ctx.progress,
            self._store(ctx),
        )
        read = read_channels(candidates)
        twins = same_values(candidates, read)
        apart = [name for name in dict.fromkeys(points) if name not in twins]
        found = looker.observe(apart, ctx.samples or (), read)
        seen = found.histograms
        seen.update({twin: seen[name] for twin, name in twins.items() if name in seen})
        for key in [c.key for c in candidates if not _is_seen(c, seen)]:
            node = candidates.found.pop(key).node
            ctx.skip("QNT103", node, "its activations are empty or not float32")
        for candidate in [c for c in candidates if _drowns(c, seen)]:
            del candidates.found[candidate.key]
            why = "numbers that stand for infinity would leave one or two steps to all others"
            ctx.skip("QNT103", candidate.node, why)
        per_channel = self.per_channel and target.weight.per_channel
        is_float = target.bias.dtype == "float32"
        weights = Weights(per_channel, self._reduces_range(ctx), self.weights, is_float)
        means = channel_means(candidates, found.channels) if self.correct_bias else {}
        return Bench(
            model,
            ctx.edit,
            target,
            candidates,
            regions,
            seen,
            weights,
            self.percentile,
            means,
            self._formats(target),
            found.channels,
        )

    def _store(self, ctx: Context) -> CalibrationCache | None:
        """Where interim results of a long calibration are kept."""
        folder = Path(self.cache_folder) if self.cache_folder else cache_folder()
        if not self.cache or folder is None or ctx.samples is None:
            return None
        return CalibrationCache(folder, ctx.model, ctx.samples)

    def _formats(self, target: Target) -> Formats:
        usual = target.activation
        symmetric = usual.symmetric if self.symmetric is None else self.symmetric
        dtype = usual.dtype if self.activations == "auto" else self.activations
        others = {
            name: QScheme(_activation_type(kind), symmetric) for name, kind in self.mixed.items()
        }
        return Formats(QScheme(dtype, symmetric), others)

    def _reduces_range(self, ctx: Context) -> bool:
        if self.reduce_range is not None:
            return self.reduce_range
        if needs_reduced_range(ctx.target):
            ctx.note("QNT109", None, "weights have 7 bits: the processor has no VNNI")
            return True
        return False

    def _place(self, ctx: Context, bench: Bench) -> frozenset[str]:
        everything = frozenset(bench.candidates.found)
        if self.placement == "all":
            return everything
        if self.placement == "weighted" and bench.target.style == "units":
            return frozenset(c.key for c in bench.candidates if c.family.name in HEAVY)
        if not is_measurable(ctx.target):
            return place_by_table(ctx, bench, lambda: self._feeds(ctx))
        samples = list(itertools.islice(ctx.samples or (), _PLACED))
        choice = PlacementSearch(bench, self._feeds(ctx), samples, ctx.threads, ctx.progress).run()
        if not choice.keys:
            fastest = min(choice.tried.values(), default=1.0)
            ctx.skip("QNT107", None, f"the fastest int8 model took {fastest:.2f} times as long")
        for key in sorted(everything - choice.keys):
            ctx.skip("QNT105", bench.candidates.found[key].node, "measured: no gain in int8")
        return choice.keys

    def _feeds(self, ctx: Context) -> Mapping[str, np.ndarray]:
        """A run's worth of samples."""
        if ctx.samples is None:
            raise SamplesError("no samples")
        return joined(list(itertools.islice(ctx.samples, self.batch)))

    def _observers(self, ctx: Context, bench: Bench, keys: frozenset[str]) -> Mapping[str, Method]:
        """The observer of each point."""
        plan = bench.plan(keys)
        if self.observer != "auto":
            return {plan.root(point): self.observer for point in plan}
        if not keys or ctx.samples is None:
            return {}
        samples = _spread(ctx.samples, _JUDGED)
        search = ObserverSearch(bench, plan, bench.channels, samples, ctx.threads, ctx.progress)
        found = search.run()
        ctx.note("QNT110", None, str(found))
        return found.methods


def _spread(samples: Samples, count: int) -> list[Mapping[str, np.ndarray]]:
    """Some samples from everywhere."""
    some = samples if len(samples) <= count else samples.split(count / len(samples))[1]
    return list(some)


def _activation_type(text: str) -> DType:
    known: tuple[DType, ...] = ("uint8", "int8", "uint16", "int16")
    for dtype in known:
        if text == dtype:
            return dtype
    raise RecipeError(f"activations cannot be {quoted(text)}", hint=f"one of {', '.join(known)}")


def _written(
    ctx: Context,
    bench: Bench,
    keys: frozenset[str],
    methods: Mapping[str, Method],
    checks: int,
) -> frozenset[str]:
    """Quantizes nodes; takes those back that the provider leaves in float, until there are none."""
    while keys:
        plan = bench.plan(keys)
        mark, stats = ctx.edit.mark(), ctx.edit.stats.copy()
        bench.apply(plan, methods)
        if checks == 0:
            break
        checks -= 1
        check = check_fusion(ctx.model, plan, bench.candidates, bench.target)
        if not check.strays:
            for found in check.leftovers:
                ctx.note("QNT112", found.value, f"{found.operator}: {found.why}")
            break
        ctx.edit.rollback(mark)
        ctx.edit.stats = stats
        for key, reason in sorted(check.strays.items()):
            ctx.skip("QNT106", bench.candidates.found[key].node, reason)
        keys -= frozenset(check.strays)
    return keys


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    made = (value for node in graph for value in node.outputs)
    return {value.name or "": value for value in (*graph.inputs, *made)}


def _drowns(candidate: Candidate, seen: Mapping[str, Histogram]) -> bool:
    """Whether a mask of huge numbers makes the grid of an activation useless."""
    values = (*candidate.inputs, *candidate.points)
    return any(seen[value.name or ""].is_drowned for value in values)


def _is_seen(candidate: Candidate, seen: Mapping[str, Histogram]) -> bool:
    values = (*candidate.inputs, *candidate.points)
    found = (seen.get(value.name or "") for value in values)
    return all(histogram is not None and histogram.count > 0 for histogram in found)
