"""quantize-static: what is written, what the provider makes of it, and how near it stays to float."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.version_converter
import pytest

from onnxcomp.compare import compare
from onnxcomp.errors import RecipeError, SamplesError, UserError
from onnxcomp.ir.ops import array, producer_of
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.quantize_dynamic import QuantizeDynamic
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.text import model

if TYPE_CHECKING:
    from onnxcomp.passbase import Pass
    from onnxcomp.pipeline import Result

EVERYTHING = {"placement": "all", "prepare": False, "observer": "min-max"}
RESIDUAL = """
    g (float[N, 3, 16, 16] x) => (float[N, 10] y)
    <float[16, 3, 3, 3] w0, float[16] b0, float[16, 16, 3, 3] w1, float[16] b1,
     float[16, 16, 3, 3] w2, float[16] b2, float[16, 10] w3, float[10] b3> {
      c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
      r0 = Relu (c0)
      c1 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r0, w1, b1)
      r1 = Relu (c1)
      c2 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (r1, w2, b2)
      a = Add (c2, r0)
      r2 = Relu (a)
      p = GlobalAveragePool (r2)
      f = Flatten (p)
      y = Gemm (f, w3, b3)
    }"""
ATTENTION = """
    g (float[1, 12, 32] x) => (float[1, 12, 32] y)
    <float[32, 32] q, float[32, 32] k, float[32, 32] v, float[32, 32] o, float[32] scale, float[32] bias> {
      n = LayerNormalization <axis = -1> (x, scale, bias)
      a = MatMul (n, q) b = MatMul (n, k) c = MatMul (n, v)
      bt = Transpose <perm = [0, 2, 1]> (b)
      s = MatMul (a, bt)
      t = Softmax <axis = -1> (s)
      m = MatMul (t, c)
      y = MatMul (m, o)
    }"""


def samples(*shape: int, count: int = 6, name: str = "x") -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(11)
    return [{name: rng.normal(size=shape).astype("f4")} for _ in range(count)]


def run(graph: str | onnx.ModelProto, feeds: Any, **options: Any) -> Result:
    source = model(graph) if isinstance(graph, str) else graph
    step = QuantizeStatic(**{**EVERYTHING, **options})
    result = Pipeline((step,)).run(source, samples=feeds, threads=1)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    return result


def kinds(result: Result) -> Counter[str]:
    return Counter(node.op_type for node in optimized_model(result.model).graph.node)


def sqnr(graph: str, result: Result, feeds: Any) -> float:
    with Session.open(model(graph)) as one, Session.open(result.model) as two:
        return compare(one, two, feeds).worst("sqnr_db") or 0.0


def codes(result: Result) -> Counter[str]:
    return Counter(diagnostic.code for diagnostic in result.diagnostics)


# -- what is written -------------------------------------------------------------------------------


def test_a_conv_gets_q_dq_per_channel_weights_and_an_int32_bias() -> None:
    graph = (
        run(
            """
        g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y) <float[6, 4, 1, 1] w, float[6] b> {
          c = Conv (x, w, b)
          y = Relu (c)
        }""",
            samples(1, 4, 8, 8),
        )
        .model.to_proto()
        .graph
    )
    assert [node.op_type for node in graph.node] == [
        *("QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear"),
        *("Conv", "Relu", "QuantizeLinear", "DequantizeLinear"),
    ]
    kept = {t.name: t for t in graph.initializer}
    weight, bias = kept["w_int8"], kept["b_int32"]
    assert (weight.data_type, list(weight.dims)) == (onnx.TensorProto.INT8, [6, 4, 1, 1])
    assert (bias.data_type, list(bias.dims)) == (onnx.TensorProto.INT32, [6])
    assert list(kept["w_int8_scale"].dims) == [6]
    assert kept["x_zero_point"].data_type == onnx.TensorProto.UINT8
    assert "w" not in kept
    assert "b" not in kept
    product = onnx.numpy_helper.to_array(kept["w_int8_scale"]) * onnx.numpy_helper.to_array(
        kept["x_scale"]
    )
    np.testing.assert_allclose(
        onnx.numpy_helper.to_array(kept["b_int32_scale"]), product, rtol=1e-6
    )


def test_the_interface_stays() -> None:
    result = run(RESIDUAL, samples(2, 3, 16, 16))
    before = model(RESIDUAL).graph
    after = result.model.to_proto().graph
    assert [v.SerializeToString() for v in after.input] == [
        v.SerializeToString() for v in before.input
    ]
    assert [v.name for v in after.output] == ["y"]


def test_one_scale_for_all_channels_when_asked() -> None:
    graph = run(RESIDUAL, samples(2, 3, 16, 16), per_channel=False).model.to_proto().graph
    assert {tuple(t.dims) for t in graph.initializer if t.name.startswith("w1_int8_scale")} == {()}


def test_reduced_range_has_seven_bits() -> None:
    graph = run(RESIDUAL, samples(2, 3, 16, 16), reduce_range=True).model.to_proto().graph
    weight = next(t for t in graph.initializer if t.name == "w1_int8")
    assert np.abs(onnx.numpy_helper.to_array(weight)).max() == 64


def test_rolling_back_restores_every_byte() -> None:
    feeds = samples(2, 3, 16, 16)
    assert_rolls_back(QuantizeStatic(**EVERYTHING), model(RESIDUAL), feeds)
    assert_rolls_back(QuantizeStatic(placement="all"), model(RESIDUAL), feeds)


def test_the_same_input_gives_the_same_bytes() -> None:
    feeds = samples(2, 3, 16, 16)
    first, second = (
        run(RESIDUAL, feeds, observer="auto", prepare=True)
        .model.to_proto()
        .SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


# -- what the provider makes of it -----------------------------------------------------------------


def test_a_residual_net_runs_in_int8_from_end_to_end() -> None:
    result = run(RESIDUAL, samples(2, 3, 16, 16))
    found = kinds(result)
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert found["QGemm"] == 1
    assert found["QuantizeLinear"] == 1
    assert found["DequantizeLinear"] == 0
    assert not codes(result)["QNT106"]


def test_attention_runs_in_int8() -> None:
    found = kinds(run(ATTENTION, samples(1, 12, 32)))
    assert found["QLinearMatMul"] + found["MatMulIntegerToFloat"] == 6
    assert found["QLinearSoftmax"] == 1
    assert found["MatMul"] == 0


def test_products_whose_result_stays_float_need_no_q() -> None:
    result = run(ATTENTION, samples(1, 12, 32), skip_ops=("Softmax", "Transpose"), skip=("s", "m"))
    assert kinds(result)["MatMulIntegerToFloat"] == 4
    assert kinds(result)["DequantizeLinear"] == 0


def test_a_float_conv_between_int8_ones_keeps_its_weight() -> None:
    # onnxruntime would round it itself, with one scale for the whole weight.
    result = run(RESIDUAL, samples(2, 3, 16, 16), skip=("c1",))
    found = kinds(result)
    assert found["QLinearConv"] == 2
    assert found["Conv"] + found["FusedConv"] == 1
    assert result.outcomes[0].stats["nodes kept float"] == 1
    weights = optimized_model(result.model).graph.initializer
    assert any(
        t.data_type == onnx.TensorProto.FLOAT and np.prod(t.dims) == 16 * 16 * 9 for t in weights
    )


def test_fused_float_kernels_are_not_taken_apart() -> None:
    text = """
        g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y)
        <float[8, 8, 1, 1] w, float two = {1.4142135}, float one = {1}, float half = {0.5}> {
          c = Conv (x, w)
          d = Div (c, two) e = Erf (d) f = Add (e, one) g1 = Mul (c, f) h = Mul (g1, half)
          y = Conv (h, w)
        }"""
    result = run(text, samples(1, 8, 6, 6))
    found = kinds(result)
    assert found["Gelu"] == 1
    assert found["QLinearConv"] == 2
    assert codes(result)["QNT104"] == 3


def test_a_normalization_that_stands_alone_becomes_a_conv() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[4, 4, 1, 1] w, float[4] s, float[4] b, float[4] m, float[4] v = {0.5, 1, 2, 3}> {
          c = Conv (x, w) r = Relu (c)
          n = BatchNormalization (r, s, b, m, v)
          y = Conv (n, w)
        }"""
    feeds = samples(1, 4, 8, 8)
    result = run(text, feeds, prepare=True)
    assert kinds(result)["QLinearConv"] == 3
    assert kinds(result)["DequantizeLinear"] <= 1
    assert result.outcomes[0].stats["normalizations written as Conv"] == 1
    assert sqnr(text, result, feeds) > 25


def test_an_output_that_is_read_inside_as_well() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] a, float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w,
        float[4, 4, 1, 1] v> { a = Conv (x, w) y = Conv (a, v) }"""
    feeds = samples(1, 4, 8, 8)
    result = run(text, feeds)
    assert kinds(result)["QLinearConv"] == 2
    assert sqnr(text, result, feeds) > 30


def test_a_value_that_a_body_reads() -> None:
    text = """
        g (float[1, 4, 8, 8] x, bool p) => (float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w> {
          a = Conv (x, w)
          b = If (p) <
            then_branch = t () => (float[1, 4, 8, 8] o) { o = Exp (a) },
            else_branch = e () => (float[1, 4, 8, 8] o2) { o2 = Neg (a) }
          >
          y = Conv (b, w)
        }"""
    feeds = [
        {**feed, "p": np.array(index % 2 == 0)} for index, feed in enumerate(samples(1, 4, 8, 8))
    ]
    result = run(text, feeds)
    assert kinds(result)["QLinearConv"] == 2
    assert codes(result)["QNT108"] == 0  # nothing in the branches is worth it
    assert sqnr(text, result, feeds) > 20


def test_positions_that_are_added_behind_a_product_are_corrected_for_each_of_them() -> None:
    text = """
        g (float[1, 16, 32] x) => (float[1, 16, 24] y) <float[32, 24] w, float[16, 24] b> {
          m = MatMul (x, w)
          y = Add (m, b)
        }"""
    feeds = [{"x": found["x"] + np.float32(3)} for found in samples(1, 16, 32)]
    result = run(text, feeds)
    assert any("corrected" in (value.name or "") for value in result.model.initializers())
    assert sqnr(text, result, feeds) > 25


# -- how near it stays -----------------------------------------------------------------------------


@pytest.mark.parametrize(("graph", "shape"), [(RESIDUAL, (2, 3, 16, 16)), (ATTENTION, (1, 12, 32))])
@pytest.mark.parametrize("observer", ["min-max", "percentile", "mse", "entropy", "auto"])
def test_every_observer_stays_near_float(graph: str, shape: tuple[int, ...], observer: str) -> None:
    feeds = samples(*shape)
    least = 12 if observer == "entropy" else 18
    assert sqnr(graph, run(graph, feeds, observer=observer), feeds) > least


def test_auto_is_at_least_as_near_as_each_observer_alone() -> None:
    feeds = samples(2, 3, 16, 16)
    alone = [sqnr(RESIDUAL, run(RESIDUAL, feeds, observer=o), feeds) for o in ("min-max", "mse")]
    assert sqnr(RESIDUAL, run(RESIDUAL, feeds, observer="auto"), feeds) >= min(max(alone), 40)


def test_scales_for_each_channel_and_corrected_biases_are_nearer() -> None:
    feeds = samples(2, 3, 16, 16)
    plain = run(RESIDUAL, feeds, per_channel=False, correct_bias=False)
    assert sqnr(RESIDUAL, run(RESIDUAL, feeds), feeds) > sqnr(RESIDUAL, plain, feeds)


def test_samples_of_different_shapes() -> None:
    feeds = [*samples(1, 3, 16, 16, count=2), *samples(3, 3, 16, 16, count=2)]
    assert sqnr(RESIDUAL, run(RESIDUAL, feeds), feeds) > 18


# -- options and limits ----------------------------------------------------------------------------


def test_only_and_skip_choose_nodes() -> None:
    feeds = samples(2, 3, 16, 16)
    found = kinds(run(RESIDUAL, feeds, only=("Conv", "Relu")))
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 0
    assert not found["QGemm"]
    found = kinds(run(RESIDUAL, feeds, skip=("c*",)))
    assert found["QLinearConv"] == 0
    weighted = run(RESIDUAL, feeds, placement="weighted")
    assert kinds(weighted)["QLinearConv"] == 3
    assert kinds(weighted)["QLinearAdd"] == 0


def test_measuring_decides_and_gives_reasons() -> None:
    result = run(RESIDUAL, samples(2, 3, 16, 16), placement="measured")
    in_int8 = result.outcomes[0].stats.get("nodes in int8", 0)
    assert in_int8 + codes(result)["QNT105"] == 7
    assert result.changed == (in_int8 > 0)
    assert (in_int8 == 0) == (codes(result)["QNT107"] == 1)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_is_made_of_samples(batch: int) -> None:
    result = run(RESIDUAL, samples(1, 3, 16, 16), placement="measured", batch=batch)
    assert not codes(result)["QNT103"]


@pytest.mark.parametrize("step", [QuantizeStatic(batch=2), QuantizeDynamic(batch=2)])
def test_samples_that_make_no_batch_are_the_user_s_to_change(step: Pass) -> None:
    text = """
        g (float[n, 64] x, float k) => (float[n, 64] y) <float[64, 64] w> {
          m = MatMul (x, w)
          y = Mul (m, k)
        }"""
    feeds = [{**found, "k": np.float32(2).reshape(())} for found in samples(4, 64)]
    with pytest.raises(SamplesError, match="batch of 2"):
        Pipeline((step,)).run(model(text), samples=feeds, threads=1)


def test_quantized_models_are_left_alone() -> None:
    feeds = samples(2, 3, 16, 16)
    once = run(RESIDUAL, feeds).model.to_proto()
    assert_refuses(QuantizeStatic(), once, code="QNT101", samples=feeds)


def test_an_operator_without_kernel_is_left_with_a_reason() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w, float[4, 1, 1] k> {
          a = Conv (x, w)
          y = Mul (a, k)
        }"""
    result = run(text, samples(1, 4, 8, 8))
    assert kinds(result)["QLinearConv"] == 1
    found = [d for d in result.diagnostics if d.code == "QNT103"]
    assert [d.where.name for d in found] == ["y"]


def test_nothing_to_do_is_said() -> None:
    text = "g (float[4] x) => (float[4] y) { y = Exp (x) }"
    assert_refuses(QuantizeStatic(), text, code="QNT111", samples=samples(4))


OLD = """
    <ir_version: 4, opset_import: ["": OPSET]>
    g (float[1, 4, 8, 8] x) => (float[1, 4] y) <float[4, 4, 1, 1] w> {
      a = Conv (x, w)
      b = Clip <min = 0.0, max = 3.0> (a)
      c = GlobalAveragePool (b)
      d = Squeeze <axes = [2, 3]> (c)
      y = Softmax <axis = AXIS> (d)
    }"""


@pytest.mark.parametrize("opset", [7, 9, 10])
def test_old_opsets_are_raised(opset: int) -> None:
    text = OLD.replace("OPSET", str(opset)).replace("AXIS", "1")
    feeds = samples(1, 4, 8, 8)
    result = run(text, feeds)
    assert result.model.opset == 13
    assert kinds(result)["QLinearConv"] == 1
    assert sqnr(text, result, feeds) > 25


def test_an_operator_that_means_something_else_now_is_a_reason_to_stop() -> None:
    text = """
        <ir_version: 4, opset_import: ["": 10]>
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y, bool[1, 4, 8, 8] m)
          <float[4, 4, 1, 1] w> { a = Conv (x, w) y, m = Dropout (a) }"""
    found = assert_refuses(
        QuantizeStatic(), text, code="QNT102", samples=samples(1, 4, 8, 8)
    ).diagnostics
    assert "Dropout" in found[0].message


def test_nan_in_an_activation_names_the_tensor() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y) <float[4, 4, 1, 1] w> {
          a = Log (x)
          y = Conv (a, w)
        }"""
    with pytest.raises(SamplesError, match='"a"'):
        run(text, samples(1, 4, 8, 8))


def test_samples_are_needed() -> None:
    with pytest.raises(UserError, match="--data"):
        Pipeline((QuantizeStatic(),)).run(model(RESIDUAL))


def test_every_diagnostic_is_explained() -> None:
    source = "".join(str(value) for value in QuantizeStatic.codes)
    assert len(re.findall(r"QNT\d{3}", source)) == len(set(re.findall(r"QNT\d{3}", source))) >= 14


def stored(result: Result) -> Counter[str]:
    """Element types of zero points of QuantizeLinear."""
    return Counter(zero.dtype.name for zero in zero_points(result))


def zero_points(result: Result) -> list[np.ndarray]:
    nodes = [node for node in result.model.graph if node.op_type == "QuantizeLinear"]
    found = [array(node.inputs[2]) for node in nodes]
    return [zero for zero in found if zero is not None]


@pytest.mark.parametrize("activations", ["uint8", "int8", "uint16", "int16"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_activations_of_each_type(activations: str, symmetric: bool) -> None:
    feeds = samples(1, 3, 16, 16)
    options = {"activations": activations, "symmetric": symmetric, "withdraw": False}
    result = run(RESIDUAL, feeds, **options)
    assert set(stored(result)) == {activations}
    assert sqnr(RESIDUAL, result, feeds) > 25
    zeros = {int(zero) for zero in zero_points(result)}
    middle = {"uint8": 128, "int8": 0, "uint16": 32768, "int16": 0}[activations]
    assert (zeros == {middle}) == symmetric


def test_sixteen_bits_need_a_newer_opset() -> None:
    feeds = samples(1, 3, 16, 16)
    source = onnx.version_converter.convert_version(model(RESIDUAL), 17)
    assert run(source, feeds, withdraw=False).model.opset == 17
    assert run(source, feeds, activations="int16", withdraw=False).model.opset == 21


def test_sixteen_bits_everywhere_are_nearer_than_eight() -> None:
    feeds = samples(1, 3, 16, 16)
    wide = run(RESIDUAL, feeds, activations="int16", weights="int16", withdraw=False)
    narrow = run(RESIDUAL, feeds)
    assert sqnr(RESIDUAL, wide, feeds) > sqnr(RESIDUAL, narrow, feeds) + 30


def test_some_activations_of_another_type() -> None:
    feeds = samples(1, 3, 16, 16)
    result = run(RESIDUAL, feeds, mixed={"a": "uint16", "r[12]": "uint16"}, withdraw=False)
    assert stored(result)["uint16"] == 2  # r1 and r2; `a` is absorbed
    assert stored(result)["uint8"] > 2
    with pytest.raises(RecipeError, match='cannot be "uint4"'):
        run(RESIDUAL, feeds, mixed={"a": "uint4"})


def test_unsigned_weights_have_their_zero_in_the_middle() -> None:
    feeds = samples(1, 3, 16, 16)
    result = run(RESIDUAL, feeds, weights="uint8")
    conv = next(n for n in result.model.graph if n.op_type == "Conv")
    rounding = producer_of(conv.inputs[1], "DequantizeLinear")
    assert rounding is not None
    numbers, zeros = array(rounding.inputs[0]), array(rounding.inputs[2])
    assert numbers is not None
    assert numbers.dtype == np.uint8
    assert zeros is not None
    assert set(zeros.tolist()) == {128}
    assert sqnr(RESIDUAL, result, feeds) > 25


@pytest.mark.parametrize("minus", ["-3e38", "-10000"])
def test_what_a_mask_of_huge_numbers_went_into_stays_float(minus: str) -> None:
    graph = """
        g (float[1, 4, 16] x, bool[1, 4, 16] m) => (float[1, 4, 16] y) <float[16, 16] w, float minus = {MINUS}> {
          a = MatMul (x, w) b = Where (m, a, minus) y = Softmax <axis = -1> (b)
        }""".replace("MINUS", minus)
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.normal(size=(1, 4, 16)).astype("f4"), "m": rng.random((1, 4, 16)) < 0.5}]
    result = run(graph, feeds)
    assert codes(result)["QNT103"] >= 1
    assert sqnr(graph, result, feeds) > 20
