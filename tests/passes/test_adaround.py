"""adaround: integers that make the layer's output right rather than each number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.adaround import Adaround
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.pipeline import Result

Feeds = dict[str, np.ndarray]
# Rounded to few steps, so that rounding matters more than what the activations lose.
COARSE = """
    g (float[8, 24] x) => (float[8, 10] y) <float[24, 10] w, float[10] b> {
      m = MatMul (x, w)
      y = Add (m, b)
    }"""
CONVS = """
    g (float[1, 4, 8, 8] x) => (float[1, 6, 6, 6] y)
    <float[16, 4, 3, 3] w, float[16] b, float[16, 1, 3, 3] d, float[16] c, float[6, 16, 1, 1] p, float[6] e> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      a1 = Relu (a)
      f = Conv <group = 16, strides = [1, 1]> (a1, d, c)
      f1 = Relu (f)
      y = Conv (f1, p, e)
    }"""
STATIC = QuantizeStatic(placement="all", prepare=False)


def samples(shape: tuple[int, ...], count: int = 32) -> list[Feeds]:
    """Inputs whose features depend on each other, as real ones do."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(shape[1], shape[1])) * np.exp(rng.normal(size=(shape[1], 1)))
    made = []
    for _ in range(count):
        array = np.moveaxis(rng.normal(0.3, size=shape), 1, -1) @ mix
        made.append({"x": np.moveaxis(array, -1, 1).astype("f4")})
    return made


def rounded(text: str, bits: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A float model with one weight w, and the same with that weight in a few steps for each column."""
    exact = model(text)
    declared = text.replace("float[24, 10] w", "int8[24, 10] q, float[10] s")
    behind = "w = DequantizeLinear <axis = 1> (q, s)\n m = MatMul"
    quantized = model(declared.replace("m = MatMul", behind))
    weight = tensors(exact)["w"]
    scale = (np.abs(weight).max(axis=0) / (2 ** (bits - 1) - 1)).astype("f4")
    filled = {"q": np.rint(weight / scale).astype("i1"), "s": scale}
    for tensor in quantized.graph.initializer:
        if tensor.name in filled:
            tensor.CopyFrom(numpy_helper.from_array(filled[tensor.name], tensor.name))
    return exact, quantized


def run(quantized: object, exact: object, feeds: list[Feeds], **options: object) -> Result:
    step = Adaround.model_validate(options)
    return Pipeline((step,)).run(quantized, samples=feeds, reference=exact)


def sqnr(first: onnx.ModelProto, second: Model | onnx.ModelProto, feeds: list[Feeds]) -> float:
    with Session.open(first) as one, Session.open(second) as two:
        return compare(one, two, feeds).worst("sqnr_db") or 0.0


def tensors(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def test_a_coarse_weight_gets_much_better_and_stays_on_its_grid() -> None:
    exact, quantized = rounded(COARSE, 4)
    feeds = samples((8, 24))
    result = run(quantized, exact, feeds)
    unseen = samples((8, 24), 64)[32:]
    assert sqnr(exact, result.model, unseen) > sqnr(exact, quantized, unseen) + 4
    before, after = tensors(quantized), tensors(result.model.to_proto())
    assert set(before) == set(after)
    moved = after["q"].astype(int) - before["q"].astype(int)
    assert np.abs(moved).max() == 1
    assert np.array_equal(before["s"], after["s"])
    assert after["q"].dtype == np.int8


def test_numbers_keep_the_symmetric_range() -> None:
    exact, quantized = rounded(COARSE, 8)
    for tensor in quantized.graph.initializer:
        if tensor.name == "q":
            numbers = numpy_helper.to_array(tensor).copy()
            assert np.abs(numbers).max() == 127
    result = run(quantized, exact, samples((8, 24)), steps=3)
    assert np.abs(tensors(result.model.to_proto())["q"].astype(int)).max() <= 127


def test_weights_of_seven_bits_stay_so() -> None:
    proto = model(CONVS)
    feeds = samples((1, 4, 8, 8))
    step = QuantizeStatic(placement="all", prepare=False, reduce_range=True)
    plain = Pipeline((step,)).run(proto, samples=feeds)
    result = run(plain.model, proto, feeds, steps=5)
    found = [
        t for t in tensors(result.model.to_proto()).values() if t.dtype == np.int8 and t.ndim == 4
    ]
    assert len(found) == 3
    assert all(np.abs(array.astype(int)).max() <= 64 for array in found)


def test_a_net_of_int8_kernels_comes_nearer_to_float_and_still_fuses() -> None:
    proto = model(CONVS)
    feeds = samples((1, 4, 8, 8))
    plain = Pipeline((STATIC,)).run(proto, samples=feeds)
    result = run(plain.model, proto, feeds)
    assert result.outcomes[0].stats["layers rounded anew"] >= 1
    assert sqnr(proto, result.model, feeds[3::4]) > sqnr(proto, plain.model, feeds[3::4])
    kinds = [node.op_type for node in optimized_model(result.model).graph.node]
    assert kinds.count("QLinearConv") == 3


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_blocks_of_a_matmul_whose_input_stays_float(kind: str) -> None:
    limit = 7 if kind == "int4" else 3
    exact = model("g (float[8, 32] x) => (float[8, 10] y) <float[32, 10] w> { y = MatMul (x, w) }")
    weight = tensors(exact)["w"]
    scale = np.abs(weight.reshape(2, 16, 10)).max(axis=1) / limit
    numbers = np.rint(weight / np.repeat(scale, 16, axis=0)).astype(int)
    scales = ", ".join(map(str, scale.reshape(-1)))
    quantized = model(
        f"""g (float[8, 32] x) => (float[8, 10] y)
        <int8[32, 10] q, float[2, 10] s = {{{scales}}}> {{
          w = DequantizeLinear <axis = 0, block_size = 16> (q, s)
          y = MatMul (x, w)
        }}"""
    )
    code = onnx.TensorProto.INT4 if kind == "int4" else onnx.TensorProto.INT8
    made = onnx.helper.make_tensor("q", code, (32, 10), numbers.reshape(-1))
    next(t for t in quantized.graph.initializer if t.name == "q").CopyFrom(made)
    feeds = samples((8, 32))
    result = run(quantized, exact, feeds)
    unseen = samples((8, 32), 64)[32:]
    assert sqnr(exact, result.model, unseen) > sqnr(exact, quantized, unseen) + 2
    code_after = next(
        t for t in result.model.to_proto().graph.initializer if t.name == "q"
    ).data_type
    assert code_after == code


def test_a_weight_that_two_layers_read_is_left_alone() -> None:
    exact = model(
        """g (float[8, 12] x) => (float[8, 12] z) <float[12, 12] w>
        { y = MatMul (x, w) r = Relu (y) z = MatMul (r, w) }"""
    )
    numbers = np.rint(tensors(exact)["w"] / 0.5).astype(int)
    quantized = model(
        f"""g (float[8, 12] x) => (float[8, 12] z)
        <int8[12, 12] q = {{{", ".join(map(str, numbers.reshape(-1)))}}}, float s = {{0.5}}> {{
          w = DequantizeLinear (q, s)
          y = MatMul (x, w)
          r = Relu (y)
          z = MatMul (r, w)
        }}"""
    )
    result = run(quantized, exact, samples((8, 12)))
    assert not result.changed
    assert [d.code for d in result.diagnostics].count("ADR101") == 2


def test_what_does_not_help_on_other_samples_is_taken_back() -> None:
    exact, quantized = rounded(COARSE, 6)
    feeds = samples((8, 24))
    rng = np.random.default_rng(9)
    for index in range(3, len(feeds), 4):
        feeds[index] = {"x": rng.normal(size=(8, 24)).astype("f4") * 3}
    # Only some directions are ever seen, so that the others may go anywhere.
    for index, feed in enumerate(feeds):
        if index % 4 != 3:
            feed["x"][:, 4:] = feed["x"][:, :1]
    result = run(quantized, exact, feeds)
    assert not result.changed
    assert "RCV102" in {d.code for d in result.diagnostics}
