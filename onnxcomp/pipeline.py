"""Runs passes one after the other as transactions: each one is checked, and taken back if it broke something."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import override

from onnxcomp import recipe
from onnxcomp.analysis.facts import Facts
from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.errors import PassFailedError, RecipeError, UserError
from onnxcomp.ir import Edit, Model
from onnxcomp.ir.consistency import inconsistency
from onnxcomp.passbase import QUIET, Context, NeedsReference, Outcome, Pass
from onnxcomp.recipe import Fixpoint, Recipe
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.explanation import Explanation
    from onnxcomp.ir.model import Source
    from onnxcomp.passbase import Progress
    from onnxcomp.report import Report
    from onnxcomp.samples import Samples


# What a later run of the same pass says anew if it still holds.
_PASSING = frozenset({Severity.SKIP, Severity.NEAR})


class Instrument(Protocol):
    """Somebody who watches a pipeline run: verifier, dumper, timer."""

    def before(self, step: Pass, model: Model) -> None:
        """Called before a pass runs."""
        ...

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        """Called after a pass changed the model; a text says why its work must be taken back."""
        ...


@dataclass(frozen=True)
class Result:
    """What a pipeline made.

    Attributes:
        model: The rewritten model; the source is unchanged.
        outcomes: What each pass did, in order.
        pipeline: Text form of what was run.
        seconds: How long it took.
    """

    model: Model
    outcomes: tuple[Outcome, ...]
    pipeline: str
    seconds: float = 0.0
    notes: tuple[Diagnostic, ...] = ()

    @property
    def diagnostics(self) -> tuple[Diagnostic, ...]:
        """Everything that was left alone or needs a look, in order.

        A pass that ran several times says what it left alone once: what still holds at the end.
        """
        last = {outcome.step: index for index, outcome in enumerate(self.outcomes)}
        return (
            *self.notes,
            *(
                found
                for index, outcome in enumerate(self.outcomes)
                for found in outcome.diagnostics
                if found.severity not in _PASSING or last[outcome.step] == index
            ),
        )

    @property
    def explanation(self) -> Explanation:
        """What each pass and rule did, where if the run was to be explained, and what was nearly done."""
        from onnxcomp.explanation import explain

        return explain(self.outcomes, self.model)

    @property
    def report(self) -> Report:
        """The record of the run, to be printed or stored as JSON."""
        from onnxcomp.report import Report, Step
        from onnxcomp.report.rows import model_row

        return Report(
            command="run",
            pipeline=self.pipeline,
            steps=tuple(Step.of(outcome) for outcome in self.outcomes),
            models=(model_row("result", self.model),),
            diagnostics=self.diagnostics,
            seconds=self.seconds,
            explanation=self.explanation if any(run.changes for run in self.outcomes) else None,
        )

    @property
    def changed(self) -> bool:
        """Whether any pass changed the model."""
        return any(outcome.changed for outcome in self.outcomes)


@dataclass(frozen=True)
class Pipeline:
    """Steps and who watches them.

    Attributes:
        steps: Passes and fixpoints, in order.
        instruments: Called around every pass.
        target: Name of the target the passes plan for.
    """

    steps: tuple[Pass | Fixpoint, ...]
    instruments: tuple[Instrument, ...] = ()
    target: str = "cpu"

    @classmethod
    def parse(cls, text: str, *, target: str = "cpu") -> Pipeline:
        """Reads the text form: `fold-constants,quantize-static{weights=int8}`.

        Raises:
            RecipeError: If a name or an option is unknown, naming near ones.
        """
        return cls(recipe.parse_steps(text), target=target)

    @classmethod
    def from_recipe(cls, path: str | Path) -> Pipeline:
        """Reads a TOML recipe."""
        found = recipe.read_recipe(Path(path))
        return cls(found.steps, target=found.target)

    @override
    def __str__(self) -> str:
        return recipe.format_steps(self.steps)

    def run(
        self,
        source: Source,
        *,
        samples: Samples | object | None = None,
        threads: int = 0,
        progress: Progress = QUIET,
        on_failure: Literal["raise", "skip"] = "raise",
        reproducer: str | Path | None = None,
        explain: bool = False,
        reference: Source | None = None,
    ) -> Result:
        """Rewrites a model.

        Args:
            source: Path, `ModelProto`, `onnx_ir.Model`, GraphSurgeon graph or `Model`; never changed.
            samples: Calibration data: whatever `load_samples` takes.
            threads: Threads for sessions that passes open, 0 for the runtime's choice.
            progress: Progress bars.
            on_failure: What to do when a pass raises or breaks the model: it is rolled back in any
                case; then the error is raised, or the run goes on without that pass.
            reproducer: Folder for the model before the failing pass and the steps that remained; by
                default one is made in the system's temporary folder.
            explain: Record which nodes became what, for `Result.explanation`.
            reference: The model before anything lossy was done to it, for passes that compare with it;
                by default the model as it is before the first lossy pass.

        Returns:
            The new model and what was done to it.

        Raises:
            UserError: If the model, the samples or a requirement of a pass are not met.
            PassFailedError: If a pass failed and `on_failure` is "raise".
        """
        start = time.perf_counter()
        model = Model.load(source)
        run = _Run(self, model, _samples(samples, model), threads, progress, on_failure, reproducer)
        if reference is not None:
            run.reference = Model.load(reference)
        if explain:
            from onnxcomp.ir.trace import Trace

            run.edit.trace = Trace()
        run.check_requirements()
        run.steps(self.steps)
        seconds = time.perf_counter() - start
        return Result(model, tuple(run.outcomes), str(self), seconds, model.notes)


def _samples(samples: Samples | object | None, model: Model) -> Samples | None:
    if samples is None:
        return None
    from onnxcomp.samples import Samples, load_samples

    if isinstance(samples, Samples):
        return samples
    return load_samples(samples, model.signature().inputs)


@dataclass
class _Run:
    """The state of one run of a pipeline."""

    pipeline: Pipeline
    model: Model
    samples: Samples | None
    threads: int
    progress: Progress
    on_failure: str
    reproducer: str | Path | None
    outcomes: list[Outcome] = field(default_factory=list)
    reference: Model | None = None

    def __post_init__(self) -> None:
        self.edit = Edit(self.model)
        self.facts = Facts(self.model)
        self._compares = any(_compares(step) for step in _flat(self.pipeline.steps))

    def check_requirements(self) -> None:
        """Refuses to start when some pass could not do its work."""
        known = self.reference is not None
        for step in _flat(self.pipeline.steps):
            for need in step.needs:
                if reason := need.unmet(self.model, self.samples):
                    raise UserError(f"{step.name} {reason}")
            if _compares(step) and not known:
                raise UserError(
                    f"{step.name} compares with the model before it was quantized or pruned",
                    hint="give that model as --reference (reference=), or put this pass behind the one "
                    "that quantizes or prunes",
                )
            known = known or not step.lossless

    def steps(self, steps: Sequence[Pass | Fixpoint]) -> bool:
        """Runs steps in order; returns whether any changed the model."""
        changed = False
        for index, step in enumerate(steps):
            if isinstance(step, Fixpoint):
                changed |= self.fixpoint(step)
            else:
                changed |= self.step(step, steps[index + 1 :])
        return changed

    def fixpoint(self, fixpoint: Fixpoint) -> bool:
        """Repeats steps until each of them ran without a change since the last one."""
        idle = 0
        changed = False
        for step in list(fixpoint.steps) * fixpoint.limit:
            if idle >= len(fixpoint.steps):
                break
            if self.steps([step]):
                changed, idle = True, 0
            else:
                idle += 1
        return changed

    def step(self, step: Pass, remaining: Sequence[Pass | Fixpoint]) -> bool:
        """Runs one pass as a transaction."""
        if self._compares and self.reference is None and not step.lossless:
            self.reference = self.model.copy()
        ctx = Context(
            self.model,
            self.edit,
            self.facts,
            self.pipeline.target,
            self.samples,
            self.progress,
            self.threads,
            self.reference,
        )
        for instrument in self.pipeline.instruments:
            instrument.before(step, self.model)
        self.edit.begin(step.name)
        start = time.perf_counter()
        failure: Exception | None = None
        try:
            with stage(step.name):
                step.run(ctx)
        except UserError:
            self.edit.rollback()
            raise
        except Exception as error:  # noqa: BLE001 - a pass may be foreign code: whatever it raises
            failure = error
        reason = f"{type(failure).__name__}: {failure}" if failure else self.broken()
        outcome = self.outcome(step, ctx, start)
        if not reason and outcome.changed:
            reason = self.objection(step, outcome)
        if reason:
            self.take_back(step, remaining, outcome, reason, failure)
            return False
        if outcome.changed:
            self.facts.keep(step.preserves)
        self.outcomes.append(outcome)
        return outcome.changed

    def broken(self) -> str:
        """Returns how a pass broke the model's structure, empty if it did not."""
        return inconsistency(self.model) if self.edit.changed else ""

    def objection(self, step: Pass, outcome: Outcome) -> str:
        """Returns why some instrument wants the work of a pass taken back."""
        for instrument in self.pipeline.instruments:
            if reason := instrument.after(step, self.model, outcome):
                return reason
        return ""

    def outcome(self, step: Pass, ctx: Context, start: float) -> Outcome:
        """Records what a pass did."""
        seconds = time.perf_counter() - start
        trace = self.edit.trace
        return Outcome(
            recipe.format_step(step),
            self.edit.changed,
            dict(sorted(self.edit.stats.items())),
            tuple(ctx.diagnostics),
            seconds,
            changes=() if trace is None else trace.finish(self.edit.mark(), self.model.nodes()),
        )

    def take_back(
        self,
        step: Pass,
        remaining: Sequence[Pass | Fixpoint],
        outcome: Outcome,
        reason: str,
        failure: Exception | None,
    ) -> None:
        """Rolls a failed pass back, leaves a reproducer, and raises or goes on."""
        self.edit.rollback()
        self.facts.keep(())
        folder = self.write_reproducer(step, remaining)
        message = f"pass {recipe.format_step(step)} failed and was rolled back: {reason.splitlines()[0][:300]}"
        if self.on_failure == "raise":
            raise PassFailedError(message, hint=f"reproducer: {folder}") from failure
        note = Diagnostic(
            "PAS101", Severity.WARNING, message, Location("model"), f"reproducer: {folder}"
        )
        self.outcomes.append(
            Outcome(outcome.step, False, {}, (*outcome.diagnostics, note), outcome.seconds, reason)
        )

    def write_reproducer(self, step: Pass, remaining: Sequence[Pass | Fixpoint]) -> str:
        """Writes the model before the failing pass and the steps from it on."""
        if self.reproducer is None:
            folder = Path(tempfile.mkdtemp(prefix="onnxcomp-reproducer-"))
        else:
            folder = Path(self.reproducer)
            folder.mkdir(parents=True, exist_ok=True)
        text = recipe.write_recipe(Recipe((step, *remaining), self.pipeline.target))
        try:
            (folder / "recipe.toml").write_text(text, encoding="utf-8")
            self.model.save(folder / "model.onnx")
        except (UserError, OSError) as error:
            return f"could not be written to {folder}: {error}"
        return str(folder)


def _compares(step: Pass) -> bool:
    return any(isinstance(need, NeedsReference) for need in step.needs)


def _flat(steps: Sequence[Pass | Fixpoint]) -> list[Pass]:
    found: list[Pass] = []
    for step in steps:
        found.extend(_flat(step.steps) if isinstance(step, Fixpoint) else [step])
    return found


def as_pipeline(steps: str | Pipeline | Pass | Sequence[Any], *, target: str = "cpu") -> Pipeline:
    """Returns a pipeline for whatever describes one: text, a pass, a sequence of passes."""
    if isinstance(steps, Pipeline):
        return steps
    if isinstance(steps, str):
        return Pipeline.parse(steps, target=target)
    if isinstance(steps, Pass):
        return Pipeline((steps,), target=target)
    found = list(steps)
    if all(isinstance(step, (Pass, Fixpoint)) for step in found):
        return Pipeline(tuple(found), target=target)
    raise RecipeError(
        "a pipeline is made of passes, or of text", hint="see onnxcomp.Pipeline.parse"
    )
