"""merge-arithmetic: constants are calculated ahead where no number changes but by rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onnxcomp_passes.simplify.merge_arithmetic import MergeArithmetic
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged

PASS = MergeArithmetic()


def graph(body: str, weights: str, kind: str = "float", out: str = "", opset: int = 18) -> str:
    return f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g ({kind}[N, 3] x, {kind}[N, 3] z) => ({kind}[N, 3] y{out}) <{weights}> {{ {body} }}"""


SCALARS = "float a = {0.5}, float b = {4}, float c = {3}, float h = {1e30}, float k = {1e-30}"
MERGED = [
    ("t = Mul (x, a) y = Mul (b, t)", "y = Mul (x, p)", "float p = {2}"),
    ("t = Mul (x, b) y = Div (t, a)", "y = Mul (x, p)", "float p = {8}"),
    ("t = Div (x, a) y = Div (t, b)", "y = Mul (x, p)", "float p = {0.5}"),
    ("t = Add (x, b) y = Sub (t, c)", "y = Add (x, p)", "float p = {1}"),
    ("t = Sub (b, x) y = Add (t, c)", "y = Sub (p, x)", "float p = {7}"),
    ("t = Sub (b, x) y = Sub (c, t)", None, ""),
    ("t = Neg (x) y = Add (t, c)", "y = Sub (c, x)", ""),
    ("t = Neg (x) y = Mul (t, c)", "y = Mul (x, p)", "float p = {-3}"),
    ("t = Div (x, a) u = Sub (t, c) y = Div (u, b)", "t = Mul (x, p) y = Add (t, q)",
     "float p = {0.5}, float q = {-0.75}"),
    ("t = Add (x, a) u = Mul (t, b) y = Add (u, c)", "t = Mul (x, p) y = Add (t, q)",
     "float p = {4}, float q = {5}"),
    ("t = Mul (x, v) y = Mul (t, b)", "y = Mul (x, p)", "float[3] p = {4, 8, 12}"),
    ("t = Mul (x, v) u = Add (t, b) y = Mul (u, a)", "t = Mul (x, p) y = Add (t, q)",
     "float[3] p = {0.5, 1, 1.5}, float q = {2}"),
    ("n = Neg (z) y = Add (x, n)", "y = Sub (x, z)", ""),
    ("n = Neg (z) y = Add (n, x)", "y = Sub (x, z)", ""),
    ("n = Neg (z) y = Sub (x, n)", "y = Add (x, z)", ""),
    ("l = Less (x, z) n = Not (l) y = Where (n, x, z)", "l = Less (x, z) y = Where (l, z, x)", ""),
    ("t = Max (x, a) y = Max (t, b)", "y = Max (x, p)", "float p = {4}"),
    ("t = Min (x, z) y = Min (a, t)", "y = Min (a, x, z)", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "after", "more"), MERGED)
def test_constants_are_calculated_ahead(body: str, after: str | None, more: str) -> None:
    weights = f"{SCALARS}, float[3] v = {{1, 2, 3}}"
    if after is None:
        assert_holds(PASS, graph(body, weights))
        return
    assert_rewrites(
        PASS,
        before=graph(body, weights),
        after=graph(after, f"{weights}, {more}" if more else weights),
        rtol=1e-5,
        atol=1e-5,
    )


REFUSED = [
    ("t = Mul (x, h) y = Mul (t, k)", "overflow"),
    ("t = Mul (x, k) y = Mul (t, h)", "underflow"),
    ("t = Mul (x, h) y = Div (t, h)", "overflow and back"),
    ("t = Add (x, b) y = Sub (t, b)", "cancels"),
    ("t = Add (x, h) y = Sub (t, h)", "cancels, and nothing of x is left"),
]


@pytest.mark.parametrize("body", [body for body, _ in REFUSED], ids=[why for _, why in REFUSED])
def test_what_could_overflow_or_cancel_stays(body: str) -> None:
    assert_refuses(PASS, graph(body, SCALARS), code="MAR101")


LEFT = [
    "t = Mul (x, b) y = Add (t, c)",
    "t = Mul (x, a) u = Mul (t, b) w = Add (t, u) y = Add (w, x)",
    "t = Mul (x, a) e = Erf (t) y = Add (e, z)",
    "t = Sub (x, z) y = Neg (t)",
    "t = Div (c, x) y = Mul (t, b)",
    "n = Neg (z) t = Add (x, n) y = Mul (n, t)",
]


@pytest.mark.parametrize("body", LEFT)
def test_what_stays(body: str) -> None:
    """A pair that is one of each; what others read; formulas; the sign of zero; division by x."""
    assert_unchanged(PASS, graph(body, SCALARS))


def test_the_beginning_of_a_gelu_stays() -> None:
    assert_unchanged(
        PASS, graph("t = Mul (x, a) u = Div (t, b) e = Erf (u) y = Add (e, z)", SCALARS)
    )


def test_half_precision_stays() -> None:
    assert_unchanged(
        PASS,
        graph("t = Mul (x, a) y = Mul (t, a)", "float16 a = {2}", kind="float16"),
    )


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_integers_wrap_around(kind: str) -> None:
    huge = np.iinfo(kind).max // 2
    weights = f"{kind} a = {{{huge}}}, {kind} b = {{{huge - 5}}}, {kind} c = {{7}}"
    numbers = np.array([[1, -1, np.iinfo(kind).max], [np.iinfo(kind).min, 0, 12345]], kind)
    feeds = [{"x": numbers, "z": numbers}]
    with np.errstate(over="ignore"):
        factor = np.multiply(np.array([huge], kind), np.array([huge - 5], kind))
    for body, after, more in [
        ("t = Mul (x, a) y = Mul (t, b)", "y = Mul (x, p)", int(factor[0])),
        ("t = Add (x, a) u = Add (t, b) y = Add (u, a)", "y = Add (x, p)", None),
    ]:
        if more is None:
            with np.errstate(over="ignore"):
                more = int((np.array([huge], kind) * 2 + np.array([huge - 5], kind))[0])
        assert_rewrites(
            PASS,
            before=graph(body, weights, kind),
            after=graph(after, f"{weights}, {kind} p = {{{more}}}", kind),
            feeds=feeds,
            rtol=0,
            atol=0,
        )


def test_integer_division_stays() -> None:
    assert_unchanged(PASS, graph("t = Mul (x, a) y = Div (t, a)", "int64 a = {4}", kind="int64"))


STEPS = st.sampled_from(
    ["Add ({v}, {c})", "Add ({c}, {v})", "Sub ({v}, {c})", "Sub ({c}, {v})", "Mul ({v}, {c})",
     "Mul ({c}, {v})", "Div ({v}, {c})", "Neg ({v})", "Max ({v}, {c})", "Min ({c}, {v})",
     "Add ({v}, z)", "Sub (z, {v})", "Div ({c}, {v})"]
)  # fmt: skip


@st.composite
def chains(draw: st.DrawFn, kind: str) -> str:
    """Draws a chain of arithmetic, mostly with constants of one number, a row, or a column."""
    lines, weights, value = [], [f"{kind} s = {{3}}"], "x"
    for number, step in enumerate(draw(st.lists(STEPS, min_size=2, max_size=8))):
        operator = step
        if kind != "float" and operator.startswith("Div"):
            operator = "Neg ({v})"
        shape, count = draw(st.sampled_from([("", 1), ("[3]", 3), ("[1, 1]", 1), ("[1]", 1)]))
        numbers = st.sampled_from(
            [1, 2, -3, 7] if kind != "float" else [0.5, 2, -3, 1.25, 100, 1e-3]
        )
        contents = ", ".join(str(draw(numbers)) for _ in range(count))
        weights.append(f"{kind}{shape} c{number} = {{{contents}}}")
        lines.append(f"v{number} = {operator.format(v=value, c=f'c{number}')}")
        value = f"v{number}"
    seen = draw(st.sampled_from([f"v{number}" for number in range(len(lines))]))
    lines.append(f"y = Identity ({value}) o = Identity ({seen})")
    return graph(" ".join(lines), ", ".join(weights), kind, out=f", {kind}[N, 3] o")


SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SETTINGS
@given(text=chains("float"))
def test_any_chain_of_floats(text: str) -> None:
    rng = np.random.default_rng(0)
    feeds = [
        {name: rng.normal(size=(2, 3)).astype(np.float32) for name in ("x", "z")},
        {name: np.array([[0, -0.0, 1e-40], [np.inf, np.nan, -7]], np.float32) for name in "xz"},
    ]
    assert_holds(PASS, text, feeds=feeds, runtimes=("onnxruntime",), rtol=1e-4, atol=1e-3)


@SETTINGS
@given(text=chains("int64"))
def test_any_chain_of_integers(text: str) -> None:
    big = np.iinfo(np.int64).max
    numbers = np.array([[big, -big, 5], [0, -1, big - 3]], np.int64)
    assert_holds(
        PASS, text, feeds=[{"x": numbers, "z": numbers}], runtimes=("onnxruntime",), rtol=0, atol=0
    )
