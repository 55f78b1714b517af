"""Grids of blocks: what they round to, and which search finds the better one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from onnxcomp.quant.blocks import BlockScheme, block_params

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMES = [
    BlockScheme("int2", 32),
    BlockScheme("uint2", 16, symmetric=False),
    BlockScheme("uint3", 32, symmetric=False),
    BlockScheme("int4", 32),
    BlockScheme("uint4", 32, symmetric=False),
    BlockScheme("uint4", 0),
    BlockScheme("int8", 0),
    BlockScheme("uint8", 128, symmetric=False),
]


def heavy(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    """A matrix with outliers."""
    return np.random.default_rng(seed).standard_t(4, size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("method", ["rtn", "mse", "hqq"])
def test_numbers_are_of_the_type_and_values_are_fixed_points(
    scheme: BlockScheme, method: Any
) -> None:
    weight = heavy(100, 7)
    grid = block_params(weight, scheme, method)
    numbers = grid.quantize(weight)
    low, high = scheme.limits
    assert low <= numbers.min() <= numbers.max() <= high
    assert grid.scales.shape == grid.zero_points.shape == (scheme.blocks(100), 7)
    values = grid.dequantize(numbers)
    np.testing.assert_array_equal(grid.quantize(values), numbers)
    rows = np.stack([grid.round_row(weight[row], row) for row in range(100)])
    np.testing.assert_allclose(rows, values, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_least_squares_never_does_worse_than_the_range(scheme: BlockScheme) -> None:
    weight = heavy(96, 11)
    errors = {
        method: np.square(block_params(weight, scheme, method).round(weight) - weight).sum()
        for method in ("rtn", "mse")
    }
    assert errors["mse"] <= errors["rtn"]
    if scheme.bits <= 4:
        assert errors["mse"] < 0.97 * errors["rtn"]


def test_half_quadratic_splitting_lowers_its_norm() -> None:
    weight = heavy(128, 16)
    scheme = BlockScheme("uint4", 64, symmetric=False)

    def norm(method: Any) -> float:
        rounded = block_params(weight, scheme, method).round(weight)
        return float((np.abs(rounded - weight) ** 0.7).sum())

    assert norm("hqq") < norm("mse")
    assert norm("hqq") < norm("rtn")


def test_important_rows_come_out_better() -> None:
    weight = heavy(64, 32)
    importance = np.ones(64)
    importance[::8] = 1000.0
    scheme = BlockScheme("int2", 32)
    plain = block_params(weight, scheme, "mse").round(weight) - weight
    weighed = block_params(weight, scheme, "mse", importance=importance).round(weight) - weight
    assert np.square(weighed[::8]).sum() < 0.9 * np.square(plain[::8]).sum()


def test_a_range_is_used_up_to_the_last_number() -> None:
    weight = np.array([[3.0], [-1.0], [0.5], [1.0]], np.float32)
    grid = block_params(weight, BlockScheme("int4", 0))
    assert grid.scales[0, 0] == -3 / 8  # the number -8 stands for +3
    assert grid.round(weight)[0, 0] == 3.0


def test_eight_bits_need_no_negative_scales() -> None:
    for method in ("rtn", "mse", "hqq"):
        grid = block_params(heavy(100, 40), BlockScheme("int8", 0), method)
        assert (grid.scales > 0).all()


def test_zeros_stay_zeros() -> None:
    weight = np.zeros((64, 3), np.float32)
    weight[:32, 1] = 1.0
    for scheme in SCHEMES:
        for method in ("rtn", "mse", "hqq"):
            rounded = block_params(weight, scheme, method).round(weight)
            np.testing.assert_allclose(rounded, weight, atol=1e-6)


def test_scales_fit_the_type_that_stores_them() -> None:
    weight = np.full((32, 2), 1e-7, np.float32)
    weight[:, 1] = 6e4
    grid = block_params(weight, BlockScheme("int8", 0), scale_dtype=np.float16)
    assert np.isfinite(grid.scales.astype(np.float16)).all()
    assert (np.abs(grid.scales) >= np.finfo(np.float16).tiny).all()
    np.testing.assert_array_equal(grid.scales.astype(np.float16).astype(np.float32), grid.scales)


def test_bytes_count_scales_and_zero_points() -> None:
    assert BlockScheme("int4", 32).nbytes(64, 10) == 320 + 2 * 10 * 4
    assert BlockScheme("uint4", 32, symmetric=False).nbytes(64, 10) == 320 + 80 + 10
    assert BlockScheme("int8", 0).nbytes(100, 3) == 300 + 12
    assert BlockScheme("int4", 32).nbytes(40, 1) == 20 + 2 * 4


@settings(max_examples=60, deadline=None)
@given(
    weight=arrays(
        np.float32,
        array_shapes(min_dims=2, max_dims=2, max_side=40),
        elements=st.floats(-1e3, 1e3, width=32),
    ),
    scheme=st.sampled_from(SCHEMES),
    method=st.sampled_from(["rtn", "mse", "hqq"]),
)
def test_no_value_is_further_away_than_its_block_is_wide(
    weight: NDArray[np.float32], scheme: BlockScheme, method: Any
) -> None:
    rounded = block_params(weight, scheme, method).round(weight)
    assert np.isfinite(rounded).all()
    size = scheme.rows_of_block(weight.shape[0])
    for start in range(0, weight.shape[0], size):
        part = weight[start : start + size]
        width = np.maximum(part.max(axis=0), 0) - np.minimum(part.min(axis=0), 0)
        error = np.abs(rounded[start : start + size] - part).max(axis=0)
        assert (error <= width + 1e-5).all()
