"""What `compress` tries, and on which models."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir import Model
from onnxcomp.recipe import make
from onnxcomp.targets import load_target
from onnxcomp.variants import REPAIRS, REST, TABLES, Prefer, has_tables, variants
from tests.helpers.text import model

CONV = "g (float[1, 4, 8, 8] x) => (float y) <float[4, 4, 3, 3] w> { y = Conv (x, w) }"
PRODUCT = "g (float[1, 4] x) => (float y) <float[4, 4] w> { y = MatMul (x, w) }"
CELL = """g (float[1, 1, 4] x) => (float y)
    <float[1, 8, 4] w, float[1, 8, 2] r> { y, h = LSTM <hidden_size = 2> (x, w, r) }"""


CPU = load_target("cpu")


def labels(text: str, prefer: Prefer = "speed", target: str = "cpu") -> list[str]:
    source = Model.load(model(text))
    found = variants(load_target(target), batch=1, prefer=prefer, contrib=False)
    return [variant.label for variant in found if variant.suits(source)]


def test_what_is_tried_depends_on_the_operators() -> None:
    static = ["int8", "int8 everywhere"]
    dynamic = ["dynamic int8", "dynamic int8, finer"]
    assert labels(CONV) == static
    assert labels(CELL) == [*static, *dynamic]
    assert labels(PRODUCT) == [*static, *dynamic, "weights in 4 bits"]
    mostly_conv = """g (float[1, 4, 8, 8] x) => (float y) <float[64, 4, 3, 3] w, float[6, 6] v> {
        a = Conv (x, w) y = MatMul (a, v) }"""
    assert "weights in 4 bits" not in labels(mostly_conv)
    assert labels(CONV, prefer="size") == [*static, "weights in 8 bits"]


def test_what_is_tried_depends_on_what_the_target_computes() -> None:
    assert labels(PRODUCT, target="cuda") == ["float16", "weights in 4 bits"]
    assert "int8" in labels(CONV, target="tensorrt")
    assert not any("dynamic" in label for label in labels(PRODUCT, target="tensorrt"))


def test_every_step_can_be_made() -> None:
    steps = [step for v in variants(CPU, batch=2, prefer="size", contrib=True) for step in v.steps]
    for name, options in [*steps, *REPAIRS, TABLES, REST]:
        assert make(name, dict(options)).name == name


def test_nodes_are_given_back_without_measuring_again() -> None:
    first = next(iter(variants(CPU, batch=2, prefer="speed", contrib=False)))
    name, options = first.without(("a", "b")).steps[0]
    assert name == "quantize-static"
    assert options == {"prepare": False, "batch": 2, "placement": "all", "skip": ("a", "b")}
    assert first.without(("a",)).steps[1:] == first.steps[1:]


@pytest.mark.parametrize(
    ("rows", "operator", "expected"),
    [(1000, "Gather", True), (10, "Gather", False), (1000, "GatherElements", False)],
)
def test_tables_that_are_notable(rows: int, operator: str, expected: bool) -> None:
    proto = model(
        f"g (int64[2, 32] i) => (float y) <float[{rows}, 32] t> {{ y = {operator} (t, i) }}"
    )
    assert has_tables(Model.load(proto)) is expected
    assert np.prod(proto.graph.initializer[0].dims) == rows * 32
