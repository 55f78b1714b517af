"""Trying something on a model: what is taken back, and samples that only judge."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from onnxcomp.compare import Reference
from onnxcomp.quant.recovery import Judge
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context

Item = TypeVar("Item")
# Every fourth sample only judges.
EVERY = 4


def divide(samples: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Returns samples to fit to and those held out: every fourth; of two or three the last, of one none."""
    if len(samples) < EVERY:
        few = max(len(samples) - 1, min(len(samples), 1))
        return samples[:few], samples[few:]
    rest = [each for index, each in enumerate(samples) if index % EVERY != EVERY - 1]
    return rest, samples[EVERY - 1 :: EVERY]


@contextmanager
def tentatively(ctx: Context) -> Iterator[None]:
    """Takes back what is done to the model inside, and what was counted."""
    mark, stats = ctx.edit.mark(), ctx.edit.stats.copy()
    try:
        yield
    finally:
        ctx.edit.rollback(mark)
        ctx.edit.stats = stats


@contextmanager
def judge_by(
    ctx: Context, model: Model, samples: Sequence[Mapping[str, np.ndarray]]
) -> Iterator[Judge]:
    """Gives what tells how near other models are to a model on samples."""
    with Session.open(model, threads=ctx.threads) as session:
        yield Judge(Reference(session, samples), ctx.threads)
