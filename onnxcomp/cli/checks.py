"""Limits on how far a result may be from the original: from options, or from a recipe's `[check]`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.errors import RecipeError, quoted
from onnxcomp.report import Gate
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.compare import Comparison
    from onnxcomp.ir import Model
    from onnxcomp.samples import Samples

# What can be limited: the name of the limit, the number in the comparison, the sign of "better".
LIMITS = {
    "min-sqnr": ("sqnr_db", 1),
    "min-cosine": ("cosine", 1),
    "min-top1": ("top1", 1),
    "max-absolute-error": ("max_abs", -1),
    "max-relative-error": ("max_relative", -1),
}


def check_names(limits: Mapping[str, float]) -> None:
    """Looks for misspelt limits before any work begins.

    Raises:
        RecipeError: If a limit is unknown.
    """
    for name in limits:
        if name not in LIMITS:
            raise RecipeError(f"unknown check {quoted(name)}", hint=f"known: {', '.join(LIMITS)}")


def gates_of(limits: Mapping[str, float], found: Comparison) -> tuple[Gate, ...]:
    """Holds a comparison against limits; the worst output counts."""
    gates = []
    for name, limit in limits.items():
        field, sign = LIMITS[name]
        values = [getattr(output, field) for output in found.outputs]
        known = [value for value in values if value is not None]
        worst = min(known, key=lambda value: sign * value) if known else None
        # What cannot be measured (top-1 of something that is no score) keeps no promise.
        met = worst is not None and sign * worst >= sign * limit and not found.reason
        gates.append(Gate(name, float(limit), float("nan") if worst is None else worst, met))
    return tuple(gates)


def checked(
    limits: Mapping[str, float],
    before: Model,
    after: Model,
    samples: Samples | None,
    *,
    seed: int,
) -> tuple[Gate, ...]:
    """Compares two models and holds the differences against limits."""
    from onnxcomp.compare import compare
    from onnxcomp.probe import probe_feeds
    from onnxcomp.runtime import Session

    if not limits:
        return ()
    with stage("checking the result"), Session.open(before) as a, Session.open(after) as b:
        feeds = (
            samples if samples is not None else probe_feeds(before.signature(), seed=seed, runner=a)
        )
        return gates_of(limits, compare(a, b, feeds))
