"""Tries placements: writes a plan into the model, measures it, takes it back."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.compare import Reference, compare
from onnxcomp.quant.observers import choose_range
from onnxcomp.quant.plan import make_plan
from onnxcomp.quant.scheme import Fixed, Params, QScheme, fixed_params, params_for_range
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.insertion import Inserter, Weights

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Iterator, Mapping

    import numpy as np

    from onnxcomp.ir import Edit, Model
    from onnxcomp.quant.candidates import Candidates
    from onnxcomp.quant.channels import Channels
    from onnxcomp.quant.observers import Histogram, Method
    from onnxcomp.quant.plan import Formats, Plan
    from onnxcomp.quant.regions import Regions
    from onnxcomp.targets import Target

    Feeds = Mapping[str, np.ndarray]
    Methods = Mapping[str, Method]


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
        channels: What is known of the channels that weights read.
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
    channels: Mapping[str, Channels] = field(default_factory=dict)
    _memory: dict[Hashable, Any] = field(default_factory=dict)
    _params: dict[tuple[str, str, QScheme], Params] = field(default_factory=dict)

    def plan(self, keys: Collection[str]) -> Plan:
        """Returns the plan for a set of int8 nodes."""
        return make_plan(self.candidates, keys, self.target, self.formats)

    def apply(self, plan: Plan, methods: Methods) -> None:
        """Writes a plan into the model, with the observer of each point, `min-max` by default."""
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

    def _params_of(self, plan: Plan, point: str, methods: Methods) -> Params:
        root = plan.root(point)
        scheme = plan[root]
        if isinstance(scheme, Fixed):
            return fixed_params(scheme)
        return self.params(plan, root, methods.get(root, "min-max"))

    def params(self, plan: Plan, root: str, method: Method) -> Params:
        """Returns the numbers that an observer gives a point with numbers of its own."""
        scheme = plan[root]
        if not isinstance(scheme, QScheme):
            raise TypeError(f"a point without numbers of its own: {root}")
        key = (root, method, scheme)
        if key not in self._params:
            low, high = choose_range(self.seen[root], method, scheme, percentile=self.percentile)
            self._params[key] = params_for_range(low, high, scheme)
        return self._params[key]


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
