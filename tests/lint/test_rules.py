"""Every rule of the linter: one model in which it finds something, one in which it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp.diagnostics import Severity
from onnxcomp.ir import Model
from onnxcomp.lint import codes, lint
from onnxcomp.lint.bypass import is_not_negative
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.fix_quantization import FixQuantization
from tests.helpers.text import model

if TYPE_CHECKING:
    from onnxcomp.lint import LintReport

U8 = "float s = {0.02}, uint8 z = {128}, uint8 zero = {0}"
S8 = "float s = {0.02}, int8 z = {3}, uint8 zero = {0}"
W = "int8[8, 8, 3, 3] w, float ws = {0.01}, int8 wz = {0}"
WC = (
    "int8[8, 8, 3, 3] w, float[8] ws = {0.01, 0.02, 0.03, 0.04, 0.05, 0.01, 0.02, 0.08}, "
    "int8[8] wz = {0, 0, 0, 0, 0, 0, 0, 0}"
)
IN = "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)"
CONV = "Conv <pads = [1, 1, 1, 1]>"
OUT = "yq = QuantizeLinear (a, s, z) y = DequantizeLinear (yq, s, z)"


def image(inits: str, body: str) -> str:
    return f"g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y) <{inits}> {{ {body} }}"


def rows(inits: str, body: str) -> str:
    return f"g (float[4, 32] x) => (float[A, B] y) <{inits}> {{ {body} }}"


def conv(weights: str, *, axis: str = "", between: str = "", out: str = OUT, act: str = U8) -> str:
    weight = f"wd = DequantizeLinear {axis} (w, ws, wz)"
    first = f"a = {CONV} (xd, wd)" if not between else f"c = {CONV} (xd, wd) {between}"
    return image(f"{weights}, {act}", f"{IN} {weight} {first} {out}")


def gemm(inits: str, bias: str) -> str:
    body = f"{IN} wd = DequantizeLinear (w, ws, wz) {bias} y = Gemm (xd, wd, b)"
    return rows(f"int8[32, 8] w, float ws = {{0.01}}, int8 wz = {{0}}, {inits}, {U8}", body)


def matmul(axis: int, count: int) -> str:
    scales = ", ".join(f"{0.01 + 0.001 * i:.3f}" for i in range(count))
    zeros = ", ".join("0" * count)
    body = f"{IN} wd = DequantizeLinear <axis = {axis}> (w, ws, wz) y = MatMul (xd, wd)"
    return rows(
        f"int8[32, 8] w, float[{count}] ws = {{{scales}}}, int8[{count}] wz = {{{zeros}}}, {U8}",
        body,
    )


@dataclass(frozen=True)
class Case:
    """A rule's code, a model in which it finds something and one in which it does not."""

    code: str
    bad: str
    good: str
    target: str = "cpu"
    static: bool = False


ADDED = f"{IN} wd = DequantizeLinear (w, ws, wz) b = {CONV} (xd, wd) bq = QuantizeLinear (b, s, z) "
ADDED += "bd = DequantizeLinear (bq, s, z) a = Add (bd, xd)"
BLOCKS = "int8[32, 8] w, float[2, 8] bs"
TURNED = "int8[8, 32] w, float[8, 2] bs"

CASES = (
    Case(
        "LNT101",
        conv(WC, axis="<axis = 1>"),
        conv(WC, axis="<axis = 0>"),
    ),
    Case("LNT102", matmul(0, 32), matmul(1, 8)),
    Case(
        "LNT103",
        conv(W, act="float s = {0.0}, uint8 z = {128}, uint8 zero = {0}"),
        conv(W),
        static=True,
    ),
    Case(
        "LNT104",
        conv(WC, axis="<axis = 2>"),
        conv(WC, axis="<axis = 0>"),
        static=True,
    ),
    Case(
        "LNT105",
        image(
            f"{W}, {U8}, int32[8] bi, float bs = {{0.5}}, int32 bz = {{0}}",
            f"{IN} wd = DequantizeLinear (w, ws, wz) bd = DequantizeLinear (bi, bs, bz) "
            f"a = {CONV} (xd, wd, bd) {OUT}",
        ),
        image(
            f"{W}, {U8}, int32[8] bi, float bs = {{0.0002}}, int32 bz = {{0}}",
            f"{IN} wd = DequantizeLinear (w, ws, wz) bd = DequantizeLinear (bi, bs, bz) "
            f"a = {CONV} (xd, wd, bd) {OUT}",
        ),
    ),
    Case(
        "LNT107",
        image(
            f"float[8, 8, 3, 3] f, float ws = {{0.01}}, int8 wz = {{0}}, {U8}",
            f"{IN} w = QuantizeLinear (f, ws, wz) wd = DequantizeLinear (w, ws, wz) "
            f"a = {CONV} (xd, wd) {OUT}",
        ),
        conv(W),
    ),
    Case(
        "LNT108",
        gemm("float[8] b", ""),
        gemm(
            "int32[8] bi, float bs = {0.0002}, int32 bz = {0}", "b = DequantizeLinear (bi, bs, bz)"
        ),
    ),
    Case(
        "LNT109",
        rows(
            f"{TURNED}, float[8] b",
            "wd = DequantizeLinear <axis = 1, block_size = 16> (w, bs) "
            "y = Gemm <transB = 1> (x, wd, b)",
        ),
        rows(
            f"{BLOCKS}, float[8] b",
            "wd = DequantizeLinear <axis = 0, block_size = 16> (w, bs) y = Gemm (x, wd, b)",
        ),
    ),
    Case(
        "LNT110",
        image(f"float[8, 8, 3, 3] f, {U8}", f"{IN} c = {CONV} (xd, f) a = Relu (c) {OUT}"),
        image(f"float[8, 8, 3, 3] f, {U8}", f"{IN} c = {CONV} (xd, f) a = Erf (c) {OUT}"),
    ),
    Case(
        "LNT111",
        image(
            f"{WC}, {U8}, float[8] b".replace("0.08}", "0.000000000001}"),
            f"{IN} wd = DequantizeLinear <axis = 0> (w, ws, wz) a = {CONV} (xd, wd, b) {OUT}",
        ),
        image(
            f"{WC}, {U8}, float[8] b",
            f"{IN} wd = DequantizeLinear <axis = 0> (w, ws, wz) a = {CONV} (xd, wd, b) {OUT}",
        ),
    ),
    Case(
        "LNT201",
        image(f"{W}, {S8}", f"{ADDED} {OUT}"),
        image(f"{W}, {U8}", f"{ADDED} {OUT}"),
    ),
    Case(
        "LNT202",
        conv(W, between="a = Relu (c)"),
        conv(
            W,
            between="a = Relu (c)",
            out="yq = QuantizeLinear (a, s, zero) y = DequantizeLinear (yq, s, zero)",
        ),
    ),
    Case(
        "LNT203",
        conv(
            W,
            between="cq = QuantizeLinear (c, s, z) cd = DequantizeLinear (cq, s, z) a = Relu (cd)",
            out="yq = QuantizeLinear (a, s, zero) y = DequantizeLinear (yq, s, zero)",
        ),
        conv(
            W,
            between="a = Relu (c)",
            out="yq = QuantizeLinear (a, s, zero) y = DequantizeLinear (yq, s, zero)",
        ),
    ),
    Case(
        "LNT204",
        conv(W, act="float s = {0.001}, uint16 z = {32768}, uint8 zero = {0}"),
        conv(W),
    ),
    Case(
        "LNT205",
        image(
            f"{WC}, {U8}, float[8] b, float[8] fs = {{0.01, 0.02, 0.03, 0.015, 0.02, 0.023, 0.02, 0.01}}, "
            "uint8[8] fz = {0, 0, 0, 0, 0, 0, 0, 0}, int8[8, 1, 3, 3] d, float six = {6}",
            f"{IN} wd = DequantizeLinear <axis = 0> (w, ws, wz) c = {CONV} (xd, wd, b) "
            "r = Clip (c, , six) e = Relu (r) rq = QuantizeLinear <axis = 1> (e, fs, fz) "
            "rd = DequantizeLinear <axis = 1> (rq, fs, fz) "
            "dd = DequantizeLinear <axis = 0> (d, ws, wz) "
            f"a = Conv <pads = [1, 1, 1, 1], group = 8> (rd, dd) {OUT}",
        ).replace("r = Clip (c, , six) e = Relu (r)", "e = Relu (c)"),
        conv(W),
    ),
    Case(
        "LNT206",
        image(
            f"{U8}, float t = {{0.5}}",
            f"{IN} a = MaxPool <kernel_shape = [2, 2]> (xd) yq = QuantizeLinear (a, t, z) "
            "y = DequantizeLinear (yq, t, z)",
        ),
        image(U8, f"{IN} a = MaxPool <kernel_shape = [2, 2]> (xd) {OUT}"),
    ),
    Case(
        "LNT207",
        image(
            f"{W}, uint8 z = {{128}}",
            f"s = ReduceMax <keepdims = 0> (x) {IN} wd = DequantizeLinear (w, ws, wz) "
            f"a = {CONV} (xd, wd) {OUT}",
        ),
        conv(W),
    ),
    Case(
        "LNT208",
        conv("uint8[8, 8, 3, 3] w, float ws = {0.01}, uint8 wz = {128}"),
        conv(W),
    ),
    Case("LNT209", conv(W), conv(W, act="float s = {0.02}, int8 z = {0}"), target="tensorrt"),
    Case(
        "LNT210",
        gemm(
            "int32[8] bi, float bs = {0.0002}, int32 bz = {0}", "b = DequantizeLinear (bi, bs, bz)"
        ),
        gemm("float[8] b", ""),
        target="tensorrt",
    ),
    Case("LNT211", conv(W), image("float[8, 8, 3, 3] w", f"y = {CONV} (x, w)"), target="cuda"),
    Case(
        "LNT212",
        rows(
            "int8[32, 8] w, float s = {0.02}, int8 z = {0}",
            "xq = QuantizeLinear (x, s, z) q = QLinearMatMul (xq, s, z, w, s, z, s, z) "
            "y = DequantizeLinear (q, s, z)",
        ),
        conv(W, act="float s = {0.02}, int8 z = {0}"),
        target="tensorrt",
    ),
    Case("LNT213", matmul(1, 8), matmul(1, 1), target="qnn"),
    Case(
        "LNT214",
        "g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) { y = Relu (x) }",
        "g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y) { y = Relu (x) }",
        target="qnn",
    ),
    Case(
        "LNT301",
        image(U8, f"{IN} a = Tanh (xd) {OUT}"),
        conv(W),
    ),
    Case(
        "LNT302",
        image(f"{W}, {U8}", f"wd = DequantizeLinear (w, ws, wz) y = {CONV} (x, wd)"),
        conv(W),
    ),
    Case("LNT303", conv(W), image("float k = {2.0}", "y = Mul (x, k)")),
    Case(
        "LNT304",
        conv(W, between="a = LeakyRelu (c)"),
        conv(
            W,
            between="cq = QuantizeLinear (c, s, z) cd = DequantizeLinear (cq, s, z) a = LeakyRelu (cd)",
        ),
    ),
    Case(
        "LNT305",
        image(
            f"{W}, {U8}, int64[8] ends = {{0, 0, 1, 0, 0, 0, 0, 2}}",
            f"p = Pad (x, ends) xq = QuantizeLinear (p, s, z) xd = DequantizeLinear (xq, s, z) "
            f"wd = DequantizeLinear (w, ws, wz) a = Conv <pads = [0, 1, 1, 0]> (xd, wd) {OUT}",
        ),
        conv(W),
    ),
    Case(
        "LNT306",
        conv(
            f"{WC}, float[8] gain = {{1.0, -0.5, 2.0, 1.0, 0.3, 1.0, -2.0, 1.0}}, float[8] shift, "
            "float[8] mean, float[8] var = {1.0, 1.0, 2.0, 1.0, 0.5, 1.0, 1.0, 3.0}",
            axis="<axis = 0>",
            between="cq = QuantizeLinear (c, s, z) cd = DequantizeLinear (cq, s, z) "
            "a = BatchNormalization (cd, gain, shift, mean, var)",
            act="float s = {0.05}, uint8 z = {128}, uint8 zero = {0}",
        ),
        conv(WC, axis="<axis = 0>"),
    ),
    Case(
        "LNT401",
        image(
            "int8[8, 8, 3, 3] w, float ws = {0.01}, int8 wz = {0}",
            "q, qs, qz = DynamicQuantizeLinear (x) "
            "i = ConvInteger <pads = [1, 1, 1, 1]> (q, w, qz, wz) f = Cast <to = 1> (i) "
            "k = Mul (qs, ws) y = Mul (f, k)",
        ),
        image("float[8, 8, 3, 3] w", f"y = {CONV} (x, w)"),
    ),
    Case(
        "LNT402",
        image(
            U8,
            f"t = Tanh (x) xq = QuantizeLinear (t, s, z) xd = DequantizeLinear (xq, s, z) "
            f"a = MaxPool <kernel_shape = [2, 2]> (xd) {OUT}",
        ),
        image(U8, "t = Tanh (x) y = MaxPool <kernel_shape = [2, 2]> (t)"),
    ),
    Case(
        "LNT403",
        rows(U8, f"{IN} a = Softmax (xd) {OUT}"),
        rows(U8, "y = Softmax (x)"),
    ),
    Case(
        "LNT404",
        rows(
            "int8[32, 8] w, float s = {0.02}, int8 z = {0}",
            "xq = QuantizeLinear (x, s, z) q = QLinearMatMul (xq, s, z, w, s, z, s, z) "
            "y = DequantizeLinear (q, s, z)",
        ),
        rows(
            "int8[32, 8] w, float s = {0.02}, int8 z = {0}, uint8 u = {128}",
            "xq = QuantizeLinear (x, s, u) q = QLinearMatMul (xq, s, u, w, s, z, s, u) "
            "y = DequantizeLinear (q, s, u)",
        ),
    ),
    Case(
        "LNT405",
        "g (float16[4, 32] x) => (float16[] y) <float16[32, 8] w> { y = MatMul (x, w) }",
        "g (float[4, 32] x) => (float[A, B] y) <float[32, 8] w> { y = MatMul (x, w) }",
    ),
)
IDS = [case.code for case in CASES]


def look(text: str, case: Case) -> LintReport:
    return lint(model(text), target=case.target, provider_graph=not case.static)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_bad_model_is_found(case: Case) -> None:
    assert case.code in look(case.bad, case).counts


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_good_model_is_not(case: Case) -> None:
    assert case.code not in look(case.good, case).counts


def test_every_rule_has_a_case() -> None:
    # One needs a processor that saturates, the other a model that the runtime refuses: tests below.
    assert set(codes()) - {"LNT100", "LNT106"} == set(IDS)


FIXABLE = [
    case
    for case in CASES
    if case.code
    in {
        *(
            "LNT101",
            "LNT102",
            "LNT105",
            "LNT107",
            "LNT108",
            "LNT109",
            "LNT110",
            "LNT111",
            "LNT201",
            "LNT202",
        ),
        *("LNT203", "LNT205", "LNT208", "LNT301", "LNT302", "LNT305", "LNT306", "LNT401"),
    }
]


def as_written(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with Session.open(proto, optimization="disable") as session:
        found: np.ndarray = session.run({"x": x})["y"]
        return found


@pytest.mark.parametrize("case", FIXABLE, ids=[case.code for case in FIXABLE])
def test_what_is_mended_is_not_found_again_and_says_the_same(case: Case) -> None:
    source = model(case.bad)
    result = Pipeline((FixQuantization(only_faster=False, only=(case.code,)),)).run(source)
    assert result.changed
    fixed = result.model.to_proto()
    onnx.checker.check_model(fixed, full_check=True)
    assert case.code not in look_at(fixed, case)
    shape = [dim.dim_value for dim in source.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(5).normal(size=shape).astype(np.float32)
    before, after = as_written(source, x), as_written(fixed, x)
    # One step of the largest grid in these models, and what it is in the sum of a product.
    assert np.abs(before - after).max() <= 0.05 * np.abs(before).max() + 0.021


def look_at(proto: onnx.ModelProto, case: Case) -> dict[str, int]:
    return dict(lint(proto, target=case.target).counts)


EXACT = [
    case for case in FIXABLE if case.code in {"LNT107", "LNT109", "LNT201", "LNT208", "LNT305"}
]


@pytest.mark.parametrize("case", EXACT, ids=[case.code for case in EXACT])
def test_another_form_of_the_same_values_is_exact(case: Case) -> None:
    source = model(case.bad)
    fixed = (
        Pipeline((FixQuantization(only_faster=False, only=(case.code,)),))
        .run(source)
        .model.to_proto()
    )
    shape = [dim.dim_value for dim in source.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(6).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(as_written(source, x), as_written(fixed, x), rtol=1e-6, atol=1e-6)


def test_the_wrong_axis_is_wrong_at_run_time_and_right_when_mended() -> None:
    source = model(next(case for case in CASES if case.code == "LNT101").bad)
    x = np.random.default_rng(7).normal(size=(1, 8, 6, 6)).astype(np.float32)
    meant = as_written(source, x)
    with Session.open(source) as session:
        wrong = session.run({"x": x})["y"]
    fixed = Pipeline((FixQuantization(only_faster=False),)).run(source).model
    with Session.open(fixed) as session:
        right = session.run({"x": x})["y"]
    assert np.abs(wrong - meant).max() > 5 * np.abs(right - meant).max()


def test_rows_of_a_matmul_fail_at_run_time_or_are_right_and_are_right_when_mended() -> None:
    from onnxcomp.errors import UserError

    case = next(case for case in CASES if case.code == "LNT102")
    source = model(case.bad.replace("y = MatMul (xd, wd)", f"a = MatMul (xd, wd) {OUT}"))
    x = np.random.default_rng(8).normal(size=(4, 32)).astype(np.float32)
    with Session.open(source) as session:
        try:
            found = session.run({"x": x})["y"]
        except UserError:  # onnxruntime up to 1.31
            found = as_written(source, x)
    assert np.abs(found - as_written(source, x)).max() <= 0.041
    fixed = Pipeline((FixQuantization(only_faster=False),)).run(source).model
    with Session.open(fixed) as session:
        found = session.run({"x": x})["y"]
    assert np.abs(found - as_written(source, x)).max() <= 0.041


def test_a_model_that_the_provider_refuses_is_an_error() -> None:
    text = image(U8, f"{IN} a = com.nobody.Unheard (xd) {OUT}")
    header = '<ir_version: 10, opset_import: ["": 21, "com.nobody": 1]>'
    report = lint(model(f"{header} {text}"))
    assert "LNT100" in report.counts
    assert report.conversions is None
    assert report.at_least(Severity.ERROR)


def test_saturation_is_a_matter_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = conv(W).replace(
        "int8[8, 8, 3, 3] w", f"int8[8, 8, 1, 1] w = {{{', '.join(['127'] * 64)}}}"
    )
    wide = wide.replace(CONV, "Conv")
    for there in (True, False):
        monkeypatch.setattr("onnxcomp.lint.weights.saturates", lambda there=there: there)
        assert ("LNT106" in lint(model(wide)).counts) == there
    assert "LNT106" in lint(model(wide), target="cpu-x64-avx2").counts


def test_a_float_model_has_no_findings() -> None:
    report = lint(model("g (float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }"))
    assert not report.findings
    assert not report.quantized


def test_findings_are_ordered_by_how_much_they_matter() -> None:
    report = lint(model(conv(WC, axis="<axis = 1>")))
    found = [item.diagnostic.severity for item in report.findings]
    assert found[0] is Severity.ERROR
    assert found == sorted(found, key=[Severity.ERROR, Severity.WARNING, Severity.NOTE].index)


def test_blocks_that_are_turned_are_computed_with() -> None:
    source = model(next(case for case in CASES if case.code == "LNT109").bad)
    fixed = Pipeline((FixQuantization(only_faster=False),)).run(source).model
    before = [node.op_type for node in optimized_model(source).graph.node]
    after = [node.op_type for node in optimized_model(fixed).graph.node]
    assert "DequantizeLinear" in before
    assert "MatMulNBits" in after
    assert "DequantizeLinear" not in after


def test_a_target_that_is_not_here_is_linted_by_its_table() -> None:
    text = gemm(
        "int32[8] bi, float bs = {0.0002}, int32 bz = {0}", "b = DequantizeLinear (bi, bs, bz)"
    )
    report = lint(model(text), target="tensorrt")
    assert report.conversions is None
    result = Pipeline((FixQuantization(),), target="tensorrt").run(model(text))
    assert "LNT210" not in lint(result.model, target="tensorrt").counts
    assert "LNT209" in lint(result.model, target="tensorrt").counts


@pytest.mark.parametrize(
    ("kind", "shape"), [("Conv", "8, 8, 3, 3"), ("ConvTranspose", "8, 8, 3, 3")]
)
def test_the_provider_really_rounds_a_float_weight(kind: str, shape: str) -> None:
    text = image(f"float[{shape}] f, {U8}", f"{IN} a = {kind} <pads = [1, 1, 1, 1]> (xd, f) {OUT}")
    source = model(text)
    assert "LNT110" in lint(source).counts
    stored = {t.data_type for t in optimized_model(source).graph.initializer if len(t.dims) == 4}
    assert stored == {onnx.TensorProto.INT8}


def test_a_weight_that_would_be_rounded_again_is_not_stored_in_float() -> None:
    # Relu with a Q that keeps it alive and an output that cannot be changed: the Conv stays in float.
    text = conv(WC, axis="<axis = 0>", between="a = LeakyRelu (c)")
    found = {item.diagnostic.code: item for item in lint(model(text)).findings}
    assert found["LNT302"].fixable
    text = conv(WC, axis="<axis = 0>", between="a = Relu (c)")
    found = {item.diagnostic.code: item for item in lint(model(text)).findings}
    assert not found["LNT302"].fixable


@pytest.mark.parametrize("case", FIXABLE, ids=[case.code for case in FIXABLE])
def test_what_is_mended_stays_as_it_is(case: Case) -> None:
    step = FixQuantization(only_faster=False)
    once = Pipeline((step,)).run(model(case.bad))
    again = Pipeline((step,)).run(once.model)
    assert not again.changed, again.diagnostics


def test_a_relu_that_the_target_takes_behind_a_conv_only_keeps_its_q_behind_an_add() -> None:
    text = image(
        "float[1, 8, 6, 6] other, float s = {0.02}, uint8 z = {128}, uint8 zero = {0}",
        """
        xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)
        oq = QuantizeLinear (other, s, z) od = DequantizeLinear (oq, s, z)
        c = Add (xd, od)
        cq = QuantizeLinear (c, s, z) cd = DequantizeLinear (cq, s, z)
        a = Relu (cd)
        yq = QuantizeLinear (a, s, zero) y = DequantizeLinear (yq, s, zero)
        """,
    )
    assert "LNT203" in lint(model(text), target="cpu").counts
    assert "LNT203" not in lint(model(text), target="qnn").counts


@pytest.mark.parametrize("bias", ["float[8] b", "int32[8] bi, float bs = {0.5}, int32 bz = {0}"])
def test_a_gemm_that_scales_its_products_has_no_int8_kernel_that_a_bias_could_suit(
    bias: str,
) -> None:
    text = gemm(bias, "" if bias[-1] == "b" else "b = DequantizeLinear (bi, bs, bz)")
    known = lint(model(text)).counts
    assert {"LNT105", "LNT108"} & known.keys()
    scaled = text.replace("Gemm <", "Gemm <alpha = 0.5, ").replace("Gemm (", "Gemm <alpha = 0.5> (")
    assert scaled != text
    assert not {"LNT105", "LNT108"} & lint(model(scaled)).counts.keys()
    assert "QGemm" not in {
        node.op_type for node in optimized_model(Model.load(model(scaled))).graph.node
    }


def test_scales_and_zero_points_of_nothing() -> None:
    text = """
        g (float[2, 0] x) => (y) <float[0] s, uint8[0] z> {
          q = QuantizeLinear (x, s, z)
          d = DequantizeLinear (q, s, z)
          y = Relu (d)
        }"""
    assert lint(model(text)).counts


@pytest.mark.parametrize(("mode", "stays"), [("nearest", True), ("linear", True), ("cubic", False)])
def test_what_cubic_interpolation_makes_of_numbers_above_zero_may_be_below(
    mode: str, stays: bool
) -> None:
    text = f"""
        g (float[1, 2, 4, 4] x) => (y) <float[4] s = {{1, 1, 2, 2}}> {{
          r = Relu (x)
          y = Resize <mode = "{mode}"> (r, , s)
        }}"""
    proto = model(text)
    (value,) = Model.load(proto).graph.outputs
    assert is_not_negative(value) == stays
    if not stays:
        x = np.random.default_rng(0).normal(size=(1, 2, 4, 4)).astype("f4")
        with Session.open(proto) as session:
            assert session.run({"x": x})["y"].min() < 0
