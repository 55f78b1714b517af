"""fuse-activations: formulas that are one operator, and those that only look like it."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp_passes.simplify.fuse_activations import FuseActivations
from tests.helpers.check import assert_holds, assert_unchanged
from tests.helpers.numbers import run
from tests.helpers.text import model

ACTIVATE = FuseActivations()
NUMBERS = (
    "float three = {3}, float six = {6}, float zero = {0}, float sixth = {0.16666667}, float one = {1}, "
    "float half = {0.5}, float root = {1.4142135}, float unroot = {0.70710677}, float cube = {3}, "
    "float small = {0.044715}, float pi = {0.7978846}, float two = {2}"
)
SPECIAL = np.array(
    [0, -0.0, 1, -1, 3, -3, 2.5, 40, -40, 1e-42, np.inf, -np.inf, np.nan], np.float32
)


def graph(body: str, opset: int = 20, numbers: str = NUMBERS, kind: str = "float") -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
        g ({kind}[N] x) => ({kind}[N] y) <{numbers}> {{ {body} }}"""


def operators(body: str, opset: int = 20, numbers: str = NUMBERS) -> str:
    """Runs the pass on a body that is put together; returns the operators left."""
    text = graph(body, opset, numbers)
    feeds = [{"x": SPECIAL}, {"x": np.linspace(-8, 8, 97, dtype=np.float32)}]
    runtimes = ["onnxruntime"]
    with np.errstate(all="ignore"):
        got = assert_holds(ACTIVATE, text, feeds=feeds, runtimes=runtimes, rtol=2e-6, atol=2e-6)
    return " ".join(node.op_type for node in got.graph.node)


SIGMOID = "a = Add (x, three) c = Clip (a, zero, six)"


@pytest.mark.parametrize(
    ("body", "opset", "left"),
    [
        (f"{SIGMOID} y = Div (c, six)", 20, "HardSigmoid"),
        ("a = Add (three, x) c = Clip (a, zero, six) y = Mul (sixth, c)", 11, "HardSigmoid"),
        (
            "a = Add (x, three) c = Clip <min = 0.0, max = 6.0> (a) y = Div (c, six)",
            9,
            "HardSigmoid",
        ),
        (f"{SIGMOID} m = Mul (x, c) y = Div (m, six)", 11, "HardSigmoid Mul"),
        (f"{SIGMOID} m = Mul (c, x) y = Div (m, six)", 20, "HardSwish"),
        (f"{SIGMOID} d = Div (c, six) y = Mul (x, d)", 20, "HardSwish"),
        ("h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (h, x)", 14, "HardSwish"),
        ("s = Softplus (x) t = Tanh (s) y = Mul (x, t)", 18, "Mish"),
        ("s = Softplus (x) t = Tanh (s) y = Mul (t, x)", 18, "Mish"),
    ],
)
def test_puts_gates_together(body: str, opset: int, left: str) -> None:
    assert operators(body, opset) == left


ERF = "d = Div (x, root) e = Erf (d) g1 = Add (e, one)"
TANH = "q = Mul (x, x) k = Mul (x, q) s = Mul (small, k) t = Add (x, s) u = Mul (t, pi) e = Tanh (u) g1 = Add (one, e)"


@pytest.mark.parametrize(
    "body",
    [
        f"{ERF} m = Mul (x, g1) y = Mul (m, half)",
        f"{ERF} m = Mul (g1, x) y = Mul (half, m)",
        f"{ERF} h = Mul (x, half) y = Mul (h, g1)",
        f"{ERF} h = Mul (half, g1) y = Mul (x, h)",
        "d = Mul (unroot, x) e = Erf (d) g1 = Add (one, e) m = Mul (x, g1) y = Mul (m, half)",
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)",
        f"{TANH} h = Mul (x, half) y = Mul (g1, h)",
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace(
            "q = Mul (x, x) k = Mul (x, q)", "k = Pow (x, cube)"
        ),
    ],
)
def test_puts_gelu_together(body: str) -> None:
    text = graph(body)
    feeds = [{"x": np.linspace(-8, 8, 97, dtype=np.float32)}]
    got = assert_holds(ACTIVATE, text, feeds=feeds, rtol=2e-6, atol=2e-6)
    assert [node.op_type for node in got.graph.node] == ["Gelu"]
    with np.errstate(all="ignore"):
        before = run(model(text), {"x": SPECIAL}, "onnxruntime")[0]
    after = run(got, {"x": SPECIAL}, "onnxruntime")[0]
    np.testing.assert_allclose(after, before, rtol=2e-6, atol=2e-6)
    if "Erf" in body:
        assert_unchanged(ACTIVATE, graph(body, 19))
        return
    # Without the operator the form with Sigmoid is shorter; the operator is found in that as well.
    with np.errstate(all="ignore"):
        short = assert_holds(
            ACTIVATE, graph(body, 19), feeds=[*feeds, {"x": SPECIAL}], rtol=2e-6, atol=2e-6
        )
    assert " ".join(node.op_type for node in short.graph.node) == "Mul Mul Add Mul Sigmoid Mul"
    short.opset_import[0].version = 20
    again = assert_holds(ACTIVATE, short, feeds=feeds, rtol=2e-6, atol=2e-6)
    assert [node.op_type for node in again.graph.node] == ["Gelu"]


@pytest.mark.parametrize(
    "body",
    [
        "a = Add (x, three) c = Clip (a, zero, three) y = Div (c, six)",
        "a = Add (x, two) c = Clip (a, zero, six) y = Div (c, six)",
        f"{SIGMOID} y = Div (c, three)",
        f"{SIGMOID} y = Div (six, c)",
        f"{SIGMOID} e = Div (c, six) y = Add (e, c)",  # the clip has another reader
        "a = Sub (x, three) c = Clip (a, zero, six) y = Div (c, six)",
        "c = Clip (x, zero, six) y = Div (c, six)",
        "a = Add (x, three) c = Clip (a, x1, six) y = Div (c, six) x1 = Identity (zero)".replace("x1 = Identity (zero)", "").replace("x1", "three"),
        "m = Mul (x, x) y = Div (m, six)",
        "h = HardSigmoid (x) y = Mul (h, x)",
        "h = HardSigmoid <alpha = 0.16666667, beta = 0.25> (x) y = Mul (h, x)",
        "z = Exp (x) h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (h, z)",
        "s = Softplus (x) t = Tanh (s) z = Exp (x) y = Mul (z, t)",
        "s = Softsign (x) t = Tanh (s) y = Mul (x, t)",
        "d = Div (x, two) e = Erf (d) f = Add (e, one) m = Mul (x, f) y = Mul (m, half)",
        "d = Div (x, root) e = Erf (d) f = Add (e, two) m = Mul (x, f) y = Mul (m, half)",
        "d = Div (x, root) e = Erf (d) f = Add (e, one) m = Mul (x, f) y = Mul (m, two)",
        "z = Exp (x) d = Div (z, root) e = Erf (d) f = Add (e, one) m = Mul (x, f) y = Mul (m, half)",
        f"{ERF} m = Mul (x, g1) h = Mul (m, half) y = Add (h, m)",
        f"{ERF} m = Mul (x, g1) h = Mul (m, half) y = Add (h, g1)",
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace("q = Mul (x, x)", "q = Exp (x)"),
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace("k = Mul (x, q)", "k = Exp (q)"),
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace("(t, pi)", "(t, two)"),
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace("small", "half"),
        f"{TANH} m = Mul (x, g1) y = Mul (m, half)".replace("q = Mul (x, x) k = Mul (x, q)", "k = Pow (x, two)"),
    ],
)  # fmt: skip
def test_leaves_what_only_looks_like_it(body: str) -> None:
    assert_unchanged(ACTIVATE, graph(body))


def test_leaves_newer_operators_to_newer_opsets() -> None:
    assert_unchanged(ACTIVATE, graph("s = Softplus (x) t = Tanh (s) y = Mul (x, t)", 17))
    body = "h = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul (h, x)"
    assert_unchanged(ACTIVATE, graph(body, 13))


def test_slopes_that_the_caller_decides_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20, "f" : 1]>
        g (float[N] x) => (float[N] y) { y = f.two <a = 0.16666667> (x) }
        <domain: "f", opset_import: ["" : 20]>
        two <a> (x) => (y) { h = HardSigmoid <alpha: float = @a, beta = 0.5> (x) y = Mul (h, x) }"""
    assert_unchanged(ACTIVATE, text)


def test_a_graph_output_in_the_middle_stays() -> None:
    text = graph(f"{SIGMOID} y = Div (c, six)").replace("(float[N] y)", "(float[N] y, float[N] c)")
    assert_unchanged(ACTIVATE, text)


def test_constants_that_a_caller_may_change_stay() -> None:
    text = graph(f"{SIGMOID} y = Div (c, seven)").replace(
        "float[N] x)", "float[N] x, float seven = {6})"
    )
    assert_unchanged(ACTIVATE, text)


def test_constants_that_widen_stay() -> None:
    text = graph(
        "a = Add (x, w) c = Clip (a, zero, six) y = Div (c, six)",
        numbers=NUMBERS + ", float[1, 1] w = {3}",
    )
    assert_unchanged(ACTIVATE, text.replace("(float[N] y)", "(float[P, N] y)"))
