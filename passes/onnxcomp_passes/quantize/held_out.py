"""Samples that a pass does not learn from, and how near a model is to what it was on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.compare import compare
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp.samples import Samples

_HELD_OUT = 0.25
# Identical outputs.
_MOST_DB = 200.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Samples in two parts, with what the model says about them.

    Attributes:
        seen: Samples to learn from.
        judged: Samples to judge by.
        threads: Threads of sessions.
    """

    seen: Samples
    judged: Samples
    threads: int
    _session: Session
    _model: Model

    @classmethod
    def of(cls, ctx: Context, judged: int) -> HeldOut | None:
        """Divides the samples of a pass; None without samples."""
        if ctx.samples is None:
            return None
        seen, held = ctx.samples, ctx.samples
        if len(ctx.samples) > 1:
            seen, held = ctx.samples.split(_HELD_OUT)
        before = ctx.model.copy()
        session = Session.open(before, threads=ctx.threads)
        return cls(seen, held.take(min(judged, len(held))), ctx.threads, session, before)

    def decibels(self, model: Model, *, calibration: bool = False) -> float:
        """Returns the worst ratio of signal to noise over the outputs of a changed model.

        Args:
            model: The changed model.
            calibration: Use samples to learn from, for a choice that the others shall judge.
        """
        samples = self.seen.take(len(self.judged)) if calibration else self.judged
        with Session.open(model, threads=self.threads) as session:
            found = compare(self._session, session, samples)
        decibels = found.worst("sqnr_db")
        if found.reason:
            return -_MOST_DB
        return _MOST_DB if decibels is None else min(decibels, _MOST_DB)
