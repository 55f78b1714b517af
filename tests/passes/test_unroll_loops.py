"""unroll-loops: loops that run a known number of times become their bodies."""

from __future__ import annotations

import pytest

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.simplify.unroll_loops import UnrollLoops
from tests.helpers.check import assert_refuses, assert_rewrites, assert_unchanged
from tests.helpers.nested import draw, feeds
from tests.helpers.numbers import RUNTIMES, assert_same_numbers

UNROLL = UnrollLoops()


def test_a_body_for_each_turn() -> None:
    outcome = assert_rewrites(
        UNROLL,
        before="""
            g (float[2] x) => (float[2] y, float[M, 2] z) <int64 two = {2}, bool yes = {1}> {
              y, z = Loop (two, yes, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] o)
                    <float[2] w = {1, 2}> {
                  d = Identity (c)
                  f = Cast <to = 1> (i)
                  a = Add (s, f)
                  t = Mul (a, w)
                  o = Sin (s)
                }>
            }
        """,
        after="""
            g (float[2] x) => (float[2] y, float[M, 2] z)
            <int64 two = {2}, bool yes = {1}, bool c0 = {1}, int64 i0 = {0}, int64 i1 = {1},
             float[2] w0 = {1, 2}, int64[1] axes = {0}> {
              d0 = Identity (c0)
              f0 = Cast <to = 1> (i0)
              a0 = Add (x, f0)
              t0 = Mul (a0, w0)
              o0 = Sin (x)
              d1 = Identity (c0)
              f1 = Cast <to = 1> (i1)
              a1 = Add (t0, f1)
              y = Mul (a1, w0)
              o1 = Sin (t0)
              r0 = Unsqueeze (o0, axes)
              r1 = Unsqueeze (o1, axes)
              z = Concat <axis = 0> (r0, r1)
            }
        """,
    )
    assert outcome.stats["turns of loops"] == 2


def test_axes_are_attributes_before_opset_13_and_bodies_in_the_body_are_copied() -> None:
    assert_rewrites(
        UNROLL,
        before="""
            <ir_version: 7, opset_import: ["" : 12]>
            g (float[2] x, bool q) => (float[M, 2] z) <int64 two = {2}> {
              z = Loop (two, ) <
                body = b (int64 i, bool c) => (bool d, float[2] o) {
                  d = Constant <value = bool {1}> ()
                  o = If (q) <
                    then_branch = t () => (float[2] p) { k = Exp (x) p = Neg (k) },
                    else_branch = e () => (float[2] r) { r = Sin (x) }>
                }>
            }
        """.replace("(two, )", "(two, yes)").replace("{2}>", "{2}, bool yes = {1}>"),
        after="""
            <ir_version: 7, opset_import: ["" : 12]>
            g (float[2] x, bool q) => (float[M, 2] z) <int64 two = {2}, bool yes = {1}> {
              d0 = Constant <value = bool {1}> ()
              o0 = If (q) <
                then_branch = t () => (float[2] p) { k = Exp (x) p = Neg (k) },
                else_branch = e () => (float[2] r) { r = Sin (x) }>
              d1 = Constant <value = bool {1}> ()
              o1 = If (q) <
                then_branch = t () => (float[2] p) { k = Exp (x) p = Neg (k) },
                else_branch = e () => (float[2] r) { r = Sin (x) }>
              r0 = Unsqueeze <axes = [0]> (o0)
              r1 = Unsqueeze <axes = [0]> (o1)
              z = Concat <axis = 0> (r0, r1)
            }
        """,
    )


@pytest.mark.parametrize(
    ("count", "condition", "go_on"),
    [
        ("n", "yes", "Identity (c)"),
        ("two", "go", "Identity (c)"),
        ("two", "yes", "Less (i, n)"),
        ("", "yes", "Identity (c)"),
    ],
)
def test_keeps_a_loop_that_may_run_more_or_less_often(
    count: str, condition: str, go_on: str
) -> None:
    assert_unchanged(
        UNROLL,
        f"""
            g (float[2] x, int64 n, bool go) => (float[2] y) <int64 two = {{2}}, bool yes = {{1}}> {{
              y = Loop ({count}, {condition}, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {{
                  d = {go_on} t = Sin (s)
                }}>
            }}
        """,
    )


@pytest.mark.parametrize("options", [{"max_trips": 2}, {"max_nodes": 8}])
def test_says_that_a_loop_would_become_too_many_nodes(options: dict[str, int]) -> None:
    assert_refuses(
        UnrollLoops(**options),
        """
            g (float[2] x) => (float[2] y) <int64 three = {3}, bool yes = {1}> {
              y = Loop (three, yes, x) <
                body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                  d = Identity (c) a = Sin (s) t = Cos (a)
                }>
            }
        """,
        code="UNR101",
    )


@pytest.mark.parametrize("seed", range(20))
def test_random_loops_give_the_same(seed: int) -> None:
    proto = draw(seed)
    got = Pipeline((UNROLL,)).run(proto).model.to_proto()
    for feed in feeds():
        assert_same_numbers(proto, got, feed, runtimes=RUNTIMES[1:])
