"""The channels that matter least go; what is left is an ordinary model that reads the others."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support.selection import least_units
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.numbers import run, seeded_feeds
from tests.passes.test_shrink_channels import FAMILIES

TWO = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
    <float[4, 1, 1, 1] w = {3, 1, 4, 2}, float[1, 4, 1, 1] v = {5, 6, 7, 8}> {
      a = Conv (x, w)
      y = Conv (a, v)
    }"""


def pruned(graph: str, **options: object) -> Result:
    return Pipeline((PruneChannels(**options),)).run(Model.load(text.model(graph)))


def shapes(model: Model) -> dict[str, list[int]]:
    values = model.graph.initializers.items()
    return {name: list(value.shape.numpy()) for name, value in values if value.shape is not None}


def test_the_smallest_filters_go() -> None:
    expected = text.model(
        """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
        <float[2, 1, 1, 1] w = {3, 4}, float[1, 2, 1, 1] v = {5, 7}> {
          a = Conv (x, w)
          y = Conv (a, v)
        }"""
    )
    assert not text.difference(expected, pruned(TWO, ratio=0.5).model.to_proto())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_gives_a_valid_model(family: str) -> None:
    result = pruned(FAMILIES[family], ratio=0.5)
    proto = result.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    for output in run(proto, seeded_feeds(proto), "onnxruntime"):
        assert np.isfinite(output).all()
    assert result.outcomes[0].stats["channels removed"]


@pytest.mark.parametrize("family", FAMILIES)
def test_takes_everything_back(family: str) -> None:
    assert_rolls_back(PruneChannels(ratio=0.5), text.model(FAMILIES[family]))


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(["l1", "l2", "std", "median", "scale", "random"]),
    st.sampled_from(["uniform", "global"]),
    st.sampled_from(["ratio", "flops", "parameters"]),
    st.floats(0.1, 0.9),
    st.integers(1, 4),
)
def test_any_options_give_a_valid_model(
    family: str, criterion: str, spread: str, goal: str, share: float, multiple: int
) -> None:
    options: dict[str, object] = {
        "criterion": criterion,
        "spread": spread,
        goal: share,
        "multiple": multiple,
    }
    proto = pruned(FAMILIES[family], **options).model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    run(proto, seeded_feeds(proto), "onnxruntime")


def test_half_of_the_parameters() -> None:
    graph = FAMILIES["plain"]
    before = Model.load(text.model(graph)).nbytes
    after = pruned(graph, parameters=0.5).model.nbytes
    assert 0.3 * before < after <= 0.5 * before


def test_half_of_the_arithmetic_of_an_open_batch() -> None:
    graph = (
        FAMILIES["plain"]
        .replace("float[1, 3, 8, 8] x", "float[N, 3, 8, 8] x")
        .replace("[1, 4] y", "[N, 4] y")
    )
    kept = shapes(pruned(graph, flops=0.5).model)
    assert kept["a"][0] < 8 or kept["b"][0] < 12


def test_multiples_and_least() -> None:
    graph = TWO.replace("float[4, 1, 1, 1] w = {3, 1, 4, 2}", "float[16, 1, 1, 1] w").replace(
        "float[1, 4, 1, 1] v = {5, 6, 7, 8}", "float[1, 16, 1, 1] v"
    )
    assert shapes(pruned(graph, ratio=0.6, multiple=4).model)["w"][0] == 8
    assert shapes(pruned(graph, ratio=0.95, keep=0.5).model)["w"][0] == 8
    assert [least_units(units, 0.1, 8) for units in (4, 16, 100)] == [4, 8, 16]


def test_globally_the_weakest_layer_loses_most() -> None:
    graph = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
        <float[4, 1, 1, 1] w = {9, 9, 9, 9}, float[4, 4, 1, 1] u = {1, 1, 1, 1, 1, 1, 1, 1, 9, 9, 9, 9, 9, 9, 9, 9},
         float[1, 4, 1, 1] v> {
          a = Conv (x, w)
          b = Conv (a, u)
          y = Conv (b, v)
        }"""
    kept = shapes(pruned(graph, ratio=0.25, spread="global").model)
    assert kept["w"][0] == 4
    assert kept["u"][0] == 2


def test_layers_to_skip() -> None:
    graph = TWO.replace("a = Conv", "[stem_conv] a = Conv")
    result = pruned(graph, ratio=0.5, skip=("stem_*",))
    assert shapes(result.model)["w"][0] == 4
    assert {d.code for d in result.diagnostics} == {"PRN103", "PRN101"}


def test_nothing_to_prune() -> None:
    assert_refuses(
        PruneChannels(),
        "g (float[1, 2] x) => (float[1, 3] y) <float[2, 3] w> { y = MatMul (x, w) }",
        code="PRN101",
    )


def test_what_is_in_the_way_of_most_weights_is_said() -> None:
    result = pruned(
        "g (float[1, 2] x, float[2, 3] w) => (float[1, 1] y)"
        " <float[2, 3] w = {1, 2, 3, 4, 5, 6}, float[3, 1] v> { a = MatMul (x, w)  y = MatMul (a, v) }",
        ratio=0.5,
    )
    (found,) = [d for d in result.diagnostics if d.code == "PRN101"]
    assert "a caller may replace it" in found.message
    assert "fix-signature" in found.message


def test_a_goal_out_of_reach() -> None:
    result = pruned(TWO, flops=0.9, keep=0.5)
    assert shapes(result.model)["w"][0] == 2
    assert "PRN102" in {d.code for d in result.diagnostics}


def test_two_goals_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="one of ratio, flops, parameters and latency"):
        PruneChannels(ratio=0.5, flops=0.5)
