"""Numbers for weights: from the weights alone, or from what multiplies them on samples."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.quant.blocks import block_params
from onnxcomp.quant.gptq import gptq
from onnxcomp.quant.grams import collect_grams, gram_readers
from onnxcomp_passes.quantize.weight_bias import bias_of
from onnxcomp_passes.quantize.weight_forms import as_matrix
from onnxcomp_passes.quantize.weight_packing import Stored

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model, ir
    from onnxcomp.passbase import Context
    from onnxcomp.quant.blocks import BlockGrid, BlockScheme
    from onnxcomp.quant.grams import Gram
    from onnxcomp.quant.readers import Layer
    from onnxcomp_passes.quantize.weight_sites import Site, Use

DataFree = Literal["rtn", "mse", "hqq"]

_MOST_SAMPLES = 512
# Damping of GPTQ, as a share of the mean diagonal: by columns for each row seen, between two ends.
_RARE, _DAMPING = 0.1, (0.03, 1.0)


@dataclass(frozen=True, eq=False)
class Judged:
    """A weight in few bits, and how it did on samples that were not used for it.

    Attributes:
        stored: The numbers that won.
        method: What found them.
        share: Error of the layer's output, as a share of that of rounding to nearest.
    """

    stored: Stored
    method: str
    share: float


def round_site(site: Site, scheme: BlockScheme, method: DataFree) -> Stored:
    """Returns a weight in few bits, found without data."""
    matrix = as_matrix(site)
    grid = block_params(matrix, scheme, method, scale_dtype=site.tensor.dtype.numpy())
    return Stored(grid.quantize(matrix), grid)


def fit_site(site: Site, scheme: BlockScheme, fit: Gram, judge: Gram) -> Judged:
    """Returns a weight in few bits that keeps the layer's output, judged on samples not used for it.

    Rounding to nearest, scales of least squares, and GPTQ on these compete; GPTQ, if it wins, is done
    again with all samples. Its grids do not weigh rows by what they multiply: measured, GPTQ on plain
    grids generalises better, and rare inputs keep their rows. Where a bias follows, that takes care of
    the mean, and GPTQ of the rest (the Gram matrix of rows without their mean).
    """
    matrix, dtype = as_matrix(site), site.tensor.dtype.numpy()
    biased = bias_of(site) is not None

    def on(grid: BlockGrid, values: NDArray[Any]) -> Stored:
        return Stored(grid.quantize(values), grid)

    def with_gptq(gram: Gram) -> Stored:
        numbers = on(least, _gptq(matrix, gram, least, centred=biased))
        shift = gram.mean @ _missed(matrix, numbers) if biased else None
        return replace(numbers, shift=shift)

    nearest = block_params(matrix, scheme, "rtn", scale_dtype=dtype)
    least = block_params(matrix, scheme, "mse", scale_dtype=dtype)
    tried = {"rtn": on(nearest, matrix), "mse": on(least, matrix), "gptq": with_gptq(fit)}
    errors = {name: _error(judge, matrix, stored) for name, stored in tried.items()}
    best = min(errors, key=errors.__getitem__)
    share = errors[best] / max(errors["rtn"], 1e-300)
    if best == "gptq":
        tried[best] = with_gptq(fit + judge)
    return Judged(tried[best], best, share)


def _gptq(matrix: NDArray[Any], gram: Gram, grid: BlockGrid, *, centred: bool) -> NDArray[Any]:
    """GPTQ; the fewer rows were seen, the less their correlations are believed."""
    damping = float(np.clip(_RARE * matrix.shape[0] / max(gram.count, 1), *_DAMPING))
    seen = gram.centred if centred else gram.matrix
    return gptq(matrix, seen, grid.round_row, damping=damping)


def _missed(matrix: NDArray[Any], stored: Stored) -> NDArray[np.float64]:
    rounded: NDArray[np.float64] = stored.grid.dequantize(stored.numbers).astype(np.float64)
    return matrix - rounded


def _error(gram: Gram, matrix: NDArray[Any], stored: Stored) -> float:
    """Squared error of the layer's output, bias included."""
    missed = _missed(matrix, stored)
    error = gram.error(missed)
    if stored.shift is not None:
        error += float(gram.count * np.square(stored.shift).sum())
        error -= 2.0 * float(stored.shift @ (gram.total @ missed))
    return error


def grams_of(
    ctx: Context, model: Model, sites: Sequence[Site], memory_limit: int
) -> Iterator[tuple[Site, Gram, Gram]]:
    """Yields weights with Gram matrices of two halves of the samples: to fit, and to judge.

    Args:
        ctx: Samples and threads.
        model: A copy of the model as it is now, which stays in float while the other is changed.
        sites: Weights in `ctx.model`.
        memory_limit: Bytes of matrices at a time.
    """
    samples = list(itertools.islice(ctx.samples or (), _MOST_SAMPLES))
    halves = (samples[::2], samples[1::2]) if len(samples) > 1 else (samples, samples)
    wanted = _layers(ctx.model, model, sites)
    grams: list[Iterator[Any]] = [
        collect_grams(
            model,
            list(wanted.values()),
            half,
            threads=ctx.threads,
            memory_limit=memory_limit // 2,
            progress=ctx.progress,
        )
        for half in halves
    ]
    sums: dict[str, list[Gram]] = {}
    left = Counter(site.name for site, _ in wanted)
    by_layer = {layer: site for (site, _), layer in wanted.items()}
    judged = _by_layer(grams[1])
    for layer, fit in grams[0]:
        judge = judged(layer)
        site = by_layer[layer]
        if judge is None:
            continue
        both = sums.pop(site.name, None)
        pair = [fit, judge] if both is None else [both[0] + fit, both[1] + judge]
        left[site.name] -= 1
        if left[site.name]:
            sums[site.name] = pair
        else:
            yield site, pair[0], pair[1]


def _by_layer(grams: Iterator[Any]) -> Any:  # noqa: ANN401 - a function
    """Returns a function that finds the Gram of a layer; layers are asked for in order."""
    waiting: dict[Any, Gram] = {}

    def find(layer: Any) -> Gram | None:  # noqa: ANN401
        while layer not in waiting:
            found = next(grams, None)
            if found is None:
                return None
            waiting[found[0]] = found[1]
        return waiting.pop(layer)

    return find


def _layers(model: Model, copy: Model, sites: Sequence[Site]) -> Mapping[tuple[Site, ir.Node], Any]:
    """Returns the layers of a copy that read weights of the model."""
    same = dict(zip(copy.graph, model.graph, strict=True))
    layers = {same[layer.node]: layer for layer in gram_readers(copy) if layer.groups == 1}
    return {
        (site, use.node): layers[use.node]
        for site in sites
        for use in site.uses
        if use.node in layers and _agree(site, use, layers[use.node])
    }


def _agree(site: Site, use: Use, layer: Layer) -> bool:
    """Whether a weight is that of a layer, and has the layer's outputs where `as_matrix` sees them."""
    if layer.layout == "conv-transpose" or layer.index != use.index:
        return False
    return (layer.layout == "columns") == (site.orientation == "columns")
