"""Metrics: loading a user's function, built-in fidelity, what a drop is."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.compare import Comparer, Comparison, Reference
from onnxcomp.errors import UserError
from onnxcomp.metrics import (
    Fidelity,
    Score,
    UserMetric,
    evaluate,
    find_metric,
    load_metric,
    parse_drop,
    relative_drop,
)

ACCURACY = """
import helper_beside_it

def score(outputs, labels):
    got = [int(sample["y"].argmax()) for sample in outputs]
    return {"accuracy": helper_beside_it.share(got, labels["label_y"]), "other": 7}

def number(outputs, labels):
    return 0.5

def text(outputs, labels):
    return "good"

def nothing(outputs, labels):
    return {}

def broken(outputs, labels):
    return labels["label_z"]

def lost(outputs, labels):
    return float("nan")

constant = 3
"""


class Scaled:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def run(self, feeds: Mapping[str, np.ndarray], /) -> dict[str, Any]:
        return {"y": feeds["x"] * self.factor}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "metric.py").write_text(ACCURACY)
    (tmp_path / "helper_beside_it.py").write_text(
        "def share(a, b):\n    return sum(x == y for x, y in zip(a, b)) / len(a)\n"
    )
    return tmp_path


def comparison(want: np.ndarray, got: np.ndarray) -> Comparison:
    comparer = Comparer()
    comparer.add({"y": want}, {"y": got})
    return comparer.result()


class TestUserMetric:
    def test_function_of_a_file(self, folder: Path) -> None:
        metric = load_metric(f"{folder / 'metric.py'}:score")
        feeds = [{"x": np.array([0.0, 1.0])}, {"x": np.array([1.0, 0.0])}]
        score = evaluate(metric, Scaled(2), feeds, labels={"label_y": [1, 1]})
        assert score.name == "accuracy"
        assert score.primary == 0.5
        assert score.values == {"accuracy": 0.5, "other": 7.0}

    def test_a_plain_number_will_do(self, folder: Path) -> None:
        assert load_metric(f"{folder / 'metric.py'}:number").score([], {}).primary == 0.5

    def test_not_a_number_is_the_worst_number(self, folder: Path) -> None:
        assert load_metric(f"{folder / 'metric.py'}:lost").score([], {}).primary == -math.inf

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("metric.py", "does not name a metric"),
            ("metric.txt:score", "does not name a metric"),
            ("metric.py:no-name", "does not name a metric"),
            ("nothere.py:score", "does not exist"),
            ("metric.py:nothere", 'has no function "nothere"'),
            ("metric.py:constant", 'has no function "constant"'),
            ("syntax.py:score", r"raised SyntaxError"),
            ("fails.py:score", r"raised ZeroDivisionError: .* \(line 2 of fails.py\)"),
        ],
    )
    def test_what_cannot_be_loaded(self, folder: Path, text: str, message: str) -> None:
        (folder / "syntax.py").write_text("def score(:\n")
        (folder / "fails.py").write_text("a = 1\na / 0\n")
        with pytest.raises(UserError, match=message):
            load_metric(str(folder / text))

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("text", r'returned "score" = "good", not a number'),
            ("nothing", "returned nothing"),
            ("broken", r"raised KeyError: 'label_z' \(line \d+ of metric.py\)"),
        ],
    )
    def test_what_it_may_not_do(self, folder: Path, function: str, message: str) -> None:
        metric = load_metric(f"{folder / 'metric.py'}:{function}")
        with pytest.raises(UserError, match=message):
            metric.score([], {})

    def test_finding_by_name(self, folder: Path) -> None:
        assert find_metric(None) == Fidelity()
        assert find_metric("sqnr") == Fidelity("sqnr")
        assert isinstance(find_metric(f"{folder / 'metric.py'}:score"), UserMetric)
        with pytest.raises(UserError, match="known: fidelity, top1, cosine, sqnr"):
            find_metric("accuracy")


class TestFidelity:
    def test_another_class_costs_what_it_is_less_likely(self) -> None:
        want = np.array([[0.9, 0.1], [0.6, 0.4]])
        found = Fidelity().score(comparison(want, np.array([[0.8, 0.2], [0.4, 0.6]])))
        assert found.name == "fidelity"
        assert found.primary == pytest.approx((0.9 + 0.4) / (0.9 + 0.6))
        assert found.values["top1"] == 0.5
        assert set(found.values) == {"fidelity", "top1", "cosine", "sqnr"}

    def test_numbers_that_may_not_be_scores_must_also_point_the_same_way(self) -> None:
        want = np.array([[1.0, -1.0], [1.0, -1.0]])
        found = Fidelity().score(comparison(want, np.array([[1.0, -1.0], [0.5, 0.7]])))
        chance = math.exp(1) / (math.exp(1) + math.exp(-1))
        assert found.values["cosine"] < (chance + (1 - chance)) / (2 * chance)
        assert found.primary == found.values["cosine"]

    def test_a_row_that_is_not_a_number_is_lost(self) -> None:
        want = np.array([[0.5, 0.5], [1.0, 0.0]])
        found = Fidelity().score(comparison(want, np.array([[0.5, 0.5], [np.nan, 0.0]])))
        assert found.primary == pytest.approx(0.5 / 1.5)

    def test_direction_counts_elsewhere(self) -> None:
        found = Fidelity().score(comparison(np.array([1.0, 0.0]), np.array([1.0, 1.0])))
        assert found.primary == pytest.approx(math.sqrt(0.5))
        assert "top1" not in found.values

    def test_class_numbers_must_be_equal(self) -> None:
        found = Fidelity().score(comparison(np.array([100, 101]), np.array([100, 102])))
        assert found.primary == 0.5

    def test_a_metric_that_no_output_has(self) -> None:
        with pytest.raises(UserError, match="no output of the model has the metric top1"):
            Fidelity("top1").score(comparison(np.ones(3), np.ones(3)))

    def test_a_model_is_its_own_reference(self) -> None:
        feeds = [{"x": np.array([[1.0, -1.0]])}]
        metric = Fidelity()
        before = evaluate(metric, Scaled(1), feeds)
        after = evaluate(metric, Scaled(-1), feeds, reference=Reference(Scaled(1), feeds))
        assert (before.primary, after.primary) == (1, -1)
        assert metric.drop(before, after) == 2


class TestDrop:
    def test_relative_to_what_came_in(self) -> None:
        assert relative_drop(0.9, 0.891) == pytest.approx(0.01)
        assert relative_drop(-2, -2.02) == pytest.approx(0.01)
        assert relative_drop(0.5, 0.6) == pytest.approx(-0.2)
        assert relative_drop(0, -0.25) == 0.25
        assert relative_drop(0.9, -math.inf) == math.inf
        assert relative_drop(-math.inf, -math.inf) == 0

    def test_noise_is_measured_by_its_size(self) -> None:
        metric = Fidelity("sqnr")
        drop = metric.drop(Score({"sqnr": 200.0}), Score({"sqnr": 40.0}))
        assert drop == pytest.approx(0.01)

    @pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.01", 0.01), (" 2.5 %", 0.025)])
    def test_parsing(self, text: str, value: float) -> None:
        assert parse_drop(text) == pytest.approx(value)

    @pytest.mark.parametrize("text", ["", "one", "-1%", "101%", "nan", "2"])
    def test_not_a_drop(self, text: str) -> None:
        with pytest.raises(UserError, match="not a drop"):
            parse_drop(text)
