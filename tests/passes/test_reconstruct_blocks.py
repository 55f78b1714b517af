"""reconstruct-blocks: weights, their scales and ranges of activations refitted to what blocks gave in float."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model as Loaded
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.reconstruction import block_ends
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from onnxcomp_passes.quantize.reconstruct_blocks import ReconstructBlocks
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

    from onnxcomp.ir import Model
    from onnxcomp.pipeline import Result

Feeds = dict[str, np.ndarray]
RESIDUAL = """
    g (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y)
    <float[8, 8, 3, 3] w, float[8] b, float[8, 8, 3, 3] v, float[8] c,
     float[8, 8, 3, 3] w2, float[8] b2, float[8, 8, 3, 3] v2, float[8] c2> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      a1 = Relu (a)
      d = Conv <pads = [1, 1, 1, 1]> (a1, v, c)
      r = Add (d, x)
      e = Conv <pads = [1, 1, 1, 1]> (r, w2, b2)
      e1 = Relu (e)
      f = Conv <pads = [1, 1, 1, 1]> (e1, v2, c2)
      y = Add (f, r)
    }"""
STATIC = QuantizeStatic(placement="all", prepare=False, observer="min-max")


def samples(count: int = 32, *, outlier: float = 0.0) -> list[Feeds]:
    """Channels that depend on each other; one sample may have a number that makes all ranges too large."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(8, 8)) * np.exp(rng.normal(size=(8, 1)))
    made = [np.einsum("chw,cd->dhw", rng.normal(size=(8, 8, 8)), mix) for _ in range(count)]
    made[0][0, 0, 0] += outlier
    return [{"x": array[None].astype("f4")} for array in made]


def sqnr(first: onnx.ModelProto, second: Model, feeds: list[Feeds]) -> float:
    with Session.open(first) as one, Session.open(second) as two:
        return compare(one, two, feeds).worst("sqnr_db") or 0.0


def run(quantized: Model, exact: onnx.ModelProto, feeds: list[Feeds], **options: object) -> Result:
    step = ReconstructBlocks.model_validate(options)
    return Pipeline((step,)).run(quantized, samples=feeds, reference=exact)


def tensors(found: Model) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in found.to_proto().graph.initializer}


def test_blocks_end_where_one_value_goes_on() -> None:
    proto = model(RESIDUAL)
    quantized = Pipeline((STATIC,)).run(proto, samples=samples()).model
    names = {value for node in proto.graph.node for value in node.output}
    assert [node.outputs[0].name for node in block_ends(quantized.graph, names)] == ["r", "y"]
    assert block_ends(Loaded.load(proto).graph, names) == []


def test_ranges_shrink_to_what_matters_and_kernels_stay_int8() -> None:
    proto, feeds = model(RESIDUAL), samples()
    plain = Pipeline((STATIC,)).run(proto, samples=samples(outlier=60.0)).model
    result = run(plain, proto, feeds, weights=False)
    assert sqnr(proto, result.model, feeds) > sqnr(proto, plain, feeds) + 0.5
    before, after = tensors(plain), tensors(result.model)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert all("scale" in n or "int32" in n or "zero" in n for n in changed)
    kinds = [node.op_type for node in optimized_model(result.model).graph.node]
    assert kinds.count("QLinearConv") == 4
    assert kinds.count("QLinearAdd") == 2
    assert kinds.count("QuantizeLinear") == 1


def test_steps_of_a_bias_stay_the_product_of_the_scales_before_it() -> None:
    proto, feeds = model(RESIDUAL), samples()
    plain = Pipeline((STATIC,)).run(proto, samples=feeds).model
    result = run(plain, proto, feeds)
    found = tensors(result.model)
    graph = result.model.to_proto().graph
    made = {name: node for node in graph.node for name in node.output}
    for conv in (node for node in graph.node if node.op_type == "Conv"):
        x, w, b = (found[made[name].input[1]] for name in conv.input)
        np.testing.assert_allclose(b, x * w, rtol=1e-5)


def test_weights_and_their_scales_are_refitted_within_the_range() -> None:
    proto, feeds = model(RESIDUAL), samples()
    coarse = QuantizeStatic(placement="all", prepare=False, per_channel=False)
    plain = Pipeline((coarse,)).run(proto, samples=feeds).model
    result = run(plain, proto, feeds, activations=False)
    assert result.outcomes[0].stats["weights refitted"] >= 1
    assert sqnr(proto, result.model, feeds[3::4]) > sqnr(proto, plain, feeds[3::4])
    weights = [t for t in tensors(result.model).values() if t.dtype == np.int8 and t.ndim == 4]
    assert all(np.abs(array.astype(int)).max() <= 127 for array in weights)


def test_what_the_model_gives_where_nothing_is_quantized_stays() -> None:
    proto = model(RESIDUAL)
    result = run(Loaded.load(proto), proto, samples())
    assert not result.changed
    assert {d.code for d in result.diagnostics} == {"RCV104"}


def test_a_scale_that_an_operator_hands_on_is_left_alone() -> None:
    text = """
        g (float[1, 8, 8, 8] x) => (float[1, 8, 4, 4] y)
        <float[8, 8, 3, 3] w, float[8] b, float[8, 8, 3, 3] v, float[8] c> {
          a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
          a1 = Relu (a)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (a1)
          d = Conv <pads = [1, 1, 1, 1]> (p, v, c)
          y = Relu (d)
        }"""
    proto, feeds = model(text), samples()
    plain = Pipeline((STATIC,)).run(proto, samples=feeds).model
    result = run(plain, proto, feeds, weights=False)
    kinds = [node.op_type for node in optimized_model(result.model).graph.node]
    before = [node.op_type for node in optimized_model(plain).graph.node]
    assert kinds == before
