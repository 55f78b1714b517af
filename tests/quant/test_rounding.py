"""Rounding by descent: as good as trying everything where that is possible, and always within the limits."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.quant.rounding import Steps, best_numbers, equations


def problem(
    seed: int, groups: int, inputs: int, outputs: int, reach: int
) -> tuple[np.ndarray, np.ndarray, Steps]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(groups, 4 * inputs, inputs)) @ rng.normal(size=(groups, inputs, inputs))
    matrix = rows.transpose(0, 2, 1) @ rows
    target = rng.normal(scale=3.0, size=(groups, inputs, outputs))
    start = np.rint(target)
    ones = np.ones(target.shape)
    return matrix, target, Steps(ones, 0 * ones, start - reach, start + reach)


def cost(matrix: np.ndarray, difference: np.ndarray) -> np.ndarray:
    result: np.ndarray = (difference * (matrix @ difference)).sum(axis=1)
    return result


def test_it_comes_near_to_what_trying_everything_finds() -> None:
    matrix, target, steps = problem(0, 1, 5, 40, 1)
    found = cost(matrix, best_numbers(matrix, target, steps, steps.nearest(target)) - target)
    moves = np.array(list(itertools.product((-1, 0, 1), repeat=5)), float)
    every = np.rint(target)[0][:, :, None] + moves.T[:, None, :]
    difference = every - target[0][:, :, None]
    best = np.einsum("knm,kl,lnm->nm", difference, matrix[0], difference).min(axis=1)
    nearest = cost(matrix, np.rint(target) - target)
    assert found.sum() < 1.4 * best.sum()
    assert found.sum() < 0.65 * nearest.sum()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 4),
    st.integers(1, 70),
    st.integers(1, 5),
    st.integers(0, 2),
)
def test_no_output_gets_worse_and_no_number_leaves_its_limits(
    seed: int, groups: int, inputs: int, outputs: int, reach: int
) -> None:
    matrix, target, steps = problem(seed, groups, inputs, outputs, reach)
    start = steps.nearest(target)
    found = best_numbers(matrix, target, steps, start)
    assert (found >= steps.low).all()
    assert (found <= steps.high).all()
    assert np.array_equal(found, np.rint(found))
    before, after = cost(matrix, start - target), cost(matrix, found - target)
    assert (after <= before * (1 + 1e-9) + 1e-9).all()


def test_a_scale_of_zero_moves_nothing() -> None:
    matrix, target, steps = problem(1, 1, 6, 3, 1)
    still = Steps(np.zeros(target.shape), steps.zero, steps.low, steps.high)
    start = np.rint(target)
    assert np.array_equal(best_numbers(matrix, target, still, start), start)


def test_equations_give_the_error_of_a_weight() -> None:
    rng = np.random.default_rng(4)
    pairs = [(rng.normal(2, size=(2, 30, 5)), rng.normal(1, size=(2, 30, 3))) for _ in range(3)]
    weight = rng.normal(size=(2, 5, 3))
    rows, outputs = (np.concatenate([pair[i] for pair in pairs], axis=1) for i in (0, 1))
    plain, centred = (equations(pairs, centred=flag) for flag in (False, True))
    assert plain is not None
    assert centred is not None
    difference = rows @ weight - outputs
    np.testing.assert_allclose(plain.error(weight), (difference**2).sum(axis=1))
    difference -= difference.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centred.error(weight), (difference**2).sum(axis=1))
    _, best = plain.solved(np.zeros(weight.shape), 1e-9)
    for group in range(2):
        expected = np.linalg.lstsq(rows[group], outputs[group])[0]
        np.testing.assert_allclose(best[group], expected, rtol=1e-5, atol=1e-7)


def test_no_rows_are_no_equations() -> None:
    assert equations([], centred=True) is None
    assert equations([(np.zeros((1, 0, 3)), np.zeros((1, 0, 2)))], centred=True) is None
    assert equations([(np.full((1, 2, 3), np.inf), np.zeros((1, 2, 2)))], centred=True) is None
