"""simplify-functions: what no call needs, and functions that are the same."""

from __future__ import annotations

import pytest

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.simplify.simplify_functions import SimplifyFunctions
from tests.helpers.check import assert_rewrites, assert_rolls_back, assert_unchanged
from tests.helpers.nested import draw, feeds
from tests.helpers.numbers import assert_same_numbers

FUNCTIONS = SimplifyFunctions()
HEADER = '<ir_version: 10, opset_import: ["" : 21, "f" : 1]>'


def test_what_no_call_needs_goes_from_the_function_and_all_calls() -> None:
    outcome = assert_rewrites(
        FUNCTIONS,
        before=f"""
            {HEADER}
            g (float[2] x, float[2] z, bool c) => (float[2] y, float[2] u) {{
              y, n, m = f.two (x, z, x)
              u = If (c) <
                then_branch = t () => (float[2] p) {{ p, k, l = f.two (z, x, x) }},
                else_branch = e () => (float[2] q) {{ q = Neg (x) }}>
            }}
            <domain: "f", opset_import: ["" : 21]>
            two (a, b, d) => (r, s, t) {{ k = Sin (a) r = Add (k, d) s = Neg (a) t = Cos (d) }}
        """,
        after=f"""
            {HEADER}
            g (float[2] x, float[2] z, bool c) => (float[2] y, float[2] u) {{
              y = f.two (x, x)
              u = If (c) <
                then_branch = t () => (float[2] p) {{ p = f.two (z, x) }},
                else_branch = e () => (float[2] q) {{ q = Neg (x) }}>
            }}
            <domain: "f", opset_import: ["" : 21]>
            two (a, d) => (r) {{ k = Sin (a) r = Add (k, d) s = Neg (a) t = Cos (d) }}
        """,
        runtimes=("onnxruntime",),
    )
    assert outcome.stats["results that nobody reads"] == 2


def test_what_an_inner_function_does_without_the_outer_one_need_not_have() -> None:
    assert_rewrites(
        FUNCTIONS,
        before=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) {{ y = f.outer (x, z) }}
            <domain: "f", opset_import: ["" : 21]>
            inner (a, b) => (r) {{ r = Sin (a) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer (a, b) => (r) {{ r = f.inner (a, b) }}
        """,
        after=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) {{ y = f.outer (x) }}
            <domain: "f", opset_import: ["" : 21]>
            inner (a) => (r) {{ r = Sin (a) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            outer (a) => (r) {{ r = f.inner (a) }}
        """,
    )


def test_equal_functions_are_called_by_one_name_those_that_call_them_too() -> None:
    assert_rewrites(
        FUNCTIONS,
        before=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) {{ u = f.three (x) v = f.four (z) y = Add (u, v) }}
            <domain: "f", opset_import: ["" : 21]>
            one (a) => (r) {{ k = Constant <value = float {{2}}> () b = Mul (a, k) r = Sin (b) }}
            <domain: "f", opset_import: ["" : 21]>
            two (c) => (q) {{ l = Constant <value = float {{2}}> () d = Mul (c, l) q = Sin (d) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            three (a) => (r) {{ b = f.one (a) r = Neg (b) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            four (c) => (q) {{ d = f.two (c) q = Neg (d) }}
        """,
        after=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) {{ u = f.three (x) v = f.three (z) y = Add (u, v) }}
            <domain: "f", opset_import: ["" : 21]>
            one (a) => (r) {{ k = Constant <value = float {{2}}> () b = Mul (a, k) r = Sin (b) }}
            <domain: "f", opset_import: ["" : 21]>
            two (c) => (q) {{ l = Constant <value = float {{2}}> () d = Mul (c, l) q = Sin (d) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            three (a) => (r) {{ b = f.one (a) r = Neg (b) }}
            <domain: "f", opset_import: ["" : 21, "f" : 1]>
            four (c) => (q) {{ d = f.one (c) q = Neg (d) }}
        """,
    )


def test_an_argument_that_is_the_same_constant_everywhere() -> None:
    assert_rewrites(
        FUNCTIONS,
        before=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) <float k = {{2}}, float l = {{2}}> {{
              u = f.scaled (x, k) v = f.scaled (z, l) y = Add (u, v)
            }}
            <domain: "f", opset_import: ["" : 21]>
            scaled (a, b) => (r) {{ r = Mul (a, b) }}
        """,
        after=f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) <float k = {{2}}, float l = {{2}}> {{
              u = f.scaled (x) v = f.scaled (z) y = Add (u, v)
            }}
            <domain: "f", opset_import: ["" : 21]>
            scaled (a) => (r) {{ b2 = Constant <value = float {{2}}> () r = Mul (a, b2) }}
        """,
    )


@pytest.mark.parametrize(
    "second",
    [
        "two (a, b) => (r) { r = Sub (b, a) }",
        "two (a, b) => (r) { r = Add (a, b) }",
        "two (a, b) => (r) { c = Sub (a, b) r = Identity (c) }",
    ],
)
def test_keeps_functions_that_differ_and_arguments_that_do(second: str) -> None:
    assert_unchanged(
        FUNCTIONS,
        f"""
            {HEADER}
            g (float[2] x, float[2] z) => (float[2] y) <float[2] k = {{2, 1}}, float[2] l = {{2, -1}}> {{
              u = f.one (x, k) v = f.two (z, k) w = f.one (z, l) s = f.two (x, l) y = Sum (u, v, w, s)
            }}
            <domain: "f", opset_import: ["" : 21]>
            one (a, b) => (r) {{ r = Sub (a, b) }}
            <domain: "f", opset_import: ["" : 21]>
            {second}
        """,
    )


def test_keeps_an_input_that_is_an_output_and_the_last_of_either() -> None:
    assert_unchanged(
        FUNCTIONS,
        f"""
            {HEADER}
            g (float[2] x) => (float[2] y, float[2] z) {{ y = f.given (x) z = f.made (x) }}
            <domain: "f", opset_import: ["" : 21]>
            given (a) => (a) {{ }}
            <domain: "f", opset_import: ["" : 21]>
            made (a) => (r) {{ r = Constant <value = float[2] {{1, 2}}> () }}
        """,
    )


@pytest.mark.parametrize("seed", [seed for seed in range(60) if draw(seed).functions][:20])
def test_random_functions_give_the_same(seed: int) -> None:
    proto = draw(seed)
    got = Pipeline((FUNCTIONS,)).run(proto).model.to_proto()
    for feed in feeds():
        assert_same_numbers(proto, got, feed, runtimes=("onnxruntime",))
    assert_rolls_back(FUNCTIONS, proto)
