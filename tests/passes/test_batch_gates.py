"""batch-gates: gates of parallel branches, and those that wait for each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.batch_gates import BatchGates
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged

BATCH = BatchGates()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}


def gate(index: int, source: str = "x", act: str = "Relu", last: str = "Sigmoid") -> str:
    i = index
    return f"""p{i} = GlobalAveragePool ({source}) a{i} = Conv (p{i}, w{i}, b{i}) r{i} = {act} (a{i})
        c{i} = Conv (r{i}, v{i}) h{i} = {last} (c{i}) m{i} = Mul ({source}, h{i}) """


def weights(count: int, shape: str = "float[2, 4, 1, 1]", second: str = "float[4, 2, 1, 1]") -> str:
    return ", ".join(f"{shape} w{i}, float[2] b{i}, {second} v{i}" for i in range(count))


def graph(body: str, more: str, opset: int = 13, x: str = "float[N, 4, 5, 6]", y: str = "") -> str:
    kind = x.split("[")[0]
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({x} x) => ({kind}[A, B, C, D] y{y}) <{more}> {{ z = Neg (x) {body} }}"""


THREE = gate(0) + gate(1, "z") + "e = Exp (x) " + gate(2, "e") + "s = Add (m0, m1) y = Add (s, m2)"


def operators(text: str) -> list[str]:
    got = assert_holds(BATCH, text, runtimes=["onnxruntime"], **TIGHT)
    return [node.op_type for node in got.graph.node]


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_gates_are_computed_side_by_side(opset: int) -> None:
    left = operators(graph(THREE, weights(3), opset))
    assert (left.count("Conv"), left.count("Split"), left.count("Sigmoid")) == (2, 1, 1)
    assert left.count("Mul") == left.count("GlobalAveragePool") == 3


def test_readers_that_stand_before_the_last_gate_move() -> None:
    body = gate(0) + "q = Exp (m0) " + gate(1, "z") + "e = Exp (x) " + gate(2, "e")
    left = operators(graph(body + "s = Add (q, m1) y = Add (s, m2)", weights(3)))
    assert left.count("Conv") == 2


def test_the_graph_itself() -> None:
    body = "".join(
        f"a{i} = Conv (x{i}, w{i}) r{i} = Relu (a{i}) c{i} = Conv (r{i}, w{i}) h{i} = Neg (c{i}) "
        for i in range(3)
    )
    ends = "float[N, 1, 1, 1] h0, float[N, 1, 1, 1] h1, float[N, 1, 1, 1] h2"
    inputs = "float[2, 1, 1, 1] x0, float[2, 1, 1, 1] x1, float[2, 1, 1, 1] x2"
    one = "float[1, 1, 1, 1]"
    assert_rewrites(
        BATCH,
        before=f"g ({inputs}) => ({ends}) <{one} w0 = {{1}}, {one} w1 = {{2}}, {one} w2 = {{3}}> {{ {body} }}",
        after=f"""g ({inputs}) => ({ends}) <float[3, 1, 1, 1] w = {{1, 2, 3}}, int64[3] sizes = {{1, 1, 1}}> {{
            x = Concat <axis = 1> (x0, x1, x2) a = Conv <group = 3> (x, w) r = Relu (a)
            c = Conv <group = 3> (r, w) c0, c1, c2 = Split <axis = 1> (c, sizes)
            h0 = Neg (c0) h1 = Neg (c1) h2 = Neg (c2) }}""",
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    "text",
    [
        graph(gate(0) + gate(1, "z") + "y = Add (m0, m1)", weights(2)),  # too few to be worth it
        graph(gate(0) + gate(1, "m0") + gate(2, "m1") + "y = Exp (m2)", weights(3)),
        graph(THREE.replace("r1 = Relu", "r1 = Tanh"), weights(3)),
        graph(THREE.replace("h1 = Sigmoid", "h1 = HardSigmoid"), weights(3)),
        graph(THREE, weights(3), y=", float[N, 2, 1, 1] r1"),
        graph(THREE, weights(3), x="float[N, 4, H, W]").replace("GlobalAveragePool (x)", "Exp (x)"),
        graph(THREE, weights(3), x="double[N, 4, 5, 6]").replace("float", "double"),
        graph(THREE, weights(3).replace("float[4, 2, 1, 1] v1", "float[4, 2, 1, 1] u1")).replace(
            "6] x", "6] x, float[4, 2, 1, 1] v1", 1),
        graph(THREE.replace("c1 = Conv", "c1 = Conv <pads = [0, 0, 0, 1]>").replace("m1 = Mul (z, h1)", "g1 = ReduceMax <axes = [2, 3]> (h1) m1 = Mul (z, g1)"), weights(3)),
    ],
)  # fmt: skip
def test_leaves_other_gates(text: str) -> None:
    assert_unchanged(BATCH, text)


def test_of_gates_that_wait_for_each_other_crosswise_one_group_is_made() -> None:
    """Of two kinds, each with one before and one after one of the other kind."""
    body = (
        gate(0) + gate(1, "z") + gate(2, "m0", last="HardSigmoid") + gate(3, "z", last="HardSigmoid")
        + gate(4, "m3") + "e = Exp (x) " + gate(5, "e") + gate(6, "e", last="HardSigmoid")
        + "s0 = Add (m1, m2) s1 = Add (s0, m4) s2 = Add (s1, m5) y = Add (s2, m6)"
    )  # fmt: skip
    left = operators(graph(body, weights(7)))
    assert left.count("Split") >= 1


@settings(deadline=None)
@given(
    count=st.integers(2, 5),
    waits=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    acts=st.lists(st.sampled_from(["Relu", "Relu", "Tanh"]), min_size=5, max_size=5),
    opset=st.sampled_from([11, 13, 18]),
)
def test_any_order_of_gates(count: int, waits: list[int], acts: list[str], opset: int) -> None:
    body = ""
    for index in range(count):
        earlier = waits[index] - 1
        source = f"m{earlier}" if 0 <= earlier < index else ("x", "z")[index % 2]
        body += gate(index, source, acts[index])
    total = "m0"
    for index in range(1, count):
        body += f"t{index} = Add ({total}, m{index}) "
        total = f"t{index}"
    text = graph(body + f"y = Exp ({total})", weights(count), opset)
    rng = np.random.default_rng(count)
    feeds = {"x": rng.normal(size=(2, 4, 5, 6)).astype(np.float32)}
    assert_holds(BATCH, text, feeds=[feeds], runtimes=["onnxruntime"], **TIGHT)
