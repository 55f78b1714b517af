"""The fusion report: every Q and DQ that the provider leaves has the reason that it has."""

from __future__ import annotations

import pytest

from onnxcomp.quant.fusion_report import Reason, fusion_report
from tests.helpers.text import model

INITS = (
    "int8[8, 8, 3, 3] w, float ws = {0.01}, int8 wz = {0}, float s = {0.02}, uint8 z = {128}, "
    "uint8 zero = {0}, int8 sz = {3}, float t = {0.5}"
)
IN = "xq = QuantizeLinear (x, s, z) xd = DequantizeLinear (xq, s, z)"
WEIGHT = "wd = DequantizeLinear (w, ws, wz)"
CONV = "a = Conv <pads = [1, 1, 1, 1]> (xd, wd)"
OUT = "yq = QuantizeLinear (a, s, z) y = DequantizeLinear (yq, s, z)"


def image(body: str) -> str:
    return f"g (float[1, 8, 6, 6] x) => (float[A, B, C, D] y) <{INITS}> {{ {body} }}"


def signed(body: str) -> str:
    return body.replace("s, z)", "s, sz)")


RESIDUAL = f"{IN} {WEIGHT} b = Conv <pads = [1, 1, 1, 1]> (xd, wd) bq = QuantizeLinear (b, s, z) "
RESIDUAL += f"bd = DequantizeLinear (bq, s, z) a = Add (bd, xd) {OUT}"

CASES = {
    "borders": (f"{IN} {WEIGHT} {CONV} {OUT}", {Reason.INPUT, Reason.OUTPUT}),
    "float operator": (f"{IN} a = Tanh (xd) {OUT}", {Reason.FLOAT_OPERATOR}),
    "no Q": (f"{IN} {WEIGHT} {CONV} y = Erf (a)", {Reason.NO_OUTPUT_Q}),
    "fan-out": (
        f"{IN} {WEIGHT} {CONV} b = Tanh (a) aq = QuantizeLinear (a, s, z) "
        "c = DequantizeLinear (aq, s, z) y = Add (b, c)",
        {Reason.FAN_OUT},
    ),
    "fused": (
        f"{IN} {WEIGHT} c = Conv <pads = [1, 1, 1, 1]> (xd, wd) a = LeakyRelu (c) {OUT}",
        {Reason.FUSED_FLOAT},
    ),
    "kept Relu": (
        f"{IN} {WEIGHT} c = Conv <pads = [1, 1, 1, 1]> (xd, wd) a = Relu (c) {OUT}",
        {Reason.FUSED_FLOAT},
    ),
    "type": (signed(RESIDUAL), {Reason.TYPE}),
    "requantized": (
        f"{IN} {WEIGHT} {CONV} aq = QuantizeLinear (a, s, z) ad = DequantizeLinear (aq, s, z) "
        "b = Relu (ad) yq = QuantizeLinear (b, t, zero) y = DequantizeLinear (yq, t, zero)",
        {Reason.REQUANTIZE},
    ),
    "parameters": (
        f"{IN} a = MaxPool <kernel_shape = [2, 2]> (xd) yq = QuantizeLinear (a, t, z) "
        "y = DequantizeLinear (yq, t, z)",
        {Reason.PARAMETERS},
    ),
    "constant": (f"{WEIGHT} y = Conv <pads = [1, 1, 1, 1]> (x, wd)", {Reason.FLOAT_INPUT}),
}


@pytest.mark.parametrize(("body", "wanted"), CASES.values(), ids=CASES.keys())
def test_the_reason_is_found(body: str, wanted: set[Reason]) -> None:
    report = fusion_report(model(image(body)))
    assert wanted <= {found.reason for found in report.leftovers}, str(report)
    assert not report.unexplained


def test_what_is_absorbed_is_not_listed() -> None:
    report = fusion_report(model(image(RESIDUAL)))
    assert len(report.leftovers) == 2
    assert dict(report.kernels) == {"QLinearConv": 1, "QLinearAdd": 1}


def test_a_float_model_has_nothing_to_report() -> None:
    report = fusion_report(model("g (float[3] x) => (float[3] y) { y = Relu (x) }"))
    assert not report.leftovers
    assert str(report).startswith("0 Q/DQ")


def test_bodies_are_looked_into() -> None:
    text = """
        g (float[1, 4] x, bool c) => (float[1, 4] y) <float s = {0.1}, uint8 z = {0}> {
          y = If (c) <
            then_branch = yes () => (float[1, 4] a) {
              q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) a = Tanh (d) },
            else_branch = no () => (float[1, 4] b) { b = Identity (x) }>
        }"""
    report = fusion_report(model(text))
    assert {found.operator for found in report.leftovers} == {"QuantizeLinear", "DequantizeLinear"}
    assert not report.unexplained
