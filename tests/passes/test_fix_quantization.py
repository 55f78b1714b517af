"""fix-quantization: what the linter finds is mended, and values stay what they were."""

from __future__ import annotations

from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.quantize.fix_quantization import FixQuantization
from tests.helpers.text import model

TWICE = """
    g (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y)
    <int8[8, 8, 3, 3] w, float s = {0.02}, uint8 z = {128}, float t = {0.015}, uint8 zero = {0},
     int8 wz = {0}> {
      xq = QuantizeLinear (x, s, z)
      xd = DequantizeLinear (xq, s, z)
      wd = DequantizeLinear (w, s, wz)
      a = Conv <pads = [1, 1, 1, 1]> (xd, wd)
      aq = QuantizeLinear (a, s, z)
      ad = DequantizeLinear (aq, s, z)
      b = Relu (ad)
      bq = QuantizeLinear (b, t, zero)
      y = DequantizeLinear (bq, t, zero)
    }"""


def test_a_relu_between_two_quantizations_is_one_of_them() -> None:
    result = Pipeline((FixQuantization(measure=False),)).run(model(TWICE))
    kinds = [node.op_type for node in result.model.nodes()]
    assert kinds.count("QuantizeLinear") == 2
    relu = next(node for node in result.model.nodes() if node.op_type == "Relu")
    maker = relu.inputs[0].producer() if relu.inputs[0] is not None else None
    assert maker is not None
    assert maker.op_type == "Conv"
