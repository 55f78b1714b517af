"""Finds out by measurement which nodes are worth computing in int8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from onnxcomp.bench import Limits, measure
from onnxcomp.quant.measure import NodeTimes, measure_nodes
from onnxcomp.quant.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from onnxcomp.passbase import Progress
    from onnxcomp_passes.quantize.trial import Bench

_WEIGHTS = (1.0, 2.0)
_ROUNDS = 3
_SECONDS = 3.0
# A placement must be this much faster to be taken instead of one with fewer int8 nodes.
_MARGIN = 0.98
HEAVY = frozenset({"conv", "gemm", "matmul"})


@dataclass
class Choice:
    """What was found.

    Attributes:
        keys: Nodes to compute in int8.
        ratio: Its time relative to float.
        tried: Time relative to float of every placement tried, by number of nodes.
    """

    keys: frozenset[str]
    ratio: float
    tried: list[tuple[int, float]]


def choose_placement(
    bench: Bench, feeds: Mapping[str, np.ndarray], *, threads: int, progress: Progress
) -> Choice:
    """Measures float against int8 for each node and whole models against each other.

    Args:
        bench: The model.
        feeds: A sample to measure on.
        threads: Threads to measure with.
        progress: Progress bars.
    """
    everything = frozenset(bench.candidates.found)
    heavy = frozenset(c.key for c in bench.candidates if c.family.name in HEAVY)
    placements = {everything: 0.0, heavy: 0.0}
    with progress(2 + len(_WEIGHTS) * _ROUNDS + 1, "measuring placements") as task:
        in_float = _measured(bench, frozenset(), feeds, threads)
        task.advance()
        in_int8 = _measured(bench, everything, feeds, threads)
        task.advance()
        for weight in _WEIGHTS:
            for keys in _refined(bench, feeds, in_float, in_int8, weight, threads):
                placements[keys] = 0.0
                task.advance()
        placements.pop(frozenset(), None)
        ratios = _compared(bench, list(placements), feeds, threads)
        task.advance()
    tried = [(len(keys), ratio) for keys, ratio in ratios.items()]
    best: tuple[frozenset[str], float] = (frozenset(), 1.0)
    for keys, ratio in sorted(ratios.items(), key=lambda item: len(item[0])):
        if ratio < best[1] * _MARGIN:
            best = (keys, ratio)
    return Choice(*best, tried)


def _refined(
    bench: Bench,
    feeds: Mapping[str, np.ndarray],
    in_float: NodeTimes,
    in_int8: NodeTimes,
    weight: float,
    threads: int,
) -> list[frozenset[str]]:
    """Solves, measures what came out, and solves again with the times that nodes have in it.

    A kernel may cost something else among float neighbours than among int8 ones: a u8 MaxPool is
    thirty times slower in the layout of float convolutions.
    """
    sizes = {name: found.elements for name, found in bench.seen.items()}
    problem = Placement(
        bench.model.graph, bench.candidates, bench.regions, bench.target, in_float, in_int8, sizes
    )
    found: list[frozenset[str]] = []
    for _ in range(_ROUNDS):
        keys = frozenset(problem.solve(weight))
        if not keys or keys in found:
            break
        found.append(keys)
        problem = _updated(bench, problem, keys, feeds, threads)
    return found


def _updated(
    bench: Bench,
    problem: Placement,
    keys: frozenset[str],
    feeds: Mapping[str, np.ndarray],
    threads: int,
) -> Placement:
    """The problem with times of float nodes and int8 nodes as they are in a placement, where they are in it."""
    now = _measured(bench, keys, feeds, threads)
    in_float, in_int8 = dict(problem.float_times.seconds), dict(problem.int8_times.seconds)
    for key, seconds in now.seconds.items():
        if key in keys:
            in_int8[key] = seconds
        elif key in in_float:
            in_float[key] = seconds
    return replace(problem, float_times=NodeTimes(in_float), int8_times=NodeTimes(in_int8))


def _measured(
    bench: Bench, keys: frozenset[str], feeds: Mapping[str, np.ndarray], threads: int
) -> NodeTimes:
    with bench.applied(bench.plan(keys)) as model:
        return measure_nodes(model, feeds, provider=bench.target.provider, threads=threads)


def _compared(
    bench: Bench,
    placements: list[frozenset[str]],
    feeds: Mapping[str, np.ndarray],
    threads: int,
) -> dict[frozenset[str], float]:
    """Times whole models in turns; returns the median of the ratio to float for each placement."""
    models = {"float": bench.model.copy()}
    for index, keys in enumerate(placements):
        with bench.applied(bench.plan(keys)) as model:
            models[str(index)] = model.copy()
    timings = measure(
        models,
        feeds,
        provider=bench.target.provider,
        threads=threads,
        limits=Limits(seconds=_SECONDS),
    )
    return {keys: timings[str(i)].ratio.median for i, keys in enumerate(placements)}
