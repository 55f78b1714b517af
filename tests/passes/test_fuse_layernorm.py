"""fuse-layernorm: formulas that are one operator, and those that only look like it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp_passes.simplify.fuse_layernorm import FuseLayernorm
from tests.helpers.check import assert_holds, assert_refuses, assert_rewrites, assert_unchanged
from tests.helpers.text import model

NORM = FuseLayernorm()
TIGHT: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-5}
LAYER = """m = ReduceMean (x, last) d = Sub (x, m) p = Pow (d, two) v = ReduceMean (p, last)
    a = Add (v, eps) r = Sqrt (a) q = Div (d, r) k = Mul (q, w) y = Add (k, b)"""
ROOT = "p = Pow (x, two) v = ReduceMean (p, last) a = Add (v, eps) r = Sqrt (a) q = Div (x, r) y = Mul (q, w)"
WEIGHTS = "float[6] w, float[6] b, float two = {2}, float one = {1}, float eps = {0.00001}, int64[1] last = {-1}"


def layer(
    body: str = LAYER, weights: str = WEIGHTS, opset: int = 18, kind: str = "float", y: str = ""
) -> str:
    return f"""<ir_version: {9 if opset < 21 else 10}, opset_import: ["" : {opset}]>
        g ({kind}[N, 4, 6] x) => ({kind}[N, 4, 6] y{y}) <{weights}> {{ {body} }}"""


def operators(text: str, runtimes: tuple[str, ...] = ("reference", "onnxruntime")) -> str:
    got = assert_holds(NORM, text, runtimes=runtimes, **TIGHT)
    return " ".join(node.op_type for node in got.graph.node)


def without_bias(body: str) -> str:
    return body.replace("k = Mul (q, w) y = Add (k, b)", "y = Mul (q, w)")


BARE = LAYER.replace("q = Div (d, r) k = Mul (q, w) y = Add (k, b)", "y = Div (d, r)")


@pytest.mark.parametrize(
    ("text", "inputs", "axis"),
    [
        (layer(), 3, -1),
        (layer(LAYER.replace("(q, w)", "(w, q)").replace("(k, b)", "(b, k)").replace("(v, eps)", "(eps, v)")), 3, -1),
        (layer(LAYER.replace("Pow (d, two)", "Mul (d, d)")), 3, -1),
        (layer(LAYER.replace("q = Div (d, r)", "i = Reciprocal (r) q = Mul (d, i)")), 3, -1),
        (layer(LAYER.replace("q = Div (d, r)", "i = Div (one, r) q = Mul (i, d)")), 3, -1),
        (layer(LAYER.replace("q = Div (d, r) k = Mul (q, w)", "i = Reciprocal (r) j = Mul (i, w) k = Mul (d, j)")), 3, -1),
        (layer(without_bias(LAYER)), 2, -1),
        (layer(LAYER.replace("k = Mul (q, w) y = Add (k, b)", "y = Add (q, b)")), 3, -1),
        (layer(BARE), 2, -1),
        (layer(weights=WEIGHTS.replace("float[6] b", "float b")), 3, -1),
        (layer(weights=WEIGHTS.replace("float[6] w", "float[1, 1, 6] w")), 3, -1),
        (layer(weights=WEIGHTS.replace("float eps", "float[1, 1, 1] eps")), 3, -1),
        (layer(LAYER.replace("y = Add (k, b)", "t = Exp (k) y = Mul (k, t)")), 2, -1),
        (
            layer(LAYER.replace("ReduceMean (x, last)", "ReduceMean <axes = [2]> (x)").replace("ReduceMean (p, last)", "ReduceMean <axes = [-1]> (p)"), opset=17),
            3, -1,
        ),
        (
            layer(LAYER.replace("m = ReduceMean (x, last)", "n = ReduceMean <keepdims = 0> (x, last) m = Unsqueeze (n, last)")),
            3, -1,
        ),
    ],
)  # fmt: skip
def test_puts_a_layer_normalization_together(text: str, inputs: int, axis: int) -> None:
    got = assert_holds(NORM, text, **TIGHT)
    made = got.graph.node[0]
    assert made.op_type == "LayerNormalization"
    assert len(got.graph.node) == (3 if "Exp" in text else 1)
    assert len(made.input) == inputs
    assert [attr.i for attr in made.attribute if attr.name == "axis"] == [axis]


def test_the_graph_itself() -> None:
    assert_rewrites(
        NORM,
        before=layer(),
        after=layer(
            "y = LayerNormalization <axis = -1, epsilon = 0.00001> (x, w, b)",
            f"{WEIGHTS}, float[6] ones = {{1, 1, 1, 1, 1, 1}}",
        ),
        **TIGHT,
    )


def test_a_scale_along_other_axes_stays_behind() -> None:
    assert operators(layer(weights=WEIGHTS.replace("[6] w", "[4, 6] w"))) == (
        "LayerNormalization Mul Add"
    )
    assert operators(layer(weights=WEIGHTS.replace("[6] b", "[4, 1] b"))) == (
        "LayerNormalization Add"
    )


def test_several_axes() -> None:
    weights = WEIGHTS.replace("[6]", "[3, 5, 6]").replace(
        "int64[1] last = {-1}", "int64[3] last = {2, -1, 1}"
    )
    text = layer(weights=weights).replace("[N, 4, 6]", "[N, 3, 5, 6]")
    assert operators(text) == "LayerNormalization"


def test_a_scale_that_is_no_constant() -> None:
    text = layer(weights=WEIGHTS.replace("float[6] w, ", "")).replace("6] x)", "6] x, float[6] w)")
    assert operators(text) == "LayerNormalization"
    loose = text.replace("float[6] w)", "float[1] w)")
    assert operators(loose) == "LayerNormalization Mul Add"


@pytest.mark.parametrize(
    "text",
    [
        layer(opset=16, body=LAYER.replace(" (x, last)", " <axes = [2]> (x)").replace(" (p, last)", " <axes = [2]> (p)")),
        layer(weights=WEIGHTS.replace("{-1}", "{0}"), body=LAYER),
        layer(weights=WEIGHTS.replace("two = {2}", "two = {4}")),
        layer(weights=WEIGHTS.replace("two = {2}", "two = {2.001}")),
        layer(weights=WEIGHTS.replace("float eps = {0.00001}", "float[6] eps")),
        layer(weights=WEIGHTS.replace("{0.00001}", "{-0.5}")),
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
        layer(LAYER, y=", float[N, 4, 1] r"),
        layer(LAYER, y=", float[N, 4, 6] d"),
        layer(LAYER.replace("y = Add (k, b)", "z = Add (k, b) f = Exp (d) h = Neg (d) u = Add (f, h) y = Add (z, u)")),
        layer(kind="double", weights=WEIGHTS.replace("float", "double")),
        layer(weights=WEIGHTS.replace("float eps", "float[1, 1, 1, 1] eps")).replace("6] y", "6] z").replace("=> (float[N", "=> (float[P, N").replace("y = Add", "z = Add"),
    ],
)  # fmt: skip
def test_leaves_other_normalizations(text: str) -> None:
    assert_unchanged(NORM, text)


def test_leaves_normalizations_of_unknown_shape() -> None:
    assert_unchanged(NORM, layer().replace("float[N, 4, 6] x", "float[] x"))
    text = layer().replace("float[N, 4, 6] x", "float[N, 4, M] x")
    assert_refuses(NORM, text, code="FLN101")


def test_means_that_drop_another_axis_stay() -> None:
    body = LAYER.replace(
        "m = ReduceMean (x, last)",
        "n = ReduceMean <keepdims = 0> (x, last) m = Unsqueeze (n, other)",
    )
    text = layer(body, WEIGHTS + ", int64[1] other = {1}").replace("N, 4, 6", "4, 4, 6")
    text = text.replace("(x, m)", "(x, o)").replace("d = Sub", "o = Reshape (m, s) d = Sub")
    assert_unchanged(NORM, text.replace("<float[6] w", "<int64[3] s = {4, 4, 1}, float[6] w"))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        (ROOT, "RMSNormalization"),
        (ROOT.replace("Pow (x, two)", "Mul (x, x)"), "RMSNormalization"),
        (ROOT.replace("q = Div (x, r)", "i = Reciprocal (r) q = Mul (i, x)"), "RMSNormalization"),
        (ROOT.replace("q = Div (x, r) y = Mul (q, w)", "y = Div (x, r)"), "RMSNormalization"),
        (ROOT.replace("y = Mul", "z = Mul") + " y = Add (z, b)", "RMSNormalization Add"),
        (LAYER, "LayerNormalization"),
    ],
)
def test_puts_a_root_mean_square_normalization_together(body: str, left: str) -> None:
    assert operators(layer(body, opset=23), ("onnxruntime",)) == left


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        (ROOT, 18),
        (ROOT.replace("(x, two)", "(x, three)").replace("ReduceMean (p", "ReduceMean (p"), 23),
    ],
)
def test_leaves_other_roots(body: str, opset: int) -> None:
    assert_unchanged(NORM, layer(body, WEIGHTS + ", float three = {3}", opset))


@pytest.mark.parametrize("body", [LAYER, ROOT])
@pytest.mark.parametrize("inverse", [True, False])
def test_old_opsets_get_the_spelling_that_the_runtime_knows(
    body: str, inverse: bool, tmp_path: Any
) -> None:
    body = body.replace("Pow (d, two)", "Mul (d, d)").replace("Pow (x, two)", "Mul (x, x)")
    if inverse:
        body = body.replace("q = Div (d, r)", "i = Reciprocal (r) q = Mul (d, i)")
        body = body.replace("q = Div (x, r)", "i = Reciprocal (r) q = Mul (i, x)")
    for value in "xp":
        body = body.replace(f"ReduceMean ({value}, last)", f"ReduceMean <axes = [-1]> ({value})")
    got = assert_holds(NORM, layer(body, opset=13), **TIGHT)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(
        got.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert len(found) == 1, found
    assert found[0].endswith("LayerNormalization")


IMAGE = """m = ReduceMean (x, sp) d = Sub (x, m) p = Mul (d, d) v = ReduceMean (p, sp) a = Add (v, eps)
    r = Sqrt (a) q = Div (d, r) k = Mul (q, w) y = Add (k, b)"""


def image(body: str = IMAGE, w: str = "float[4, 1, 1]", x: str = "float[N, 4, H, W]") -> str:
    return f"""<ir_version: 9, opset_import: ["" : 18]> g ({x} x) => (float[N, 4, P, Q] y)
        <{w} w, float[1, 4, 1, 1] b, float eps = {{0.00001}}, int64[2] sp = {{2, 3}}> {{ {body} }}"""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (image(), "InstanceNormalization"),
        (image(w="float"), "InstanceNormalization"),
        (image(w="float[1, 4, 1, 1]"), "InstanceNormalization"),
        (image(w="float[4, 6, 5]", x="float[N, 4, 6, 5]"), "InstanceNormalization Mul Add"),
    ],
)
def test_puts_an_instance_normalization_together(text: str, left: str) -> None:
    # The reference evaluator needs sizes above one, which both have here.
    assert operators(text) == left


def test_groups_become_an_instance_normalization() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18]> g (float[N, 8, 6, 5] x) => (float[N, 8, 6, 5] y)
        <int64[3] groups = {0, 2, -1}, int64[4] back = {0, 8, 6, 5}, float eps = {0.00001}, int64[1] last = {2}> {
        z = Reshape (x, groups) m = ReduceMean (z, last) d = Sub (z, m) p = Mul (d, d) v = ReduceMean (p, last)
        a = Add (v, eps) r = Sqrt (a) q = Div (d, r) y = Reshape (q, back) }"""
    assert operators(text) == "Reshape InstanceNormalization Reshape"


def test_an_image_of_unknown_channels_stays() -> None:
    assert_unchanged(NORM, image(x="float[N, C, H, W]"))


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("z = LayerNormalization (x, w) y = Add (z, b)", "LayerNormalization"),
        ("z = LayerNormalization (x, w, b) y = Mul (z, b)", "LayerNormalization"),
        ("z = LayerNormalization (x, w, b) t = Mul (z, two) y = Add (t, one)", "LayerNormalization"),
        ("z = LayerNormalization (x, w, b) y = Mul (z, x)", "LayerNormalization Mul"),
        ("z = LayerNormalization (x, w, b) u = Mul (z, two) y = Add (z, u)", "LayerNormalization Mul Add"),
        ("z = LayerNormalization <axis = 1> (x, v) y = Add (z, b)", "LayerNormalization"),
    ],
)  # fmt: skip
def test_constants_behind_a_normalization_go_into_it(body: str, left: str) -> None:
    assert operators(layer(body, WEIGHTS + ", float[4, 6] v")) == left


def test_a_constant_that_widens_stays_behind() -> None:
    text = layer("z = LayerNormalization (x, w) y = Add (z, u)", WEIGHTS + ", float[2, 1, 1, 6] u")
    assert_unchanged(NORM, text.replace("[N, 4, 6] y", "[2, N, 4, 6] y"))


def test_parameters_that_a_caller_may_change_stay() -> None:
    text = layer("z = LayerNormalization (x, s) y = Mul (z, w)").replace(
        "6] x)", "6] x, float[6] s = {1, 1, 1, 1, 1, 1})"
    )
    assert_unchanged(NORM, text)


@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(2, 5)),
    axes=st.sampled_from([[-1], [2], [1, 2], [0, 1, 2], [1], [0, 2]]),
    spelling=st.sampled_from(["Pow", "Mul"]),
    inverse=st.booleans(),
    centred=st.booleans(),
    factors=st.lists(
        st.tuples(st.sampled_from(["Mul", "Add"]), st.sampled_from(["", "[1]", "[C]", "[B, C]", "[1, 1, C]", "[B, 1]"])),
        max_size=4,
    ),
    opset=st.sampled_from([18, 23]),
)  # fmt: skip
def test_random_normalizations_keep_their_values(
    sizes: tuple[int, int, int],
    axes: list[int],
    spelling: str,
    inverse: bool,
    centred: bool,
    factors: list[tuple[str, str]],
    opset: int,
) -> None:
    d = "d" if centred else "x"
    lines = ["m = ReduceMean (x, axes)", "d = Sub (x, m)"] if centred else []
    lines.append(f"p = Pow ({d}, two)" if spelling == "Pow" else f"p = Mul ({d}, {d})")
    lines += ["v = ReduceMean (p, axes)", "a = Add (v, eps)", "r = Sqrt (a)"]
    lines += ["i = Reciprocal (r)", f"q = Mul ({d}, i)"] if inverse else [f"q = Div ({d}, r)"]
    value, weights = "q", []
    for index, (operator, shape) in enumerate(factors):
        kind = shape.replace("B", str(sizes[1])).replace("C", str(sizes[2]))
        weights.append(f"float{kind} f{index}")
        lines.append(f"t{index} = {operator} ({value}, f{index})")
        value = f"t{index}"
    lines.append(f"y = Neg ({value})")
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]>
        g (float[{sizes[0]}, {sizes[1]}, {sizes[2]}] x) => (float[A, B, C] y)
        <float two = {{2}}, float eps = {{0.01}}, int64[{len(axes)}] axes = {{{", ".join(map(str, axes))}}}{"".join(", " + w for w in weights)}>
        {{ {" ".join(lines)} }}"""
    model(text)
    x = np.random.default_rng(len(lines)).normal(size=sizes).astype(np.float32) * 3
    assert_holds(NORM, text, feeds=[{"x": x}], runtimes=["onnxruntime"], rtol=2e-4, atol=2e-4)
