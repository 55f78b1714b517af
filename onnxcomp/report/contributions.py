"""What each of several steps in a row contributed to the size, the speed and the quality of the result."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from onnxcomp.report.record import Contribution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.report.record import ModelRow


def contributions(rows: Sequence[ModelRow]) -> tuple[Contribution, ...]:
    """Compares each model with the one before it.

    Args:
        rows: Models, each made from the one before it, the original first. What was not measured
            stays unknown.
    """
    return tuple(
        Contribution(
            after.label,
            size=_quotient(after.bytes, before.bytes),
            speed=_quotient(_speed(after), _speed(before)),
            metrics=_differences(before.metrics, after.metrics),
        )
        for before, after in pairwise(rows)
    )


def _speed(row: ModelRow) -> float | None:
    """How many times as fast as the first model, which has no number of its own."""
    if row.ratio is not None:
        return row.ratio.median
    return None if row.latency is None else 1.0


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _differences(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in after.items() if name in before}
