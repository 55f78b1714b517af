"""fuse-batchnorm: what goes into weights, exactly what, and what stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp_passes.simplify.fuse_batchnorm import FuseBatchnorm
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_rewrites,
)
from tests.helpers.fusing import (
    NORM,
    PARAMETERS,
    TIGHT,
    becomes,
    before_conv,
    conv,
    matrix,
    weights,
)
from tests.helpers.text import model


def test_numbers_are_those_of_the_formula() -> None:
    assert_rewrites(
        FuseBatchnorm(),
        before=f"""g (float[N, 1] x) => (float[N, 1] y) <
            float[1, 1] w = {{2}}, float[1] c = {{1}}, float[1] g = {{3}}, float[1] b = {{5}},
            float[1] m = {{1}}, float[1] v = {{4}}> {{
            t = Gemm (x, w, c) y = {NORM} <epsilon = 0.0> (t, g, b, m, v) }}""",
        after="""g (float[N, 1] x) => (float[N, 1] y) <
            float[1, 1] w = {3}, float[1] c = {5}, float[1] g = {3}, float[1] b = {5},
            float[1] m = {1}, float[1] v = {4}> {
            y = Gemm (x, w, c) }""",
    )


BEHIND = [
    (conv(f"t = Conv (x, w) y = {NORM} (t, g, b, m, v)"), "Conv"),
    (conv(f"t = Conv (x, w, c) y = {NORM} (t, g, b, m, v)", ", float[4] c"), "Conv"),
    (conv(f"t = Conv <group = 2> (x, w) y = {NORM} (t, g, b, m, v)", w="float[4, 1, 3, 3]"), "Conv"),
    (
        conv(f"t = Conv <pads = [1, 1, 1, 1]> (x, w) y = {NORM} <epsilon = 0.1> (t, g, b, m, v)"),
        "Conv",
    ),
    (
        conv(f"t = ConvTranspose <strides = [2, 2]> (x, w) y = {NORM} (t, g, b, m, v)", w="float[2, 4, 3, 3]"),
        "ConvTranspose",
    ),
    (
        conv(f"t = ConvTranspose <group = 2> (x, w, c) y = {NORM} (t, g, b, m, v)", ", float[4] c", w="float[2, 2, 3, 3]"),
        "ConvTranspose",
    ),
    (matrix(f"t = Gemm (x, w) y = {NORM} (t, g, b, m, v)"), "Gemm"),
    (matrix(f"t = Gemm <alpha = 0.5, beta = 2.0> (x, w, c) y = {NORM} (t, g, b, m, v)", ", float[1, 4] c"), "Gemm"),
    (matrix(f"t = Gemm <beta = 3.0> (x, w, c) y = {NORM} (t, g, b, m, v)", ", float c"), "Gemm"),
    (matrix(f"t = Gemm <transB = 1> (x, w) y = {NORM} (t, g, b, m, v)", w="float[4, 3]"), "Gemm"),
    (matrix(f"t = MatMul (x, w) y = {NORM} (t, g, b, m, v)"), "Gemm"),
    (matrix(f"t = MatMul (x, w) u = Add (c, t) y = {NORM} (u, g, b, m, v)", ", float[4] c"), "MatMul Add"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "left"), BEHIND)
def test_folds_into_the_operator_before(text: str, left: str) -> None:
    becomes(FuseBatchnorm(), text, left)


BEFORE = [
    (before_conv(f"t = {NORM} (x, g, b, m, v) y = Conv (t, w)"), "Conv"),
    (before_conv(f"t = {NORM} (x, g, b, m, v) y = Conv <auto_pad = \"VALID\"> (t, w, c)", more=", float[3] c"), "Conv"),
    (before_conv(f"t = {NORM} (x, g, b, m, v) y = Conv <group = 2> (t, w)", w="float[6, 2, 3, 3]"), "Conv"),
    (
        before_conv(f"t = {NORM} (x, g, z, z, v) y = Conv <pads = [1, 1, 1, 1]> (t, w)", more=", float[4] z = {0, 0, 0, 0}"),
        "Conv",
    ),
    (
        before_conv(f"t = {NORM} (x, g, z, z, v) y = ConvTranspose (t, w)", w="float[4, 3, 2, 2]", more=", float[4] z = {0, 0, 0, 0}"),
        "ConvTranspose",
    ),
    (matrix(f"t = {NORM} (x, g, b, m, v) y = Gemm <alpha = 0.5> (t, w)", x="float[N, 4]", w="float[4, 4]"), "Gemm"),
    (matrix(f"t = {NORM} (x, g, b, m, v) y = Gemm <transB = 1, beta = 2.0> (t, w, c)", ", float[4] c", x="float[N, 4]", w="float[4, 4]"), "Gemm"),
    (matrix(f"t = {NORM} (x, g, b, m, v) y = MatMul (t, w)", x="float[N, 4]", w="float[4, 4]"), "Gemm"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "left"), BEFORE)
def test_folds_into_the_operator_behind(text: str, left: str) -> None:
    becomes(FuseBatchnorm(), text, left)


def test_prefers_the_operator_before() -> None:
    text = conv(
        f"t = Conv (x, w) u = {NORM} (t, g, b, m, v) y = Conv (u, k)", ", float[3, 4, 1, 1] k"
    )
    got = becomes(FuseBatchnorm(), text, "Conv Conv")
    assert [len(node.input) for node in got.graph.node] == [3, 2]


STAYS = [
    conv(f"y = {NORM} (x, g, b, m, v)", x="float[N, 4, 5, 5]"),
    conv(f"t = Conv (x, w) u = {NORM} (t, g, b, m, v) y = Add (t, u)"),
    before_conv(f"t = {NORM} (x, g, b, m, v) y = Conv <pads = [1, 1, 1, 1]> (t, w)"),
    before_conv(f"t = {NORM} (x, g, b, m, v) y = Conv <auto_pad = \"SAME_UPPER\"> (t, w)"),
    before_conv(f"t = {NORM} (x, g, b, m, v) y = ConvTranspose (t, w)", w="float[4, 3, 2, 2]"),
    before_conv(f"t = {NORM} (x, g, b, m, v) u = Conv (t, w) q = Conv (t, w) y = Add (u, q)"),
    conv(f"t = Conv (x, w) y = {NORM} (t, g, b, m, n)", ", float[4] n = {1, 1, -1, 1}"),
    conv(f"t = Conv (x, w) y = {NORM} (t, g, b, m, n)", ", float[4] n = {1, 1, 1e-42, 1}").replace("(t,", "<epsilon = 0.0> (t,"),
    conv(f"t = Conv (x, w) y = {NORM} (t, n, b, m, v)", ", float[4] n = {1, 1, inf, 1}"),
    matrix(f"t = Gemm <transA = 1> (u, w) u = {NORM} (x, g, b, m, v) y = Exp (t)", x="float[4, 4]", w="float[4, 4]").replace("t = Gemm <transA = 1> (u, w) u = BatchNormalization (x, g, b, m, v)", "u = BatchNormalization (x, g, b, m, v) t = Gemm <transA = 1> (u, w)"),
]  # fmt: skip


@pytest.mark.parametrize("text", STAYS)
def test_says_why_it_stays(text: str) -> None:
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_parameters_that_a_caller_may_change_stay() -> None:
    text = f"""g (float[N, 2, 5, 5] x, float[4] g = {{1, 2, 3, 4}}) => (float[P, Q, R, S] y)
        <float[4, 2, 3, 3] w, float[4] b, float[4] m, float[4] v = {{1, 1, 1, 1}}> {{
        t = Conv (x, w) y = {NORM} (t, g, b, m, v) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")
    text = f"""g (float[N, 2, 5, 5] x, float[4, 2, 1, 1] w = {{1, 2, 3, 4, 5, 6, 7, 8}}) => (float[P, Q, R, S] y)
        <{PARAMETERS}> {{ t = Conv (x, w) y = {NORM} (t, g, b, m, v) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")
    text = f"""g (float[N, 2, 5, 5] x, float[4] c) => (float[P, Q, R, S] y)
        <{PARAMETERS}, float[4, 2, 1, 1] w> {{ t = Conv (x, w, c) y = {NORM} (t, g, b, m, v) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_training_stays() -> None:
    text = conv(f"t = Conv (x, w) y, a, d = {NORM} <training_mode = 1> (t, g, b, m, v)")
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_a_graph_output_in_the_middle_stays() -> None:
    text = f"""g (float[N, 2, 5, 5] x) => (float[P, Q, R, S] t, float[P, Q, R, S] y)
        <float[4, 2, 3, 3] w, {PARAMETERS}> {{ t = Conv (x, w) y = {NORM} (t, g, b, m, v) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_half_precision_stays() -> None:
    text = """g (float16[N, 2, 5, 5] x) => (float16[P, Q, R, S] y)
        <float16[4, 2, 3, 3] w, float16[4] g, float16[4] b> {
        t = Conv (x, w) v = Constant <value = float16[4] {1.0, 1.0, 1.0, 1.0}> ()
        y = BatchNormalization (t, g, b, b, v) }"""
    proto = model(
        text.replace("v = Constant <value = float16[4] {1.0, 1.0, 1.0, 1.0}> ()", "v = Abs (b)")
    )
    del proto.graph.node[1]
    ones = np.ones(4, np.float16)
    proto.graph.initializer.append(numpy_helper.from_array(ones, "v"))
    assert_refuses(FuseBatchnorm(), proto, code="FBN101")


def test_weights_with_other_readers_are_copied() -> None:
    text = f"""g (float[N, 2, 5, 5] x) => (float[P, Q, R, S] y, float[P, Q, R, S] z)
        <float[4, 2, 3, 3] w, float[4] c, {PARAMETERS}> {{
        t = Conv (x, w, c) y = {NORM} (t, g, b, m, v) z = Conv (x, w, c) }}"""
    got = becomes(FuseBatchnorm(), text, "Conv Conv")
    old, new = weights(model(text)), weights(got)
    assert (new["w"] == old["w"]).all()
    assert (new["c"] == old["c"]).all()
    first, second = got.graph.node
    assert set(first.input) & set(second.input) == {"x"}


def test_a_weight_with_one_reader_is_replaced_in_place() -> None:
    text = conv(f"t = Conv (x, w) y = {NORM} (t, g, b, m, v)")
    got = becomes(FuseBatchnorm(), text, "Conv")
    assert got.graph.node[0].input[1] == "w"
    assert (weights(got)["w"] != weights(model(text))["w"]).any()


def test_large_weights_with_other_readers_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp_passes.simplify.support import linear

    monkeypatch.setattr(linear, "LARGEST_COPY", 16)
    text = f"""g (float[N, 2, 5, 5] x) => (float[P, Q, R, S] y, float[P, Q, R, S] z)
        <float[4, 2, 3, 3] w, {PARAMETERS}> {{
        t = Conv (x, w) y = {NORM} (t, g, b, m, v) z = Conv (x, w) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_works_in_a_body_that_captures_the_weight() -> None:
    text = f"""g (bool c, float[N, 2, 5, 5] x) => (float[P, Q, R, S] y) <float[4, 2, 3, 3] w, {PARAMETERS}> {{
        y = If (c) <
          then_branch = t () => (float[P, Q, R, S] a) {{ i = Conv (x, w) a = {NORM} (i, g, b, m, v) }},
          else_branch = e () => (float[P, Q, R, S] d) {{ d = Conv (x, w) }}> }}"""
    got = assert_holds(FuseBatchnorm(), text, **TIGHT)
    branches = [attr.g for attr in got.graph.node[0].attribute]
    assert [[node.op_type for node in branch.node] for branch in branches] == [["Conv"], ["Conv"]]


def test_does_not_move_across_the_border_of_a_body() -> None:
    text = f"""g (bool c, float[N, 2, 5, 5] x) => (float[P, Q, R, S] y) <float[4, 2, 3, 3] w, {PARAMETERS}> {{
        i = Conv (x, w)
        y = If (c) <
          then_branch = t () => (float[P, Q, R, S] a) {{ a = {NORM} (i, g, b, m, v) }},
          else_branch = e () => (float[P, Q, R, S] d) {{ d = Conv (x, w) }}> }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


def test_works_in_functions_unless_the_caller_decides() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[N, 2] x) => (float[N, 2] y) { y = f.two <e = 0.1> (x) }
        <domain: "f", opset_import: ["" : 21]>
        two <e> (a) => (d) {
          w = Constant <value = float[2, 2] {1.0, 2.0, 3.0, 4.0}> ()
          p = Constant <value = float[2] {1.0, 2.0}> ()
          t = Gemm (a, w) d = BatchNormalization <epsilon: float = @e> (t, p, p, p, p) }"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")
    got = assert_holds(
        FuseBatchnorm(), text.replace("epsilon: float = @e", "epsilon = 0.1"), **TIGHT
    )
    kinds = [node.op_type for node in got.functions[0].node]
    assert [kind for kind in kinds if kind != "Constant"] == ["Gemm"]
    assert_refuses(
        FuseBatchnorm(),
        text.replace("Gemm (a, w)", "Gemm <alpha: float = @e> (a, w)"),
        code="FBN101",
    )


def test_initializers_that_are_inputs_of_old_files_are_constants() -> None:
    text = f"""<ir_version: 3, opset_import: ["" : 15]>
        g (float[N, 2, 5, 5] x, float[4, 2, 1, 1] w = {{1, 2, 3, 4, 5, 6, 7, 8}},
           float[4] p = {{1, 2, 3, 4}}, float[4] c = {{1, 2, 3, 4}}) => (float[P, Q, R, S] y) {{
        t = Conv (x, w, c) y = {NORM} (t, p, p, p, p) }}"""
    becomes(FuseBatchnorm(), text, "Conv")


def test_spatial_parameters_of_old_opsets_stay() -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 8]>
        g (float[N, 3] x) => (float[N, 2] y) <float[3, 2] w, float[2] p = {{1, 2}}, float[2] c> {{
        t = Gemm (x, w, c) y = {NORM} <spatial = 0> (t, p, p, p, p) }}"""
    proto = model(text)
    assert_refuses(FuseBatchnorm(), proto, code="FBN101")


def test_large_weights_with_other_readers_stay_behind_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp_passes.simplify.support import linear

    monkeypatch.setattr(linear, "LARGEST_COPY", 16)
    text = f"""g (float[N, 4, 5, 5] x) => (float[P, Q, R, S] y, float[P, Q, R, S] z)
        <float[3, 4, 3, 3] w, {PARAMETERS}> {{
        t = {NORM} (x, g, b, m, v) y = Conv (t, w) z = Conv (x, w) }}"""
    assert_refuses(FuseBatchnorm(), text, code="FBN101")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (
            "[conv] c = Conv (x, w)  [other] z = Neg (c)",
            'Conv "conv" before it is also read by Neg "other"',
        ),
        (
            "[conv] c = Conv (x, v)  z = Neg (x)",
            'the weight of Conv "conv" before it is not constant',
        ),
        ("d = Conv (x, w)  [act] c = Relu (d)  z = Neg (x)", 'Relu "act" stands between it and'),
        ("c = Identity (x)  z = Neg (x)", 'Identity "c" stands between it and'),
    ],
)
def test_what_is_in_the_way_is_told(before: str, said: str) -> None:
    graph = f"""
        g (float[1, 4, 8, 8] x, float[4, 4, 3, 3] v) => (float[N, 4, H, W] y, float[N, 4, H, W] z)
        <float[4, 4, 3, 3] w, float[4] s, float[4] b, float[4] m, float[4] r = {{1, 1, 1, 1}}> {{
          {before}
          [norm] y = BatchNormalization (c, s, b, m, r)
        }}
    """
    outcome = assert_refuses(FuseBatchnorm(), graph, code="FBN101", at="norm")
    assert outcome.diagnostics[0].message.startswith(said)
