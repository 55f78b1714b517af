"""Small forms of what random models brought to light."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.analysis.cost import Costs
from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from tests.helpers.check import assert_same
from tests.helpers.text import model

OLD = '<ir_version: 8, opset_import: ["" : 8]>'


def test_texts_have_no_width_and_are_no_trouble() -> None:
    proto = model(
        'g (string[N] x) => (string[N, 2] y, string[2] z) <int64[2] s = {-1, 2}, string[4] w = {"a", "b", "c", "d"},'
        " int64[1] i = {1}, int64 j = {0}> {"
        " r = Reshape (w, s) z = Gather (r, j) u = Unsqueeze (x, i) y = Concat <axis = 1> (u, u) }"
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    assert_same(proto, got, runtimes=["onnxruntime"])
    Facts(Model.load(proto)).get(Costs())


def test_what_reads_an_operator_that_inference_cannot_expand_is_not_refused() -> None:
    proto = model(
        f"{OLD} g (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) "
        "{ n = MeanVarianceNormalization (x) a = Abs (n) y = Neg (a) }".replace(": 8]", ": 11]")
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    assert [node.op_type for node in got.graph.node] == [
        "MeanVarianceNormalization",
        "Abs",
        "Neg",
    ]


def test_a_wrong_type_behind_such_an_operator_is_still_refused() -> None:
    proto = model(
        f"{OLD} g (float[1, 2, 3, 3] x, bool b) => (float[1, 2, 3, 3] y) "
        "{ n = MeanVarianceNormalization (x) a = Abs (b) y = Add (n, a) }".replace(": 8]", ": 11]")
    )
    with pytest.raises(onnxcomp.errors.ModelError, match="Abs"):
        onnxcomp.optimize(proto)


@pytest.mark.parametrize("code", [onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT8E4M3FN])
def test_a_scalar_of_a_type_that_numpy_lacks_stays_a_scalar(code: int) -> None:
    proto = model(
        f"g (float x) => (float y, float z) <float w = {{2}}> {{ a = Cast <to = {code}> (w) "
        f"b = Identity (a) z = Cast <to = 1> (b) c = Cast <to = {code}> (x) y = Cast <to = 1> (c) }}"
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    with Session.open(got) as session:
        found = session.run({"x": np.array(3, np.float32)})
    assert [found[name].shape for name in "yz"] == [(), ()]


def test_before_opset_9_a_body_gets_no_constant_node_of_whole_numbers() -> None:
    proto = model(
        f"{OLD} g (bool c, float[2, 3] x) => (int64[2] y) <float[2, 3] w> {{ y = If (c) <"
        "then_branch = t () => (int64[2] p) { p = Shape (w) }, "
        "else_branch = e () => (int64[2] q) { q = Shape (x) }> }"
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=["onnxruntime"])
    functional = model(
        '<ir_version: 8, opset_import: ["" : 8, "f" : 1]> g (float[2, 3] x) => (float[3, 2] y) '
        '{ y = f.turn (x) } <domain: "f", opset_import: ["" : 8]> turn (a) => (b) '
        "{ w = Constant <value = float[3, 2] {1, 2, 3, 4, 5, 6}> () s = Shape (w) b = Reshape (a, s) }"
    )
    got = onnxcomp.optimize(functional).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(functional, got, runtimes=["onnxruntime"])


def test_before_opset_9_the_condition_of_a_loop_stays_computed() -> None:
    proto = model(
        f"{OLD} g (float[2] x) => (float[2] y) <int64 n = {{3}}, bool go = {{1}}> {{ y = Loop (n, go, x) "
        "<body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) { d = Identity (c) t = Neg (s) }> }"
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=["onnxruntime"])


@pytest.mark.parametrize(
    "node",
    [
        "EyeLike <dtype = 7> (a)",
        'RegexFullMatch <pattern = "a"> (a)',
        "EyeLike <dtype = 1, k = 1> (a)",
    ],
)
def test_inference_does_not_die_of_a_type_that_it_does_not_know(node: str) -> None:
    proto = model(
        '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> '
        f"g (float[2, 2] x) => (y) {{ a = own.Unknown (x) b = Identity (a) y = {node} }}".replace(
            "(y)", "(float[2, 2] y)"
        )
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    assert got.graph.node[-1].op_type == proto.graph.node[-1].op_type


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2] x) => (int64[2] y, float[2] z) <float[3, 5] w> { y = Shape (w) z = Neg (x) }",
        "g (float[5, 2, 2, 1] x) => (float[5, 2, 2, 1] y) <float[5, 0, 2, 1] w> "
        "{ a = Neg (x) y = Concat <axis = 1> (w, a) }",
        "g (float[1] x) => (int64[2, 1, 2] y, float[1] z) <float[2, 1, 3] w> "
        "{ m, y = MaxPool <kernel_shape = [2]> (w) z = Neg (x) }",
        'g (float[1] x) => (string[4] y, float[1] z) <string[2] w = {"a", "a"}> '
        "{ y = Concat <axis = 0> (w, w) z = Neg (x) }",
        "g (float[3] x) => (float[3] y) <float[3, 3] w, int64 i = {0}, float[3] v = {1, 0, 1}> "
        "{ s = SequenceConstruct (x, x) m = SequenceMap <body = b (float[3] e) => (float[3] o) "
        "{ a = MatMul (e, w) o = Mul (a, v) }> (s) y = SequenceAt (m, i) }",
    ],
)
def test_channels_of_weights_whose_sizes_are_read_stay(text: str) -> None:
    proto = model(text)
    got = Pipeline.parse("shrink-channels").run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=["onnxruntime"])


def test_before_opset_11_a_loop_carries_something() -> None:
    proto = model(
        f"{OLD} g (float[2] x, int64 n, bool go) => (float[k, 2] y) {{ z, y = Loop (n, go, x) "
        "<body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] u) "
        "{ d = Identity (c) t = Identity (s) u = Neg (s) }> }".replace(": 8]", ": 10]")
    )
    got = onnxcomp.optimize(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)


def test_a_default_that_inference_mistakes() -> None:
    """onnx 1.23 infers the shape of an STFT as if `onesided` were 0 where it is left out."""
    proto = model(
        "g (float[1, 8, 1] x) => (int64[4] y, float[1, 3, 2, 2] a, float[1, 3, 1, 2] b) "
        "<int64 s = {2}, int64 l = {4}, float[4] w = {1, 1, 1, 1}, int64[2] p = {2, 1}> "
        "{ t = STFT (x, s, w, l) y = Shape (t) a, b = Split <axis = 2> (t, p) }"
    )
    before = proto.SerializeToString()
    got = onnxcomp.optimize(proto).model.to_proto()
    assert proto.SerializeToString() == before
    assert [node.op_type for node in got.graph.node] == ["STFT", "Split"]
    assert len(got.graph.node[0].attribute) == 0
    assert_same(proto, got, runtimes=["onnxruntime"])


def test_a_small_constant_that_is_two_outputs_settles_in_one_run() -> None:
    proto = model(
        "g (float[2] x) => (float[2] y, int64[1] a, int64[1] b, float[64] c, float[64] d) "
        "<int64[1] i = {3}, int64[1] j = {3}, float[64] w> "
        "{ y = Neg (x) a = Identity (i) b = Identity (j) c = Identity (w) d = Identity (w) }"
    )
    once = onnxcomp.optimize(proto)
    got = once.model.to_proto()
    assert not onnxcomp.optimize(got).changed
    assert [node.op_type for node in got.graph.node] == ["Neg", "Identity", "Identity"]
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=["onnxruntime"])


def test_nodes_of_a_body_that_goes_are_left_alone() -> None:
    """What reads the Loop goes, and with it the Loop; its nodes wait in the queue all the same."""
    proto = model(
        "g (float[2] x, float[2, 3] m) => (float[2] y) <int64 n = {2}> { y = Neg (x) "
        "l = Loop (n, , x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) "
        "{ a = Transpose <perm = [1, 0]> (m) r = Transpose <perm = [1, 0]> (a) d = Identity (c) "
        "t = Neg (s) }> u = Transpose <perm = [0]> (l) }"
    )
    got = Pipeline.parse("eliminate-identity").run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert [node.op_type for node in got.graph.node] == ["Neg"]


def test_a_product_that_ignores_its_bias_takes_none() -> None:
    proto = model(
        "g (float[2, 3] x) => (float[2, 2] y) <float[3, 4] w, float[4] b = {1, 1, 0, 2}, float[4, 2] v, "
        "float[4] m = {1, 0, 1, 1}> { h = Gemm (x, w, b) z = Mul (h, m) y = Gemm <beta = 0.0> (z, v) }"
    )
    got = Pipeline.parse("shrink-channels").run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=["onnxruntime"])
