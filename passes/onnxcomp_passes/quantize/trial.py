"""Tries placements: writes a plan into the model, measures it, takes it back."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.compare import Reference, compare
from onnxcomp.quant.observers import choose_range
from onnxcomp.quant.plan import make_plan
from onnxcomp.quant.scheme import Fixed, Params, QScheme, fixed_params, params_for_range
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.insertion import Inserter, Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    import numpy as np

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.candidates import Candidates
    from onnxcomp.quant.observers import Histogram, Method
    from onnxcomp.quant.plan import Plan
    from onnxcomp.quant.regions import Regions
    from onnxcomp.targets import Target

    Feeds = Mapping[str, np.ndarray]


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
    _params: dict[tuple[str, str], Params] = field(default_factory=dict)

    def plan(self, keys: Collection[str]) -> Plan:
        """Returns the plan for a set of int8 nodes."""
        return make_plan(self.candidates, keys, self.target)

    def apply(self, plan: Plan, method: Method) -> None:
        """Writes a plan into the model."""
        params = {point: self._params_of(plan, point, method) for point in plan}
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
        ).run()

    @contextlib.contextmanager
    def applied(self, plan: Plan, method: Method = "min-max") -> Iterator[Model]:
        """Gives the quantized model for a while."""
        mark, stats = self.edit.mark(), self.edit.stats.copy()
        self.apply(plan, method)
        try:
            yield self.model
        finally:
            self.edit.rollback(mark)
            self.edit.stats = stats

    def _params_of(self, plan: Plan, point: str, method: Method) -> Params:
        root = plan.root(point)
        scheme = plan[root]
        if isinstance(scheme, Fixed):
            return fixed_params(scheme)
        if not isinstance(scheme, QScheme):
            raise TypeError(f"a point without numbers of its own: {point}")
        if (root, method) not in self._params:
            low, high = choose_range(self.seen[root], method, scheme, percentile=self.percentile)
            self._params[root, method] = params_for_range(low, high, scheme)
        return self._params[root, method]


def fidelities(
    bench: Bench, plan: Plan, methods: Sequence[Method], samples: Iterable[Feeds], threads: int
) -> dict[Method, float]:
    """Returns for each observer how near its model is to float: SQNR of the worst output in decibels."""
    found: dict[Method, float] = {}
    provider = bench.target.provider
    with Session.open(bench.model, provider=provider, threads=threads) as session:
        reference = Reference(session, samples)
        for method in methods:
            with (
                bench.applied(plan, method) as model,
                Session.open(model, provider=provider, threads=threads) as quantized,
            ):
                result = compare(reference, quantized)
            found[method] = -math.inf if result.reason else result.worst("sqnr_db") or 0.0
    return found
