"""fuse-transpose: matrices that a Gemm reads transposed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_transpose import FuseTranspose
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged

TURN = FuseTranspose()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def graph(
    body: str, x: str = "[3, 4]", w: str = "[3, 5]", opset: int = 13, kind: str = "float"
) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({kind}{x} x, {kind}{w} w) => ({kind}[A, B] y) <{kind}[5] c> {{ {body} }}"""


X, W = "t = Transpose <perm = [1, 0]> (x) ", "u = Transpose (w) "


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (graph(X + "y = MatMul (t, w)"), {"transA": 1}),
        (graph(W + "y = MatMul (x, u)", "[3, 4]", "[5, 4]"), {"transB": 1}),
        (graph(X + W + "y = MatMul (t, u)", "[4, 3]", "[5, 4]"), {"transA": 1, "transB": 1}),
        (graph(X + "y = Gemm (t, w, c)"), {"transA": 1}),
        (graph(X + "y = Gemm <transA = 1, alpha = 0.5> (t, w, c)", "[4, 3]", "[3, 5]"), {"alpha": 0.5}),
        (graph(X + "y = Gemm <transB = 1> (t, w, c)", "[3, 4]", "[5, 3]"), {"transA": 1, "transB": 1}),
        (graph(X + "y = Gemm (t, w, c)", opset=9), {"transA": 1}),
        (graph(X + "y = MatMul (t, w)", kind="double"), {"transA": 1}),
    ],
)  # fmt: skip
def test_transposes_become_flags(text: str, flags: dict[str, float]) -> None:
    got = assert_holds(TURN, text, **TIGHT)
    assert [node.op_type for node in got.graph.node] == ["Gemm"]
    attributes = {attr.name: attr.f or attr.i for attr in got.graph.node[0].attribute}
    assert attributes == flags


def test_the_graph_itself() -> None:
    assert_rewrites(
        TURN,
        before=graph(X + "y = MatMul (t, w)"),
        after=graph("y = Gemm <transA = 1> (x, w)"),
        **TIGHT,
    )


@pytest.mark.parametrize(
    "text",
    [
        graph("y = MatMul (x, w)", "[4, 3]"),
        graph(X + "y = MatMul (t, w)", opset=10),
        graph(X + "y = MatMul (t, w)", kind="int32"),
        graph(X + "z = MatMul (t, w) s = ReduceSum <keepdims = 0> (t) y = Add (z, s)"),
        graph(X + "y = MatMul (t, w)").replace("float[3, 4] x", "float[] x"),
        graph("t = Transpose <perm = [0, 2, 1]> (x) y = MatMul (t, w)", "[2, 3, 4]").replace("[A, B] y", "[A, B, C] y"),
        graph(X + "y = MatMul (t, w)", w="[2, 3, 5]").replace("[A, B] y", "[A, B, C] y"),
        graph(X + "y = MatMul (t, w)", w="[3]").replace("[A, B] y", "[A] y"),
        graph("t = Transpose <perm = [0, 1]> (x) y = MatMul (t, w)", "[4, 3]"),
    ],
)  # fmt: skip
def test_other_products_stay(text: str) -> None:
    assert_unchanged(TURN, text)


@given(
    operator=st.sampled_from(["MatMul", "Gemm", "Gemm <transA = 1>", "Gemm <transB = 1>"]),
    turns=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    sizes=st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)),
)
def test_any_transposes(operator: str, turns: tuple[int, int], sizes: tuple[int, int, int]) -> None:
    rows, middle, columns = sizes
    shapes = [(rows, middle), (middle, columns)]
    body, names = "", []
    for index, name in enumerate("xw"):
        flipped = turns[index] + (("transA", "transB")[index] in operator)
        if flipped % 2:
            shapes[index] = shapes[index][::-1]
        for turn in range(turns[index]):
            body += f"{name}{turn} = Transpose ({name if turn == 0 else name + str(turn - 1)}) "
        names.append(name if turns[index] == 0 else f"{name}{turns[index] - 1}")
    text = graph(
        body + f"y = {operator} ({', '.join(names)})", str(list(shapes[0])), str(list(shapes[1]))
    )
    rng = np.random.default_rng(rows)
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in zip("xw", shapes, strict=True)}
    assert_holds(TURN, text, feeds=[feeds], runtimes=["onnxruntime"], **TIGHT)
