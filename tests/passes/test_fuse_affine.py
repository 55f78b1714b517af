"""fuse-affine: factors and additions that go into weights, and those that stay."""

from __future__ import annotations

import pytest

from onnxcomp_passes.simplify.fuse_affine import FuseAffine
from tests.helpers.check import (
    assert_refuses,
    assert_unchanged,
)
from tests.helpers.fusing import (
    becomes,
    conv,
    matrix,
)

AFFINE = [
    (conv("t = Conv (x, w) y = Mul (t, s)", ", float[4, 1, 1] s"), "Conv"),
    (conv("t = Conv (x, w, g) y = Div (t, s)", ", float s = {3}"), "Conv"),
    (conv("t = Conv (x, w, g) y = Mul (s, t)", ", float[1, 4, 1, 1] s"), "Conv"),
    (conv("t = Conv (x, w, g) y = Sub (s, t)", ", float s = {3}"), "Conv"),
    (matrix("t = Gemm (x, w) y = Mul (t, s)", ", float[4] s"), "Gemm"),
    (matrix("t = MatMul (x, w) y = Mul (t, s)", ", float[1, 4] s"), "MatMul"),
    (matrix("t = MatMul (x, w) u = Add (t, c) y = Mul (u, s)", ", float[4] s, float[4] c", x="float[2, N, 3]"), "MatMul Add"),
    (conv("t = Mul (x, s) y = Conv <pads = [1, 1, 1, 1]> (t, w)", ", float[2, 1, 1] s"), "Conv"),
    (conv("u = Sub (x, c) t = Div (u, s) y = Conv (t, w)", ", float[2, 1, 1] s, float[2, 1, 1] c"), "Conv"),
    (matrix("t = Mul (s, x) y = MatMul (t, w)", ", float[3] s", x="float[2, N, 3]"), "MatMul"),
    (matrix("t = Add (x, s) y = Gemm (t, w)", ", float[3] s"), "Gemm"),
    (matrix("t = Sub (s, x) y = Gemm (t, w)", ", float s"), "Gemm"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "left"), AFFINE)
def test_folds_factors(text: str, left: str) -> None:
    becomes(
        FuseAffine(),
        text.replace("(float[P, 4] y)", "(float[P, Q, 4] y)") if "[2, N, 3]" in text else text,
        left,
    )


NOT_AFFINE = [
    conv("t = Conv (x, w) y = Mul (t, s)", ", float[3, 3] s"),  # varies along the picture
    conv("t = Conv (x, w) y = Mul (t, s)", ", float[2, 4, 1, 1] s", x="float[1, 2, 5, 5]"),
    conv("t = Conv (x, w) y = Mul (t, s)", ", float[4, 1, 1, 1] s", w="float[1, 2, 3, 3]"),
    conv("t = Mul (x, s) y = Conv (t, w)", ", float[2, 1, 1] s", x="float[N, 1, 5, 5]"),  # widens
    conv("t = Add (x, s) y = ConvTranspose (t, w)", ", float s", w="float[2, 3, 3, 3]"),
    conv("t = Conv (x, w) y = Mul (t, t)"),
    conv("t = Conv (x, w) y = Div (s, t)", ", float s"),
    conv("t = Conv (x, w) y = Div (t, s)", ", float s = {0}"),
    conv("t = Conv (x, w) y = Mul (t, s)", ", float s = {1e-30}"),
    conv("t = Conv (x, w) y = Mul (t, s)", ", float s = {1e30}"),
    conv("t = Conv (x, w) y = Mul (t, s)", ", float s = {nan}"),
    conv("t = Conv (x, w) u = Exp (t) y = Mul (u, s)", ", float s"),
    conv("t = Mul (x, s) u = Exp (t) y = Conv (u, w)", ", float s"),
    conv("t = Mul (x, s) u = Conv (t, w) v2 = Conv (t, w) y = Add (u, v2)", ", float s"),
    conv("t = Add (x, s) y = Conv <pads = [1, 1, 1, 1]> (t, w)", ", float s"),
    conv("t = Add (x, s) y = Conv (t, w)", ", float s = {inf}"),
    matrix("t = Mul (x, s) y = Gemm <transA = 1> (t, w)", ", float s", x="float[3, 3]"),
    matrix("t = Mul (x, s) y = MatMul (w, t)", ", float s", x="float[3, 4]", w="float[3, 3]"),
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_AFFINE)
def test_leaves_what_is_no_factor_per_channel(text: str) -> None:
    assert_unchanged(FuseAffine(), text)


FORMULAS = [
    "d = Div (x, q) e = Erf (d) a = Add (e, o) t = Mul (x, a) u = Mul (t, h) y = Gemm (u, w)",
    "d = Mul (x, q) e = Tanh (d) a = Add (o, e) t = Mul (a, x) u = Mul (h, t) y = Gemm (u, w)",
    "d = Sub (x, q) e = Sqrt (r) t = Div (d, e) u = Mul (t, s) v2 = Add (u, c) y = Gemm (v2, w)",
    "d = Sub (x, q) e = Sqrt (r) t = Div (d, e) u = Mul (t, s) y = Gemm (u, w)",
    "d = Sub (x, q) e = Sqrt (r) f = Reciprocal (e) t = Mul (d, f) u = Mul (t, s) y = Gemm (u, w)",
]


@pytest.mark.parametrize("body", FORMULAS)
def test_leaves_formulas_that_runtimes_recognise(body: str) -> None:
    text = matrix(
        body, ", float q = {1.4142135}, float o = {1}, float h = {0.5}, float[3] s, float[3] c"
    )
    assert_unchanged(
        FuseAffine(), text.replace("g (float[N, 3] x)", "g (float[N, 3] x, float[N, 1] r)")
    )


def test_looks_like_a_formula_but_is_none() -> None:
    more = ", float[3] s, float h = {0.5}"
    becomes(FuseAffine(), matrix("t = Mul (x, x) u = Mul (t, h) y = Gemm (u, w)", more), "Mul Gemm")
    becomes(FuseAffine(), matrix("t = Add (x, x) u = Mul (t, s) y = Gemm (u, w)", more), "Add Gemm")
    becomes(
        FuseAffine(),
        matrix("t = Exp (x) e = Add (t, t) a = Mul (e, t) u = Mul (a, s) y = Gemm (u, w)", more),
        "Exp Add Mul Gemm",
    )
    becomes(FuseAffine(), matrix("t = Mul (x, s) u = Mul (t, h) y = Gemm (u, w)", more), "Gemm")


def test_half_precision_and_unknown_ranks_stay() -> None:
    half = """g (float16[N, 2, 5, 5] x) => (float16[P, Q, R, S] y) <float16[4, 2, 1, 1] w, float16[4, 1, 1] s> {
        t = Conv (x, w) y = Mul (t, s) }"""
    assert_refuses(FuseAffine(), half, code="FAF101")
    assert_refuses(
        FuseAffine(),
        half.replace("t = Conv (x, w) y = Mul (t, s)", "t = Mul (x, r) y = Conv (t, w)").replace(
            "float16[4, 1, 1] s", "float16[2, 1, 1] r"
        ),
        code="FAF101",
    )
    unknown = "g (float[] x) => (float[P, 4] y) <float[3, 4] w, float[4] s, float[3] r> {"
    assert_unchanged(FuseAffine(), unknown + "t = MatMul (x, w) y = Mul (t, s) }")
    assert_unchanged(FuseAffine(), unknown + "t = Mul (x, r) y = MatMul (t, w) }")
    vector = "g (float[3] x) => (float[4] y) <float[3, 4] w, float[4] s> { t = MatMul (x, w) y = Mul (t, s) }"
    assert_unchanged(FuseAffine(), vector)
    other = "g (float[N, 3] x) => (float[N, Q, R] y) <float[2, 3, 4] w, float[4] s> { t = MatMul (x, w) y = Mul (t, s) }"
    assert_unchanged(FuseAffine(), other)


def test_a_bias_behind_a_matmul_must_be_one() -> None:
    body = "t = MatMul (x, w) u = Add (t, c) y = Mul (u, s)"
    for more in (", float[1, 2, 4] c", ", float[5, 1] c"):
        text = matrix(
            body, more + ", float[4] s", x="float[1, 5, 3]" if "5" in more else "float[2, 3]"
        )
        assert_unchanged(FuseAffine(), text.replace("(float[P, 4] y)", "(float[P, Q, 4] y)"))
    both = matrix("t = MatMul (x, w) u = Add (t, t) y = Mul (u, s)", ", float[4] s")
    assert_unchanged(FuseAffine(), both)


def test_a_result_that_others_read_too_is_told() -> None:
    behind = """
        g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z)
        <float[4, 3, 3, 3] w, float[4, 1, 1] s> {
          [conv] c = Conv (x, w)
          [scale] y = Mul (c, s)
          [other] z = Neg (c)
        }
    """
    outcome = assert_refuses(FuseAffine(), behind, code="FAF101", at="scale")
    assert outcome.diagnostics[0].message == 'Conv "conv" before it is also read by Neg "other"'
    before = """
        g (float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y, float[1, 3, 8, 8] c)
        <float[4, 3, 3, 3] w, float[3, 1, 1] s> {
          [scale] c = Mul (x, s)
          [conv] y = Conv (c, w)
        }
    """
    outcome = assert_refuses(FuseAffine(), before, code="FAF101", at="conv")
    assert outcome.diagnostics[0].message == 'Mul "scale" before it is also an output of the graph'


def test_a_sum_of_two_branches_is_no_near_miss() -> None:
    graph = """
        g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) <float[4, 4, 1, 1] w> {
          c = Conv (x, w)
          d = Mul (c, x)
          y = Mul (d, c)
        }
    """
    assert not assert_unchanged(FuseAffine(), graph).diagnostics
