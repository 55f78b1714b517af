"""Candidates of a search, and how to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.bench import Timing
    from onnxcomp.ir import Model
    from onnxcomp.metrics import Score
    from onnxcomp.passbase import Outcome
    from onnxcomp.variants import Prefer


@dataclass(frozen=True)
class Trial:
    """One candidate and how it did.

    Attributes:
        label: What was tried.
        pipeline: The passes, as text.
        model: The model they made.
        outcomes: What each pass did.
        score: The metric on held-out samples.
        drop: How much worse that is than the original.
        timing: Latency relative to the original, None when it was not worth measuring.
        rejected: Why it was not taken, empty for one that could be.
        base: Label of the candidate that it was made from; empty for the original.
        reference: The model before its numbers became small, where they did.
    """

    label: str
    pipeline: str
    model: Model
    outcomes: tuple[Outcome, ...]
    score: Score
    drop: float
    timing: Timing | None = None
    rejected: str = ""
    base: str = ""
    reference: Model | None = None

    @property
    def ratio(self) -> float:
        """Time relative to the original; infinite when it was not measured."""
        return self.timing.ratio.median if self.timing else float("inf")


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Attributes:
        target: Where the model will run.
        provider: Execution provider to measure with.
        max_drop: How much worse the metric may get, relative to the original.
        threads: Threads of one operator, in measurements and in the search.
        trials: How many candidates may be built, before the chosen one is repaired.
        seconds: Time for the final latency measurement.
        seed: Seed of everything random.
        memory: Whether to measure peak memory as well.
        batch: Samples that one run takes where the model is deployed.
        prefer: Whether the fastest candidate is chosen, or the smallest one that is not slower.
        contrib: Whether operators that only onnxruntime knows are allowed.
        prune: Whether candidates with fewer channels are tried as well.
    """

    target: str = "cpu"
    provider: str = "cpu"
    max_drop: float = 0.01
    threads: int = 1
    trials: int = 12
    seconds: float = 6.0
    seed: int = 0
    memory: bool = True
    batch: int = 1
    prefer: Prefer = "speed"
    contrib: bool = False
    prune: bool = False
