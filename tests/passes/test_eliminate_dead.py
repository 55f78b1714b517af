"""eliminate-dead: what goes, and everything that looks dead but is not."""

from __future__ import annotations

import pytest

from onnxcomp_passes.simplify.eliminate_dead import EliminateDead
from tests.helpers.check import assert_rewrites, assert_unchanged
from tests.helpers.text import model

DEAD = EliminateDead()


def test_removes_a_chain_of_dead_nodes_and_their_weights() -> None:
    outcome = assert_rewrites(
        DEAD,
        before="""
            g (float[N, 3] x) => (float[N, 3] y) <float[3, 4] w, float[4] b> {
              a = MatMul (x, w)
              c = Add (a, b)
              y = Relu (x)
              d = Exp (c)
            }
        """,
        after="g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }",
    )
    assert outcome.stats["nodes removed"] == 3
    assert outcome.stats["initializers removed"] == 2


def test_keeps_what_only_a_branch_reads() -> None:
    assert_unchanged(
        DEAD,
        """
            g (float[2] x, bool c) => (float[2] y) <float[2] w> {
              a = Relu (x)
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Add (a, w) },
                else_branch = e () => (float[2] q) { q = Neg (x) }>
            }
        """,
    )


def test_removes_dead_nodes_inside_bodies_and_then_what_they_captured() -> None:
    assert_rewrites(
        DEAD,
        before="""
            g (float[2] x, bool c) => (float[2] y) <float[2] w> {
              a = Relu (x)
              y = If (c) <
                then_branch = t () => (float[2] p) { z = Add (a, w) p = Exp (x) },
                else_branch = e () => (float[2] q) { q = Neg (x) }>
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Exp (x) },
                else_branch = e () => (float[2] q) { q = Neg (x) }>
            }
        """,
    )


def test_drops_unused_results_of_an_if_from_its_branches() -> None:
    assert_rewrites(
        DEAD,
        before="""
            g (float[2] x, bool c) => (float[2] y) {
              u, y, v = If (c) <
                then_branch = t () => (float[2] a, float[2] b, float[2] d) {
                  a = Exp (x) b = Neg (x) d = Relu (a) },
                else_branch = e () => (float[2] f, float[2] h, float[2] i) {
                  f = Neg (x) h = Exp (x) i = Abs (x) }>
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y) {
              y = If (c) <
                then_branch = t () => (float[2] b) { b = Neg (x) },
                else_branch = e () => (float[2] h) { h = Exp (x) }>
            }
        """,
    )


def test_removes_a_dead_if_with_all_it_carries() -> None:
    assert_rewrites(
        DEAD,
        before="""
            g (float[2] x, bool c) => (float[2] y) {
              a = Exp (x)
              u = If (c) <
                then_branch = t () => (float[2] p) { p = Relu (a) },
                else_branch = e () => (float[2] q) { q = Neg (a) }>
              y = Relu (x)
            }
        """,
        after="g (float[2] x, bool c) => (float[2] y) { y = Relu (x) }",
    )


def test_leaves_out_optional_outputs_and_keeps_the_place_of_inner_ones() -> None:
    assert_rewrites(
        DEAD,
        before="""
            g (float[S, 1, 3] x) => (float[1, 1, 4] h) <float[1, 16, 3] w, float[1, 16, 4] r> {
              seq, h, c = LSTM <hidden_size = 4> (x, w, r)
            }
        """,
        after="""
            g (float[S, 1, 3] x) => (float[1, 1, 4] h) <float[1, 16, 3] w, float[1, 16, 4] r> {
              , h = LSTM <hidden_size = 4> (x, w, r)
            }
        """,
    )


def test_keeps_the_number_of_results_of_a_split() -> None:
    assert_unchanged(
        DEAD,
        "g (float[4] x) => (float[2] y) { y, z = Split <num_outputs = 2> (x) }",
    )


def test_cuts_off_empty_inputs_but_keeps_those_in_between() -> None:
    before = model(
        """
            g (float[4, 4] x) => (float[4, 4] a, float[4, 4] b) <float m> {
              a = Clip (x, , m)
              b = Clip (x, , )
            }
        """
    )
    assert len(before.graph.node[1].input) == 2
    assert_rewrites(
        DEAD,
        before=before,
        after="""
            g (float[4, 4] x) => (float[4, 4] a, float[4, 4] b) <float m> {
              a = Clip (x, , m)
              b = Clip (x)
            }
        """,
    )


def test_keeps_the_empty_value_of_a_pad() -> None:
    before = model("g (float[4] x, int64[2] p) => (float[n] y) { y = Pad (x, p) }")
    before.graph.node[0].input.append("")
    assert_unchanged(DEAD, before)


def test_keeps_a_loop_that_has_neither_count_nor_condition() -> None:
    assert_unchanged(
        DEAD,
        """
            g (int64 n, float[2] x) => (float[2] y) {
              y = Loop (n, , x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
                d = Identity (c)
                t = Exp (s)
              }>
            }
        """,
    )


def test_keeps_weights_that_a_caller_may_override_and_unused_inputs() -> None:
    assert_unchanged(
        DEAD,
        "g (float[2] x, float[2] unused, float[2] w = {1, 2}) => (float[2] y) { y = Relu (x) }",
    )


def test_keeps_weights_of_old_files_whose_inputs_they_are() -> None:
    assert_unchanged(
        DEAD,
        """
            <ir_version: 3, opset_import: ["" : 9]>
            g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { y = Relu (x) }
        """,
    )


def test_keeps_a_weight_that_is_an_output() -> None:
    assert_unchanged(
        DEAD, "g (float[2] x) => (float[2] y, float[2] w) <float[2] w = {1, 2}> { y = Relu (x) }"
    )


def test_keeps_operators_of_unknown_domains() -> None:
    assert_unchanged(
        DEAD,
        """
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g (float[2] x) => (float[2] y) {
              unused = acme.Log (x)
              y = Relu (x)
            }
        """,
    )


def test_removes_functions_that_nobody_calls_directly_or_through_others() -> None:
    assert_rewrites(
        DEAD,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y) { dead = f.lonely (x) y = f.outer (x) }
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer (a) => (b) { b = f.inner (a) }
            <domain: "f", opset_import: ["" : 21]>
            inner (a) => (b) { unused = Exp (a) b = Relu (a) }
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            lonely (a) => (b) { b = f.inner (a) }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y) { y = f.outer (x) }
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer (a) => (b) { b = f.inner (a) }
            <domain: "f", opset_import: ["" : 21]>
            inner (a) => (b) { b = Relu (a) }
        """,
        runtimes=("onnxruntime",),  # the reference wants functions in the order of their calls
    )


def test_keeps_outputs_that_mark_a_batchnormalization_as_training() -> None:
    assert_unchanged(
        DEAD,
        """
            <ir_version: 7, opset_import: ["" : 13]>
            g (float[2, 3, 2, 2] x) => (float[2, 3, 2, 2] y)
            <float[3] s, float[3] b, float[3] m, float[3] v> {
              y, m1, v1, m2, v2 = BatchNormalization (x, s, b, m, v)
            }
        """,
    )


@pytest.mark.parametrize("op", ["RandomNormalLike", "RandomUniformLike"])
def test_removes_random_numbers_that_nobody_reads(op: str) -> None:
    assert_rewrites(
        DEAD,
        before=f"g (float[2] x) => (float[2] y) {{ r = {op} (x) y = Relu (x) }}",
        after="g (float[2] x) => (float[2] y) { y = Relu (x) }",
    )
