"""correct-bias: the means of quantized layers are those in float again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.errors import UserError
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.adaround import Adaround
from onnxcomp_passes.quantize.correct_bias import CorrectBias
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from onnxcomp_passes.quantize.reconstruct_blocks import ReconstructBlocks
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Pass
    from onnxcomp.pipeline import Result

Feeds = dict[str, np.ndarray]

CONVS = """
    g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y)
    <float[16, 4, 3, 3] w, float[16] b, float[16, 1, 3, 3] d, float[16] c, float[6, 16, 1, 1] p> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      a1 = Relu (a)
      e = Conv <group = 16, pads = [1, 1, 1, 1]> (a1, d, c)
      e1 = Relu (e)
      y = Conv (e1, p)
    }"""
# A Conv and a MatMul whose weights are rounded very coarsely: int8 numbers in large steps.
ROUNDED = """
    g (float[2, 3, 6, 6] x) => (float[2, 3, 6, 4] z)
    <float s = {0.05}, uint8 zx = {128}, int8[8, 3, 1, 1] q = {QUANTIZED}, float[8] t = {SCALES},
     float k = {0.4}, uint8 zk = {128}, int8[6, 4] r = {MATRIX}, float u = {0.3}, float[4] add> {
      xq = QuantizeLinear (x, s, zx)
      xd = DequantizeLinear (xq, s, zx)
      w = DequantizeLinear <axis = 0> (q, t)
      a = Conv (xd, wBIAS)
      aq = QuantizeLinear (a, k, zk)
      ad = DequantizeLinear (aq, k, zk)
      c = Slice (ad, starts, ends, axes)
      v = DequantizeLinear (r, u)
      m = MatMul (c, v)
      z = Add (add, m)
    }"""


def text(numbers: np.ndarray) -> str:
    return ", ".join(str(number) for number in numbers.reshape(-1))


def pair(bias: str = "") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A float model, and the same with weights rounded to a few steps."""
    rng = np.random.default_rng(5)
    w, r = rng.normal(size=(8, 3, 1, 1)), rng.normal(size=(6, 4))
    filled = ROUNDED.replace("QUANTIZED", text(np.round(w / 0.7).astype("i1")))
    filled = filled.replace("SCALES", text(np.full(8, 0.7))).replace("BIAS", bias)
    filled = filled.replace("MATRIX", text(np.round(r / 0.3).astype("i1")))
    small = (
        "int64[1] starts = {0}, int64[1] ends = {3}, int64[1] axes = {1}, float[8] fb, "
        "int32[8] ib = {0, 1, 2, 3, 4, 5, 6, 7}, float[8] sb = {" + text(np.full(8, 0.035)) + "}, <"
    )
    filled = filled.replace("<float s", "<" + small.removesuffix("<") + "float s", 1)
    if bias == ", ibd":
        filled = filled.replace("a = Conv", "ibd = DequantizeLinear <axis = 0> (ib, sb)\n a = Conv")
    exact_bias = {"": "", ", fb": ", fb", ", ibd": ", exact"}[bias]
    floats = f"""
        g (float[2, 3, 6, 6] x) => (float[2, 3, 6, 4] z)
        <float[8, 3, 1, 1] w, float[6, 4] v, float[4] add, float[8] fb,
         float[8] exact = {{{text(np.arange(8) * 0.035)}}},
         int64[1] starts = {{0}}, int64[1] ends = {{3}}, int64[1] axes = {{1}}> {{
          a = Conv (x, w{exact_bias})
          c = Slice (a, starts, ends, axes)
          m = MatMul (c, v)
          z = Add (add, m)
        }}"""
    exact = model(floats)
    for tensor in exact.graph.initializer:
        if tensor.name in {"w", "v"}:
            new = (w if tensor.name == "w" else r).astype("f4")
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    return exact, model(filled)


def samples(shape: tuple[int, ...], count: int = 16, mean: float = 1.0) -> list[Feeds]:
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(mean, size=shape).astype("f4")} for _ in range(count)]


def run(
    quantized: onnx.ModelProto, exact: onnx.ModelProto, feeds: list[Feeds], **options: object
) -> Result:
    step = CorrectBias.model_validate(options)
    return Pipeline((step,)).run(quantized, samples=feeds, reference=exact)


def sqnr(first: onnx.ModelProto, second: Model | onnx.ModelProto, feeds: list[Feeds]) -> float:
    with Session.open(first) as one, Session.open(second) as two:
        return compare(one, two, feeds).worst("sqnr_db") or 0.0


def mean_error(
    exact: onnx.ModelProto, got: Model | onnx.ModelProto, feeds: list[Feeds], axes: tuple[int, ...]
) -> np.ndarray:
    with Session.open(exact) as one, Session.open(got) as two:
        pairs = [(one.run(feed), two.run(feed)) for feed in feeds]
    name = next(iter(pairs[0][0]))
    found: np.ndarray = np.abs(
        np.mean([b[name] - a[name] for a, b in pairs], axis=(0, *(1 + i for i in axes)))
    )
    return found


@pytest.mark.parametrize("bias", ["", ", fb", ", ibd"])
@pytest.mark.parametrize("method", ["empirical", "analytic"])
def test_means_of_channels_are_those_in_float(bias: str, method: str) -> None:
    exact, quantized = pair(bias)
    feeds = samples((2, 3, 6, 6))
    result = run(quantized, exact, feeds, method=method)
    assert result.changed
    before = mean_error(exact, quantized, feeds, (0, 1, 2))
    after = mean_error(exact, result.model, feeds, (0, 1, 2))
    assert after.max() < 0.2 * before.max()
    assert {d.code for d in result.diagnostics} == {"RCV101"}


def test_weights_and_scales_stay() -> None:
    exact, quantized = pair(", ibd")
    result = run(quantized, exact, samples((2, 3, 6, 6)))
    before = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in result.model.to_proto().graph.initializer}
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"ib", "add"}
    assert set(after) == set(before)


def test_a_bias_that_two_layers_read_becomes_two() -> None:
    twice = """
        g (float[1, 4, 8, 8] x) => (float[1, 16, 8, 8] y, float[1, 16, 8, 8] z)
        <float[16, 4, 3, 3] w, float[16, 4, 3, 3] v, float[16] b> {
          y = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          z = Conv <pads = [1, 1, 1, 1]> (x, v, b)
        }"""
    proto = model(twice)
    feeds = samples((1, 4, 8, 8))
    step = QuantizeStatic(placement="all", prepare=False, correct_bias=False)
    quantized = Pipeline((step,)).run(proto, samples=feeds).model.to_proto()
    node = {n.output[0]: n for n in quantized.graph.node}
    convs = [n for n in quantized.graph.node if n.op_type == "Conv"]
    shared = node[convs[0].input[2]]
    node[convs[1].input[2]].input[:] = shared.input
    result = run(quantized, proto, feeds)
    made = {n.output[0]: n for n in result.model.to_proto().graph.node}
    found = [n for n in made.values() if n.op_type == "Conv"]
    assert made[found[0].input[2]].input[0] != made[found[1].input[2]].input[0]


def test_a_bias_that_was_added_fuses_into_the_kernel() -> None:
    proto = model(
        """g (float[1, 4, 8, 8] x) => (float[1, 16, 8, 8] y) <float[16, 4, 3, 3] w>
        { y = Conv <pads = [1, 1, 1, 1]> (x, w) }"""
    )
    # With one scale for all channels, small ones are rounded to few steps.
    tensor = proto.graph.initializer[0]
    factor = np.exp(-np.arange(16) / 3).reshape(16, 1, 1, 1)
    array = numpy_helper.to_array(tensor) * factor
    tensor.CopyFrom(numpy_helper.from_array(array.astype("f4"), "w"))
    feeds = samples((1, 4, 8, 8))
    step = QuantizeStatic(placement="all", prepare=False, correct_bias=False, per_channel=False)
    plain = Pipeline((step,)).run(proto, samples=feeds)
    result = Pipeline((CorrectBias(),)).run(plain.model, samples=feeds, reference=proto)
    assert result.outcomes[0].stats.get("biases added") == 1
    kinds = [node.op_type for node in optimized_model(result.model).graph.node]
    assert kinds == [node.op_type for node in optimized_model(plain.model).graph.node]
    assert kinds.count("QLinearConv") == 1
    before, after = (
        mean_error(proto, found.model, feeds, (0, 2, 3)).max() for found in (plain, result)
    )
    assert after < 0.5 * before
    kept = Pipeline((CorrectBias(add=False),)).run(plain.model, samples=feeds, reference=proto)
    assert not kept.changed
    assert "CBI101" in {d.code for d in kept.diagnostics}


def test_channels_that_were_scaled_before_rounding_keep_their_scale() -> None:
    proto = model(CONVS)
    rng = np.random.default_rng(2)
    for tensor in proto.graph.initializer:
        if tensor.name in {"w", "b"}:
            array = numpy_helper.to_array(tensor)
            factor = np.exp(rng.normal(scale=2.0, size=16)).reshape(-1, *[1] * (array.ndim - 1))
            tensor.CopyFrom(numpy_helper.from_array((array * factor).astype("f4"), tensor.name))
    feeds = samples((1, 4, 8, 8))
    step = QuantizeStatic(placement="all", correct_bias=False)
    plain = Pipeline((step,)).run(proto, samples=feeds)
    assert "EQL101" in {d.code for d in plain.diagnostics}
    result = Pipeline((CorrectBias(),)).run(plain.model, samples=feeds, reference=proto)
    assert "RCV103" not in {d.code for d in result.diagnostics}
    assert sqnr(proto, result.model, feeds) >= sqnr(proto, plain.model, feeds)


def test_what_does_not_help_on_other_samples_is_taken_back() -> None:
    exact, quantized = pair(", fb")
    feeds = samples((2, 3, 6, 6))
    for index in range(3, len(feeds), 4):
        feeds[index] = {"x": -feeds[index]["x"]}
    result = run(quantized, exact, feeds)
    assert not result.changed
    assert {d.code for d in result.diagnostics} == {"RCV102"}


def test_another_model_is_no_reference() -> None:
    _, quantized = pair()
    stranger = model("g (float[2, 3, 6, 6] x) => (float[2, 3, 6, 6] z) { z = Relu (x) }")
    result = run(quantized, stranger, samples((2, 3, 6, 6)))
    assert not result.changed
    assert {d.code for d in result.diagnostics} == {"RCV103"}


def test_a_layer_of_the_same_name_that_gives_something_else_is_left_alone() -> None:
    exact, quantized = pair(", fb")
    for tensor in exact.graph.initializer:
        if tensor.name == "w":
            opposite = -numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(opposite, "w"))
    result = run(quantized, exact, samples((2, 3, 6, 6)))
    assert "Conv" in [d.where.kind for d in result.diagnostics if d.code == "RCV103"]


def test_a_float_model_is_left_alone() -> None:
    proto = model(CONVS)
    result = run(proto, proto, samples((1, 4, 8, 8)))
    assert not result.changed
    assert [d.code for d in result.diagnostics] == ["RCV104"]


def test_it_asks_for_the_float_model() -> None:
    with pytest.raises(UserError, match="compares with the model before"):
        Pipeline((CorrectBias(),)).run(pair()[1], samples=samples((2, 3, 6, 6)))


def test_a_matmul_without_an_add_says_so() -> None:
    proto = model("g (float[4, 16] x) => (float[4, 6] y) <float[16, 6] w> { y = MatMul (x, w) }")
    feeds = samples((4, 16))
    step = QuantizeStatic(placement="all", prepare=False)
    result = Pipeline((step, CorrectBias())).run(proto, samples=feeds)
    assert "CBI101" in {d.code for d in result.diagnostics}


def test_a_sequence_between_layers_is_left_alone() -> None:
    text = """
        g (float[4, 16] x) => (float[4, 6] y)
        <float[16, 8] w, float[8] b, float[8, 6] v, float[6] c, int64 i = {0}> {
          m = MatMul (x, w)
          n = Add (m, b)
          s = SequenceConstruct (n, n)
          k = MatMul (n, v)
          l = Add (k, c)
          e = SequenceAt (s, i)
          f = MatMul (e, v)
          y = Add (f, l)
        }"""
    proto, feeds = model(text), samples((4, 16))
    plain = Pipeline((QuantizeStatic(placement="all", prepare=False),)).run(proto, samples=feeds)
    result = Pipeline((CorrectBias(),)).run(plain.model, samples=feeds, reference=proto)
    assert not result.changed
    assert "RCV105" in {d.code for d in result.diagnostics}


def test_outputs_that_say_nothing_about_distance_leave_the_model_alone() -> None:
    text = """
        g (float[4, 16] x) => (int64[4, 1] y) <float[16, 8] w, float[8] b> {
          m = MatMul (x, w)
          n = Add (m, b)
          y = ArgMax <axis = 1> (n)
        }"""
    proto, feeds = model(text), samples((4, 16))
    plain = Pipeline((QuantizeStatic(placement="all", prepare=False),)).run(proto, samples=feeds)
    result = Pipeline((CorrectBias(),)).run(plain.model, samples=feeds, reference=proto)
    assert not result.changed
    assert [d.code for d in result.diagnostics] == ["RCV105"]


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["Conv", "ConvTranspose"]),
    st.integers(0, 5),
)
def test_held_out_samples_are_never_further_from_float(
    kernel: int, groups: int, kind: str, seed: int
) -> None:
    inner = f"8, {4 // groups}" if kind == "Conv" else f"4, {8 // groups}"
    proto = model(
        f"""g (float[1, 4, 7, 7] x) => (float[1, 8, N, M] y)
        <float[{inner}, {kernel}, {kernel}] w{seed}, float[8] b{seed}> {{
          y = {kind} <group = {groups}> (x, w{seed}, b{seed})
        }}"""
    )
    feeds = samples((1, 4, 7, 7), mean=0.5)
    step = QuantizeStatic(placement="all", prepare=False, correct_bias=False)
    plain = Pipeline((step,)).run(proto, samples=feeds)
    better = Pipeline((CorrectBias(),)).run(plain.model, samples=feeds, reference=proto)
    held_out = feeds[3::4]
    assert sqnr(proto, better.model, held_out) >= sqnr(proto, plain.model, held_out) - 1e-9


@pytest.mark.parametrize("kind", [CorrectBias, Adaround, ReconstructBlocks])
@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((4, 8, 8), "a = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (a)"),
        ((3, 8), "a = MatMul (x, v) c = Add (a, e) y = Relu (c)"),
    ],
)
def test_samples_of_nothing_say_nothing(
    kind: type[Pass], shape: tuple[int, ...], body: str
) -> None:
    dims = ", ".join(str(size) for size in shape)
    text = f"""
        g (float[N, {dims}] x) => (y)
        <float[6, 4, 3, 3] w, float[6] b, float[8, 5] v, float[5] e> {{ {body} }}"""
    rng = np.random.default_rng(0)
    counts = (1 if index % 5 else 0 for index in range(16))
    feeds = [{"x": rng.normal(size=(count, *shape)).astype("f4")} for count in counts]
    proto = model(text)
    static = QuantizeStatic(placement="all", prepare=False)
    quantized = Pipeline((static,)).run(proto, samples=feeds[1:5]).model
    result = Pipeline((kind(),)).run(quantized, samples=feeds, reference=proto)
    assert not [found for found in result.diagnostics if found.code == "RCV103"]
    with Session.open(result.model) as session:
        assert session.run(feeds[0])["y"].shape[0] == 0
        assert np.isfinite(session.run(feeds[1])["y"]).all()
