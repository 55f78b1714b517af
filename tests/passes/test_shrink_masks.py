"""Masks in every form that exporters leave them in, and constants in every bias that takes them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from tests.helpers import text
from tests.helpers.check import assert_refuses, assert_same, assert_unchanged

SHRINK = ShrinkChannels(multiple=1)


def shrunk(source: str | onnx.ModelProto, *, same: bool = True) -> dict[str, list[int]]:
    """Returns the shapes of weights of the result, by how many numbers they are, largest first."""
    proto = text.model(source) if isinstance(source, str) else source
    result = Pipeline((SHRINK,)).run(proto)
    if same:
        assert_same(proto, result.model.to_proto(), rtol=1e-5, atol=1e-5, runtimes=("onnxruntime",))
    return {
        name: [int(size) for size in value.shape.numpy()]
        for name, value in result.model.graph.initializers.items()
        if value.shape is not None
    }


@pytest.mark.parametrize(
    ("nodes", "extra"),
    [
        ("b = Mul (a, mask)", "float[3, 1, 1] mask = {1, 0, 1}"),
        ("b = Where (bits, a, zero)", "bool[3, 1, 1] bits = {1, 0, 1}, float zero = {0}"),
        (
            "b = BatchNormalization (a, gamma, beta, mean, variance)",
            "float[3] gamma = {1, 0, 2}, float[3] beta = {1, 2, 3}, float[3] mean = {1, 2, 3},"
            " float[3] variance = {1, 2, 3}",
        ),
        ("b = Clip (a, zero, six)", "float zero = {0}, float six = {6}"),
    ],
)
def test_a_mask_behind_the_layer(nodes: str, extra: str) -> None:
    weight = "{1, 2, 0, 0, 3, 4}" if "Clip" in nodes else "{1, 2, 5, 6, 3, 4}"
    left = shrunk(
        f"""g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[3, 2, 1, 1] w = {weight}, float[1, 3, 1, 1] v, {extra}> {{
          a = Conv (x, w)
          {nodes}
          y = Conv (b, v)
        }}"""
    )
    assert left["w"] == [2, 2, 1, 1]
    assert left["v"] == [1, 2, 1, 1]


def test_weights_times_a_mask() -> None:
    """What an exporter leaves that does not fold `weight_orig * weight_mask`."""
    left = shrunk(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[3, 2, 1, 1] weight_orig, float[3, 2, 1, 1] weight_mask = {1, 1, 0, 0, 1, 1}, float[1, 3, 1, 1] v> {
          w = Mul (weight_orig, weight_mask)
          a = Conv (x, w)
          y = Conv (a, v)
        }"""
    )
    assert left["v"] == [1, 2, 1, 1]


def test_weights_in_constant_nodes() -> None:
    left = shrunk(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y) <float[1, 3, 1, 1] v> {
          w = Constant <value = float[3, 2, 1, 1] {1, 2, 0, 0, 3, 4}> ()
          a = Conv (x, w)
          y = Conv (a, v)
        }"""
    )
    assert left["v"] == [1, 2, 1, 1]


def test_quantized_weights_whose_zero_point_is_not_zero() -> None:
    """A filter of zero points is a filter of zeros, one of zeros is none."""
    left = shrunk(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <uint8[3, 2, 1, 1] q = {130, 140, 128, 128, 0, 0}, float s = {0.5}, uint8 z = {128},
         float[1, 3, 1, 1] v> {
          w = DequantizeLinear (q, s, z)
          a = Conv (x, w)
          r = Relu (a)
          y = Conv (r, v)
        }"""
    )
    assert left["q"] == [2, 2, 1, 1]
    assert left["v"] == [1, 2, 1, 1]


def test_quantized_activations_in_between() -> None:
    left = shrunk(
        """g (float[1, 2, 4, 4] x) => (float[1, 1, 4, 4] y)
        <int8[3, 2, 1, 1] q = {30, 40, 0, 0, 5, 6}, float[3] s = {0.5, 0.25, 0.125}, int8[3] z = {0, 0, 0},
         float t = {0.1}, uint8 u = {3}, float[1, 3, 1, 1] v> {
          w = DequantizeLinear <axis = 0> (q, s, z)
          a = Conv (x, w)
          b = QuantizeLinear (a, t, u)
          c = DequantizeLinear (b, t, u)
          y = Conv (c, v)
        }"""
    )
    assert left["q"] == [2, 2, 1, 1]
    assert left["s"] == left["z"] == [2]
    assert left["v"] == [1, 2, 1, 1]


CONSTANTS = "<float[3, 2, 1, 1] w = {1, 2, 0, 0, 3, 4}, float[3] b = {1, 2, 3}, "
READERS = {
    "grouped": (
        "float[6, 3, 1, 1] v, float[6] c> { a = Conv (x, w, b) d = Concat <axis = 1> (a, a)"
        " y = Conv <group = 2> (d, v, c) }",
        "float[1, 6, 4, 4]",
    ),
    "transposed": (
        "float[3, 5, 1, 1] v, float[5] c> { a = Conv (x, w, b) y = ConvTranspose (a, v, c) }",
        "float[1, 5, 4, 4]",
    ),
    "valid padding": (
        'float[5, 3, 3, 3] v> { a = Conv (x, w, b) y = Conv <auto_pad = "VALID"> (a, v) }',
        "float[1, 5, 2, 2]",
    ),
    "scaled": (
        "float[5, 3] v, float[5] c> { p = Conv (x, w, b) q = GlobalAveragePool (p) a = Flatten (q)"
        " y = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (a, v, c) }",
        "float[1, 5]",
    ),
    "a row for each sample": (
        "float[5, 3] v, float[1, 1] c> { p = Conv (x, w, b) q = GlobalAveragePool (p) a = Flatten (q)"
        " y = Gemm <transB = 1> (a, v, c) }",
        "float[1, 5]",
    ),
    "product": (
        "float[3, 5] v> { p = Conv (x, w, b) q = GlobalAveragePool (p) a = Flatten (q) y = MatMul (a, v) }",
        "float[1, 5]",
    ),
}


@pytest.mark.parametrize("reader", READERS)
def test_constants_move_into_biases(reader: str) -> None:
    body, out = READERS[reader]
    left = shrunk(f"g (float[1, 2, 4, 4] x) => ({out} y) {CONSTANTS}{body}")
    assert left["w"] == [2, 2, 1, 1]


def test_constants_that_a_recurrent_layer_reads() -> None:
    left = shrunk(
        """g (float[5, 1, 2] x) => (float[5, 1, 4] y)
        <float[2, 3] v = {1, 0, 2, 3, 0, 4}, float[3] b = {1, 2, 3}, float[1, 16, 3] w, float[1, 16, 4] r,
         float[1, 32] rb, int64[1] one = {1}> {
          a = MatMul (x, v)
          c = Add (a, b)
          h, hh, hc = LSTM <hidden_size = 4> (c, w, r, rb)
          y = Squeeze (h, one)
        }"""
    )
    assert left["w"] == [1, 16, 2]
    assert left["v"] == [2, 2]


def test_constants_of_a_recurrent_layer_without_bias() -> None:
    left = shrunk(
        """g (float[5, 1, 2] x) => (float[5, 1, 4] y)
        <float[2, 3] v = {1, 0, 2, 3, 0, 4}, float[3] b = {1, 2, 3}, float[1, 12, 3] w, float[1, 12, 4] r,
         int64[1] one = {1}> {
          a = MatMul (x, v)
          c = Add (a, b)
          h, hh = GRU <hidden_size = 4, linear_before_reset = 1> (c, w, r)
          y = Squeeze (h, one)
        }"""
    )
    assert left["w"] == [1, 12, 2]


def test_hidden_units_that_start_at_zeros_of_any_batch() -> None:
    left = shrunk(
        """g (float[5, N, 3] x) => (float[5, 1, N, 4] y)
        <float[1, 6, 3] w = {1, 2, 3, 0, 0, 0, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6},
         float[1, 6, 6] r = {1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6,
          1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6},
         int64[1] one = {1}, int64[1] six = {6}, int64 batch = {1}, float[6, 4] v> {
          s = Shape (x)
          n = Gather (s, one)
          t = Concat <axis = 0> (one, n, six)
          z = ConstantOfShape (t)
          h, hh = RNN <hidden_size = 6> (x, w, r, , , z)
          y = MatMul (h, v)
        }"""
    )
    assert left["w"] == [1, 5, 3]


def test_values_of_attention_that_are_all_the_same() -> None:
    """Weights of zero, a bias that is not: rows of a softmax add up to one."""
    left = shrunk(
        """g (float[1, 4, 3] x) => (float[1, 4, 2] y)
        <float[3, 3] q, float[3, 2] v = {1, 0, 2, 0, 3, 0}, float[2] b = {1, 2}, float[2, 2] o> {
          a = MatMul (x, q)
          t = Transpose <perm = [0, 2, 1]> (x)
          s = MatMul (a, t)
          p = Softmax (s)
          c = MatMul (x, v)
          d = Add (c, b)
          h = MatMul (p, d)
          y = MatMul (h, o)
        }"""
    )
    assert left["v"] == [3, 1]
    assert left["o"] == [1, 2]


def test_columns_of_an_embedding() -> None:
    left = shrunk(
        """g (int64[1, 4] x) => (float[1, 4, 2] y)
        <float[3, 3] table = {1, 0, 2, 3, 0, 4, 5, 0, 6}, float[3, 2] v> {
          a = Gather (table, x)
          y = MatMul (a, v)
        }""",
        same=False,
    )
    assert left["table"] == [3, 2]
    assert left["v"] == [2, 2]


def test_numbers_that_are_none_are_left_alone() -> None:
    assert_unchanged(
        SHRINK,
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 1, 1, 1] w = {1, 0}, float[2] b = {0, inf}, float[1, 2, 1, 1] v> {
          a = Conv (x, w, b)
          y = Conv (a, v)
        }""",
    )


def test_sums_that_overflow_in_half_precision_are_no_constants() -> None:
    # 1 and 60000 by their bits.
    assert_unchanged(
        SHRINK,
        """g (float16[1, 1, 4, 4] x) => (float16[1, 1, 4, 4] y)
        <float16[2, 1, 1, 1] w = {15360, 0}, float16[2] b = {0, 31571}, float16[1, 2, 1, 1] v = {15360, 15360}> {
          a = Conv (x, w, b)
          c = Add (a, a)
          y = Conv (c, v)
        }""",
    )


def test_channels_suit_the_kernels() -> None:
    """Of eight channels three are without effect: one more than the block takes goes with none."""
    weight = np.ones((8, 2, 3, 3), np.float32) * np.arange(1, 9, dtype=np.float32).reshape(
        8, 1, 1, 1
    )
    weight[:3] = 0
    weight *= np.random.default_rng(0).uniform(1, 2, weight.shape).astype(np.float32)
    proto = text.model(
        """g (float[1, 2, 6, 6] x) => (float[1, 4, 2, 2] y) <float[4, 8, 3, 3] v> {
          a = Conv (x, w)
          r = Relu (a)
          y = Conv (r, v)
        }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    left = {}
    for multiple in (None, 1, 2, 3):
        result = Pipeline((ShrinkChannels(multiple=multiple),)).run(proto)
        left[multiple] = int((result.model.graph.initializers["w"].shape or [0])[0])  # type: ignore[arg-type]
        assert_same(proto, result.model.to_proto(), rtol=1e-5, atol=1e-5)
        settled = Pipeline((ShrinkChannels(multiple=multiple),)).run(result.model)
        assert not settled.changed
    assert left == {None: 8, 1: 5, 2: 6, 3: 6}


LOOP = """g (float[1, 3] x, float[1, 4] start) => (float[1, 2] y, float[3, 1, 1] each)
    <float[3, 4] w = {1, 0, 2, 3, 4, 0, 5, 6, 7, 0, 8, 9}, float[4, 4] u = {1, 0, 2, 3, 4, 0, 5, 6, 7, 0, 8, 9, 1, 0, 2, 3},
     float[4, 2] v, int64 count = {3}, bool go = {1}, float[1, 4] zeros = {0, 0, 0, 0}, float[4, 1] k> {
      h, each = Loop (count, go, FIRST) <body = b (int64 i, bool c, float[1, 4] s) => (bool d, float[1, 4] n, float[1, 1] e) {
        d = Identity (c)
        p = MatMul (x, w)
        q = MatMul (s, u)
        r = Add (p, q)
        n = Tanh (r)
        e = MatMul (n, k)
      }>
      y = MatMul (h, v)
    }"""


@pytest.mark.parametrize(("first", "units"), [("zeros", 3), ("start", 4)])
def test_units_that_a_loop_carries(first: str, units: int) -> None:
    """A unit that starts at zero stays there; one that a caller starts elsewhere does not."""
    left = shrunk(LOOP.replace("FIRST", first))
    assert left["w"] == [3, units]
    assert left["u"] == [units, units]
    assert left["v"] == [units, 2]


def test_weights_that_callers_may_replace_stay() -> None:
    proto = text.model(
        """g (float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)
        <float[2, 1, 1, 1] w = {1, 0}, float[1, 2, 1, 1] v> {
          a = Conv (x, w)
          y = Conv (a, v)
        }"""
    )
    for tensor in proto.graph.initializer:
        info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        proto.graph.input.append(info)
    outcome = assert_refuses(SHRINK, proto, code="SHR101")
    assert "fix-signature" in outcome.diagnostics[0].hint
