"""Weights as sums of a few scaled signs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from onnxcomp.passbase import Context, Pass
from onnxcomp.quant.binary import MOST_BASES, Binary, binarize, signs
from onnxcomp_passes.quantize.coded_weights import (
    SHIFT_OPSET,
    Expander,
    Grams,
    find_weights,
)
from onnxcomp_passes.quantize.held_out import HeldOut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp_passes.quantize.coded_weights import CodedWeight

_JUDGED = 8


class BinarizeWeights(Pass):
    """Stores weights as 1 to 4 bits for each number: a sum of signs, each with a scale for each channel.

    One basis is XNOR-Net; each further one takes what the ones before left over, and all scales are refitted
    by least squares. With samples, errors count as much as what they are multiplied by. Networks that
    were not trained for it lose much with one basis: name the weights, and look at the numbers reported.

    Standard operators only, which onnxruntime computes when it loads the model: what this saves is the size
    of the file. Runs are as fast as with float weights; loading takes longer, and more memory.

        MatMul(x, w)      MatMul(x, a1 * sign1 + a2 * sign2)      a of one output channel, signs in bits
    """

    name: ClassVar[str] = "binarize-weights"
    codes: ClassVar[Mapping[str, str]] = {
        "BIN101": "How near a weight is to what it was, and the outputs on held-out samples.",
        "BIN102": "Bits are unpacked with BitShift, which came with opset 11.",
        "BIN103": "The outputs on held-out samples are too far from float, so nothing was done.",
        "BIN104": "No weight is named by the patterns, is large enough, and has finite numbers.",
    }

    only: Annotated[tuple[str, ...], Field(min_length=1)]
    """Patterns for names of weights, or of nodes that read them, to do; `*` for all."""
    skip: tuple[str, ...] = ()
    """Patterns for those to leave."""
    bases: Annotated[int, Field(ge=1, le=MOST_BASES)] = 1
    """How many signs a number gets: bits of the file."""
    least_sqnr_db: float = 0.0
    """Ratio of signal to noise on held-out samples below which all is taken back."""

    @override
    def run(self, ctx: Context) -> None:
        if ctx.model.opset < SHIFT_OPSET:
            ctx.skip(
                "BIN102", None, f"the model has opset {ctx.model.opset}", "convert-opset first"
            )
            return
        weights = [
            weight
            for weight in find_weights(ctx.model, self.only, self.skip)
            if np.isfinite(weight.read()).all()
        ]
        if not weights:
            ctx.skip("BIN104", None, "no weight to do")
            return
        judge = HeldOut.of(ctx, _JUDGED)
        moments = {} if judge is None else Grams(ctx, weights, judge.seen).moments()
        expander = Expander(ctx.edit, ctx.model.opset)
        for weight in weights:
            self._do(ctx, expander, weight, moments.get(weight))
        expander.finish()
        if judge is not None:
            decibels = judge.decibels(ctx.model)
            if decibels < self.least_sqnr_db:
                ctx.edit.rollback()
                ctx.skip("BIN103", None, f"{decibels:.1f} dB on held-out samples")
                return
            ctx.note("BIN101", None, f"{decibels:.1f} dB on held-out samples")
        ctx.edit.count("weights as signs", len(weights))

    def _do(
        self,
        ctx: Context,
        expander: Expander,
        weight: CodedWeight,
        importance: NDArray[np.float64] | None,
    ) -> None:
        array = weight.read()
        channels = _by_channel(array, weight)
        share = None if importance is None else _by_channel(importance, weight)
        binary = binarize(channels, self.bases, importance=share)
        error = float(np.square(binary.expand() - channels, dtype=np.float64).sum())
        energy = float(np.square(channels, dtype=np.float64).sum())
        near = 10.0 * np.log10(max(energy, 1e-300) / max(error, 1e-300))
        _write(expander, weight, binary)
        ctx.note("BIN101", weight.name, f"{near:.1f} dB with {self.bases} bits for each number")


def _moved(weight: CodedWeight) -> list[int]:
    """Axes of a weight, those of its channels first."""
    kept = [axis % len(weight.shape) for axis in weight.kept]
    return [*kept, *(axis for axis in range(len(weight.shape)) if axis not in kept)]


def _by_channel(array: NDArray[Any], weight: CodedWeight) -> NDArray[Any]:
    """Returns numbers as `(channels, rest)`."""
    channels = int(np.prod([weight.shape[axis] for axis in weight.kept]))
    return np.ascontiguousarray(array.transpose(_moved(weight))).reshape(channels, -1)


def _write(expander: Expander, weight: CodedWeight, binary: Binary) -> None:
    """Indices into one table of sums for each channel."""
    like, moved = weight.value, _moved(weight)
    channels = binary.scales.shape[0]
    index = expander.indices(like, binary.codes, binary.bits)
    start = (np.arange(channels, dtype=np.int32) << binary.bits).reshape(-1, 1)
    if channels > 1:
        index = expander.op("Add", [index, expander.shared(like, start)], like)
    scales = expander.tensor(like, binary.scales, "scales")
    table = expander.op("MatMul", [scales, expander.shared(like, signs(binary.bits))], like)
    table = expander.shaped(table, like, (-1,))
    value = expander.op("Gather", [table, index], like)
    if len(moved) > 2:
        value = expander.shaped(value, like, tuple(weight.shape[axis] for axis in moved))
    if moved != sorted(moved):
        back = [moved.index(axis) for axis in range(len(moved))]
        value = expander.op("Transpose", [value], like, {"perm": back})
    expander.put(like, value, weight.shape)
