"""Biases and scales of quantized layers: which may move, and along which axis."""

from __future__ import annotations

import numpy as np
import pytest

from onnxcomp.ir import Edit, Model
from onnxcomp.quant.rounded import (
    BiasWriter,
    QuantizedLayer,
    can_rescale,
    quantized_layers,
    rescale,
)
from tests.helpers.text import model


def layer_of(text: str) -> tuple[Model, QuantizedLayer]:
    opened = Model.load(model(text))
    (layer,) = quantized_layers(opened.graph)
    return opened, layer


SQUARE = """
    g (float[8, 8] x) => (y) <int8[8, 8] w, float[8] s, float[{bias}] b> {{
      d = DequantizeLinear <axis = {axis}> (w, s)
      y = Gemm <transB = {turned}> (x, d, b)
    }}"""


@pytest.mark.parametrize(("axis", "turned"), [(0, 1), (1, 0), (0, 0), (1, 1)])
def test_scales_of_a_square_weight_are_those_of_outputs_only_along_their_axis(
    axis: int, turned: int
) -> None:
    _, layer = layer_of(SQUARE.format(axis=axis, turned=turned, bias="8"))
    assert can_rescale(layer) == (axis == 1 - turned)


@pytest.mark.parametrize(
    ("bias", "moves"), [("8", True), ("1", True), ("1, 8", True), ("8, 1", False)]
)
def test_a_number_for_each_row_is_no_bias_of_a_channel(bias: str, moves: bool) -> None:
    opened, layer = layer_of(SQUARE.format(axis=1, turned=0, bias=bias))
    writer = BiasWriter(Edit(opened))
    assert (writer.move(layer, np.ones(8)) is not None) == moves
    assert bool(writer.refused) != moves


@pytest.mark.parametrize(
    ("weight", "bias", "both"), [(6, 6, True), (1, 6, True), (1, 1, True), (6, 1, False)]
)
def test_scales_of_a_weight_and_its_bias_go_together(weight: int, bias: int, both: bool) -> None:
    opened, layer = layer_of(f"""
        g (float[1, 4, 8, 8] x) => (y)
        <int8[6, 4, 3, 3] w, float[{weight}] s, int32[6] b, float[{bias}] t> {{
          d = DequantizeLinear <axis = 0> (w, s)
          c = DequantizeLinear <axis = 0> (b, t)
          y = Conv (x, d, c)
        }}""")
    assert can_rescale(layer) == both
    if both:
        before = layer.grid.scale.copy()
        rescale(Edit(opened), layer, np.full(6, 2.0))
        np.testing.assert_allclose(layer.grid.scale, 2 * before)
