"""Gram matrices: whatever the operator, rows times the matrix is what the runtime computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.errors import SamplesError
from onnxcomp.ir import Edit, Model
from onnxcomp.quant.grams import (
    Gram,
    collect_cross_grams,
    collect_grams,
    gram_readers,
    paired,
    refit,
)
from onnxcomp.runtime import Session
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

    from onnxcomp.quant.readers import Layer

Feeds = dict[str, np.ndarray]


def graph(operation: str, x: str, weights: str) -> onnx.ModelProto:
    return model(f"g (float[{x}] x) => (float y) <{weights}> {{ y = {operation} }}")


def feeds_for(proto: onnx.ModelProto, count: int = 3, seed: int = 0) -> list[Feeds]:
    rng = np.random.default_rng(seed)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]


def only(loaded: Model, feeds: list[Feeds], limit: int = 2048) -> tuple[Layer, Gram]:
    ((layer, gram),) = collect_grams(loaded, gram_readers(loaded), feeds, rows_per_sample=limit)
    return layer, gram


def output_power(loaded: Model, feeds: list[Feeds]) -> float:
    with Session.open(loaded) as session:
        outputs = [session.run(feed) for feed in feeds]
    return sum(float(np.square(next(iter(out.values())), dtype="f8").sum()) for out in outputs)


CASES = {
    "matmul": ("MatMul (x, w)", "2, 3, 5, 8", "float[8, 6] w"),
    "matmul-vector": ("MatMul (x, w)", "8", "float[8, 6] w"),
    "matmul-left": ("MatMul (w, x)", "2, 8, 5", "float[6, 8] w"),
    "matmul-left-matrix": ("MatMul (w, x)", "8, 5", "float[6, 8] w"),
    "matmul-stack": ("MatMul (x, w)", "2, 3, 5, 8", "float[3, 8, 6] w"),
    "matmul-stack-of-one-input": ("MatMul (x, w)", "5, 8", "float[3, 8, 6] w"),
    "matmul-stack-with-ones": ("MatMul (x, w)", "2, 3, 5, 8", "float[2, 1, 8, 6] w"),
    "matmul-left-stack": ("MatMul (w, x)", "2, 3, 8, 5", "float[3, 6, 8] w"),
    "matmul-stack-of-one": ("MatMul (x, w)", "2, 3, 5, 8", "float[1, 8, 6] w"),
    "gemm": ("Gemm (x, w)", "4, 8", "float[8, 6] w"),
    "gemm-trans-a": ("Gemm <transA = 1> (x, w)", "8, 4", "float[8, 6] w"),
    "gemm-trans-b": ("Gemm <transB = 1> (x, w)", "4, 8", "float[6, 8] w"),
    "conv": ("Conv <pads = [1, 0, 2, 1]> (x, w)", "2, 4, 9, 8", "float[6, 4, 3, 2] w"),
    "conv-1d": (
        "Conv <pads = [2, 1], strides = [2], dilations = [2]> (x, w)",
        "2, 4, 19",
        "float[6, 4, 3] w",
    ),
    "conv-3d": ("Conv <strides = [1, 2, 2]> (x, w)", "1, 2, 5, 6, 7", "float[3, 2, 2, 3, 3] w"),
    "conv-group": ("Conv <group = 2, pads = [1, 1, 1, 1]> (x, w)", "2, 4, 7, 7", "float[6, 2, 3, 3] w"),
    "conv-depthwise": (
        "Conv <group = 4, strides = [2, 2], pads = [1, 1, 1, 1]> (x, w)",
        "2, 4, 8, 7",
        "float[8, 1, 3, 3] w",
    ),
    "conv-same-upper": (
        "Conv <auto_pad = \"SAME_UPPER\", strides = [2, 3]> (x, w)",
        "1, 3, 8, 10",
        "float[5, 3, 3, 4] w",
    ),
    "conv-same-lower": (
        "Conv <auto_pad = \"SAME_LOWER\", strides = [2, 1]> (x, w)",
        "1, 3, 8, 10",
        "float[5, 3, 4, 4] w",
    ),
    "conv-valid": ("Conv <auto_pad = \"VALID\"> (x, w)", "1, 3, 8, 10", "float[5, 3, 4, 4] w"),
    "transposed": ("ConvTranspose (x, w)", "2, 4, 5, 6", "float[4, 3, 3, 2] w"),
    "transposed-all": (
        "ConvTranspose <strides = [2, 3], pads = [1, 0, 1, 2], dilations = [1, 2], "
        "output_padding = [1, 2]> (x, w)",
        "2, 4, 5, 6",
        "float[4, 3, 3, 2] w",
    ),
    "transposed-group": (
        "ConvTranspose <group = 2, strides = [2]> (x, w)",
        "2, 4, 5",
        "float[4, 3, 3] w",
    ),
    "transposed-same": (
        "ConvTranspose <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)",
        "1, 2, 5, 4",
        "float[2, 3, 3, 3] w",
    ),
    "transposed-same-lower": (
        "ConvTranspose <auto_pad = \"SAME_LOWER\", strides = [2, 2]> (x, w)",
        "1, 2, 5, 4",
        "float[2, 3, 3, 3] w",
    ),
    "transposed-shape": (
        "ConvTranspose <output_shape = [10, 9], strides = [2, 2]> (x, w)",
        "1, 2, 5, 4",
        "float[2, 3, 3, 3] w",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_gram_tells_the_power_of_the_output(name: str) -> None:
    proto = graph(*CASES[name])
    loaded, feeds = Model.load(proto), feeds_for(proto)
    layer, gram = only(loaded, feeds)
    matrix = layer.read()
    assert gram.error(matrix) == pytest.approx(output_power(loaded, feeds), rel=1e-4)
    assert matrix.shape[-2] == layer.depth == gram.matrix.shape[-1]
    assert matrix.shape[-1] == layer.outputs
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(layer.from_matrix(matrix), tensor.numpy())


@pytest.mark.parametrize("name", CASES)
def test_one_number_of_the_weight_is_the_same_number_of_the_matrix(name: str) -> None:
    """The power is quadratic: this one would see transposed kernels."""
    proto = graph(*CASES[name])
    loaded, feeds = Model.load(proto), feeds_for(proto, 1)
    layer, gram = only(loaded, feeds)
    rng = np.random.default_rng(1)
    value, edit = loaded.graph.initializers["w"], Edit(loaded)
    for _ in range(4):
        sparse = np.zeros(layer.shape, "f4")
        sparse.reshape(-1)[rng.integers(sparse.size, size=3)] = rng.normal(size=3)
        edit.set_tensor(value, sparse)
        expected = output_power(loaded, feeds)
        assert gram.error(layer.to_matrix(sparse)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_sums_and_counts() -> None:
    proto = graph(*CASES["matmul"])
    loaded, feeds = Model.load(proto), feeds_for(proto)
    _, gram = only(loaded, feeds)
    rows = np.concatenate([feed["x"].reshape(-1, 8) for feed in feeds]).astype("f8")
    assert gram.count == len(rows)
    np.testing.assert_allclose(gram.matrix, rows.T @ rows, rtol=1e-5)
    np.testing.assert_allclose(gram.mean, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(gram.magnitude, np.abs(rows).sum(axis=0), rtol=1e-6)
    np.testing.assert_allclose(gram.centred, len(rows) * np.cov(rows.T, bias=True), atol=1e-3)


RECURRENT = """
    g (float[5, 2, 4] x) => (float y) <float[2, 12, 4] w, float[2, 12, 3] r> {
      y = LSTM <direction = "bidirectional", hidden_size = 3> (x, w, r)
    }"""


def test_inputs_of_an_lstm() -> None:
    proto = model(RECURRENT)
    loaded, feeds = Model.load(proto), feeds_for(proto)
    layer, gram = only(loaded, feeds)
    rows = np.concatenate([feed["x"].reshape(-1, 4) for feed in feeds])
    np.testing.assert_allclose(gram.matrix, rows.T @ rows, rtol=1e-4)
    assert layer.read().shape == (4, 24)


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from([n for n in CASES if CASES[n][1].startswith("2, ")]),
    limit=st.integers(1, 30),
)
def test_the_result_does_not_depend_on_batches(name: str, limit: int) -> None:
    operation, shape, weights = CASES[name]
    proto = graph(operation, f"N{shape[1:]}", weights)
    size = [int(part) for part in shape.split(", ")]
    if len(size) > 2 and "stack-with-ones" in name:
        return
    x = np.random.default_rng(0).normal(size=(4, *size[1:])).astype("f4")
    loaded = Model.load(proto)
    one = only(loaded, [{"x": x}], limit)[1]
    many = only(loaded, [{"x": x[i : i + 1]} for i in range(4)], limit)[1]
    assert one.count == many.count
    np.testing.assert_allclose(one.matrix, many.matrix, rtol=1e-4, atol=1e-4)


def test_thinned_rows_are_rows() -> None:
    proto = graph(*CASES["conv"])
    loaded, feeds = Model.load(proto), feeds_for(proto)
    full, thin = only(loaded, feeds)[1], only(loaded, feeds, 20)[1]
    assert thin.count == 3 * 2 * 20 < full.count
    ratio = np.trace(thin.matrix) / thin.count / (np.trace(full.matrix) / full.count)
    assert 0.7 < ratio < 1.4


TWO = """
    g (float[4, 8] x) => (float y, float z) <float[8, 8] a, float[8, 8] b, float[8, 8] c> {
      h = MatMul (x, a)
      y = MatMul (h, b)
      z = MatMul (h, c)
    }"""


def test_layers_that_read_the_same_share_a_gram_and_memory_is_bounded() -> None:
    proto = model(TWO)
    loaded, feeds = Model.load(proto), feeds_for(proto)
    layers = gram_readers(loaded)
    grams = {layer.weight.name: gram for layer, gram in collect_grams(loaded, layers, feeds)}
    assert list(grams) == ["a", "b", "c"]
    assert grams["b"] is grams["c"] is not grams["a"]
    small = 8 * 8 * 8
    again = dict(collect_grams(loaded, layers, iter(feeds), memory_limit=small))
    assert [layer.weight.name for layer in again] == ["a", "b", "c"]
    for layer, gram in again.items():
        np.testing.assert_allclose(gram.matrix, grams[layer.weight.name].matrix)
    assert not list(collect_grams(loaded, layers, feeds, memory_limit=small - 1))


def test_a_tensor_that_is_not_finite_is_named() -> None:
    proto = model(TWO)
    loaded, feeds = Model.load(proto), feeds_for(proto)
    feeds[1]["x"][0, 0] = np.inf
    with pytest.raises(SamplesError, match='"x"'):
        list(collect_grams(loaded, gram_readers(loaded), feeds))
    with pytest.raises(SamplesError, match="no sample"):
        list(collect_grams(loaded, gram_readers(loaded), []))


def test_numbers_whose_squares_are_too_large_for_single_precision() -> None:
    proto = graph(*CASES["gemm"])
    feeds = [{"x": feed["x"] * np.float32(1e25)} for feed in feeds_for(proto)]
    assert np.isfinite(only(Model.load(proto), feeds)[1].matrix).all()


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4, 8] x, float[8, 6] w) => (float y) { y = MatMul (x, w) }",
        "g (float[4, 8] x) => (float y) <float[8] w> { y = MatMul (x, w) }",
        "g (double[4, 8] x) => (double y) <float[8, 6] w> { a = Cast <to = 11> (w) y = MatMul (x, a) }",
        "g () => (float y) <float[4, 8] x, float[8, 6] w> { y = MatMul (x, w) }",
    ],
)
def test_what_is_no_layer(text: str) -> None:
    assert not gram_readers(Model.load(model(text)))


def test_a_changed_model_is_refitted_to_its_reference() -> None:
    """A column of the first weight goes; the second weight makes up for it as least squares would."""
    proto = model(TWO)
    reference, feeds = Model.load(proto), feeds_for(proto, 8)
    changed = Model.load(proto)
    value = changed.graph.initializers["a"]
    assert value.const_value is not None
    first = value.const_value.numpy().copy()
    first[:, 3] = first[:, 2] + 0.1
    Edit(changed).set_tensor(value, first)
    pairs = paired(changed, gram_readers(reference))
    assert len(pairs) == 3
    found = dict(collect_cross_grams(changed, reference, pairs, feeds))
    layer, gram = next((one, two) for one, two in found.items() if one.weight.name == "b")
    rows = np.concatenate([feed["x"] for feed in feeds]).astype("f8")
    tensor = reference.graph.initializers["a"].const_value
    assert tensor is not None
    old, new = rows @ tensor.numpy(), rows @ first
    expected = np.linalg.lstsq(new, old @ layer.read(), rcond=None)[0]
    got = refit(gram, layer.read(), ridge=1e-9)
    np.testing.assert_allclose(new @ got, new @ expected, atol=1e-2)
    assert gram.reference_total is not None
    np.testing.assert_allclose(gram.reference_total, old.sum(axis=0), rtol=1e-3, atol=1e-3)


def test_weights_that_two_layers_read_have_the_sum_of_both() -> None:
    text = TWO.replace("MatMul (h, b)", "MatMul (h, a)")
    proto = model(text)
    loaded, feeds = Model.load(proto), feeds_for(proto)
    grams = [(layer, g) for layer, g in collect_grams(loaded, gram_readers(loaded), feeds)]
    assert [layer.is_shared for layer, _ in grams] == [True, True, False]
    assert (grams[0][1] + grams[1][1]).count == 2 * grams[0][1].count


def test_a_layer_that_no_sample_reaches_is_left_out() -> None:
    loaded = Model.load(
        model("g (float[n, 4] x) => (float[n, 8] y) <float[4, 8] w> { y = MatMul (x, w) }")
    )
    nothing = [{"x": np.zeros((0, 4), "f4")}]
    assert list(collect_grams(loaded, gram_readers(loaded), nothing)) == []
    with pytest.raises(SamplesError, match="no sample"):
        list(collect_grams(loaded, gram_readers(loaded), []))
