"""Networks of random layers: units that are removed are those that were masked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.networks import STEPS, drawn
from tests.helpers.removing import assert_removable

LAYERS = st.lists(st.sampled_from(sorted(STEPS)), min_size=2, max_size=12)
PREFER = st.sampled_from(["large", "outer", "inner"])


def check(steps: list[str], prefer: str, seed: int) -> None:
    # Rounding to a grid may tip over where sums are added up in another order.
    tolerance = 0.1 if "rounded" in steps else 2e-5
    assert_removable(drawn(steps, seed), prefer=prefer, seed=seed, tolerance=tolerance)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(LAYERS, PREFER, st.integers(0, 1 << 20))
def test_removing_is_masking(steps: list[str], prefer: str, seed: int) -> None:
    check(steps, prefer, seed)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None)
@given(LAYERS, PREFER, st.integers(0, 1 << 20))
def test_removing_is_masking_in_many(steps: list[str], prefer: str, seed: int) -> None:
    check(steps, prefer, seed)
