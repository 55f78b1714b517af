"""fuse-pointwise: two linear Conv become one."""

from __future__ import annotations

import pytest

from onnxcomp_passes.quantize.fuse_pointwise import FusePointwise
from tests.helpers.check import assert_holds, assert_unchanged

CHAIN = """
    g (float[1, 4, 9, 9] x) => (float[1, 12, H, W] y)
    <float[3, 4, 3, 3] w, float[3] b, float[12, 3, 1, 1] v, float[12] c> {{
      a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, w{bias})
      {between}
      y = Conv <{attributes}> ({middle}, v, c)
    }}"""


def chain(between: str = "", middle: str = "a", attributes: str = "", bias: str = ", b") -> str:
    return CHAIN.format(
        between=between,
        middle=middle,
        attributes=attributes or "kernel_shape = [1, 1]",
        bias=bias,
    )


@pytest.mark.parametrize("bias", [", b", ""])
def test_merges_a_conv_into_the_pointwise_conv_behind_it(bias: str) -> None:
    got = assert_holds(FusePointwise(growth=10.0), chain(bias=bias), rtol=1e-4, atol=1e-4)
    assert [node.op_type for node in got.graph.node] == ["Conv"]
    attributes = {a.name: list(a.ints) for a in got.graph.node[0].attribute}
    assert attributes == {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    kept = {tuple(t.dims) for t in got.graph.initializer}
    assert kept - {(3,)} == {(12, 4, 3, 3), (12,)}


def test_merges_a_whole_chain() -> None:
    got = assert_holds(
        FusePointwise(growth=10.0),
        """
        g (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y)
        <float[6, 4, 1, 1] u, float[4, 6, 1, 1] v, float[4, 4, 1, 1] w> {
          a = Conv (x, u) b = Conv (a, v) y = Conv (b, w)
        }""",
        rtol=1e-4,
        atol=1e-4,
    )
    assert len(got.graph.node) == 1


@pytest.mark.parametrize(
    "text",
    [
        chain("b1 = Relu (a)", "b1"),
        chain(attributes="kernel_shape = [1, 1], strides = [2, 2]"),
        chain(attributes="kernel_shape = [1, 1], pads = [1, 1, 1, 1]"),
    ],
    ids=["activation between", "stride", "padding"],
)
def test_leaves_what_is_not_linear_or_moves_in_space(text: str) -> None:
    assert_unchanged(FusePointwise(growth=10.0), text)


def test_leaves_a_bottleneck_that_saves_products() -> None:
    assert_unchanged(
        FusePointwise(),
        """
        g (float[1, 64, 5, 5] x) => (float[1, 64, 5, 5] y)
        <float[4, 64, 1, 1] u, float[64, 4, 1, 1] v> { a = Conv (x, u) y = Conv (a, v) }""",
    )


def test_leaves_a_tensor_that_somebody_else_reads() -> None:
    assert_unchanged(
        FusePointwise(growth=10.0),
        """
        g (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] y, float[1, 4, 5, 5] a)
        <float[4, 4, 1, 1] u, float[4, 4, 1, 1] v> { a = Conv (x, u) y = Conv (a, v) }""",
    )
