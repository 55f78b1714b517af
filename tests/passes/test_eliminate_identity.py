"""eliminate-identity: what goes, what stays, and that not a bit changes."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.ir import ir
from onnxcomp_passes.simplify.eliminate_identity import EliminateIdentity
from onnxcomp_passes.simplify.support.bounds import Bounds, both
from onnxcomp_passes.simplify.support.casts import holds
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged
from tests.helpers.numbers import run

PASS = EliminateIdentity()


def graph(
    body: str,
    *,
    x: str = "float[2, 3]",
    y: str | None = None,
    weights: str = "",
    opset: int = 21,
    more: str = "",
) -> str:
    """A graph from `x` to `y`."""
    header = f'<ir_version: {10 if opset > 20 else 8}, opset_import: ["" : {opset}]>'
    return (
        f"{header} g ({x} x{more}) => ({y or x} y) {f'<{weights}>' if weights else ''} {{ {body} }}"
    )


def goes(before: str, after: str = "y = Exp (x)", *, weights: str = "", **kind: str) -> None:
    """Both sides differ in the body only; numbers must be equal to the bit (but for means).

    Weights that the first body does not name are new in the second.
    """
    opset = int(kind.pop("opset", "21"))
    pieces = re.findall(r"[a-z0-9]+(?:\[[^]]*\])? [a-z]+ = \{[^}]*\}", weights)
    old = [piece for piece in pieces if re.search(rf"\b{_name(piece)}\b", before)]
    tolerance = 1e-6 if "ReduceMean" in before else 0.0
    assert_rewrites(
        PASS,
        before=graph(before, opset=opset, weights=", ".join(old), **kind),
        after=graph(after, opset=opset, weights=weights, **kind),
        rtol=tolerance,
        atol=tolerance,
    )


def _name(weight: str) -> str:
    return weight.split(" = ")[0].split()[-1]


def stays(body: str, **kind: str) -> None:
    options = {name: kind[name] for name in ("x", "y", "weights", "more") if name in kind}
    assert_unchanged(PASS, graph(body, opset=int(kind.get("opset", "21")), **options))


NOOPS = [
    # body with @ for what must vanish, input type, weights, opset
    ("@ = Identity (x)", "float[N, 3]", "", 21),
    ("@ = Dropout (x)", "float[N, 3]", "", 21),
    ("@ = Dropout <ratio = 0.3> (x)", "float[N, 3]", "", 9),
    ("@, m = Dropout (x)", "float[N, 3]", "", 13),
    ("@ = Dropout (x, r, t)", "float[N, 3]", "float r = {0.5}, bool t = {0}", 21),
    ("@ = Cast <to = 1> (x)", "float[N, 3]", "", 21),
    ("@ = CastLike (x, x)", "float[N, 3]", "", 21),
    ("@ = Reshape (x, s)", "float[2, 3]", "int64[2] s = {2, 3}", 21),
    ("@ = Reshape (x, s)", "float[2, 3]", "int64[2] s = {2, -1}", 21),
    ("@ = Reshape (x, s)", "float[N, 3]", "int64[2] s = {0, 3}", 21),
    ("@ = Reshape (x, s)", "float[N, 3]", "int64[2] s = {-1, 3}", 21),
    ("@ = Reshape (x, s)", "float[N, M]", "int64[2] s = {0, -1}", 21),
    ("@ = Reshape <allowzero = 1> (x, s)", "float[2, 3]", "int64[2] s = {2, 3}", 21),
    ("@ = Unsqueeze (x, a)", "float[N, 3]", "int64[0] a = {}", 21),
    ("@ = Squeeze (x)", "float[2, 3]", "", 21),
    ("u = Unsqueeze (x, a) @ = Squeeze (u, a)", "float[N, 3]", "int64[2] a = {0, -1}", 21),
    ("u = Unsqueeze <axes = [1]> (x) @ = Squeeze <axes = [1]> (u)", "float[N, 3]", "", 11),
    ("u = Squeeze (x, a) @ = Unsqueeze (u, a)", "float[N, 1]", "int64[1] a = {1}", 21),
    ("@ = Flatten (x)", "float[N, M]", "", 21),
    ("@ = Flatten <axis = -1> (x)", "float[N, M]", "", 21),
    ("@ = Flatten <axis = 1> (x)", "float[2, 3]", "", 21),
    ("@ = Transpose <perm = [0, 1]> (x)", "float[N, 3]", "", 21),
    ("@ = Transpose (x)", "float[N]", "", 21),
    ("@ = Slice (x, s, e)", "float[N, 3]", "int64[2] s = {0, 0}, int64[2] e = {9223372036854775807, 3}", 21),
    ("@ = Slice (x, s, e, a)", "float[N, 3]", "int64[1] s = {-3}, int64[1] e = {3}, int64[1] a = {-1}", 21),
    ("@ = Slice (x, s, e, a, t)", "float[N, 3]", "int64[1] s = {0}, int64[1] e = {2147483647}, int64[1] a = {0}, int64[1] t = {1}", 21),
    ("@ = Slice <starts = [0], ends = [7], axes = [1]> (x)", "float[N, 3]", "", 9),
    ("@ = Slice <starts = [0], ends = [2]> (x)", "float[2, 3]", "", 9),
    ("@ = Pad (x, p)", "float[N, 3]", "int64[4] p = {0, 0, 0, 0}", 21),
    ("@ = Pad <pads = [0, 0, 0, 0]> (x)", "float[N, 3]", "", 9),
    ("@ = Expand (x, s)", "float[2, 3]", "int64[2] s = {2, 1}", 21),
    ("@ = Expand (x, s)", "float[N, 3]", "int64[1] s = {3}", 21),
    ("@ = Expand (x, s)", "float[N, 3]", "int64[2] s = {1, 1}", 21),
    ("@ = Tile (x, r)", "float[N, 3]", "int64[2] r = {1, 1}", 21),
    ("@ = Gather <axis = 1> (x, i)", "float[N, 3]", "int64[3] i = {0, 1, 2}", 21),
    ("@ = Clip (x, a, b)", "float[N, 3]", "float a = {-inf}, float b = {inf}", 21),
    ("@ = Where (c, x, x)", "float[2, 3]", "bool[3] c = {1, 0, 1}", 21),
    ("@ = Where (c, x, w)", "float[2, 3]", "bool[3] c = {1, 1, 1}, float w = {1}", 21),
    ("@ = Where (c, w, x)", "float[2, 3]", "bool[3] c = {0, 0, 0}, float w = {1}", 21),
    ("@ = Concat <axis = 0> (x)", "float[N, 3]", "", 21),
    ("@ = Sum (x)", "float[N, 3]", "", 21),
    ("@ = Max (x)", "float[N, 3]", "", 21),
    ("@ = Split <axis = 1, num_outputs = 1> (x)", "float[N, 3]", "", 21),
    ("@ = Split <axis = 1> (x)", "float[N, 3]", "", 11),
    ("u = Neg (x) @ = Neg (u)", "float[N, 3]", "", 21),
    ("@ = Mul (x, c)", "float[N, 3]", "float[1] c = {1}", 21),
    ("@ = Mul (c, x)", "float[2, 3]", "float[2, 3] c = {1, 1, 1, 1, 1, 1}", 21),
    ("@ = Div (x, c)", "float[N, 3]", "float c = {1}", 21),
    ("@ = Pow (x, c)", "float[N, 3]", "float c = {1}", 21),
    ("@ = Sub (x, c)", "float[N, 3]", "float c = {0}", 21),
    ("@ = Add (x, c)", "float[N, 3]", "float c = {-0.0}", 21),
    ("u = Transpose <perm = [1, 0]> (x) @ = Transpose (u)", "float[N, 3]", "", 21),
    ("u = Transpose (x) @ = Transpose (u)", "float[N, 3]", "", 21),
    ("u = Cast <to = 11> (x) @ = Cast <to = 1> (u)", "float[N, 3]", "", 21),
    ("a, b = Split <axis = 1, num_outputs = 2> (x) @ = Concat <axis = 1> (a, b)", "float[N, 4]", "", 21),
    ("a, b = Split <axis = 1, num_outputs = 2> (x) @ = Concat <axis = -1> (a, b)", "float[N, 4]", "", 21),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "weights", "opset"), NOOPS)
def test_removes_what_changes_nothing(body: str, kind: str, weights: str, opset: int) -> None:
    body = body.replace("@", "q")
    goes(f"{body} y = Exp (q)", x=kind, weights=weights, opset=str(opset))


INTEGERS = [
    ("t = Add (x, c)", "int64 c = {0}"),
    ("t = Clip (x)", ""),
    ("t = Mul (x, c)", "int64[1, 1] c = {1}"),
]


@pytest.mark.parametrize(("body", "weights"), INTEGERS)
def test_removes_what_changes_no_integer(body: str, weights: str) -> None:
    goes(f"{body} y = Abs (t)", "y = Abs (x)", x="int64[N, 3]", weights=weights)


def test_removes_double_negations_and_neutral_logic() -> None:
    goes(
        "a = Not (x) b = Not (a) c = And (b, t) d = Or (c, f) e = Xor (f, d) y = Not (e)",
        "y = Not (x)",
        x="bool[N]",
        weights="bool t = {1}, bool f = {0}",
    )


STAYS = [
    ("y = Add (x, c)", "float[N, 3]", "float c = {0}"),  # -0.0 + 0.0 is 0.0
    ("y = Sub (x, c)", "float[N, 3]", "float c = {-0.0}"),
    ("y = Sub (c, x)", "float[N, 3]", "float c = {0}"),
    ("y = Div (c, x)", "float[N, 3]", "float c = {1}"),
    ("y = Mul (x, c)", "float[N, 3]", "float[3] c = {1, 2, 1}"),
    # onnxruntime raises integers in double precision
    ("p = Pow (x, c) y = Cast <to = 1> (p)", "int64[N, 3]", "int64 c = {1}"),
    ("y = Cast <to = 10> (x)", "float[N, 3]", ""),
    ("y = Dropout (x, r, t)", "float[N, 3]", "float r = {0}, bool t = {1}"),
    ("y = Reshape (x, s)", "float[2, 3]", "int64[2] s = {3, 2}"),
    ("y = Reshape <allowzero = 1> (x, s)", "float[N, 0]", "int64[2] s = {0, 3}"),
    ("y = Transpose <perm = [1, 0]> (x)", "float[N, 3]", ""),
    ("y = Transpose (x)", "float[N, 3]", ""),
    ("y = Slice (x, s, e)", "float[N, 3]", "int64[1] s = {0}, int64[1] e = {4}"),
    ("y = Slice (x, s, e, a)", "float[N, 3]", "int64[1] s = {1}, int64[1] e = {3}, int64[1] a = {1}"),
    ("y = Slice (x, s, e, a, t)", "float[N, 3]", "int64[1] s = {0}, int64[1] e = {3}, int64[1] a = {1}, int64[1] t = {2}"),
    ("y = Pad (x, p)", "float[N, 3]", "int64[4] p = {0, 0, 0, 1}"),
    ("y = Expand (x, s)", "float[N, 3]", "int64[2] s = {2, 1}"),
    ("y = Expand (x, s)", "float[N, 3]", "int64[3] s = {1, 1, 1}"),
    ("y = Tile (x, r)", "float[N, 3]", "int64[2] r = {1, 2}"),
    ("y = Gather <axis = 1> (x, i)", "float[N, 3]", "int64[3] i = {0, 2, 1}"),
    ("y = Gather <axis = 1> (x, i)", "float[N, 3]", "int64[2] i = {0, 1}"),
    ("y = Gather <axis = 0> (x, i)", "float[N, 3]", "int64[2] i = {0, 1}"),
    ("y = Gather <axis = 0> (x, i)", "float[1, 3]", "int64 i = {0}"),
    ("y = Clip (x)", "float[N, 3]", ""),  # infinities become the largest finite numbers
    ("y = Clip (x, a)", "float[N, 3]", "float a = {-inf}"),
    ("y = Clip (x, a, b)", "float[N, 3]", "float a = {-1}, float b = {inf}"),
    ("y = Where (c, x, w)", "float[2, 3]", "bool[3] c = {1, 0, 1}, float w = {1}"),
    ("y = Where (c, x, w)", "float[N, 3]", "bool[2, 1, 1] c = {1, 1}, float w = {1}"),
    ("y = Mul (x, c)", "float[N, 3]", "float[1, 1, 1] c = {1}"),
    ("y = Concat <axis = 0> (x, x)", "float[N, 3]", ""),
    ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Concat <axis = 1> (b, a)", "float[N, 4]", ""),
    ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Concat <axis = 0> (a, b)", "float[N, 4]", ""),
    ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Concat <axis = -1> (a, b)", "float[4, 4, 4]", ""),
    ("y = Flatten <axis = 0> (x)", "float[N, 3]", ""),
    ("u = Unsqueeze (x, a) y = Squeeze (u, b)", "float[]", "int64[1] a = {0}, int64[1] b = {1}"),
    ("u = Cast <to = 10> (x) y = Cast <to = 1> (u)", "float[N, 3]", ""),
    ("u = Cast <to = 7> (x) y = Cast <to = 6> (u)", "float[N, 3]", ""),
    ("y = Squeeze (x, a)", "float[1, N, 1]", "int64[2] a = {0, 2}"),
    ("u = Floor (x) y = Ceil (u)", "float[N, 3]", ""),
]  # fmt: skip


@pytest.mark.parametrize(("body", "kind", "weights"), STAYS)
def test_leaves_what_changes_something(body: str, kind: str, weights: str) -> None:
    kind_of_y = {"<to = 10> (x)": "float16[]", "<to = 6>": "int32[]"}
    y = next(
        (found for part, found in kind_of_y.items() if part in body and "<to = 1>" not in body),
        "float",
    )
    stays(body, x=kind, y=y, weights=weights)


def test_unknown_shapes_stay() -> None:
    stays("y = Reshape (x, s)", x="float[]", weights="int64[2] s = {0, -1}")
    stays("y = Transpose (x)", x="float[]")
    stays("y = Flatten (x)", x="float[]")
    stays("y = Mul (x, c)", x="float[]", weights="float[1] c = {1}")
    stays("y = Expand (x, s)", x="float[]", weights="int64[1] s = {1}")
    stays("y = Slice (x, s, e)", x="float[]", weights="int64[1] s = {0}, int64[1] e = {4}")
    stays("u = Transpose (x) v = Exp (u) y = Transpose <perm = [1, 0]> (v)", x="float[]")


def test_contents_that_differ_between_runs_stay() -> None:
    stays("y = Reshape (x, s)", x="float[2, 3]", y="float[]", more=", int64[2] s")
    stays("y = Slice (x, s, e)", x="float[2, 3]", y="float[]", more=", int64[1] s, int64[1] e")
    stays(
        "y = Slice (x, s, s, s, t)",
        x="float[2, 3]",
        y="float[]",
        weights="int64[1] s = {0}",
        more=", int64[1] t",
    )
    stays("y = Tile (x, r)", x="float[2, 3]", y="float[]", more=", int64[2] r")
    stays("y = Pad (x, p)", x="float[2, 3]", y="float[]", more=", int64[4] p")
    stays("y = Dropout (x, r, t)", weights="float r = {0.5}", more=", bool t")
    stays("y = CastLike (x, z)", y="double[P, Q]", more=", double[1] z")


def test_an_overridable_constant_is_none() -> None:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] x, float c = {1}) => (float[2] y) { y = Mul (x, c) }'
    assert_unchanged(PASS, text)


def test_mask_in_use_keeps_dropout() -> None:
    text = "g (float[2] x) => (float[2] y, bool[2] m) { y, m = Dropout (x) }"
    assert_unchanged(PASS, text)


def test_outputs_keep_their_names() -> None:
    assert_rewrites(
        PASS,
        before="g (float[2] x) => (float[2] y, float[2] z) { a = Exp (x) y = Identity (a) z = Identity (a) }",
        after="g (float[2] x) => (float[2] y, float[2] z) { y = Exp (x) z = Identity (y) }",
        rtol=0,
        atol=0,
    )


def test_an_input_as_output_keeps_an_identity() -> None:
    assert_unchanged(PASS, "g (float[2] x) => (float[2] y) { y = Identity (x) }")
    assert_rewrites(
        PASS,
        before="g (float[2] x) => (float[2] y) { y = Dropout (x) }",
        after="g (float[2] x) => (float[2] y) { y = Identity (x) }",
        rtol=0,
        atol=0,
    )


def test_an_output_in_the_middle_stays() -> None:
    assert_rewrites(
        PASS,
        before="""g (float[2, 3] x) => (float[3, 2] m, float[2, 3] y) {
            m = Transpose (x) t = Transpose (m) y = Exp (t) }""",
        after="g (float[2, 3] x) => (float[3, 2] m, float[2, 3] y) { m = Transpose (x) y = Exp (x) }",
        rtol=0,
        atol=0,
    )


def test_works_in_bodies_and_their_captures() -> None:
    assert_rewrites(
        PASS,
        before="""g (bool c, float[2] x) => (float[2] y) {
            o = Identity (x)
            y = If (c) <
              then_branch = t () => (float[2] a) { i = Dropout (o) a = Exp (i) },
              else_branch = e () => (float[2] b) { b = Identity (o) }>
        }""",
        after="""g (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
              then_branch = t () => (float[2] a) { a = Exp (x) },
              else_branch = e () => (float[2] b) { b = Identity (x) }>
        }""",
        rtol=0,
        atol=0,
    )


def test_works_in_functions_but_not_on_their_parameters() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { y = f.two <p = 1> (x) }
        <domain: "f", opset_import: ["" : 21]>
        two <p> (a) => (b) { i = Identity (a) c = Cast <to: int = @p> (i) b = Exp (c) }"""
    after = text.replace(
        "i = Identity (a) c = Cast <to: int = @p> (i)", "c = Cast <to: int = @p> (a)"
    )
    assert_rewrites(PASS, before=text, after=after, rtol=0, atol=0)


def test_other_domains_are_not_taken_for_onnx() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { y = f.Identity (x) }
        <domain: "f", opset_import: ["" : 21]> Identity (a) => (b) { b = Exp (a) }"""
    assert_unchanged(PASS, text)


def test_old_opsets_are_left_alone() -> None:
    text = '<ir_version: 3, opset_import: ["" : 6]> g (float[2] x) => (float[2] y) { t = Identity (x) y = Exp (t) }'
    assert_unchanged(PASS, text)
    inner = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2] x) => (float[2] y) { t = Identity (x) y = f.two (t) }
        <domain: "f", opset_import: ["" : 6]> two (a) => (b) { b = Exp (a) }"""
    assert_unchanged(PASS, inner)


CHAINS = [
    (
        "a = Transpose <perm = [1, 2, 0]> (x) y = Transpose <perm = [1, 2, 0]> (a)",
        "y = Transpose <perm = [2, 0, 1]> (x)",
        "float[N, 3, 4]", "", 3,
    ),
    (
        "a = Transpose (x) y = Transpose <perm = [0, 2, 1]> (a)",
        "y = Transpose <perm = [2, 0, 1]> (x)",
        "float[N, 3, 4]", "", 3,
    ),
    (
        "a = Reshape (x, s) b = Exp (a) c = Exp (b) y = Reshape (c, t)",
        "a = Reshape (x, s) b = Exp (a) c = Exp (b) y = Reshape (c, t)",
        "float[2, 6]", "int64[2] s = {4, 3}, int64[1] t = {-1}", 1,
    ),
    (
        "a = Reshape (x, s) y = Reshape (a, t)",
        "y = Reshape (x, t)",
        "float[2, 6]", "int64[2] s = {4, 3}, int64[2] t = {3, -1}", 2,
    ),
    (
        "a = Flatten (x) y = Reshape (a, t)",
        "y = Reshape (x, u)",
        "float[N, 2, 3]", "int64[3] t = {0, 3, 2}, int64[3] u = {-1, 3, 2}", 3,
    ),
    (
        "a = Reshape (x, s) y = Unsqueeze (a, t)",
        "y = Reshape (x, u)",
        "float[2, 6]", "int64[2] s = {4, 3}, int64[1] t = {1}, int64[3] u = {4, 1, 3}", 3,
    ),
    (
        "a = Unsqueeze (x, s) y = Flatten (a)",
        "y = Reshape (x, u)",
        "float[2, 3, 4]", "int64[1] s = {1}, int64[2] u = {2, 12}", 2,
    ),
    (
        "a = Unsqueeze (x, s) y = Unsqueeze (a, t)",
        "y = Unsqueeze (x, u)",
        "float[N, M]", "int64[1] s = {0}, int64[1] t = {2}, int64[2] u = {0, 2}", 4,
    ),
    (
        "a = Unsqueeze (x, s) y = Unsqueeze (a, t)",
        "y = Unsqueeze (x, u)",
        "float[N, M]", "int64[1] s = {-1}, int64[2] t = {0, 2}, int64[3] u = {0, 2, 4}", 5,
    ),
    (
        "a = Squeeze (x, s) y = Squeeze (a, t)",
        "y = Squeeze (x, u)",
        "float[N, 1, M, 1]", "int64[1] s = {1}, int64[1] t = {-1}, int64[2] u = {1, 3}", 2,
    ),
    (
        "a = Relu (x) y = Clip (a, s, t)",
        "y = Clip (x, u, t)",
        "float[N]", "float s = {-1}, float t = {6}, float u = {0}", 1,
    ),
    ("a = Clip (x, s, t) y = Relu (a)", "y = Clip (x, s, t)", "float[N]", "float s = {1}, float t = {6}", 1),
    ("a = Clip (x, , t) y = Relu (a)", "y = Clip (x, s, t)", "float[N]", "float t = {6}, float s = {0}", 1),
    (
        "a = Clip (x, s) y = Clip (a, t, u)",
        "y = Clip (x, s, u)",
        "float[N]", "float s = {1}, float t = {-1}, float u = {6}", 1,
    ),
    (
        "a = Concat <axis = 0> (x, w) y = Concat <axis = 0> (x, a, w)",
        "y = Concat <axis = 0> (x, x, w, w)",
        "float[N, 2]", "float[1, 2] w = {1, 2}", 2,
    ),
    (
        "a = ReduceMean <axes = [3]> (x) y = ReduceMean <axes = [-2]> (a)",
        "y = ReduceMean <axes = [2, 3]> (x)",
        "float[N, 3, 4, 5]", "", 4, 11,
    ),
    (
        "a = ReduceMax <keepdims = 0> (x, s) y = ReduceMax <keepdims = 0> (a, s)",
        "y = ReduceMax <keepdims = 0> (x, t)",
        "float[N, 3, 4, 5]", "int64[1] s = {1}, int64[2] t = {1, 2}", 2,
    ),
    ("a = Clip <max = 6.0> (x) y = Relu (a)", "y = Clip <max = 6.0, min = 0.0> (x)", "float[N]", "", 1, 9),
    ("a = Relu (x) y = Clip <max = 6.0> (a)", "y = Clip <max = 6.0, min = 0.0> (x)", "float[N]", "", 1, 9),
    (
        "a = Unsqueeze <axes = [0]> (x) y = Unsqueeze <axes = [2]> (a)",
        "y = Unsqueeze <axes = [0, 2]> (x)",
        "float[N, M]", "", 4, 11,
    ),
    (
        "a = Slice (x, s, t, s) y = Slice (a, t, u, t)",
        "y = Slice (x, v, w, v)",
        "float[N, 4]", "int64[1] s = {0}, int64[1] t = {1}, int64[1] u = {3}, int64[2] v = {0, 1}, int64[2] w = {1, 3}", 2,
    ),
    (
        "a = Slice (x, s, t, s) y = Slice (a, s, u, t, m)",
        "y = Slice (x, v, w, z, q)",
        "float[N, 4]", "int64[1] s = {0}, int64[1] t = {1}, int64[1] u = {3}, int64[1] m = {2}, "
        "int64[2] v = {0, 0}, int64[2] w = {1, 3}, int64[2] z = {0, 1}, int64[2] q = {1, 2}", 2,
    ),
    (
        "a = Concat <axis = 1> (x, w, x) y = Gather <axis = 1> (a, i)",
        "y = Gather <axis = 1> (x, j)",
        "float[1, 4]", "float[1, 2] w = {1, 2}, int64 i = {-1}, int64 j = {3}", 1,
    ),
    (
        "a = Concat <axis = -1> (x, w) y = Gather <axis = 1> (a, i)",
        "y = Gather <axis = 1> (x, i)",
        "float[1, 4]", "float[1, 2] w = {1, 2}, int64[1] i = {2}", 2,
    ),
    (
        "a = Concat <axis = 1> (w, x) y = Slice (a, s, t, u)",
        "y = Slice (x, v, z, u)",
        "float[1, 4]", "float[1, 2] w = {1, 2}, int64[1] s = {3}, int64[1] t = {-1}, int64[1] u = {1}, int64[1] v = {1}, int64[1] z = {3}", 2,
    ),
    (
        "a = Concat <axis = 1> (x, w) y = Slice <starts = [-5], ends = [4], axes = [1]> (a)",
        "y = Slice <starts = [1], ends = [4], axes = [1]> (x)",
        "float[1, 4]", "float[1, 2] w = {1, 2}", 2, 9,
    ),
    (
        "a = Concat <axis = 1> (x, w) y = Slice (a, s, t, u)",
        "y = Slice (x, s, t, u)",
        "float[1, 4]", "float[1, 2] w = {1, 2}, int64[1] s = {0}, int64[1] t = {3}, int64[1] u = {1}", 2,
    ),
    (
        "a = Slice (x, s, t, u) y = Squeeze (a, u)",
        "y = Gather <axis = 1> (x, v)",
        "float[N, 3]", "int64[1] s = {1}, int64[1] t = {2}, int64[1] u = {1}, int64 v = {1}", 1,
    ),
    (
        "a = Slice <axes = [-1], starts = [-1], ends = [9223372036854775807]> (x) y = Squeeze <axes = [1]> (a)",
        "y = Gather <axis = 1> (x, v)",
        "float[N, 3]", "int64 v = {-1}", 1, 9,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CHAINS, ids=lambda case: case[0])
def test_merges_chains(case: tuple[str, str, str, str, int, int]) -> None:
    before, after, kind, weights, rank, *opset = case
    options = {"x": kind, "y": f"float[{', '.join('PQRSTU'[:rank])}]", "weights": weights}
    options["opset"] = str(opset[0] if opset else 21)
    if before == after:
        stays(before, **options)
    else:
        goes(before, after, **options)


LEFT = [
    ("a = Reshape (x, s) y = Reshape (a, t)", "float[N, M, 4]", "int64[3] s = {0, 2, -1}, int64[2] t = {0, -1}", 2),
    ("a = Unsqueeze (x, s) y = Unsqueeze (a, t)", "float[]", "int64[1] s = {0}, int64[1] t = {-1}", 4),
    ("a = Relu (x) y = Clip (a)", "float[N]", "", 1),
    ("a = Clip (x, s, t) y = Clip (a, u, v)", "float[N]", "float s = {0}, float t = {1}, float u = {2}, float v = {3}", 1),
    ("a = Clip (x, t, s) y = Relu (a)", "float[N]", "float s = {0}, float t = {1}", 1),
    ("a = Clip (x, s) y = Relu (a)", "float[N]", "float s = {nan}", 1),
    ("a = ReduceMean <keepdims = 0> (x, s) y = ReduceMean (a, s)", "float[N, 3, 4]", "int64[1] s = {1}", 2),
    ("a = ReduceMean (x) y = ReduceMean (a, s)", "float[N, 3]", "int64[1] s = {1}", 2),
    ("a = ReduceMean (x, s) y = ReduceMin (a, s)", "float[N, 3]", "int64[1] s = {1}", 2),
    ("a = Concat <axis = 0> (x, x) y = Concat <axis = 1> (a, a)", "float[N, 3]", "", 2),
    ("a = Squeeze (x) y = Unsqueeze (a, s)", "float[N, 1]", "int64[1] s = {1}", 2),
    ("a = Slice (x, s, t, s) y = Slice (a, s, t, s)", "float[N, 4]", "int64[1] s = {0}, int64[1] t = {3}", 2),
    ("a = Slice (x, s, t, s) b = Exp (a) c = Slice (a, s, t, t) y = Add (b, c)", "float[4, 4]", "int64[1] s = {0}, int64[1] t = {1}", 2),
    ("a = Concat <axis = 1> (x, w) y = Gather <axis = 0> (a, i)", "float[1, 4]", "float[1, 2] w = {1, 2}, int64 i = {0}", 1),
    ("a = Concat <axis = 1> (w, x) y = Gather <axis = 1> (a, i)", "float[1, N]", "float[1, 2] w = {1, 2}, int64 i = {-1}", 1),
    ("a = Concat <axis = 1> (x, w) y = Gather <axis = 1> (a, i)", "float[1, N]", "float[1, 2] w = {1, 2}, int64 i = {0}", 1),
    ("a = Concat <axis = 1> (x, w) y = Gather <axis = 1> (a, i)", "float[1, 4]", "float[1, 2] w = {1, 2}, int64[2] i = {0, 4}", 2),
    ("a = Concat <axis = 1> (x, w) y = Slice (a, s, t, u)", "float[1, 4]", "float[1, 2] w = {1, 2}, int64[1] s = {3}, int64[1] t = {5}, int64[1] u = {1}", 2),
    ("a = Concat <axis = 1> (x, w) y = Slice (a, s, t, u)", "float[1, 4]", "float[1, 2] w = {1, 2}, int64[1] s = {3}, int64[1] t = {3}, int64[1] u = {1}", 2),
    ("a = Concat <axis = 1> (x, w) y = Slice (a, s, t, u)", "float[1, N]", "float[1, 2] w = {1, 2}, int64[1] s = {0}, int64[1] t = {1}, int64[1] u = {1}", 2),
    ("a = Concat <axis = 1> (x, w) y = Slice (a, s, t, u)", "float[2, 4]", "float[2, 1] w = {1, 2}, int64[1] s = {0}, int64[1] t = {1}, int64[1] u = {0}", 2),
    ("a = Concat <axis = 0> (x, w) y = Slice (a, s, t, u, v)", "float[1, 4]", "float[1, 4] w = {1, 2, 3, 4}, int64[1] s = {0}, int64[1] t = {2}, int64[1] u = {0}, int64[1] v = {2}", 2),
    ("y = Slice (x, s, t)", "float[N, 4]", "int64[1] s = {0}, int64[1] t = {1000000000}", 2),
    ("a = Slice (x, s, t, s) y = Squeeze (a)", "float[N, M]", "int64[1] s = {0}, int64[1] t = {1}", 1),
    ("a = Slice (x, s, t, s) y = Squeeze (a, t)", "float[N, 1]", "int64[1] s = {0}, int64[1] t = {1}", 1),
    ("a = Slice (x, s, t, u) y = Squeeze (a, u)", "float[N, 1]", "int64[1] s = {-1}, int64[1] t = {0}, int64[1] u = {0}", 1),
    ("a = Slice (x, s, t, s) b = Squeeze (a, s) c = Exp (a) y = Add (b, c)", "float[N, M]", "int64[1] s = {0}, int64[1] t = {1}", 2),
    ("a = Squeeze (x) y = Squeeze (a, s)", "float[1, N, 1, M]", "int64[1] s = {0}", 1),
    # onnxruntime moves transposes through Slice and Squeeze, not through Gather
    ("p = Transpose (x) a = Slice (p, s, t, s) y = Squeeze (a, s)", "float[N, M]", "int64[1] s = {0}, int64[1] t = {1}", 1),
    ("a = Clip (x, s, t) y = Relu (a)", "float[N]", "float s = {0}, float[0] t = {}", 1),
]  # fmt: skip


@pytest.mark.parametrize("case", LEFT, ids=lambda case: case[0])
def test_leaves_chains_that_are_not_one(case: tuple[str, str, str, int]) -> None:
    body, kind, weights, rank = case
    stays(body, x=kind, y=f"float[{', '.join('PQRSTU'[:rank])}]", weights=weights)


def test_integer_and_half_means_are_rounded_where_they_are() -> None:
    body = "a = ReduceMean (x, s) y = ReduceMean (a, t)"
    weights = "int64[1] s = {1}, int64[1] t = {0}"
    stays(body, x="int32[2, 3]", y="int32[P, Q]", weights=weights)
    stays(body, x="float16[2, 3]", y="float16[P, Q]", weights=weights)


def test_a_result_with_other_readers_is_not_merged() -> None:
    text = """g (float[2, 6] x) => (float[12] y, float[3, 4] z) <int64[2] s = {3, 4}, int64[1] t = {12}> {
        a = Reshape (x, s) z = Exp (a) y = Reshape (a, t) }"""
    assert_unchanged(PASS, text)


CASTS = [
    ("int32", 7, 1, 1),  # int32 -> int64 -> float: int32 -> float
    ("bool", 6, 10, 10),
    ("int8", 1, 11, 11),
    ("float16", 1, 11, 11),
    ("uint8", 6, 3, 3),  # wraps to int8 either way
    ("float", 11, 9, 9),
]


@pytest.mark.parametrize(("kind", "middle", "end", "after"), CASTS)
def test_merges_casts_that_lose_nothing(kind: str, middle: int, end: int, after: int) -> None:
    name = TensorProto.DataType.Name(end).lower()
    goes(
        f"a = Cast <to = {middle}> (x) y = Cast <to = {end}> (a)",
        f"y = Cast <to = {after}> (x)",
        x=f"{kind}[N]",
        y=f"{name}[N]",
    )


LOSSY = [("int64", 1, 7), ("float", 10, 1), ("int32", 11, 3), ("float", 11, 7), ("int8", 12, 7)]


@pytest.mark.parametrize(("kind", "middle", "end"), LOSSY)
def test_leaves_casts_that_lose_something(kind: str, middle: int, end: int) -> None:
    name = TensorProto.DataType.Name(end).lower()
    stays(f"a = Cast <to = {middle}> (x) y = Cast <to = {end}> (a)", x=f"{kind}[N]", y=f"{name}[N]")


def test_what_types_hold() -> None:
    kind = ir.DataType
    assert holds(kind.BFLOAT16, kind.BFLOAT16)
    assert holds(kind.FLOAT, kind.UINT16)
    assert not holds(kind.FLOAT16, kind.UINT16)
    assert not holds(kind.BFLOAT16, kind.BOOL)
    assert not holds(kind.DOUBLE, kind.STRING)
    assert not holds(kind.INT32, kind.UINT32)
    assert not holds(kind.FLOAT, kind.BFLOAT16)


def test_limits_of_both() -> None:
    assert both(Bounds(None, None), Bounds(None, 3.0)) == Bounds(None, 3.0)
    assert both(Bounds(1.0, 0.0), Bounds(None, None)) is None
    assert both(Bounds(2.0, 3.0), Bounds(0.0, 1.0)) is None


def test_signs_of_zero_and_specials_survive() -> None:
    text = graph(
        "a = Sub (x, z) b = Add (a, m) c = Mul (b, o) d = Neg (c) e = Neg (d) y = Div (o, e)",
        x="float[N]",
        weights="float z = {0}, float m = {-0.0}, float o = {1}",
    )
    numbers = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38], np.float32)
    with np.errstate(all="ignore"):
        got = assert_holds(PASS, text, feeds=[{"x": numbers}], rtol=0, atol=0)
    assert [node.op_type for node in got.graph.node] == ["Div"]
    assert run(got, {"x": numbers}, "onnxruntime")[0][1] == -np.inf


def test_bfloat16_constants_are_left_alone() -> None:
    kind = TensorProto.BFLOAT16
    one = helper.make_tensor("c", kind, [], [1.0])
    node = helper.make_node("Mul", ["x", "c"], ["y"])
    x, y = (helper.make_tensor_value_info(name, kind, [2]) for name in "xy")
    made = helper.make_graph([node], "g", [x], [y], [one])
    assert_unchanged(
        PASS, helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    )


def test_constants_as_nodes() -> None:
    assert_rewrites(
        PASS,
        before="g (float[N, 3] x) => (float[N, 3] y) { c = Constant <value = float {1}> () t = Mul (x, c) y = Exp (t) }",
        after="g (float[N, 3] x) => (float[N, 3] y) { y = Exp (x) }",
        rtol=0,
        atol=0,
    )


def test_a_hub_with_many_readers_is_quick() -> None:
    nodes = [helper.make_node("Identity", ["x"], [f"i{n}"]) for n in range(300)]
    nodes.append(helper.make_node("Sum", [f"i{n}" for n in range(300)], ["y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    got = assert_holds(PASS, made, rtol=0, atol=0)
    assert list(got.graph.node[0].input) == ["x"] * 300
    assert onnx.load_from_string(got.SerializeToString()) == got


def test_an_end_beyond_all_memory_takes_all() -> None:
    end = "int64[1] s = {0}, int64[1] t = {1000000000}"
    goes("u = Slice (x, s, t) y = Exp (u)", x="float[N, 4, 65536]", weights=end)


STATES = """<ir_version: 8, opset_import: ["" : 15]> g (float[T, N, 2] x) => (float[P, Q, R, S] y)
    <float[1, 12, 2] w, float[1, 12, 3] r, float[1, 6, 2] wr, float[1, 6, 3] rr, int64[3] s = {1, 4, 3},
     int64[1] o = {1}, int64[3] t = {1, -1, 3}, float[1, 4, 3] zeros, float[1, 4, 3] ones> { BODY }"""


def states(body: str) -> str:
    return STATES.replace("BODY", body)


ZERO = "z = ConstantOfShape (s)"
ZERO_STATES = [
    (f"{ZERO} y = LSTM <hidden_size = 3> (x, w, r, , , z, z)", "y = LSTM <hidden_size = 3> (x, w, r)"),
    (
        f"{ZERO} i = Identity (z) n = Exp (ones) y = LSTM <hidden_size = 3> (x, w, r, , , i, n)",
        "n = Exp (ones) y = LSTM <hidden_size = 3> (x, w, r, , , , n)",
    ),
    (
        "z = ConstantOfShape <value = float[1] {-0.0}> (s) u = Unsqueeze (z, o) q = Squeeze (u, o) y = LSTM <hidden_size = 3> (x, w, r, , , q)",
        "y = LSTM <hidden_size = 3> (x, w, r)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), ZERO_STATES)
def test_drops_states_of_zeros(before: str, after: str) -> None:
    feeds = [{"x": np.random.default_rng(1).normal(size=(5, 4, 2)).astype(np.float32)}]
    assert_rewrites(
        PASS,
        before=states(before),
        after=states(after),
        feeds=feeds,
        runtimes=["onnxruntime"],
        rtol=0,
        atol=0,
    )


def test_keeps_other_states() -> None:
    one = "z = ConstantOfShape <value = float[1] {1.0}> (s)"
    assert_unchanged(PASS, states(f"{one} y = LSTM <hidden_size = 3> (x, w, r, , , z, z)"))
    assert_unchanged(PASS, states("y = LSTM <hidden_size = 3> (x, w, r, , , ones)"))
    assert_unchanged(
        PASS, states(f"{ZERO} e = Exp (z) y = LSTM <hidden_size = 3> (x, w, r, , , e)")
    )
    deep = " ".join(f"z{n + 1} = Expand (z{n}, h)" for n in range(40))
    text = f"z0 = ConstantOfShape (s) {deep} y = LSTM <hidden_size = 3> (x, w, r, , , z40)"
    more = STATES.replace("float[T, N, 2] x)", "float[T, N, 2] x, int64[3] h)")
    assert_unchanged(PASS, more.replace("BODY", text))


def test_parts_of_a_concat_bound_by_a_caller_stay() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[2, 2] x) => (float[2] y) { y = f.two <p = 0> (x) }
        <domain: "f", opset_import: ["" : 21]>
        two <p> (a) => (b) { i = Constant <value = int64 {0}> ()
          c = Concat <axis = 0> (a, a) b = Gather <axis: int = @p> (c, i) }"""
    assert_unchanged(PASS, text)
    assert_unchanged(PASS, text.replace("axis = 0", "axis: int = @p"))


def test_a_scalar_output_keeps_its_shape() -> None:
    assert_rewrites(
        PASS,
        before="g (float[N] x) => (float y) { a = ReduceSum <keepdims = 0> (x) y = Identity (a) }",
        after="g (float[N] x) => (float y) { y = ReduceSum <keepdims = 0> (x) }",
        feeds=[{"x": np.ones(3, np.float32)}],
    )


def test_what_depends_on_the_run_is_not_merged() -> None:
    ranges = """g (float[4, 4] x, int64[1] s) => (float[P, Q] y) <int64[1] t = {4}, int64[1] a = {1}> {
        b = Slice (x, s, t) y = Slice (b, s, t, a) }"""
    assert_unchanged(PASS, ranges)
    limits = """g (float[N] x, float s) => (float[N] y) { a = Clip (x, s) y = Relu (a) }"""
    assert_unchanged(PASS, limits)
    states = STATES.replace("float[T, N, 2] x)", "float[T, N, 2] x, float[1, 4, 3] h)")
    assert_unchanged(PASS, states.replace("BODY", "y = LSTM <hidden_size = 3> (x, w, r, , , h)"))


def test_chains_that_a_caller_decides_are_not_merged() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "f" : 1]>
        g (float[4, 4] x) => (float[A, B] y) { y = f.two <p = 1> (x) }
        <domain: "f", opset_import: ["" : 21]>
        two <p> (a) => (b) { BODY }"""
    for body in (
        "c = Cast <to = 11> (a) b = Cast <to: int = @p> (c)",
        "c = Cast <to: int = @p> (a) b = Cast <to = 1> (c)",
        "c, d = Split <num_outputs = 2, axis: int = @p> (a) b = Concat <axis = 1> (c, d)",
        "c, d = Split <num_outputs = 2> (a) b = Concat <axis: int = @p> (c, d)",
        "c = Transpose (a) d = Exp (c) b = Transpose (d)",
        "c = Transpose <perm = [1, 0]> (a) d = Exp (c) b = Flatten <axis: int = @p> (d)",
    ):
        assert_unchanged(PASS, text.replace("BODY", body))


def test_transposes_of_unknown_rank_stay() -> None:
    text = "g (float[1, 2] x, int64[3] s) => (float[P, Q, R] y) { a = Expand (x, s) b = Transpose (a) c = Exp (b) y = Transpose (c) }"
    assert_unchanged(PASS, text)
    text = "g (float[4, 6] x, int64[K] s) => (float[P, Q] y) { a = Reshape (x, s) b = Transpose (a) y = Transpose (b) }"
    assert_unchanged(PASS, text)


def test_a_constant_beside_an_unknown_rank_stays() -> None:
    text = "g (float[4, 6] x, int64[K] s) => (float[P, Q] y) <float[1, 1] c = {1}> { a = Reshape (x, s) y = Mul (a, c) }"
    assert_unchanged(PASS, text)
    text = text.replace("int64[K] s", "int64[K] s, float[L, 1, 1, M] z").replace(
        "a = Reshape (x, s) y = Mul (a, c)", "a = Reshape (x, s) b = Add (a, z) y = Mul (b, c)"
    )
    assert_unchanged(PASS, text)


def test_a_constant_of_ones_widens_nothing_of_unknown_size() -> None:
    goes("q = Mul (x, c) y = Exp (q)", x="float[?, 3]", weights="float[1, 1] c = {1}")


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (
            "g (float[3] x) => (float[3] y) <float z = {0}> { [at] y = Add (x, z) }",
            "adding 0.0 turns -0.0 into 0.0",
        ),
        (
            "g (float[3] x) => (float[3] y) { h = Cast <to = 10> (x)  [at] y = Cast <to = 1> (h) }",
            "float16 in between does not hold every float",
        ),
        (
            "g (float[3] x, bool t) => (float[3] y) <float r = {0.5}> { [at] y = Dropout (x, r, t) }",
            "it may be in training mode",
        ),
        (
            """g (float[N, M, 4] x, float[N, M, 2, 2] z) => (float[N, M, 2, 2] y) <int64[1] a = {2}> {
                s = Shape (z)
                u = Unsqueeze (x, a)
                [at] y = Reshape (u, s)
            }""",
            "2 dimensions of its result are open",
        ),
    ],
)
def test_what_nearly_changes_nothing_is_told(graph: str, said: str) -> None:
    outcome = assert_refuses(EliminateIdentity(), graph, code="EID101", at="at")
    assert outcome.diagnostics[0].message.startswith(said)


def test_other_sums_and_truncations_are_no_near_misses() -> None:
    for body in ("y = Add (x, k)", "h = Cast <to = 7> (x)  y = Cast <to = 1> (h)"):
        graph = f"g (float[3] x) => (float[3] y) <float[3] k = {{0, 1, 0}}> {{ {body} }}"
        assert not assert_unchanged(EliminateIdentity(), graph).diagnostics
