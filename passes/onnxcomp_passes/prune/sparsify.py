"""Zeros in weights."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator
from typing_extensions import override

from onnxcomp.compare import Reference
from onnxcomp.ir.ops import constant, input_at
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.grams import gram_readers
from onnxcomp.quant.recovery import Judge
from onnxcomp.quant.segments import NoTensorError
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.support.allocation import shares
from onnxcomp_passes.prune.support.sparse_walk import (
    HELD_OUT,
    SparseWalk,
    channels_of,
    put_sparse,
    row_order,
)
from onnxcomp_passes.prune.support.sparsity import Pattern, magnitude, parse_pattern
from onnxcomp_passes.quantize.inner import bodies_with_samples, quantize_bodies

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from onnxcomp.ir import ir
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.prune.support.sparse_fit import Way
    from onnxcomp_passes.prune.support.sparse_walk import Settled

    Feeds = Mapping[str, np.ndarray]

Method = Literal["auto", "magnitude", "wanda", "sparsegpt", "alps"]
_FEWEST = 4
# Numbers of a weight that tell how well it compresses.
_LOOKED_AT = 1 << 18
_SMALLEST = 64
_DEEPEST = 8192


class Sparsify(Pass):
    """Sets a share of the weights to zero; shapes stay as they are.

    Without samples the smallest weights go. With samples layers are taken in the order in which they run,
    each with what it then reads and what it gave before. Of the smallest weights, of those whose products
    are smallest (Wanda), of one input after the other with those behind making up for it (SparseGPT), and
    of zeros chosen for the layer as a whole with all that stays fitted to them (ALPS), each layer takes what
    is nearest on samples kept back for that; biases, and layers that get no zeros, make up for the rest.
    Where zeros cost the model's outputs less, there are more.

    Zeros make a file smaller once it is compressed, and are what some processors want: 2:4 along input
    channels is what TensorRT and cuSPARSELt look for. onnxruntime's kernels for processors multiply zeros
    like other numbers: no time is saved there. To save time, remove channels (`prune-channels`).
    Quantize after this step: zeros stay zeros.

        w = {3, -1, 0.5, 2}     w = {3, 0, 0, 2}     (pattern 2:4)
    """

    name: ClassVar[str] = "sparsify"
    codes: ClassVar[Mapping[str, str]] = {
        "SPA101": "The weight does not divide into the parts of the pattern, so it stays as it is.",
        "SPA102": "How many weights became zero, in which way, and what that costs the layers' outputs.",
        "SPA103": "Nothing in the model is a weight that can be sparse.",
        "SPA104": "Without samples the smallest weights were set to zero, which costs the most quality. Give "
        "real samples (--data).",
        "SPA105": "Weights fitted to samples did not bring the outputs nearer than plain zeros, or samples could "
        "not be followed from layer to layer, so the smallest weights were set to zero.",
        "SPA106": "What zeros are good for where the model will run, and what they do to the size of a file once it "
        "is compressed.",
        "SPA107": "No sample came through this body of an If or Loop, so its weights stay as they are.",
    }

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of weights that become zero; a pattern like 2:4 has its own."""
    pattern: str = ""
    """Where zeros may be: anywhere; `2:4`, of four input channels of an output two stay; `4x1`, four outputs (or
    with `1x4` four input channels) go together."""
    method: Method = "auto"
    """How zeros are chosen; `auto` takes what is best for each layer on held-out samples."""
    spread: Literal["uniform", "cost"] = "cost"
    """The same share in each layer, or more where it costs the model's outputs less; 2:4 has no choice."""
    skip: tuple[str, ...] = ()
    """Patterns for names of nodes, or of their weights, that stay as they are."""
    samples: PositiveInt = 128
    """How many samples to look at; every fourth one only decides."""

    @field_validator("pattern")
    @classmethod
    def _known_pattern(cls, text: str) -> str:
        parse_pattern(text)
        return text

    @override
    def run(self, ctx: Context) -> None:
        pattern = parse_pattern(self.pattern)
        bodies = bodies_with_samples(ctx)
        layers = list(self._layers(ctx, pattern))
        if layers:
            before = _compressed(layer.weight for layer in layers)
            self._sparsify(ctx, layers, pattern)
            after = _compressed(input_at(layer.node, layer.index) for layer in layers)
            ctx.note("SPA106", None, _worth(ctx.target.provider, before, after))
        elif not bodies:
            ctx.skip("SPA103", None, "there is no weight that can be sparse")
        quantize_bodies(ctx, self, bodies, "SPA107")

    def _sparsify(self, ctx: Context, layers: Sequence[Layer], pattern: Pattern) -> None:
        samples = list(islice(ctx.samples or (), self.samples))
        if self.method == "magnitude":
            self._smallest(ctx, layers, pattern)
        elif len(samples) < _FEWEST:
            ctx.note("SPA104", None, "the smallest weights were set to zero: no samples")
            self._smallest(ctx, layers, pattern)
        else:
            self._fitted(ctx, layers, samples, pattern)

    def _is_skipped(self, layer: Layer) -> bool:
        names = (layer.name, layer.weight.name or "")
        return any(fnmatchcase(name, each) for name in names for each in self.skip)

    def _layers(self, ctx: Context, pattern: Pattern) -> Iterator[Layer]:
        for layer in gram_readers(ctx.model):
            if self._is_skipped(layer) or not (_is_plain(layer) and _is_wide(layer)):
                continue
            channels = channels_of(layer)
            if pattern.fits(channels, layer.outputs):
                yield layer
            else:
                text = f"{channels} inputs and {layer.outputs} outputs do not divide"
                ctx.skip("SPA101", layer.node, text)

    def _smallest(self, ctx: Context, layers: Sequence[Layer], pattern: Pattern) -> None:
        for layer in layers:
            order = row_order(layer, pattern)
            weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)[:, order]
            new = np.empty(weight.shape)
            new[:, order] = [magnitude(part, self.sparsity, pattern) for part in weight]
            put_sparse(ctx.edit, layer, new)

    def _fitted(
        self, ctx: Context, layers: Sequence[Layer], samples: Sequence[Feeds], pattern: Pattern
    ) -> None:
        before = ctx.model.copy()
        own = {layer.name: layer for layer in gram_readers(before)}
        pairs = [(layer, own[layer.name]) for layer in layers]
        share = {layer.name: self.sparsity for layer in layers}
        if self.spread == "cost" and not pattern.width:
            fitted = [s for i, s in enumerate(samples) if i % HELD_OUT != HELD_OUT - 1]
            originals = [was for _, was in pairs]
            share |= shares(before, originals, fitted, self.sparsity, threads=ctx.threads)
        ways = _WAYS if self.method == "auto" else (self.method,)
        if self.method in {"auto", "alps"}:
            pairs += [(layer, own[layer.name]) for layer in self._others(ctx, share)]
        walk = SparseWalk(ctx, before, pairs, share, pattern, ways)
        mark = ctx.edit.mark()
        with Session.open(before, threads=ctx.threads) as session:
            judge = Judge(Reference(session, samples[HELD_OUT - 1 :: HELD_OUT]), ctx.threads)
            self._smallest(ctx, layers, pattern)
            plain = judge.decibels(ctx.model)
            ctx.edit.rollback(mark)
            try:
                walk.run(samples)
            except NoTensorError as error:
                ctx.edit.rollback(mark)
                ctx.note("SPA105", None, f"the smallest weights were set to zero: {error.message}")
                self._smallest(ctx, layers, pattern)
                return
            found = judge.decibels(ctx.model)
        if self.method == "auto" and found < plain:
            ctx.edit.rollback(mark)
            self._smallest(ctx, layers, pattern)
            text = f"outputs at {found:.1f} dB on held-out samples, {plain:.1f} by magnitude alone"
            ctx.note("SPA105", None, text)
        elif walk.settled:
            ctx.note("SPA102", None, _summary(walk.settled, found, plain))
        else:
            ctx.skip("SPA103", None, "no weight that can be sparse is used on the samples")

    def _others(self, ctx: Context, chosen: Mapping[str, float]) -> Iterator[Layer]:
        """Layers that get no zeros and can make up for those that others have."""
        for layer in gram_readers(ctx.model):
            if layer.name not in chosen and not self._is_skipped(layer) and _is_plain(layer):
                yield layer


_WAYS: tuple[Way, ...] = ("magnitude", "wanda", "sparsegpt", "alps")


def _summary(settled: Sequence[Settled], found: float, plain: float) -> str:
    won = Counter(each.way for one in settled for each in one.found)
    ways = ", ".join(f"{name} for {count}" for name, count in sorted(won.items()))
    noise, first = (
        float(np.mean([one / max(power, 1e-30) for one, power in pairs]))
        for pairs in (
            [(f.error, p) for each in settled for f, p in zip(each.found, each.power, strict=True)],
            [(e, p) for each in settled for e, p in zip(each.plain, each.power, strict=True)],
        )
    )
    return (
        f"zeros by {ways} parts; outputs at {found:.1f} dB on held-out samples, {plain:.1f} by magnitude "
        f"alone; outputs of layers at {_decibels(noise):.1f} and {_decibels(first):.1f}"
    )


def _worth(provider: str, before: int, after: int) -> str:
    saved = f"once compressed these weights take {after / max(before, 1):.0%} of what they took"
    if provider != "cpu":
        return saved
    return f"{saved}; onnxruntime's kernels for processors multiply zeros too, so no time is saved"


def _compressed(weights: Iterable[ir.Value | None]) -> int:
    """Bytes of weights once compressed, told from the beginning of each."""
    total = 0.0
    for weight in weights:
        tensor = constant(weight)
        if tensor is not None:
            data = tensor.numpy().reshape(-1)
            some = data[:_LOOKED_AT].tobytes()
            total += len(zlib.compress(some, 1)) * data.nbytes / max(len(some), 1)
    return round(total)


def _decibels(noise: float) -> float:
    return -10 * math.log10(max(noise, 1e-12))


def _is_plain(layer: Layer) -> bool:
    tensor = constant(layer.weight)
    if tensor is None or layer.depth > _DEEPEST or layer.is_shared:
        return False
    array = tensor.numpy()
    return array.dtype in (np.float32, np.float16) and bool(np.isfinite(array).all())


def _is_wide(layer: Layer) -> bool:
    """Whether an output sums over enough to do without a part: not so in a depthwise Conv."""
    depthwise = layer.groups > 1 and layer.outputs == 1
    return not depthwise and layer.depth * layer.outputs * layer.groups >= _SMALLEST
