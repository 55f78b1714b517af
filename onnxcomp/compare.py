"""Comparing what two models say about the same samples, one sample at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from onnxcomp.differences import (
    OutputDifference,
    RunningDifference,
    Tolerance,
    looks_like_scores,
)
from onnxcomp.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "Comparer",
    "Comparison",
    "OutputDifference",
    "Reference",
    "Runner",
    "Tolerance",
    "compare",
    "looks_like_scores",
]


class Runner(Protocol):
    """Anything that turns the feeds of a sample into named outputs; `runtime.Session` is one."""

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Mapping[str, Any]:
        """Runs the model once."""
        ...


@dataclass(frozen=True)
class Comparison:
    """The result of comparing two models. True when nothing is outside the tolerance.

    Attributes:
        samples: Number of samples compared.
        outputs: One entry for each output.
        tolerance: The limits that were asked for, None when none were.
        reason: Why it failed, naming output and sample; empty when it did not.
    """

    samples: int
    outputs: tuple[OutputDifference, ...]
    tolerance: Tolerance | None = None
    reason: str = ""

    def __bool__(self) -> bool:
        return not self.reason

    @property
    def identical(self) -> bool:
        """Whether every element is equal."""
        return not self.reason and all(output.differing == 0 for output in self.outputs)

    def worst(self, field: str) -> float | None:
        """Returns the smallest `sqnr_db`, `cosine` or `top1` over the outputs that have one."""
        found = [getattr(output, field) for output in self.outputs]
        return min((value for value in found if value is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dictionaries, lists, numbers and texts."""
        return {**dataclasses.asdict(self), "passed": bool(self)}


class Reference:
    """Expected outputs of samples, remembered while they fit into a budget of memory.

    Iterating gives pairs of feeds and expected outputs, in the order of the samples. What does not fit
    is computed again each time.
    """

    def __init__(
        self,
        runner: Runner,
        samples: Iterable[Mapping[str, np.ndarray]],
        *,
        budget: int = 256 << 20,
    ) -> None:
        self._runner = runner
        self._samples = samples
        self._left = budget
        self._known: list[Mapping[str, Any]] = []

    def __iter__(self) -> Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]:
        for index, feeds in enumerate(self._samples):
            if index < len(self._known):
                yield feeds, self._known[index]
                continue
            outputs = self._runner.run(feeds)
            if index == len(self._known):
                self._remember(outputs)
            yield feeds, outputs

    def _remember(self, outputs: Mapping[str, Any]) -> None:
        size = sum(array.nbytes for array in _flat(outputs).values())
        if size <= self._left:
            self._left -= size
            self._known.append(outputs)


class Comparer:
    """Collects differences sample by sample, in memory that does not grow with their number."""

    def __init__(self, tolerance: Tolerance | None = None) -> None:
        self._tolerance = tolerance
        self._samples = 0
        self._running: dict[str, RunningDifference] = {}
        self._reason = ""

    def add(self, expected: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
        """Compares the outputs for one sample."""
        wanted, got = _flat(expected), _flat(actual)
        for name, array in wanted.items():
            if name not in self._running:
                self._running[name] = RunningDifference(name, is_alone=len(wanted) == 1)
            problem = self._running[name].add(array, got.get(name), self._tolerance)
            if problem:
                self._fail(name, problem)
        for name in got.keys() - wanted.keys():
            self._fail(name, "is not expected")
        self._samples += 1

    def _fail(self, name: str, problem: str) -> None:
        if not self._reason:
            self._reason = f"output {quoted(name)} of sample {self._samples} {problem}"

    def result(self) -> Comparison:
        """Returns what was found so far."""
        outputs = tuple(running.result() for running in self._running.values())
        return Comparison(self._samples, outputs, self._tolerance, self._reason)


def compare(
    expected: Runner | Reference,
    actual: Runner,
    samples: Iterable[Mapping[str, np.ndarray]] = (),
    *,
    tolerance: Tolerance | None = None,
) -> Comparison:
    """Runs two models on the same samples and says how much they differ.

    Args:
        expected: The model that is right, or its remembered outputs.
        actual: The model to judge.
        samples: Feeds for both; not needed with a `Reference`, which has its own.
        tolerance: Limits. Without one, only missing outputs, other shapes and NaN fail.

    Returns:
        The differences; false when something is outside the limits, with a reason.
    """
    comparer = Comparer(tolerance)
    pairs = expected if isinstance(expected, Reference) else Reference(expected, samples, budget=0)
    for feeds, outputs in pairs:
        comparer.add(outputs, actual.run(feeds))
    return comparer.result()


def _flat(outputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Names every array of the outputs, also those in sequences and maps."""
    flat: dict[str, np.ndarray] = {}
    waiting = list(outputs.items())[::-1]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting.extend((f"{name}[{index}]", item) for index, item in enumerate(value))
        elif isinstance(value, dict):
            waiting.extend((f"{name}[{key}]", item) for key, item in value.items())
        elif value is not None:
            flat[name] = np.asarray(value)
    return flat
