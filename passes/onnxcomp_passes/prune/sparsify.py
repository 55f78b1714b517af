"""Zeros in weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt, field_validator
from typing_extensions import override

from onnxcomp.ir.ops import constant
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.grams import collect_grams, gram_readers
from onnxcomp_passes.prune.support.reconstruction import bias_of, put_weight
from onnxcomp_passes.prune.support.sparsity import (
    Pattern,
    magnitude,
    parse_pattern,
    refitted,
    shares,
    wanda,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from onnxcomp.quant.gram import Gram
    from onnxcomp.quant.readers import Layer

Method = Literal["auto", "magnitude", "wanda", "sparsegpt"]
_FEWEST = 4
_HELD_OUT = 4
_SMALLEST = 64
_DEEPEST = 8192


class Sparsify(Pass):
    """Sets a share of the weights to zero; shapes stay as they are.

    With samples each layer takes, of three ways to choose zeros, the one whose outputs stay nearest on
    samples kept back for that: the smallest weights, those whose products are smallest (Wanda), or one
    after the other with all that follow making up for it (SparseGPT). Biases take out what the mean of
    the outputs moves.

    Zeros make a file smaller once it is compressed, and are what some processors want (2:4 for NVIDIA's
    tensor cores). onnxruntime's kernels for processors do not skip zeros: no time is saved there. To
    save time, remove channels (`prune-channels`).

        w = {3, -1, 0.5, 2}     w = {3, 0, 0, 2}     (pattern 2:4)
    """

    name: ClassVar[str] = "sparsify"
    codes: ClassVar[Mapping[str, str]] = {
        "SPA101": "The weight does not divide into the parts of the pattern, so it stays as it is.",
        "SPA102": "How many weights became zero, in which way, and what that costs the layers' outputs.",
        "SPA103": "Nothing in the model is a weight that can be sparse.",
        "SPA104": "Without samples the smallest weights were set to zero, which costs the most quality. Give "
        "real samples (--data).",
    }

    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of weights that become zero; a pattern like 2:4 has its own."""
    pattern: str = ""
    """Where zeros may be: anywhere, `2:4` (of four weights of an output two stay), `4x1` (four outputs together)."""
    method: Method = "auto"
    """How zeros are chosen; `auto` takes what is best for each layer on held-out samples."""
    spread: Literal["uniform", "cost"] = "cost"
    """The same share in each layer, or more where it costs less of the layer's output."""
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
        layers = list(self._layers(ctx, pattern))
        if not layers:
            ctx.skip("SPA103", None, "there is no weight that can be sparse")
            return
        samples = list(islice(ctx.samples or (), self.samples))
        if len(samples) < _FEWEST or self.method == "magnitude":
            if self.method != "magnitude":
                ctx.note("SPA104", None, "the smallest weights were set to zero: no samples")
            for layer in layers:
                self._write(ctx, layer, _each(layer.read(), magnitude, self.sparsity, pattern))
            return
        self._fitted(ctx, layers, samples, pattern)

    def _layers(self, ctx: Context, pattern: Pattern) -> Iterator[Layer]:
        for layer in gram_readers(ctx.model):
            names = (layer.name, layer.weight.name or "")
            if any(fnmatchcase(name, each) for name in names for each in self.skip):
                continue
            if not _is_plain(layer):
                continue
            if pattern.fits(layer.depth, layer.outputs):
                yield layer
            else:
                ctx.skip("SPA101", layer.node, f"{layer.depth} x {layer.outputs} does not divide")

    def _fitted(
        self,
        ctx: Context,
        layers: Sequence[Layer],
        samples: Sequence[Mapping[str, np.ndarray]],
        pattern: Pattern,
    ) -> None:
        held_out = samples[_HELD_OUT - 1 :: _HELD_OUT]
        fitted = [s for i, s in enumerate(samples) if i % _HELD_OUT != _HELD_OUT - 1]
        source = ctx.model.copy()
        own = {layer.name: layer for layer in layers}
        copies = [layer for layer in gram_readers(source) if layer.name in own]
        share = dict.fromkeys(own, self.sparsity)
        if self.spread == "cost" and not pattern.width and pattern.block == 1:
            share |= self._shares(ctx, source, copies, fitted)
        work = _Work(self.method, pattern)
        both = (
            collect_grams(source, copies, some, threads=ctx.threads, progress=ctx.progress)
            for some in (fitted, held_out)
        )
        for layer, gram, judge in _in_both(copies, *both):
            found = work.choose(layer.read(), gram, judge, share[layer.name])
            shift = _moved(layer.read(), found, gram)
            self._write(ctx, own[layer.name], found, shift)
        if work.done:
            ctx.note("SPA102", None, work.summary())
        else:
            ctx.skip("SPA103", None, "no weight that can be sparse is used on the samples")

    def _shares(
        self,
        ctx: Context,
        model: Any,  # noqa: ANN401 - a Model
        layers: Sequence[Layer],
        samples: Sequence[Mapping[str, np.ndarray]],
    ) -> dict[str, float]:
        found = collect_grams(model, layers, samples, threads=ctx.threads, progress=ctx.progress)
        weights, grams = {}, {}
        for layer, gram in found:
            if layer.groups == 1:
                weights[layer.name], grams[layer.name] = layer.read(), gram
        return shares(weights, grams, self.sparsity)

    @staticmethod
    def _write(
        ctx: Context, layer: Layer, found: NDArray[Any], shift: NDArray[Any] | None = None
    ) -> None:
        new = put_weight(ctx.edit, layer, found)
        ctx.edit.count("weights sparse")
        ctx.edit.count("zeros", int((new == 0).sum()))
        bias = bias_of(layer)
        if bias is not None and shift is not None and bias.shape is not None:
            bias.write(ctx.edit, bias.numbers + shift.reshape(-1))


@dataclass
class _Work:
    """Chooses zeros for one layer after the other."""

    method: Method
    pattern: Pattern

    def __post_init__(self) -> None:
        self._won: dict[str, int] = {}
        self._lost: list[tuple[float, float]] = []

    @property
    def done(self) -> bool:
        """Whether there was any layer."""
        return bool(self._lost)

    def choose(
        self, weight: NDArray[Any], gram: Gram, judge: Gram, share: float
    ) -> NDArray[np.float64]:
        """Returns the sparse weight that is nearest on held-out rows, in parts if it has several."""
        if weight.ndim == 2:
            return self._one(weight, gram, judge, share)
        parts = zip(weight, _parts(gram), _parts(judge), strict=True)
        return np.stack([self._one(*part, share) for part in parts])

    def _one(
        self, weight: NDArray[Any], gram: Gram, judge: Gram, share: float
    ) -> NDArray[np.float64]:
        tried: dict[str, NDArray[np.float64]] = {
            "magnitude": magnitude(weight, share, self.pattern)
        }
        if self.method in {"auto", "wanda"}:
            tried["wanda"] = wanda(weight, gram, share, self.pattern)
        if self.method in {"auto", "sparsegpt"}:
            tried["sparsegpt"] = refitted(weight, gram, share, self.pattern)
        errors = {name: judge.error(weight - each) for name, each in tried.items()}
        best = min(errors, key=errors.__getitem__) if self.method == "auto" else self.method
        self._won[best] = self._won.get(best, 0) + 1
        power = max(judge.error(weight), np.finfo(np.float64).tiny)
        self._lost.append((errors["magnitude"] / power, errors[best] / power))
        return tried[best]

    def summary(self) -> str:
        """Says what was chosen how often, and what it costs."""
        ways = ", ".join(f"{name} for {count}" for name, count in sorted(self._won.items()))
        before, after = (_decibels(share) for share in zip(*self._lost, strict=True))
        return (
            f"zeros by {ways} parts; outputs of layers at {after:.1f} dB, {before:.1f} by magnitude"
        )


def _decibels(shares: Sequence[float]) -> float:
    return -10 * math.log10(max(float(np.mean(shares)), 1e-20))


def _each(
    weight: NDArray[Any],
    way: Any,  # noqa: ANN401 - one of the functions of `sparsity`
    share: float,
    pattern: Pattern,
) -> NDArray[np.float64]:
    if weight.ndim == 2:
        found: NDArray[np.float64] = way(weight, share, pattern)
        return found
    return np.stack([way(part, share, pattern) for part in weight])


def _parts(gram: Gram) -> Iterator[Gram]:
    from onnxcomp.quant.gram import Gram as Part

    for matrix, total, size in zip(gram.matrix, gram.total, gram.magnitude, strict=True):
        yield Part(matrix, total, size, gram.count)


def _in_both(
    layers: Sequence[Layer],
    first: Iterator[tuple[Layer, Gram]],
    second: Iterator[tuple[Layer, Gram]],
) -> Iterator[tuple[Layer, Gram, Gram]]:
    """Yields the layers that two collections have; either leaves out what its samples do not reach."""
    place = {layer: index for index, layer in enumerate(layers)}
    other = next(second, None)
    for layer, gram in first:
        while other is not None and place[other[0]] < place[layer]:
            other = next(second, None)
        if other is not None and other[0] is layer:
            yield layer, gram, other[1]


def _moved(weight: NDArray[Any], found: NDArray[Any], gram: Gram) -> NDArray[Any]:
    """What the mean of each output loses."""
    lost: NDArray[Any] = (gram.mean[..., None, :] @ (weight - found))[..., 0, :]
    return lost


def _is_plain(layer: Layer) -> bool:
    tensor = constant(layer.weight)
    if tensor is None or tensor.size < _SMALLEST or layer.depth > _DEEPEST or layer.is_shared:
        return False
    array = tensor.numpy()
    depthwise = layer.groups > 1 and layer.outputs == 1
    return array.dtype == np.float32 and not depthwise and bool(np.isfinite(array).all())
