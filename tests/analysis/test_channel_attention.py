"""Heads, what lies within them, and the bodies of control flow: removing units is masking them."""

from __future__ import annotations

import pytest

from tests.analysis.test_channel_operators import units_of
from tests.helpers import text
from tests.helpers.removing import assert_removable

NEW = '<ir_version: 10, opset_import: ["" : 23]>'
ORT = '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>'


def attending(head: str, node: str, weights: str = "", shared: int = 16, value: int = 16) -> str:
    """Projections to queries, keys and values, attention, and a projection back."""
    return f"""{head} g (float[2, 5, 3] x) => (float[2, 5, 4] y)
        <float[3, 16] wq, float[3, {shared}] wk, float[3, {value}] wv, float[{value}, 4] o{weights}> {{
        q = MatMul (x, wq)
        k = MatMul (x, wk)
        v = MatMul (x, wv)
        {node}
        y = MatMul (a, o)
    }}"""


# What goes from queries under each preference: sizes of groups that have the queries' weight.
CASES: dict[str, tuple[dict[str, int], str]] = {
    "flat": (
        {"large": 8, "outer": 2},
        attending(NEW, "a = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v)"),
    ),
    "flat, with a mask for each head": (
        {"large": 8, "outer": 2},
        attending(
            NEW,
            "a = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, v, m)",
            ", float[2, 2, 5, 5] m",
        ),
    ),
    "heads that share keys": (
        {"large": 4, "outer": 2},
        attending(
            NEW,
            "b = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)  a = Identity (b)",
            shared=8,
            value=8,
        ).replace("float[8, 4] o", "float[16, 4] o"),
    ),
    "heads apart": (
        {"large": 8, "outer": 2},
        attending(
            NEW,
            """q4 = Reshape (q, s)  k4 = Reshape (k, s)  v4 = Reshape (v, s)
            qt = Transpose <perm = [0, 2, 1, 3]> (q4)
            kt = Transpose <perm = [0, 2, 1, 3]> (k4)
            vt = Transpose <perm = [0, 2, 1, 3]> (v4)
            b = Attention (qt, kt, vt)
            c = Transpose <perm = [0, 2, 1, 3]> (b)
            a = Reshape (c, t)""",
            ", int64[4] s = {0, 0, 2, 8}, int64[3] t = {0, 0, 16}",
        ),
    ),
    "rotated": (
        {"large": 0, "outer": 2},
        attending(
            NEW,
            "qr = RotaryEmbedding <num_heads = 2> (q, s, s)  kr = RotaryEmbedding <num_heads = 2> (k, s, s)"
            "  a = Attention <q_num_heads = 2, kv_num_heads = 2> (qr, kr, v)",
            ", float[2, 5, 4] s",
        ),
    ),
    "of the runtime": (
        {"large": 8, "outer": 2},
        attending(
            ORT,
            "a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b)",
            ", float[48] b",
        ),
    ),
    "of the runtime, values of another size": (
        {"large": 8, "outer": 2},
        attending(
            ORT,
            "a = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, b)",
            ", float[40] b",
            value=8,
        ),
    ),
    "of the runtime, rotated": (
        {"large": 0, "outer": 2},
        attending(
            ORT,
            "qr = com.microsoft.RotaryEmbedding (q, i, s, s)  kr = com.microsoft.RotaryEmbedding (k, i, s, s)"
            "  a = com.microsoft.MultiHeadAttention <num_heads = 2> (qr, kr, v)",
            ", float[5, 4] s, int64[2, 5] i = {0, 1, 2, 3, 4, 0, 1, 2, 3, 4}",
        ),
    ),
    "of the runtime, in one matrix": (
        {"large": 8, "outer": 6},
        f"""{ORT} g (float[2, 5, 3] x) => (float[2, 5, 4] y)
        <float[3, 6] e, float[6, 48] wq, float[48] b, float[16, 4] o> {{
            p = MatMul (x, e)
            a = com.microsoft.Attention <num_heads = 2> (p, wq, b)
            y = MatMul (a, o)
        }}""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_units(name: str) -> None:
    expected, graph = CASES[name]
    found = {prefer: units_of(graph, "wq", prefer) for prefer in expected}
    assert found == expected


@pytest.mark.parametrize("prefer", ["large", "outer", "inner"])
@pytest.mark.parametrize("name", CASES)
def test_removing_is_masking(name: str, prefer: str) -> None:
    for seed in range(3):
        assert_removable(text.model(CASES[name][1]), prefer=prefer, seed=seed)  # type: ignore[arg-type]


BODIES: dict[str, str] = {
    "carried and stacked": """g (float[2, 3] x) => (float[2, 4] y, float[5, 2, 4] z)
        <float[3, 8] w, float[8, 8] u, float[8, 4] v, int64 n = {5}, bool c = {1}> {
            p = MatMul (x, w)
            last, all = Loop (n, c, p) <body = body (int64 i, bool go, float[2, 8] h) => (bool on, float[2, 8] t, float[2, 8] s) {
                on = Identity (go)
                m = MatMul (h, u)
                t = Tanh (m)
                s = Relu (t)
            }>
            y = MatMul (last, v)
            z = MatMul (all, v)
        }""",
    "scanned": """g (float[5, 2, 3] x) => (float[2, 4] y, float[5, 2, 4] z)
        <float[3, 8] w, float[8, 8] u, float[8, 4] v, float[2, 8] h0> {
            p = MatMul (x, w)
            last, all = Scan <num_scan_inputs = 1, body = body (float[2, 8] h, float[2, 8] e) => (float[2, 8] t, float[2, 8] s) {
                m = MatMul (h, u)
                a = Add (m, e)
                t = Tanh (a)
                s = Relu (t)
            }> (h0, p)
            y = MatMul (last, v)
            z = MatMul (all, v)
        }""",
    "scanned along the second axis": """g (float[2, 5, 3] x) => (float[2, 4] y, float[2, 5, 4] z)
        <float[3, 8] w, float[8, 8] u, float[8, 4] v, float[2, 8] h0> {
            p = MatMul (x, w)
            last, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-2],
             body = body (float[2, 8] h, float[2, 8] e) => (float[2, 8] t, float[2, 8] s) {
                m = MatMul (h, u)
                a = Add (m, e)
                t = Tanh (a)
                s = Relu (t)
            }> (h0, p)
            y = MatMul (last, v)
            z = MatMul (all, v)
        }""",
}


@pytest.mark.parametrize("name", BODIES)
def test_what_bodies_carry(name: str) -> None:
    assert units_of(BODIES[name]) == 8
    assert assert_removable(text.model(BODIES[name]))
