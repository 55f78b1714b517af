"""Leaving out parts of a model, one after the other, by what each costs the outputs."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from onnxcomp.errors import UserError
from onnxcomp.ir.ops import constant
from onnxcomp_passes.prune.support.shortcuts import Shortcut, fit_shortcut, observe
from onnxcomp_passes.prune.support.trying import tentatively
from onnxcomp_passes.simplify.eliminate_dead import EliminateDead

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Model, ir
    from onnxcomp.passbase import Context, Task
    from onnxcomp.quant.recovery import Judge
    from onnxcomp_passes.prune.support.blocks import Form, Piece
    from onnxcomp_passes.prune.support.shortcuts import Observed

Replacement = Literal["none", "scale", "linear", "auto"]
# A matrix stands in for what has at least twice its numbers.
_CHEAPER = 2
# Numbers of a value that stand-ins are fitted to, and of all values.
_NUMBERS, _ALL_NUMBERS = 1 << 22, 1 << 27
# Decibels that nodes in the place of nothing have to bring.
_WORTH = 0.1


@dataclass(frozen=True, eq=False)
class Left:
    """What was left out.

    Attributes:
        piece: The part.
        decibels: How near the outputs are then, to those of the original.
        instead: What stands in its place, in words; empty for nothing.
    """

    piece: Piece
    decibels: float
    instead: str


@dataclass(frozen=True, eq=False)
class _Trial:
    """One way to leave a piece out, and how near the outputs come."""

    form: Form
    shortcut: Shortcut | None
    decibels: float


@dataclass(eq=False)
class Omissions:
    """Leaves out what costs least, measures the others again, and goes on.

    What the loss of one part costs depends on what went before. After each step only those are measured
    again that could be the next, because to lose more never costs less (Minoux, "Accelerated greedy
    algorithms", 1978).

    Attributes:
        ctx: The pass.
        before: The model as it was.
        judge: Tells how near the outputs are.
        fitted_on: Samples for what stands in.
        replacement: What may stand in.
        saving: Returns the share of the goal that is left in the model now; None when parts just count.
    """

    ctx: Context
    before: Model
    judge: Judge
    fitted_on: Sequence[Mapping[str, np.ndarray]]
    replacement: Replacement
    saving: Callable[[Model], float] | None
    _now: dict[ir.Value, ir.Value] = field(default_factory=dict)
    _wanted: dict[str, Observed] = field(default_factory=dict)
    _given: dict[str, Observed] = field(default_factory=dict)
    _room: int = 0
    _noise: float = 0.0
    _share: float = 1.0
    _best: dict[Piece, Form] = field(default_factory=dict)

    def run(self, pieces: Sequence[Piece], task: Task) -> Iterator[Left]:
        """Leaves out one part after the other, the cheapest first, for as long as the caller asks.

        Args:
            pieces: What may go.
            task: Is told of each part that is measured for the first time.
        """
        self._observe(pieces)
        queue: list[tuple[float, int, int]] = []
        for index, piece in enumerate(pieces):
            cost = self._cost(piece, piece.forms)
            if math.isfinite(cost):
                heapq.heappush(queue, (cost, index, 0))
            task.advance()
        done = 0
        while queue:
            _, index, when = heapq.heappop(queue)
            piece = pieces[index]
            if when == done:
                left = self._leave_out(piece)
                if left is not None:
                    done += 1
                    yield left
                    self._observe([pieces[entry[1]] for entry in queue])
                continue
            cost = self._cost(piece, [self._best[piece], *piece.forms])
            if math.isfinite(cost):
                heapq.heappush(queue, (cost, index, done))

    def _observe(self, pieces: Sequence[Piece]) -> None:
        """Looks at what the parts read now and gave at first."""
        if self.replacement == "none" or not self.fitted_on:
            return
        forms = [(f, p.axis) for p in pieces for f in p.forms if self._is_possible(p, f)]
        now = {self._current(form.start).name or "": axis for form, axis in forms}
        threads = self.ctx.threads
        self._room = self._room or min(_NUMBERS, _ALL_NUMBERS // max(len(forms), 1))
        self._given = observe(self.ctx.model, now, self.fitted_on, threads, self._room)
        missing = {form.wanted: a for form, a in forms if form.wanted not in self._wanted}
        self._wanted.update(observe(self.before, missing, self.fitted_on, threads, self._room))

    def _current(self, value: ir.Value) -> ir.Value:
        """Returns what stands for a value now."""
        while value in self._now:
            value = self._now[value]
        return value

    def _is_possible(self, piece: Piece, form: Form) -> bool:
        start = self._current(form.start)
        lives = start.is_graph_input() or _is_there(start.producer())
        return lives and _is_there(form.end.producer()) and any(map(_is_there, piece.layers))

    def _cost(self, piece: Piece, forms: Sequence[Form]) -> float:
        """Returns how much noise leaving a piece out adds for what it saves; endless when it cannot go.

        Of several forms the best is remembered; those of a piece measured before are given with that
        one first, and only the first that is possible counts.
        """
        again = piece in self._best
        cost, nearest = math.inf, -math.inf
        for form in forms:
            if not self._is_possible(piece, form):
                continue
            decibels, saved = self._measure(piece, form, self._preferred(piece, form))
            if decibels > nearest and saved > 0:
                nearest = decibels
                self._best[piece] = form
                cost = (_noise(decibels) - self._noise) / saved
            if again:
                break
        return cost

    def _measure(self, piece: Piece, form: Form, shortcut: Shortcut | None) -> tuple[float, float]:
        """Returns how near the outputs are without a piece, and what that saves."""
        now = dict(self._now)
        with tentatively(self.ctx):
            self._apply(piece, form, shortcut)
            try:
                decibels = self.judge.decibels(self.ctx.model)
                saved = 1.0 if self.saving is None else self._share - self._left()
            except UserError:  # what fits on paper may not fit in fact
                decibels, saved = -math.inf, 0.0
        self._now = now
        return decibels, saved

    def _left(self) -> float:
        EliminateDead().run(self.ctx)
        return 1.0 if self.saving is None else self.saving(self.ctx.model)

    def _apply(self, piece: Piece, form: Form, shortcut: Shortcut | None) -> None:
        start = self._current(form.start)
        new = start
        if shortcut is not None:
            wanted = self._wanted[form.wanted]
            new = shortcut.build(self.ctx.edit, start, form.end, wanted, piece.axis)
        self.ctx.edit.replace(form.end, new)
        self._now[form.end] = new

    def _preferred(self, piece: Piece, form: Form) -> Shortcut | None:
        """Returns the richest stand-in that may be used, None for none."""
        for full in (True, False):
            shortcut = self._shortcut(piece, form, full=full)
            if shortcut is not None:
                return shortcut
        return None

    def _shortcut(self, piece: Piece, form: Form, *, full: bool) -> Shortcut | None:
        if self.replacement == "none" or self.replacement == ("scale" if full else "linear"):
            return None
        given = self._given.get(self._current(form.start).name or "")
        wanted = self._wanted.get(form.wanted)
        if given is None or wanted is None or given.shapes != wanted.shapes:
            return None
        if full and _CHEAPER * given.rows.shape[1] ** 2 > _weights(piece):
            return None
        return fit_shortcut(given, wanted, full=full)

    def _leave_out(self, piece: Piece) -> Left | None:
        """Leaves a piece out for good, with what brings most in its place."""
        form = self._best[piece]
        trials = [self._try(piece, form, None)]
        for full in (False, True):
            shortcut = self._shortcut(piece, form, full=full)
            if shortcut is not None:
                trials.append(self._try(piece, form, shortcut))
        best = trials[0]
        for trial in trials[1:]:
            best = trial if trial.decibels > best.decibels + _WORTH else best
        if not math.isfinite(best.decibels):
            return None
        self._apply(piece, best.form, best.shortcut)
        EliminateDead().run(self.ctx)
        self._noise = _noise(best.decibels)
        if self.saving is not None:
            self._share = self.saving(self.ctx.model)
        return Left(piece, best.decibels, _words(best.shortcut))

    def _try(self, piece: Piece, form: Form, shortcut: Shortcut | None) -> _Trial:
        return _Trial(form, shortcut, self._measure(piece, form, shortcut)[0])


def _is_there(node: ir.Node | None) -> bool:
    return node is not None and node.graph is not None


def _noise(decibels: float) -> float:
    return math.inf if decibels == -math.inf else float(10 ** (-decibels / 10))


def _weights(piece: Piece) -> int:
    """How many numbers the weights of a piece have."""
    found = {value for node in piece.layers for value in node.inputs if value is not None}
    tensors = (constant(value) for value in found)
    return sum(int(tensor.size) for tensor in tensors if tensor is not None)


def _words(shortcut: Shortcut | None) -> str:
    if shortcut is None:
        return ""
    size = len(shortcut.bias)
    return f"a {size}x{size} layer" if shortcut.is_full else "a factor for each channel"
