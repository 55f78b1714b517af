"""What commands that turn one model into another have in common."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.options import finish
from onnxcomp.cli.output import remark
from onnxcomp.cli.settings import settings
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from onnxcomp.cli.options import Conditions, Data, Output
    from onnxcomp.ir import Model
    from onnxcomp.pipeline import Result
    from onnxcomp.report import Contribution, Gate, ModelRow, Report
    from onnxcomp.samples import Samples
    from onnxcomp.snapshots import Snapshots

MEASURE_SECONDS = 10.0


@dataclass(frozen=True)
class Job:
    """A rewrite on its way from the command line to a report.

    Attributes:
        command: The subcommand.
        source: The model that is read.
        target: The file to write.
        output: What the user said about the output.
        data: What the user said about samples.
        conditions: What the user said about how to run.
        samples: The samples, if there are any.
        options: For the report: what else the user could choose.
        snapshots: The models between steps, where they are to be measured as well.
    """

    command: str
    source: Path
    target: Path
    output: Output
    data: Data
    conditions: Conditions
    samples: Samples | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    snapshots: Snapshots | None = None

    def __post_init__(self) -> None:
        if self.conditions.measure and self.output.in_place:
            raise click.UsageError(
                "--measure needs both models, and --in-place leaves one",
                click.get_current_context(),
            )

    def save(self, result: Result) -> None:
        """Writes the new model."""
        with stage("writing the result"):
            result.model.save(
                self.target, in_place=self.output.in_place, external=self.output.external_data
            )

    def report(self, result: Result, before: ModelRow) -> Report:
        """Makes the record of a result that was saved."""
        from onnxcomp.report import Report, Step
        from onnxcomp.report.rows import model_row

        hashed = self.keeps_record
        after = model_row("result", result.model, self.target, digest=hashed)
        rows: tuple[ModelRow, ...] = (before, after)
        added: tuple[Contribution, ...] = ()
        if self.conditions.measure:
            rows = self._measured(rows)
            added = self._contributions(rows)
        return Report(
            command=self.command,
            options={
                "model": self.source,
                **dataclasses.asdict(self.output),
                **dataclasses.asdict(self.data),
                **dataclasses.asdict(self.conditions),
                **self.options,
            },
            pipeline=result.pipeline,
            steps=tuple(Step.of(outcome) for outcome in result.outcomes),
            models=rows,
            diagnostics=result.diagnostics,
            notes=() if self.samples is None else (f"samples: {self.samples.description}",),
            seeds={"seed": self.conditions.seed},
            digests=self._digests(before, after),
            seconds=result.seconds,
            contributions=added,
        )

    @property
    def keeps_record(self) -> bool:
        """Whether the report will be stored, and so needs what takes time to find out."""
        return self.output.report is not None or settings().json

    def before(self) -> ModelRow:
        """Describes the model that is read.

        To be called when it was checked, because its data files are read, and before it may be
        overwritten.
        """
        from onnxcomp.report.rows import file_row

        return file_row("original", self.source, digest=self.keeps_record)

    def _digests(self, before: ModelRow, after: ModelRow) -> dict[str, str]:
        if not self.keeps_record:
            return {}
        found = {"input": before.digest, "output": after.digest}
        if self.samples is not None:
            found["samples"] = self.samples.digest()
        return found

    def _measured(self, rows: tuple[ModelRow, ...]) -> tuple[ModelRow, ...]:
        """Adds speed, memory and fidelity, and the models between steps."""
        from onnxcomp.cli.measure import fidelity_rows, speed_rows
        from onnxcomp.report.rows import model_row

        between = {} if self.snapshots is None else self.snapshots.models
        models: dict[str, Model | Path] = {"original": self.source, **between}
        models["result"] = self.target
        first, last = rows
        rows = (first, *(model_row(name, found) for name, found in between.items()), last)
        rows = speed_rows(
            rows, models, self.samples, seed=self.conditions.seed, seconds=MEASURE_SECONDS
        )
        return fidelity_rows(rows, models, self.samples, seed=self.conditions.seed)

    def _contributions(self, rows: tuple[ModelRow, ...]) -> tuple[Contribution, ...]:
        """What each step added, where there are several."""
        from onnxcomp.report.contributions import contributions

        if self.snapshots is None or not self.snapshots.models:
            return ()
        *others, last = contributions(rows)
        if not self.snapshots.last:
            return tuple(others)  # the last step found nothing to do
        return (*others, dataclasses.replace(last, step=self.snapshots.last))


def conclude(job: Job, result: Result, gates: tuple[Gate, ...] = ()) -> int:
    """Saves a result, reports it, and returns the exit code."""
    before = job.before()
    job.save(result)
    report = job.report(result, before).with_(gates=gates)
    if job.options.get("explain"):
        report = report.with_(explanation=result.explanation)
    code = finish(report, job.output)
    remark(f"wrote {job.target}")
    return code
