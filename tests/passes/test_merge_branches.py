"""merge-branches: what both branches do is done once, Ifs with the same condition become one."""

from __future__ import annotations

from hypothesis import given, settings

from onnxcomp_passes.simplify.merge_branches import MergeBranches
from tests.helpers.check import assert_holds, assert_rewrites, assert_unchanged
from tests.helpers.strategies import graphs

MERGE = MergeBranches()


def test_what_both_branches_compute_moves_in_front_with_its_constants() -> None:
    outcome = assert_rewrites(
        MERGE,
        before="""
            g (float[2] x, bool c) => (float[2] y) <float[2] k = {1, 2}> {
              y = If (c) <
                then_branch = t () => (float[2] p) <float[2] u = {3, 4}> {
                  a = Mul (x, k) b = Add (a, u) p = Relu (b) },
                else_branch = e () => (float[2] q) <float[2] v = {3, 4}> {
                  f = Mul (x, k) h = Add (f, v) i = Neg (h) q = Add (i, f) }>
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y) <float[2] k = {1, 2}, float[2] u2 = {3, 4}> {
              a = Mul (x, k)
              b = Add (a, u2)
              y = If (c) <
                then_branch = t () => (float[2] p) <float[2] u = {3, 4}> { p = Relu (b) },
                else_branch = e () => (float[2] q) <float[2] v = {3, 4}> { i = Neg (b) q = Add (i, a) }>
            }
        """,
    )
    assert outcome.stats["computed once for both branches"] == 2


def test_an_if_with_equal_branches_goes_whatever_the_names() -> None:
    assert_rewrites(
        MERGE,
        before="""
            g (float[2] x, bool c, bool d) => (float[2] y, float[2] z) {
              y, z = If (c) <
                then_branch = t () => (float[2] p, float[2] r) {
                  a = Exp (x)
                  p = If (d) <
                    then_branch = t2 () => (float[2] p2) { p2 = Relu (a) },
                    else_branch = e2 () => (float[2] q2) { q2 = Neg (a) }>
                  r = Abs (p)
                },
                else_branch = e () => (float[2] q, float[2] s) {
                  b = Exp (x)
                  q = If (d) <
                    then_branch = t3 () => (float[2] p3) { p3 = Relu (b) },
                    else_branch = e3 () => (float[2] q3) { q3 = Neg (b) }>
                  s = Abs (q)
                }>
            }
        """,
        after="""
            g (float[2] x, bool c, bool d) => (float[2] y, float[2] z) {
              a = Exp (x)
              y = If (d) <
                then_branch = t2 () => (float[2] p2) { p2 = Relu (a) },
                else_branch = e2 () => (float[2] q2) { q2 = Neg (a) }>
              z = Abs (y)
            }
        """,
    )


def test_a_result_equal_in_both_branches_does_not_pass_through_the_if() -> None:
    assert_rewrites(
        MERGE,
        before="""
            g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] w) {
              a, b, d = If (c) <
                then_branch = t () => (float[2] p, float[2] r, float[2] k) <float[2] k = {1, 2}> {
                  p = Exp (x) r = Relu (x) },
                else_branch = e () => (float[2] q, float[2] s, float[2] l) <float[2] l = {1, 2}> {
                  q = Exp (x) s = Neg (q) }>
              y = Sin (a)
              z = Cos (b)
              w = Abs (d)
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] w) <float[2] k2 = {1, 2}> {
              p = Exp (x)
              b = If (c) <
                then_branch = t () => (float[2] r) <float[2] k = {1, 2}> { r = Relu (x) },
                else_branch = e () => (float[2] s) <float[2] l = {1, 2}> { s = Neg (p) }>
              y = Sin (p)
              z = Cos (b)
              w = Abs (k2)
            }
        """,
    )


def test_ifs_with_the_same_condition_become_one() -> None:
    assert_rewrites(
        MERGE,
        before="""
            g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] o) {
              n = Not (c)
              a = If (c) <
                then_branch = t () => (float[2] p) { m = Exp (x) p = Neg (m) },
                else_branch = e () => (float[2] q) { q = Relu (x) }>
              y = Abs (a)
              k = Sin (x)
              b, d = If (n) <
                then_branch = t2 () => (float[2] p2, float[2] r2) <float[2] w = {1, 2}> {
                  m = Add (a, w) p2 = Cos (m) r2 = Tan (k) },
                else_branch = e2 () => (float[2] q2, float[2] s2) { q2 = Sin (a) s2 = Exp (k) }>
              z = Tanh (b)
              o = Sigmoid (d)
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y, float[2] z, float[2] o) {
              n = Not (c)
              k = Sin (x)
              a, b, d = If (c) <
                then_branch = t () => (float[2] p, float[2] q2, float[2] s2) {
                  m = Exp (x) p = Neg (m) q2 = Sin (p) s2 = Exp (k) },
                else_branch = e () => (float[2] q, float[2] p2, float[2] r2) <float[2] w = {1, 2}> {
                  q = Relu (x) m2 = Add (q, w) p2 = Cos (m2) r2 = Tan (k) }>
              y = Abs (a)
              z = Tanh (b)
              o = Sigmoid (d)
            }
        """,
    )


def test_works_inside_bodies() -> None:
    assert_rewrites(
        MERGE,
        before="""
            g (int64 n, float[2] x, bool c) => (float[2] y) {
              y = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool d, float[2] t) {
                d = Identity (go)
                t = If (c) <
                  then_branch = t1 () => (float[2] p) { u = Sin (s) p = Neg (u) },
                  else_branch = e1 () => (float[2] q) { v = Sin (s) q = Exp (v) }>
              }>
            }
        """,
        after="""
            g (int64 n, float[2] x, bool c) => (float[2] y) {
              y = Loop (n, , x) <body = b (int64 i, bool go, float[2] s) => (bool d, float[2] t) {
                d = Identity (go)
                u = Sin (s)
                t = If (c) <
                  then_branch = t1 () => (float[2] p) { p = Neg (u) },
                  else_branch = e1 () => (float[2] q) { q = Exp (u) }>
              }>
            }
        """,
    )


def test_keeps_what_only_looks_equal() -> None:
    assert_unchanged(
        MERGE,
        """
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g (float[2] x, float[2] z, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) {
                  a = RandomNormalLike (x) b = LeakyRelu <alpha = 0.0> (x) d = acme.Do (x) f = Neg (x)
                  p = Sum (a, b, d, f) },
                else_branch = e () => (float[2] q) {
                  a = RandomNormalLike (x) b = LeakyRelu <alpha = -0.0> (x) d = acme.Do (x) f = Neg (z)
                  q = Sum (a, b, d, f) }>
            }
        """,
    )


def test_a_result_of_one_branch_alone_stays_where_it_is() -> None:
    assert_unchanged(
        MERGE,
        """
            g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Exp (x) },
                else_branch = e () => (float[2] q) { b = Exp (x) q = Neg (b) }>
            }
        """,
    )


def test_a_convolution_stays_beside_its_activation() -> None:
    assert_unchanged(
        MERGE,
        """
            g (float[1, 3, 8, 8] x, bool c) => (float[1, 4, 8, 8] y) <float[4, 3, 1, 1] w> {
              y = If (c) <
                then_branch = t () => (float[1, 4, 8, 8] p) { a = Conv (x, w) p = Relu (a) },
                else_branch = e () => (float[1, 4, 8, 8] q) { b = Conv (x, w) q = Sigmoid (b) }>
            }
        """,
    )


def test_an_if_that_waits_for_what_the_first_one_made_stays_apart() -> None:
    assert_unchanged(
        MERGE,
        """
            g (float[2] x, bool c) => (float[2] z) {
              a = If (c) <
                then_branch = t () => (float[2] p) { p = Neg (x) },
                else_branch = e () => (float[2] q) { q = Relu (x) }>
              k = Sin (a)
              z = If (c) <
                then_branch = t2 () => (float[2] p2) { p2 = Cos (k) },
                else_branch = e2 () => (float[2] q2) { q2 = Tan (k) }>
            }
        """,
    )


def test_what_moved_for_one_pair_still_stands_between_another() -> None:
    """`k` moves in front of the second If for the third one, and so still follows the first."""
    got = assert_holds(
        MERGE,
        """
            g (float[2] x, bool c, bool d) => (float[2] y, float[2] z) {
              a = If (d) <
                then_branch = t () => (float[2] p) { p = Neg (x) },
                else_branch = e () => (float[2] q) { q = Relu (x) }>
              b = If (c) <
                then_branch = t2 () => (float[2] p2) { p2 = Cos (x) },
                else_branch = e2 () => (float[2] q2) { q2 = Tan (x) }>
              k = Sin (a)
              y = If (c) <
                then_branch = t3 () => (float[2] p3) { p3 = Add (k, b) },
                else_branch = e3 () => (float[2] q3) { q3 = Sub (k, b) }>
              z = If (d) <
                then_branch = t4 () => (float[2] p4) { p4 = Exp (k) },
                else_branch = e4 () => (float[2] q4) { q4 = Abs (k) }>
            }
        """,
    )
    assert [node.op_type for node in got.graph.node] == ["If", "Sin", "If", "If"]


def test_ifs_with_different_conditions_stay_apart() -> None:
    assert_unchanged(
        MERGE,
        """
            g (float[2] x, bool c, bool d) => (float[2] y, float[2] z) {
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Neg (x) },
                else_branch = e () => (float[2] q) { q = Relu (x) }>
              z = If (d) <
                then_branch = t2 () => (float[2] p2) { p2 = Cos (x) },
                else_branch = e2 () => (float[2] q2) { q2 = Tan (x) }>
            }
        """,
    )


@given(graphs())
@settings(max_examples=40, deadline=None)
def test_numbers_stay(text: str) -> None:
    assert_holds(MERGE, text, rtol=0, atol=0)
