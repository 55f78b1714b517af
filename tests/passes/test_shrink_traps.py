"""Channels that look alike, constant or unread and are not: nothing goes that would change an output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from tests.helpers import text
from tests.helpers.check import assert_same
from tests.helpers.numbers import seeded_feeds

SHRINK = ShrinkChannels(multiple=1)
Array = np.ndarray[Any, Any]


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of(kind: str, found: object) -> Array:
    return np.asarray(found, kind)


def more(weight: Array, count: int = 1) -> Array:
    """The same filters, and some that nobody else has."""
    return np.concatenate([weight, numbers(count, *weight.shape[1:], seed=9)])


def with_zeros(weight: Array, count: int) -> Array:
    weight = weight.copy()
    weight[:count] = 0
    return weight


def shrunk(source: str, feeds: dict[str, Array] | None = None, **weights: Array) -> onnx.ModelProto:
    """Shrinks a model; fails unless its outputs stay what they are."""
    before = text.model(source)
    before.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(found), name) for name, found in weights.items()
    )
    onnx.checker.check_model(before)
    after = Pipeline((SHRINK,)).run(before).model.to_proto()
    onnx.checker.check_model(after)
    given = seeded_feeds(before, 0) | (feeds or {})
    assert_same(before, after, feeds=[given], runtimes=("onnxruntime",), rtol=1e-3, atol=1e-3)
    return after


W, C = numbers(3, 4), numbers(3, 3, 1, 1)


def test_rows_and_columns_of_equal_numbers_are_not_alike() -> None:
    shrunk(
        """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
          a = Conv (x, c) b = Add (a, w)
          d = Conv (x, c2) e = Add (d, w2)
          f = Concat <axis = 1> (b, e)
          h = Relu (f)
          y = Conv (h, k)
        }""",
        c=C,
        w=W.reshape(1, 3, 4, 1),
        c2=more(C),
        w2=more(W).reshape(1, 4, 1, 4),
        k=numbers(2, 7, 1, 1),
    )


@pytest.mark.parametrize("group", [1, 3])
def test_filters_of_other_shapes_are_not_alike(group: int) -> None:
    wide = numbers(3, 3 // group, 1, 4)
    tall = np.concatenate([wide.reshape(3, 3 // group, 4, 1)[:2], numbers(1, 3 // group, 4, 1)])
    sources = ("x", "x") if group == 1 else ("p", "q")
    shrunk(
        f"""g (float[1, 3, 4, 4] x) => (float[1, 2, 1, 1] y) {{
          p = Conv (x, c) q = Conv (x, c2)
          a = Conv <group = {group}> ({sources[0]}, wide)
          b = Conv <group = {group}> ({sources[1]}, tall)
          d = GlobalMaxPool (a) e = GlobalMaxPool (b)
          f = Concat <axis = 1> (d, e)
          y = Conv (f, k)
        }}""",
        c=C,
        c2=C.copy(),
        wide=wide,
        tall=tall,
        k=numbers(2, 6, 1, 1),
    )


def test_sums_over_more_or_fewer_of_one_constant_are_not_alike() -> None:
    shrunk(
        """g (float[1, 3, 4, 4] x) => (float[1, 2, 3, 3] y) {
          a = Conv (x, c, b) d = Conv (x, c2, b)
          part = Slice (a, start, end, axes)
          p = ReduceSum (d, axes) q = ReduceSum (part, axes)
          e = Concat <axis = 1> (p, q)
          y = Conv <pads = [1, 1, 1, 1]> (e, k)
        }""",
        c=with_zeros(C, 2),
        c2=with_zeros(C, 2),
        b=of("float32", [1, 2, 3]),
        start=of("int64", [0, 0]),
        end=of("int64", [2, 2]),
        axes=of("int64", [2, 3]),
        k=numbers(2, 6, 1, 1),
    )


def test_operands_that_are_there_twice_are_told_apart() -> None:
    second = numbers(3, 3, 1, 1, seed=1)
    shrunk(
        """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
          a = Conv (x, c) b = Conv (x, d) a2 = Conv (x, c2) b2 = Conv (x, d2)
          p = Sum (a, b, a) q = Sum (a2, b2, b2)
          e = Concat <axis = 1> (p, q)
          h = Relu (e)
          y = Conv (h, k)
        }""",
        c=C,
        d=second,
        c2=more(C),
        d2=more(second),
        k=numbers(2, 7, 1, 1),
    )


ZERO_POINTS = {
    "MatMulInteger": ("y = MatMulInteger (h, w, zero, point)", (5, 3)),
    "ConvInteger": ("y = ConvInteger (h, w, zero, point)", (3, 5, 1, 1)),
    "QLinearMatMul": ("y = QLinearMatMul (h, s, zero, w, s, point, s, zero)", (5, 3)),
    "QLinearConv": ("y = QLinearConv (h, s, zero, w, s, point, s, zero)", (3, 5, 1, 1)),
}


@pytest.mark.parametrize("silent", [0, 3], ids=["zeros", "zero points"])
@pytest.mark.parametrize("name", sorted(ZERO_POINTS))
def test_zero_is_the_zero_point(name: str, silent: int) -> None:
    line, shape = ZERO_POINTS[name]
    image = len(shape) == 4
    rng = np.random.default_rng(0)
    weight = rng.integers(4, 9, shape).astype(np.uint8)
    weight[:, :2] = silent if image else weight[:, :2]
    weight[:2] = weight[:2] if image else silent
    kind = "int32" if "Integer" in name else "uint8"
    sizes, out = ("1, 4, 3, 3", "1, 3, 3, 3") if image else ("2, 4", "2, 3")
    after = shrunk(
        f"""g (uint8[{sizes}] x) => ({kind}[{out}] y) {{
          a = {"Conv" if image else "MatMul"}Integer (x, v)
          h = Cast <to = 2> (a)
          {line}
        }}""",
        {"x": rng.integers(0, 5, tuple(map(int, sizes.split(",")))).astype(np.uint8)},
        v=rng.integers(0, 3, (5, 4, 1, 1) if image else (4, 5)).astype(np.uint8),
        w=weight,
        s=of("float32", 1),
        zero=of("uint8", 0),
        point=of("uint8", 3),
    )
    left = next(found for found in after.graph.initializer if found.name == "w")
    assert 3 in left.dims
    assert (5 in left.dims) == (silent == 0)


def test_a_cell_that_is_read_needs_its_recurrence() -> None:
    readers = with_zeros(numbers(5, 2), 3)
    shrunk(
        """g (float[4, 1, 3] x) => (float[1, 1, 2] y) {
          , , c = LSTM <hidden_size = 5> (x, w, r)
          y = MatMul (c, k)
        }""",
        w=numbers(1, 20, 3),
        r=numbers(1, 20, 5),
        k=readers,
    )


def test_what_a_branch_in_a_loop_seemed_to_hold_at_first_is_forgotten() -> None:
    shrunk(
        """g (float[1, 3, 4, 4] x, bool q) => (float[1, 2, 4, 4] y, float[1, 3, 4, 4] last) {
          z = Conv (x, zero)
          s, all = Loop (count, go, z) <body = b (int64 i, bool c, float[1, 3, 4, 4] s0)
              => (bool c1, float[1, 3, 4, 4] s1, float[1, 4, 4, 4] o) {
            c1 = Identity (c)
            s1 = Add (s0, x)
            o = If (q) <
              then_branch = t () => (float[1, 4, 4, 4] t1) { t0 = Relu (s0) t1 = Conv (t0, w) },
              else_branch = e () => (float[1, 4, 4, 4] e1) { e0 = Abs (s0) e1 = Conv (e0, w) }>
          }>
          l = ReduceSum <keepdims = 0> (all, first)
          last = Identity (s)
          y = Conv (l, k)
        }""",
        {"q": np.array(True)},
        zero=np.zeros_like(C),
        w=with_zeros(numbers(4, 3, 1, 1), 2),
        count=of("int64", 3),
        go=np.array(True),
        first=of("int64", [0]),
        k=numbers(2, 4, 1, 1),
    )


def test_a_dropout_in_training_holds_nothing_constant() -> None:
    after = shrunk(
        """g (float[1, 3, 40, 4] x) => (float[1, 2, 40, 4] y) {
          a = Conv (x, c, b)
          d = Dropout <seed = 3> (a, ratio, training)
          y = Conv (d, k)
        }""",
        c=with_zeros(C, 2),
        b=of("float32", [1, 2, 3]),
        ratio=of("float32", 0.5),
        training=np.array(True),
        k=numbers(2, 3, 1, 1),
    )
    assert any(node.op_type == "Dropout" for node in after.graph.node)


def test_numbers_for_each_position_are_no_constants_of_channels() -> None:
    before = text.model(
        """<ir_version: 4, opset_import: ["" : 8]>
        g (float[1, 3, 4, 5] x) => (float[1, 2, 4, 5] y)
        <float[3, 3, 1, 1] c, float[3, 4, 5] s, float[3, 4, 5] b, float[3, 4, 5] m, float[3, 4, 5] v,
         float[2, 3, 1, 1] k> {
          a = Conv (x, c)
          n = BatchNormalization <spatial = 0> (a, s, b, m, v)
          y = Conv (n, k)
        }"""
    )
    result = Pipeline((SHRINK,)).run(before)
    assert len(result.model.to_proto().graph.node) == 3


def test_before_opset_13_rows_of_a_softmax_need_not_sum_to_one() -> None:
    shrunk(
        """<ir_version: 6, opset_import: ["" : 11]>
        g (float[2, 3, 4] x, float[2, 4, 5] z) => (float[2, 3, 2] y) {
          s = Softmax (x)
          a = MatMul (z, w)
          v = Add (a, b)
          o = MatMul (s, v)
          y = MatMul (o, k)
        }""",
        w=with_zeros(numbers(5, 5), 2).T.copy(),
        b=of("float32", [2, 3, 0, 0, 0]),
        k=numbers(5, 2),
    )


def test_slopes_of_a_constant_keep_its_shape() -> None:
    shrunk(
        """g (float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y) {
          a = Conv (x, zero, b)
          s = Conv (x, c)
          p = PRelu (a, s)
          y = Conv (p, k)
        }""",
        zero=np.zeros_like(C),
        b=of("float32", [-1, -2, -3]),
        c=C,
        k=numbers(2, 3, 1, 1),
    )


@pytest.mark.parametrize(
    ("kind", "size"), [("float16", 4e4), ("float", 2.5e38)], ids=["half", "single"]
)
def test_weights_that_would_overflow_are_not_added_up(kind: str, size: float) -> None:
    dtype = np.float16 if kind == "float16" else np.float32
    shrunk(
        f"""g ({kind}[1, 3] x) => ({kind}[1, 2] y) {{
          a = MatMul (x, w)
          h = Sigmoid (a)
          s = Mul (h, small)
          y = MatMul (s, k)
        }}""",
        {"x": np.full((1, 3), 0.25, dtype)},
        w=np.asarray([[1, 1, 2]] * 3, dtype),
        small=np.asarray(1e-3, dtype),
        k=np.asarray([[size, 1], [size, 2], [1, 1]], dtype),
    )


def test_a_bias_that_would_overflow_stays_a_sum() -> None:
    shrunk(
        """g (float16[1, 3] x) => (float16[1, 2] y) {
          a = MatMul (x, w)
          h = Add (a, b)
          y = Gemm (h, k, c)
        }""",
        w=of("float16", [[0, 0.1, 0.1]] * 3),
        b=of("float16", [200, -199, 0]),
        k=of("float16", [[400, 400], [400, 400], [1, 1]]),
        c=of("float16", [1, 1]),
    )


@pytest.mark.parametrize(
    "line",
    ["y = Conv (e, k)", "y = ConvTranspose (e, t)", "y = Conv <group = 2> (e, k2)"],
)
def test_a_convolution_of_nothing_stays(line: str) -> None:
    """Channels 3 to 3 of a slice are none: a runtime gives the bias, or zeros."""
    before = text.model(
        f"""g (float[1, 4, 4, 4] x) => (float[1, 2, 4, 4] y, float[1, 4, 4, 4] z)
        <float[4, 4, 1, 1] c, float[2, 0, 1, 1] k, float[0, 2, 1, 1] t, float[2, 0, 1, 1] k2,
         int64[1] at = {{3}}, int64[1] axis = {{1}}> {{
          a = Conv (x, c)
          e = Slice (x, at, at, axis)
          {line}
          z = Relu (a)
        }}"""
    )
    Pipeline((SHRINK,)).run(before)
