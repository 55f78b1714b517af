"""quantize-static inside the bodies of If and Loop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

from onnxcomp.compare import compare
from onnxcomp.ir import Edit, Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.bodies import collect, find_bodies, put_back
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.pipeline import Result

BRANCHES = """
    g (float[1, 8, 12, 12] x, bool c) => (float[1, 16, 12, 12] y)
    <float[16, 8, 3, 3] w, float[16] b> {
      h = Relu (x)
      y = If (c) <
        then_branch = g1 () => (float[1, 16, 12, 12] y1) {
          t = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (h, w, b)
          y1 = Relu (t)
        },
        else_branch = g2 () => (float[1, 16, 12, 12] y2) <float[16, 8, 1, 1] v> {
          t2 = Conv <kernel_shape = [1, 1]> (h, v, b)
          y2 = Relu (t2)
        }>
    }"""
LOOP = """
    g (float[4, 32] x) => (float[4, 32] y, float[5, 4, 32] z)
    <float[32, 32] w, float[32] b, int64 n = {5}, bool going = {1}> {
      y, z = Loop (n, going, x) <
        body = l (int64 i, bool c, float[4, 32] s) => (bool o, float[4, 32] r, float[4, 32] k) {
          o = Identity (c)
          m = MatMul (s, w)
          a = Add (m, b)
          t = Tanh (a)
          r = Identity (t)
          k = Mul (t, t)
        }>
    }"""
EVERYTHING: dict[str, Any] = {"placement": "all", "prepare": False, "observer": "min-max"}


def images(*conditions: bool) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        {"x": rng.normal(size=(1, 8, 12, 12)).astype("f4"), "c": np.asarray(each)}
        for each in conditions
    ]


def vectors() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    return [{"x": rng.normal(size=(4, 32)).astype("f4")} for _ in range(6)]


def run(text: str, feeds: Sequence[Mapping[str, np.ndarray]]) -> Result:
    return Pipeline((QuantizeStatic(**EVERYTHING),)).run(model(text), samples=feeds, threads=1)


def operators(result: Result, op_type: str) -> dict[str, Counter[str]]:
    node = next(node for node in result.model.to_proto().graph.node if node.op_type == op_type)
    return {each.name: Counter(n.op_type for n in each.g.node) for each in node.attribute}


def sqnr(text: str, result: Result, feeds: Sequence[Mapping[str, np.ndarray]]) -> float:
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    with Session.open(model(text)) as before, Session.open(result.model) as after:
        return compare(before, after, feeds).worst("sqnr_db") or 0.0


def test_both_branches_are_quantized_on_what_comes_into_them() -> None:
    feeds = images(True, False, True, False)
    result = run(BRANCHES, feeds)
    for found in operators(result, "If").values():
        assert found["QuantizeLinear"] >= 1
        assert found["DequantizeLinear"] >= 2
    assert 25 < sqnr(BRANCHES, result, feeds) < 60


def test_a_branch_that_no_sample_takes_stays_float_and_says_so() -> None:
    feeds = images(True, True, True)
    result = run(BRANCHES, feeds)
    found = operators(result, "If")
    assert found["then_branch"]["QuantizeLinear"] >= 1
    assert found["else_branch"]["QuantizeLinear"] == 0
    assert [d.message for d in result.diagnostics if d.code == "QNT108"] == [
        f"no sample came through else_branch of If {result.model.graph[-1].name or ''}".strip()
    ]
    assert sqnr(BRANCHES, result, images(False)) == 200.0


def test_a_loop_is_quantized_on_all_its_iterations() -> None:
    feeds = vectors()
    result = run(LOOP, feeds)
    assert operators(result, "Loop")["body"]["QuantizeLinear"] >= 1
    assert 10 < sqnr(LOOP, result, feeds) < 60  # five steps of a chaotic map


def test_what_iterations_are_given_is_what_the_runtime_gives_them() -> None:
    source = Model.load(model(LOOP))
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import Shapes

    (body,) = find_bodies(source, Facts(source).get(Shapes()), frozenset({"MatMul"}))
    feeds = vectors()[:1]
    collect(source, [body], feeds)
    with Session.open(model(LOOP)) as session:
        steps = session.run(feeds[0])["z"]
    states = [sample["s"] for sample in body.samples]
    assert len(states) == 5
    np.testing.assert_array_equal(states[0], feeds[0]["x"])
    for state, squared in zip(states[1:], steps, strict=False):
        np.testing.assert_allclose(state**2, squared, rtol=1e-5, atol=1e-6)
    assert [int(sample["i"]) for sample in body.samples] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("text", [BRANCHES, LOOP])
def test_bodies_put_back_can_be_taken_out_again(text: str) -> None:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import Shapes

    source = Model.load(model(text))
    before = source.to_proto().SerializeToString(deterministic=True)
    reads = {v.name: len(v.uses()) for v in source.initializers()}
    edit = Edit(source)
    edit.begin()
    for body in find_bodies(source, Facts(source).get(Shapes()), frozenset({"Conv", "MatMul"})):
        put_back(edit, body, body.model.copy())
    onnx.checker.check_model(source.to_proto(), full_check=True)
    edit.rollback()
    assert source.to_proto().SerializeToString(deterministic=True) == before
    assert {v.name: len(v.uses()) for v in source.initializers()} == reads


def test_new_names_are_those_of_no_other_scope() -> None:
    result = run(BRANCHES, images(True, False))
    names: Counter[str] = Counter()

    def count(graph: onnx.GraphProto) -> None:
        names.update(name for node in graph.node for name in node.output)
        names.update(tensor.name for tensor in graph.initializer)
        for node in graph.node:
            for each in node.attribute:
                if each.type == onnx.AttributeProto.GRAPH:
                    count(each.g)

    count(result.model.to_proto().graph)
    assert max(names.values()) == 1


def test_what_a_pass_changes_in_captured_constants_comes_back_too() -> None:
    text = """
        g (float[1, 16, 32] x, bool p) => (float[1, 16, 24] y)
        <float[32] s, float[32] b, float[32, 24] w> {
          y = If (p) <
            then_branch = t () => (float[1, 16, 24] y1) {
              n = LayerNormalization <axis = -1> (x, s, b)
              y1 = MatMul (n, w)
            },
            else_branch = e () => (float[1, 16, 24] y2) { y2 = MatMul (x, w) }
          >
        }"""
    proto = model(text)
    spread = np.exp(2 * np.random.default_rng(1).normal(size=32)).astype("f4")
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(spread, "s"))
    rng = np.random.default_rng(2)
    feeds: list[dict[str, Any]] = [
        {"x": rng.normal(size=(1, 16, 32)).astype("f4"), "p": np.asarray(True)} for _ in range(6)
    ]
    step = QuantizeStatic(placement="all", observer="min-max")
    result = Pipeline((step,)).run(proto, samples=feeds, threads=1)
    assert "EQL101" in {found.code for found in result.diagnostics}, "the norm was scaled"
    assert result.changed
    with Session.open(proto) as before, Session.open(result.model) as after:
        assert (compare(before, after, feeds).worst("sqnr_db") or 0.0) > 25


def test_a_captured_value_may_be_replaced_outside() -> None:
    text = """
        g (float[1, 8, 12, 12] x, bool p) => (float[1, 24] y)
        <float[32, 8, 3, 3] v, float[32, 24] w, int64[2] axes = {2, 3}> {
          h = Conv <kernel_shape = [3, 3]> (x, v)
          m = ReduceMean <keepdims = 0> (h, axes)
          y = If (p) <
            then_branch = t () => (float[1, 24] y1) { y1 = MatMul (m, w) },
            else_branch = e () => (float[1, 24] y2) { y2 = MatMul (m, w) }
          >
        }"""
    rng = np.random.default_rng(5)
    feeds: list[dict[str, Any]] = [
        {"x": rng.normal(size=(1, 8, 12, 12)).astype("f4"), "p": np.asarray(index % 2 == 0)}
        for index in range(6)
    ]
    step = QuantizeStatic(placement="all", observer="min-max")
    result = Pipeline((step,)).run(model(text), samples=feeds, threads=1)
    assert "GlobalAveragePool" in {node.op_type for node in result.model.nodes()}
    for found in operators(result, "If").values():
        assert found["QuantizeLinear"] >= 1
    assert sqnr(text, result, feeds) > 20
