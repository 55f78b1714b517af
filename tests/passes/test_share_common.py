"""share-common: what is merged, and what only looks equal."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxcomp.ir.scopes import proto_graphs
from onnxcomp_passes.simplify.share_common import ShareCommon
from tests.helpers.check import assert_rewrites, assert_unchanged
from tests.helpers.text import model

SHARE = ShareCommon()


def test_computes_equal_chains_once() -> None:
    outcome = assert_rewrites(
        SHARE,
        before="""
            g (float[N] x) => (float[N] y) {
              a = Relu (x)
              b = Relu (x)
              c = LeakyRelu <alpha = 0.5> (a)
              d = LeakyRelu <alpha = 0.5> (b)
              y = Add (c, d)
            }
        """,
        after="""
            g (float[N] x) => (float[N] y) {
              a = Relu (x)
              c = LeakyRelu <alpha = 0.5> (a)
              y = Add (c, c)
            }
        """,
    )
    assert outcome.stats["expressions shared"] == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("LeakyRelu <alpha = 0.5> (x)", "LeakyRelu <alpha = 0.25> (x)"),
        ("LeakyRelu <alpha = 0.0> (x)", "LeakyRelu <alpha = -0.0> (x)"),
        ("Sub (x, z)", "Sub (z, x)"),
        ("Relu (x)", "LeakyRelu (x)"),
        ("RandomNormalLike (x)", "RandomNormalLike (x)"),
        ("RandomUniformLike <seed = 1.0> (x)", "RandomUniformLike <seed = 1.0> (x)"),
        ("Bernoulli (x)", "Bernoulli (x)"),
        ("Dropout (x, half, yes)", "Dropout (x, half, yes)"),
    ],
)
def test_keeps_what_differs_or_is_random(first: str, second: str) -> None:
    assert_unchanged(
        SHARE,
        f"""
            g (float[2] x, float[2] z) => (float[2] y) <float half = {{0.5}}, bool yes = {{1}}> {{
              a = {first}
              b = {second}
              y = Sub (a, b)
            }}
        """,
    )


def test_keeps_equal_calls_of_another_domain() -> None:
    assert_unchanged(
        SHARE,
        """
            <ir_version: 10, opset_import: ["" : 21, "acme" : 1]>
            g (float[2] x) => (float[2] y) {
              a = acme.Relu (x)
              b = acme.Relu (x)
              y = Add (a, b)
            }
        """,
    )


def test_a_body_uses_what_was_computed_before_it_and_branches_do_not_share() -> None:
    assert_rewrites(
        SHARE,
        before="""
            g (float[2] x, bool c) => (float[2] y, float[2] z) {
              a = Exp (x)
              y = If (c) <
                then_branch = t () => (float[2] p) { p1 = Exp (x) p2 = Neg (x) p = Add (p1, p2) },
                else_branch = e () => (float[2] q) { q1 = Neg (x) q = Sub (q1, a) }>
              b = Neg (x)
              z = Mul (b, a)
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y, float[2] z) {
              a = Exp (x)
              y = If (c) <
                then_branch = t () => (float[2] p) { p2 = Neg (x) p = Add (a, p2) },
                else_branch = e () => (float[2] q) { q1 = Neg (x) q = Sub (q1, a) }>
              b = Neg (x)
              z = Mul (b, a)
            }
        """,
    )


def test_a_second_output_of_the_model_keeps_its_name() -> None:
    assert_rewrites(
        SHARE,
        before="g (float[2] x) => (float[2] y, float[2] z) { y = Exp (x) z = Exp (x) }",
        after="g (float[2] x) => (float[2] y, float[2] z) { y = Exp (x) z = Identity (y) }",
    )
    assert_unchanged(
        SHARE, "g (float[2] x) => (float[2] y, float[2] z) { y = Identity (x) z = Identity (x) }"
    )


def test_stores_equal_weights_once_to_the_bit() -> None:
    assert_rewrites(
        SHARE,
        before="""
            g (float[2] x) => (float[2] y)
            <float[2] a = {1, 2}, float[2] b = {1, 2}, float[2] c = {1, 3}, float[2] d = {0, 0},
             float[2] e = {-0.0, 0}, double[2] f = {1, 2}> {
              p = Add (x, a) q = Mul (p, b) r = Sub (q, c) s = Div (r, d) t = Div (s, e)
              u = Cast <to = 1> (f) y = Add (t, u)
            }
        """,
        after="""
            g (float[2] x) => (float[2] y)
            <float[2] a = {1, 2}, float[2] c = {1, 3}, float[2] d = {0, 0},
             float[2] e = {-0.0, 0}, double[2] f = {1, 2}> {
              p = Add (x, a) q = Mul (p, a) r = Sub (q, c) s = Div (r, d) t = Div (s, e)
              u = Cast <to = 1> (f) y = Add (t, u)
            }
        """,
    )


def test_large_weights_that_differ_in_one_byte_stay_apart() -> None:
    graph = model(
        """
            g (float[1, 256] x) => (float[1, 256] y) <float[256, 256] a, float[256, 256] b,
             float[256, 256] c> {
              p = MatMul (x, a) q = MatMul (p, b) y = MatMul (q, c)
            }
        """
    )
    first = onnx.numpy_helper.to_array(graph.graph.initializer[0])
    second = first.copy()
    second[100, 7] = np.nextafter(second[100, 7], np.float32(9))
    for index, array in enumerate((first, second, first)):
        name = graph.graph.initializer[index].name
        graph.graph.initializer[index].CopyFrom(onnx.numpy_helper.from_array(array, name))
    expected = onnx.ModelProto.FromString(graph.SerializeToString())
    expected.graph.node[2].input[1] = "a"
    del expected.graph.initializer[2]
    assert_rewrites(SHARE, before=graph, after=expected)


def test_an_inner_weight_gives_way_to_an_equal_outer_one() -> None:
    assert_rewrites(
        SHARE,
        before="""
            g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
              a = Add (x, w)
              y = If (c) <
                then_branch = t () => (float[2] p) <float[2] v = {1, 2}> { p = Mul (a, v) },
                else_branch = e () => (float[2] q) <float[2] u = {3, 2}> { q = Mul (a, u) }>
            }
        """,
        after="""
            g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
              a = Add (x, w)
              y = If (c) <
                then_branch = t () => (float[2] p) { p = Mul (a, w) },
                else_branch = e () => (float[2] q) <float[2] u = {3, 2}> { q = Mul (a, u) }>
            }
        """,
    )


def test_keeps_overridable_weights_and_weights_that_are_outputs() -> None:
    assert_unchanged(
        SHARE,
        """
            g (float[2] x, float[2] a = {1, 2}) => (float[2] y, float[2] b)
            <float[2] b = {1, 2}, float[2] c = {1, 2}> {
              p = Add (x, a) q = Add (p, b) y = Mul (q, c)
            }
        """,
    )


def test_works_inside_functions_by_attribute_reference() -> None:
    assert_rewrites(
        SHARE,
        before="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y) { y = f.twice <k = 0.5, m = 0.25> (x) }
            <domain: "f", opset_import: ["" : 21]>
            twice <k, m> (a) => (b) {
              p = LeakyRelu <alpha : float = @k> (a)
              q = LeakyRelu <alpha : float = @k> (a)
              r = LeakyRelu <alpha : float = @m> (a)
              s = Add (p, q)
              b = Add (s, r)
            }
        """,
        after="""
            <ir_version: 10, opset_import: ["" : 21, "f" : 1]>
            g (float[2] x) => (float[2] y) { y = f.twice <k = 0.5, m = 0.25> (x) }
            <domain: "f", opset_import: ["" : 21]>
            twice <k, m> (a) => (b) {
              p = LeakyRelu <alpha : float = @k> (a)
              r = LeakyRelu <alpha : float = @m> (a)
              s = Add (p, p)
              b = Add (s, r)
            }
        """,
        runtimes=("onnxruntime",),  # the reference does not bind attributes of functions
    )


def test_strings_are_compared_too() -> None:
    assert_rewrites(
        SHARE,
        before="""
            g (string[2] x) => (bool[2] y) <string[2] a = {"a", "b"}, string[2] b = {"a", "b"},
             string[2] c = {"a", "c"}> {
              p = Equal (x, a) q = Equal (x, b) r = Equal (x, c) s = And (p, q) y = And (s, r)
            }
        """,
        after="""
            g (string[2] x) => (bool[2] y) <string[2] a = {"a", "b"}, string[2] c = {"a", "c"}> {
              p = Equal (x, a) r = Equal (x, c) s = And (p, p) y = And (s, r)
            }
        """,
    )


def test_a_constant_that_a_body_gives_stays_one() -> None:
    assert_unchanged(
        SHARE,
        """
            g (float[2] x, bool c) => (float[2] y, float[2] z) {
              k = Constant <value = float[2] {1, 2}> ()
              y = Add (x, k)
              z = If (c) <
                then_branch = t () => (float[2] p) { p = Constant <value = float[2] {1, 2}> () },
                else_branch = e () => (float[2] q) { q = Neg (x) }>
            }
        """,
    )


def test_equal_weights_of_two_branches_are_stored_around_them() -> None:
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.normal(size=(16, 16)).astype(np.float32))
    before = model(
        """
            g (float[16, 16] x, bool c, bool d) => (float[16, 16] y) {
              y = If (c) <
                then_branch = t () => (float[16, 16] p) <float[16, 16] u, float[1] k = {2}> {
                  a = Add (x, u) p = Mul (a, k) },
                else_branch = e () => (float[16, 16] q) <float[1] l = {2}> {
                  q = If (d) <
                    then_branch = t2 () => (float[16, 16] p2) <float[16, 16] v> { p2 = Mul (v, l) },
                    else_branch = e2 () => (float[16, 16] q2) <float[16, 16] v, float[16, 16] m> {
                      q2 = Div (m, v) }>
                }>
            }
        """
    )
    after = model(
        """
            g (float[16, 16] x, bool c, bool d) => (float[16, 16] y) <float[16, 16] u> {
              y = If (c) <
                then_branch = t () => (float[16, 16] p) <float[1] k = {2}> {
                  a = Add (x, u) p = Mul (a, k) },
                else_branch = e () => (float[16, 16] q) <float[1] l = {2}> {
                  q = If (d) <
                    then_branch = t2 () => (float[16, 16] p2) { p2 = Mul (u, l) },
                    else_branch = e2 () => (float[16, 16] q2) <float[16, 16] m> { q2 = Div (m, u) }>
                }>
            }
        """
    )
    for proto in (before, after):
        for graph in proto_graphs(proto):
            for tensor in graph.initializer if isinstance(graph, onnx.GraphProto) else ():
                if tensor.name in {"u", "v"}:
                    name = tensor.name
                    tensor.CopyFrom(weight)
                    tensor.name = name
    assert_rewrites(SHARE, before=before, after=after)
