"""Finds out by measurement which nodes are worth computing in int8."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxcomp.bench import Limits, Spread, measure
from onnxcomp.compare import Reference
from onnxcomp.quant.measure import NodeTimes, measure_nodes
from onnxcomp.quant.placement import Placement
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.trial import fidelity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from onnxcomp.passbase import Progress
    from onnxcomp_passes.quantize.trial import Bench

    Keys = frozenset[str]

HEAVY = frozenset({"conv", "conv-transpose", "gemm", "matmul"})
# Factors on the cost of conversions: more makes fewer, larger islands of int8.
_WEIGHTS = (1.0, 2.0)
_REFINEMENTS = 3
# Placements that are timed as whole models in the end.
_FINALISTS = 5
_SECONDS = 3.0
# int8 must be this much faster than float, or it may only look so.
_WORTH_IT = 0.98
# Among placements that are this near to the fastest one, the one nearest to float is taken.
_NEAR = 1.03
_PROFILE_SECONDS, _MOST_RUNS, _FEWEST_RUNS = 0.5, 20, 4


@dataclass(frozen=True)
class Choice:
    """What was found.

    Attributes:
        keys: Nodes to compute in int8.
        ratio: Its time relative to float.
        tried: Time relative to float of the finalists.
    """

    keys: Keys
    ratio: float
    tried: Mapping[Keys, float]


@dataclass
class PlacementSearch:
    """Measures float against int8 for each node, and whole models against each other.

    Attributes:
        bench: The model.
        feeds: A run's worth of samples to measure on.
        samples: What fidelity is judged on.
        threads: Threads to measure with.
        progress: Progress bars.
    """

    bench: Bench
    feeds: Mapping[str, np.ndarray]
    samples: Sequence[Mapping[str, np.ndarray]]
    threads: int
    progress: Progress
    _runs: int = _MOST_RUNS
    _totals: dict[Keys, float] = field(default_factory=dict)

    def run(self) -> Choice:
        """Returns the fastest placement found; no nodes when none is faster than float."""
        self._runs = self._affordable_runs()
        everything = frozenset(self.bench.candidates.found)
        heavy = frozenset(c.key for c in self.bench.candidates if c.family.name in HEAVY)
        with self.progress(4 + len(_WEIGHTS) * _REFINEMENTS, "measuring placements") as task:
            in_float = self._measured(frozenset())
            task.advance()
            in_int8 = self._measured(everything)
            task.advance()
            if heavy and heavy != everything:
                self._measured(heavy)
            task.advance()
            for weight in _WEIGHTS:
                self._refine(in_float, in_int8, weight)
                task.advance(_REFINEMENTS)
            spreads = self._compared()
            ratios = {keys: spread.median for keys, spread in spreads.items()}
            # The upper end of the interval counts, so that noise is not taken for a gain.
            surely = {k: ratios[k] for k, spread in spreads.items() if spread.high < _WORTH_IT}
            best = self._chosen(surely)
            task.advance()
        return Choice(best, ratios.get(best, 1.0), ratios)

    def _chosen(self, ratios: Mapping[Keys, float]) -> Keys:
        """Among the fastest ones the one nearest to float."""
        if not ratios:
            return frozenset()
        fastest = min(ratios.values())
        near = [keys for keys, ratio in ratios.items() if ratio <= fastest * _NEAR]
        if len(near) == 1:
            return near[0]
        bench, provider = self.bench, self.bench.target.provider
        with Session.open(bench.model, provider=provider, threads=self.threads) as session:
            reference = Reference(session, self.samples)
            decibels = {
                keys: fidelity(bench, bench.plan(keys), {}, reference, self.threads)
                for keys in near
            }
        return max(near, key=lambda keys: (decibels[keys], -ratios[keys]))

    def _affordable_runs(self) -> int:
        """How often a model is run for its profile."""
        provider = self.bench.target.provider
        with Session.open(self.bench.model, provider=provider, threads=self.threads) as session:
            call = session.prepare(self.feeds)
            start = time.perf_counter()
            call()
            once = time.perf_counter() - start
        return int(min(max(_PROFILE_SECONDS / max(once, 1e-6), _FEWEST_RUNS), _MOST_RUNS))

    def _refine(self, in_float: NodeTimes, in_int8: NodeTimes, weight: float) -> None:
        """Solves, measures what came out, and solves again with the times that nodes have in it.

        A kernel may cost something else among float neighbours than among int8 ones: a u8 MaxPool is
        thirty times slower in the layout of float convolutions.
        """
        bench = self.bench
        sizes = {name: found.elements for name, found in bench.seen.items()}
        problem = Placement(
            bench.model.graph,
            bench.candidates,
            bench.regions,
            bench.target,
            in_float,
            in_int8,
            sizes,
        )
        for _ in range(_REFINEMENTS):
            keys = frozenset(problem.solve(weight))
            if keys in self._totals:
                break
            problem = _updated(problem, keys, self._measured(keys))

    def _measured(self, keys: Keys) -> NodeTimes:
        bench = self.bench
        with bench.applied(bench.plan(keys)) as model:
            times = measure_nodes(
                model,
                self.feeds,
                provider=bench.target.provider,
                threads=self.threads,
                rounds=self._runs,
            )
        self._totals[keys] = times.total
        return times

    def _compared(self) -> dict[Keys, Spread]:
        """Times the most promising placements in turns; returns their ratios to float."""
        promising = sorted((keys for keys in self._totals if keys), key=self._totals.__getitem__)
        models = {"float": self.bench.model.copy()}
        for keys in promising[:_FINALISTS]:
            with self.bench.applied(self.bench.plan(keys)) as model:
                models[str(len(models))] = model.copy()
        timings = measure(
            models,
            self.feeds,
            provider=self.bench.target.provider,
            threads=self.threads,
            limits=Limits(seconds=_SECONDS),
        )
        names = list(models)[1:]
        return {keys: timings[name].ratio for keys, name in zip(promising, names, strict=False)}


def _updated(problem: Placement, keys: Keys, now: NodeTimes) -> Placement:
    """The problem with times of float nodes and int8 nodes as they are in a placement."""
    in_float, in_int8 = dict(problem.float_times.seconds), dict(problem.int8_times.seconds)
    for key, seconds in now.seconds.items():
        if key in keys:
            in_int8[key] = seconds
        elif key in in_float:
            in_float[key] = seconds
    return replace(problem, float_times=NodeTimes(in_float), int8_times=NodeTimes(in_int8))
