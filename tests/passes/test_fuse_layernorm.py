"""fuse-layernorm: formulas that are one operator, and those that only look like it."""

from __future__ import annotations

import pytest

from onnxcomp_passes.simplify.fuse_layernorm import FuseLayernorm
from tests.helpers.check import assert_holds, assert_unchanged

NORM = FuseLayernorm()
LAYER = """m = ReduceMean (x, last) d = Sub (x, m) p = Pow (d, two) v = ReduceMean (p, last)
    a = Add (v, eps) r = Sqrt (a) q = Div (d, r) k = Mul (q, w) y = Add (k, b)"""
WEIGHTS = "float[6] w, float[6] b, float two = {2}, float eps = {0.00001}, int64[1] last = {-1}"


def layer(
    body: str = LAYER, weights: str = WEIGHTS, opset: int = 18, kind: str = "float", y: str = ""
) -> str:
    return f"""<ir_version: 9, opset_import: ["" : {opset}]>
        g ({kind}[N, 4, 6] x) => ({kind}[N, 4, 6] y{y}) <{weights}> {{ {body} }}"""


@pytest.mark.parametrize(
    ("text", "inputs", "axis"),
    [
        (layer(), 3, -1),
        (layer(LAYER.replace("(q, w)", "(w, q)").replace("(k, b)", "(b, k)").replace("(v, eps)", "(eps, v)")), 3, -1),
        (layer(LAYER.replace("Pow (d, two)", "Mul (d, d)")), 3, -1),
        (layer(LAYER.replace("k = Mul (q, w) y = Add (k, b)", "y = Mul (q, w)")), 2, -1),
        (layer(LAYER.replace("y = Add (k, b)", "t = Exp (k) y = Mul (k, t)")), 2, -1),
        (
            layer(LAYER.replace("ReduceMean (x, last)", "ReduceMean <axes = [2]> (x)").replace("ReduceMean (p, last)", "ReduceMean <axes = [-1]> (p)"), opset=17),
            3, -1,
        ),
        (layer(weights=WEIGHTS.replace("[6]", "[4, 6]").replace("int64[1] last = {-1}", "int64[2] last = {2, 1}")), 3, -2),
    ],
)  # fmt: skip
def test_puts_a_layer_normalization_together(text: str, inputs: int, axis: int) -> None:
    got = assert_holds(NORM, text, rtol=2e-5, atol=2e-5)
    made = got.graph.node[0]
    assert made.op_type == "LayerNormalization"
    assert len(made.input) == inputs
    assert [attr.i for attr in made.attribute if attr.name == "axis"] == [axis]


@pytest.mark.parametrize(
    "text",
    [
        layer(opset=16, body=LAYER.replace(" (x, last)", " <axes = [2]> (x)").replace(" (p, last)", " <axes = [2]> (p)")),
        layer(weights=WEIGHTS.replace("float[6] w", "float[4, 6] w")),
        layer(weights=WEIGHTS.replace("float[6] b", "float b")),
        layer(weights=WEIGHTS.replace("{-1}", "{1}"), body=LAYER),
        layer(weights=WEIGHTS.replace("two = {2}", "two = {4}")),
        layer(weights=WEIGHTS.replace("float eps = {0.00001}", "float[6] eps")),
        layer(LAYER.replace("ReduceMean (p, last)", "ReduceSum (p, last)")),
        layer(LAYER.replace("d = Sub (x, m)", "d = Sub (m, x)")),
        layer(LAYER.replace("m = ReduceMean (x, last)", "z = Exp (x) m = ReduceMean (z, last)")),
        layer(LAYER.replace("ReduceMean (x, last)", "ReduceMean (x, other)"), WEIGHTS + ", int64[2] other = {1, 2}"),
        layer(LAYER.replace("p = Pow (d, two)", "z = Exp (d) p = Pow (z, two)")),
        layer(LAYER.replace("p = Pow (d, two)", "p = Mul (d, x)")),
        layer(LAYER.replace("r = Sqrt (a)", "r = Exp (a)")),
        layer(LAYER.replace("a = Add (v, eps) r = Sqrt (a)", "r = Sqrt (v)")),
        layer(LAYER.replace("d = Sub (x, m)", "d = Add (x, m)")),
        layer(LAYER.replace("q = Div (d, r)", "q = Div (r, d)")),
        layer(LAYER.replace("k = Mul (q, w)", "k = Mul (d, w)").replace("y = Add (k, b)", "z = Add (k, b) y = Add (z, q)")),
        layer(LAYER, y=", float[N, 4, 1] r"),
        layer(kind="double", weights=WEIGHTS.replace("float", "double")),
    ],
)  # fmt: skip
def test_leaves_other_normalizations(text: str) -> None:
    assert_unchanged(NORM, text)


def test_leaves_normalizations_of_unknown_shape() -> None:
    text = layer().replace("float[N, 4, 6] x", "float[] x")
    assert_unchanged(NORM, text)
    assert_unchanged(NORM, layer().replace("float[N, 4, 6] x", "float[N, 4, M] x"))


def test_leaves_means_that_drop_the_axis() -> None:
    body = LAYER.replace(
        "m = ReduceMean (x, last)",
        "n = ReduceMean <keepdims = 0> (x, last) m = Unsqueeze (n, last)",
    )
    assert_unchanged(NORM, layer(body))
