"""fuse-lstm: a loop over time whose body is made of cells."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_lstm import FuseLstm
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_rolls_back,
    assert_same,
    assert_unchanged,
    run_pass,
)
from tests.helpers.text import model

LSTM = FuseLstm()
HIDDEN = 4


def _cell(number: int, source: str) -> str:
    n = number
    return f"""
        a{n} = Gemm <transB = 1> ({source}, w{n}, p{n})
        b{n} = Gemm <transB = 1> (h{n}, r{n}, q{n})
        g{n} = Add (a{n}, b{n})
        gi{n}, gf{n}, gc{n}, go{n} = Split <axis = 1, num_outputs = 4> (g{n})
        i{n} = Sigmoid (gi{n})
        f{n} = Sigmoid (gf{n})
        c{n} = Tanh (gc{n})
        o{n} = Sigmoid (go{n})
        k{n} = Mul (f{n}, m{n})
        l{n} = Mul (i{n}, c{n})
        m{n}_new = Add (k{n}, l{n})
        s{n} = Tanh (m{n}_new)
        h{n}_new = Mul (o{n}, s{n})
    """


def _graph(
    *, cells: int = 1, axis: int = 1, after: str = "y = Neg (h{last}_end)", outputs: str = "float[B, 4] y",
    more: str = "", collected: str = "", frames: str = "T", count: str = "count", batch: str = "2",
) -> str:  # fmt: skip
    order = range(cells)
    weights = [
        f"float[16, {3 if n == 0 else HIDDEN}] w{n}, float[16, 4] r{n}, float[16] p{n}, float[16] q{n}"
        for n in order
    ]
    carried = [f"{kind}{n}" for n in order for kind in "hm"]
    inside = ", ".join(f"float[B, 4] {name}" for name in carried)
    new = ", ".join(f"float[B, 4] {name}_new" for name in carried)
    ends = ", ".join(f"{name}_end" for name in carried)
    rows = f", float[B, 4] {collected}" if collected else ""
    body = "".join(_cell(n, "x" if n == 0 else f"h{n - 1}_new") for n in order)
    dims = f"B, {frames}, 3" if axis == 1 else f"{frames}, B, 3"
    text = f"""
        g (float[{dims}] xs, float[2, 4] first, int64 n) => ({outputs})
        <{", ".join(weights)}, int64 place = {{{axis}}}, int64[1] batch = {{{1 - axis}}},
         int64[1] width = {{4}}, bool yes = {{1}}> {{
          sizes = Shape (xs)
          count = Gather <axis = 0> (sizes, place)
          rows = Gather <axis = 0> (sizes, batch)
          target = Concat <axis = 0> (rows, width)
          zeros = ConstantOfShape (target)
          ones = ConstantOfShape <value = float[1] {{1}}> (target)
          {ends}{", all" if collected else ""} = Loop ({count}, yes, {", ".join(["zeros"] * len(carried))}) <
            body = b (int64 t, bool go, {inside}) => (bool on, {new}{rows}) {{
              on = Identity (go)
              x = Gather <axis = {axis}> (xs, t)
              {body}
              {more}
            }}>
          {after.format(last=cells - 1)}
        }}
    """
    return re.sub(r"\bB\b", batch, text)


def _kinds(proto: onnx.ModelProto) -> list[str]:
    """Operators of the main graph, and of an If behind it, without those around sizes."""
    skipped = {"Shape", "Gather", "Concat", "ConstantOfShape"}
    nodes = list(proto.graph.node)
    for graph in (
        attribute.g for node in nodes if node.op_type == "If" for attribute in node.attribute
    ):
        nodes += graph.node
    return [node.op_type for node in nodes if node.op_type not in skipped]


# What an If around the operators adds.
_GUARD = ["Size", "Cast", "If", "Identity"]


def _feeds(batch: int, frames: int, axis: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (batch, frames, 3) if axis == 1 else (frames, batch, 3)
    first = np.zeros((2, 4), np.float32)
    return {"xs": rng.normal(size=shape).astype(np.float32), "first": first, "n": np.array(2)}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("cells", [1, 3])
@pytest.mark.parametrize("batch", ["2", "B"])
def test_cells_become_operators_over_the_whole_sequence(batch: str, cells: int, axis: int) -> None:
    """onnxruntime's operator ends the process when there is no sample; the loop does not."""
    before = model(_graph(cells=cells, axis=axis, batch=batch))
    got, outcome = run_pass(LSTM, before)
    onnx.checker.check_model(got, full_check=True)
    expected = ["Transpose"] * axis + ["LSTM", "Squeeze"] * cells + ["Neg"]
    assert sorted(_kinds(got)) == sorted(expected + (_GUARD if batch == "B" else []))
    assert outcome.stats["loops made an LSTM"] == 1
    sizes = [(2, 1), (2, 7), (2, 0)] + ([(1, 3), (0, 4), (0, 0), (3, 0)] if batch == "B" else [])
    feeds = [_feeds(*each, axis) for each in sizes]
    assert_same(before, got, feeds=feeds, runtimes=("onnxruntime",))
    assert_same(before, got, feeds=feeds[:2])
    assert_rolls_back(LSTM, before)


@pytest.mark.parametrize(("batch", "frames"), [("2", "5"), ("B", "5"), ("2", "T"), ("B", "T")])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_collected_of_any_cell_and_its_last_states(
    batch: str, frames: str, axis: int
) -> None:
    rows = "5, B, 4" if frames == "5" else "T, B, 4"
    before = model(
        _graph(
            cells=2,
            axis=axis,
            frames=frames,
            batch=batch,
            collected="h0_new",
            after="y = Neg (h0_end) z = Exp (m1_end) u = Abs (all)",
            outputs=f"float[B, 4] y, float[B, 4] z, float[{rows}] u",
        )
    )
    got, _ = run_pass(LSTM, before)
    onnx.checker.check_model(got, full_check=True)
    assert _kinds(got).count("LSTM") == 2
    assert ("If" in _kinds(got)) == ((batch, frames) != ("2", "5"))
    sizes = (
        [(2, 5)] + ([(0, 5), (3, 5)] if batch == "B" else []) + ([(2, 0)] if frames == "T" else [])
    )
    # The reference joins what is collected where it should stack it.
    feeds = [_feeds(*each, axis) for each in sizes]
    assert_same(before, got, feeds=feeds, runtimes=("onnxruntime",))
    assert_rolls_back(LSTM, before)


def _assert_stays(text: str, changed: str, *, reason: str = "") -> None:
    assert changed != text
    outcome = assert_refuses(LSTM, changed, code="LSM101")
    assert any(reason in item.message for item in outcome.diagnostics)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("(count, yes, zeros", "(n, yes, zeros", "length"),
        ("place = {1}", "place = {0}", "length"),
        ("yes, zeros, zeros", "yes, ones, zeros", "zeros"),
        ("yes, zeros, zeros", "yes, first, zeros", "zeros"),
        ("on = Identity (go)", "on = Less (t, n)", "early"),
        ("Gather <axis = 1> (xs, t)", "Gather <axis = 1> (xs, n)", "order"),
    ],
)
def test_a_loop_that_is_more_or_less_than_that_stays(old: str, new: str, reason: str) -> None:
    text = _graph()
    _assert_stays(text, text.replace(old, new), reason=reason)


def test_a_body_that_does_more_stays() -> None:
    text = _graph(
        collected="extra", more="extra = Neg (h0_new)", after="y = ReduceSum <keepdims = 0> (all)",
        outputs="float y",
    )  # fmt: skip
    assert_unchanged(LSTM, text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("i0 = Sigmoid (gi0)", "i0 = Tanh (gi0)"),
        ("c0 = Tanh (gc0)", "c0 = Relu (gc0)"),
        ("k0 = Mul (f0, m0)", "k0 = Mul (f0, h0)"),
        ("k0 = Mul (f0, m0)", "k0 = Mul (i0, m0)"),
        ("s0 = Tanh (m0_new)", "s0 = Tanh (l0)"),
        ("h0_new = Mul (o0, s0)", "h0_new = Mul (o0, m0_new)"),
        ("a0 = Gemm <transB = 1> (x, w0, p0)", "a0 = Gemm <transB = 1, alpha = 2.0> (x, w0, p0)"),
        ("g0 = Add (a0, b0)", "g0 = Sub (a0, b0)"),
        ("<axis = 1, num_outputs = 4> (g0)", "<axis = 1> (g0, parts)"),
        ("m0_new = Add (k0, l0)", "m0_new = Sub (k0, l0)"),
    ],
)
def test_a_body_that_only_looks_like_a_cell_stays(old: str, new: str) -> None:
    text = _graph().replace("int64[1] width", "int64[4] parts = {3, 5, 4, 4}, int64[1] width")
    changed = text.replace(old, new)
    assert changed != text
    if "parts)" in new:
        changed = re.sub(r"float\[2, 4\] ([hm]0)", r"float[?, ?] \1", changed)
    assert_unchanged(LSTM, changed)


def _operator_loop(
    lstm: str = "LSTM <hidden_size = 4>", row: str = "Identity (h_new)", batch: str = "2"
) -> str:
    """As exporters write a loop over an LSTMCell."""
    text = f"""
        g (float[5, B, 3] xs) => (float[B, 4] y, float[5, B, 4] z)
        <float[1, 16, 3] w, float[1, 32] b, int64 place = {{0}}, int64[1] batch = {{1}}, int64[1] width = {{4}},
         int64[1] axes = {{0}}, bool yes = {{1}}> {{
          sizes = Shape (xs)
          count = Gather <axis = 0> (sizes, place)
          rows = Gather <axis = 0> (sizes, batch)
          target = Concat <axis = 0> (rows, width)
          zeros = ConstantOfShape (target)
          h_end, m_end, z = Loop (count, yes, zeros, zeros) <
            body = b (int64 t, bool go, float[B, 4] h, float[B, 4] m)
                => (bool on, float[B, 4] h_new, float[B, 4] m_new, float[B, 4] h_new2)
                <float[1, 16, 4] r> {{
              on = Identity (go)
              x = Gather <axis = 0> (xs, t)
              x1 = Unsqueeze (x, axes)
              h1 = Unsqueeze (h, axes)
              m1 = Unsqueeze (m, axes)
              all, h2, m2 = {lstm} (x1, w, r, b, , h1, m1)
              h_new = Squeeze (h2, axes)
              m_new = Squeeze (m2, axes)
              h_new2 = {row}
            }}>
          y = Add (h_end, m_end)
        }}
    """
    return re.sub(r"\bB\b", batch, text)


@pytest.mark.parametrize("batch", ["2", "B"])
def test_operators_for_one_step_become_one_for_all(batch: str) -> None:
    before = model(_operator_loop(batch=batch))
    got, _ = run_pass(LSTM, before)
    onnx.checker.check_model(got, full_check=True)
    assert _kinds(got).count("LSTM") == 1
    assert "Loop" not in _kinds(got)
    # Without a sample, the operators for one step end the process themselves.
    sizes = [(2, 5)] if batch == "2" else [(2, 5), (1, 5)]
    feeds = [{"xs": _feeds(*each, 0)["xs"]} for each in sizes]
    assert_same(before, got, feeds=feeds, runtimes=("onnxruntime",))
    assert_rolls_back(LSTM, before)


@pytest.mark.parametrize(
    "text",
    [
        _operator_loop('LSTM <hidden_size = 4, direction = "reverse">'),
        _operator_loop("LSTM <hidden_size = 4, clip = 0.5>"),
        _operator_loop("LSTM <hidden_size = 4, layout = 0>"),
        _operator_loop(row="Neg (h_new)"),
        _operator_loop(row="Identity (m_new)"),
        _operator_loop().replace("x1, w, r, b", "x1, w, r, h1"),
    ],
)
def test_operators_of_another_kind_and_bodies_that_do_more_stay(text: str) -> None:
    assert_unchanged(LSTM, text)


def test_operators_that_hand_their_output_on_as_it_is() -> None:
    text = _operator_loop()
    text = text.replace(
        "float[1, 16, 4] r>", "float[1, 16, 4] r, float[1, 16, 4] u, float[1, 16, 4] v>"
    )
    text = text.replace("zeros, zeros)", "zeros, zeros, zeros, zeros)")
    text = text.replace("h_end, m_end, z", "h_end, m_end, i_end, n_end, z")
    text = text.replace("float[2, 4] m)", "float[2, 4] m, float[2, 4] i, float[2, 4] n)")
    text = text.replace(
        "float[2, 4] m_new,", "float[2, 4] m_new, float[2, 4] i_new, float[2, 4] n_new,"
    )
    second = """
        i1 = Unsqueeze (i, axes)
        n1 = Unsqueeze (n, axes)
        , i2, n2 = LSTM <hidden_size = 4> (h2, u, v, , , i1, n1)
        i_new = Squeeze (i2, axes)
        n_new = Squeeze (n2, axes)
        h_new2 =
    """
    before = model(text.replace("h_new2 =", second).replace("Identity (h_new)", "Identity (i_new)"))
    got, _ = run_pass(LSTM, before)
    assert _kinds(got).count("LSTM") == 2
    assert "Loop" not in _kinds(got)
    assert_same(before, got, feeds=[{"xs": _feeds(2, 5, 0)["xs"]}], runtimes=("onnxruntime",))


@given(st.lists(st.booleans(), min_size=12, max_size=12), st.integers(1, 3), st.integers(0, 1))
@settings(max_examples=15, deadline=None)
def test_operands_in_any_order(turned: list[bool], cells: int, axis: int) -> None:
    """Sums and products of a cell may be written either way round."""
    turns = iter(turned * cells)

    def turn(found: re.Match[str]) -> str:
        kind, first, second = found.groups()
        return f"{kind} ({second}, {first})" if next(turns) else found.group()

    before = model(re.sub(r"(Add|Mul) \((\w+), (\w+)\)", turn, _graph(cells=cells, axis=axis)))
    got = assert_holds(LSTM, before, feeds=[_feeds(2, 4, axis)], runtimes=("onnxruntime",))
    assert _kinds(got).count("LSTM") == cells
