"""fuse-activations: what is written with Max, Min, Where, Exp and Abs; and random formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp_passes.simplify.fuse_activations import FuseActivations
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged
from tests.helpers.numbers import run
from tests.helpers.text import model
from tests.passes.test_fuse_activations import ACTIVATE, SPECIAL, graph

MORE = (
    "float tenth = {0.1}, float two = {2}, float zero = {0}, float six = {6}, float one = {1}, "
    "float minus = {-1}, float[1] one1 = {1}, float[1] tenth1 = {0.1}, float[3] slopes = {0.1, 0.1, 0.1}, "
    "float scale = {1.0507009}, float fifth = {0.2}, float half = {0.5}, float low = {-inf}, float high = {inf}"
)


def put_together(body: str, opset: int = 20) -> str:
    """Runs the pass with special values among the numbers; returns the operators that are left."""
    text = graph(body, opset, MORE).replace("[N]", "[N, 3]")
    special = np.resize(SPECIAL, (5, 3))
    with np.errstate(all="ignore"):
        got = assert_holds(
            ACTIVATE,
            text,
            feeds=[{"x": special}, {"x": np.linspace(-8, 8, 99, dtype=np.float32).reshape(33, 3)}],
            runtimes=["onnxruntime"],
            rtol=2e-6,
            atol=2e-6,
        )
    return " ".join(node.op_type for node in got.graph.node)


RELUS = "p = Relu (x) n = Neg (x) q = Relu (n)"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("m = Mul (x, tenth) y = Max (x, m)", "LeakyRelu"),
        ("m = Mul (tenth, x) y = Max (m, x)", "LeakyRelu"),
        ("m = Mul (x, two) y = Min (x, m)", "LeakyRelu"),
        ("c = Greater (x, zero) m = Mul (x, tenth) y = Where (c, x, m)", "LeakyRelu"),
        ("c = GreaterOrEqual (x, zero) m = Mul (tenth, x) y = Where (c, x, m)", "LeakyRelu"),
        ("c = Less (x, zero) m = Mul (x, two) y = Where (c, m, x)", "LeakyRelu"),
        (f"{RELUS} r = Mul (q, tenth) y = Sub (p, r)", "LeakyRelu"),
        (f"{RELUS} r = Mul (tenth1, q) y = Sub (p, r)", "LeakyRelu"),
        (f"{RELUS} r = Mul (q, minus) y = Add (r, p)", "LeakyRelu"),
        ("y = PRelu (x, tenth)", "LeakyRelu"),
        ("y = PRelu (x, slopes)", "LeakyRelu"),
        ("c = Greater (x, one) y = Where (c, x, zero)", "ThresholdedRelu"),
        ("y = Max (x, zero)", "Relu"),
        ("y = Max (zero, x)", "Relu"),
        ("m = Max (x, low) y = Exp (m)", "Exp"),
        ("m = Min (x, high) y = Exp (m)", "Exp"),
        ("a = Max (x, zero) y = Min (a, six)", "Clip"),
        ("a = Min (six, x) y = Max (minus, a)", "Clip"),
        ("a = Relu (x) y = Min (a, six)", "Clip"),
        ("n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (one, a)", "Sigmoid"),
        ("n = Mul (x, minus) e = Exp (n) a = Add (one, e) y = Reciprocal (a)", "Sigmoid"),
        ("a = Abs (x) b = Add (one, a) y = Div (x, b)", "Softsign"),
        ("e = Elu <alpha = 1.6732632> (x) y = Mul (scale, e)", "Selu"),
        ("m = Mul (x, fifth) a = Add (m, half) y = Clip (a, zero, one)", "HardSigmoid"),
        ("m = Mul (x, fifth) a = Add (half, m) b = Max (a, zero) y = Min (b, one)", "HardSigmoid"),
    ],
)  # fmt: skip
def test_puts_rectifiers_together(body: str, left: str) -> None:
    assert put_together(body) == left


@pytest.mark.parametrize(
    "body",
    [
        "m = Mul (x, two) y = Max (x, m)",
        "m = Mul (x, tenth) y = Min (x, m)",
        "m = Mul (x, zero) y = Max (x, m)",
        "m = Mul (x, minus) y = Max (x, m)",
        "z = Exp (x) m = Mul (z, tenth) y = Max (x, m)",
        "m = Mul (x, tenth) y = Max (x, m, zero)",
        "c = Greater (x, one) m = Mul (x, tenth) y = Where (c, x, m)",
        "c = Greater (x, zero) m = Mul (x, tenth) y = Where (c, m, x)",
        "z = Exp (x) c = Greater (z, zero) m = Mul (x, tenth) y = Where (c, x, m)",
        "c = Greater (x, zero) m = Mul (x, zero) y = Where (c, x, m)",
        f"{RELUS} r = Mul (q, tenth) y = Sub (r, p)",
        "z = Exp (x) p = Relu (x) n = Neg (z) q = Relu (n) r = Mul (q, tenth) y = Sub (p, r)",
        "c = Greater (x, one) y = Where (c, x, one)",
        "c = Greater (x, one) y = Where (c, zero, x)",
        "c = GreaterOrEqual (x, one) y = Where (c, x, zero)",
        "c = Greater (x, one) f = Cast <to = 1> (c) y = Mul (x, f)",  # -inf times 0 is NaN
        "y = Min (x, zero)",
        "y = Max (x, one)",
        "a = Max (x, six) y = Min (a, zero)",
        "a = Max (x, zero) b = Min (a, six) y = Add (a, b)",
        "a = Relu (x) y = Max (a, six)",
        "n = Neg (x) e = Exp (n) a = Add (e, two) y = Div (one, a)",
        "n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (two, a)",
        "e = Exp (x) a = Add (e, one) y = Div (one, a)",
        "n = Neg (x) e = Exp (n) a = Add (e, one) b = Div (one, a) y = Add (a, b)",
        "a = Abs (x) b = Add (two, a) y = Div (x, b)",
        "z = Exp (x) a = Abs (z) b = Add (one, a) y = Div (x, b)",
        "e = Elu (x) y = Mul (scale, e)",
        "e = Elu <alpha = 1.6732632> (x) y = Mul (two, e)",
        "e = Elu <alpha = 1.674> (x) y = Mul (scale, e)",
        "m = Mul (x, fifth) a = Add (m, half) y = Clip (a, zero, six)",
        "s = Sigmoid (x) y = Mul (x, s)",  # the runtime runs these two as one, and Swish slower
    ],
)
def test_leaves_what_only_looks_like_it(body: str) -> None:
    # A Relu of `max` with zero is found in some of these; nothing else may be.
    text = graph(body, 24, MORE).replace("[N]", "[N, 3]")
    if "zero" in body and "Max" in body and "(a, zero)" not in body:
        got = assert_holds(ACTIVATE, text, runtimes=["onnxruntime"])
        found = {node.op_type for node in got.graph.node}
        assert not found & {"LeakyRelu", "Clip", "ThresholdedRelu"}
    else:
        assert_unchanged(ACTIVATE, text)


def test_the_graph_itself() -> None:
    outcome = assert_rewrites(
        FuseActivations(),
        before=graph("m = Mul (x, tenth) y = Max (x, m)", numbers="float tenth = {0.1}"),
        after=graph("y = LeakyRelu <alpha = 0.1> (x)", numbers="float tenth = {0.1}"),
    )
    assert outcome.stats["leaky relus put together"] == 1


@pytest.mark.parametrize(
    "body",
    [
        "e = Exp (x) a = Add (e, one) y = Log (a)",
        f"{RELUS} r = Mul (q, w) y = Sub (p, r)",
    ],
)
def test_says_where_the_parts_are_faster(body: str) -> None:
    text = graph(body, numbers=MORE + ", float[3] w").replace("[N]", "[N, 3]")
    assert_refuses(ACTIVATE, text, code="FAC101")


@pytest.mark.parametrize("kind", ["double", "float16"])
@pytest.mark.parametrize(
    "body",
    [
        "m = Mul (x, tenth) y = Max (x, m)",
        "c = Greater (x, zero) y = Where (c, x, zero)",
        "a = Max (x, zero) y = Min (a, six)",
        "a = Add (x, three) c = Clip (a, zero, six) y = Div (c, six)",
        "n = Neg (x) e = Exp (n) a = Add (e, one) y = Div (one, a)",
        "a = Abs (x) b = Add (one, a) y = Div (x, b)",
        "d = Div (x, root) e = Erf (d) g = Add (e, one) m = Mul (x, g) y = Mul (m, half)",
    ],
)
def test_other_types_stay(body: str, kind: str) -> None:
    proto = model(graph(body, numbers=MORE + ", float three = {3}, float root = {1.4142135}"))
    dtype = np.dtype(kind)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    assert_unchanged(ACTIVATE, proto)


def test_a_constant_that_would_widen_keeps_the_formula() -> None:
    scalar = graph("m = Mul (x, tenth1) y = Max (x, m)", numbers=MORE)
    assert_unchanged(
        ACTIVATE, scalar.replace("float[N] x", "float x").replace("float[N] y", "float[1] y")
    )
    unknown = scalar.replace("float[N] x", "float[] x").replace("float[N] y", "float[] y")
    assert_unchanged(ACTIVATE, unknown)
    assert len(assert_holds(ACTIVATE, scalar).graph.node) == 1


def test_old_clips_have_attributes() -> None:
    text = graph("a = Max (x, one) y = Min (a, six)", 10, MORE)
    assert_unchanged(ACTIVATE, text)


def test_inside_a_branch_with_a_captured_value() -> None:
    text = """g (float[N] x, bool c) => (float[N] y) <float tenth = {0.1}> {
        y = If (c) <then_branch = t () => (float[N] a) { m = Mul (x, tenth) a = Max (x, m) },
                    else_branch = e () => (float[N] b) { b = Exp (x) }> }"""
    got = assert_holds(ACTIVATE, text, runtimes=["onnxruntime"])
    branch = next(attr.g for attr in got.graph.node[0].attribute if attr.name == "then_branch")
    assert [node.op_type for node in branch.node] == ["LeakyRelu"]


def test_a_part_that_a_branch_reads_stays() -> None:
    text = """g (float[N] x, bool c) => (float[N] y, float[N] z) <float zero = {0}, float six = {6}, float two = {2}> {
        a = Max (x, two) y = Min (a, six)
        z = If (c) <then_branch = t () => (float[N] u) { u = Exp (a) }, else_branch = e () => (float[N] v) { v = Exp (x) }> }"""
    assert_unchanged(ACTIVATE, text)


_UNARY = ("Relu", "Neg", "Abs", "Exp", "Tanh", "Erf", "Sigmoid", "HardSigmoid", "Reciprocal")
_BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min")
_NUMBERS = (0.0, 1.0, -1.0, 0.5, 3.0, 6.0, 0.1, 2.0, 1.4142135, 0.044715, 0.7978846, 1.001)


@st.composite
def formulas(draw: Any) -> str:
    """Random formulas of one value, made of what activations are made of."""
    names, lines = ["x"], []
    for index in range(draw(st.integers(2, 9))):
        name = f"v{index}"
        recent = st.sampled_from(names[-3:])
        kind = draw(st.sampled_from(["unary", "number", "number", "binary", "clip", "where"]))
        if kind == "unary":
            lines.append(f"{name} = {draw(st.sampled_from(_UNARY))} ({draw(recent)})")
        elif kind == "clip":
            lines.append(f"{name} = Clip ({draw(recent)}, n0, n{draw(st.sampled_from([1, 5]))})")
        elif kind == "where":
            lines.append(
                f"c{index} = Greater ({draw(recent)}, n{draw(st.integers(0, 1))}) "
                f"{name} = Where (c{index}, {draw(recent)}, {draw(st.sampled_from([*names[-3:], 'n0']))})"
            )
        else:
            second = (
                f"n{draw(st.integers(0, len(_NUMBERS) - 1))}"
                if kind == "number"
                else draw(st.sampled_from(names))
            )
            pair = draw(st.permutations([draw(recent), second]))
            lines.append(f"{name} = {draw(st.sampled_from(_BINARY))} ({pair[0]}, {pair[1]})")
        names.append(name)
    numbers = ", ".join(f"float n{i} = {{{value}}}" for i, value in enumerate(_NUMBERS))
    body = " ".join(lines)
    return graph(f"{body} y = Add ({names[-1]}, x)", draw(st.sampled_from([13, 20])), numbers)


@given(formulas())
def test_random_formulas_keep_their_values(text: str) -> None:
    feeds = {"x": np.linspace(-4, 4, 41, dtype=np.float32)}
    before = run(model(text), feeds, "onnxruntime")[0]
    with np.errstate(all="ignore"):
        # Numbers beyond these are what a chain of exponentials makes, and differ in the last place.
        rtol = 1e-4 if np.isfinite(before).all() and np.abs(before).max() < 1e3 else 1e30
    if rtol < 1:
        assert_holds(ACTIVATE, text, feeds=[feeds], runtimes=["onnxruntime"], rtol=rtol, atol=1e-4)
