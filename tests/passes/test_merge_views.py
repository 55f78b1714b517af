"""merge-views: Reshapes and Transposes with something between them, and what must stay between."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.merge_views import MergeViews
from tests.helpers.check import assert_holds, assert_rewrites, assert_rolls_back, assert_unchanged
from tests.helpers.layouts import layout_graphs

PASS = MergeViews()
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def graph(
    body: str, weights: str = "", x: str = "N, 4, 6", out: str = "P, Q, R", opset: int = 18
) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[{x}] x) => (float[{out}] y) <float s = {{0.5}}{weights}> {{ {body} }}"""


MERGED = [
    ("a = Reshape (x, f) b = Relu (a) y = Reshape (b, g)",
     "a = Relu (x) y = Reshape (a, g)", "", ", int64[2] f = {-1, 24}, int64[3] g = {-1, 8, 3}"),
    ("a = Reshape (x, f) b = Tanh (a) c = Mul (s, b) d = Clip (c, , s) y = Reshape (d, g)",
     "b = Tanh (x) c = Mul (s, b) d = Clip (c, , s) y = Reshape (d, g)", "",
     ", int64[2] f = {-1, 24}, int64[3] g = {-1, 8, 3}"),
    ("a = Unsqueeze (x, f) b = Neg (a) y = Reshape (b, g)",
     "a = Neg (x) y = Reshape (a, g)", "", ", int64[1] f = {1}, int64[3] g = {-1, 8, 3}"),
    ("a = Unsqueeze (x, f) b = Neg (a) y = Squeeze (b, f)",
     "a = Neg (x) y = Reshape (a, g)", ", int64[3] g = {-1, 4, 6}", ", int64[1] f = {-1}"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "after", "more", "weights"), MERGED)
def test_views_merge_across_what_works_on_single_elements(
    body: str, after: str, more: str, weights: str
) -> None:
    assert_rewrites(PASS, before=graph(body, weights), after=graph(after, weights + more))


LEFT = [
    # What lies between depends on the shape, or somebody else reads it.
    ("a = Reshape (x, f) b = Softmax <axis = -1> (a) y = Reshape (b, g)",
     ", int64[2] f = {-1, 24}, int64[3] g = {-1, 8, 3}"),
    ("a = Reshape (x, f) b = Add (a, v) y = Reshape (b, g)",
     ", int64[2] f = {-1, 24}, int64[3] g = {-1, 8, 3}, float[24] v"),
    ("a = Reshape (x, f) b = Add (a, v) y = Reshape (b, g)",
     ", int64[1] f = {-1}, int64[3] g = {-1, 8, 3}, float[1] v"),
    ("a = Reshape (x, f) b = Relu (a) c = Reshape (b, g) d = ReduceSum <keepdims = 0> (b) y = Add (c, d)",
     ", int64[2] f = {-1, 24}, int64[3] g = {-1, 8, 3}"),
    # A zero in the target copies a size of the shape between.
    ("a = Reshape (x, f) b = Relu (a) y = Reshape (b, g)",
     ", int64[3] f = {-1, 8, 3}, int64[3] g = {-1, 0, 1}"),
    # Dimensions that are neither split nor merged alone.
    ("a = Transpose <perm = [0, 2, 1]> (x) b = Reshape (a, f) y = Transpose <perm = [0, 2, 1]> (b)",
     ", int64[3] f = {-1, 3, 8}"),
    ("y = Transpose <perm = [1, 0, 2]> (x)", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "weights"), LEFT)
def test_what_stays(body: str, weights: str) -> None:
    text = graph(body, weights)
    if "{-1, 0, 1}" in weights:
        # 24 N elements as [N * 3, 8, 1]: only where the 8 is copied from the shape between.
        got = assert_holds(PASS, text)
        assert [node.op_type for node in got.graph.node][-1] == "Reshape"
        return
    assert_unchanged(PASS, text)


def test_two_transposes_with_a_split_between_are_one() -> None:
    assert_rewrites(
        PASS,
        before=graph(
            "a = Transpose <perm = [0, 2, 1]> (x) b = Reshape (a, f) y = Transpose <perm = [3, 2, 1, 0]> (b)",
            ", int64[4] f = {-1, 2, 3, 4}",
            out="4, 3, 2, N",
        ),
        after=graph(
            "a = Reshape (x, g) y = Transpose <perm = [1, 3, 2, 0]> (a)",
            ", int64[4] f = {-1, 2, 3, 4}, int64[4] g = {-1, 4, 2, 3}",
            out="4, 3, 2, N",
        ),
    )


def test_two_transposes_with_a_merge_between_are_one() -> None:
    assert_rewrites(
        PASS,
        before=graph(
            "a = Transpose <perm = [2, 0, 1]> (x) b = Reshape (a, f) y = Transpose <perm = [1, 0]> (b)",
            ", int64[2] f = {-1, 24}",
            x="4, 6, 5",
            out="24, 5",
        ),
        after=graph(
            "a = Transpose <perm = [0, 1, 2]> (x) y = Reshape (a, g)",
            ", int64[2] f = {-1, 24}, int64[2] g = {24, 5}",
            x="4, 6, 5",
            out="24, 5",
        ),
    )


def test_a_transpose_of_single_elements_is_a_reshape() -> None:
    assert_rewrites(
        PASS,
        before=graph("y = Transpose <perm = [0, 3, 1, 2]> (x)", x="N, 1, 1, 8", out="N, 8, 1, 1"),
        after=graph(
            "y = Reshape (x, g)", ", int64[4] g = {-1, 8, 1, 1}", x="N, 1, 1, 8", out="N, 8, 1, 1"
        ),
    )


def test_a_channel_shuffle_is_a_gather() -> None:
    weights = ", int64[5] f = {0, 2, 3, 5, 7}, int64[4] g = {0, 6, 5, 7}"
    body = "a = Reshape (x, f) t = Transpose <perm = [0, 2, 1, 3, 4]> (a) y = Reshape (t, g)"
    sizes = "N, 6, 5, 7"
    assert_rewrites(
        PASS,
        before=graph(body, weights, sizes, sizes),
        after=graph(
            "y = Gather <axis = 1> (x, i)",
            f"{weights}, int64[6] i = {{0, 3, 1, 4, 2, 5}}",
            sizes,
            sizes,
        ),
        rtol=0,
        atol=0,
    )


def test_a_shuffle_of_single_numbers_stays() -> None:
    weights = ", int64[4] f = {0, 4, 2, 3}, int64[3] g = {0, 4, 6}"
    body = "a = Reshape (x, f) t = Transpose <perm = [0, 1, 3, 2]> (a) y = Reshape (t, g)"
    assert_unchanged(PASS, graph(body, weights))


EXPANDED = [
    ("e = Expand (v, f) y = Add (x, e)", "y = Add (x, v)", ", int64[2] f = {4, 6}, float[6] v"),
    (
        "e = Expand (v, f) y = Mul (e, x)",
        "y = Mul (v, x)",
        ", int64[3] f = {1, 4, 1}, float[4, 1] v",
    ),
    ("e = Tile (v, f) y = Sub (e, x)", "y = Sub (v, x)", ", int64[2] f = {4, 1}, float[1, 6] v"),
]


@pytest.mark.parametrize(("body", "after", "weights"), EXPANDED)
def test_broadcasting_needs_no_expansion(body: str, after: str, weights: str) -> None:
    assert_rewrites(PASS, before=graph(body, weights), after=graph(after, weights))


KEPT_WIDE = [
    ("e = Expand (v, f) y = Add (x, e)", ", int64[4] f = {2, 1, 4, 6}, float[6] v", "2, N, 4, 6"),
    ("e = Tile (v, f) y = Sub (e, x)", ", int64[2] f = {4, 2}, float[1, 3] v", "N, 4, 6"),
    ("e = Expand (v, f) y = Neg (e)", ", int64[3] f = {2, 4, 6}, float[6] v", "2, 4, 6"),
]


@pytest.mark.parametrize(("body", "weights", "out"), KEPT_WIDE)
def test_an_expansion_that_counts_stays(body: str, weights: str, out: str) -> None:
    assert_unchanged(PASS, graph(body, weights, out=out))


def test_an_expansion_to_a_size_that_is_only_known_at_run_time_stays() -> None:
    """`n` may be 5 where `x` has one row."""
    assert_unchanged(
        PASS,
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[M, 3] x, int64[2] n) => (float[P, Q] y) <float[3] v>
        { e = Expand (v, n) y = Add (x, e) }""",
    )


@pytest.mark.parametrize("operator", ["ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"])
@pytest.mark.parametrize("keeps", [0, 1])
def test_a_reduction_of_single_elements_is_none(operator: str, keeps: int) -> None:
    out = "N, 1, 3" if keeps else "N, 3"
    target = "int64[3] g = {-1, 1, 3}" if keeps else "int64[2] g = {-1, 3}"
    numbers = np.array([[[-0.0, np.nan, -np.inf]], [[1e-40, 3, 0.0]]], np.float32)
    assert_rewrites(
        PASS,
        before=graph(
            f"y = {operator} <keepdims = {keeps}> (x, i)", ", int64[1] i = {1}", "N, 1, 3", out
        ),
        after=graph("y = Reshape (x, g)", f", int64[1] i = {{1}}, {target}", "N, 1, 3", out),
        feeds=[{"x": numbers}],
        rtol=0,
        atol=0,
    )


@SETTINGS
@given(text=layout_graphs())
def test_whatever_is_merged_stays_the_same(text: str) -> None:
    assert_holds(PASS, text, runtimes=("onnxruntime",), rtol=1e-5, atol=1e-5)
    assert_rolls_back(PASS, text)


@st.composite
def shuffles(draw: st.DrawFn) -> str:
    """A Reshape, a Transpose and a Reshape, close to a shuffle of blocks or of channels."""
    shape = draw(st.sampled_from([(8, 4, 6), (12, 4, 4), (2, 8, 8), (18, 3, 6)]))
    sizes = [1]
    for dim in shape:
        parts = draw(st.sampled_from([d for d in range(1, dim + 1) if dim % d == 0]))
        sizes += [parts, dim // parts] if draw(st.booleans()) else [dim]
    order = list(range(len(sizes)))
    if draw(st.booleans()) and len(sizes) == 6:
        order = draw(st.sampled_from([[0, 1, 4, 2, 5, 3], [0, 3, 4, 1, 5, 2], [0, 3, 5, 1, 2, 4]]))
    else:
        order = draw(st.permutations(order))
    turned = [sizes[axis] for axis in order]
    count = draw(st.integers(1, len(turned) - 1))
    target = [int(np.prod(turned[:count])), *turned[count:]]
    if draw(st.booleans()):
        target = [1, *shape]
    one = ", ".join(map(str, sizes))
    other = ", ".join(map(str, target))
    body = f"a = Reshape (x, f) t = Transpose <perm = {list(order)}> (a) y = Reshape (t, g)"
    weights = f", int64[{len(sizes)}] f = {{{one}}}, int64[{len(target)}] g = {{{other}}}"
    return graph(body, weights, ", ".join(map(str, (1, *shape))), other)


@SETTINGS
@given(text=shuffles())
def test_any_shuffle(text: str) -> None:
    got = assert_holds(PASS, text, runtimes=("onnxruntime",), rtol=0, atol=0)
    assert isinstance(got, onnx.ModelProto)
