"""Which observer `auto` takes for which activation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.quantize.observing import _is_better, _worst
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

# Channel 0 of x has rare large values. In the first graph a large weight reads them, in the second next
# to none does.
NET = """
    g (float[N, 2] x) => (float[N, 1] y) <float[2, 1] w = {WEIGHTS}> { y = MatMul (x, w) }"""


def data() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = []
    for index in range(24):
        x = rng.normal(size=(64, 2)).astype("f4")
        if index % 6 == 0:
            x[index, 0] = 30.0
        feeds.append({"x": x})
    return feeds


def scale(weights: str) -> float:
    step = QuantizeStatic(
        placement="all", prepare=False, correct_bias=False, withdraw=False, percentile=99.8
    )
    source = model(NET.replace("WEIGHTS", weights))
    made = Pipeline((step,)).run(source, samples=data(), threads=1).model.graph
    node = next(node for node in made if node.op_type == "QuantizeLinear")
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    return float(value.const_value.numpy())


def test_a_range_is_kept_where_a_weight_reads_it_and_cut_where_none_does() -> None:
    assert scale("1, 0.01") > 0.12
    assert scale("0.001, 1") < 0.09


def test_what_may_be_chance_decides_nothing() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(20.0, 3.0, 16)
    assert _is_better(first + 1.0, first)
    assert not _is_better(first + 0.05, first)
    assert not _is_better(first + rng.normal(0.1, 3.0, 16), first)


@pytest.mark.parametrize(
    ("got", "decibels"),
    [
        ({"y": np.full(4, 1.1, "f4")}, 20.0),
        ({"y": np.full(4, 1.0, "f4")}, 40.0),
        ({"y": np.full(4, np.nan, "f4")}, -20.0),
        ({"y": np.full(5, 1.0, "f4")}, -20.0),
        ({}, -20.0),
    ],
)
def test_the_worst_output_counts(got: dict[str, Any], decibels: float) -> None:
    wanted = {"y": np.ones(4, "f4"), "index": np.ones(4, "i8")}
    assert _worst(wanted, got) == pytest.approx(decibels, abs=1e-3)


def test_outputs_without_numbers_say_nothing() -> None:
    assert _worst({"index": np.ones(4, "i8")}, {"index": np.zeros(4, "i8")}) is None
