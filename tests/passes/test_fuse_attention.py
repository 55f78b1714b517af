"""fuse-attention: attention written apart, and what only looks like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_attention import FuseAttention
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

ATTENTION = FuseAttention()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
SPLIT = """qr = Reshape (q, split) kr = Reshape (k, split) vr = Reshape (v, split)
    qt = Transpose <perm = [0, 2, 1, 3]> (qr) kt = Transpose <perm = [0, 2, 3, 1]> (kr)
    vt = Transpose <perm = [0, 2, 1, 3]> (vr)"""
CORE = "s = MatMul (qt, kt) t = Mul (s, scale) p = Softmax (t) o = MatMul (p, vt)"
MASKED = CORE.replace("p = Softmax (t)", "u = Add (t, mask) p = Softmax (u)")
MERGE = "ot = Transpose <perm = [0, 2, 1, 3]> (o) y = Reshape (ot, merge)"
BODY = f"{SPLIT} {CORE} {MERGE}"
NUMBERS = "int64[4] split = {0, 0, 2, 4}, int64[3] merge = {0, 0, 8}, float scale = {0.5}, float negative = {-0.5}"


def heads(
    body: str = BODY, mask: str = "", opset: int = 23, kind: str = "float", y: str = ""
) -> str:
    more = f", {kind}{mask} mask" if mask else ""
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g ({kind}[N, 5, 8] q, {kind}[N, 5, 8] k, {kind}[N, 5, 8] v) => ({kind}[N, 5, 8] y{y})
        <{NUMBERS}{more}> {{ {body} }}""".replace("[N,", "[2,")


def core(body: str, mask: str = "", key: str = "[2, 3, 7, 4]", opset: int = 23) -> str:
    more = f", float{mask} mask" if mask else ""
    body = (
        "kt = Transpose <perm = [0, 1, 3, 2]> (k) " * ("kt" in body and "kt =" not in body) + body
    )
    return f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[2, 3, 5, 4] q, float{key} k, float[2, 3, 7, 6] v) => (float[A, B, C, D] y)
        <{NUMBERS}{more}> {{ {body} }}"""


PLAIN = "s = MatMul (q, kt) t = Mul (s, scale) p = Softmax (t) y = MatMul (p, v)"


def operators(text: str) -> str:
    got = assert_holds(ATTENTION, text, runtimes=["onnxruntime"], **TIGHT)
    return " ".join(node.op_type for node in got.graph.node)


@pytest.mark.parametrize(
    "text",
    [
        heads(),
        heads(BODY.replace(CORE, MASKED), "[2, 1, 5, 5]"),
        heads(BODY.replace(CORE, MASKED), "[1, 2, 5, 5]"),
        heads(BODY.replace(CORE, MASKED), "[5, 5]"),
        heads(BODY.replace(CORE, MASKED.replace("(t, mask)", "(mask, t)")), "[2, 2, 5, 5]"),
        heads(BODY.replace("t = Mul (s, scale)", "t = Div (s, scale)")),
        heads(BODY.replace("t = Mul (s, scale) p = Softmax (t)", "p = Softmax <axis = 3> (s)")),
        heads(BODY.replace("s = MatMul (qt, kt)", "a = Mul (qt, scale) b = Mul (kt, scale) s = MatMul (a, b)")),
        heads(BODY.replace("kt = Transpose <perm = [0, 2, 3, 1]> (kr)", "ku = Transpose <perm = [0, 2, 1, 3]> (kr) kt = Transpose <perm = [0, 1, 3, 2]> (ku)")),
    ],
)  # fmt: skip
def test_puts_attention_with_heads_together(text: str) -> None:
    assert operators(text) == "Attention"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (core(PLAIN), "Attention"),
        (core(PLAIN.replace("p = Softmax (t)", "u = Add (t, mask) p = Softmax (u)"), "[5, 7]"), "Attention"),
        (core(PLAIN.replace("kt", "kk").replace("s = ", "kk = Transpose <perm = [0, 2, 3, 1]> (k) s = "), key="[2, 7, 3, 4]"), "Transpose Attention"),
    ],
)  # fmt: skip
def test_puts_attention_without_heads_together(text: str, left: str) -> None:
    assert operators(text) == left


def test_the_graph_itself() -> None:
    assert_rewrites(
        ATTENTION,
        before=heads(),
        after=heads("y = Attention <scale = 0.5, q_num_heads = 2, kv_num_heads = 2> (q, k, v)"),
        runtimes=["onnxruntime"],
        **TIGHT,
    )


@pytest.mark.parametrize(
    "text",
    [
        heads(opset=22),
        heads(BODY.replace("Softmax (t)", "Softmax <axis = 2> (t)")),
        heads(BODY.replace("Softmax", "LogSoftmax")),
        heads(BODY, y=", float[2, 2, 5, 5] p"),
        heads(BODY, y=", float[2, 2, 5, 5] s"),
        core(PLAIN.replace("kt", "k"), key="[2, 3, 4, 7]"),
    ],
)  # fmt: skip
def test_leaves_what_only_looks_like_it(text: str) -> None:
    assert_unchanged(ATTENTION, text)


@pytest.mark.parametrize(
    "text",
    [
        core(PLAIN.replace("(s, scale)", "(s, negative)")),
        core(PLAIN, key="[1, 3, 7, 4]"),  # spread over the batch
        core(PLAIN, key="[2, 1, 7, 4]"),  # and over the heads
        core(PLAIN.replace("p = Softmax (t)", "u = Add (t, mask) p = Softmax (u)"), "[2, 1, 1, 7]"),
        core(PLAIN.replace("p = Softmax (t)", "u = Add (t, mask) p = Softmax (u)"), "[7]"),
        core(PLAIN.replace("p = Softmax (t)", "u = Add (t, mask) p = Softmax (u)"), "[1, 1, 1, 5, 7]").replace("(float[A, B, C, D] y)", "(float[E, A, B, C, D] y)"),
        core(PLAIN, key="[]"),
    ],
)  # fmt: skip
def test_says_why_attention_stays(text: str) -> None:
    if "1, 1, 1, 5, 7" in text:
        assert_unchanged(ATTENTION, text)  # an axis before all others: not of four dimensions
    else:
        assert_refuses(ATTENTION, text, code="FAT101")


@pytest.mark.parametrize("hidden", ["-inf", "-3.4028235e38", "nan"])
def test_a_mask_that_hides_all_keys_keeps_the_formula(hidden: str) -> None:
    """The runtime gives zeros then; the formula NaN, or the average of all values."""
    row = ", ".join([hidden] * 5)
    rest = ", ".join(["0"] * 4 + [hidden])
    text = heads(BODY.replace(CORE, MASKED), "[5, 5]")
    contents = ", ".join([rest] * 4)
    full = text.replace("[5, 5] mask", f"[5, 5] mask = {{{contents}, {row}}}")
    assert_refuses(ATTENTION, full, code="FAT101")
    if hidden != "nan":
        shown = text.replace("[5, 5] mask", f"[5, 5] mask = {{{contents}, {rest}}}")
        assert operators(shown) == "Attention"


def test_a_mask_that_is_no_constant_could_hide_all_keys() -> None:
    text = heads(BODY.replace(CORE, MASKED), "[5, 5]").replace(", float[5, 5] mask>", ">")
    text = text.replace("5, 8] v)", "5, 8] v, float[5, 5] mask)")
    assert_refuses(ATTENTION, text, code="FAT101")


def test_heads_that_are_merged_otherwise_stay_outside() -> None:
    other = BODY.replace(
        "y = Reshape (ot, merge)", "z = Reshape (ot, flat) y = Reshape (z, merge2)"
    )
    text = heads(other).replace(
        "<int64[4] split", "<int64[2] flat = {-1, 8}, int64[3] merge2 = {2, 5, 8}, int64[4] split"
    )
    assert operators(text).count("Transpose") == 4
    turned = BODY.replace(
        "ot = Transpose <perm = [0, 2, 1, 3]> (o)", "ot = Transpose <perm = [0, 2, 3, 1]> (o)"
    )
    assert operators(heads(turned)).count("Transpose") == 4


ENCODER = f"""<ir_version: 10, opset_import: ["" : 23]> g (float[N, 5, 8] x) => (float[N, 5, 8] y)
    <float[8, 8] wq, float[8, 8] wk, float[8, 8] wv, {NUMBERS}> {{
    q = MatMul (x, wq) k = MatMul (x, wk) v = MatMul (x, wv) {BODY} }}"""


def test_a_batch_that_could_be_empty_keeps_the_formula() -> None:
    """The runtime fails on an empty batch in Attention, and returns nothing for the formula."""
    assert_refuses(ATTENTION, ENCODER, code="FAT101")
    assert_refuses(ATTENTION, ENCODER.replace("[N, 5, 8]", "[2, N, 8]"), code="FAT101")
    assert operators(ENCODER.replace("[N, 5, 8]", "[2, 5, 8]")) == "MatMul MatMul MatMul Attention"


def test_one_name_for_three_inputs_is_no_proof() -> None:
    text = heads().replace("float[2, 5, 8]", "float[N, 5, 8]")
    assert_refuses(ATTENTION, text, code="FAT101")


@given(
    batch=st.integers(1, 2),
    queries=st.integers(1, 4),
    keys=st.integers(1, 4),
    count=st.integers(1, 3),
    size=st.integers(1, 4),
    scale=st.floats(0.125, 2, width=32),
    mask=st.sampled_from(["", "full", "row", "one"]),
    seed=st.integers(0, 3),
)
def test_random_attention_keeps_its_values(
    batch: int, queries: int, keys: int, count: int, size: int, scale: float, mask: str, seed: int
) -> None:
    shapes = {
        "q": (batch, queries, count * size),
        "k": (batch, keys, count * size),
        "v": (batch, keys, count * size),
    }
    outer = {"full": [batch, 1, queries, keys], "row": [batch, 1, 1, keys], "one": [1]}
    body = BODY.replace(CORE, MASKED) if mask else BODY
    rng = np.random.default_rng(seed)
    feeds = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    held = ""
    if mask:
        values = np.where(rng.random(outer[mask]) < 0.3, -3.4028235e38, 0.0).reshape(-1)
        held = f", float{outer[mask]} mask = {{{', '.join(map(str, values))}}}"
    inputs = ", ".join(f"float[{a}, {b}, {c}] {name}" for name, (a, b, c) in shapes.items())
    text = f"""<ir_version: 10, opset_import: ["" : 23]> g ({inputs}) => (float[A, B, C] y)
        <int64[4] split = {{0, 0, {count}, {size}}}, int64[3] merge = {{0, 0, {count * size}}}, float scale = {{{scale:f}}}{held}>
        {{ {body} }}"""
    assert_holds(ATTENTION, text, feeds=[feeds], runtimes=["onnxruntime"], **TIGHT)
