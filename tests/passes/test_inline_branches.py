"""inline-branches: an If that always goes the same way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from onnxcomp_passes.simplify.inline_branches import InlineBranches
from tests.helpers.check import (
    assert_holds,
    assert_refuses,
    assert_rewrites,
    assert_unchanged,
    run_pass,
)
from tests.helpers.strategies import graphs
from tests.helpers.text import model

INLINE = InlineBranches()


def test_moves_the_branch_that_runs_with_its_weights_and_captures() -> None:
    outcome = assert_rewrites(
        INLINE,
        before="""
            g (float[2] x) => (float[2] y, float[2] u) <bool c = {1}> {
              a = Exp (x)
              y, u = If (c) <
                then_branch = t () => (float[2] p, float[2] r) <float[2] w> {
                  b = Add (a, w) p = Relu (b) r = Neg (b) },
                else_branch = e () => (float[2] q, float[2] s) { q = Neg (a) s = Exp (a) }>
            }
        """,
        after="""
            g (float[2] x) => (float[2] y, float[2] u) <bool c = {1}, float[2] w> {
              a = Exp (x)
              b = Add (a, w)
              y = Relu (b)
              u = Neg (b)
            }
        """,
    )
    assert outcome.stats["branches inlined"] == 1


def test_takes_the_else_branch_and_goes_on_inside_it() -> None:
    assert_rewrites(
        INLINE,
        before="""
            g (float[2] x) => (float[2] y) <bool no = {0}, bool[1] yes = {1}> {
              z = If (no) <
                then_branch = t () => (float[2] p) { p = Relu (x) },
                else_branch = e () => (float[2] q) {
                  q = If (yes) <
                    then_branch = t2 () => (float[2] p2) { p2 = Abs (x) },
                    else_branch = e2 () => (float[2] q2) { q2 = Neg (x) }>
                }>
              y = Exp (z)
            }
        """,
        after="""
            g (float[2] x) => (float[2] y) <bool no = {0}, bool[1] yes = {1}> {
              z = Abs (x)
              y = Exp (z)
            }
        """,
    )


def test_names_of_the_branch_do_not_collide_with_those_of_other_scopes() -> None:
    assert_rewrites(
        INLINE,
        before="""
            g (float[2] x, bool d) => (float[2] y) <bool c = {1}> {
              v = If (d) <
                then_branch = t1 () => (float[2] p1) { m = Exp (x) p1 = Neg (m) },
                else_branch = e1 () => (float[2] q1) { q1 = Relu (x) }>
              w = If (c) <
                then_branch = t () => (float[2] p) { m = Sin (v) p = Relu (m) },
                else_branch = e () => (float[2] q) { m = Cos (v) q = Neg (m) }>
              z = If (d) <
                then_branch = t3 () => (float[2] p3) { m = Abs (w) p3 = Neg (m) },
                else_branch = e3 () => (float[2] q3) { q3 = Relu (w) }>
              y = Neg (z)
            }
        """,
        after="""
            g (float[2] x, bool d) => (float[2] y) <bool c = {1}> {
              v = If (d) <
                then_branch = t1 () => (float[2] p1) { m = Exp (x) p1 = Neg (m) },
                else_branch = e1 () => (float[2] q1) { q1 = Relu (x) }>
              m2 = Sin (v)
              w = Relu (m2)
              z = If (d) <
                then_branch = t3 () => (float[2] p3) { m = Abs (w) p3 = Neg (m) },
                else_branch = e3 () => (float[2] q3) { q3 = Relu (w) }>
              y = Neg (z)
            }
        """,
    )


def test_one_result_for_two_outputs_and_a_weight_as_result() -> None:
    assert_rewrites(
        INLINE,
        before="""
            g (float[2] x) => (float[2] y, float[2] z, float[2] u) <bool c = {1}> {
              y, z, u = If (c) <
                then_branch = t () => (float[2] p, float[2] p, float[2] w) {
                  p = Relu (x)
                  w = Constant <value = float[2] {1, 2}> ()
                },
                else_branch = e () => (float[2] q, float[2] r, float[2] s) {
                  q = Neg (x) r = Exp (x) s = Abs (x)
                }>
            }
        """,
        after="""
            g (float[2] x) => (float[2] y, float[2] z, float[2] u) <bool c = {1}> {
              y = Relu (x)
              z = Identity (y)
              u = Constant <value = float[2] {1, 2}> ()
            }
        """,
        runtimes=("reference",),  # onnxruntime returns garbage for a repeated result of a branch
    )


def test_works_in_the_body_of_a_loop_and_in_functions() -> None:
    assert_rewrites(
        INLINE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (int64 n, float[2] x) => (float[2] y) <bool go = {1}> {
              z = Loop (n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                d = Identity (c)
                t = If (go) <
                  then_branch = t1 () => (float[2] p) { p = Sin (s) },
                  else_branch = e1 () => (float[2] q) { q = Neg (s) }>
              }>
              y = f.calls (z)
            }
            <domain: "f", opset_import: ["" : 21]>
            calls (a) => (r) {
              no = Constant <value = bool {0}> ()
              r = If (no) <
                then_branch = t2 () => (float[2] p) { p = Neg (a) },
                else_branch = e2 () => (float[2] q) { q = Cos (a) }>
            }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (int64 n, float[2] x) => (float[2] y) <bool go = {1}> {
              z = Loop (n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                d = Identity (c)
                t = Sin (s)
              }>
              y = f.calls (z)
            }
            <domain: "f", opset_import: ["" : 21]>
            calls (a) => (r) {
              no = Constant <value = bool {0}> ()
              r = Cos (a)
            }
        """,
    )


def test_keeps_an_if_whose_condition_a_caller_may_set() -> None:
    assert_unchanged(
        INLINE,
        """
            g (float[2] x, bool c = {1}) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Relu (x) },
                else_branch = e () => (float[2] q) { q = Neg (x) }>
            }
        """,
    )


def test_shapes_that_contradict_each_other_stay_hidden() -> None:
    graph = """
        g (float[2, 3] x, float[2, 4] z) => (float[2, 5] y) <bool c = {1}, float[4, 5] w> {
          a = If (c) <
            then_branch = t () => (float[2, 3] p) { p = Relu (x) },
            else_branch = e () => (float[2, 4] q) { q = Neg (z) }>
          y = MatMul (a, w)
        }
    """
    assert_refuses(INLINE, graph, code="INL101")


def test_a_weight_that_is_the_result_of_a_branch() -> None:
    assert_rewrites(
        INLINE,
        before="""
            g (float[2] x) => (float[2] y, float[2] u) <bool c = {1}> {
              y, u = If (c) <
                then_branch = t () => (float[2] p, float[2] w) <float[2] w = {1, 2}> { p = Relu (x) },
                else_branch = e () => (float[2] q, float[2] s) { q = Neg (x) s = Exp (x) }>
            }
        """,
        after="""
            g (float[2] x) => (float[2] y, float[2] u) <bool c = {1}, float[2] w = {1, 2}> {
              y = Relu (x)
              u = Identity (w)
            }
        """,
    )


def test_the_condition_around_tells_that_of_an_if_inside() -> None:
    assert_rewrites(
        INLINE,
        before="""
            g (float[2] x, bool c, bool d) => (float[2] y) {
              n = Not (c)
              both = And (c, d)
              y = If (both) <
                then_branch = t () => (float[2] p) {
                  a = If (n) <
                    then_branch = t2 () => (float[2] p2) { p2 = Abs (x) },
                    else_branch = e2 () => (float[2] q2) { q2 = Neg (x) }>
                  p = If (d) <
                    then_branch = t3 () => (float[2] p3) { p3 = Exp (a) },
                    else_branch = e3 () => (float[2] q3) { q3 = Sin (a) }>
                },
                else_branch = e () => (float[2] q) {
                  b = If (both) <
                    then_branch = t4 () => (float[2] p4) { p4 = Abs (x) },
                    else_branch = e4 () => (float[2] q4) { q4 = Cos (x) }>
                  q = If (c) <
                    then_branch = t5 () => (float[2] p5) { p5 = Tan (b) },
                    else_branch = e5 () => (float[2] q5) { q5 = Relu (b) }>
                }>
            }
        """,
        after="""
            g (float[2] x, bool c, bool d) => (float[2] y) {
              n = Not (c)
              both = And (c, d)
              y = If (both) <
                then_branch = t () => (float[2] p) { a = Neg (x) p = Exp (a) },
                else_branch = e () => (float[2] q) {
                  b = Cos (x)
                  q = If (c) <
                    then_branch = t5 () => (float[2] p5) { p5 = Tan (b) },
                    else_branch = e5 () => (float[2] q5) { q5 = Relu (b) }>
                }>
            }
        """,
    )


def _before_lstm(then: str, otherwise: str, *, reader: str = "", results: str = "") -> str:
    """An If whose result an LSTM reads after an Unsqueeze."""
    return f"""
        g (float[N, 3] x, float[N, 3, M] z, bool c) => (float[D, N, 4] y{results})
        <float[1, 16, 3] w, float[1, 16, 4] r, int64[1] first = {{0}}, int64[1] last = {{2}}> {{
          a = If (c) <
            then_branch = t () => (float[?, ?] p) {{ p = {then} }},
            else_branch = e () => (float[?, ?] q) {{ q = {otherwise} }}>
          s = Unsqueeze (a, first)
          {reader or ", y = LSTM <hidden_size = 4> (s, w, r)"}
        }}
    """


def test_a_branch_whose_rank_a_reader_would_refuse_does_not_run() -> None:
    assert_rewrites(
        INLINE,
        before=_before_lstm("Identity (x)", "Identity (z)"),
        after="""
            g (float[N, 3] x, float[N, 3, M] z, bool c) => (float[D, N, 4] y)
            <float[1, 16, 3] w, float[1, 16, 4] r, int64[1] first = {0}, int64[1] last = {2}> {
              a = Identity (x)
              s = Unsqueeze (a, first)
              , y = LSTM <hidden_size = 4> (s, w, r)
            }
        """,
        full_check=False,  # onnx takes the declared rank of a branch for that of the result
        runtimes=(),
    )


def test_a_chain_of_branches_is_followed_from_its_end() -> None:
    """As silero writes it: squeezed if the last dimension is 1, and batched if it is a matrix."""
    got = run_pass(
        INLINE,
        model("""
            g (float[N, 3, M] z) => (float[D, N, 4] y)
            <float[1, 16, 3] w, float[1, 16, 4] r, int64[1] first = {0}, int64[1] last = {2},
             int64 two = {2}, int64[1] one = {1}> {
              shape = Shape (z)
              size = Gather (shape, last)
              c = Equal (size, one)
              a = If (c) <
                then_branch = t () => (float[?, ?] p) { p = Squeeze (z, last) },
                else_branch = e () => (float[?, ?, ?] q) { q = Identity (z) }>
              dims = Shape (a)
              rank = Size (dims)
              matrix = Equal (rank, two)
              other = Not (matrix)
              b = If (other) <
                then_branch = t2 () => (float[?, ?] p2) { p2 = Unsqueeze (a, first) },
                else_branch = e2 () => (float[?, ?] q2) { q2 = Identity (a) }>
              s = Unsqueeze (b, first)
              , y = LSTM <hidden_size = 4> (s, w, r)
            }
        """),
    )[0]
    kinds = [node.op_type for node in got.graph.node]
    assert "If" not in kinds
    assert kinds.index("Squeeze") < kinds.index("LSTM")


@pytest.mark.parametrize(
    ("then", "otherwise", "reader", "results"),
    [
        ("Identity (x)", "Neg (x)", "", ""),
        ("Identity (x)", "Squeeze (z)", "", ""),
        ("Identity (x)", "Identity (z)", "y = Relu (s)", ""),
        # Whoever runs the model may leave out what nobody needs, with the checks it makes.
        (
            "Identity (x)",
            "Identity (z)",
            "y = Relu (s) , unused = LSTM <hidden_size = 4> (s, w, r)",
            "",
        ),
    ],
)
def test_ranks_that_tell_nothing(then: str, otherwise: str, reader: str, results: str) -> None:
    assert_unchanged(INLINE, _before_lstm(then, otherwise, reader=reader, results=results))


def test_a_reader_in_a_branch_that_may_not_run_tells_nothing() -> None:
    assert_unchanged(
        INLINE,
        _before_lstm(
            "Identity (x)",
            "Identity (z)",
            reader="""
                y = If (c) <
                  then_branch = t3 () => (float[?, ?, ?] p3) { , p3 = LSTM <hidden_size = 4> (s, w, r) },
                  else_branch = e3 () => (float[?, ?, ?] q3) { q3 = Neg (s) }>
            """,
        ),
    )


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_numbers_stay(text: str) -> None:
    assert_holds(INLINE, text, rtol=0, atol=0)
