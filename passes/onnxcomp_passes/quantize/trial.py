"""Tries placements: writes a plan into the model, measures it, takes it back."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.compare import Reference, compare
from onnxcomp.ir.ops import constant, input_at
from onnxcomp.quant.observers import choose_range
from onnxcomp.quant.plan import make_plan
from onnxcomp.quant.scheme import Fixed, Params, QScheme, fixed_params, params_for_range
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.insertion import Inserter, Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.candidates import Candidates
    from onnxcomp.quant.observers import Histogram, Method
    from onnxcomp.quant.plan import Formats, Plan
    from onnxcomp.quant.regions import Regions
    from onnxcomp.targets import Target

    Feeds = Mapping[str, np.ndarray]
    Methods = Mapping[str, Method]

# Kinds of points, the most frequent ones, that get an observer of their own.
_MOST_KINDS = 4
_NOTABLE_DB = 0.1


@dataclass
class Bench:
    """A float model with everything that is needed to quantize it in one way or another.

    Attributes:
        model: The model.
        edit: The way to change it.
        target: Where it will run.
        candidates: Nodes that can be computed in int8.
        regions: What the provider fuses in float.
        seen: Statistics of the activations.
        weights: How weights are quantized.
        percentile: Share that the observer `percentile` keeps.
        means: Mean of each channel that a node with a weight reads, for the correction of biases.
        formats: Number formats of activations, those of the target by default.
    """

    model: Model
    edit: Edit
    target: Target
    candidates: Candidates
    regions: Regions
    seen: Mapping[str, Histogram]
    weights: Weights
    percentile: float = 99.99
    means: Mapping[str, np.ndarray] = field(default_factory=dict)
    formats: Formats | None = None
    _memory: dict[Hashable, Any] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)
    _params: dict[tuple[str, str], Params] = field(default_factory=dict)

    def plan(self, keys: Collection[str]) -> Plan:
        """Returns the plan for a set of int8 nodes."""
        return make_plan(self.candidates, keys, self.target, self.formats)

    def apply(self, plan: Plan, methods: Methods) -> None:
        """Writes a plan into the model, with an observer for each kind of point."""
        params = {point: self._params_of(plan, point, methods) for point in plan}
        fused = {key: self.regions.owner[key] for key in self.regions.sealed}
        Inserter(
            self.model,
            self.edit,
            plan,
            self.candidates,
            params,
            self.weights,
            fused,
            self.means,
            self._memory,
        ).run()

    @contextlib.contextmanager
    def applied(self, plan: Plan, methods: Methods | None = None) -> Iterator[Model]:
        """Gives the quantized model for a while."""
        mark, stats = self.edit.mark(), self.edit.stats.copy()
        self.apply(plan, methods or {})
        try:
            yield self.model
        finally:
            self.edit.rollback(mark)
            self.edit.stats = stats

    def kind(self, point: str) -> str:
        """Returns what makes a point: the operator, and what was absorbed or scaled in front of it."""
        if not self._kinds:
            self._kinds = dict.fromkeys((v.name or "" for v in self.model.graph.inputs), "input")
            for node in self.model.graph:
                kind = node.op_type
                source = node.inputs[0] if node.inputs else None
                scales = kind == "Mul" and constant(input_at(node, 1)) is not None
                if source is not None and (scales or kind in self.target.absorbable):
                    kind = f"{self._kinds.get(source.name or '', '')}+{kind}"
                self._kinds.update((value.name or "", kind) for value in node.outputs)
        return self._kinds.get(point, "")

    def _params_of(self, plan: Plan, point: str, methods: Methods) -> Params:
        root = plan.root(point)
        scheme = plan[root]
        if isinstance(scheme, Fixed):
            return fixed_params(scheme)
        if not isinstance(scheme, QScheme):
            raise TypeError(f"a point without numbers of its own: {point}")
        method = methods.get(self.kind(root), "min-max")
        if (root, method) not in self._params:
            low, high = choose_range(self.seen[root], method, scheme, percentile=self.percentile)
            self._params[root, method] = params_for_range(low, high, scheme)
        return self._params[root, method]


@dataclass
class ObserverSearch:
    """Finds the observer for each kind of point whose model is nearest to float on samples.

    The squared error of a tensor alone misleads: the outliers of a LayerNormalization are what the next
    layer needs, those of a Gelu are not.

    Attributes:
        bench: The model.
        plan: What is quantized.
        samples: What to judge on.
        threads: Threads of the sessions.
    """

    bench: Bench
    plan: Plan
    samples: Iterable[Feeds]
    threads: int

    def run(self, methods: Sequence[Method]) -> tuple[Methods, float]:
        """Returns the observer of each kind, and the signal-to-noise ratio of the worst output in dB."""
        roots = {self.plan.root(point) for point in self.plan}
        own = [root for root in roots if isinstance(self.plan[root], QScheme)]
        counts = Counter(self.bench.kind(root) for root in own)
        kinds = [kind for kind, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
        provider = self.bench.target.provider
        with Session.open(self.bench.model, provider=provider, threads=self.threads) as session:
            reference = Reference(session, self.samples)
            best: Methods = {}
            most = -math.inf
            trials = [dict.fromkeys(kinds, method) for method in methods]
            for candidate in trials:
                best, most = self._better(reference, candidate, best, most)
            for kind in kinds[:_MOST_KINDS] if len(kinds) > 1 else []:
                for method in methods:
                    if method != best[kind]:
                        best, most = self._better(reference, {**best, kind: method}, best, most)
        return best, most

    def _better(
        self, reference: Reference, candidate: Methods, best: Methods, most: float
    ) -> tuple[Methods, float]:
        found = fidelity(self.bench, self.plan, candidate, reference, self.threads)
        return (candidate, found) if found > most + _NOTABLE_DB or not best else (best, most)


def fidelity(
    bench: Bench, plan: Plan, methods: Methods, reference: Reference, threads: int
) -> float:
    """Returns the signal-to-noise ratio of the worst output of a quantized model in decibels."""
    with (
        bench.applied(plan, methods) as model,
        Session.open(model, provider=bench.target.provider, threads=threads) as quantized,
    ):
        result = compare(reference, quantized)
    return -math.inf if result.reason else result.worst("sqnr_db") or 0.0
