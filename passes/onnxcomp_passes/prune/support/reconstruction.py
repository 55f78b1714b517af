"""Fits the layers that are left after pruning to what they gave before, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.quant.readers import layer_of
from onnxcomp.quant.segments import NoTensorError, Segment, Walk, split
from onnxcomp_passes.prune.support.regression import Choice, Problem, fit_layer
from onnxcomp_passes.prune.support.trying import divide, judge_by, tentatively
from onnxcomp_passes.prune.support.twins import twin_of
from onnxcomp_passes.prune.support.weights import bias_of, put_weight

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model, ir
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.regression import Rows
    from onnxcomp_passes.prune.support.removal import Removal
    from onnxcomp_passes.prune.support.twins import Seen, Twin

    State = dict[str, np.ndarray]

__all__ = ["Reconstruction", "bias_of", "put_weight"]

_FEWEST = 4
# Rows of a sample that a layer is fitted on, and numbers in the rows of all samples.
_ROWS, _FEWEST_ROWS = 1024, 32
_NUMBERS = 1 << 26


@dataclass
class Reconstruction:
    """Fits layers in order, each on what the layers before it give after they were fitted.

    He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), section 3.1, with the
    inputs of the pruned model and the outputs of the original one. A layer whose output is added to
    something that is there already makes up for what that lost (section 3.2 there).

    How each layer is fitted, and whether, is decided on held-out samples. Then it is done once more on
    all of them; that stays where it is as near on those that were held out, which by then it knows.

    Attributes:
        ctx: The pass that prunes.
        before: The model before.
        removal: What was removed.
        choices: How layers are fitted, by name; found by `search`.
        fitted: Names of the layers that were.
        is_final: Whether they were fitted on all samples in the end.
        problem: Why nothing could be fitted, where it was not for want of samples.
    """

    ctx: Context
    before: Model
    removal: Removal
    choices: dict[str, list[Choice | None]] = field(default_factory=dict)
    fitted: list[str] = field(default_factory=list)
    is_final: bool = False
    problem: str = ""

    def run(self, limit: int) -> tuple[float, float]:
        """Fits all layers; returns the signal-to-noise ratio on held-out samples before and after, in dB.

        That after is of layers that were fitted without them.
        """
        with tentatively(self.ctx):
            first, last = self.search(limit)
        self.finish(limit, last)
        return first, last

    def search(self, limit: int) -> tuple[float, float]:
        """Fits all layers on three of four samples, which leaves some to judge by; returns as `run` does."""
        samples = list(islice(self.ctx.samples or (), limit))
        if len(samples) < _FEWEST:
            return math.nan, math.nan
        with judge_by(self.ctx, self.before, divide(samples)[1]) as judge:
            first = judge.decibels(self.ctx.model)
            mark = self.ctx.edit.mark()
            if not self._twins():
                self.problem = "none multiplies with a constant of float32 that nothing else reads"
                return first, first
            try:
                self._walk(samples, final=False)
            except NoTensorError as error:
                self.ctx.edit.rollback(mark)
                self.fitted.clear()
                self.choices.clear()
                self.problem = error.message
                return math.nan, math.nan
            last = judge.decibels(self.ctx.model)
        if not last > first:
            self.ctx.edit.rollback(mark)
            self.fitted.clear()
            self.choices.clear()
        return first, last

    def finish(self, limit: int, least: float) -> None:
        """Fits the layers as the search has found to be best: on all samples, where that is no worse.

        Args:
            limit: How many samples to look at.
            least: How near to the original the search came.
        """
        if not self.choices:
            return
        samples = list(islice(self.ctx.samples or (), limit))
        mark, stats = self.ctx.edit.mark(), self.ctx.edit.stats.copy()
        self.is_final = True
        self._walk(samples, final=True)
        with judge_by(self.ctx, self.before, divide(samples)[1]) as judge:
            self.is_final = judge.decibels(self.ctx.model) >= least
        if not self.is_final:
            self.ctx.edit.rollback(mark)
            self.ctx.edit.stats = stats
            self._walk(samples, final=True)

    def _walk(self, samples: Sequence[State], *, final: bool) -> None:
        self.fitted.clear()
        twins = self._twins()
        new = split(self.ctx.model.graph, [twin.layer.node for twin in twins.values()])
        old = split(self.before.graph, [twin.before.node for twin in twins.values()])
        walks = (
            Walk.start(self.ctx.model, samples, self.ctx.threads),
            Walk.start(self.before, samples, self.ctx.threads),
        )
        with self.ctx.progress(len(new), "fitting what is left") as task:
            # Behind the last layer there may be something in one of them alone.
            for segment, original in zip(new, old, strict=False):
                twin = twins.pop(_name(segment.end), None)
                if twin is None:
                    walks[0].advance(segment, list(walks[0].run(segment)))
                    walks[1].advance(original, list(walks[1].run(original)))
                else:
                    self._step(walks, (segment, original), twin, final=final)
                task.advance()

    def _twins(self) -> dict[str, Twin]:
        """Layers by name that multiply with a constant, before and after."""
        nodes = {_name(node): node for node in self.ctx.model.graph}
        found: dict[str, Twin] = {}
        for node in self.before.graph:
            now, was = nodes.get(_name(node)), layer_of(node)
            layer = None if now is None else layer_of(now)
            twin = None if layer is None or was is None else twin_of(layer, was, self.removal)
            if twin is not None:
                found[_name(node)] = twin
        return found

    def _step(
        self,
        walks: tuple[Walk, Walk],
        segments: tuple[Segment, Segment],
        twin: Twin,
        *,
        final: bool,
    ) -> None:
        """Runs a piece of both models and fits the layer that it ends with."""
        asides = twin.aside or (None, None)
        now, seen = _with_values(walks[0], segments[0], (twin.layer.source, asides[0]))
        was, originals = _with_values(walks[1], segments[1], (twin.before.source, asides[1]))
        # What is no finite number is left out of the rows.
        with np.errstate(over="ignore", invalid="ignore"):
            changed = self._fit(twin, seen, originals, final=final)
        if changed:
            now = list(walks[0].run(segments[0]))
        walks[0].advance(segments[0], now)
        walks[1].advance(segments[1], was)

    def _fit(
        self, twin: Twin, seen: Sequence[Seen], originals: Sequence[Seen], *, final: bool
    ) -> bool:
        name = twin.layer.name
        if final and not any(self.choices.get(name, ())):
            return False
        samples = list(zip(seen, originals, strict=False))
        if twin.aside and any(now[1] is None or was[1] is None for now, was in samples):
            twin.forget()  # it is made later: the other one makes up for both
        rows = _rows(twin, samples)
        if rows is None and twin.path is not None:
            twin.forget()
            rows = _rows(twin, samples)
        if rows is None:
            return False
        fitted, held_out = (rows, []) if self.is_final else divide(rows)
        problems = Problem(fitted, twin.bend), Problem(held_out, twin.bend)
        chosen = self.choices[name] if final else None
        best, choices = fit_layer(*problems, twin.start, chosen)
        if not any(choices):
            return False
        if not final:
            self.choices[name] = choices
        put_weight(self.ctx.edit, twin.layer, best.weight)
        if twin.bias is not None and best.bias is not None:
            twin.bias.write(self.ctx.edit, best.bias.reshape(-1))
        self.fitted.append(name)
        return True


def _rows(twin: Twin, samples: Sequence[tuple[Seen, Seen]]) -> list[Rows] | None:
    """What a layer reads and should give on each sample; None where that cannot be told."""
    room = _NUMBERS // max(len(samples) * twin.numbers, 1)
    limit = int(np.clip(room, _FEWEST_ROWS, _ROWS))
    found = []
    for now, was in samples:
        rows = twin.rows(now, was, limit)
        if rows is None:
            return None
        found.append(rows.known())
    return found


def _name(node: ir.Node) -> str:
    return node.name or node.outputs[0].name or ""


def _with_values(
    walk: Walk, segment: Segment, values: Sequence[ir.Value | None]
) -> tuple[list[State], list[Seen]]:
    """Runs a piece; returns what it makes and some values in front of its last node, for each sample.

    Those that are not to be had are None: constants, inputs with a default, what is made later.
    """
    here = {value for node in segment.nodes[:-1] for value in node.outputs}
    made = list(walk.run(segment, [value for value in values if value in here]))
    states = walk.states
    names = [value.name if value is not None else None for value in values]
    found = [
        tuple(_value(name, one, state) for name in names)
        for one, state in zip(made, states, strict=True)
    ]
    return made, found


def _value(name: str | None, made: State, state: State) -> NDArray[Any] | None:
    if name is None:
        return None
    found = made.get(name, state.get(name))
    return found if isinstance(found, np.ndarray) else None
