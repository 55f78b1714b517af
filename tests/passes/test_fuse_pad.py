"""fuse-pad: zeros that become an operator's own padding, and those that must not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxcomp_passes.simplify.fuse_pad import FusePad
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_rewrites,
    assert_unchanged,
)

if TYPE_CHECKING:
    import onnx


def graph(body: str, more: str = "", opset: int = 21) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[N, 2, 6, 7] x) => (float[P, Q, R, S] y) <float[3, 2, 3, 3] w{more}> {{ {body} }}"""


PADS = ", int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}"
FUSED = [
    ("t = Pad (x, p) y = Conv (t, w)", "y = Conv <pads = [1, 0, 2, 1]> (x, w)", PADS, 21),
    (
        'd = Pad (x, p) y = Conv <auto_pad = "VALID"> (d, w)',
        "y = Conv <pads = [1, 0, 2, 1]> (x, w)",
        PADS, 21,
    ),
    (
        "t = Pad (x, p) y = Conv <pads = [1, 1, 0, 0]> (t, w)",
        "y = Conv <pads = [2, 1, 2, 1]> (x, w)",
        PADS, 21,
    ),
    (
        "t = Pad (x, p, z) y = Conv <strides = [2, 2]> (t, w)",
        "y = Conv <pads = [1, 0, 2, 1], strides = [2, 2]> (x, w)",
        PADS + ", float z = {0}", 21,
    ),
    (
        "t = Pad <pads = [0, 0, 1, 1, 0, 0, 1, 1]> (x) y = Conv (t, w)",
        "y = Conv <pads = [1, 1, 1, 1]> (x, w)",
        "", 9,
    ),
    (
        "t = Pad (x, p, , a) y = Conv (t, w)",
        "y = Conv <pads = [0, 1, 0, 2]> (x, w)",
        ", int64[2] p = {1, 2}, int64[1] a = {-1}", 21,
    ),
    (
        "t = Pad (x, p) y = AveragePool <kernel_shape = [3, 3]> (t)",
        "y = AveragePool <kernel_shape = [3, 3], pads = [1, 0, 2, 1], count_include_pad = 1> (x)",
        PADS, 21,
    ),
    (
        "t = Pad (x, p) y = AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1], count_include_pad = 1> (t)",
        "y = AveragePool <kernel_shape = [4, 4], pads = [2, 1, 3, 2], count_include_pad = 1> (x)",
        PADS, 21,
    ),
    (
        "t = Pad (x, p, z) y = MaxPool <kernel_shape = [3, 3]> (t)",
        "y = MaxPool <kernel_shape = [3, 3], pads = [1, 0, 2, 1]> (x)",
        PADS + ", float z = {-inf}", 21,
    ),
    (
        "r = Relu (x) t = Pad (r, p) y = MaxPool <kernel_shape = [3, 3], dilations = [1, 1]> (t)",
        "r = Relu (x) y = MaxPool <kernel_shape = [3, 3], pads = [1, 0, 2, 1], dilations = [1, 1]> (r)",
        PADS, 21,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", FUSED, ids=lambda case: case[0])
def test_becomes_padding_of_the_operator(case: tuple[str, str, str, int]) -> None:
    before, after, more, opset = case
    rng = np.random.default_rng(5)
    feeds = [{"x": rng.normal(size=(2, 2, 6, 7)).astype(np.float32)}]
    # The reference evaluator's pooling ignores asymmetric padding that counts.
    runtimes = ["onnxruntime"] if "Pool" in before else ["reference", "onnxruntime"]
    assert_rewrites(
        FusePad(),
        before=graph(before, more, opset),
        after=graph(after, more, opset),
        feeds=feeds,
        runtimes=runtimes,
        rtol=1e-5,
        atol=1e-5,
    )


STAYS = [
    ("t = Pad (x, p, z) y = Conv (t, w)", PADS + ", float z = {1}"),
    ("t = Pad <mode = \"reflect\"> (x, p) y = Conv (t, w)", PADS),
    ("t = Pad (x, p) y = Conv (t, w)", ", int64[8] p = {0, 0, -1, 0, 0, 0, 0, 0}"),
    ("t = Pad (x, p) y = Conv (t, w)", ", int64[8] p = {1, 0, 0, 0, 0, 0, 0, 0}"),
    ("t = Pad (x, p) y = Conv <auto_pad = \"SAME_UPPER\"> (t, w)", PADS),
    ("t = Pad (x, p) u = Conv (t, w) v = Conv (t, w) y = Add (u, v)", PADS),
    ("t = Pad (x, p) y = AveragePool <kernel_shape = [2, 2]> (t)", PADS),  # a window of padding alone
    ("t = Pad (x, p) y = AveragePool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (t)", PADS),
    ("t = Pad (x, p) y = AveragePool <kernel_shape = [3, 3], ceil_mode = 1> (t)", PADS),
    ("t = Pad (x, p) y = AveragePool <kernel_shape = [3, 3], dilations = [2, 1]> (t)", PADS),
    ("t = Pad (x, p) y = MaxPool <kernel_shape = [3, 3]> (t)", PADS),  # x may be negative
    ("r = Relu (x) t = Pad (r, p) y = MaxPool <kernel_shape = [4, 4], pads = [1, 1, 1, 1]> (t)", PADS),
    ("t = Pad (x, p) y, i = MaxPool <kernel_shape = [3, 3]> (t)", PADS),
    ("t = Pad (x, p) y = AveragePool <kernel_shape = [3, 3], auto_pad = \"SAME_LOWER\"> (t)", PADS),
]  # fmt: skip


@pytest.mark.parametrize("case", STAYS, ids=lambda case: case[0])
def test_stays(case: tuple[str, str]) -> None:
    assert_unchanged(FusePad(), graph(*case))


def test_padding_known_only_at_run_time_stays() -> None:
    pads = """g (float[N, 2, 6, 7] x, int64[8] p) => (float[P, Q, R, S] y) <float[3, 2, 3, 3] w> {
        t = Pad (x, p) y = Conv (t, w) }"""
    assert_unchanged(FusePad(), pads)
    value = """g (float[N, 2, 6, 7] x, float z) => (float[P, Q, R, S] y)
        <float[3, 2, 3, 3] w, int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}> { t = Pad (x, p, z) y = Conv (t, w) }"""
    assert_unchanged(FusePad(), value)
    axes = """g (float[N, 2, 6, 7] x, int64[2] a) => (float[P, Q, R, S] y)
        <float[3, 2, 3, 3] w, int64[4] p = {1, 1, 1, 1}> { t = Pad (x, p, , a) y = Conv (t, w) }"""
    assert_unchanged(FusePad(), axes)


def test_a_graph_output_in_the_middle_stays() -> None:
    text = """g (float[N, 2, 6, 7] x) => (float[P, Q, R, S] t, float[P, Q, R, S] y)
        <float[3, 2, 3, 3] w, int64[8] p = {0, 0, 1, 0, 0, 0, 2, 1}> { t = Pad (x, p) y = Conv (t, w) }"""
    assert_unchanged(FusePad(), text)


def test_attributes_bound_by_a_caller_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[N, 2, 6, 7] x) => (float[P, Q, R, S] y) { y = f.two <c = 1> (x) }
        <domain: "f", opset_import: ["" : 21]>
        two <c> (a) => (b) {
          p = Constant <value = int64[8] {0, 0, 1, 0, 0, 0, 1, 0}> () t = Pad (a, p)
          b = AveragePool <kernel_shape = [3, 3], ceil_mode: int = @c> (t) }"""
    assert_unchanged(FusePad(), text)
    pads = text.replace("<c = 1>", "<c = [1, 1, 1, 1]>").replace(
        "float[N, 2, 6, 7] x", "float[N, 2, 6, 7] x, float[3, 2, 3, 3] w"
    )
    pads = pads.replace("(x)", "(x, w)").replace("two <c> (a)", "two <c> (a, w)")
    pads = pads.replace(
        "AveragePool <kernel_shape = [3, 3], ceil_mode: int = @c> (t)",
        "Conv <pads: ints = @c> (t, w)",
    )
    assert_unchanged(FusePad(), pads)


def test_works_in_a_body() -> None:
    text = """g (bool c, float[N, 2, 6, 7] x) => (float[P, Q, R, S] y)
        <float[3, 2, 3, 3] w, int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> {
        y = If (c) <
          then_branch = t () => (float[P, Q, R, S] a) { i = Pad (x, p) a = Conv (i, w) },
          else_branch = e () => (float[P, Q, R, S] d) { d = Identity (x) }> }"""
    got = assert_holds(FusePad(), text)
    branches = [[node.op_type for node in attr.g.node] for attr in got.graph.node[0].attribute]
    assert sorted(branches) == [["Conv"], ["Identity"]]


SLOWER = [
    ("one column", "N, 2, 9, 1", "3, 2, 5, 1", "0, 0, 2, 0, 0, 0, 2, 0"),
    ("a column of unknown height", "N, 2, H, 1", "3, 2, 5, 1", "0, 0, 2, 0, 0, 0, 2, 0"),
    ("a large square", "N, 2, 9, 9", "3, 2, 7, 7", "0, 0, 3, 3, 0, 0, 3, 3"),
    ("a wide kernel", "N, 2, 1, 32", "3, 2, 1, 17", "0, 0, 0, 8, 0, 0, 0, 8"),
    ("a long kernel", "N, 2, 99", "3, 2, 64", "0, 0, 31, 0, 0, 32"),
]


def padded(
    source: str, weight: str, pads: str, conv: str = "Conv", pad: str = "(x, p, , a)"
) -> str:
    rank = source.count(",") + 1
    return f"""<ir_version: 8, opset_import: ["" : 21]>
        g (float[{source}] x) => (float[{", ".join("PQRST"[:rank])}] y)
        <float[{weight}] w, int64[{2 * rank}] p = {{{pads}}}, float z = {{0}},
         int64[{rank}] a = {{{", ".join(str(axis) for axis in range(rank))}}}>
        {{ t = Pad {pad} y = {conv} (t, w) }}"""


@pytest.mark.parametrize("case", SLOWER, ids=lambda case: case[0])
def test_a_pad_that_makes_the_convolution_quicker_stays(case: tuple[str, str, str, str]) -> None:
    outcome = assert_unchanged(FusePad(), padded(*case[1:]))
    assert [(found.code, found.message) for found in outcome.diagnostics] == [
        ("FPD101", "kernels of this shape run slower when they pad by themselves")
    ]
    # What onnxruntime would fold itself costs a node and gains nothing.
    for pad in ("(x, p)", "(x, p, z)"):
        assert operators(assert_holds(FusePad(), padded(*case[1:], pad=pad))) == ["Conv"]


@pytest.mark.parametrize(
    ("source", "weight", "pads", "conv"),
    [
        ("N, 2, 4, 1", "3, 2, 9, 1", "0, 0, 4, 0, 0, 0, 4, 0", "Conv"),
        ("N, 2, 9, 2", "3, 2, 5, 1", "0, 0, 2, 0, 0, 0, 2, 0", "Conv"),
        ("N, 2, 9, 1", "3, 2, 5, 1", "0, 0, 2, 0, 0, 0, 2, 0", "Conv <strides = [2, 1]>"),
        ("N, 2, 9, 9", "3, 2, 3, 3", "0, 0, 1, 1, 0, 0, 1, 1", "Conv"),
        ("N, 2, 9, 9", "2, 1, 7, 7", "0, 0, 3, 3, 0, 0, 3, 3", "Conv <group = 2>"),
        ("N, 2, 99", "3, 2, 9", "0, 0, 4, 0, 0, 4", "Conv"),
        ("N, 2, 4, 5, 6", "3, 2, 3, 3, 3", "0, 0, 1, 1, 1, 0, 0, 1, 1, 1", "Conv"),
    ],
)
def test_a_convolution_that_pads_as_quickly_takes_the_zeros(
    source: str, weight: str, pads: str, conv: str
) -> None:
    assert operators(assert_holds(FusePad(), padded(source, weight, pads, conv))) == ["Conv"]


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_a_pad_that_others_read_too_is_told() -> None:
    graph = """
        g (float[1, 3, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 3, 10, 10] z)
        <float[4, 3, 3, 3] w, int64[8] pads = {0, 0, 1, 1, 0, 0, 1, 1}> {
          [pad] p = Pad (x, pads)
          [conv] y = Conv (p, w)
          [other] z = Neg (p)
        }
    """
    outcome = assert_refuses(FusePad(), graph, code="FPD101", at="conv")
    assert outcome.diagnostics[0].message == 'Pad "pad" before it is also read by Neg "other"'
