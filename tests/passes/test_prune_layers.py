"""Blocks go by what they cost the outputs, and cheap layers stand in for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.compare import compare
from onnxcomp.errors import UserError
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_layers import PruneLayers
from onnxcomp_passes.prune.support.blocks import find_blocks, find_branches
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.numbers import run, seeded_feeds
from tests.passes.test_shrink_channels import FAMILIES

BARE: dict[str, Any] = {"replacement": "none", "reconstruct": False}
SIZES = ", ".join(f"float[8, 16] u{k}, float[16, 8] v{k}" for k in range(3))


def block(index: int, source: str, result: str) -> str:
    return f"""[up{index}] a{index} = MatMul ({source}, u{index})
        r{index} = Relu (a{index})
        [down{index}] f{index} = MatMul (r{index}, v{index})
        [sum{index}] {result} = Add ({source}, f{index})"""


def residual(body: str = "", more: str = "") -> str:
    inner = body or "\n".join([block(0, "h", "h0"), block(1, "h0", "h1"), block(2, "h1", "h2")])
    return f"""g (float[N, 4] x) => (float[N, 3] y)
        <float[4, 8] stem, float[8, 3] head, {SIZES}{more}> {{
          h = MatMul (x, stem)
          {inner}
          y = MatMul (h2, head)
        }}"""


def scaled(graph: str, factors: dict[str, float]) -> onnx.ModelProto:
    proto = text.model(graph)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor) * np.float32(0.3 * factors.get(tensor.name, 1.0))
        tensor.CopyFrom(numpy_helper.from_array(array.astype("f4"), tensor.name))
    return proto


def feeds(proto: onnx.ModelProto, count: int = 16) -> list[dict[str, np.ndarray]]:
    return [seeded_feeds(proto, seed) for seed in range(count)]


def pruned(proto: onnx.ModelProto, **options: Any) -> Result:
    return Pipeline((PruneLayers(**options),)).run(proto, samples=feeds(proto))


def near(before: onnx.ModelProto, after: Result) -> float:
    fresh = [seeded_feeds(before, seed) for seed in range(100, 108)]
    with Session.open(before) as one, Session.open(after.model) as other:
        return compare(one, other, fresh).worst("sqnr_db") or 0.0


def names(result: Result) -> set[str]:
    return {node.name or "" for node in result.model.graph}


def messages(result: Result, code: str) -> list[str]:
    return [found.message for found in result.diagnostics if found.code == code]


def test_a_block_that_does_nearly_nothing_goes_first() -> None:
    proto = scaled(residual(), {"v1": 1e-3})
    inner = "\n".join([block(0, "h", "h0"), block(2, "h0", "h2")])
    expected = scaled(residual(inner), {})
    wanted = {value for node in expected.graph.node for value in node.input}
    kept = [tensor for tensor in expected.graph.initializer if tensor.name in wanted]
    del expected.graph.initializer[:]
    expected.graph.initializer.extend(kept)
    assert not text.difference(expected, pruned(proto, count=1, **BARE).model.to_proto())


@given(st.permutations([0, 1, 2]))
@settings(max_examples=6, deadline=None)
def test_the_cheapest_go_in_turn(order: list[int]) -> None:
    factors = {f"v{k}": 10.0 ** (place - 4) for place, k in enumerate(order)}
    proto = scaled(residual(), factors)
    for count in (1, 2):
        found = messages(pruned(proto, count=count, **BARE), "PRL103")
        assert [text_.split(" is gone")[0][-4:] for text_ in found] == [
            f"sum{k}" for k in order[:count]
        ]


def test_what_one_costs_is_measured_again_without_the_other() -> None:
    # Blocks 0 and 1 cancel each other: either alone costs more than block 2, both together nothing.
    proto = scaled(residual(), {"v2": 0.5})
    by_name = {tensor.name: tensor for tensor in proto.graph.initializer}
    first = numpy_helper.to_array(by_name["v0"])
    eye = np.concatenate([np.eye(8), -np.eye(8)], 1).astype("f4")
    up = np.concatenate([np.eye(8), -np.eye(8)], 0).astype("f4")
    half = np.float32(0.9)
    for name, array in {
        "u0": eye,
        "v0": up * half,
        "u1": eye,
        "v1": -up * half / (1 + half),
    }.items():
        by_name[name].CopyFrom(numpy_helper.from_array(array, name))
    assert first.shape == up.shape
    gone = messages(pruned(proto, count=3, **BARE), "PRL103")
    decibels = [float(message.split(": ")[1].split(" ")[0]) for message in gone]
    # After one of the two is gone, taking out the other brings the outputs nearer.
    assert "sum2" in gone[0]
    assert decibels[2] > decibels[1]


def test_a_linear_block_is_replaced_by_one_matrix() -> None:
    straight = residual().replace("r1 = Relu (a1)", "r1 = Identity (a1)")
    proto = scaled(straight, {})
    result = pruned(proto, count=1, reconstruct=False)
    assert near(proto, result) > 60
    assert "sum1" not in names(result)
    assert "8x8 layer in its place" in messages(result, "PRL103")[0]
    without = pruned(proto, count=1, replacement="none", reconstruct=False)
    assert near(proto, without) < 30


def test_a_scale_for_each_channel() -> None:
    graph = """g (float[N, 2, 4, 4] x) => (float[N, 3, 4, 4] y)
        <float[6, 2, 1, 1] stem, float[6, 1, 1, 1] d, float[6] b, float[3, 6, 1, 1] head> {
          h = Conv (x, stem)
          [deep] f = Conv <group = 6> (h, d, b)
          [sum] s = Add (h, f)
          y = Conv (s, head)
        }"""
    proto = text.model(graph)
    result = pruned(proto, count=1, replacement="scale", reconstruct=False)
    assert near(proto, result) > 80
    operators = [node.op_type for node in result.model.graph]
    assert operators == ["Conv", "Mul", "Add", "Conv"]


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_a_matrix_among_convolutions(dtype: str) -> None:
    graph = f"""g ({dtype}[N, 2, 4, 4] x) => ({dtype}[N, 3, 4, 4] y)
        <{dtype}[4, 2, 1, 1] stem, {dtype}[16, 4, 1, 1] u, {dtype}[16] b, {dtype}[4, 16, 1, 1] v,
         {dtype}[3, 4, 1, 1] head> {{
          h = Conv (x, stem)
          a = Conv (h, u, b)
          f = Conv (a, v)
          [sum] s = Add (h, f)
          y = Conv (s, head)
        }}"""
    proto = text.model(graph)
    result = pruned(proto, count=1, replacement="linear", reconstruct=False)
    assert [node.op_type for node in result.model.graph] == ["Conv", "Conv", "Conv"]
    assert near(proto, result) > (60 if dtype == "float" else 40)


def test_what_is_left_is_fitted() -> None:
    proto = scaled(residual(), {})
    bare = pruned(proto, count=1, **BARE)
    fitted = pruned(proto, count=1, replacement="none")
    assert near(proto, fitted) > near(proto, bare)
    assert "layers fitted" in messages(fitted, "PRL105")[0]


TRANSFORMER = """g (float[N, 5, 8] x, float[N, 1, 5] mask) => (float[N, 5, 8] y)
    <float[8, 8] q0, float[8, 8] k0, float[8, 8] o0, float[8, 16] u0, float[16, 8] v0, float[8, 8] q1,
     float[8, 8] k1, float[8, 8] o1, float[8, 16] u1, float[16, 8] v1, float[8] g, float[8, 8] stem> {
      h0 = MatMul (x, stem)
      BODY
      y = Identity (z1)
    }"""


def layer(index: int, source: str, result: str) -> str:
    return f"""
      qq{index} = MatMul ({source}, q{index})
      kk{index} = MatMul ({source}, k{index})
      kt{index} = Transpose <perm = [0, 2, 1]> (kk{index})
      s{index} = MatMul (qq{index}, kt{index})
      sm{index} = Add (s{index}, mask)
      p{index} = Softmax (sm{index})
      c{index} = MatMul (p{index}, {source})
      oo{index} = MatMul (c{index}, o{index})
      [attended{index}] x{index} = Add ({source}, oo{index})
      n{index} = LayerNormalization (x{index}, g)
      a{index} = MatMul (n{index}, u{index})
      r{index} = Relu (a{index})
      f{index} = MatMul (r{index}, v{index})
      [fed{index}] w{index} = Add (n{index}, f{index})
      {result} = LayerNormalization (w{index}, g)"""


def transformer() -> onnx.ModelProto:
    body = layer(0, "h0", "z0") + layer(1, "z0", "z1")
    return text.model(TRANSFORMER.replace("BODY", body))


def test_layers_of_a_transformer_are_found_from_what_takes_turns() -> None:
    model = Model.load(transformer())
    shapes = Facts(model).get(Shapes())
    assert [piece.name for piece in find_blocks(model.graph, shapes)] == ["fed0", "fed1"]
    found = [piece.name for piece in find_branches(model.graph, shapes)]
    assert found == ["h0", "attended0", "fed0", "attended1", "fed1"]
    whole = find_blocks(model.graph, shapes)[1]
    ends = {(form.start.name, form.end.name) for form in whole.forms}
    assert ends == {("z0", "w1"), ("z0", "y"), ("w0", "w1")}


def test_a_layer_of_a_transformer_goes_with_all_that_it_has() -> None:
    proto = transformer()
    result = pruned(proto, count=1, **BARE)
    left = [node.op_type for node in result.model.graph].count("MatMul")
    assert left == 1 + 7
    assert result.model.signature() == Model.load(proto).signature()


def test_branches_go_one_by_one() -> None:
    proto = transformer()
    result = pruned(proto, count=1, unit="branches", **BARE)
    left = [node.op_type for node in result.model.graph].count("MatMul")
    assert left in {1 + 7 + 5, 1 + 7 + 2}


def test_shortcuts_and_sums_of_three() -> None:
    graph = """g (float[N, 4] x) => (float[N, 6] y)
        <float[4, 6] short, float[4, 9] u, float[9, 6] v, float[4, 6] w> {
          a = MatMul (x, u)
          r = Relu (a)
          f = MatMul (r, v)
          s = MatMul (x, short)
          one = Add (s, f)
          t = MatMul (x, w)
          y = Add (one, t)
        }"""
    model = Model.load(text.model(graph))
    shapes = Facts(model).get(Shapes())
    assert not find_blocks(model.graph, shapes)
    assert {piece.name for piece in find_branches(model.graph, shapes)} == {
        "f",
        "s",
        "t",
        "one",
    }


def test_outputs_in_between_keep_their_names() -> None:
    graph = residual().replace("=> (float[N, 3] y)", "=> (float[N, 3] y, float[N, 8] h1)")
    proto = scaled(graph, {"v1": 1e-3})
    result = pruned(proto, count=1, **BARE)
    assert result.model.signature() == Model.load(proto).signature()
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert near(proto, result) > 20


def test_weights_that_blocks_share() -> None:
    shared = residual().replace("MatMul (h0, u1)", "MatMul (h0, u0)")
    proto = scaled(shared, {"v1": 1e-3})
    result = pruned(proto, count=1)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert "u0" in result.model.graph.initializers


def test_goals() -> None:
    proto = scaled(residual(), {})
    third = pruned(proto, ratio=0.34, **BARE)
    assert third.outcomes[0].stats["blocks removed"] == 1
    half = pruned(proto, parameters=0.5, **BARE)
    assert half.outcomes[0].stats["blocks removed"] == 2
    assert pruned(proto, flops=0.25, **BARE).outcomes[0].stats["blocks removed"] == 1
    beyond = pruned(proto, flops=0.99, **BARE)
    assert messages(beyond, "PRL102")
    with pytest.raises(ValueError, match="one of count, ratio"):
        PruneLayers(count=1, ratio=0.5)


def test_stops_before_too_much_is_lost() -> None:
    proto = scaled(residual(), {"v1": 1e-3})
    result = pruned(proto, least_decibels=40, **BARE)
    assert result.outcomes[0].stats["blocks removed"] == 1
    assert near(proto, result) > 30
    samples = feeds(proto)
    assert_refuses(PruneLayers(least_decibels=79, **BARE), proto, code="PRL101", samples=samples)


def test_names_to_skip() -> None:
    proto = scaled(residual(), {"v1": 1e-3})
    assert "sum1" in names(pruned(proto, count=1, skip=("down1",), **BARE))


def test_nothing_to_remove() -> None:
    graph = "g (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w> { y = MatMul (x, w) }"
    proto = text.model(graph)
    assert_refuses(PruneLayers(), proto, code="PRL101", samples=feeds(proto))


def test_needs_samples() -> None:
    with pytest.raises(UserError, match="calibration samples"):
        Pipeline((PruneLayers(),)).run(scaled(residual(), {}))


def test_activations_that_are_no_numbers() -> None:
    proto = scaled(residual(), {"u1": np.inf})
    result = pruned(proto, count=1)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def test_takes_everything_back() -> None:
    proto = scaled(residual(), {})
    assert_rolls_back(PruneLayers(count=2), proto, feeds(proto))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_gives_a_valid_model(family: str) -> None:
    proto = text.model(FAMILIES[family])
    result = pruned(proto, count=1, unit="all")
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert result.model.signature() == Model.load(proto).signature()
    for output in run(result.model.to_proto(), seeded_feeds(proto), "onnxruntime"):
        assert np.isfinite(output).all()


def test_all_that_may_go_goes_and_leaves_a_valid_model() -> None:
    proto = transformer()
    result = pruned(proto, unit="all", ratio=0.9)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert result.model.signature() == Model.load(proto).signature()
    assert result.outcomes[0].stats["blocks removed"] >= 2
    assert near(proto, result) > -20


def test_layers_in_bodies_stay() -> None:
    graph = """g (float[2, 4] x, bool c) => (float[2, 4] y) <float[4, 4] w> {
        [either] y = If (c) <
          then_branch = t () => (float[2, 4] a) { a = MatMul (x, w) },
          else_branch = e () => (float[2, 4] b) { b = Neg (x) }
        >
      }"""
    proto = text.model(graph)
    samples = [{"x": np.ones((2, 4), "f4"), "c": np.asarray(flag)} for flag in (True, False) * 4]
    assert_refuses(PruneLayers(), proto, code="PRL104", at="either", samples=samples)
