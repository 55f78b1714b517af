"""Weights as indices into a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field
from typing_extensions import override

from onnxcomp.ir.ops import constant
from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.gptq import gptq
from onnxcomp.quant.palette import Palette, nearest, palette_bytes, palettize
from onnxcomp_passes.quantize.coded_weights import SHIFT_OPSET, Expander, Grams, find_weights
from onnxcomp_passes.quantize.held_out import HeldOut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.grams import Gram
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.quantize.coded_weights import CodedWeight

_ALL_BITS = tuple(range(1, 9))
# Bits at which it is tried out how much a weight's error harms the outputs.
_TRIED = 3
_JUDGED = 8
_MOST_TRIALS = 400
_MOST_BITS, _RAISES = 8, 6
# More than compensation was ever seen to bring.
_MOST_GAIN_DB = 12.0


class PalettizeWeights(Pass):
    """Stores weights as indices of 1 to 8 bits into a codebook for each weight.

    The codebook comes from k-means: fewer bits than on an even grid for the same error, because there are
    more entries where the numbers are. Each output channel has a scale. With samples, errors count as much
    as what they are multiplied by, are passed on to weights that can make up for them (GPTQ), and weights whose error
    harms the outputs get more bits until these are near enough on held-out samples. `budget` gives each
    weight as many bits as it is worth.

    Standard operators only (Gather, BitShift), which onnxruntime computes when it loads the model: what this
    saves is the size of the file. Runs are as fast as with float weights; loading takes longer, and memory
    more than twice that of a float model, because onnxruntime keeps what it computes on the way.

        MatMul(x, w)      MatMul(x, Gather(codebook, unpacked indices) * scale)
    """

    name: ClassVar[str] = "palettize-weights"
    codes: ClassVar[Mapping[str, str]] = {
        "PAL101": "How near the result is to float on held-out samples, and how many bits weights got.",
        "PAL102": "Numbers of less than 8 bits are unpacked with BitShift, which came with opset 11.",
        "PAL103": "With 8 bits the result is still too far from float, so nothing was done.",
        "PAL104": "A weight stays as it is, because it has numbers that are infinite or not a number.",
        "PAL105": "No weight is large enough to be worth it, or patterns left all of them out.",
        "PAL106": "With this budget the result is far from float.",
    }

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Bits of an index; with samples, of those weights whose error does little harm."""
    budget: Annotated[float, Field(gt=0, le=1)] | None = None
    """Size of the weights as a share of their size in float; bits are then chosen for each weight."""
    scales: bool = True
    """A scale for each output channel."""
    compensate: bool = True
    """With samples: let weights make up for the errors of others (GPTQ), where that helps."""
    expand: Literal["load", "run"] = "load"
    """Compute weights when the model is loaded, or in every run: then they stay packed in memory, but a run
    can take dozens of times as long. Tables, of which a run reads a few rows, are left as they are then."""
    least_sqnr_db: float = 15.0
    """Ratio of signal to noise on held-out samples up to which bits are added."""
    only: tuple[str, ...] = ()
    """Patterns for names of weights, or of nodes that read them, to do; all when there are none."""
    skip: tuple[str, ...] = ()
    """Patterns for those to leave."""

    @override
    def run(self, ctx: Context) -> None:
        if ctx.model.opset < SHIFT_OPSET and (self.bits < 8 or self.budget is not None):
            hint = "convert-opset first, or bits=8"
            ctx.skip("PAL102", None, f"the model has opset {ctx.model.opset}", hint)
            return
        weights = [w for w in find_weights(ctx.model, self.only, self.skip) if _is_finite(ctx, w)]
        if self.expand == "run":
            weights = [weight for weight in weights if not weight.is_table]
        if not weights:
            ctx.skip("PAL105", None, "no weight to do")
            return
        work = _Work(ctx, self, weights)
        work.run()


def _is_finite(ctx: Context, weight: CodedWeight) -> bool:
    if np.isfinite(weight.read()).all():
        return True
    ctx.skip("PAL104", weight.value, "it has numbers that are not finite")
    return False


@dataclass
class _Work:
    """One run over one model."""

    ctx: Context
    options: PalettizeWeights
    weights: list[CodedWeight]
    importance: dict[CodedWeight, NDArray[np.float64]] = field(default_factory=dict)
    grams: Grams | None = None

    def run(self) -> None:
        judge = HeldOut.of(self.ctx, _JUDGED)
        self._look(judge)
        least, budget = self.options.least_sqnr_db, self.options.budget
        mark = self.ctx.edit.mark()
        bits: Mapping[CodedWeight, int] = dict.fromkeys(self.weights, self.options.bits)
        if budget is not None:
            bits = self._allocated(self._all_errors(judge), budget)
        decibels = self._best(judge, bits)
        if judge is not None and decibels is not None and decibels < least:
            if budget is None:
                self.ctx.edit.rollback(mark)
                bits, decibels = self._raised(judge, bits, decibels)
            else:
                self.ctx.warn("PAL106", None, f"{decibels:.1f} dB on held-out samples")
        if bits:
            self._tell(bits, decibels)

    def _raised(
        self, judge: HeldOut, bits: Mapping[CodedWeight, int], decibels: float
    ) -> tuple[Mapping[CodedWeight, int], float | None]:
        """Adds bits, first to the weights whose error harms most, until the outputs are near enough."""
        errors, least = self._all_errors(judge), self.options.least_sqnr_db
        mark, goal = self.ctx.edit.mark(), least
        for _ in range(_RAISES):
            bits = self._enough(bits, errors, goal)
            decibels = self._best(judge, bits) or 0.0
            if decibels >= least:
                return bits, decibels
            self.ctx.edit.rollback(mark)
            if min(bits.values()) >= _MOST_BITS:
                break
            goal += least - decibels + 0.5
        self.ctx.skip("PAL103", None, f"{decibels:.1f} dB with up to {max(bits.values())} bits")
        return {}, decibels

    def _tell(self, bits: Mapping[CodedWeight, int], decibels: float | None) -> None:
        total = sum(weight.size for weight in bits)
        mean = sum(number * weight.size for weight, number in bits.items()) / total
        near = "" if decibels is None else f"{decibels:.1f} dB on held-out samples; "
        self.ctx.note("PAL101", None, f"{near}{mean:.2f} bits for each of {total:,} numbers")
        self.ctx.edit.count("weights in palettes", len(bits))

    # -- what counts how much

    def _look(self, judge: HeldOut | None) -> None:
        """Second moments of what each number of a weight is multiplied by."""
        if judge is not None:
            self.grams = Grams(self.ctx, self.weights, judge.seen)
            self.importance = self.grams.moments()

    def _palette(self, weight: CodedWeight, bits: int) -> Palette:
        kept = weight.kept if self.options.scales else ()
        return palettize(weight.read(), bits, kept=kept, importance=self.importance.get(weight))

    # -- bits

    def _all_errors(self, judge: HeldOut | None) -> dict[CodedWeight, dict[int, float]]:
        found, count = {}, len(self.weights)
        with self.ctx.progress(count, "measuring weights") as task:
            for weight in self.weights:
                found[weight] = self._errors(weight, judge if count <= _MOST_TRIALS else None)
                task.advance()
        return found

    def _allocated(
        self, errors: Mapping[CodedWeight, Mapping[int, float]], budget: float
    ) -> dict[CodedWeight, int]:
        """Bits of each weight: those first whose error harms most for a byte."""
        total = budget * 4 * sum(weight.size for weight in self.weights)
        bits = dict.fromkeys(self.weights, 1)
        spent = sum(self._cost(weight, 1) for weight in self.weights)
        while True:
            best = self._next(bits, errors, total - spent)
            if best is None:
                return bits
            spent += self._step(best, bits[best])
            bits[best] += 1

    def _enough(
        self,
        bits: Mapping[CodedWeight, int],
        errors: Mapping[CodedWeight, Mapping[int, float]],
        decibels: float,
    ) -> dict[CodedWeight, int]:
        """Bits with which the noise expected in the outputs is below a ratio."""
        raised, allowed = dict(bits), 10.0 ** (-decibels / 10.0)
        noise = sum(errors[weight][number] for weight, number in raised.items())
        while noise > allowed:
            best = self._next(raised, errors, math.inf)
            if best is None:
                break
            noise -= errors[best][raised[best]] - errors[best][raised[best] + 1]
            raised[best] += 1
        return raised

    def _next(
        self,
        bits: Mapping[CodedWeight, int],
        errors: Mapping[CodedWeight, Mapping[int, float]],
        room: float,
    ) -> CodedWeight | None:
        """The weight for which another bit takes away most noise for a byte."""
        steps = [
            (self._rate(errors[weight], weight, bits[weight]), -index, weight)
            for index, weight in enumerate(self.weights)
            if bits[weight] < _MOST_BITS and self._step(weight, bits[weight]) <= room
        ]
        return max(steps)[2] if steps else None

    def _cost(self, weight: CodedWeight, bits: int) -> int:
        kept = weight.kept if self.options.scales else ()
        return palette_bytes(weight.size, bits, math.prod(weight.shape[axis] for axis in kept))

    def _step(self, weight: CodedWeight, bits: int) -> int:
        return self._cost(weight, bits + 1) - self._cost(weight, bits)

    def _rate(self, errors: Mapping[int, float], weight: CodedWeight, bits: int) -> float:
        return (errors[bits] - errors[bits + 1]) / self._step(weight, bits)

    def _errors(self, weight: CodedWeight, judge: HeldOut | None) -> dict[int, float]:
        """Expected noise in the outputs for each number of bits."""
        array = weight.read().astype(np.float64)
        share = self.importance.get(weight, np.ones(()))
        energy = float(np.sum(share * np.square(array)))
        found, harm = {}, 1.0
        for bits in _ALL_BITS:
            values = self._palette(weight, bits).expand()
            error = float(np.sum(share * np.square(values - array)))
            found[bits] = error / energy if energy else 0.0
            if bits == _TRIED and judge is not None and found[bits] > 0:
                harm = self._harm(weight, values, judge) / found[bits]
        return {bits: harm * error for bits, error in found.items()}

    def _harm(self, weight: CodedWeight, values: NDArray[np.float32], judge: HeldOut) -> float:
        """Noise in the outputs with one weight rounded."""
        mark = self.ctx.edit.mark()
        graph = weight.value.graph
        if graph is None:
            return 0.0
        made = self.ctx.edit.initializer(values, name=f"{weight.name}_rounded", graph=graph)
        self.ctx.edit.replace(weight.value, made)
        decibels = judge.decibels(self.ctx.model, calibration=True)
        self.ctx.edit.rollback(mark)
        return float(10.0 ** (-decibels / 10.0))

    # -- writing

    def _best(self, judge: HeldOut | None, bits: Mapping[CodedWeight, int]) -> float | None:
        """Writes palettes, with compensation where it helps; returns the ratio of signal to noise."""
        plain = {weight: self._palette(weight, number) for weight, number in bits.items()}
        mark = self.ctx.edit.mark()
        self._write(plain)
        if judge is None:
            return None
        without = judge.decibels(self.ctx.model)
        hopeless = without < self.options.least_sqnr_db - _MOST_GAIN_DB
        if not self.options.compensate or (hopeless and self.options.budget is None):
            return without
        self.ctx.edit.rollback(mark)
        self._write({**plain, **self._compensated(plain)})
        with_it = judge.decibels(self.ctx.model)
        if with_it >= without:
            return with_it
        self.ctx.edit.rollback(mark)
        self._write(plain)
        return without

    def _compensated(self, plain: Mapping[CodedWeight, Palette]) -> dict[CodedWeight, Palette]:
        return {
            weight: _with_feedback(layer, gram, weight.read(), plain[weight])
            for weight, layer, gram in self.grams or ()
            if not layer.is_shared and layer.groups == 1
        }

    def _write(self, palettes: Mapping[CodedWeight, Palette]) -> None:
        in_run = self.options.expand == "run"
        expander = Expander(self.ctx.edit, self.ctx.model.opset, in_run)
        for weight, palette in palettes.items():
            value, like = expander.indices(weight.value, palette.codes, palette.bits), weight.value
            colours = expander.tensor(like, palette.colours, "codebook")
            value = expander.op("Gather", [colours, value], like)
            if palette.scale is not None:
                scale = expander.tensor(like, palette.scale, "scale")
                value = expander.op("Mul", [value, scale], like)
            expander.put(like, value, weight.shape)
        expander.finish()


def _with_feedback(
    layer: Layer, gram: Gram, weight: NDArray[np.float32], palette: Palette
) -> Palette:
    """The indices of a palette chosen one input after another, later ones making up for earlier ones."""
    tensor = constant(layer.weight)
    ones = np.ones(weight.shape, np.float32)
    scale = layer.to_matrix(ones if palette.scale is None else ones * palette.scale)
    colours = palette.colours.astype(np.float64)
    if tensor is None or scale.ndim != 2:
        return palette

    def settle(values: NDArray[np.float64], row: int) -> NDArray[Any]:
        rounded: NDArray[Any] = colours[nearest(values / scale[row], palette.colours)] * scale[row]
        return rounded

    settled = gptq(layer.to_matrix(weight), gram.matrix, settle)
    codes = nearest(layer.from_matrix(settled / scale), palette.colours)
    return Palette(codes, palette.colours, palette.scale, palette.bits)
