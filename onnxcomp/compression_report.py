"""The record of a `compress` run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from onnxcomp.report import Gate, Report, Step
from onnxcomp.report.contributions import contributions
from onnxcomp.report.rows import model_row, timed_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.diagnostics import Diagnostic
    from onnxcomp.report import Contribution, ModelRow
    from onnxcomp.samples import Samples
    from onnxcomp.trials import SearchOptions, Trial


def compress_report(
    trials: Sequence[Trial],
    chosen: Trial,
    options: SearchOptions,
    data: tuple[Samples, Samples],
    diagnostics: Sequence[Diagnostic],
    seconds: float,
) -> Report:
    """Puts together what was tried, what was chosen, and why.

    Args:
        trials: All candidates, the original first.
        chosen: The one that was taken.
        options: How the search was set up.
        data: Calibration and held-out samples.
        diagnostics: Remarks of all passes and of the search.
        seconds: How long it took.
    """
    calibration, held_out = data
    return Report(
        command="compress",
        options=dataclasses.asdict(options),
        pipeline=chosen.pipeline,
        steps=tuple(Step.of(outcome) for outcome in chosen.outcomes),
        models=tuple(_row(trial, chosen, first=trial is trials[0]) for trial in trials),
        gates=(
            Gate(
                f"{chosen.score.name} drop", options.max_drop, chosen.drop, met=not chosen.rejected
            ),
        ),
        diagnostics=tuple(diagnostics),
        notes=(
            f"calibrated on {calibration.description}",
            f"judged on {held_out.description}",
            *(f"{trial.label}: not taken, {trial.rejected}" for trial in trials if trial.rejected),
        ),
        seeds={"seed": options.seed},
        digests={"calibration": calibration.digest(), "validation": held_out.digest()},
        seconds=seconds,
        contributions=_contributions(trials, chosen),
    )


def _contributions(trials: Sequence[Trial], chosen: Trial) -> tuple[Contribution, ...]:
    """What each step on the way to the chosen candidate added, as far as it was measured by itself."""
    by_label = {trial.label: trial for trial in trials}
    way = [chosen]
    while way[0].base in by_label:
        way.insert(0, by_label[way[0].base])
    rows = [_row(t, None, first=t is trials[0]) for t in way if t.timing is not None]
    return contributions(rows) if len(rows) > 2 else ()


def _row(trial: Trial, chosen: Trial | None, *, first: bool) -> ModelRow:
    label = f"{trial.label} (chosen)" if trial is chosen else trial.label
    row = dataclasses.replace(model_row(label, trial.model), metrics=trial.score.values)
    return row if trial.timing is None else timed_row(row, trial.timing, first=first)
