"""Grids: what a range turns into, and what rounding to it loses."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.quant.scheme import Fixed, Params, QScheme, fixed_params, params_for_range

U8 = QScheme()


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (2.0, 3.0), (-1e-9, 1e9)]
)
def test_zero_is_on_the_grid_and_the_range_is_covered(low: float, high: float) -> None:
    params = params_for_range(low, high, U8)
    bottom, top = params.range
    step = float(params.scale)
    assert params.dequantize(params.quantize(np.zeros(1))) == 0.0
    assert bottom <= min(low, 0.0) + step / 2
    assert top >= max(high, 0.0) - step / 2


def test_a_grid_from_zero_does_not_end_above_the_range() -> None:
    for high in np.random.default_rng(0).uniform(0.01, 100, 500).astype(np.float32):
        assert params_for_range(0.0, float(high), U8).range[1] <= float(high)


def test_an_empty_range_has_a_usable_scale() -> None:
    params = params_for_range(0.0, 0.0, U8)
    assert float(params.scale) == 1.0
    assert params.quantize(np.zeros(3)).tolist() == [0, 0, 0]


def test_symmetric_grids_have_their_zero_in_the_middle() -> None:
    assert int(params_for_range(-1.0, 3.0, QScheme("int8", symmetric=True)).zero_point) == 0
    assert int(params_for_range(-1.0, 3.0, QScheme("uint8", symmetric=True)).zero_point) == 128


def test_rounding_error_is_at_most_half_a_step() -> None:
    values = np.random.default_rng(1).normal(size=1000)
    params = params_for_range(values.min(), values.max(), U8)
    error = np.abs(params.dequantize(params.quantize(values)) - values)
    # The zero point is rounded as well, which may cut half a step off one end.
    assert error.max() <= float(params.scale) * 1.001


def test_values_outside_are_clipped() -> None:
    params = fixed_params(Fixed(1 / 256, 0))
    assert params.quantize(np.array([-1.0, 0.5, 7.0])).tolist() == [0, 128, 255]


def test_scales_vary_along_their_axis() -> None:
    params = Params(np.array([1.0, 0.5], np.float32), np.zeros(2, np.int8), axis=1)
    assert params.quantize(np.array([[2.0, 2.0], [-1.0, -1.0]])).tolist() == [[2, 4], [-1, -2]]
