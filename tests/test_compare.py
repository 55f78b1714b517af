"""Comparing outputs: numbers against their definitions, failures that name the place."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from onnxcomp.compare import Comparer, Comparison, Reference, Tolerance, compare, looks_like_scores

Outputs = dict[str, Any]


class Recorded:
    """A runner that looks its outputs up by the number in the feeds, and counts its runs."""

    def __init__(self, outputs: list[Outputs]) -> None:
        self.outputs = outputs
        self.runs = 0

    def run(self, feeds: Mapping[str, np.ndarray], /) -> Outputs:
        self.runs += 1
        return self.outputs[int(feeds["i"])]


def samples(count: int) -> list[dict[str, np.ndarray]]:
    return [{"i": np.array(index)} for index in range(count)]


def judge(
    want: list[np.ndarray], got: list[np.ndarray], tolerance: Tolerance | None = None
) -> Comparison:
    comparer = Comparer(tolerance)
    for first, second in zip(want, got, strict=True):
        comparer.add({"y": first}, {"y": second})
    return comparer.result()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


class TestNumbers:
    def test_definitions(self, rng: np.random.Generator) -> None:
        want = [rng.standard_normal((1, 5)).astype(np.float32) for _ in range(4)]
        got = [a + rng.standard_normal(a.shape).astype(np.float32) / 100 for a in want]
        (found,) = judge(want, got).outputs
        a, b = np.stack(want).astype(float), np.stack(got).astype(float)
        rows_a, rows_b = a.reshape(4, -1), b.reshape(4, -1)
        cosines = (rows_a * rows_b).sum(1) / np.linalg.norm(rows_a, axis=1)
        cosines /= np.linalg.norm(rows_b, axis=1)
        assert found.elements == found.differing == 20
        assert found.sqnr_db == pytest.approx(10 * math.log10((a**2).sum() / ((a - b) ** 2).sum()))
        assert found.cosine == pytest.approx(cosines.mean())
        assert found.max_abs == pytest.approx(np.abs(a - b).max())
        assert found.mean_abs == pytest.approx(np.abs(a - b).mean())
        assert found.max_relative == pytest.approx((np.abs(a - b) / np.abs(a)).max())
        assert found.top1 == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())
        assert found.non_finite == 0

    def test_equal_outputs(self, rng: np.random.Generator) -> None:
        values = rng.standard_normal((2, 3)).astype(np.float32)
        values[0, 0], values[1, 1] = np.nan, np.inf
        found = judge([values], [values.copy()], Tolerance(0, 0))
        assert found
        assert found.identical
        assert found.outputs[0].sqnr_db == 200
        assert found.outputs[0].cosine == pytest.approx(1)

    def test_zero_against_something_is_the_worst(self) -> None:
        (found,) = judge([np.zeros(3)], [np.ones(3)]).outputs
        assert (found.sqnr_db, found.cosine) == (-200, 0)
        (found,) = judge([np.zeros(3)], [np.zeros(3)]).outputs
        assert (found.sqnr_db, found.cosine) == (200, 1)

    def test_huge_numbers_stay_numbers(self) -> None:
        (found,) = judge([np.full(3, 1e300)], [np.full(3, 1.1e300)]).outputs
        assert found.cosine == pytest.approx(1)
        json.dumps(found.sqnr_db, allow_nan=False)

    @pytest.mark.parametrize(
        "dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.int4, np.float16, np.uint8]
    )
    def test_every_type_of_number(self, dtype: Any) -> None:
        want: np.ndarray = np.array([1, 2, 4], dtype)
        got: np.ndarray = np.array([1, 2, 3], dtype)
        (found,) = judge([want], [got]).outputs
        assert (found.differing, found.max_abs) == (1, 1)
        assert found.dtype == np.dtype(dtype).name

    def test_complex_numbers(self) -> None:
        (found,) = judge([np.array([1 + 1j])], [np.array([1 + 2j])]).outputs
        assert found.max_abs == 1

    def test_text_sequences_and_maps(self) -> None:
        comparer = Comparer(Tolerance())
        first = {"s": [np.array([1.0]), np.array([2.0])], "t": np.array(["a", "b"], object)}
        second = {"s": [np.array([1.0]), np.array([3.0])], "t": np.array(["a", "c"], object)}
        comparer.add({**first, "m": [{"k": 1.5}]}, {**second, "m": [{"k": 1.5}]})
        found = {output.name: output for output in comparer.result().outputs}
        assert {name: output.differing for name, output in found.items()} == {
            "s[0]": 0,
            "s[1]": 1,
            "t": 1,
            "m[0][k]": 0,
        }
        assert found["t"].cosine is None

    def test_an_empty_output_is_equal(self) -> None:
        assert judge([np.zeros((0, 3))], [np.zeros((0, 3))], Tolerance(0, 0)).identical


class TestVerdict:
    def test_within_and_outside(self) -> None:
        want, got = np.array([[1.0, 100.0]]), np.array([[1.0, 100.5]])
        assert judge([want], [got], Tolerance(rtol=1e-2, atol=0))
        found = judge([want, want], [want, got], Tolerance(rtol=1e-3, atol=0))
        assert not found
        assert found.reason == (
            'output "y" of sample 1 is 100.5 instead of 100 at [0, 1], '
            "outside rtol 0.001, atol 0 in 1 of 2 elements"
        )

    def test_share_of_the_peak(self) -> None:
        want, got = np.array([0.001, 1000.0]), np.array([0.002, 1000.0])
        assert not judge([want], [got], Tolerance(1e-3, 1e-5))
        assert judge([want], [got], Tolerance(1e-3, 1e-5, of_peak=1e-5))

    @pytest.mark.parametrize(("first", "second"), [(1.0, np.nan), (np.inf, 1.0), (np.inf, -np.inf)])
    def test_non_finite_on_one_side_fails_always(self, first: float, second: float) -> None:
        found = judge([np.array([first, 1.0])], [np.array([second, 1.0])])
        assert not found
        assert "NaN or infinite on one side only in 1 of 2" in found.reason
        assert found.outputs[0].non_finite == 1
        assert found.outputs[0].cosine == 0

    def test_other_shapes_and_types_fail_always(self) -> None:
        found = judge([np.ones((1, 3))], [np.ones((3, 1))])
        assert found.reason == 'output "y" of sample 0 has shape [3, 1], not [1, 3]'
        assert found.outputs[0].cosine == 0
        found = judge([np.ones(3)], [np.ones(3, np.float32)])
        assert found.reason == 'output "y" of sample 0 has type float32, not float64'

    def test_missing_and_extra_outputs_fail_always(self) -> None:
        comparer = Comparer()
        comparer.add({"a": np.ones(2)}, {"b": np.ones(2)})
        assert comparer.result().reason == 'output "a" of sample 0 is missing'
        comparer = Comparer()
        comparer.add({}, {"b": np.ones(2)})
        assert comparer.result().reason == 'output "b" of sample 0 is not expected'

    def test_result_is_plain_data(self) -> None:
        found = judge([np.array([1.0])], [np.array([2.0])], Tolerance())
        data = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert data["passed"] is False
        assert data["outputs"][0]["max_abs"] == 1
        assert data["tolerance"]["rtol"] == 1e-3


class TestScores:
    def test_probabilities_logits_and_others(self, rng: np.random.Generator) -> None:
        logits = rng.standard_normal((4, 10)) * 3
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        assert looks_like_scores(logits)
        assert looks_like_scores(probabilities)
        assert looks_like_scores(probabilities.reshape(2, 2, 10).astype(np.float32))
        assert not looks_like_scores(logits.reshape(2, 2, 10))
        assert not looks_like_scores(logits, is_alone=False)
        assert not looks_like_scores(logits / np.linalg.norm(logits, axis=1, keepdims=True))
        assert not looks_like_scores(np.abs(logits))
        assert not looks_like_scores(logits[:, :1])
        assert not looks_like_scores(logits.astype(np.int64))

    def test_nan_never_agrees(self) -> None:
        want = np.array([[3.0, -1.0]])
        (found,) = judge([want, want], [want, np.array([[np.nan, -1.0]])]).outputs
        assert found.top1 == 0.5


class TestRunning:
    def test_two_runners(self) -> None:
        first = Recorded([{"y": np.array([1.0])}, {"y": np.array([2.0])}])
        second = Recorded([{"y": np.array([1.0])}, {"y": np.array([2.5])}])
        found = compare(first, second, samples(2), tolerance=Tolerance())
        assert found.samples == 2
        assert "sample 1" in found.reason
        assert found.worst("cosine") == pytest.approx(1)

    def test_samples_are_taken_one_by_one(self) -> None:
        held: list[int] = []

        def lazy() -> Iterator[dict[str, np.ndarray]]:
            for index in range(3):
                assert first.runs == second.runs == index
                held.append(index)
                yield {"i": np.array(index)}

        first = Recorded([{"y": np.array([1.0])}] * 3)
        second = Recorded([{"y": np.array([1.0])}] * 3)
        compare(first, second, lazy())
        assert held == [0, 1, 2]

    @pytest.mark.parametrize(("budget", "runs"), [(1 << 20, 4), (8 * 3, 5), (0, 8)])
    def test_reference_remembers_what_fits(self, budget: int, runs: int) -> None:
        recorded = Recorded([{"y": np.array([float(index)])} for index in range(4)])
        reference = Reference(recorded, samples(4), budget=budget)
        for _ in range(2):
            found = compare(reference, Recorded(recorded.outputs))
            assert found.identical
            assert found.samples == 4
        assert recorded.runs == runs
