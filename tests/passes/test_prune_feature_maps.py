"""Feature maps that carry little are replaced by what they are on average."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_feature_maps import PruneFeatureMaps
from onnxcomp_passes.prune.support.ranking import Ranking
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.numbers import run, seeded_feeds
from tests.passes.test_shrink_channels import FAMILIES

PADDED = "<pads = [1, 1, 1, 1]>"


def chain(reader: str = "") -> str:
    return f"""g (float[N, 3, 6, 6] x) => (float[N, 5, P, Q] y)
        <float[8, 3, 3, 3] w, float[8] b, float[5, 8, 3, 3] v, float[5] c> {{
          a = Conv (x, w, b)
          r = Relu (a)
          [reader] y = Conv {reader} (r, v, c)
        }}"""


def changed(graph: str, **arrays: Any) -> onnx.ModelProto:
    """Returns a model after functions were applied to some of its weights."""
    proto = text.model(graph)
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            array = numpy_helper.to_array(tensor).copy()
            arrays[tensor.name](array)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def feeds(proto: onnx.ModelProto, count: int = 16) -> list[dict[str, np.ndarray]]:
    return [seeded_feeds(proto, seed) for seed in range(count)]


def pruned(proto: onnx.ModelProto, **options: Any) -> Result:
    return Pipeline((PruneFeatureMaps(**options),)).run(proto, samples=feeds(proto))


def near(before: onnx.ModelProto, after: Result) -> float:
    fresh = [seeded_feeds(before, seed) for seed in range(100, 108)]
    with Session.open(before) as one, Session.open(after.model) as other:
        return compare(one, other, fresh).worst("sqnr_db") or 0.0


def notes(result: Result, code: str) -> list[str]:
    return [found.message for found in result.diagnostics if found.code == code]


def size(result: Result, name: str = "w") -> int:
    tensor = result.model.graph.initializers[name].const_value
    assert tensor is not None
    return len(tensor.numpy())


def dead(places: list[int]) -> Any:
    """Biases so far below zero that nothing passes the Relu."""

    def change(array: np.ndarray) -> None:
        array[places] = -1e3

    return change


def test_maps_that_are_dead_go_without_a_trace() -> None:
    proto = changed(chain(), b=dead([1, 4, 6]))
    result = pruned(proto)
    assert size(result) == 5
    assert near(proto, result) > 100
    assert "3 of 8 maps" in notes(result, "PRM104")[0]


def test_a_map_that_never_changes_moves_into_the_bias() -> None:
    def still(array: np.ndarray) -> None:
        array[2] = 0

    proto = changed(chain(), w=still)
    result = pruned(proto)
    assert size(result) == 7
    assert near(proto, result) > 100


def test_saturated_maps_are_constant_too() -> None:
    graph = chain().replace("r = Relu (a)", "r = Sigmoid (a)")
    proto = changed(graph, b=lambda array: array.__setitem__([0, 3], [400.0, -400.0]))
    result = pruned(proto)
    assert size(result) == 6
    assert near(proto, result) > 100


def test_padding_keeps_a_constant_from_going_for_free() -> None:
    def still(array: np.ndarray) -> None:
        array[2] = 0

    proto = changed(chain(PADDED), w=still, b=lambda array: array.__setitem__(2, 5.0))
    assert_refuses(PruneFeatureMaps(), proto, code="PRM101", samples=feeds(proto))
    # What it adds on average, zeros around it counted, is the best that a bias can be.
    result = pruned(proto, least_decibels=5, ratio=0.125)
    assert size(result) == 7
    bare = changed(chain(PADDED), w=still, b=lambda array: array.__setitem__(2, 0.0))
    with Session.open(proto) as one, Session.open(bare) as other:
        fresh = [seeded_feeds(proto, seed) for seed in range(100, 108)]
        without = compare(one, other, fresh).worst("sqnr_db") or 0.0
    assert near(proto, result) > without + 3


def test_a_matrix_behind_a_pool() -> None:
    graph = """g (float[N, 3, 6, 6] x) => (float[N, 4] y)
        <float[8, 3, 3, 3] w, float[8] b, float[8, 4] v, float[4] c> {
          a = Conv (x, w, b)
          r = Relu (a)
          p = GlobalAveragePool (r)
          f = Flatten (p)
          m = MatMul (f, v)
          y = Add (m, c)
        }"""
    proto = changed(graph, b=dead([0, 7]))
    result = pruned(proto)
    assert size(result) == 6
    assert near(proto, result) > 100
    # The constant found its place in the sum that was there.
    assert [node.op_type for node in result.model.graph].count("Add") == 1


def test_through_depthwise_layers_and_readers_in_groups() -> None:
    graph = """g (float[N, 3, 8, 8] x) => (float[N, 4, 2, 2] y)
        <float[8, 3, 3, 3] w, float[8] b, float[8, 1, 3, 3] d, float[8] e, float[4, 4, 3, 3] v> {
          a = Conv (x, w, b)
          r = Relu (a)
          k = Conv <group = 8> (r, d, e)
          s = Relu (k)
          y = Conv <group = 2> (s, v)
        }"""
    proto = changed(graph, b=dead([1, 5]))
    result = pruned(proto)
    assert size(result) == 6
    assert near(proto, result) > 100


def test_two_readers_of_one_map() -> None:
    graph = """g (float[N, 3, 6, 6] x) => (float[N, 5, 4, 4] y, float[N, 2, 2, 2] z)
        <float[8, 3, 3, 3] w, float[8] b, float[5, 8, 1, 1] v, float[2, 8, 3, 3] u> {
          a = Conv (x, w, b)
          r = Sigmoid (a)
          y = Conv (r, v)
          z = Conv (r, u)
        }"""
    proto = changed(graph, b=lambda array: array.__setitem__([2], [400.0]))
    result = pruned(proto)
    assert size(result) == 7
    assert near(proto, result) > 90


def test_what_carries_little_goes_before_what_carries_much() -> None:
    def weak(array: np.ndarray) -> None:
        array[:, 3] *= 1e-4

    proto = changed(chain(), v=weak)
    result = pruned(proto, ratio=0.125)
    assert size(result) == 7
    assert near(proto, result) > 60


def test_goals() -> None:
    proto = text.model(chain())
    assert size(pruned(proto, ratio=0.5)) == 4
    assert size(pruned(proto, flops=0.5)) == 4
    assert size(pruned(proto, parameters=0.49)) == 4
    assert size(pruned(proto, ratio=0.99, keep=3)) == 3
    assert notes(pruned(proto, ratio=0.99), "PRM102")
    both = pruned(proto, ratio=0.9, least_decibels=12)
    assert size(both) > 1
    assert notes(both, "PRM102")
    assert near(proto, both) > 8


def test_what_is_left_can_be_fitted() -> None:
    proto = text.model(chain())
    bare, fitted = pruned(proto, ratio=0.5), pruned(proto, ratio=0.5, reconstruct=True)
    assert near(proto, fitted) > near(proto, bare)


def test_readers_without_a_place_for_a_constant() -> None:
    graph = """g (float[1, 3, 6, 6] x) => (float[1, 2, 4, 4] y)
        <float[8, 3, 3, 3] w, float[8, 2, 1, 1] v> {
          a = Conv (x, w)
          [spread] y = ConvTranspose (a, v)
        }"""
    proto = text.model(graph)
    assert_refuses(PruneFeatureMaps(), proto, code="PRM103", at="spread", samples=feeds(proto))


@pytest.mark.parametrize(
    ("inputs", "reader"),
    [
        ("float[N, 8] x, float[3] c", "Gemm (r, v, c)"),
        ("float[N, 8] x", "Gemm <alpha = 0.5> (r, v)"),
        ("float[N, 8] x", "Gemm <beta = 0.0> (r, v, d)"),
    ],
)
def test_a_bias_that_is_not_to_be_had(inputs: str, reader: str) -> None:
    graph = f"""g ({inputs}) => (float[N, 3] y) <float[8, 6] w, float[6, 3] v, float[3] d> {{
        a = MatMul (x, w)
        r = Relu (a)
        [reader] y = {reader}
      }}"""
    proto = text.model(graph)
    step = PruneFeatureMaps(ratio=0.5)
    assert_refuses(step, proto, code="PRM103", at="reader", samples=feeds(proto))


@pytest.mark.parametrize("reader", ["Gemm (r, v, d)", "Gemm <transB = 1> (r, u)"])
def test_readers_that_are_products_of_two_matrices(reader: str) -> None:
    graph = f"""g (float[N, 8] x) => (float[N, 3] y)
      <float[8, 6] w, float[6] b, float[6, 3] v, float[3, 6] u, float[1, 3] d> {{
        a = Gemm (x, w, b)
        r = Sigmoid (a)
        y = {reader}
      }}"""
    proto = changed(graph, b=lambda array: array.__setitem__([1, 2], 400.0))
    result = pruned(proto)
    tensor = result.model.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.numpy().shape == (8, 4)
    assert near(proto, result) > 100


def test_names_to_skip() -> None:
    proto = changed(chain(), b=dead([1]))
    step = PruneFeatureMaps(skip=("read*",))
    assert_refuses(step, proto, code="PRM103", samples=feeds(proto))


def test_a_weight_that_is_infinite() -> None:
    proto = changed(chain(), w=lambda array: array.__setitem__((0, 0, 0, 0), np.inf))
    assert_refuses(PruneFeatureMaps(), proto, code="PRM101", samples=feeds(proto))


def test_takes_everything_back() -> None:
    proto = changed(chain(), b=dead([1, 4]))
    assert_rolls_back(PruneFeatureMaps(), proto, feeds(proto))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_gives_a_valid_model(family: str) -> None:
    proto = text.model(FAMILIES[family])
    result = pruned(proto, ratio=0.3, normalized=True)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert result.model.signature() == Model.load(proto).signature()
    for output in run(result.model.to_proto(), seeded_feeds(proto), "onnxruntime"):
        assert np.isfinite(output).all()


@given(st.lists(st.integers(0, 7), max_size=6, unique=True), st.sampled_from(["", PADDED]))
@settings(max_examples=15, deadline=None)
def test_dead_maps_and_no_others(places: list[int], reader: str) -> None:
    proto = changed(chain(reader), b=dead(places))
    result = pruned(proto, least_decibels=70)
    assert size(result) == 8 - len(places)


def test_an_order_for_all_groups() -> None:
    scores = {0: np.asarray([3.0, 1.0, 2.0]), 5: np.asarray([0.5, 9.0])}
    ranking = Ranking(scores, {0: 1, 5: 1})
    assert (len(ranking), ranking.total) == (3, 5)
    gone = ranking.first(2)
    assert gone[0].tolist() == [False, True, False]
    assert gone[5].tolist() == [True, False]
    level = Ranking(
        {0: np.asarray([9.0, 8.0]), 1: np.asarray([1.0, 2.0])}, {0: 1, 1: 1}, level=True
    )
    assert [found.sum() for found in level.first(2).values()] == [1, 1]
