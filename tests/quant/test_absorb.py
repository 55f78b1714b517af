"""Who takes the division of an activation's channels."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Edit, Model
from onnxcomp.quant.absorb import find_absorber
from onnxcomp.runtime import Session
from tests.helpers.text import model

ATTENTION = """
    g (float[2, 5, 8] x, float[2, 2, 5, 5] p) => (float[2, 5, 8] v)
    <float[8, 8] w, float[8] b, int64[4] apart = {0, 0, 2, 4}, int64[3] joined = {0, 0, 8}> {
      a = MatMul (x, w)
      c = Add (b, a)
      d = Reshape (c, apart)
      e = Transpose <perm = [0, 2, 1, 3]> (d)
      f = MatMul (p, e)
      h = Transpose <perm = [0, 2, 1, 3]> (f)
      v = Reshape (h, joined)
    }"""
LAST = {
    "matmul": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w> { v = MatMul (x, w) }",
    "gemm": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w, float[8] b>"
    "{ v = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
    "gemm-rows": "g (float[3, 4] x) => (float[3, 8] v) <float[8, 4] w, float[1, 8] b>"
    "{ v = Gemm <transB = 1> (x, w, b) }",
    "relu": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w> { a = MatMul (x, w) v = Relu (a) }",
    "norm": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w, float[8] b>"
    "{ v = LayerNormalization (x, w, b) }",
    "norm-without-bias": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w>"
    "{ v = LayerNormalization (x, w) }",
    "root-mean-square": '<ir_version: 10, opset_import: ["" : 23]>'
    "g (float[3, 8] x) => (float[3, 8] v) <float[8] w> { v = RMSNormalization (x, w) }",
    "norm-in-parts": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w, float[8] b>"
    "{ a = Sin (x) c = Mul (a, w) v = Add (c, b) }",
    "shift-by-one-number": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w, float b = {2.0}>"
    "{ a = Sin (x) c = Mul (w, a) v = Add (b, c) }",
    "subtract": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w, float[8] b>"
    "{ a = Sin (x) c = Mul (a, w) v = Sub (b, c) }",
    "divisor": "g (float[3, 8] x) => (float[3, 8] v) <float[8] w> { a = Sin (x) v = Div (a, w) }",
    "gate": "g (float[3, 8] x, float[3, 4] z) => (float[3, 8] v) <float[4, 8] w>"
    "{ a = Sin (x) b = MatMul (z, w) v = Mul (a, b) }",
    "shared-constant": "g (float[3, 8] x) => (float[3, 8] v, float[3, 8] o) <float[8] w>"
    "{ a = Sin (x) v = Mul (a, w) o = Mul (x, w) }",
    "attention": ATTENTION,
}
IMAGES = {
    "conv": "g (float[1, 2, 5, 5] x) => (float[1, 8, 5, 5] v) <float[8, 2, 1, 1] w, float[8] b>"
    "{ v = Conv (x, w, b) }",
    "conv-group": "g (float[1, 2, 5, 5] x) => (float[1, 8, 5, 5] v) <float[8, 1, 1, 1] w>"
    "{ a = Conv <group = 2> (x, w) v = LeakyRelu (a) }",
    "transposed": "g (float[1, 2, 5, 5] x) => (float[1, 8, 5, 5] v) <float[2, 8, 1, 1] w, float[8] b>"
    "{ v = ConvTranspose (x, w, b) }",
    "pooled": "g (float[1, 2, 5, 5] x) => (float[1, 8, 1, 1] v) <float[8, 2, 1, 1] w>"
    "{ a = Conv (x, w) b = MaxPool <kernel_shape = [2, 2]> (a) v = GlobalAveragePool (b) }",
    "batch-norm": "g (float[1, 8, 5, 5] x) => (float[1, 8, 5, 5] v)"
    "<float[8] w, float[8] b, float[8] m, float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}>"
    "{ v = BatchNormalization (x, w, b, m, s) }",
    "instance-norm": "g (float[1, 8, 5, 5] x) => (float[1, 8, 5, 5] v) <float[8] w, float[8] b>"
    "{ v = InstanceNormalization (x, w, b) }",
}
REFUSED = {
    "rows-by-a-vector": "g (float[8, 8] x, float[4] z) => (float[8] v) <float[4, 8] w>"
    "{ a = MatMul (z, w) b = Sin (x) v = MatMul (b, a) }",
    "nonlinear": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w> { a = MatMul (x, w) v = Tanh (a) }",
    "read-elsewhere": "g (float[3, 4] x) => (float[3, 8] v, float[3, 8] o) <float[4, 8] w>"
    "{ a = MatMul (x, w) v = Relu (a) o = Tanh (a) }",
    "an-output": "g (float[3, 4] x) => (float[3, 8] v, float[3, 8] a) <float[4, 8] w>"
    "{ a = MatMul (x, w) v = Relu (a) }",
    "computed-weight": "g (float[3, 4] x, float[4, 8] w) => (float[3, 8] v) { v = MatMul (x, w) }",
    "one-number": "g (float[3, 8] x) => (float[3, 8] v) <float w = {2.0}> { a = Sin (x) v = Mul (a, w) }",
    "residual": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w>"
    "{ a = MatMul (x, w) b = Sin (a) v = Add (a, b) }",
    "a-constant-that-widens": "g (float[3, 1] x) => (float[3, 8] v) <float[1, 1] w, float[8] b>"
    "{ a = MatMul (x, w) v = Add (a, b) }",
    "square": "g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w> { a = MatMul (x, w) v = Mul (a, a) }",
    "shared-heads": ATTENTION.replace("float[8, 8] w", "float[8, 4] w")
    .replace("float[8] b", "float[4] b")
    .replace("{0, 0, 2, 4}", "{0, 0, 1, 4}"),
    "weights-of-attention": ATTENTION.replace("f = MatMul (p, e)", "q = Relu (e) f = MatMul (q, p)")
    .replace("float[2, 2, 5, 5] p", "float[2, 2, 4, 4] p"),
}  # fmt: skip


def outputs(loaded: Model) -> np.ndarray:
    rng = np.random.default_rng(0)
    with Session.open(loaded) as session:
        feeds = {}
        for spec in session.inputs:
            sizes = [int(size or 1) for size in spec.shape or ()]
            feeds[spec.name] = rng.normal(size=sizes).astype("f4")
        return np.asarray(session.run(feeds)["v"])


def check(text: str, channels: np.ndarray) -> None:
    loaded = Model.load(model(text))
    before = outputs(loaded)
    value = next(value for value in loaded.graph.outputs if value.name == "v")
    absorber = find_absorber(value, channels, Facts(loaded).get(Shapes()))
    assert absorber is not None
    edit = Edit(loaded)
    scale = np.random.default_rng(1).uniform(0.2, 5.0, channels.size)
    absorber.divide(edit, scale)
    np.testing.assert_allclose(outputs(loaded), before / scale[channels], rtol=1e-4, atol=1e-5)
    edit.rollback()
    np.testing.assert_array_equal(outputs(loaded), before)


@pytest.mark.parametrize("name", LAST)
def test_channels_along_the_last_axis(name: str) -> None:
    check(LAST[name], np.arange(8))


@pytest.mark.parametrize("name", IMAGES)
def test_channels_of_images(name: str) -> None:
    check(IMAGES[name], np.arange(8)[:, None, None])


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    loaded = Model.load(model(REFUSED[name]))
    value = next(value for value in loaded.graph.outputs if value.name == "v")
    assert find_absorber(value, np.arange(8), Facts(loaded).get(Shapes())) is None


def test_a_shared_constant_keeps_its_numbers_for_others() -> None:
    loaded = Model.load(model(LAST["shared-constant"]))
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    before = tensor.numpy().copy()
    absorber = find_absorber(loaded.graph.outputs[0], np.arange(8))
    assert absorber is not None
    absorber.divide(Edit(loaded), np.full(8, 2.0))
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), before)


def test_a_clip_tells_its_limit() -> None:
    text = """g (float[3, 4] x) => (float[3, 8] v) <float[4, 8] w, float zero = {0}, float six = {6}>
        { a = MatMul (x, w) v = Clip (a, zero, six) }"""
    value = Model.load(model(text)).graph.outputs[0]
    absorber = find_absorber(value, np.arange(8))
    assert absorber is not None
    assert absorber.limit == 6.0
    negative = Model.load(model(text.replace("zero = {0}", "zero = {-1}"))).graph.outputs[0]
    assert find_absorber(negative, np.arange(8)) is None


def test_half_precision_takes_no_more_than_it_holds() -> None:
    text = LAST["matmul"].replace("float[", "float16[")
    absorber = find_absorber(Model.load(model(text)).graph.outputs[0], np.arange(8))
    assert absorber is not None
    assert absorber.takes(np.full(8, 1e-2))
    assert not absorber.takes(np.full(8, 1e-6))
    wide = find_absorber(Model.load(model(LAST["matmul"])).graph.outputs[0], np.arange(8))
    assert wide is not None
    assert wide.takes(np.full(8, 1e-6))
