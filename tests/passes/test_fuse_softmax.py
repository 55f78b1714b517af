"""fuse-softmax: softmaxes written apart, and what only looks like one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_softmax import FuseSoftmax
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

SOFTMAX = FuseSoftmax()
BODY = "m = ReduceMax (x, last) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last) y = Div (e, s)"
LOG = "m = ReduceMax (x, last) d = Sub (x, m) e = Exp (d) s = ReduceSum (e, last) l = Log (s) y = Sub (d, l)"
NUMBERS = "int64[1] last = {-1}, int64[1] two = {2}, int64[1] one = {1}, int64[2] both = {1, 2}, int64[3] back = {-1, 4, 1}, int64[3] zero = {0, 4, 1}"
VALUES = np.array(
    [[[1, 2, 3, -100, 5], [0, 0, -0.0, 1e-42, 3e38], [np.inf, 1, 2, 3, 4], [-np.inf] * 5]], "f"
)


def graph(body: str = BODY, opset: int = 18, kind: str = "float", y: str = "") -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
        g ({kind}[N, 4, 5] x) => ({kind}[N, 4, 5] y{y}) <{NUMBERS}> {{ {body} }}"""


def old(body: str, axes: str = "2") -> str:
    """Writes axes as attributes, as before opset 13."""
    for operator in ("ReduceMax", "ReduceSum"):
        for value in "xe":
            body = body.replace(
                f"{operator} ({value}, last)", f"{operator} <axes = [{axes}]> ({value})"
            )
    return body


@pytest.mark.parametrize(
    ("text", "operator"),
    [
        (graph(), "Softmax"),
        (graph(BODY.replace("ReduceSum (e, last)", "ReduceSum (e, two)")), "Softmax"),
        (graph(BODY.replace("y = Div (e, s)", "r = Reciprocal (s) y = Mul (r, e)")), "Softmax"),
        (graph(old(BODY), 11), "Softmax"),
        (graph(old(BODY, "-1"), 12), "Softmax"),
        (graph(BODY.replace("s = ReduceSum (e, last)", "t = ReduceSum <keepdims = 0> (e, last) s = Unsqueeze (t, last)")), "Softmax"),
        (graph(BODY.replace("m = ReduceMax (x, last)", "t = ReduceMax <keepdims = 0> (x, last) m = Reshape (t, back)")), "Softmax"),
        (graph(kind="double"), "Softmax"),
        (graph(LOG), "LogSoftmax"),
        (graph(old(LOG), 11), "LogSoftmax"),
    ],
)  # fmt: skip
def test_puts_softmaxes_together(text: str, operator: str) -> None:
    kind = np.float64 if "double" in text else np.float32
    feeds = [{"x": VALUES.astype(kind)}, {"x": np.zeros((0, 4, 5), kind)}]
    with np.errstate(all="ignore"):
        # The runtime itself fails on sums of nothing that drop the axis.
        got = assert_holds(
            SOFTMAX,
            text,
            feeds=feeds[:1] if "keepdims" in text else feeds,
            runtimes=["onnxruntime"],
            rtol=1e-6,
            atol=1e-6,
        )
    assert [node.op_type for node in got.graph.node] == [operator]


def test_the_graph_itself() -> None:
    assert_rewrites(SOFTMAX, before=graph(), after=graph("y = Softmax <axis = 2> (x)"))


@pytest.mark.parametrize(
    "text",
    [
        graph(BODY.replace("ReduceSum (e, last)", "ReduceSum (e, one)")),
        graph(BODY.replace("(x, last)", "(x, both)").replace("(e, last)", "(e, both)")),
        graph(BODY.replace("ReduceMax", "ReduceMin")),
        graph(BODY.replace("ReduceSum", "ReduceMean")),
        graph(BODY.replace("y = Div (e, s)", "y = Div (s, e)")),
        graph(BODY.replace("y = Div (e, s)", "z = Div (e, s) y = Mul (z, e)")),
        graph(BODY, y=", float[N, 4, 5] e"),
        graph(BODY, y=", float[N, 4, 1] m"),
        graph(BODY.replace("m = ReduceMax (x, last)", "z = Abs (x) m = ReduceMax (z, last)")),
        graph(BODY.replace("s = ReduceSum (e, last)", "z = Abs (e) s = ReduceSum (z, last)")),
graph(BODY.replace("m = ReduceMax (x, last)", "t = ReduceMax <keepdims = 0> (x, last) m = Reshape (t, back)")).replace("N, 4, 5] x", "N, M, 5] x"),
        graph(BODY.replace("m = ReduceMax (x, last)", "t = ReduceMax <keepdims = 0> (x, last) m = Reshape (t, zero)")),
        graph(LOG.replace("y = Sub (d, l)", "y = Sub (x, l)")),
        graph(LOG.replace("y = Sub (d, l)", "y = Add (d, l)")),
        graph(LOG, y=", float[N, 4, 5] d"),
        graph().replace("float[N, 4, 5] x", "float[] x"),
        graph(kind="float16"),
    ],
)  # fmt: skip
def test_leaves_what_only_looks_like_one(text: str) -> None:
    assert_unchanged(SOFTMAX, text)


@pytest.mark.parametrize(
    "body",
    [
        BODY.replace("last", "one"),
        "e = Exp (x) s = ReduceSum (e, last) y = Div (e, s)",
        "s = Softmax (x) y = Log (s)",
    ],
)
def test_says_why_a_softmax_stays(body: str) -> None:
    assert_refuses(SOFTMAX, graph(body), code="FSM101")


@given(
    rank=st.integers(1, 4),
    axis=st.integers(-4, 3),
    other=st.integers(-4, 3),
    keeps=st.sampled_from(["keep", "unsqueeze", "drop"]),
    scale=st.sampled_from([1e-3, 1, 50, 1e30]),
)
def test_any_axes(rank: int, axis: int, other: int, keeps: str, scale: float) -> None:
    axis, other = max(-rank, min(axis, rank - 1)), max(-rank, min(other, rank - 1))
    made = "t = ReduceSum <keepdims = 0> (e, b) s = Unsqueeze (t, b)"
    if keeps == "keep":
        made = "s = ReduceSum (e, b)"
    elif keeps == "drop":
        made = "s = ReduceSum <keepdims = 0> (e, b)"
    names = "ABCD"[:rank]
    dims = ", ".join(names)
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
        g (float[{dims}] x) => (float[{", ".join("?" * rank)}] y) <int64[1] a = {{{axis}}}, int64[1] b = {{{other}}}> {{
        m = ReduceMax (x, a) d = Sub (x, m) e = Exp (d) {made} y = Div (e, s) }}"""
    x = np.random.default_rng(rank).normal(size=(3,) * rank).astype(np.float32) * np.float32(scale)
    got = assert_holds(
        SOFTMAX,
        text,
        feeds=[{"x": x}],
        runtimes=["onnxruntime"],
        rtol=1e-5,
        atol=1e-6,
        full_check=False,
    )
    fits = axis % rank == other % rank == rank - 1 and keeps != "drop"
    assert (len(got.graph.node) == 1) == fits
