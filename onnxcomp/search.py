"""Candidates: building them, judging their quality, timing them side by side, choosing one."""

from __future__ import annotations

import dataclasses
import glob
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.analysis.sensitivity import most_harmful, node_damage, quantized_nodes
from onnxcomp.bench import Limits, measure
from onnxcomp.compare import Reference
from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.errors import UserError
from onnxcomp.ir import Edit
from onnxcomp.metrics import evaluate
from onnxcomp.optimization import optimize
from onnxcomp.passbase import follow
from onnxcomp.pipeline import Pipeline
from onnxcomp.pruned import combined, pruned
from onnxcomp.recipe import make
from onnxcomp.runtime import Session
from onnxcomp.samples import joined
from onnxcomp.stages import stage
from onnxcomp.targets import load_target
from onnxcomp.trials import SearchOptions, Trial
from onnxcomp.variants import REPAIRS, REST, TABLES, has_tables, variants

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from onnxcomp.analysis.sensitivity import NodeDamage
    from onnxcomp.bench import Benchmark
    from onnxcomp.ir import Model
    from onnxcomp.metrics import Metric, Score
    from onnxcomp.passbase import Outcome, Progress
    from onnxcomp.samples import Samples
    from onnxcomp.variants import Step, Variant

# A model that is this much slower than another one may only look so.
NOISE = 0.02
# A file that is this much smaller is no better.
SIMILAR = 0.05
# When quality suffers, the nodes that cause these shares of the damage go back to float, in turn.
GIVEN_BACK = (0.3, 0.6, 0.85, 0.97)
DAMAGE_SECONDS = 30.0
NOISE_SAMPLES = 8
LATENCY_SAMPLES = 4
_QUICK_SECONDS = 1.0


@dataclass
class Search:
    """The state of one search."""

    original: Model
    calibration: Samples
    held_out: Samples
    metric: Metric
    options: SearchOptions
    progress: Progress
    trials: list[Trial] = field(default_factory=list)
    notes: list[Diagnostic] = field(default_factory=list)

    def __enter__(self) -> Search:
        self.session = Session.open(
            self._runnable(self.original),
            threads=self.options.threads,
            provider=self.options.provider,
        )
        self.reference = Reference(self.session, self.held_out)
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def _runnable(self, model: Model) -> Model | Path:
        """The file itself where there is one: the runtime maps its weights instead of copying."""
        return (model.runnable_path or model) if model is self.original else model

    def run(self) -> None:
        """Tries everything worth trying, then measures what could be taken."""
        with stage("judging the original"):
            score = self._score(self.session)
        self.trials.append(Trial("original", "", self.original, (), score, 0.0))
        simplified = self._simplify()
        with self.progress(self.options.trials, "trying candidates") as task:
            for trial in itertools.islice(self._candidates(simplified), self.options.trials):
                self.trials.append(trial)
                task.advance()
        self._measure()
        self._polish()

    def _simplify(self) -> Trial:
        feeds = [self.held_out.first()]
        made = optimize(
            self.original,
            target=self.options.target,
            samples=feeds,
            threads=self.options.threads,
            progress=self.progress,
            inline_functions=True,  # nothing inside a function is quantized
        )
        self.notes.extend(made.diagnostics)
        trial = self._judge("simplified", made.pipeline, made.model, made.outcomes)
        trial = dataclasses.replace(trial, base=self.trials[0].label)
        self.trials.append(trial)
        return trial

    def _candidates(self, simplified: Trial) -> Iterator[Trial]:
        """Yields everything worth trying; whoever asks stops when it is enough."""
        built: dict[str, Variant] = {}
        if self.options.prune:
            yield from pruned(self, simplified)
        yield from self._quantized(simplified, built)
        if self.options.prune:
            yield from combined(self, built)

    def _quantized(self, simplified: Trial, built: dict[str, Variant]) -> Iterator[Trial]:
        """Yields quantized candidates: all variants, then repairs of the best one where none is good enough.

        Args:
            simplified: What they are made from.
            built: Gets the variant of each by its label.
        """
        prepared = self.prepared(simplified)
        options = self.options
        trials: list[Trial] = []
        found = variants(
            load_target(options.target),
            batch=options.batch,
            prefer=options.prefer,
            contrib=options.contrib,
        )
        rejected: set[str] = set()
        for variant in (v for v in found if v.suits(prepared.model)):
            if variant.after and variant.after not in rejected:
                continue
            if made := self.build(prepared, variant):
                built[made.label] = variant
                rejected |= {made.label} if made.rejected else set()
                trials.append(made)
                yield made
        yield from self._more(prepared, trials, built)

    def _more(
        self, prepared: Trial, trials: Sequence[Trial], built: Mapping[str, Variant]
    ) -> Iterator[Trial]:
        """Yields what can be made of candidates: repaired ones where none is good enough, smaller ones."""
        static = [trial for trial in trials if built[trial.label].is_static]
        if static and all(trial.rejected for trial in static):
            best = min(static, key=lambda trial: trial.drop)
            yield from self._repaired(prepared, best, built[best.label])
        yield from self._smaller(tuple(trials))

    def _repaired(self, prepared: Trial, best: Trial, variant: Variant) -> Iterator[Trial]:
        """Repairs the rounding of a candidate; gives the nodes that hurt most back to float, in turn."""
        mended = self.continued(best, f"{best.label}, repaired", REPAIRS)
        if mended is not None:
            yield mended
            if not mended.rejected:
                return
            best = min(best, mended, key=lambda trial: trial.drop)
        damages = self._damages(prepared, best)
        known: set[str] = set()
        for share in GIVEN_BACK:
            names = most_harmful(damages, share)
            if not names or set(names) == known:
                continue
            known = set(names)
            label = f"{variant.label}, {len(names)} nodes in float"
            made = self.build(prepared, variant.without(_others(prepared, best, names)), label)
            if made is None:
                return
            yield made
            if not made.rejected:
                return

    def _polish(self) -> None:
        """Repairs the rounding of the candidate that would be chosen; that takes no time when it runs."""
        chosen = self.choose()
        if chosen.reference is None or not _can_be_repaired(chosen):
            return
        made = self.continued(chosen, f"{chosen.label}, repaired", REPAIRS)
        if made is not None:
            self.trials.append(dataclasses.replace(made, timing=chosen.timing))

    def _smaller(self, trials: Sequence[Trial]) -> Iterator[Trial]:
        """Stores tables of good candidates in fewer bits, and for size all other weights too."""
        for trial in trials:
            if trial.rejected or trial.label.startswith("weights"):
                continue
            if self.options.prefer == "size":
                made = self.continued(trial, f"{trial.label}, other weights in 8 bits", (REST,))
            elif has_tables(trial.model):
                made = self.continued(trial, f"{trial.label}, tables in 8 bits", (TABLES,))
            else:
                continue
            if made is not None:
                yield made

    def prepared(self, simplified: Trial) -> Trial:
        """Returns a candidate with its weights in a form that loses less in small numbers."""
        steps = tuple(make(name, {}) for name in ("pool-means", "fuse-pointwise", "equalize"))
        made = Pipeline(steps, target=self.options.target).run(
            _named(simplified.model),
            samples=self.calibration,
            threads=self.options.threads,
            progress=self.progress,
            on_failure="skip",
        )
        return dataclasses.replace(
            simplified,
            model=made.model,
            pipeline=f"{simplified.pipeline},{made.pipeline}",
            outcomes=(*simplified.outcomes, *made.outcomes),
        )

    def build(self, prepared: Trial, variant: Variant, label: str = "") -> Trial | None:
        """Builds and judges one quantized candidate; None when it cannot be built."""
        prepared = dataclasses.replace(prepared, reference=prepared.model)
        return self.continued(prepared, label or variant.label, variant.steps)

    def continued(self, before: Trial, label: str, steps: Sequence[Step]) -> Trial | None:
        """Runs passes on a candidate and judges what comes out; None when nothing does."""
        made_steps = tuple(make(name, dict(options)) for name, options in steps)
        pipeline = Pipeline(made_steps, target=self.options.target)
        try:
            made = pipeline.run(
                before.model,
                samples=self.calibration,
                threads=self.options.threads,
                progress=self.progress,
                reference=before.reference,
            )
            if not made.changed:
                self.notes.extend(made.diagnostics)
                return None
            text = f"{before.pipeline},{made.pipeline}"
            outcomes = (*before.outcomes, *made.outcomes)
            judged = self._judge(label, text, made.model, outcomes)
            return dataclasses.replace(judged, base=before.label, reference=before.reference)
        except UserError as error:
            self.notes.append(
                Diagnostic(
                    "CMP201", Severity.WARNING, f"{label}: {error.message}", Location("model")
                )
            )
            return None

    def _damages(self, simplified: Trial, trial: Trial) -> list[NodeDamage]:
        with (
            stage("looking for the nodes that hurt"),
            self.progress(1.0, "looking for the nodes that hurt") as task,
        ):
            return node_damage(
                simplified.model,
                trial.model,
                self.calibration.take(NOISE_SAMPLES),
                threads=self.options.threads,
                seconds=DAMAGE_SECONDS,
                progress=follow(task),
            )

    def _judge(self, label: str, pipeline: str, model: Model, outcomes: Sequence[Outcome]) -> Trial:
        with (
            stage(f"judging {label}"),
            Session.open(
                model, threads=self.options.threads, provider=self.options.provider
            ) as session,
        ):
            score = self._score(session)
        drop = self.metric.drop(self.trials[0].score, score)
        rejected = ""
        if drop > self.options.max_drop:
            rejected = f"{score.name} drops by {drop:.2%}, limit {self.options.max_drop:.2%}"
        return Trial(label, pipeline, model, tuple(outcomes), score, drop, rejected=rejected)

    def _score(self, session: Session) -> Score:
        return evaluate(
            self.metric,
            session,
            self.held_out,
            reference=self.reference,
            labels=self.held_out.labels,
        )

    def by_speed(self, trials: Sequence[Trial]) -> list[Trial]:
        """Returns those candidates, of some, that are faster than the original, the fastest first."""
        first = self.trials[0]
        found = self._timed((first, *trials), _QUICK_SECONDS)
        timed = [dataclasses.replace(trial, timing=found[trial.label]) for trial in trials]
        return sorted((t for t in timed if t.ratio < 1), key=lambda trial: trial.ratio)

    def _measure(self) -> None:
        """Times everything that could be taken, side by side with the original."""
        runnable = [trial for trial in self.trials if not trial.rejected]
        with stage("measuring latency"):
            found = self._timed(runnable, self.options.seconds, memory=self.options.memory)
        self.trials = [
            dataclasses.replace(trial, timing=found[trial.label]) if not trial.rejected else trial
            for trial in self.trials
        ]

    def _timed(self, trials: Sequence[Trial], seconds: float, *, memory: bool = False) -> Benchmark:
        with self.progress(1.0, "measuring latency") as task:
            return measure(
                {trial.label: self._runnable(trial.model) for trial in trials},
                _joined(self.held_out, self.options.batch),
                provider=self.options.provider,
                threads=self.options.threads,
                limits=Limits(seconds=seconds, seed=self.options.seed),
                progress=follow(task),
                memory=memory,
            )

    def choose(self) -> Trial:
        """The fastest candidate inside the limit, the original included; of equally fast ones the smallest.

        If size is preferred, the smallest one that is not slower than what came in. Of those that are
        about equal in both, the one with the best quality.
        """
        possible = [trial for trial in self.trials if not trial.rejected]
        limit = 1.0
        if self.options.prefer == "speed":
            limit = min(trial.ratio for trial in possible)
        near = [trial for trial in possible if trial.ratio <= limit * (1 + NOISE)]
        smallest = min(_bytes(trial) for trial in near)
        similar = [trial for trial in near if _bytes(trial) <= smallest * (1 + SIMILAR)]
        return min(similar, key=lambda trial: (trial.drop, *_size(trial)))


def _named(model: Model) -> Model:
    """A copy in which every node of the main graph has a name, by which it can be given back to float."""
    copy = model.copy()
    edit = Edit(copy)
    for node in copy.graph:
        node.name = node.name or edit.fresh(node.op_type)
    return copy


def _bytes(trial: Trial) -> int:
    return trial.model.nbytes


def _size(trial: Trial) -> tuple[int, int]:
    return _bytes(trial), sum(1 for _ in trial.model.nodes())


def _joined(samples: Samples, batch: int) -> list[Mapping[str, Any]]:
    """Samples as runs will take them: several joined along the first axis, repeated if there are few."""
    if batch == 1:
        return list(samples.take(LATENCY_SAMPLES))
    found = list(itertools.islice(itertools.cycle(samples.take(batch)), batch))
    return [joined(found)]


def _can_be_repaired(trial: Trial) -> bool:
    """Whether a candidate has rounding that was not repaired yet."""
    steps = [outcome.step for outcome in trial.outcomes if outcome.changed]
    repairs = tuple(name for name, _ in REPAIRS)
    return any(step.startswith("quantize-static") for step in steps) and not any(
        step.startswith(repairs) for step in steps
    )


def _others(prepared: Trial, best: Trial, names: Sequence[str]) -> tuple[str, ...]:
    """The nodes, as patterns, that a candidate has not quantized, and those that are given back."""
    kept = {node.name for node in quantized_nodes(best.model)} - set(names)
    others = [node.name for node in prepared.model.graph if node.name and node.name not in kept]
    return tuple(glob.escape(name) for name in others)
