"""Channels without effect go, in every kind of network, and outputs stay what they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_rewrites, assert_same, assert_unchanged
from tests.helpers.masks import masked

SHRINK = ShrinkChannels(multiple=1)

# Families of architectures: what a masked channel is tied to differs in each.
FAMILIES = {
    "plain": """g (float[1, 3, 8, 8] x) => (float[1, 4] y)
        <float[8, 3, 3, 3] a, float[8] ab, float[12, 8, 3, 3] b, float[12] bb, float[4, 12] h> {
          p = Conv <pads = [1, 1, 1, 1]> (x, a, ab)
          q = Relu (p)
          r = Conv (q, b, bb)
          s = Relu (r)
          m = GlobalAveragePool (s)
          f = Flatten (m)
          y = Gemm <transB = 1> (f, h)
        }""",
    "residual": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[6, 8, 3, 3] b, float[6] bb, float[8, 6, 3, 3] c, float[4, 8, 1, 1] h> {
          p = Conv (x, a)
          q = Conv <pads = [1, 1, 1, 1]> (p, b, bb)
          r = Relu (q)
          s = Conv <pads = [1, 1, 1, 1]> (r, c)
          t = Add (p, s)
          y = Conv (t, h)
        }""",
    "dense": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[6, 8, 1, 1] b, float[5, 14, 1, 1] c, float[4, 19, 1, 1] h> {
          p = Conv (x, a)
          q = Conv (p, b)
          r = Concat <axis = 1> (p, q)
          s = Conv (r, c)
          t = Concat <axis = 1> (r, s)
          y = Conv (t, h)
        }""",
    "unfused batch normalization": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[8] s, float[8] b, float[8] m, float[8] v = {1, 2, 3, 4, 5, 6, 7, 8},
         float[4, 8, 1, 1] h> {
          p = Conv (x, a)
          q = BatchNormalization (p, s, b, m, v)
          r = Relu (q)
          y = Conv (r, h)
        }""",
    "depthwise": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[8] ab, float[8, 1, 3, 3] d, float[8] db, float[4, 8, 1, 1] h> {
          p = Conv (x, a, ab)
          q = Relu (p)
          r = Conv <group = 8, pads = [1, 1, 1, 1]> (q, d, db)
          y = Conv (r, h)
        }""",
    "grouped": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[12, 4, 3, 3] d, float[4, 12, 1, 1] h> {
          p = Conv (x, a)
          q = Relu (p)
          r = Conv <group = 2, pads = [1, 1, 1, 1]> (q, d)
          y = Conv (r, h)
        }""",
    "shuffled": """g (float[1, 3, 4, 4] x) => (float[1, 5, 4, 4] y)
        <float[6, 3, 1, 1] w, float[5, 6, 1, 1] v, int64[5] apart = {1, 2, 3, 4, 4},
         int64[4] whole = {1, 6, 4, 4}> {
          a = Conv (x, w)
          r = Reshape (a, apart)
          t = Transpose <perm = [0, 2, 1, 3, 4]> (r)
          s = Reshape (t, whole)
          y = Conv (s, v)
        }""",
    "halves": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[4, 4, 3, 3] b, float[4, 12, 1, 1] h, int64[2] parts = {4, 4}> {
          p = Conv (x, a)
          q, r = Split <axis = 1> (p, parts)
          s = Conv <pads = [1, 1, 1, 1]> (r, b)
          t = Concat <axis = 1> (q, r, s)
          y = Conv (t, h)
        }""",
    "every second": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[9, 3, 1, 1] a, float[4, 5, 1, 1] h, int64[1] start = {0}, int64[1] end = {9},
         int64[1] axis = {1}, int64[1] step = {2}> {
          p = Conv (x, a)
          q = Slice (p, start, end, axis, step)
          y = Conv (q, h)
        }""",
    "every second, and all": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 2, 8, 8] z)
        <float[9, 3, 1, 1] a, float[4, 5, 1, 1] h, float[2, 9, 1, 1] k, int64[1] start = {0}, int64[1] end = {9},
         int64[1] axis = {1}, int64[1] step = {2}> {
          p = Conv (x, a)
          q = Slice (p, start, end, axis, step)
          y = Conv (q, h)
          z = Conv (p, k)
        }""",
    "backwards": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 2, 8, 8] z)
        <float[7, 3, 1, 1] a, float[4, 5, 1, 1] h, float[2, 7, 1, 1] k, int64[1] start = {4}, int64[1] end = {-100000},
         int64[1] axis = {1}, int64[1] step = {-1}> {
          p = Conv (x, a)
          q = Slice (p, start, end, axis, step)
          y = Conv (q, h)
          z = Conv (p, k)
        }""",
    "picked": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[6, 3, 1, 1] a, float[4, 4, 1, 1] h, int64[4] order = {5, 0, -3, 2}> {
          p = Conv (x, a)
          q = Gather <axis = 1> (p, order)
          y = Conv (q, h)
        }""",
    "squeeze and excite": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 1, 1] a, float[4, 8, 1, 1] s, float[4] sb, float[8, 4, 1, 1] e, float[4, 8, 1, 1] h> {
          p = Conv (x, a)
          m = GlobalAveragePool (p)
          n = Conv (m, s, sb)
          o = Relu (n)
          w = Conv (o, e)
          z = HardSigmoid (w)
          q = Mul (p, z)
          y = Conv (q, h)
        }""",
    "up again": """g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[8, 3, 2, 2] a, float[8] ab, float[8, 6, 2, 2] u, float[6] ub, float[4, 6, 1, 1] h> {
          p = Conv <strides = [2, 2]> (x, a, ab)
          q = Relu (p)
          r = ConvTranspose <strides = [2, 2]> (q, u, ub)
          s = Relu (r)
          y = Conv (s, h)
        }""",
    "pixel shuffle": """g (float[1, 3, 4, 4] x) => (float[1, 4, 8, 8] y)
        <float[12, 3, 1, 1] a, float[4, 3, 1, 1] h> {
          p = Conv (x, a)
          q = DepthToSpace <blocksize = 2, mode = "CRD"> (p)
          y = Conv (q, h)
        }""",
    "flattened": """g (float[1, 3, 4, 4] x) => (float[1, 5] y)
        <float[6, 3, 1, 1] w, float[6] b, float[5, 96] v> {
          a = Conv (x, w, b)
          r = Relu (a)
          f = Flatten (r)
          y = Gemm <transB = 1> (f, v)
        }""",
    "attention": """g (float[1, 7, 8] x) => (float[1, 7, 8] y)
        <float[8, 12] q, float[8, 12] k, float[8, 12] v, float[12] vb, float[12, 8] o,
         int64[4] apart = {0, 0, 3, 4}, int64[3] whole = {0, 0, 12}> {
          a = MatMul (x, q)
          b = MatMul (x, k)
          c = MatMul (x, v)
          d = Add (c, vb)
          ah = Reshape (a, apart)
          bh = Reshape (b, apart)
          ch = Reshape (d, apart)
          at = Transpose <perm = [0, 2, 1, 3]> (ah)
          bt = Transpose <perm = [0, 2, 3, 1]> (bh)
          ct = Transpose <perm = [0, 2, 1, 3]> (ch)
          s = MatMul (at, bt)
          p = Softmax (s)
          h = MatMul (p, ct)
          ht = Transpose <perm = [0, 2, 1, 3]> (h)
          hr = Reshape (ht, whole)
          y = MatMul (hr, o)
        }""",
    "lstm": """g (float[4, 1, 3] x) => (float[4, 1, 5] y)
        <float[1, 24, 3] w, float[1, 24, 6] r, float[1, 48] b, float[6, 5] v, int64[3] flat = {4, 1, 6}> {
          a, h, c = LSTM <hidden_size = 6> (x, w, r, b)
          f = Reshape (a, flat)
          y = MatMul (f, v)
        }""",
    "gru": """g (float[4, 1, 3] x) => (float[4, 1, 5] y)
        <float[2, 18, 3] w, float[2, 18, 6] r, float[2, 36] b, float[12, 5] v, int64[3] flat = {4, 1, 12}> {
          a, h = GRU <hidden_size = 6, direction = "bidirectional"> (x, w, r, b)
          t = Transpose <perm = [0, 2, 1, 3]> (a)
          f = Reshape (t, flat)
          y = MatMul (f, v)
        }""",
    "branches": """g (float[1, 3, 4, 4] x, bool c) => (float[1, 5, 4, 4] y)
        <float[6, 3, 1, 1] w, float[6, 6, 1, 1] u, float[5, 6, 1, 1] v> {
          a = Conv (x, w)
          b = If (c) <
            then_branch = one () => (t) { t = Conv (a, u) },
            else_branch = other () => (e) { e = Relu (a) }
          >
          y = Conv (b, v)
        }""",
    "einsum": """g (float[2, 3] x) => (float[2, 4] y) <float[3, 6] w, float[4, 6] v> {
          a = Einsum <equation = "bi,ij->bj"> (x, w)
          y = Einsum <equation = "bj,oj->bo"> (a, v)
        }""",
}


def _weights(model: Model) -> int:
    """Returns how many numbers the weights have; shapes and indices are none."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor and tensor.dtype.is_floating_point())


@pytest.mark.parametrize("side", ["made", "read"])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_become_smaller_weights(family: str, side: str) -> None:
    source, count = masked(Model.load(text.model(FAMILIES[family])), side=side, seed=3)  # type: ignore[arg-type]
    assert count
    result = Pipeline((SHRINK,)).run(source)
    assert _weights(result.model) < _weights(source)
    assert_same(source.to_proto(), result.model.to_proto(), rtol=1e-5, atol=1e-5)
    (outcome,) = result.outcomes
    assert outcome.stats["channels removed"] >= count


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(["made", "read"]),
    st.sampled_from(["large", "outer", "inner"]),
    st.floats(0.05, 0.95),
    st.integers(0, 1 << 16),
)
def test_masks_of_any_size(family: str, side: str, prefer: str, ratio: float, seed: int) -> None:
    model = Model.load(text.model(FAMILIES[family]))
    source, _ = masked(model, ratio=ratio, side=side, seed=seed, prefer=prefer)  # type: ignore[arg-type]
    result = Pipeline((SHRINK,)).run(source)
    assert_same(source.to_proto(), result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_a_zero_filter_goes_with_what_reads_it() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[3, 2, 1, 1] w = {1, 2, 0, 0, 3, 4}, float[1, 3, 1, 1] v = {5, 6, 7}> {
              a = Conv (x, w)
              y = Conv (a, v)
            }""",
        after="""g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[2, 2, 1, 1] w = {1, 2, 3, 4}, float[1, 2, 1, 1] v = {5, 7}> {
              a = Conv (x, w)
              y = Conv (a, v)
            }""",
    )


def test_what_a_bias_leaves_behind_moves_on() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[2, 1, 1, 1] w = {1, 0}, float[2] b = {3, 2}, float[1, 2, 1, 1] v = {5, 6}> {
              a = Conv (x, w, b)
              r = Relu (a)
              y = Conv (r, v)
            }""",
        after="""g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
            <float[1, 1, 1, 1] w = {1}, float[1] b = {3}, float[1, 1, 1, 1] v = {5}, float[1] c = {12}> {
              a = Conv (x, w, b)
              r = Relu (a)
              y = Conv (r, v, c)
            }""",
    )


def test_a_matrix_product_gets_an_addition() -> None:
    assert_rewrites(
        SHRINK,
        before="""g (float[1, 2, 1] x) => (float[1, 2, 1] y)
            <float[1, 2] w = {2, 0}, float[2] b = {3, 2}, float[2, 1] v = {5, 6}> {
              a = MatMul (x, w)
              c = Add (a, b)
              y = MatMul (c, v)
            }""",
        after="""g (float[1, 2, 1] x) => (float[1, 2, 1] y)
            <float[1, 1] w = {2}, float[1] b = {3}, float[1, 1] v = {5}, float[1] s = {12}> {
              a = MatMul (x, w)
              c = Add (a, b)
              d = MatMul (c, v)
              y = Add (d, s)
            }""",
    )


def test_padding_keeps_a_channel_that_is_not_zero() -> None:
    """At the border the next layer sees zeros where the channel holds its bias."""
    assert_unchanged(
        SHRINK,
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 1, 1, 1] w = {1, 0}, float[2] b = {3, 2}, float[1, 2, 3, 3] v> {
          a = Conv (x, w, b)
          y = Conv <pads = [1, 1, 1, 1]> (a, v)
        }""",
    )


def test_a_normalization_over_channels_keeps_them() -> None:
    assert_unchanged(
        SHRINK,
        """g (float[1, 2] x) => (float[1, 1] y)
        <float[2, 3] w = {1, 2, 0, 3, 4, 0}, float[3] s, float[3, 1] v> {
          a = MatMul (x, w)
          n = LayerNormalization (a, s)
          y = MatMul (n, v)
        }""",
    )


def test_a_transposed_convolution_in_groups() -> None:
    """What is left behind is not zero, but nobody reads it."""
    source = Model.load(
        text.model(
            """g (float[1, 1, 4, 4] x) => (float[1, 2, 8, 8] y)
            <float[4, 1, 1, 1] w = {1, 0, 2, 3}, float[4] b = {3, 2, 1, 4},
             float[4, 1, 2, 2] v = {1, 2, 3, 4, 0, 0, 0, 0, 5, 6, 7, 8, 9, 1, 2, 3}> {
              a = Conv (x, w, b)
              y = ConvTranspose <group = 2, strides = [2, 2]> (a, v)
            }"""
        )
    )
    result = Pipeline((SHRINK,)).run(source)
    # The reference evaluator knows no groups here.
    assert_same(source.to_proto(), result.model.to_proto(), runtimes=("onnxruntime",))


def test_one_channel_stays() -> None:
    result = Pipeline((SHRINK,)).run(
        Model.load(
            text.model(
                """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
                <float[2, 2, 1, 1] w = {0, 0, 0, 0}, float[1, 2, 1, 1] v> {
                  a = Conv (x, w)
                  y = Conv (a, v)
                }"""
            )
        )
    )
    weights = {name: value.shape for name, value in result.model.graph.initializers.items()}
    assert {name: list(shape.numpy()) for name, shape in weights.items() if shape} == {
        "w": [1, 2, 1, 1],
        "v": [1, 1, 1, 1],
    }


def test_nothing_without_effect() -> None:
    assert_refuses(
        SHRINK,
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y) <float[3, 2, 1, 1] w, float[1, 3, 1, 1] v> {
          a = Conv (x, w)
          y = Conv (a, v)
        }""",
        code="SHR101",
    )


def test_heads_whose_outputs_nobody_reads() -> None:
    model = Model.load(text.model(FAMILIES["attention"]))
    source, _ = masked(model, side="read", prefer="outer", seed=1)
    result = Pipeline((SHRINK,)).run(source)
    sizes = {
        name: value.shape[-1]
        for name, value in result.model.graph.initializers.items()
        if value.shape
    }
    assert sizes["q"] == sizes["k"] == sizes["v"]
    assert sizes["q"] in {4, 8}
    assert_same(source.to_proto(), result.model.to_proto(), rtol=1e-5, atol=1e-5)


def test_masks_of_a_real_shape_are_dropped_exactly() -> None:
    """Half of the channels of three layers: a quarter of the middle one is left."""
    rng = np.random.default_rng(0)
    model = Model.load(text.model(FAMILIES["plain"]))
    source, _ = masked(model, seed=int(rng.integers(100)))
    result = Pipeline((SHRINK,)).run(source)
    middle = result.model.graph.initializers["b"].shape
    assert middle is not None
    first = result.model.graph.initializers["a"].shape
    assert first is not None
    assert middle[1] == first[0]
