"""quantize-dynamic: products in int8 with activations rounded in the run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.quantize_dynamic import QuantizeDynamic
from tests.helpers.check import assert_refuses, assert_rolls_back, assert_unchanged, run_pass
from tests.helpers.text import model

EVERYTHING = QuantizeDynamic(placement="all")
HEAD = 'ir_version: 8, opset_import: ["": 13]'
LAYERS = """
    g (float[N, 8] x) => (float[N, 6] y)
    <float[8, 16] w, float[16] b, float[16, 6] v> {
      a = MatMul (x, w)
      c = Add (b, a)
      r = Relu (c)
      y = MatMul (r, v)
    }"""
GEMM = """
    g (float[N, 8] x) => (float[N, 6] y) <float[SHAPE] w, float[BIAS] b> {
      y = Gemm <alpha = 0.5, beta = 2.0, transB = TRANSPOSED> (x, w, b)
    }"""
LSTM = """
    g (float[7, 2, 5] x) => (float[7, D, 2, 16] y)
    <float[D, 64, 5] w, float[D, 64, 16] r, float[D, 128] b> {
      y, h, c = LSTM <hidden_size = 16, direction = "DIRECTION"> (x, w, r, b)
    }"""
LOOP = """
    g (float[4, 8] x, int64 n, bool go) => (float[4, 8] y) <float[8, 8] w> {
      y = Loop (n, go, x) <body = inner (int64 i, bool c, float[4, 8] s) => (bool d, float[4, 8] t) {
        d = Identity (c)
        p = MatMul (s, w)
        t = Tanh (p)
      }>
    }"""


def feeds(shape: tuple[int, ...], count: int = 1, seed: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]


def sqnr(first: object, second: object, samples: list[dict[str, np.ndarray]]) -> float:
    with Session.open(first) as one, Session.open(second) as two:  # type: ignore[arg-type]
        result = compare(one, two, samples)
    assert not result.reason, result.reason
    return result.worst("sqnr_db") or 0.0


def kinds(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def fused(proto: onnx.ModelProto) -> list[str]:
    return kinds(optimized_model(Model.load(proto), provider="cpu", weights=False))


def test_the_form_is_the_one_that_the_provider_runs_as_one_kernel() -> None:
    proto = model(LAYERS)
    got, outcome = run_pass(EVERYTHING, proto)
    onnx.checker.check_model(got, full_check=True)
    wanted = model(f"""<{HEAD}>
        g (float[N, 8] x) => (float[N, 6] y)
        <int8[8, 16] w8, float[16] ws, float[16] b, int8[16, 6] v8, float[6] vs> {{
          xq, xs, xz = DynamicQuantizeLinear (x)
          m = MatMulInteger (xq, w8, xz)
          f = Cast <to = 1> (m)
          s = Mul (xs, ws)
          a = Mul (f, s)
          c = Add (a, b)
          r = Relu (c)
          rq, rs, rz = DynamicQuantizeLinear (r)
          n = MatMulInteger (rq, v8, rz)
          e = Cast <to = 1> (n)
          t = Mul (rs, vs)
          y = Mul (e, t)
        }}""")
    assert kinds(got) == kinds(wanted)
    assert outcome.stats["nodes in int8"] == 2
    assert fused(got) == ["DynamicQuantizeMatMul", "Relu", "DynamicQuantizeMatMul"]
    assert sqnr(proto, got, feeds((5, 8), 4)) > 35
    assert_rolls_back(EVERYTHING, proto)
    assert_unchanged(EVERYTHING, got)


def test_names_of_nodes_and_values_stay() -> None:
    proto = model(LAYERS)
    got, _ = run_pass(EVERYTHING, proto)
    names = {name for node in got.graph.node for name in node.output}
    assert {"a", "c", "r", "y"} <= names


def test_readers_of_one_activation_share_its_rounding() -> None:
    got, _ = run_pass(
        EVERYTHING,
        model("""
        g (float[N, 8] x) => (float[N, 4] q, float[N, 4] k)
        <float[8, 4] w, float[8, 4] v> { q = MatMul (x, w) k = MatMul (x, v) }"""),
    )
    assert kinds(got).count("DynamicQuantizeLinear") == 1
    assert fused(got) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat", "MatMulIntegerToFloat"]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = MatMul (x, w)", ""),
        ("a = MatMul (x, w) y = Add (a, b)", ", float[16] b"),
        ("a = MatMul (x, w) y = Add (b, a)", ", float[1, 1, 16] b"),
    ],
)
@pytest.mark.parametrize("opset", [11, 13, 17, 21])
def test_every_form_fuses(body: str, constants: str, opset: int) -> None:
    proto = model(f"""<ir_version: 8, opset_import: ["": {opset}]>
        g (float[2, N, 8] x) => (float[2, N, 16] y) <float[8, 16] w{constants}> {{ {body} }}""")
    got, _ = run_pass(EVERYTHING, proto)
    assert fused(got) == ["DynamicQuantizeMatMul"]
    assert sqnr(proto, got, feeds((2, 5, 8), 4)) > 35


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", ["5", "3, 4"])
def test_a_conv_with_a_kernel_of_one_is_a_product(bias: bool, spatial: str) -> None:
    ones = ", ".join("1" for _ in spatial.split(","))
    constants, inputs = (", float[6] b", "x, w, b") if bias else ("", "x, w")
    proto = model(f"""
        g (float[2, 8, {spatial}] x) => (float[2, 6, {spatial}] y)
        <float[6, 8, {ones}] w{constants}> {{ y = Conv <kernel_shape = [{ones}]> ({inputs}) }}""")
    got, _ = run_pass(EVERYTHING, proto)
    onnx.checker.check_model(got, full_check=True)
    assert kinds(got)[0] == kinds(got)[-1] == "Transpose"
    assert "DynamicQuantizeMatMul" in fused(got)
    shape = (2, 8, *(int(size) for size in spatial.split(",")))
    assert sqnr(proto, got, feeds(shape, 4)) > 35


@pytest.mark.parametrize(
    "attributes", ["strides = [2, 2]", "pads = [1, 1, 1, 1]", "group = 2, kernel_shape = [1, 1]"]
)
def test_other_conv_stay(attributes: str) -> None:
    proto = model(
        f"""
        g (float[1, 8, 4, 4] x) => (float[1, 6, A, B] y) <float[6, K, 1, 1] w> {{
          y = Conv <{attributes}> (x, w) }}""".replace("K", "4" if "group" in attributes else "8")
    )
    assert_unchanged(EVERYTHING, proto)


def test_a_gemm_with_a_bias_fuses() -> None:
    proto = model("""
        g (float[N, 8] x) => (float[N, 6] y) <float[8, 6] w, float[6] b> { y = Gemm (x, w, b) }""")
    assert fused(run_pass(EVERYTHING, proto)[0]) == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", ["6", "1", "1, 6"])
def test_gemm_with_factors_is_a_product_and_an_addition(transposed: int, bias: str) -> None:
    text = GEMM.replace("SHAPE", "6, 8" if transposed else "8, 6").replace("BIAS", bias)
    proto = model(text.replace("TRANSPOSED", str(transposed)))
    got, _ = run_pass(EVERYTHING, proto)
    onnx.checker.check_model(got, full_check=True)
    assert kinds(got)[-2:] == ["Mul", "Add"]
    assert sqnr(proto, got, feeds((5, 8), 4)) > 35


def test_a_gemm_whose_addend_is_computed_keeps_it() -> None:
    proto = model("""
        g (float[3, 8] x) => (float[3, 6] y) <float[8, 6] w> {
          a = ReduceSum (x)
          y = Gemm (x, w, a)
        }""")
    got, _ = run_pass(EVERYTHING, proto)
    assert sqnr(proto, got, feeds((3, 8), 4)) > 35


def test_columns_of_very_different_size_have_scales_of_their_own() -> None:
    proto = model("g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w> { y = MatMul (x, w) }")
    tensor = proto.graph.initializer[0]
    weight = np.frombuffer(tensor.raw_data, "f4").reshape(8, 4) * np.array([1, 1e-3, 1e3, 1], "f4")
    tensor.raw_data = weight.astype("f4").tobytes()
    fine, _ = run_pass(EVERYTHING, proto)
    coarse, _ = run_pass(QuantizeDynamic(placement="all", per_channel=False), proto)
    x = feeds((50, 8))[0]
    with Session.open(proto) as a, Session.open(fine) as b, Session.open(coarse) as c:
        want, got, lost = (s.run(x)["y"][:, 1] for s in (a, b, c))
    assert np.square(got - want).sum() < 1e-2 * np.square(want).sum()
    assert not lost.any()


def test_a_weight_that_two_nodes_share_is_stored_once() -> None:
    proto = model("""
        g (float[N, 8] x) => (float[N, 8] y) <float[8, 8] w> { a = MatMul (x, w) y = MatMul (a, w) }""")
    got, _ = run_pass(EVERYTHING, proto)
    assert sorted(t.data_type for t in got.graph.initializer) == [1, 3]
    assert sqnr(proto, got, feeds((5, 8), 4)) > 30


def test_a_float_weight_stays_for_readers_in_float() -> None:
    proto = model("""
        g (float[N, 8] x) => (float[N, 8] y, float[8, 8] z) <float[8, 8] w> {
          y = MatMul (x, w)
          z = Neg (w)
        }""")
    got, _ = run_pass(EVERYTHING, proto)
    assert "w" in {tensor.name for tensor in got.graph.initializer}


def test_bodies_are_quantized_with_weights_from_outside() -> None:
    proto = model(LOOP)
    got, _ = run_pass(EVERYTHING, proto)
    body = next(a.g for node in got.graph.node for a in node.attribute if a.name == "body")
    assert "MatMulInteger" in [node.op_type for node in body.node]
    samples = [{**feeds((4, 8))[0], "n": np.int64(3), "go": np.bool_(True)}]
    assert sqnr(proto, got, [{k: np.asarray(v) for k, v in samples[0].items()}]) > 25


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("g (float[4, 8] x, float[8, 4] z) => (float[4, 4] y) { y = MatMul (x, z) }", ""),
        ("g (float[8, 4] x) => (float[4, 4] y) <float[4, 8] w> { y = MatMul (w, x) }", ""),
        (
            "g (float[8, 4] x) => (float[4, 4] y) <float[8, 4] w> { y = Gemm <transA = 1> (x, w) }",
            "",
        ),
        ("g (float16[4, 8] x) => (float16[4, 4] y) <float16[8, 4] w> { y = MatMul (x, w) }", ""),
        ("g (float[4, 8] x) => (float[2, 4, 4] y) <float[2, 8, 4] w> { y = MatMul (x, w) }", ""),
        (LSTM.replace("D, ", "1, ").replace("DIRECTION", "forward"), ""),
    ],
    ids=["activations", "constant first", "transposed", "half", "batched weight", "lstm"],
)
def test_what_has_no_int8_form_is_named(text: str, at: str) -> None:
    assert_refuses(EVERYTHING, model(text), code="DYN103", at=at)


def test_weights_that_are_no_numbers_stay() -> None:
    proto = model("g (float[4, 8] x) => (float[4, 4] y) <float[8, 4] w> { y = MatMul (x, w) }")
    weight = np.frombuffer(proto.graph.initializer[0].raw_data, "f4").copy()
    weight[3] = np.nan
    proto.graph.initializer[0].raw_data = weight.tobytes()
    assert_refuses(EVERYTHING, proto, code="DYN103")


def test_rounded_activations_are_not_rounded_again() -> None:
    got, _ = run_pass(EVERYTHING, model(LAYERS))
    assert_refuses(EVERYTHING, got, code="DYN101")


def test_what_is_too_small_to_gain_stays_float() -> None:
    assert_refuses(QuantizeDynamic(), model(LAYERS), code="DYN104")


@pytest.mark.parametrize(("direction", "count"), [("forward", 1), ("bidirectional", 2)])
def test_an_lstm_becomes_the_runtimes_own_when_asked(direction: str, count: int) -> None:
    text = LSTM.replace("D, ", f"{count}, ").replace("DIRECTION", direction)
    proto = model(text)
    got, _ = run_pass(QuantizeDynamic(placement="all", allow_contrib=True), proto)
    assert [(node.op_type, node.domain) for node in got.graph.node] == [
        ("DynamicQuantizeLSTM", "com.microsoft")
    ]
    assert sqnr(proto, got, feeds((7, 2, 5), 4)) > 25


ATTENTION = """<ir_version: 8, opset_import: ["": 13, "com.microsoft": 1]>
    g (float[2, 9, 16] x) => (float[2, 9, 16] y) <float[16, 48] w, float[48] b> {
      y = com.microsoft.Attention <num_heads = 4 EXTRA> (x, w, b)
    }"""


def test_attention_of_an_optimized_model_becomes_its_int8_form() -> None:
    proto = model(ATTENTION.replace("EXTRA", ", unidirectional = 1"))
    got, _ = run_pass(EVERYTHING, proto)
    assert kinds(got) == ["DynamicQuantizeLinear", "QAttention"]
    assert sqnr(proto, got, feeds((2, 9, 16), 4)) > 25
    other = ATTENTION.replace("EXTRA", ", qkv_hidden_sizes = [16, 16, 16]")
    assert_refuses(EVERYTHING, model(other), code="DYN103")


def test_an_old_opset_is_raised() -> None:
    proto = model("""<ir_version: 4, opset_import: ["": 9]>
        g (float[4, 8] x) => (float[4, 4] y) <float[8, 4] w> { y = MatMul (x, w) }""")
    got, _ = run_pass(EVERYTHING, proto)
    assert got.opset_import[0].version == 13
    assert sqnr(proto, got, feeds((4, 8), 4)) > 30


def loud() -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """A product with a channel that takes the whole range of the rounding of which little is made."""
    proto = model("""
        g (float[N, 256] x) => (float[N, 256] y) <float[256, 256] w> { y = MatMul (x, w) }""")
    weight = np.frombuffer(proto.graph.initializer[0].raw_data, "f4").reshape(256, 256).copy()
    weight[7] *= 0.01
    proto.graph.initializer[0].raw_data = weight.tobytes()
    samples = feeds((64, 256), 10)
    for feed in samples:
        feed["x"][:, 7] *= 300
    return proto, samples


def test_two_digits_where_one_costs_too_much() -> None:
    proto, samples = loud()
    step = QuantizeDynamic(placement="sizes", smooth=False, floor_db=15)
    result = Pipeline((step,)).run(proto, samples=samples)
    assert [d.code for d in result.diagnostics] == ["DYN106", "DYN108"]
    one = Pipeline((QuantizeDynamic(placement="sizes"),)).run(proto)
    assert sqnr(proto, one.model, samples) < 5
    assert sqnr(proto, result.model, samples) > 15
    assert kinds(result.model.to_proto()).count("DynamicQuantizeLinear") == 2


def test_numbers_of_a_weight_make_up_for_each_other() -> None:
    """Channels that go together: what rounding one of them loses, another one can give back."""
    proto = model("""
        g (float[N, 64] x) => (float[N, 64] y) <float[64, 64] w> { y = MatMul (x, w) }""")
    rng = np.random.default_rng(5)
    mixing = rng.normal(size=(8, 64)) + 0.05 * rng.normal(size=(8, 64))
    samples = [{"x": (rng.normal(size=(64, 8)) @ mixing).astype("f4")} for _ in range(20)]
    found = {}
    for rounding in ("nearest", "gptq"):
        step = QuantizeDynamic(placement="all", smooth=False, rounding=rounding, floor_db=0)
        result = Pipeline((step,)).run(proto, samples=samples)
        found[rounding] = sqnr(proto, result.model, samples)
        assert ("DYN111" in {d.code for d in result.diagnostics}) == (rounding == "gptq")
    assert found["gptq"] > found["nearest"] + 1


def test_a_measured_choice_is_explained_and_near_to_float() -> None:
    """Times are not asserted: whichever way it goes, the report has to say so."""
    proto = model("""
        g (float[1, 64, 8, 8] x) => (float[1, 16, 8, 8] y)
        <float[128, 64, 1, 1] w, float[128] b, float[16, 128, 3, 3] v> {
          a = Conv (x, w, b)
          r = Relu (a)
          y = Conv <pads = [1, 1, 1, 1]> (r, v)
        }""")
    samples = feeds((1, 64, 8, 8), 10)
    result = Pipeline((QuantizeDynamic(),)).run(proto, samples=samples)
    codes = {diagnostic.code for diagnostic in result.diagnostics}
    assert ("DYN108" in codes) == result.changed
    assert ("DYN105" in codes) == (not result.changed)
    assert sqnr(proto, result.model, samples) > 20


def test_smoothing_where_one_channel_is_loud() -> None:
    proto, samples = loud()
    step = QuantizeDynamic(placement="sizes", floor_db=30)
    result = Pipeline((step,)).run(proto, samples=samples)
    assert [d.code for d in result.diagnostics] == ["DYN110", "DYN108"]
    assert sqnr(proto, result.model, samples) > 30
    assert kinds(result.model.to_proto()).count("DynamicQuantizeLinear") == 1


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    depth=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 99),
    size=st.floats(-6, 6),
)
def test_the_error_is_that_of_the_rounding(
    rows: int, depth: int, width: int, seed: int, size: float
) -> None:
    text = f"""g (float[{rows}, {depth}] x) => (float[{rows}, {width}] y) <float[{depth}, {width}] w> {{
        y = MatMul (x, w) }}"""
    proto = model(text)
    got, _ = run_pass(EVERYTHING, proto)
    x = feeds((rows, depth), seed=seed)[0]["x"] * np.float32(10.0**size)
    with Session.open(proto) as one, Session.open(got) as two:
        want, found = one.run({"x": x})["y"], two.run({"x": x})["y"]
    weight = np.frombuffer(proto.graph.initializer[0].raw_data, "f4").reshape(depth, width)
    step = (max(x.max(), 0) - min(x.min(), 0)) / 255
    largest = np.abs(weight).max(axis=0)
    bound = 1.01 * step * np.abs(weight).sum(0) + np.abs(x).sum(1)[:, None] * largest / 254 * 1.01
    assert (np.abs(want - found) <= bound + depth * step * largest / 127 + 1e-30).all()
