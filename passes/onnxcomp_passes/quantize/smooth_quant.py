"""SmoothQuant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt
from typing_extensions import override

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import Reference, compare
from onnxcomp.ir import Edit
from onnxcomp.passbase import Context, NeedsSamples, Pass
from onnxcomp.quant.balance import EXPONENTS, SMOOTHING, best_scale, noise, observe_halves
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from onnxcomp_passes.quantize.scaling import Link, apply_scale, find_links

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.quant.balance import Halves
    from onnxcomp.samples import Samples

_LINEAR = ("MatMul", "Gemm")
# Share of the samples that is kept for the judgement.
_HELD_OUT = 0.25
# What is kept must gain this much on held-out samples; with a Mul, which costs time, more.
_LEAST_DB, _LEAST_DB_FOR_MUL = 0.05, 0.5
# What is done for a trial: quick, and nothing that would hide or make up for what is judged.
_TRIAL = QuantizeStatic(placement="weighted", prepare=False, observer="min-max", correct_bias=False)
_TRIAL_SAMPLES = 32
# How often moves that do not help together are halved.
_DEPTH = 2
# Values of alpha for all activations that are tried besides the best expected for each: what the
# samples did not show (larger outliers, above all) is not in the expectation.
_ALPHAS = (0.5, 0.8)


@dataclass(frozen=True, eq=False)
class _Move:
    """A scale that was found for an activation."""

    link: Link
    scale: np.ndarray
    gain: float


class SmoothQuant(Pass):
    """Moves outliers of activations into the weights of the MatMul and Gemm that read them.

    A few channels of a transformer's activations are often a hundred times larger than the rest, and in
    int8 they leave the rest no resolution, while the weights are easy to round. Dividing each channel by
    max|x|^alpha / max|w|^(1 - alpha) and multiplying the rows of the weights by it changes nothing in
    float (Xiao et al. 2022, arXiv 2211.10438). The weights of a norm, of a Mul, of a linear layer in
    front (also the one that makes the values of attention) take the division; where nothing can, a Mul
    is put in, if that is allowed.

        LayerNormalization(g, b) -> MatMul(w)     LayerNormalization(g/s, b/s) -> MatMul(s*w)

    Run it before `quantize-static`. The model is quantized for a trial and compared with float on samples
    that were held out: with the alpha of the least expected noise for each activation, and with a few
    values for all of them. The best one stays, and of that only what brings int8 nearer to float.
    """

    name: ClassVar[str] = "smooth-quant"
    needs = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "SMQ101": "The channels of this activation were scaled; the gain is the expected one.",
        "SMQ102": "Scaling these activations did not bring the int8 model nearer to float on samples "
        "that were held out, so it was taken back.",
        "SMQ103": "How near the int8 model comes to float on held-out samples, before and after.",
        "SMQ104": "Nothing in front of this activation can take the division, and insert=false.",
        "SMQ105": "The model could not be quantized for a trial, so nothing was changed.",
    }

    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """How much of the activations' range goes to the weights; by default the best for each activation."""
    insert: bool = True
    """Put a Mul where nothing in front can take the division; it costs a little time."""
    least_gain_db: float = 0.5
    """Expected gain from which on an activation is scaled."""
    samples: PositiveInt = 64
    """How many samples to look at; a quarter of them is held out."""
    guard: bool = True
    """Quantize for a trial and take back what does not help."""

    @override
    def run(self, ctx: Context) -> None:
        if ctx.samples is None:
            return
        links = find_links(ctx.model.graph, ctx.facts.get(Shapes()), _LINEAR)
        if not self.insert:
            links = [link for link in links if self._is_free(ctx, link)]
        if not links:
            return
        seen, held = _split(ctx.samples.take(self.samples))
        stats = observe_halves(
            ctx.model,
            {link.value.name or "": link.axis for link in links},
            {link.value.name or "": link.channels for link in links},
            seen,
            threads=ctx.threads,
            progress=ctx.progress,
        )
        alphas = (None, *_ALPHAS) if self.guard and self.alpha is None else (self.alpha,)
        choices = [moves for alpha in alphas if (moves := self._moves(links, stats, alpha))]
        if self.guard and choices:
            _Guard(ctx, seen, held).run(choices)
        else:
            for move in itertools.chain(*choices):
                _apply(ctx, move)

    @staticmethod
    def _is_free(ctx: Context, link: Link) -> bool:
        if link.maker is None:
            ctx.skip("SMQ104", link.value, "nothing in front can take the division")
        return link.maker is not None

    def _moves(
        self, links: Sequence[Link], stats: Mapping[str, Halves], alpha: float | None
    ) -> list[_Move]:
        found = (self._move(link, stats[link.value.name or ""], alpha) for link in links)
        return sorted((move for move in found if move is not None), key=lambda move: -move.gain)

    def _move(self, link: Link, stats: Halves, alpha: float | None) -> _Move | None:
        readers = link.weights()
        pairs = (*SMOOTHING, *EXPONENTS) if alpha is None else ((alpha, 1.0 - alpha),)
        scale, gain = best_scale(stats, readers, limit=link.limit, exponents=pairs)
        start = noise(stats.all, readers, np.ones(link.channels))
        if gain < self.least_gain_db or start <= 0.0 or (scale == 1.0).all():
            return None
        move = _Move(link, scale.astype(np.float32), gain)
        return move if link.takes(move.scale) else None


def _split(samples: Samples) -> tuple[Samples, Samples]:
    """Samples to look at and samples to judge on."""
    return samples.split(_HELD_OUT) if len(samples) > 1 else (samples, samples)


def _apply(ctx: Context, move: _Move) -> None:
    apply_scale(ctx.edit, move.link, move.scale)
    ctx.note("SMQ101", move.link.value, f"channels scaled, expected gain {move.gain:.1f} dB")
    ctx.edit.count("activations smoothed")


@dataclass
class _Guard:
    """Applies moves and keeps those that bring the int8 model nearer to float."""

    ctx: Context
    seen: Samples
    held: Samples

    def run(self, choices: Sequence[Sequence[_Move]]) -> None:
        """Finds the best of several scalings; in it, what puts in a Mul must earn its time."""
        ctx = self.ctx
        provider = ctx.target.provider
        with Session.open(ctx.model, provider=provider, threads=ctx.threads) as session:
            reference = Reference(session, self.held)
            start = self._fidelity(reference)
            if start is None:
                ctx.skip("SMQ105", None, "nothing in this model can be computed in int8")
                return
            moves = self._best(reference, choices)
            free = [move for move in moves if move.link.maker is not None]
            costly = [move for move in moves if move.link.maker is None]
            best = self._keep(reference, free, start, _LEAST_DB)
            best = self._keep(reference, costly, best, _LEAST_DB_FOR_MUL)
        ctx.note("SMQ103", None, f"int8 on held-out samples: {start:.1f} dB, now {best:.1f} dB")

    def _best(self, reference: Reference, choices: Sequence[Sequence[_Move]]) -> Sequence[_Move]:
        """Returns the choice that comes nearest to float when all of it is done."""
        if len(choices) == 1:
            return choices[0]
        edit = self.ctx.edit
        found = []
        for moves in choices:
            mark, stats = edit.mark(), edit.stats.copy()
            for move in moves:
                apply_scale(edit, move.link, move.scale)
            ratio = self._fidelity(reference)
            found.append(-math.inf if ratio is None else ratio)
            edit.rollback(mark)
            edit.stats = stats
        return choices[found.index(max(found))]

    def _keep(
        self,
        reference: Reference,
        moves: Sequence[_Move],
        best: float,
        least: float,
        depth: int = _DEPTH,
    ) -> float:
        """Applies moves together; where that does not help, each half alone. Returns the new ratio."""
        if not moves:
            return best
        ctx = self.ctx
        mark, stats, told = ctx.edit.mark(), ctx.edit.stats.copy(), len(ctx.diagnostics)
        for move in moves:
            _apply(ctx, move)
        found = self._fidelity(reference)
        if found is not None and found >= best + least:
            return found
        ctx.edit.rollback(mark)
        ctx.edit.stats = stats
        del ctx.diagnostics[told:]
        if len(moves) > 1 and depth:
            half = (len(moves) + 1) // 2
            best = self._keep(reference, moves[:half], best, least, depth - 1)
            return self._keep(reference, moves[half:], best, least, depth - 1)
        what = f"{len(moves)} activations" if len(moves) > 1 else "this activation"
        now = "cannot be quantized" if found is None else f"{found:.1f} dB"
        where = moves[0].link.value if len(moves) == 1 else None
        ctx.skip("SMQ102", where, f"with {what} scaled: {now}, without: {best:.1f} dB")
        return best

    def _fidelity(self, reference: Reference) -> float | None:
        """Returns the signal-to-noise ratio of the worst output in int8, in decibels."""
        ctx = self.ctx
        model = ctx.model.copy()
        trial = Context(
            model,
            Edit(model),
            Facts(model),
            ctx.target_name,
            self.seen.take(_TRIAL_SAMPLES),
            threads=ctx.threads,
        )
        _TRIAL.run(trial)
        if not trial.edit.changed:
            return None
        provider = ctx.target.provider
        with Session.open(model, provider=provider, threads=ctx.threads) as session:
            result = compare(reference, session)
        return -math.inf if result.reason else result.worst("sqnr_db")
