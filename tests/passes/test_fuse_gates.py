"""fuse-gates: residuals of gates per channel, and those that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.simplify.fuse_gates import FuseGates
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

GATES = FuseGates()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
BODY = """p = GlobalAveragePool (x) r = Conv (p, w, b) h = HardSigmoid <alpha = 0.2, beta = 0.5> (r)
    m = Mul (x, h) y = Add (x, m)"""
WEIGHTS = "float[4, 4, 1, 1] w, float[4] b"


def gate(
    body: str = BODY, weights: str = WEIGHTS, opset: int = 13, kind: str = "float", y: str = ""
) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({kind}[N, 4, 5, 6] x) => ({kind}[N, 4, 5, 6] y{y}) <{weights}> {{ {body} }}"""


def operators(text: str) -> str:
    got = assert_holds(GATES, text, **TIGHT)
    return " ".join(node.op_type for node in got.graph.node)


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        BODY.replace("(x, h)", "(h, x)").replace("(x, m)", "(m, x)"),
        BODY.replace("(p, w, b)", "(p, w)"),
    ],
)
def test_a_gate_becomes_a_clip(body: str) -> None:
    assert operators(gate(body)) == "GlobalAveragePool Conv Clip Mul"


def test_the_graph_itself() -> None:
    pool = "p = ReduceMean <axes = [2, 3]> (x) s = Sigmoid (p)"
    assert_rewrites(
        GATES,
        before=gate(f"{pool} m = Mul (x, s) y = Add (x, m)", ""),
        after=gate(f"{pool} r = Add (s, one) y = Mul (x, r)", "float one = {1}"),
        **TIGHT,
    )


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (BODY.replace("HardSigmoid <alpha = 0.2, beta = 0.5>", "Sigmoid"), "GlobalAveragePool Conv Sigmoid Add Mul"),
        (BODY.replace("(p, w, b)", "(p, w, c)").replace("p = ", "c = ReduceMean <axes = [0, 2, 3], keepdims = 0> (x) p = "), "ReduceMean GlobalAveragePool Conv HardSigmoid Add Mul"),
        ("p = GlobalAveragePool (x) h = HardSigmoid (p) m = Mul (x, h) y = Add (m, x)", "GlobalAveragePool HardSigmoid Add Mul"),
    ],
)  # fmt: skip
def test_other_gates_get_the_one(body: str, left: str) -> None:
    assert operators(gate(body)) == left


@pytest.mark.parametrize(
    "text",
    [
        gate("p = Sigmoid (x) m = Mul (x, p) y = Add (x, m)"),  # as large as x
        gate(BODY.replace("(x, m)", "(p, m)")),
        gate(BODY.replace("y = Add (x, m)", "z = Add (x, m) y = Add (z, m)")),
        gate(BODY.replace("y = Add (x, m)", "y = Sub (x, m)")),
        gate(BODY, y=", float[N, 4, 5, 6] m"),
        gate("p = GlobalAveragePool (x) q = Exp (p) m = Mul (p, q) y = Add (x, m)"),
        gate("m = Mul (x, c) y = Add (x, m)", "float[4, 1, 1] c"),  # a constant: another pass
        gate().replace("float[N, 4, 5, 6] x", "float[] x"),
        gate("p = Exp (e) m = Mul (x, p) y = Add (x, m)", "").replace(
            "5, 6] x)", "5, 6] x, float[2, 1, 4, 1, 1] e)").replace("[N, 4, 5, 6] y", "[2, N, 4, 5, 6] y"),
    ],
)  # fmt: skip
def test_leaves_what_is_no_gate(text: str) -> None:
    assert_unchanged(GATES, text)


def test_double_and_half_stay() -> None:
    body = "p = GlobalAveragePool (x) m = Mul (x, p) y = Add (x, m)"
    assert_unchanged(GATES, gate(body, "", kind="double"))
    assert_unchanged(GATES, gate(body, "", kind="float16"))


def test_limits_are_attributes_before_opset_11() -> None:
    text = gate(opset=10)
    assert operators(text) == "GlobalAveragePool Conv HardSigmoid Add Mul"


def test_says_why_a_slope_stays() -> None:
    text = gate(
        """p = GlobalAveragePool (x) r = Conv (p, w, b) h = HardSigmoid <alpha = 1e30> (r)
        y = Add (h, one)""",
        WEIGHTS + ", float one = {1}",
    ).replace("[N, 4, 5, 6] y", "[N, 4, 1, 1] y")
    assert_refuses(GATES, text, code="FGA101")


def test_a_conv_that_others_read_keeps_its_weight() -> None:
    text = gate(y=", float[N, 4, 1, 1] r")
    assert operators(text) == "GlobalAveragePool Conv HardSigmoid Add Mul"


@given(
    slope=st.floats(-2, 2, width=32),
    offset=st.floats(-1, 1, width=32),
    seed=st.integers(0, 9),
    opset=st.sampled_from([11, 13, 21]),
)
def test_any_slope_and_offset(slope: float, offset: float, seed: int, opset: int) -> None:
    body = BODY.replace("alpha = 0.2, beta = 0.5", f"alpha = {slope:f}, beta = {offset:f}")
    x = np.random.default_rng(seed).normal(size=(2, 4, 5, 6)).astype(np.float32) * 3
    assert_holds(
        Pipeline((GATES,)), gate(body, opset=opset), feeds=[{"x": x}], rtol=1e-4, atol=1e-4
    )
