"""fuse-bias: additions that become a bias, and those that stay."""

from __future__ import annotations

import pytest

from onnxcomp_passes.simplify.fuse_affine import FuseAffine
from onnxcomp_passes.simplify.fuse_bias import FuseBias
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_same,
    assert_unchanged,
)
from tests.helpers.fusing import (
    becomes,
    conv,
    matrix,
)
from tests.helpers.numbers import seeded_feeds
from tests.helpers.text import model

BIAS = [
    (conv("t = Conv (x, w) y = Add (t, s)", ", float[4, 1, 1] s"), "Conv"),
    (conv("t = Conv (x, w, g) y = Add (s, t)", ", float[1, 4, 1, 1] s"), "Conv"),
    (conv("t = Conv (x, w) y = Sub (t, s)", ", float s"), "Conv"),
    (conv("t = ConvTranspose (x, w) y = Add (t, s)", ", float[4, 1, 1] s", w="float[2, 4, 3, 3]"), "ConvTranspose"),
    (matrix("t = Gemm (x, w) y = Add (t, s)", ", float[4] s"), "Gemm"),
    (matrix("t = Gemm <beta = 0.5> (x, w, g) y = Add (t, s)", ", float[1, 1] s"), "Gemm"),
    (matrix("t = MatMul (x, w) y = Add (t, s)", ", float[4] s"), "Gemm"),
    (matrix("t = MatMul (x, w) u = Add (t, s) y = Sub (u, g)", ", float[4] s"), "Gemm"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "left"), BIAS)
def test_additions_become_a_bias(text: str, left: str) -> None:
    becomes(FuseBias(), text, left)


NO_BIAS = [
    conv("t = Conv (x, w) y = Add (t, s)", ", float[3, 3] s"),
    conv("t = Conv (x, w) y = Add (t, t)"),
    conv("t = Conv (x, w) u = Conv (x, w) y = Add (t, u)"),
    conv("t = Conv (x, w) u = Add (t, s) y = Add (t, u)", ", float s"),
    matrix("t = MatMul (x, w) y = Add (t, s)", ", float[2, 4] s", x="float[2, 3]"),
    matrix("t = MatMul (x, w) y = Add (t, s)", ", float[4] s", x="float[]"),
]  # fmt: skip


@pytest.mark.parametrize("text", NO_BIAS)
def test_other_additions_stay(text: str) -> None:
    assert_unchanged(FuseBias(), text)


def test_a_matmul_of_three_dimensions_has_no_bias_and_no_remark() -> None:
    text = "g (float[2, N, 3] x) => (float[2, N, 4] y) <float[3, 4] w, float[4] s> { t = MatMul (x, w) y = Add (t, s) }"
    assert not assert_unchanged(FuseBias(), text).diagnostics


def test_half_precision_gets_a_bias_that_it_had_not() -> None:
    text = """g (float16[N, 2, 5, 5] x) => (float16[P, Q, R, S] y) <float16[4, 2, 1, 1] w, float16[4, 1, 1] s, float16[4] c> {
        t = Conv (x, w) y = Add (t, s) }"""
    assert_holds(FuseBias(), text, runtimes=["reference"], rtol=4e-3, atol=4e-3)
    assert_refuses(FuseBias(), text.replace("(x, w)", "(x, w, c)"), code="FBI101")
    matmul = "g (float16[N, 3] x) => (float16[N, 4] y) <float16[3, 4] w, float16[4] s> { t = MatMul (x, w) y = Add (t, s) }"
    assert_unchanged(FuseBias(), matmul)


def test_double_precision_is_kept() -> None:
    text = "g (double[N, 3] x) => (double[N, 4] y) <double[3, 4] w, double[4] s, double c = {3.0}> { t = MatMul (x, w) u = Mul (t, c) y = Add (u, s) }"
    got = assert_holds(FuseAffine(), text, rtol=1e-12, atol=1e-12)
    feeds = seeded_feeds(got)
    got = assert_holds(FuseBias(), got, rtol=1e-12, atol=1e-12, feeds=[feeds])
    assert [node.op_type for node in got.graph.node] == ["Gemm"]
    assert_same(model(text), got, rtol=1e-12, atol=1e-12)
