"""Mends what the linter finds in a quantized model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.bench import Limits, measure
from onnxcomp.compare import compare
from onnxcomp.errors import UserError
from onnxcomp.lint import codes as lint_codes
from onnxcomp.lint.neighbours import PER_CHANNEL
from onnxcomp.lint.repair import STAGES, Repair, Stage
from onnxcomp.lint.report import rules_by_code
from onnxcomp.passbase import Context, Pass
from onnxcomp.probe import probe_feeds
from onnxcomp.runtime import Session, available_providers
from onnxcomp_passes.quantize.opset import find_ranks, obstacle, raise_to
from onnxcomp_passes.simplify.eliminate_dead import EliminateDead

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Sequence

    import numpy as np

    from onnxcomp.bench import Spread
    from onnxcomp.ir import Model

    Feeds = Mapping[str, np.ndarray]

_SAMPLES = 2
# Models above this many bytes are mended without being run.
_LARGEST = 1 << 31
# Rewrites that keep values may move a number over the edge of a rounding here and there.
_LEAST_SQNR_DB = 30.0
# Taking roundings out moves outputs by what they had added; nearly nothing in common means that something
# was computed from values that no longer fit each other (a variance from rounded squares and exact means).
_LEAST_COMMON_DB = 3.0
_OWN_PLAY_DB = 3.0
# As far as noise may let a model look worse against the float one.
_PLAY_DB = 0.5
# How much further the provider may be from what is written than before, and what is close in any case.
_WIDER_DB, _CLOSE_DB = 6.0, 20.0
# What is left of differences in the last place.
_EQUAL_DB = 150.0
_SLOWER = 1.02
_SECONDS = 2.0


@dataclass
class _Trial:
    """A few samples to judge by, and what is known of the model so far.

    Attributes:
        feeds: The samples.
        problem: Why there are none.
        gap: How close the provider's result is to that of the model as it is written.
        kept: Whether anything was mended.
    """

    feeds: Sequence[Feeds]
    problem: str = ""
    gap: float | None = None
    kept: bool = False


class FixQuantization(Pass):
    """Mend what `onnxcomp lint` finds in a quantized model, from whatever tool it comes.

    First what is wrong (axes, scales of biases), then what can be written in another form with the same
    values (int8 activations become uint8, constants in front of a Q become numbers), then what costs time and
    accuracy for nothing (Q and DQ around operators that run in float anyway, a Q in front of a Relu and
    another one behind it, Conv quantized in every run). Each kind is tried on samples, made-up ones where
    there are no real ones: it is taken back when the model is slower with it, when outputs have nothing in
    common with those before, when the provider computes something else than is written, or, with the float
    model as reference, when it leads away from that.

        Conv -> Q -> DQ -> Relu -> Q -> DQ     Conv -> Relu -> Q -> DQ
    """

    name: ClassVar[str] = "fix-quantization"
    codes: ClassVar[Mapping[str, str]] = {
        "FIX101": "What was mended, and what it changed: time of a run, and how far outputs are from those of the model "
        "that came in. Where roundings were taken out, a difference is what they had added.",
        "FIX102": "These fixes were taken back because the model was not faster with them.",
        "FIX103": "These fixes were taken back because outputs differed by more than rounding explains, or because "
        "the provider did not run the model any more.",
        "FIX104": "The model could not be run here, so nothing was measured and nothing compared.",
        **lint_codes(),
    }

    only: tuple[str, ...] = ()
    """Codes of rules to apply, `LNT201`; all when empty."""
    skip: tuple[str, ...] = ()
    """Codes of rules to leave out."""
    larger: bool = True
    """Whether weights of operators that run in float may be stored in float, which is faster and larger."""
    only_faster: bool = True
    """Whether to measure, and to take back what does not make the model faster."""

    @override
    def run(self, ctx: Context) -> None:
        known = rules_by_code()
        for code in (*self.only, *self.skip):
            if code not in known:
                raise UserError(f"no rule has the code {code!r}", hint="see `onnxcomp explain`")
        trial = self._trial(ctx)
        if trial.feeds:
            trial.gap = _gap(ctx.model, trial.feeds)
        self._raise_opset(ctx, trial)
        repair = Repair(
            ctx.model, ctx.edit, ctx.target, self.larger, lambda: EliminateDead().run(ctx)
        )
        for stage in STAGES:
            mark = ctx.edit.mark()
            current = ctx.model.copy()
            done = repair.stage(stage, self._chosen)
            if done:
                self._judge(ctx, trial, current, stage, done, mark)
        if not trial.kept:
            ctx.edit.rollback()

    def _chosen(self, code: str) -> bool:
        return code not in self.skip and (not self.only or code in self.only)

    def _raise_opset(self, ctx: Context, trial: _Trial) -> None:
        """Makes scales by channel possible where a BatchNormalization could go into a quantized Conv."""
        kinds = {node.op_type for node in ctx.model.nodes()}
        wanted = self._chosen("LNT306") and {"BatchNormalization", "DequantizeLinear"} <= kinds
        if not wanted or ctx.model.opset >= PER_CHANNEL or not trial.feeds:
            return
        ranks = find_ranks(ctx.model, ctx.facts.get(Shapes()), trial.feeds[0], PER_CHANNEL)
        if not obstacle(ctx.model, ctx.edit, ranks, PER_CHANNEL):
            raise_to(ctx.model, ctx.edit, ranks, PER_CHANNEL)

    def _trial(self, ctx: Context) -> _Trial:
        """Finds samples that the model takes."""
        if ctx.model.nbytes > _LARGEST:
            return _Trial((), "it is larger than 2 GiB")
        try:
            if ctx.samples is not None:
                return _Trial(list(ctx.samples.take(min(_SAMPLES, len(ctx.samples)))))
            with Session.open(ctx.model, optimization="disable") as session:
                feeds = probe_feeds(ctx.model.signature(), count=_SAMPLES, runner=session)
            return _Trial(feeds)
        except UserError as error:
            return _Trial((), error.message)

    def _judge(
        self,
        ctx: Context,
        trial: _Trial,
        current: Model,
        stage: Stage,
        done: Counter[str],
        mark: int,
    ) -> None:
        """Keeps a stage or takes it back, and says so."""
        what = _words(done)
        if trial.problem or not trial.feeds:
            ctx.note("FIX104", None, f"{what}; not measured: {trial.problem}")
            trial.kept = True
            _count(ctx, done)
            return
        gap = _gap(ctx.model, trial.feeds)
        if gap is None and not _runs(ctx.model, trial.feeds) and _runs(current, trial.feeds):
            ctx.edit.rollback(mark)
            ctx.skip("FIX103", None, f"{what}: the provider does not run the model with them")
            return
        sqnr = _fidelity(current, ctx.model, trial.feeds)
        reason = _objection(ctx, trial, current, stage, sqnr) or _surprise(trial.gap, gap)
        if reason and not stage.demanded:
            ctx.edit.rollback(mark)
            ctx.skip("FIX103", None, f"{what}: {reason}")
            return
        ratio = self._ratio(ctx, current, trial.feeds)
        if ratio is not None and ratio.low > _SLOWER and not stage.demanded:
            ctx.edit.rollback(mark)
            ctx.skip("FIX102", None, f"{what}: {ratio.median:.2f} times the time of a run")
            return
        trial.gap, trial.kept = gap, True
        ctx.note("FIX101", None, f"{what}{_numbers(ratio, sqnr)}")
        _count(ctx, done)

    def _ratio(self, ctx: Context, current: Model, feeds: Sequence[Feeds]) -> Spread | None:
        """Time after by time before; None when not both run."""
        if not self.only_faster or ctx.target.provider not in available_providers():
            return None
        models = {"before": current, "after": ctx.model}
        try:
            found = measure(
                models, feeds, provider=ctx.target.provider, limits=Limits(seconds=_SECONDS)
            )
        except UserError:
            return None
        return found["after"].ratio


def _objection(
    ctx: Context, trial: _Trial, current: Model, stage: Stage, sqnr: float | None
) -> str:
    """Why numbers speak against a stage, empty when they do not."""
    if stage.exact:
        # Some networks turn a change in the last place into another number here and there, and that into
        # another output: what the provider's own arithmetic does to the outputs is no harm.
        own = _LEAST_SQNR_DB if trial.gap is None else trial.gap - _OWN_PLAY_DB
        least = min(_LEAST_SQNR_DB, own)
        worse = sqnr is not None and sqnr < least
        return f"outputs were only {sqnr:.1f} dB above the difference" if worse else ""
    if ctx.reference is not None and not stage.demanded:
        before = _fidelity(ctx.reference, current, trial.feeds)
        after = _fidelity(ctx.reference, ctx.model, trial.feeds)
        if before is None or after is None or after >= before - _PLAY_DB:
            return ""
        return f"further from the float model: {after:.1f} dB instead of {before:.1f} dB"
    if sqnr is not None and sqnr < _LEAST_COMMON_DB and not stage.demanded:
        return f"outputs had next to nothing in common with those before ({sqnr:.1f} dB)"
    return ""


def _surprise(before: float | None, after: float | None) -> str:
    """Why the provider computes something else than is written, where it did not before; or empty."""
    if before is None or after is None or after >= min(before - _WIDER_DB, _CLOSE_DB):
        return ""
    return f"the provider's result was {after:.1f} dB from what is written, {before:.1f} dB before"


def _runs(model: Model, feeds: Sequence[Feeds]) -> bool:
    try:
        with Session.open(model) as session:
            for feed in feeds:
                session.run(feed)
    except UserError:
        return False
    return True


def _gap(model: Model, feeds: Sequence[Feeds]) -> float | None:
    """How close the provider's result is to that of the model as it is written."""
    try:
        with (
            Session.open(model, optimization="disable") as first,
            Session.open(model) as second,
        ):
            return compare(first, second, feeds).worst("sqnr_db")
    except UserError:
        return None


def _fidelity(before: Model, after: Model, feeds: Sequence[Feeds]) -> float | None:
    """How close outputs are when both models run as they are written; None when one does not run."""
    try:
        with (
            Session.open(before, optimization="disable") as first,
            Session.open(after, optimization="disable") as second,
        ):
            return compare(first, second, feeds).worst("sqnr_db")
    except UserError:
        return None


def _words(done: Mapping[str, int]) -> str:
    known = rules_by_code()
    return ", ".join(f"{count} x {known[code].title} ({code})" for code, count in done.items())


def _numbers(ratio: Spread | None, sqnr: float | None) -> str:
    parts = [] if ratio is None else [f"{ratio.median:.2f} times the time of a run"]
    if sqnr is not None:
        parts.append(
            "equal outputs" if sqnr >= _EQUAL_DB else f"outputs {sqnr:.1f} dB above the difference"
        )
    return f": {', '.join(parts)}" if parts else ""


def _count(ctx: Context, done: Mapping[str, int]) -> None:
    known = rules_by_code()
    for code, number in done.items():
        ctx.edit.count(f"{known[code].title} ({code})", number)
