"""GPTQ and SparseGPT: on the grid, near in the output, equal to the textbook form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.quant.blocks import BlockScheme, block_params
from onnxcomp.quant.gptq import DAMPING, gptq, gptq_grid, per_column, sparsegpt

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.gptq import Order, RoundRow

    Matrix = NDArray[np.float64]

SCHEME = BlockScheme("uint4", 32, symmetric=False)


def problem(rows: int = 192, columns: int = 24, seed: int = 0) -> tuple[Matrix, Matrix]:
    """A weight and rows whose numbers depend on each other, as those of real layers do."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(rows, rows)) * np.exp(rng.normal(size=rows))
    inputs = rng.normal(size=(4 * rows, rows)) @ mix
    return rng.normal(size=(rows, columns)), inputs.T @ inputs


def error(gram: Matrix, difference: NDArray[Any]) -> float:
    return float(np.sum((gram @ difference) * difference))


def textbook(weight: Matrix, gram: Matrix, rounding: RoundRow, order: NDArray[np.intp]) -> Matrix:
    """The algorithm of the paper without blocks: one row at a time, by the inverse of the Hessian."""
    hessian = gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram))
    upper = np.linalg.cholesky(np.linalg.inv(hessian[np.ix_(order, order)])).T
    work = weight[order].copy()
    for index in range(len(work)):
        row = rounding(work[index], int(order[index]))
        step = (work[index] - row) / upper[index, index]
        work[index + 1 :] -= np.outer(upper[index, index + 1 :], step)
        work[index] = row
    found = np.empty_like(work)
    found[order] = work
    return found


@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("rows", [1, 100, 192, 300])
def test_it_is_the_algorithm_of_the_paper(rows: int, order: Order) -> None:
    weight, gram = problem(rows, 7)
    rounding = block_params(weight, SCHEME).round_row
    places = np.arange(rows)
    if order == "activation":
        places = np.argsort(-np.diag(gram), kind="stable")
    expected = textbook(weight, gram, rounding, places)
    np.testing.assert_allclose(
        gptq(weight, gram, rounding, order=order), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("scheme", [SCHEME, BlockScheme("int4", 16), BlockScheme("int8", 0)])
def test_outputs_are_nearer_than_by_rounding(scheme: BlockScheme) -> None:
    weight, gram = problem()
    grid = block_params(weight, scheme, "mse")
    rounded = gptq(weight, gram, grid.round_row)
    np.testing.assert_array_equal(rounded, grid.round(rounded))
    assert error(gram, weight - rounded) < 0.6 * error(gram, weight - grid.round(weight))


def test_grids_chosen_on_the_way() -> None:
    weight, gram = problem(200)
    grid, rounded = gptq_grid(weight, gram, SCHEME)
    assert grid.scales.shape == (7, 24)
    np.testing.assert_allclose(rounded, grid.round(rounded), rtol=1e-6)
    plain = block_params(weight, SCHEME, "mse").round(weight)
    assert error(gram, weight - rounded) < 0.6 * error(gram, weight - plain)


def test_scales_of_columns_in_int8() -> None:
    weight, gram = problem()
    scale = np.abs(weight).max(axis=0) / 127
    rounding = per_column(scale, 0, -128, 127)
    nearest = np.stack([rounding(row, 0) for row in weight])
    rounded = gptq(weight, gram, rounding)
    np.testing.assert_allclose(rounded / scale, np.rint(rounded / scale), atol=1e-3)
    assert np.abs(rounded / scale).max() < 128.001
    assert error(gram, weight - rounded) < 0.7 * error(gram, weight - nearest)


def test_rows_that_were_never_active_are_rounded_to_nearest() -> None:
    weight, gram = problem()
    gram[:, [3, 50]] = gram[[3, 50]] = 0.0
    grid = block_params(weight, SCHEME)
    rounded = gptq(weight, gram, grid.round_row)
    np.testing.assert_array_equal(rounded[[3, 50]], grid.round(weight)[[3, 50]])


@pytest.mark.parametrize("gram", [np.zeros((192, 192)), np.eye(192)])
def test_without_any_dependence_it_is_rounding(gram: Matrix) -> None:
    weight, _ = problem()
    grid = block_params(weight, SCHEME)
    np.testing.assert_array_equal(gptq(weight, gram, grid.round_row), grid.round(weight))


def test_a_gram_that_is_singular_or_not_quite_positive() -> None:
    weight, _ = problem()
    one = np.ones((192, 1))
    grid = block_params(weight, SCHEME)
    for gram in (one @ one.T, one @ one.T - 0.2 * np.eye(192)):
        assert np.isfinite(gptq(weight, gram, grid.round_row, damping=0.0)).all()


def test_nothing_to_do() -> None:
    assert gptq(np.zeros((0, 3)), np.zeros((0, 0)), lambda row, _: row).shape == (0, 3)
    assert sparsegpt(np.zeros((4, 0)), np.eye(4), 0.5).shape == (4, 0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_pruned_outputs_are_nearer_than_by_magnitude(share: float) -> None:
    weight, gram = problem(256, 16)
    pruned = sparsegpt(weight, gram, share)
    assert np.mean(pruned == 0) == pytest.approx(share, abs=0.01)
    magnitude = np.where(np.abs(weight) > np.quantile(np.abs(weight), share), weight, 0)
    assert error(gram, weight - pruned) < 0.5 * error(gram, weight - magnitude)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 5), kept=st.integers(0, 4), of=st.integers(4, 6)
)
def test_no_more_than_n_of_m_stay(rows: int, columns: int, kept: int, of: int) -> None:
    weight, gram = problem(rows, columns, seed=rows)
    pruned = sparsegpt(weight, gram, (kept, of))
    for start in range(0, rows, of):
        part = pruned[start : start + of]
        assert (np.count_nonzero(part, axis=0) <= kept).all()
        assert (np.count_nonzero(part, axis=0) == min(kept, len(part))).all()


def test_two_of_four_then_int4_at_once() -> None:
    weight, gram = problem(256, 16)
    grid = block_params(weight, BlockScheme("int4", 32))
    both = sparsegpt(weight, gram, (2, 4), quantize_column=grid.round_row)
    np.testing.assert_array_equal(both, grid.round(both))
    assert np.mean(both == 0) >= 0.5
    after = grid.round(sparsegpt(weight, gram, (2, 4)))
    assert error(gram, weight - both) < error(gram, weight - after)


def test_what_others_can_do_too_is_pruned_without_loss() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(200, 6)), 2, axis=1)
    weight = rng.normal(size=(12, 5))
    for goal in (0.5, (1, 2)):
        pruned = sparsegpt(weight, rows.T @ rows, goal, damping=1e-9)
        assert np.mean(pruned == 0) == pytest.approx(0.5)
        np.testing.assert_allclose(rows @ pruned, rows @ weight, atol=1e-3)


def test_tiles_go_together() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(200, 264)) @ rng.normal(size=(264, 264))
    pruned = sparsegpt(rng.normal(size=(264, 12)), rows.T @ rows, 0.5, tile=(4, 3))
    zero = (pruned == 0).reshape(66, 4, 4, 3)
    assert (zero.all((1, 3)) == zero.any((1, 3))).all()
    assert zero.mean() == pytest.approx(0.5)
