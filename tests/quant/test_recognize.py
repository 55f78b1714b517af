"""Which models count as quantized, in which form, and by whom."""

from __future__ import annotations

from onnxcomp.ir import Model
from onnxcomp.quant.recognize import is_quantized
from tests.helpers.text import model

WEIGHTS = """
    g (float[2, 8] x) => (float[2, 4] y) <int8[8, 4] w, float s = {0.1}> {
      d = DequantizeLinear (w, s)
      y = MatMul (x, d)
    }"""
ACTIVATIONS = """
    g (float[2, 8] x, bool c) => (float[2, 8] y) <float s = {0.1}> {
      y = If (c) <then_branch = t () => (float[2, 8] a) {
                    q = QuantizeLinear (x, s)
                    a = DequantizeLinear (q, s)
                  },
                  else_branch = e () => (float[2, 8] b) { b = Relu (x) }>
    }"""


def test_float_is_not_quantized() -> None:
    found = is_quantized(Model.load(model("g (float[2] x) => (float[2] y) { y = Relu (x) }")))
    assert not found
    assert not found.activations
    assert str(found) == ""


def test_stored_weights_leave_room_for_more() -> None:
    found = is_quantized(Model.load(model(WEIGHTS)))
    assert found.forms == {"weights": 1}
    assert not found.activations


def test_bodies_count_and_tools_are_named() -> None:
    proto = model(ACTIVATIONS)
    proto.producer_name = "onnx.quantize"
    found = is_quantized(Model.load(proto))
    assert found.forms == {"QDQ": 2}
    assert found.activations
    assert found.tool == "onnxruntime"
    assert str(found) == "2 of QDQ (by onnxruntime)"


def test_operators_of_other_domains_are_not_taken_for_quantized() -> None:
    proto = model("g (float[2] x) => (float[2] y) { y = my.QLinearThing (x) }")
    proto.opset_import.add(domain="my", version=1)
    assert not is_quantized(Model.load(proto))
