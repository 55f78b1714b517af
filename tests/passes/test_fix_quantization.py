"""fix-quantization: what the linter finds is mended, and values stay what they were."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.bench import Spread
from onnxcomp.errors import UserError
from onnxcomp.lint import repair
from onnxcomp.lint.report import rules_by_code
from onnxcomp.lint.rule import Finding, finding
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize import fix_quantization
from onnxcomp_passes.quantize.fix_quantization import FixQuantization
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.check import assert_rolls_back, assert_unchanged
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.lint.view import View
    from onnxcomp.pipeline import Result

INITS = (
    "int8[8, 8, 3, 3] w, float ws = {0.01}, int8 wz = {0}, float s = {0.02}, uint8 z = {128}, "
    "uint8 zero = {0}, float t = {0.015}, int8 sz = {3}"
)
IN = "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)"
WEIGHT = "wd = DequantizeLinear (w, ws, wz)"
CONV = "Conv <pads = [1, 1, 1, 1]>"
OUT = "yq = QuantizeLinear (a, s, z) y = DequantizeLinear (yq, s, z)"


def image(body: str) -> str:
    return f"g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y) <{INITS}> {{ {body} }}"


def fixed(text: str, **options: object) -> Result:
    step = FixQuantization.model_validate({"only_faster": False, **options})
    return Pipeline((step,)).run(model(text))


def kinds(result: Result) -> list[str]:
    return sorted(node.op_type for node in result.model.nodes())


def values(proto: onnx.ModelProto | Model, x: np.ndarray) -> np.ndarray:
    with Session.open(proto, optimization="disable") as session:
        found: np.ndarray = session.run({"x": x})["y"]
        return found


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(1, 8, 6, 6)).astype(np.float32)


def test_a_relu_between_two_quantizations_is_one_of_them() -> None:
    result = fixed(
        image(
            f"{IN} {WEIGHT} c = {CONV} (xd, wd) cq = QuantizeLinear (c, s, z) "
            "cd = DequantizeLinear (cq, s, z) a = Relu (cd) "
            "yq = QuantizeLinear (a, t, zero) y = DequantizeLinear (yq, t, zero)"
        )
    )
    assert kinds(result) == [
        *("Conv", "DequantizeLinear", "DequantizeLinear", "DequantizeLinear"),
        *("QuantizeLinear", "QuantizeLinear", "Relu"),
    ]


def test_a_q_that_is_all_that_is_left_of_a_relu_leaves_a_clip() -> None:
    text = image(
        "a = Erf (x) aq = QuantizeLinear (a, t, zero) ad = DequantizeLinear (aq, t, zero) "
        "b = Tanh (ad) y = Identity (b)"
    )
    result = fixed(text)
    assert "QuantizeLinear" not in kinds(result)
    assert "Clip" in kinds(result)
    x = noise()
    assert np.abs(values(model(text), x) - values(result.model, x)).max() <= 0.015


def test_no_clip_behind_what_is_never_negative() -> None:
    text = image(
        "a = Sigmoid (x) aq = QuantizeLinear (a, t, zero) ad = DequantizeLinear (aq, t, zero) "
        "b = Tanh (ad) y = Identity (b)"
    )
    assert kinds(fixed(text)) == ["Identity", "Sigmoid", "Tanh"]


def test_an_output_that_is_quantized_stays_so() -> None:
    text = image("a = Tanh (x) yq = QuantizeLinear (a, s, z) y = DequantizeLinear (yq, s, z)")
    assert_unchanged(FixQuantization(only_faster=False), text)


def test_int8_of_a_residual_becomes_uint8_without_a_change_of_values() -> None:
    text = image(
        f"{IN} {WEIGHT} b = {CONV} (xd, wd) bq = QuantizeLinear (b, s, z) "
        f"bd = DequantizeLinear (bq, s, z) a = Add (bd, xd) {OUT}"
    ).replace("s, z)", "s, sz)")
    result = fixed(text)
    x = noise()
    np.testing.assert_array_equal(values(model(text), x), values(result.model, x))
    proto = result.model.to_proto()
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    zeros = {types[n.input[2]] for n in proto.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}


def test_numbers_that_leave_the_model_keep_their_type() -> None:
    text = f"""g (float[1, 8, 6, 6] x) => (int8[1, 8, 6, 6] q, float[A, B, C, D] y) <{INITS}> {{
        q = QuantizeLinear (x, s, sz) a = DequantizeLinear (q, s, sz) b = DequantizeLinear (q, s, sz)
        {WEIGHT} c = {CONV} (a, wd) cq = QuantizeLinear (c, s, sz)
        cd = DequantizeLinear (cq, s, sz) d = Add (cd, b) dq = QuantizeLinear (d, s, sz)
        y = DequantizeLinear (dq, s, sz) }}"""
    result = fixed(text, only=("LNT201",))
    assert (
        result.model.to_proto().graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.INT8
    )
    np.testing.assert_array_equal(values(model(text), noise()), values(result.model, noise()))


def test_a_weight_with_two_readers_is_mended_for_the_one_that_is_wrong() -> None:
    scales = "float[8] cs = {0.01, 0.02, 0.03, 0.04, 0.05, 0.01, 0.02, 0.08}"
    zeros = "int8[8] cz = {0, 0, 0, 0, 0, 0, 0, 0}"
    text = image(
        f"{IN} wd = DequantizeLinear <axis = 1> (w, cs, cz) a = {CONV} (xd, wd) "
        "aq = QuantizeLinear (a, t, z) ad = DequantizeLinear (aq, t, z) b = Erf (ad) "
        f"y = {CONV} (b, wd)"
    ).replace("int8 sz", f"{scales}, {zeros}, int8 sz")
    result = fixed(text, only=("LNT101",))
    axes = [
        node.attributes["axis"].as_int()
        for node in result.model.nodes()
        if node.op_type == "DequantizeLinear" and "axis" in node.attributes
    ]
    assert sorted(axes) == [0, 1]


def test_what_differs_too_much_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fix_quantization, "_fidelity", lambda *_: 0.5)
    text = image(f"{IN} a = Tanh (xd) b = Identity (a) y = Erf (b)")
    result = fixed(text)
    assert not result.changed
    assert "FIX103" in {found.code for found in result.diagnostics}


def test_what_is_slower_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Spread(2.0, 1.9, 2.1, 1.9, 2.1)
    monkeypatch.setattr(FixQuantization, "_ratio", lambda *_: slow)
    text = image(f"{IN} a = Tanh (xd) b = Identity (a) y = Erf (b)")
    result = fixed(text, only_faster=True)
    assert not result.changed
    assert "FIX102" in {found.code for found in result.diagnostics}


def test_weights_stay_small_if_they_have_to() -> None:
    text = image(f"{WEIGHT} y = {CONV} (x, wd)")
    assert "DequantizeLinear" not in kinds(fixed(text))
    assert "DequantizeLinear" in kinds(fixed(text, larger=False))


def test_a_rule_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match="LNT999"):
        fixed(image("y = Erf (x)"), only=("LNT999",))


def test_it_can_be_taken_back() -> None:
    text = image(f"{IN} a = Tanh (xd) b = Identity (a) y = Erf (b)")
    assert_rolls_back(FixQuantization(only_faster=False), text)


def test_our_own_models_need_no_mending() -> None:
    text = """g (float[1, 8, 6, 6] x) => (float[1, 8, 6, 6] y)
        <float[8, 8, 3, 3] w, float[8] b, float[8, 8, 3, 3] v> {
          a = Conv <pads = [1, 1, 1, 1]> (x, w, b) r = Relu (a)
          c = Conv <pads = [1, 1, 1, 1]> (r, v) d = Add (c, r) y = Relu (d) }"""
    feeds = [{"x": noise(seed)} for seed in range(4)]
    made = Pipeline((QuantizeStatic(placement="all"),)).run(model(text), samples=feeds)
    assert (
        not Pipeline((FixQuantization(only_faster=False),)).run(made.model, samples=feeds).changed
    )


@settings(max_examples=25, deadline=None)
@given(
    zero=st.sampled_from([-128, -127, -60, 0, 3, 126, 127]),
    step=st.floats(0.004, 0.1),
    between=st.sampled_from(["Relu (c)", "Clip (c, low, high)", "Erf (c)", "LeakyRelu (c)"]),
    seed=st.integers(0, 99),
)
def test_values_stay_within_a_step_of_what_they_were(
    zero: int, step: float, between: str, seed: int
) -> None:
    text = image(
        f"{IN} {WEIGHT} e = {CONV} (xd, wd) k = Constant <value = float {{0.2}}> () c = Mul (e, k) "
        f"r = {between} aq = QuantizeLinear (r, as, az) ad = DequantizeLinear (aq, as, az) "
        "y = Erf (ad)"
    ).replace(
        "int8 sz",
        f"float as = {{{step}}}, int8 az = {{{zero}}}, float low = {{0}}, float high = {{6}}, int8 sz",
    )
    source = model(text)
    x = np.clip(noise(seed), -2.5, 2.5)
    before, after = values(source, x), values(fixed(text).model, x)
    weight = next(t for t in source.graph.initializer if t.name == "w")
    reach = (
        0.2 * 0.01 * np.abs(onnx.numpy_helper.to_array(weight).astype(float)).sum((1, 2, 3)).max()
    )
    # Half a step of each grid that was taken out; the slope of Erf is at most 1.13.
    bound = 1.13 * (step / 2 + reach * 0.02 / 2) + 1e-5
    low, high = (np.asarray([-128 - zero, 127 - zero]) * step).astype(np.float32)
    ends = values_of_erf(np.asarray([low, high]))
    cut_off = np.isclose(before, ends[0]) | np.isclose(before, ends[1])
    assert np.abs(before - after)[~cut_off].max(initial=0.0) <= bound
    if zero == -128:
        assert np.abs(before - after).max() <= bound


def values_of_erf(numbers: np.ndarray) -> list[float]:
    return [math.erf(float(number)) for number in numbers]


def test_bodies_are_mended_too() -> None:
    text = """
        g (float[1, 4] x, bool c) => (float[1, 4] y) <float s = {0.1}, uint8 z = {128}> {
          y = If (c) <
            then_branch = yes () => (float[1, 4] a) {
              q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) a = Tanh (d) },
            else_branch = no () => (float[1, 4] b) { b = Identity (x) }>
        }"""
    result = fixed(text)
    assert kinds(result) == ["Identity", "If", "Tanh"]


def test_old_opsets_have_limits_as_attributes() -> None:
    text = (
        '<ir_version: 5, opset_import: ["": 10]> g (float[1, 4] x) => (float[1, 4] y) '
        "<float s = {0.1}, uint8 z = {0}> { e = Erf (x) q = QuantizeLinear (e, s, z) "
        "d = DequantizeLinear (q, s, z) y = Tanh (d) }"
    )
    result = fixed(text)
    assert kinds(result) == ["Clip", "Erf", "Tanh"]
    x = noise()[:, 0, 0, :4]
    assert np.abs(values(model(text), x) - values(result.model, x)).max() <= 0.05


def test_a_constant_for_many_readers_stays_with_those_that_compute_with_it() -> None:
    text = image(
        f"{IN} {WEIGHT} a = {CONV} (xd, wd) aq = QuantizeLinear (a, s, z) "
        f"ad = DequantizeLinear (aq, s, z) b = Erf (ad) y = {CONV} (b, wd)"
    )
    result = fixed(text)
    assert kinds(result).count("DequantizeLinear") >= 2
    x = noise()
    before, after = values(model(text), x), values(result.model, x)
    assert np.abs(before - after).max() <= 0.1 * np.abs(before).max()


def test_a_constant_that_is_quantized_in_every_run_is_stored() -> None:
    text = image(
        f"{IN} wq = QuantizeLinear (f, fs, fz) wd = DequantizeLinear (wq, fs, fz) "
        f"a = {CONV} (xd, wd) {OUT}"
    ).replace(
        "int8 sz",
        "float[8, 8, 3, 3] f, float[8] fs = {0.01, 0.02, 0.03, 0.01, 0.01, 0.05, 0.01, 0.01}, "
        "int8[8] fz = {0, 0, 0, 0, 0, 0, 0, 0}, int8 sz",
    )
    text = text.replace("= QuantizeLinear (f", "= QuantizeLinear <axis = 0> (f").replace(
        "= DequantizeLinear (wq", "= DequantizeLinear <axis = 0> (wq"
    )
    result = fixed(text, only=("LNT107",))
    assert "float" not in {
        str(t.dtype).lower()
        for v in result.model.initializers()
        if (t := v.const_value) is not None and len(t.shape) == 4
    }
    x = noise()
    np.testing.assert_array_equal(values(model(text), x), values(result.model, x))


def test_an_opset_is_not_raised_for_nothing() -> None:
    text = (
        '<ir_version: 6, opset_import: ["": 12]> g (float[1, 4, 3, 3] x) => (float[1, 4, 3, 3] y) '
        "<float[4] g, float[4] b, float[4] m, float[4] v = {1, 1, 2, 3}, float s = {0.1}, uint8 z = {128}> { "
        "n = BatchNormalization (x, g, b, m, v) q = QuantizeLinear (n, s, z) "
        "y = DequantizeLinear (q, s, z) }"
    )
    result = fixed(text)
    assert not result.changed
    assert result.model.opset == 12


GEMM = """
    g (float[{rows}, 16] x) => (y)
    <float s = {{0.02}}, uint8 z = {{128}}, int8[16, 8] w, float t = {{0.01}}, int8 wz = {{0}}, float[{bias}] b> {{
      q = QuantizeLinear (x, s, z)
      d = DequantizeLinear (q, s, z)
      e = DequantizeLinear (w, t, wz)
      y = Gemm (d, e, b)
    }}"""


@pytest.mark.parametrize(("rows", "bias"), [(4, "4, 8"), (4, "4, 1"), (8, "8, 1"), (4, "1, 8")])
def test_a_bias_for_each_row_stays_float(rows: int, bias: str) -> None:
    text = GEMM.format(rows=rows, bias=bias)
    result = fixed(text, only=("LNT108",))
    assert ("LNT108" in str(result.diagnostics)) == (bias == "1, 8")
    x = np.random.default_rng(0).normal(size=(rows, 16)).astype(np.float32)
    with Session.open(result.model) as session:
        np.testing.assert_allclose(session.run({"x": x})["y"], values(model(text), x), atol=0.05)


def test_what_the_provider_does_not_run_any_more_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[int] = []

    def spoil(graph: ir.Graph, edit: Edit) -> None:
        kept.append(1)
        wrong = edit.initializer(np.zeros((7, 9), np.float32), name="wrong", graph=graph)
        edit.set_input(list(graph)[-1], 2, wrong)

    def broken(view: View) -> Iterator[Finding]:
        if not kept:
            graph = view.model.graph
            yield finding(list(graph)[-1], "spoilt", partial(spoil, graph))

    rule = rules_by_code()["LNT108"]
    rules = {**rules_by_code(), "LNT108": replace(rule, find=broken)}
    monkeypatch.setattr(repair, "rules_by_code", lambda: rules)
    text = GEMM.format(rows=4, bias="8")
    result = fixed(text, only=("LNT108",))
    assert kept
    assert "does not run" in str(result.diagnostics)
    assert result.model.to_proto() == Pipeline(()).run(model(text)).model.to_proto()


def test_stored_tensors_keep_the_type_that_they_had_in_float() -> None:
    steps = [int(np.float16(step).view(np.uint16)) for step in (0.02, 0.01)]
    text = f"""
        g (float16[4, 16] x) => (y)
        <float16 s = {{{steps[0]}}}, uint8 z = {{128}}, int8[16, 8] w, float16 t = {{{steps[1]}}}> {{
          q = QuantizeLinear (x, s, z)
          d = DequantizeLinear (q, s, z)
          e = DequantizeLinear (w, t)
          y = MatMul (d, e)
        }}"""
    result = fixed(text, only=("LNT302",))
    x = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float16)
    assert kinds(result) == ["DequantizeLinear", "MatMul", "QuantizeLinear"]
    np.testing.assert_allclose(values(result.model, x), values(model(text), x), rtol=1e-2)
