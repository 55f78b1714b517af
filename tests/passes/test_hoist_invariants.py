"""hoist-invariants: what is the same in each turn of a loop is computed before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxcomp_passes.simplify.hoist_invariants import HoistInvariants
from tests.helpers.check import assert_rewrites, assert_unchanged

if TYPE_CHECKING:
    from tests.helpers.numbers import Feeds

HOIST = HoistInvariants()


def _feeds(*trips: int, **more: np.ndarray) -> list[Feeds]:
    x = np.array([0.5, -1.25], np.float32)
    return [{"n": np.array(count), "x": x, **more} for count in trips]


def test_moves_what_does_not_depend_on_the_turn_with_its_constants() -> None:
    outcome = assert_rewrites(
        HOIST,
        before="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) {
              y = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) <float[2] u = {1, 2}> {
                  d = Identity (c)
                  k = Exp (w)
                  l = Mul (k, u)
                  m = Add (s, l)
                  t = Mul (m, u)
                }>
            }
        """,
        after="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) <float[2] u2 = {1, 2}> {
              k = Exp (w)
              l = Mul (k, u2)
              y = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) <float[2] u = {1, 2}> {
                  d = Identity (c)
                  m = Add (s, l)
                  t = Mul (m, u2)
                }>
            }
        """,
        feeds=_feeds(0, 1, 3, w=np.array([2, 3], np.float32)),
    )
    assert outcome.stats["moved out of loops"] == 2


def test_moves_out_of_a_loop_in_a_loop_as_far_as_possible() -> None:
    assert_rewrites(
        HOIST,
        before="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) {
              y = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c)
                  t = Loop (n, , s) <
                    body = b2 (int64 i2, bool c2, float[2] s2) => (bool d2, float[2] t2) {
                      d2 = Identity (c2)
                      k = Exp (w)
                      l = Mul (k, s)
                      m = Sin (s2)
                      t2 = Add (l, m)
                    }>
                }>
            }
        """,
        after="""
            g (int64 n, float[2] x, float[2] w) => (float[2] y) {
              k = Exp (w)
              y = Loop (n, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c)
                  l = Mul (k, s)
                  t = Loop (n, , s) <
                    body = b2 (int64 i2, bool c2, float[2] s2) => (bool d2, float[2] t2) {
                      d2 = Identity (c2)
                      m = Sin (s2)
                      t2 = Add (l, m)
                    }>
                }>
            }
        """,
        feeds=_feeds(0, 2, w=np.ones(2, np.float32)),
    )


# What may move out of any loop, and what only out of one that runs.
_RISKY = {
    "a product whose sizes may not fit": ("", "k = MatMul (p, q)"),
    "a sum whose sizes may not fit": ("o = Transpose <perm = [1, 0]> (q)", "k = Add (p, o)"),
    "a division of integers": ("a = Cast <to = 7> (p)", "o = Div (a, a) k = Cast <to = 1> (o)"),
    "an access by place": ("", "k = Gather (p, j)"),
    "a shape that may not fit": ("", "k = Reshape (p, r)"),
    "a choice": (
        "",
        """k = If (go) <then_branch = t () => (float[?, ?] e) { e = Exp (p) },
                        else_branch = f () => (float[?, ?] h) { h = MatMul (p, q) }>""",
    ),
}


def _loop(outside: str, inside: str, count: str, condition: str = "") -> str:
    return f"""
        g (int64 n, float[2] x, float[A, B] p, float[C, D] q, int64[1] j, int64[2] r, bool go) => (float y)
        <float zero, int64 three = {{3}}, bool yes = {{1}}> {{
          {outside}
          y = Loop ({count}, {condition}, zero) <
            body = b (int64 i, bool c, float s) => (bool d, float t) {{
              d = Identity (c)
              {inside}
              t = Add (s, m)
            }}>
        }}
    """


_SUM = "m = ReduceSum <keepdims = 0> (k)"


@pytest.mark.parametrize(("safe", "line"), _RISKY.values(), ids=_RISKY.keys())
@pytest.mark.parametrize(("count", "condition"), [("n", ""), ("three", "go"), ("", "go")])
def test_what_may_fail_stays_in_a_loop_that_may_not_run(
    safe: str, line: str, count: str, condition: str
) -> None:
    before = _loop("", f"{safe} {line} {_SUM}", count, condition)
    if safe:
        after = _loop(safe, f"{line} {_SUM}", count, condition)
        assert_rewrites(HOIST, before=before, after=after, runtimes=())
    else:
        assert_unchanged(HOIST, before)


@pytest.mark.parametrize(("safe", "line"), _RISKY.values(), ids=_RISKY.keys())
def test_everything_moves_out_of_a_loop_that_runs(safe: str, line: str) -> None:
    lines = f"{safe} {line} {_SUM}"
    before, after = _loop("", lines, "three", "yes"), _loop(lines, "", "three", "yes")
    assert_rewrites(HOIST, before=before, after=after, runtimes=())


def test_keeps_what_is_random_unknown_or_a_result() -> None:
    assert_unchanged(
        HOIST,
        """
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g (float[2] x, float[2] w) => (float[2] y, float[N, 2] z) <int64 three = {3}> {
              y, z = Loop (three, , x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o) {
                  d = Identity (c)
                  k = RandomNormalLike (w)
                  l = acme.Do (w)
                  o = Exp (w)
                  t = Sum (s, k, l)
                }>
            }
        """,
    )


def test_moves_out_of_a_scan_over_something() -> None:
    assert_rewrites(
        HOIST,
        before="""
            g (float[2] x, float[A, B] p, float[C, D] q, float[5, 2] u) => (float[2] y) {
              y = Scan <num_scan_inputs = 1,
                body = b (float[2] s, float[2] e) => (float[2] t) {
                  k = MatMul (p, q) m = ReduceSum <keepdims = 0> (k) n = Mul (e, m) t = Add (s, n)
                }> (x, u)
            }
        """,
        after="""
            g (float[2] x, float[A, B] p, float[C, D] q, float[5, 2] u) => (float[2] y) {
              k = MatMul (p, q)
              m = ReduceSum <keepdims = 0> (k)
              y = Scan <num_scan_inputs = 1,
                body = b (float[2] s, float[2] e) => (float[2] t) { n = Mul (e, m) t = Add (s, n) }> (x, u)
            }
        """,
        runtimes=(),
    )
