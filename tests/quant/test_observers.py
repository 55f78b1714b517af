"""Running statistics, and ranges chosen from them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from onnxcomp.errors import SamplesError
from onnxcomp.quant.observers import BINS, Histogram, choose_range, rounding_error
from onnxcomp.quant.scheme import QScheme

U8 = QScheme()


def histogram(*arrays: np.ndarray) -> Histogram:
    seen = Histogram()
    for array in arrays:
        seen.add(array.astype(np.float32), "x")
    return seen


def outlier_data() -> np.ndarray:
    data = np.random.default_rng(0).normal(size=20000)
    data[:3] = 40.0
    return data


def test_the_order_of_samples_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.normal(scale=scale, size=500) for scale in (0.001, 7.0, 0.2, 300.0)]
    first, second = histogram(*parts), histogram(*reversed(parts))
    assert (first.low, first.high, first.count) == (second.low, second.high, second.count)
    assert first.width == second.width
    np.testing.assert_array_equal(first.counts, second.counts)


def test_the_batch_size_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    items = rng.normal(size=(8, 3, 200, 100))
    single, batched = histogram(*(item[None] for item in items)), histogram(items)
    np.testing.assert_array_equal(single.counts, batched.counts)
    assert (single.low, single.high) == (batched.low, batched.high)


def test_every_value_is_counted_and_memory_stays_bounded() -> None:
    rng = np.random.default_rng(4)
    seen = Histogram()
    for power in range(-20, 20):
        seen.add((rng.normal(size=100) * 2.0**power).astype(np.float32))
    assert seen.counts.sum() == seen.count == 4000
    assert seen.counts.size <= BINS
    assert seen.width == pytest.approx((seen.high - seen.low) / BINS, rel=1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_an_error_that_names_the_tensor(bad: float) -> None:
    with pytest.raises(SamplesError, match="conv_out"):
        Histogram().add(np.array([1.0, bad], np.float32), "conv_out")


def test_empty_tensors_are_no_news() -> None:
    assert histogram(np.zeros((0, 3))).count == 0


def test_min_max_covers_everything_and_zero() -> None:
    assert choose_range(histogram(np.array([2.0, 5.0])), "min-max", U8) == (0.0, 5.0)


def test_percentile_leaves_outliers_out() -> None:
    low, high = choose_range(histogram(outlier_data()), "percentile", U8, percentile=99.9)
    assert 2.8 < high < 4.5
    assert -4.5 < low < -2.8


def test_percentile_100_is_min_max() -> None:
    seen = histogram(outlier_data())
    assert choose_range(seen, "percentile", U8, percentile=100.0) == pytest.approx(
        choose_range(seen, "min-max", U8), abs=seen.width
    )


def test_mse_has_the_least_error_among_the_observers() -> None:
    data = outlier_data()
    data[:20] = 12.0
    seen = histogram(data)
    errors = {
        method: rounding_error(seen, *choose_range(seen, method, U8), U8)
        for method in ("min-max", "percentile", "mse", "entropy")
    }
    assert errors["mse"] == min(errors.values())


def test_the_expected_error_is_the_real_one() -> None:
    data = np.random.default_rng(5).normal(size=50000)
    seen = histogram(data)
    from onnxcomp.quant.scheme import params_for_range

    for limit in (1.0, 2.0, 4.0):
        params = params_for_range(-limit, limit, U8)
        real = np.square(params.dequantize(params.quantize(data)) - data).mean()
        assert rounding_error(seen, -limit, limit, U8) == pytest.approx(real, rel=0.05)


def test_entropy_cuts_a_lonely_outlier() -> None:
    assert choose_range(histogram(outlier_data()), "entropy", U8)[1] < 40.0


def test_a_constant_tensor_has_a_range() -> None:
    for method in ("min-max", "percentile", "mse", "entropy"):
        low, high = choose_range(histogram(np.full(100, 3.0)), method, U8)
        assert low == 0.0
        assert high == pytest.approx(3.0)


def test_more_percentile_means_more_range() -> None:
    seen = histogram(np.random.default_rng(6).standard_cauchy(size=30000))
    tops = [choose_range(seen, "percentile", U8, percentile=p)[1] for p in (90, 99, 99.9)]
    assert all(first < second for first, second in pairwise(tops))


def test_the_moving_average_is_that_of_items_in_their_order() -> None:
    items = np.random.default_rng(7).normal(size=(150, 30)).astype("f4")
    seen = histogram(items[:3], items[3:])
    average = 0.0
    for number, item in enumerate(items, 1):
        average += max(1 / number, 0.01) * (float(item.max()) - average)
    assert seen.items == 150
    assert seen.average_high == pytest.approx(average, rel=1e-12)
    assert histogram(items[:100]).average_low == pytest.approx(items[:100].min(axis=1).mean())
    assert choose_range(seen, "moving-average", U8) == (seen.average_low, seen.average_high)


def test_entropy_never_leaves_all_values_out() -> None:
    seen = histogram(np.random.default_rng(8).uniform(9.0, 360.0, size=5000))
    assert choose_range(seen, "entropy", U8)[1] > 100.0


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_mse_is_at_least_as_good_as_any_share_of_the_range(dtype: str, symmetric: bool) -> None:
    scheme = QScheme(dtype, symmetric)  # type: ignore[arg-type]
    seen = histogram(np.random.default_rng(9).laplace(size=30000) * 3 + 1)
    found = rounding_error(seen, *choose_range(seen, "mse", scheme), scheme)
    for low in np.linspace(0.1, 1.0, 10):
        for high in np.linspace(0.1, 1.0, 10):
            assert found <= 1.01 * rounding_error(seen, seen.low * low, seen.high * high, scheme)


def test_a_state_leads_back_to_what_it_came_from() -> None:
    rng = np.random.default_rng(10)
    seen = histogram(rng.normal(size=(4, 100)), rng.normal(size=(2, 700)) * 50)
    again = Histogram.from_state(seen.state())
    more = rng.normal(size=(3, 20)).astype("f4") * 700
    seen.add(more)
    again.add(more)
    np.testing.assert_array_equal(seen.state(), again.state())
    assert Histogram.from_state(Histogram().state()).count == 0


@pytest.mark.parametrize(
    "state",
    [
        np.zeros(3),
        np.zeros((3, 3)),
        np.zeros(9),
        np.zeros(9 + 2 * BINS),
        np.full(40, np.nan),
        np.zeros(20, np.float32),
        np.array([-1e38, 1e38, 0, 0, 1, 1, 1, -120, 0, 1.0]),
        np.array([0, 1, 0, 1, 1, 1, 1, 1e9, 0, 1.0]),
    ],
)
def test_states_that_no_data_leads_to_are_refused(state: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not the state"):
        Histogram.from_state(state)
