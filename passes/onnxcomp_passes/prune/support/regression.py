"""Linear layers fitted to outputs, and to what becomes of outputs: ridge regression in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp_passes.prune.support.bends import Bend

    Array = NDArray[np.float64]

# Shares of the mean of the diagonal; what held-out samples like best is taken.
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Steps towards what is behind the function that follows; each costs two products with the rows.
_STEPS = 12
_WORTHWHILE = 0.998
# Inputs that are fitted at once: larger layers are fitted part by part.
_DEEPEST = 2560
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Rows:
    """What a layer reads on one sample and what it should give.

    Attributes:
        inputs: X (groups, rows, K).
        wanted: (groups, rows, N) what the sum of the layer and what is added to it should be.
        aside: (groups, rows, N) what is added to the layer's output; None for nothing.
    """

    inputs: NDArray[Any]
    wanted: NDArray[Any]
    aside: NDArray[Any] | None = None

    def known(self) -> Rows:
        """Returns the rows that are finite numbers."""
        parts = [self.inputs, self.wanted, *([] if self.aside is None else [self.aside])]
        if all(np.isfinite(part.sum(dtype=np.float64)) for part in parts):
            return self
        fine = np.all([np.isfinite(part).all(axis=(0, 2)) for part in parts], axis=0)
        aside = None if self.aside is None else self.aside[:, fine]
        return Rows(self.inputs[:, fine], self.wanted[:, fine], aside)

    def given(self, fit: Fit) -> NDArray[Any]:
        """Returns the sum that a fit gives."""
        found: NDArray[Any] = self.inputs @ fit.weight.astype(self.inputs.dtype)
        if fit.bias is not None:
            found += fit.bias[:, None, :].astype(found.dtype)
        if self.aside is not None:
            found += self.aside
        return found


@dataclass(frozen=True, eq=False)
class Fit:
    """A weight (groups, K, N) and a bias (groups, N) of a layer; None where it has none."""

    weight: NDArray[Any]
    bias: NDArray[Any] | None

    @property
    def is_finite(self) -> bool:
        """Whether all numbers are."""
        return bool(
            np.isfinite(self.weight).all() and (self.bias is None or np.isfinite(self.bias).all())
        )


@dataclass(frozen=True)
class Choice:
    """How a layer is fitted.

    Attributes:
        ridge: Penalty, as a share of the mean square of the inputs.
        steps: Steps towards what is behind the function that follows.
    """

    ridge: float
    steps: int = 0


@dataclass(eq=False)
class Problem:
    """Rows of some samples, and how near a layer comes to what it should give on them.

    Attributes:
        samples: What there is of each sample.
        bend: The function that follows; None for none.
    """

    samples: Sequence[Rows]
    bend: Bend | None = None
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = sum(each.inputs.shape[1] for each in self.samples)

    def error(self, fit: Fit) -> float:
        """Returns the mean square of what is wrong with the outputs."""
        total = 0.0
        for each in self.samples:
            made, wanted = each.given(fit), each.wanted
            if self.bend is not None:
                made, wanted = self.bend(made), self.bend(wanted)
            total += float(np.square(made - wanted).sum(dtype=np.float64))
        return total / max(self.count, 1)

    def targets(self, fit: Fit | None) -> Array:
        """Returns the sums 1^T T and X^T T, as (groups, 1 + K, N), of what the layer alone should give.

        Args:
            fit: What it gives now, where that matters: T goes a step from there towards what is behind
                the bend. None for what was wanted in front of it.
        """
        total: Any = 0.0
        for each in self.samples:
            target = each.wanted
            if fit is not None and self.bend is not None:
                made = each.given(fit)
                target = made + (self.bend(target) - self.bend(made)) / self.bend.slope
            if each.aside is not None:
                target = target - each.aside
            part = each.inputs.transpose(0, 2, 1) @ target
            sums = target.sum(axis=1, keepdims=True, dtype=np.float64)
            total = total + np.concatenate([sums, part], axis=1)
        return np.asarray(total, np.float64)

    def part(self, fit: Fit, inputs: slice) -> Problem:
        """Returns the problem of some inputs alone, given what the others do."""
        some = []
        for each in self.samples:
            rest = each.given(Fit(fit.weight, None))
            rest -= each.inputs[..., inputs] @ fit.weight[:, inputs].astype(rest.dtype)
            some.append(Rows(each.inputs[..., inputs], each.wanted, rest))
        return Problem(some, self.bend)


class Normal:
    """The normal equations of a layer: X^T X, kept once for all targets.

    Args:
        problem: What to fit to.
        start: What to stay near to.
    """

    def __init__(self, problem: Problem, start: Fit) -> None:
        groups, depth, _ = start.weight.shape
        self.problem = problem
        self._start = start
        self._inverse: tuple[float, Array] | None = None
        self._gram = np.zeros((groups, depth, depth))
        self._means = np.zeros((groups, 1, depth))
        for each in problem.samples:
            self._gram += each.inputs.transpose(0, 2, 1) @ each.inputs
            self._means += each.inputs.sum(axis=1, keepdims=True, dtype=np.float64)
        self._means /= max(problem.count, 1)
        if start.bias is not None:
            self._gram -= problem.count * (self._means.transpose(0, 2, 1) * self._means)
        self._power = np.trace(self._gram, axis1=1, axis2=2) / max(depth, 1)

    def fit(self, choice: Choice) -> Fit:
        """Returns what comes nearest to what is wanted.

        Raises:
            numpy.linalg.LinAlgError: If that cannot be told.
        """
        if choice.steps:
            self.settle(choice.ridge)
        found = self.solve(self.problem.targets(None), choice.ridge)
        for _ in range(choice.steps):
            found = self.solve(self.problem.targets(found), choice.ridge)
        return found

    def solve(self, targets: Array, ridge: float) -> Fit:
        """Returns the weight, near to the start, and the bias that come nearest to targets.

        Hoerl and Kennard, "Ridge Regression" (1970), with the penalty on the distance from the start.

        Args:
            targets: From `Problem.targets`.
            ridge: Penalty, as a share of the mean square of the inputs.

        Raises:
            numpy.linalg.LinAlgError: If that cannot be told.
        """
        near = self._start.weight.astype(np.float64)
        sums, right = targets[:, :1], targets[:, 1:]
        if self._start.bias is not None:
            right = right - self._means.transpose(0, 2, 1) @ sums
        right = right - self._gram @ near
        if self._inverse is not None and self._inverse[0] == ridge:
            weight = near + self._inverse[1] @ right
        else:
            weight = near + np.linalg.solve(self._damped(ridge), right)
        if self._start.bias is None:
            return Fit(weight, None)
        bias = sums / max(self.problem.count, 1) - self._means @ weight
        return Fit(weight, bias[:, 0])

    def settle(self, ridge: float) -> None:
        """Prepares for many targets and the same penalty.

        Raises:
            numpy.linalg.LinAlgError: If there is no solution.
        """
        inverse: Array = np.asarray(np.linalg.inv(self._damped(ridge)), np.float64)
        self._inverse = ridge, inverse

    def _damped(self, ridge: float) -> Array:
        damped = self._gram.copy()
        places = np.arange(damped.shape[-1])
        damped[:, places, places] += np.maximum(ridge * self._power, _TINY)[:, None]
        return damped


def best_fit(problem: Problem, held_out: Problem, start: Fit) -> tuple[Fit, Choice] | None:
    """Returns the fit that comes nearest on held-out rows, and how it was found.

    Where a function follows, what is fitted is what is behind it: below the threshold of a ReLU, any number
    will do. Each step solves least squares for targets that lie on the way, T = P + (f(Y) - f(P)) / L with
    L the steepest slope of f, which never raises the matching loss of f (Auer, Herbster and Warmuth,
    "Exponentially many local minima for single neurons", 1995). Zhang et al., "Accelerating Very Deep
    Convolutional Networks for Classification and Detection" (2015), fit through ReLU in another way.

    Args:
        problem: What to fit to; of layers of up to a few thousand inputs.
        held_out: What judges.
        start: What there is.

    Returns:
        None when nothing is nearer than what there is.
    """
    normal = Normal(problem, start)
    found = _ridge(normal, held_out)
    if found is None:
        return None
    fit, least, choice = found
    if problem.bend is not None:
        fit, least, choice = _bent(normal, held_out, found)
    return (fit, choice) if least < held_out.error(start) else None


def _bent(
    normal: Normal, held_out: Problem, found: tuple[Fit, float, Choice]
) -> tuple[Fit, float, Choice]:
    """Goes on towards what is behind the function that follows, as long as held-out rows like it."""
    fit, least, choice = found
    try:
        normal.settle(choice.ridge)
    except np.linalg.LinAlgError:
        return found
    for step in range(1, _STEPS + 1):
        tried = normal.solve(normal.problem.targets(fit), choice.ridge)
        error = held_out.error(tried)
        if not error < least * _WORTHWHILE:
            break
        fit, least, choice = tried, error, Choice(choice.ridge, step)
    return fit, least, choice


def _ridge(normal: Normal, held_out: Problem) -> tuple[Fit, float, Choice] | None:
    """Looks for the penalty that held-out rows like best, from the middle on as long as it gets better."""
    targets = normal.problem.targets(None)
    tried: dict[int, tuple[float, Fit | None]] = {}

    def error(place: int) -> float:
        if not 0 <= place < len(RIDGES):
            return math.inf
        if place not in tried:
            try:
                fit = normal.solve(targets, RIDGES[place])
            except np.linalg.LinAlgError:
                fit = None
            least = held_out.error(fit) if fit is not None and fit.is_finite else math.inf
            tried[place] = (math.inf, None) if math.isnan(least) else (least, fit)
        return tried[place][0]

    place = len(RIDGES) // 2
    while min(error(place - 1), error(place + 1)) < error(place):
        place += -1 if error(place - 1) <= error(place + 1) else 1
    least, found = tried[place]
    return None if found is None else (found, least, Choice(RIDGES[place]))


def fit_layer(
    problem: Problem, held_out: Problem, start: Fit, chosen: Sequence[Choice | None] | None = None
) -> tuple[Fit, list[Choice | None]]:
    """Fits a layer of any number of inputs, part by part where there are many.

    Memory is that of the matrices of one part.

    Args:
        problem: What to fit to.
        held_out: What judges; of no interest where `chosen` is given.
        start: What there is.
        chosen: How each part is fitted, from another call; None for a part that stays.

    Returns:
        What was found, and how each part was; None for those that stayed.
    """
    depth = start.weight.shape[1]
    count = max(-(-depth // _DEEPEST), 1)
    edges = np.linspace(0, depth, count + 1).astype(int)
    found, choices = start, list[Choice | None]()
    for index in range(count):
        place = slice(int(edges[index]), int(edges[index + 1]))
        parts = [problem, held_out]
        if count > 1:
            parts = [each.part(found, place) for each in parts]
        near = Fit(found.weight[:, place], found.bias)
        if chosen is None:
            best = best_fit(parts[0], parts[1], near)
        else:
            best = _again(parts[0], near, chosen[index])
        choices.append(None if best is None else best[1])
        if best is not None:
            weight = found.weight.astype(np.float64)
            weight[:, place] = best[0].weight
            found = Fit(weight, best[0].bias)
    return found, choices


def _again(problem: Problem, start: Fit, choice: Choice | None) -> tuple[Fit, Choice] | None:
    if choice is None:
        return None
    try:
        fit = Normal(problem, start).fit(choice)
    except np.linalg.LinAlgError:
        return None
    return (fit, choice) if fit.is_finite else None
