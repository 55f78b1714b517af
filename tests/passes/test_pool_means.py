"""pool-means: means over images become pools."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp_passes.quantize.pool_means import PoolMeans
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged


def test_a_mean_over_an_image_becomes_a_pool() -> None:
    assert_rewrites(
        PoolMeans(),
        before="""
        g (float[N, 8, 5, 6] x) => (float[N, 8, 1, 1] y) <float[8, 8, 1, 1] w, int64[2] axes = {-1, 2}> {
          c = Conv (x, w) a = Relu (c)
          y = ReduceMean (a, axes)
        }""",
        after="""
        g (float[N, 8, 5, 6] x) => (float[N, 8, 1, 1] y) <float[8, 8, 1, 1] w> {
          c = Conv (x, w) a = Relu (c)
          y = GlobalAveragePool (a)
        }""",
    )


def test_dimensions_that_go_are_squeezed() -> None:
    assert_rewrites(
        PoolMeans(),
        before="""
        g (float[N, 8, L] x) => (float[N, 8] y) <int64[1] axes = {2}> {
          m = MaxPool <kernel_shape = [1]> (x) y = ReduceMean <keepdims = 0> (m, axes)
        }""",
        after="""
        g (float[N, 8, L] x) => (float[N, 8] y) <int64[1] axes = {2}> {
          m = MaxPool <kernel_shape = [1]> (x) p = GlobalAveragePool (m)
          y = Squeeze (p, axes)
        }""",
    )


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_axes_as_attributes(opset: int, keepdims: int) -> None:
    got = assert_holds(
        PoolMeans(),
        f"""<ir_version: 7, opset_import: ["" : {opset}]>
        g (float[2, 4, 3, 5] x) => (float[{"2, 4, 1, 1" if keepdims else "2, 4"}] y) {{
          m = MaxPool <kernel_shape = [1, 1]> (x) y = ReduceMean <axes = [2, 3], keepdims = {keepdims}> (m)
        }}""",
        rtol=1e-5,
        atol=1e-6,
    )
    assert "ReduceMean" not in {node.op_type for node in got.graph.node}


@pytest.mark.parametrize(
    "text",
    [
        "g (float[2, 4, 5] x) => (float[2, 4, 1] y) <int64[1] a = {2}> { y = ReduceMean (x, a) }",
        "g (float[2, 4, 5] x, int64[1] axes) => (float[2, 4, 1] y) { m = MaxPool <kernel_shape = [1]> (x) y = ReduceMean (m, axes) }",
        "g (float[2, 4, 5] x) => (float[1, 1, 1] y) { m = MaxPool <kernel_shape = [1]> (x) y = ReduceMean (m) }",
        "g (float[2, 4, 5] x) => (float[2, 1, 5] y) <int64[1] a = {1}> { m = MaxPool <kernel_shape = [1]> (x) y = ReduceMean (m, a) }",
        "g (float[2, 4, 5, 5] x) => (float[2, 4, 1, 5] y) <int64[1] a = {2}> { m = MaxPool <kernel_shape = [1, 1]> (x) y = ReduceMean (m, a) }",
        "g (float[2, 5] x) => (float[2, 1] y) <int64[1] a = {1}> { y = ReduceMean (x, a) }",
        "g (double[2, 4, 5] x) => (double[2, 4, 1] y) <int64[1] a = {2}> { y = ReduceMean (x, a) }",
        "g (float[2, 4, 5] x) => (float[2, 4, 1] y) <int64[1] a = {2}> { y = ReduceMax (x, a) }",
    ],
    ids=[
        "no image in front",
        "axes come in",
        "all axes",
        "channels",
        "a part",
        "no image",
        "double",
        "another reduction",
    ],
)
def test_other_reductions_stay(text: str) -> None:
    assert_unchanged(PoolMeans(), text)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=3, max_size=5),
    keepdims=st.integers(0, 1),
    negative=st.booleans(),
)
def test_numbers_stay(shape: list[int], keepdims: int, negative: bool) -> None:
    rank = len(shape)
    axes = [axis - rank * negative for axis in range(2, rank)]
    result = ", ".join(map(str, [*shape[:2], *([1] * (rank - 2) if keepdims else [])]))
    sizes, numbers = ", ".join(map(str, shape)), ", ".join(map(str, axes))
    assert_holds(
        PoolMeans(),
        f"""g (float[{sizes}] x) => (float[{result}] y) <int64[{len(axes)}] axes = {{{numbers}}}> {{
          m = MaxPool <kernel_shape = [{", ".join("1" * (rank - 2))}]> (x)
          y = ReduceMean <keepdims = {keepdims}> (m, axes)
        }}""",
        rtol=1e-5,
        atol=1e-6,
    )
