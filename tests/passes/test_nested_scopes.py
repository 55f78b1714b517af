"""Every pass on random models of branches, loops and functions in one another, in onnxruntime."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx
import pytest

from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from tests.helpers.check import assert_rolls_back, serialized
from tests.helpers.nested import draw, feeds
from tests.helpers.numbers import assert_same_numbers

SEEDS = range(12)
PASSES = (
    "inline-branches",
    "merge-branches",
    "simplify-loops",
    "hoist-invariants",
    "simplify-functions",
    "simplify-sequences",
    "unroll-loops",
    "share-common",
    "eliminate-dead",
    "eliminate-identity",
    "fold-constants",
)


@cache
def _drawn(seed: int) -> onnx.ModelProto:
    return draw(seed)


def _rewritten(pipeline: Pipeline, proto: onnx.ModelProto, tolerance: float = 0) -> onnx.ModelProto:
    got = pipeline.run(proto).model.to_proto()
    onnx.checker.check_model(got)
    for feed in feeds():
        assert_same_numbers(
            proto, got, feed, runtimes=("onnxruntime",), rtol=tolerance, atol=tolerance
        )
    return got


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PASSES)
def test_a_pass_keeps_the_numbers_and_can_be_taken_back(name: str, seed: int) -> None:
    pipeline = Pipeline.parse(name)
    proto = _drawn(seed)
    kept = serialized(proto)
    again: Any = pipeline.run(_rewritten(pipeline, proto))
    assert not again.changed, [outcome.step for outcome in again.outcomes if outcome.changed]
    assert serialized(proto) == kept
    for step in pipeline.steps:
        assert_rolls_back(step, proto)  # type: ignore[arg-type]


# The last one: what is known of values in a body that went with its If.
@pytest.mark.parametrize("seed", [*range(40), 1125])
def test_all_of_them_together_keep_the_numbers(seed: int) -> None:
    """Chains of additions and products by constants are rounded in another order."""
    _rewritten(Pipeline.parse(SIMPLIFY), _drawn(seed), 1e-5)
