"""fuse-shuffle: pixel shuffles, and other ways to rearrange."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_shuffle import FuseShuffle
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged

SHUFFLE = FuseShuffle()


def graph(
    split: str, perm: str, merge: str, x: str = "float[N, 8, 4, 6]", opset: int = 13, y: str = ""
) -> str:
    count = len(split.split(","))
    kind = x.split("[")[0]
    return f"""<ir_version: 8, opset_import: ["" : {opset}]> g ({x} x) => ({kind}[A, B, C, D] y{y})
        <int64[{count}] s = {{{split}}}, int64[4] m = {{{merge}}}> {{
        a = Reshape (x, s) t = Transpose <perm = [{perm}]> (a) y = Reshape (t, m) }}"""


CRD = graph("-1, 2, 2, 2, 4, 6", "0, 1, 4, 2, 5, 3", "-1, 2, 8, 12")
DCR = graph("-1, 2, 2, 2, 4, 6", "0, 3, 4, 1, 5, 2", "-1, 2, 8, 12")
DEPTH = graph("-1, 8, 2, 2, 3, 2", "0, 3, 5, 1, 2, 4", "-1, 32, 2, 3")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (CRD, "DepthToSpace"),
        (DCR, "DepthToSpace"),
        (DEPTH, "SpaceToDepth"),
        (graph("0, 2, 2, 2, 4, 6", "0, 1, 4, 2, 5, 3", "0, 2, 8, 12"), "DepthToSpace"),
        (graph("3, 2, 2, 2, 4, 6", "0, 1, 4, 2, 5, 3", "3, 2, 8, 12", "float[3, 8, 4, 6]"), "DepthToSpace"),
        (CRD.replace("float", "double"), "DepthToSpace"),
        (DCR.replace(": 13", ": 9"), "DepthToSpace"),
        (DEPTH.replace(": 13", ": 9"), "SpaceToDepth"),
    ],
)  # fmt: skip
def test_puts_shuffles_together(text: str, made: str) -> None:
    got = assert_holds(SHUFFLE, text, rtol=0, atol=0, runtimes=["onnxruntime"])
    assert [node.op_type for node in got.graph.node] == [made]


def test_the_graph_itself() -> None:
    weights = "<int64[6] s = {-1, 2, 2, 2, 4, 6}, int64[4] m = {-1, 2, 8, 12}>"
    assert_rewrites(
        SHUFFLE,
        before=CRD,
        after=f"""<ir_version: 8, opset_import: ["" : 13]> g (float[N, 8, 4, 6] x) => (float[A, B, C, D] y)
        {weights} {{ y = DepthToSpace <blocksize = 2, mode = "CRD"> (x) }}""",
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    "text",
    [
        graph("-1, 2, 2, 2, 4, 6", "0, 1, 2, 4, 5, 3", "-1, 2, 8, 12"),
        graph("-1, 2, 2, 2, 4, 6", "0, 1, 4, 2, 5, 3", "-1, 4, 4, 12"),
        graph("-1, 2, 2, 2, 6, 4", "0, 1, 4, 2, 5, 3", "-1, 2, 12, 8"),
        graph("-1, 1, 2, 4, 4, 6", "0, 1, 4, 2, 5, 3", "-1, 1, 8, 24"),
        graph("-1, 8, 1, 1, 4, 6", "0, 1, 4, 2, 5, 3", "-1, 8, 4, 6"),
        graph("-1, 8, 2, 2, 3, 2", "0, 1, 3, 5, 2, 4", "-1, 32, 2, 3"),
        CRD.replace("float[N, 8, 4, 6]", "float[N, 8, H, 6]"),
        CRD.replace("float[N, 8, 4, 6]", "float[]"),
        CRD.replace("float", "int32"),
        CRD.replace(": 13", ": 10"),
        graph("-1, 2, 2, 2, 4, 6", "0, 1, 4, 2, 5, 3", "-1, 2, 8, 12", y=", float[A, E, F, G, H, I] t"),
    ],
)  # fmt: skip
def test_leaves_other_rearrangements(text: str) -> None:
    assert_unchanged(SHUFFLE, text)


@given(
    size=st.integers(1, 3),
    deep=st.integers(1, 3),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    perm=st.one_of(
        st.sampled_from([(0, 3, 4, 1, 5, 2), (0, 1, 4, 2, 5, 3), (0, 3, 5, 1, 2, 4)]),
        st.permutations(range(6)).map(tuple),
    ),
    batch=st.sampled_from([1, 2]),
)
def test_any_order(
    size: int, deep: int, height: int, width: int, perm: tuple[int, ...], batch: int
) -> None:
    if perm == (0, 3, 5, 1, 2, 4):
        split, channels = (batch, deep, height, size, width, size), deep
        x = (batch, channels, height * size, width * size)
    else:
        blocks = (size, size, deep) if perm == (0, 3, 4, 1, 5, 2) else (deep, size, size)
        split, x = (batch, *blocks, height, width), (batch, deep * size * size, height, width)
    turned = [split[axis] for axis in perm]
    merge = (turned[0], turned[1] * (turned[2] if perm[1] == 3 and perm[2] == 5 else 1))
    rest = turned[2:] if merge[1] == turned[1] else turned[3:]
    last: tuple[int, ...]
    if len(rest) == 4:
        last = (*merge, rest[0] * rest[1], rest[2] * rest[3])
    else:
        last = (merge[0], merge[1] * rest[0], *rest[1:])
    text = graph(
        ", ".join(map(str, split)),
        ", ".join(map(str, perm)),
        ", ".join(map(str, last)),
        f"float[{', '.join(map(str, x))}]",
    )
    values = np.arange(np.prod(x), dtype=np.float32).reshape(x)
    assert_holds(SHUFFLE, text, feeds=[{"x": values}], rtol=0, atol=0, runtimes=["onnxruntime"])
