"""simplify-loops: what loops carry for nothing, and loops that run never or once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.simplify.hoist_invariants import HoistInvariants
from onnxcomp_passes.simplify.simplify_loops import SimplifyLoops
from tests.helpers.check import assert_rewrites, assert_unchanged
from tests.helpers.nested import draw, feeds
from tests.helpers.numbers import RUNTIMES, Feeds, assert_same_numbers

LOOPS = SimplifyLoops()


def _feeds(*trips: int, **more: np.ndarray) -> list[Feeds]:
    x = np.array([0.5, -1.25], np.float32)
    return [{"n": np.array(count), "x": x, **more} for count in trips]


def test_a_carried_value_that_never_changes_is_read_from_outside() -> None:
    outcome = assert_rewrites(
        LOOPS,
        before="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y, float[2] z) {
              a, b = Loop (n, , x, w) <
                body = b (int64 i, bool c, float[2] s, float[2] k) => (bool d, float[2] t, float[2] l) {
                  d = Identity (c)
                  t = Mul (s, k)
                  m = Identity (k)
                  l = Identity (m)
                }>
              y = Neg (a)
              z = Exp (b)
            }
        """,
        after="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y, float[2] z) {
              a = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c)
                  t = Mul (s, w)
                }>
              y = Neg (a)
              z = Exp (w)
            }
        """,
        feeds=_feeds(0, 1, 3, w=np.array([2, 3], np.float32)),
    )
    assert outcome.stats["carried values that never change"] == 1


def test_what_nobody_reads_is_neither_carried_nor_collected() -> None:
    assert_rewrites(
        LOOPS,
        before="""
            g (int64 n, float[2] x) => (float[2] y, float[N, 2] z) {
              y, u, v, w, z = Loop (n, , x, x, x) <
                body = b (int64 i, bool c, float[2] s, float[2] p, float[2] q)
                    => (bool d, float[2] t, float[2] p2, float[2] q2, float[2] r, float[2] o) {
                  d = Identity (c)
                  t = Sin (s)
                  p2 = Add (p, q)
                  q2 = Exp (p)
                  r = Neg (q)
                  o = Cos (s)
                }>
            }
        """,
        after="""
            g (int64 n, float[2] x) => (float[2] y, float[N, 2] z) {
              y, z = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {
                  d = Identity (c)
                  t = Sin (s)
                  o = Cos (s)
                }>
            }
        """,
        feeds=_feeds(0, 1, 3),
        runtimes=("onnxruntime",),  # the reference runs no turn without a condition
    )


def test_keeps_a_carried_value_that_the_condition_or_another_one_needs() -> None:
    assert_unchanged(
        LOOPS,
        """
            g (int64 n, float[2] x, float k, bool go) => (float[2] y) <float one = {1}, float ten = {10}> {
              y, u, v = Loop (n, go, x, k, x) <
                body = b (int64 i, bool c, float[2] s, float p, float[2] q)
                    => (bool d, float[2] t, float p2, float[2] q2) {
                  p2 = Add (p, one)
                  d = Less (p2, ten)
                  t = Add (s, q)
                  q2 = Sin (q)
                }>
            }
        """,
    )


def test_keeps_values_that_are_handed_from_one_place_to_another() -> None:
    assert_unchanged(
        LOOPS,
        """
            g (int64 n, float[2] x, float[2] w) => (float[2] y, float[N, 2] z) {
              y, u, z = Loop (n, , x, w) <
                body = b (int64 i, bool c, float[2] s, float[2] k) => (bool d, float[2] k, float[2] k, float[2] s) {
                  d = Identity (c)
                }>
            }
        """,
    )


def test_a_turn_knows_that_its_condition_is_true() -> None:
    assert_rewrites(
        LOOPS,
        before="""
            g (int64 n, float[2] x, bool go) => (float[2] y) {
              y = Loop (n, go, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c)
                  t = If (c) <
                    then_branch = t1 () => (float[2] p) { p = Sin (s) },
                    else_branch = e1 () => (float[2] q) { q = Cos (s) }>
                }>
            }
        """,
        after="""
            g (int64 n, float[2] x, bool go) => (float[2] y) {
              y = Loop (n, go, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) <bool c2 = {1}> {
                  d = Constant <value = bool {1}> ()
                  t = If (c2) <
                    then_branch = t1 () => (float[2] p) { p = Sin (s) },
                    else_branch = e1 () => (float[2] q) { q = Cos (s) }>
                }>
            }
        """,
        feeds=[
            {"n": np.array(count), "x": np.ones(2, np.float32), "go": np.array(go)}
            for count, go in ((0, True), (3, True), (3, False))
        ],
    )


@pytest.mark.parametrize(
    ("count", "condition"), [("no", ""), ("no", "yes"), ("n", "never"), ("less", "")]
)
def test_a_loop_that_never_runs_gives_its_initial_values(count: str, condition: str) -> None:
    constants = "int64 no = {0}, bool yes = {1}, bool never = {0}, int64 less = {-3}"
    assert_rewrites(
        LOOPS,
        before=f"""
            g (int64 n, float[2] x) => (float[2] y, float[M, 2] z) <{constants}> {{
              a, b = Loop ({count}, {condition}, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {{
                  d = Identity (c) t = Sin (s) o = Cos (x)
                }}>
              y = Neg (a)
              z = Abs (b)
            }}
        """,
        after=f"""
            g (int64 n, float[2] x) => (float[2] y, float[M, 2] z) <{constants}, float[0, 2] b = {{}}> {{
              y = Neg (x)
              z = Abs (b)
            }}
        """,
        feeds=_feeds(0, 3),
        runtimes=("onnxruntime",),  # the reference cannot collect nothing
    )


def test_keeps_a_loop_that_never_runs_but_gives_nothing_of_unknown_shape() -> None:
    assert_unchanged(
        LOOPS,
        """
            g (float[2] x, float[K] k) => (float[M, ?] z) <int64 no = {0}, bool yes = {1}> {
              b = Loop (no, yes) <
                body = b (int64 i, bool c) => (bool d, float[?] o) { d = Constant <value = bool {1}> () o = Cos (k) }>
              z = Abs (b)
            }
        """,
    )


@pytest.mark.parametrize(
    ("count", "condition", "go_on"),
    [
        ("one", "", "Identity (c)"),
        ("one", "yes", "Identity (c)"),
        ("n", "yes", "Constant <value = bool {0}> ()"),
    ],
)
def test_a_loop_that_runs_once_becomes_its_body(count: str, condition: str, go_on: str) -> None:
    text = """
        g (int64 n, float[2] x) => (float[2] y, float[M, 2] z)
        <int64 one = {1}, bool yes = {1}%s> {
          %s
        }
    """
    constants = ", int64 i2 = {0}, int64[1] axes = {0}"
    condition_line = {"Identity (c)": "d = Identity (c2)"}.get(go_on, f"d = {go_on}")
    if "Identity" in go_on:
        constants += ", bool c2 = {1}"
    before = text % (
        "",
        f"""y, z = Loop ({count}, {condition}, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {{
                  d = {go_on} f = Cast <to = 1> (i) t = Add (s, f) o = Cos (s)
                }}>""",
    )
    if count == "n":
        # The trip count may be 0.
        assert_unchanged(LOOPS, before)
        return
    after = text % (
        constants,
        f"{condition_line} f = Cast <to = 1> (i2) y = Add (x, f) o = Cos (x) z = Unsqueeze (o, axes)",
    )
    # The reference runs no turn without a condition.
    runtimes = RUNTIMES if condition else RUNTIMES[1:]
    assert_rewrites(LOOPS, before=before, after=after, feeds=_feeds(0, 3), runtimes=runtimes)


def test_a_loop_without_count_that_ends_after_a_turn() -> None:
    assert_rewrites(
        LOOPS,
        before="""
            g (float[2] x) => (float[2] y) <bool yes = {1}> {
              y = Loop ( , yes, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Constant <value = bool {0}> () t = Sin (s)
                }>
            }
        """,
        after="""
            g (float[2] x) => (float[2] y) <bool yes = {1}> {
              d = Constant <value = bool {0}> ()
              y = Sin (x)
            }
        """,
    )


def test_the_same_for_a_scan() -> None:
    assert_rewrites(
        LOOPS,
        before="""
            g (float[2] x, float[2] w, float[N, 2] u, float[2, N] v) => (float[2] y, float[N, 2] z) {
              y, k, d, z, o = Scan <num_scan_inputs = 3, scan_input_axes = [0, 1, 0], scan_input_directions = [0, 1, 0],
                                    scan_output_directions = [1, 0],
                body = b (float[2] s, float[2] r, float[2] q, float[2] e, float[2] f, float[2] h)
                    => (float[2] t, float[2] r2, float[2] q2, float[2] a, float[2] o2) {
                  m = Mul (s, r)
                  t = Add (m, f)
                  r2 = Identity (r)
                  q2 = Add (q, e)
                  a = Sin (t)
                  o2 = Exp (q)
                }> (x, w, x, u, v, u)
            }
        """,
        after="""
            g (float[2] x, float[2] w, float[N, 2] u, float[2, N] v) => (float[2] y, float[N, 2] z) {
              y, z = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_input_directions = [1],
                           scan_output_directions = [1],
                body = b (float[2] s, float[2] f) => (float[2] t, float[2] a) {
                  m = Mul (s, w)
                  t = Add (m, f)
                  a = Sin (t)
                }> (x, v)
            }
        """,
        runtimes=("onnxruntime",),  # the reference knows no directions
    )


def test_an_inner_loop_that_needs_less_lets_the_outer_one_need_less() -> None:
    assert_rewrites(
        LOOPS,
        before="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) {
              y, u = Loop (n, , x, w) <
                body = b (int64 i, bool c, float[2] s, float[2] k) => (bool d, float[2] t, float[2] l) {
                  d = Identity (c)
                  t, o = Loop (n, , s, k) <
                    body = b2 (int64 i2, bool c2, float[2] s2, float[2] k2) => (bool d2, float[2] t2, float[2] l2) {
                      d2 = Identity (c2) t2 = Sin (s2) l2 = Add (k2, s2)
                    }>
                  l = Neg (k)
                }>
            }
        """,
        after="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) {
              y = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c)
                  t = Loop (n, , s) <
                    body = b2 (int64 i2, bool c2, float[2] s2) => (bool d2, float[2] t2) {
                      d2 = Identity (c2) t2 = Sin (s2)
                    }>
                }>
            }
        """,
        feeds=_feeds(0, 2, w=np.ones(2, np.float32)),
    )


def _listing(
    insert: str, join: str, body: str = "", initial: str = "SequenceEmpty <dtype = 1> ()"
) -> str:
    return f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (int64 n, float[2] x) => (float[?, ?] y, float[2] u) <bool yes = {{1}}, int64 zero = {{0}}> {{
          q = {initial}
          u, s = Loop (n, yes, x, q) <
            body = b (int64 i, bool c, float[2] e, seq(float[2]) r) => (bool d, float[2] o, seq(float[2]) t) {{
              d = Constant <value = bool {{1}}> ()
              k = Sin (e)
              {body}
              o = Cos (k)
              t = {insert}
            }}>
          {join}
        }}
    """


def _collecting(item: str) -> str:
    return f"""
        <ir_version: 10, opset_import: ["" : 18]>
        g (int64 n, float[2] x) => (float[?, ?] y, float[2] u) <bool yes = {{1}}, int64 zero = {{0}}> {{
          q = SequenceEmpty <dtype = 1> ()
          u, y = Loop (n, yes, x) <
            body = b (int64 i, bool c, float[2] e) => (bool d, float[2] o, float[2] {item}) {{
              d = Constant <value = bool {{1}}> ()
              k = Sin (e)
              o = Cos (k)
              {"" if item == "k" else f"{item} = Identity (e)"}
            }}>
        }}
    """


_STACK = "y = ConcatFromSequence <axis = 0, new_axis = 1> (s)"


@pytest.mark.parametrize(("appended", "item"), [("k", "k"), ("e", "v")])
def test_a_list_that_is_stacked_behind_the_loop_is_collected(appended: str, item: str) -> None:
    outcome = assert_rewrites(
        LOOPS,
        before=_listing(f"SequenceInsert (r, {appended})", _STACK),
        after=_collecting(item),
        feeds=_feeds(1, 3),
        runtimes=("onnxruntime",),
    )
    assert outcome.stats["lists collected"] == 1


@pytest.mark.parametrize(
    "graph",
    [
        _listing("SequenceInsert (r, k, zero)", _STACK),
        _listing("SequenceInsert (r, k)", "y = ConcatFromSequence <axis = 1, new_axis = 1> (s)"),
        _listing("SequenceInsert (r, k)", f"{_STACK} l = SequenceLength (s)"),
        _listing("SequenceInsert (r, k)", _STACK, "l = SequenceLength (r)"),
        _listing("SequenceInsert (r, k)", _STACK, initial="SequenceConstruct (x)"),
        _listing("SequenceInsert (m, k)", _STACK, "m = SequenceInsert (r, e)"),
    ],
)
def test_keeps_a_list_of_which_more_is_asked(graph: str) -> None:
    assert_unchanged(LOOPS, graph)


@given(st.integers(0, 1 << 32))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_random_loops_give_the_same(seed: int) -> None:
    proto = draw(seed)
    for rewrite in (LOOPS, HoistInvariants()):
        got = Pipeline((rewrite,)).run(proto).model.to_proto()
        for feed in feeds():
            assert_same_numbers(proto, got, feed, runtimes=("onnxruntime",))
