"""Twins: which float layer a quantized one comes from, and how its channels were scaled in between."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.ir import Model
from onnxcomp.quant.rounded import quantized_layers
from onnxcomp.quant.twins import matrices, twins
from tests.helpers.text import model

FLOAT = """
    g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y)
    <float[16, 4, 3, 3] w, float[16] b, float[16, 1, 3, 3] d, float[6, 16, 1, 1] p> {
      [first] a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      a1 = Relu (a)
      [middle] e = Conv <group = 16, pads = [1, 1, 1, 1]> (a1, d)
      e1 = Relu (e)
      [last] y = Conv (e1, p)
    }"""


def rounded(proto: onnx.ModelProto, scaled: dict[str, np.ndarray], *, rename: bool) -> Model:
    """Puts each weight, scaled, behind a DequantizeLinear."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    for tensor in list(made.graph.initializer):
        if tensor.name not in scaled:
            continue
        array = numpy_helper.to_array(tensor) * scaled[tensor.name]
        scale = (np.abs(array).max(axis=(1, 2, 3)) / 127).astype("f4")
        numbers = np.rint(array / scale.reshape(-1, 1, 1, 1)).astype("i1")
        tensor.CopyFrom(numpy_helper.from_array(numbers, tensor.name))
        made.graph.initializer.append(numpy_helper.from_array(scale, f"{tensor.name}_s"))
        inputs = [tensor.name, f"{tensor.name}_s"]
        made.graph.node.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [f"{tensor.name}_d"], axis=0)
        )
    for node in nodes:
        node.input[:] = [f"{name}_d" if name in scaled else name for name in node.input]
        if rename:
            node.name = f"other_{node.name}"
            inner = {"a": "q1", "a1": "q2", "e": "q3", "e1": "q4"}
            node.input[:] = [inner.get(name, name) for name in node.input]
            node.output[:] = [inner.get(name, name) for name in node.output]
        made.graph.node.append(node)
    return Model.load(made)


def factors(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """What equalization does: channels divided here are multiplied there."""
    rng = np.random.default_rng(seed)
    one, two = np.exp(rng.normal(scale=1.5, size=16)), np.exp(rng.normal(scale=1.5, size=16))
    column = (-1, 1, 1, 1)
    scaled = {
        "w": one.reshape(column),
        "d": (two / one).reshape(column),
        "p": (1 / two).reshape(1, -1, 1, 1),
    }
    return scaled, one, two


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_scales_between_layers_are_read_off_the_weights(seed: int, rename: bool) -> None:
    proto = model(FLOAT)
    scaled, one, two = factors(seed)
    quantized = rounded(proto, scaled, rename=rename)
    layers = quantized_layers(quantized.graph)
    found = twins(layers, quantized, Model.load(proto))
    first, middle, last = (found[layer] for layer in layers)
    assert all(twin.is_exact for twin in (first, middle, last))
    np.testing.assert_allclose(first.scale, one, rtol=0.01)
    np.testing.assert_allclose(middle.scale, two, rtol=0.02)
    np.testing.assert_allclose(last.scale, 1.0, rtol=0.03)
    assert [twin.value for twin in (first, middle, last)] == ["a", "e", "y"]
    for layer, twin in found.items():
        exact = matrices(twin.own, layer.grid.values())
        step = matrices(twin.own, layer.grid.steps())
        assert (np.abs(twin.weight(exact) - exact) < 1.7 * step).all()


def test_plain_rounding_is_scale_one_exactly() -> None:
    proto = model(FLOAT)
    quantized = rounded(proto, dict.fromkeys("wdp", np.ones(1)), rename=False)
    layers = quantized_layers(quantized.graph)
    found = twins(layers, quantized, Model.load(proto))
    assert all((found[layer].scale == 1.0).all() for layer in layers)


def test_a_weight_of_another_training_is_not_exact() -> None:
    proto = model(FLOAT)
    quantized = rounded(proto, dict.fromkeys("wdp", np.ones(1)), rename=False)
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    for tensor in other.graph.initializer:
        if tensor.name == "w":
            new = np.random.default_rng(8).normal(size=(16, 4, 3, 3)).astype("f4")
            tensor.CopyFrom(numpy_helper.from_array(new, "w"))
    layers = quantized_layers(quantized.graph)
    found = twins(layers, quantized, Model.load(other))
    assert not found[layers[0]].is_exact
    assert np.isnan(found[layers[0]].scale).all()
    assert found[layers[1]].is_exact


def test_a_weight_of_another_shape_is_no_twin() -> None:
    proto = model(FLOAT)
    quantized = rounded(proto, dict.fromkeys("wdp", np.ones(1)), rename=False)
    wider = FLOAT.replace("[16, 4, 3, 3]", "[16, 4, 5, 5]")
    other = model(wider.replace("[1, 1, 1, 1]> (x, w", "[2, 2, 2, 2]> (x, w"))
    layers = quantized_layers(quantized.graph)
    found = twins(layers, quantized, Model.load(other))
    assert layers[0] not in found
    assert layers[2] in found
