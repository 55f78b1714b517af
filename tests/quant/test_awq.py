"""AWQ: scales and clips that cost less in the output than rounding as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.quant.awq import awq_clip, awq_scales, best_grid, scaled
from onnxcomp.quant.blocks import BlockScheme, block_params
from onnxcomp.quant.grams import Gram

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEME = BlockScheme("uint4", 32, symmetric=False)


def gram_of(rows: NDArray[np.float64]) -> Gram:
    return Gram(rows.T @ rows, rows.sum(axis=0), np.abs(rows).sum(axis=0), len(rows))


def problem(rows: int = 96, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A weight, and inputs of which a few are much larger than the rest."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(500, rows)) * np.where(rng.random(rows) < 0.06, 40.0, 1.0)
    return rng.normal(size=(rows, 24)), inputs


def rounding(weight: NDArray[Any]) -> NDArray[Any]:
    return block_params(weight, SCHEME).round(weight)


def test_scales_protect_rows_with_large_inputs() -> None:
    weight, inputs = problem()
    gram = gram_of(inputs)
    scale, share = awq_scales(weight, gram, rounding)
    large = gram.magnitude > 5 * np.median(gram.magnitude)
    assert large.any()
    assert scale[large].min() > 1.5 * scale[~large].max()
    before = np.square(inputs @ (weight - rounding(weight))).sum()
    rounded = rounding(weight * scale[:, None])
    after = np.square(inputs @ weight - (inputs / scale) @ rounded).sum()
    assert share == pytest.approx(after / before, rel=1e-3)
    assert share < 0.5


def test_weights_that_read_the_same_input_share_the_scale() -> None:
    weight, inputs = problem()
    gram = gram_of(inputs)
    both, _ = awq_scales([weight, weight], gram, rounding)
    np.testing.assert_array_equal(both, awq_scales(weight, gram, rounding)[0])
    other = np.random.default_rng(5).normal(size=(96, 8))
    assert awq_scales([weight, other], gram, rounding)[1] < 0.7


def test_where_no_scale_helps_all_are_one() -> None:
    weight, inputs = problem()
    scale, share = awq_scales(weight, gram_of(inputs), lambda matrix: matrix)
    assert (scale == 1).all()
    assert share == 1.0


def test_inputs_that_are_never_active_keep_their_scale() -> None:
    weight, inputs = problem()
    inputs[:, 7] = 0.0
    assert awq_scales(weight, gram_of(inputs), rounding)[0][7] == 1.0
    assert (awq_scales(weight, gram_of(inputs * 0), rounding)[0] == 1.0).all()


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 80), block=st.sampled_from([0, 16, 32]), seed=st.integers(0, 9))
def test_clipping_is_never_worse_in_any_block(rows: int, block: int, seed: int) -> None:
    weight, inputs = problem(rows, seed)
    scheme = BlockScheme("int4", block)
    plain, clipped = block_params(weight, scheme), awq_clip(weight, gram_of(inputs), scheme)
    size = scheme.rows_of_block(rows)
    for start in range(0, rows, size):
        part = slice(start, start + size)
        before = inputs[:, part] @ (weight - plain.round(weight))[part]
        after = inputs[:, part] @ (weight - clipped.round(weight))[part]
        assert (np.square(after).sum(axis=0) <= np.square(before).sum(axis=0) * 1.0001 + 1e-9).all()


def test_outliers_are_clipped() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_t(3, size=(128, 16))
    gram = gram_of(rng.normal(size=(400, 128)))
    scheme = BlockScheme("uint4", 0, symmetric=False)
    plain, clipped = block_params(weight, scheme), awq_clip(weight, gram, scheme)
    before, after = (gram.error(weight - g.round(weight)) for g in (plain, clipped))
    assert after < 0.85 * before


def test_the_best_of_several_grids() -> None:
    weight, inputs = problem()
    gram = gram_of(inputs @ np.random.default_rng(1).normal(size=(96, 96)))
    grids = [block_params(weight, SCHEME, method) for method in ("rtn", "mse", "hqq")]
    best = best_grid(weight, gram, grids)
    assert best.scales.shape == grids[0].scales.shape
    one = best_grid(weight, gram, grids[1:2])
    np.testing.assert_array_equal(one.scales, grids[1].scales)
    np.testing.assert_array_equal(one.zero_points, grids[1].zero_points)


def test_the_gram_of_divided_rows() -> None:
    _, inputs = problem()
    scale = np.random.default_rng(3).uniform(0.1, 9, 96)
    found, expected = scaled(gram_of(inputs), scale), gram_of(inputs / scale)
    np.testing.assert_allclose(found.matrix, expected.matrix)
    np.testing.assert_allclose(found.magnitude, expected.magnitude)
    np.testing.assert_allclose(found.total, expected.total)
