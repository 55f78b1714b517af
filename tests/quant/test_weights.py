"""Weights as int8 and biases as int32."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.quant.weights import bias_params, weight_params, weight_shift, widened_for_bias


def a_weight() -> np.ndarray:
    rng = np.random.default_rng(0)
    sizes = np.array([1, 10, 0.1, 0])[:, None, None, None]
    weight: np.ndarray = (rng.normal(size=(4, 3, 3, 3)) * sizes).astype("f4")
    return weight


def error(weight: np.ndarray) -> np.ndarray:
    params = weight_params(weight, 0)
    squared = np.square(params.dequantize(params.quantize(weight)) - weight)
    lost: np.ndarray = squared.sum(axis=(1, 2, 3))
    return lost


def test_every_channel_has_a_scale_of_its_own_and_zero_stays_zero() -> None:
    weight = a_weight()
    params = weight_params(weight, 0)
    assert params.scale.shape == (4,)
    np.testing.assert_allclose(
        params.scale[:3] * 127, np.abs(weight).max(axis=(1, 2, 3))[:3], rtol=1e-6
    )
    assert params.quantize(weight)[3].any() == np.False_
    assert not params.zero_point.any()


def test_one_scale_for_all_loses_the_small_channels() -> None:
    weight = a_weight()
    shared = weight_params(weight, None)
    assert shared.scale.shape == ()
    lost = np.square(shared.dequantize(shared.quantize(weight)) - weight).sum(axis=(1, 2, 3))
    assert lost[2] > 100 * error(weight)[2]


def test_reduced_range_stays_inside_seven_bits() -> None:
    weight = a_weight()
    assert np.abs(weight_params(weight, 0, reduce_range=True).quantize(weight)).max() == 64


def test_a_bias_that_would_overflow_widens_the_scale_of_its_channel() -> None:
    weight = np.full((2, 1, 1, 1), 1e-9, np.float32)
    bias = np.array([100.0, 0.0], np.float32)
    params = weight_params(weight, 0)
    widened = widened_for_bias(params, bias, 0.01)
    grid = bias_params(widened, 0.01, 2)
    np.testing.assert_allclose(grid.dequantize(grid.quantize(bias)), bias, rtol=1e-6)
    assert widened.scale[1] == params.scale[1]
    assert widened.scale[0] > params.scale[0]


def test_bias_rounds_to_the_product_of_both_scales() -> None:
    params = weight_params(a_weight(), 0)
    grid = bias_params(params, 0.5, 4)
    assert grid.zero_point.dtype == np.int32
    np.testing.assert_allclose(grid.scale, params.scale * 0.5)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_shift_is_what_rounding_does_to_the_mean(axis: int) -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(5, 7)).astype("f4")
    rounded = np.round(weight * 4) / 4
    inputs = rng.normal(loc=3.0, size=(1000, 7 if axis == 0 else 5))
    products = [inputs @ (w.T if axis == 0 else w) for w in (weight, rounded)]
    expected = products[1].mean(axis=0) - products[0].mean(axis=0)
    got = weight_shift(weight, rounded, inputs.mean(axis=0), axis, grouped=False)
    np.testing.assert_allclose(got, expected, atol=1e-6)
