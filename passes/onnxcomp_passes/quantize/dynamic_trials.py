"""Finds out which products are worth computing in int8 with activations rounded in the run, and how finely."""

from __future__ import annotations

import contextlib
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.bench import Limits, Spread, measure
from onnxcomp.compare import Reference, compare
from onnxcomp.quant.candidates import key_of
from onnxcomp.quant.measure import measure_nodes
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.dynamic_writing import FINE, DynamicWriter, Made

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Progress
    from onnxcomp.quant.dynamic import Site
    from onnxcomp.quant.measure import NodeTimes
    from onnxcomp.quant.regions import Regions
    from onnxcomp_passes.quantize.dynamic_numbers import Numbers

    Feeds = Mapping[str, np.ndarray]
    Grades = Mapping[Site, int]

_SECONDS, _LONGER, _RUNS = 3.0, 10.0, 15
# int8 must be this much faster than float, or it may only look so.
_WORTH_IT = 0.98
# Among choices that are this near to the fastest one, the one that leaves most in float is taken.
_NEAR = 1.02
# Two digits take this many times the time of one (measured: 1.4 to 3).
_TWO_DIGITS = 2.7
_RECOVERIES = 6
# Noise of single nodes adds up to a little more than its sum.
_SAFETY = 0.7


@dataclass
class DynamicBench:
    """A float model, written in one way or another for a while.

    Attributes:
        model: The model.
        edit: The way to change it.
        provider: Where it will run.
        threads: Threads to measure with.
        numbers: How numbers are made.
    """

    model: Model
    edit: Edit
    provider: str
    threads: int
    numbers: Numbers
    _memory: dict[Hashable, Any] = field(default_factory=dict)

    def apply(self, grades: Grades) -> Made:
        """Writes for good."""
        return DynamicWriter(self.model, self.edit, self.numbers, self._memory).write(grades)

    @contextlib.contextmanager
    def applied(self, grades: Grades) -> Iterator[Made]:
        """Writes for a while."""
        mark, stats = self.edit.mark(), self.edit.stats.copy()
        made = self.apply(grades)
        try:
            yield made
        finally:
            self.edit.rollback(mark)
            self.edit.stats = stats

    def decibels(self, grades: Grades, reference: Reference) -> float:
        """Returns the signal-to-noise ratio of the worst output against float."""
        with (
            self.applied(grades),
            Session.open(self.model, provider=self.provider, threads=self.threads) as session,
        ):
            result = compare(reference, session)
        if result.reason:
            return -math.inf
        found = result.worst("sqnr_db")
        return math.inf if found is None else found


@dataclass
class DynamicPlacement:
    """Measures float against int8, node by node, and then whole models against each other.

    Attributes:
        bench: The model.
        sites: What could be in int8.
        regions: What the provider fuses in float.
        feeds: A run's worth of samples.
        progress: Progress bars.
        savings: Seconds that int8 saves at each site of the main graph, once measured.
        seconds: Seconds that it takes there.
    """

    bench: DynamicBench
    sites: Sequence[Site]
    regions: Regions
    feeds: Feeds
    progress: Progress
    savings: dict[Site, float] = field(default_factory=dict)
    seconds: dict[Site, float] = field(default_factory=dict)

    def run(self) -> tuple[list[Site], Spread | None]:
        """Returns the sites of the fastest model, none when float is, and its time over that of float."""
        with self.progress(3, "measuring int8 against float") as task:
            in_float = self._times()
            task.advance()
            grades = dict.fromkeys(self.sites, 1)
            with self.bench.applied(grades) as made:
                in_int8 = self._times()
            task.advance()
            self._save(in_float, in_int8, made)
            choices = self._choices()
            spreads = self.compare([dict.fromkeys(choice, 1) for choice in choices])
            task.advance()
        ranked = sorted(zip(spreads, choices, strict=True), key=lambda item: item[0].median)
        fastest = ranked[0][0] if ranked else None
        if fastest is not None and fastest.high >= _WORTH_IT > fastest.median:
            # A busy machine: that it looks faster is worth a closer look.
            fastest = self.compare([dict.fromkeys(ranked[0][1], 1)], seconds=_LONGER)[0]
            ranked = [(fastest, ranked[0][1])]
        if fastest is None or fastest.high >= _WORTH_IT:
            return [], fastest
        near = [item for item in ranked if item[0].median <= fastest.median * _NEAR]
        spread, chosen = min(near, key=lambda item: len(item[1]))
        return chosen, spread

    def compare(self, several: Sequence[Grades], *, seconds: float = _SECONDS) -> list[Spread]:
        """Times models in turns with float; returns their ratios to it."""
        models = {"float": self.bench.model.copy()}
        for grades in several:
            with self.bench.applied(grades):
                models[str(len(models))] = self.bench.model.copy()
        timings = measure(
            models,
            self.feeds,
            provider=self.bench.provider,
            threads=self.bench.threads,
            limits=Limits(seconds=seconds),
        )
        return [timings[name].ratio for name in list(models)[1:]]

    def pays_in_two_digits(self, site: Site) -> bool:
        """Whether an activation in two digits is still faster than float."""
        spent = self.seconds.get(site)
        if spent is None:
            return site.depth * site.width >= 1 << 16
        return spent * (_TWO_DIGITS - 1.0) < self.savings[site]

    def _times(self) -> NodeTimes:
        bench = self.bench
        return measure_nodes(
            bench.model, self.feeds, provider=bench.provider, threads=bench.threads, rounds=_RUNS
        )

    def _save(self, in_float: NodeTimes, in_int8: NodeTimes, made: Made) -> None:
        """Finds what each site saves, the rounding of its activation included."""
        shared: dict[ir.Value, float] = defaultdict(float)
        own: dict[Site, float] = defaultdict(float)
        for name, seconds in in_int8.seconds.items():
            if name in made.shared:
                shared[made.shared[name]] += seconds
            elif name in made.own:
                own[made.own[name]] += seconds
        readers = Counter(site.source for site in self._inner())
        members: dict[str, set[str]] = defaultdict(set)
        for name, owner in self.regions.owner.items():
            members[owner].add(name)
        for site in self._inner():
            names = {key_of(n) for n in (site.node, site.follower) if n is not None}
            units = {self.regions.owner.get(name, name) for name in names}
            # What the kernel in float does besides, such as a Relu, is on its own then.
            names = names.union(*(members[unit] for unit in units))
            spent = own[site] + sum(in_int8.seconds.get(name, 0.0) for name in names)
            self.seconds[site] = spent + shared[site.source] / readers[site.source]
            before = sum(in_float.seconds.get(unit, 0.0) for unit in units)
            self.savings[site] = before - self.seconds[site]

    def _inner(self) -> list[Site]:
        """The sites of the main graph, whose times a profile tells."""
        return [site for site in self.sites if site.node.graph is self.bench.model.graph]

    def _choices(self) -> list[list[Site]]:
        """Sets of sites that are worth a try, none of them twice."""
        outer = [site for site in self.sites if site not in self.savings]
        open_ones = [s for s in self._inner() if s.key not in self.regions.sealed]
        better = [site for site in open_ones if self.savings[site] > 0.0]
        # Conv in float has a layout of its own, and changing between layouts costs time elsewhere.
        surely = [s for s in better if not s.rank or self.savings[s] > self.seconds[s]]
        no_conv = [s for s in better if not s.rank]
        found: dict[frozenset[Site], list[Site]] = {}
        for chosen in (
            [s for s in self.sites if not s.rank],
            [s for s in [*open_ones, *outer] if not s.rank],
            better,
            [*better, *outer],
            surely,
            no_conv,
        ):
            wanted = set(chosen)
            if wanted:
                found.setdefault(frozenset(wanted), [s for s in self.sites if s in wanted])
        return list(found.values())


@dataclass
class Recovery:
    """Computes the most harmful nodes more finely, or in float, until a model is near enough to float.

    Attributes:
        bench: The model.
        placement: Knows whether finer is still faster than float.
        reference: Outputs of the float model on samples that nothing was tuned on.
        floor: Decibels to reach.
        progress: Progress bars.
        changed: What was done to which node, in words.
    """

    bench: DynamicBench
    placement: DynamicPlacement
    reference: Reference
    floor: float
    progress: Progress
    changed: dict[Site, str] = field(default_factory=dict)

    def run(self, grades: Grades, decibels: float) -> tuple[dict[Site, int], float]:
        """Returns grades that reach the floor, and the decibels that they reach."""
        current = dict(grades)
        if decibels >= self.floor:
            return current, decibels
        noise: dict[Site, float] = {}
        with self.progress(len(current), "looking for the nodes that harm most") as task:
            for site in current:
                noise[site] = self._noise(site, current[site])
                task.advance()
        for _ in range(_RECOVERIES):
            if decibels >= self.floor or not current:
                break
            for site in self._worst(current, noise):
                self._improve(site, current)
                noise[site] = self._noise(site, current[site]) if site in current else 0.0
            decibels = self.bench.decibels(current, self.reference) if current else math.inf
        return current, decibels

    def _noise(self, site: Site, grade: int) -> float:
        decibels = self.bench.decibels({site: grade}, self.reference)
        return math.pow(10.0, -decibels / 10.0)

    def _worst(self, current: Grades, noise: Mapping[Site, float]) -> list[Site]:
        """The fewest sites without which the noise of the others is below the floor; one at least."""
        allowed = _SAFETY * 10.0 ** (-self.floor / 10.0)
        ranked = sorted(current, key=lambda site: -noise[site])
        rest = sum(noise[site] for site in current)
        for count, site in enumerate(ranked, 1):
            rest -= noise[site]
            if rest <= allowed:
                return ranked[:count]
        return ranked

    def _improve(self, site: Site, current: dict[Site, int]) -> None:
        affordable = site.kind == "lstm" or (
            site.kind == "product" and self.placement.pays_in_two_digits(site)
        )
        if current[site] < FINE and affordable:
            current[site] = FINE
            fine = "a scale for each column" if site.kind == "lstm" else "two digits"
            self.changed[site] = f"it has {fine}, because int8 alone cost too much accuracy"
        else:
            del current[site]
            self.changed[site] = "it stays float, because int8 cost too much accuracy"
