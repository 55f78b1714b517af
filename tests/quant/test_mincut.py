"""The cheapest split of a graph, against all splits."""

from __future__ import annotations

import itertools

import numpy as np

from onnxcomp.quant.mincut import Cut


def test_it_is_as_cheap_as_the_best_of_all_splits() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = int(rng.integers(2, 7))
        costs = rng.integers(0, 6, (size + 2, size + 2)) * (rng.random((size + 2, size + 2)) < 0.6)
        cut = Cut()
        vertices = [Cut.SOURCE, Cut.SINK, *(cut.vertex() for _ in range(size))]
        for tail, head in itertools.permutations(range(size + 2), 2):
            cut.charge(vertices[tail], vertices[head], float(costs[tail, head]))

        def price(side: set[int], costs: np.ndarray = costs) -> int:
            pairs = itertools.permutations(range(len(costs)), 2)
            return int(sum(costs[a, b] for a, b in pairs if a in side and b not in side))

        inner = range(2, size + 2)
        every = itertools.chain.from_iterable(
            itertools.combinations(inner, count) for count in range(size + 1)
        )
        best = min(price({0, *some}) for some in every)
        assert price(cut.source_side()) == best


def test_a_vertex_without_costs_is_on_the_sink_side() -> None:
    cut = Cut()
    free, bound = cut.vertex(), cut.vertex()
    cut.charge(Cut.SOURCE, bound, 1.0)
    side = cut.source_side()
    assert bound in side
    assert free not in side
