"""Random models across the whole operator set and opsets 7 to 25: nothing wrong, nothing invalid."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp import registry
from onnxcomp.optimization import SIMPLIFY
from tests.helpers.drawn import OPERATORS, VARIANTS, Drawn, draw_any
from tests.helpers.drawn.core import RefusedError
from tests.helpers.judge import BAD, References, Verdict, judge, references, settles

BATCH = 10
# Another opset is wanted for its own sake only, and rules are a user's.
LOSSLESS = sorted(
    name
    for name in registry.passes()
    if registry.get(name).lossless
    and not registry.get(name).needs
    and not any(option.is_required() for option in registry.get(name).model_fields.values())
    and name != "convert-opset"
)


def _known(drawn: Drawn) -> References:
    return references(drawn.proto, {variant: drawn.feeds(variant) for variant in VARIANTS})


def _assert_good(drawn: Drawn, recipe: str, verdict: Verdict) -> None:
    assert verdict.outcome not in BAD, f"seed {drawn.seed}, {recipe}: {verdict}"


@pytest.mark.parametrize("index", range(10))
def test_optimize_is_never_wrong(index: int) -> None:
    outcomes = set()
    for seed in range(index * BATCH, (index + 1) * BATCH):
        drawn = draw_any(seed, 8)
        known = _known(drawn)
        assert "ordinary" in known
        verdict = judge(drawn.proto, SIMPLIFY, known)
        _assert_good(drawn, "optimize", verdict)
        outcomes.add(verdict.outcome)
        assert settles(drawn.proto, SIMPLIFY), seed
    assert outcomes & {"exact", "close"}


@pytest.mark.parametrize("index", range(5))
def test_passes_in_any_order_are_never_wrong(index: int) -> None:
    for seed in range(5000 + index * BATCH, 5000 + (index + 1) * BATCH):
        drawn = draw_any(seed, 8)
        count = 1 + seed % 5
        recipe = ",".join(LOSSLESS[(seed * 7 + 3 * k) % len(LOSSLESS)] for k in range(count))
        _assert_good(drawn, recipe, judge(drawn.proto, recipe, _known(drawn)))


@pytest.mark.slow
@settings(
    max_examples=300, deadline=None, derandomize=True, database=None, print_blob=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(seed=st.integers(10**6, 2**40), steps=st.integers(1, 16))
def test_optimize_is_never_wrong_on_whatever_hypothesis_draws(seed: int, steps: int) -> None:
    drawn = draw_any(seed, steps)
    _assert_good(drawn, "optimize", judge(drawn.proto, SIMPLIFY, _known(drawn)))


@pytest.mark.slow
@pytest.mark.parametrize("operator", sorted(set(OPERATORS) - {"CumProd"}))  # of opset 26
def test_each_operator_in_each_opset(operator: str) -> None:
    """The operator first, so that it is surely there, with little around it."""
    ran = 0
    for opset in range(7, 26):
        try:
            drawn = draw_any(opset, 3, operator, opset)
        except RefusedError:
            continue
        ran += 1
        _assert_good(drawn, "optimize", judge(drawn.proto, SIMPLIFY, _known(drawn)))
    assert ran
