"""Quantized models lose channels like others, and what their integers stand for decides which."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxcomp.ir import Model, ir
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.shrink_channels import ShrinkChannels
from onnxcomp_passes.prune.support.dequantized import real_numbers
from tests.helpers import text
from tests.helpers.check import assert_refuses
from tests.helpers.numbers import run, seeded_feeds

# In each, filters 0 and 2 of four are the ones that matter: as numbers, not as integers.
QUANTIZED = {
    "scales for filters": """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
        <int8[4, 1, 1, 1] w = {1, 90, 2, 80}, float[4] s = {9.0, 0.01, 9.0, 0.01}, float[1, 4, 1, 1] v> {
          u = DequantizeLinear <axis = 0> (w, s)
          a = Conv (x, u)
          y = Conv (a, v)
        }""",
    "zero points": """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
        <uint8[4, 1, 1, 1] w = {9, 101, 200, 99}, float s = {0.1}, uint8 z = {100}, float[1, 4, 1, 1] v> {
          u = DequantizeLinear (w, s, z)
          a = Conv (x, u)
          y = Conv (a, v)
        }""",
    "blocks": """g (float[1, 4] x) => (float[1, 1] y)
        <int8[4, 4] w = {1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2, 1},
         float[2, 4] s = {9.0, 0.1, 4.0, 0.1, 9.0, 0.1, 4.0, 0.1}, float[4, 1] v> {
          u = DequantizeLinear <axis = 0, block_size = 2> (w, s)
          a = MatMul (x, u)
          y = MatMul (a, v)
        }""",
    "transposed afterwards": """g (float[1, 2] x) => (float[1, 1] y)
        <int8[4, 2] w = {3, 3, 90, 90, 4, 4, 80, 80}, float[4] s = {9.0, 0.01, 9.0, 0.01}, float[4, 1] v> {
          u = DequantizeLinear <axis = 0> (w, s)
          t = Transpose <perm = [1, 0]> (u)
          a = MatMul (x, t)
          y = MatMul (a, v)
        }""",
    "integer operators": """g (float[1, 2] x) => (float[1, 1] y)
        <uint8[2, 4] w = {9, 101, 200, 99, 9, 101, 200, 99}, uint8 z = {100}, float[4, 1] v> {
          q, s, zx = DynamicQuantizeLinear (x)
          i = MatMulInteger (q, w, zx, z)
          f = Cast <to = 1> (i)
          a = Mul (f, s)
          y = MatMul (a, v)
        }""",
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_numbers_decide(name: str) -> None:
    source = Model.load(text.model(QUANTIZED[name]))
    before = source.graph.initializers["w"].const_value
    result = Pipeline((PruneChannels(ratio=0.5, criterion="l2"),)).run(source)
    after = result.model.graph.initializers["w"].const_value
    assert before is not None
    assert after is not None
    axis = 1 if name in {"blocks", "integer operators"} else 0
    kept = before.numpy().take([0, 2], axis)
    np.testing.assert_array_equal(after.numpy().astype(int), kept.astype(int))
    proto = result.model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    run(proto, seeded_feeds(proto), "onnxruntime")


@pytest.mark.parametrize("name", [name for name in QUANTIZED if name != "integer operators"])
def test_what_integers_stand_for(name: str) -> None:
    proto = text.model(QUANTIZED[name])
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("u", 1, None))
    (expected,) = run(proto, seeded_feeds(proto), "onnxruntime")
    model = Model.load(text.model(QUANTIZED[name]))
    found = real_numbers(model.graph.initializers["w"])
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_numbers_of_four_bits() -> None:
    """They are stored two to a byte, and an odd number of them is left."""
    proto = text.model(QUANTIZED["zero points"].replace("uint8 z = {100}", "uint8 z = {8}"))
    numbers = {"w": np.array([9, 3, 15, 7]).reshape(4, 1, 1, 1), "z": np.array(8)}
    for index, tensor in enumerate(proto.graph.initializer):
        if tensor.name in numbers:
            packed = numbers[tensor.name].astype(ml_dtypes.uint4)
            proto.graph.initializer[index].CopyFrom(
                onnx.numpy_helper.from_array(packed, tensor.name)
            )
    result = Pipeline((PruneChannels(ratio=0.25, criterion="l1"),)).run(Model.load(proto))
    after = result.model.graph.initializers["w"].const_value
    assert after is not None
    assert after.numpy().astype(int).reshape(-1).tolist() in ([3, 15, 7], [9, 3, 15])
    assert after.dtype == ir.DataType.UINT4
    pruned = result.model.to_proto()
    run(pruned, seeded_feeds(pruned), "onnxruntime")


def test_indices_are_no_weights() -> None:
    model = Model.load(
        text.model(
            "g (float[1, 4] x) => (float[1, 2] y) <int64[2] w = {1, 2}> { y = Gather <axis = 1> (x, w) }"
        )
    )
    assert real_numbers(model.graph.initializers["w"]) is None


def test_a_mask_is_not_shrunk_where_a_scale_is_measured_as_the_model_runs() -> None:
    """A channel that nobody reads may still be what the scale of all others comes from."""
    assert_refuses(
        ShrinkChannels(),
        """g (float[1, 2] x) => (float[1, 2] y)
        <float[2, 3] w = {1, 2, 90, 3, 4, 90}, uint8[3, 2] v = {3, 4, 5, 6, 0, 0}> {
          a = MatMul (x, w)
          q, s, z = DynamicQuantizeLinear (a)
          i = MatMulInteger (q, v, z)
          f = Cast <to = 1> (i)
          y = Mul (f, s)
        }""",
        code="SHR101",
    )
