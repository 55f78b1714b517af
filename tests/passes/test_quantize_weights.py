"""quantize-weights: few bits in the file, the same function up to rounding, fused where it says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from pydantic import ValidationError

from onnxcomp.compare import compare
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.quantize_weights import QuantizeWeights
from tests.helpers.check import assert_refuses, assert_rolls_back, assert_unchanged
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.pipeline import Result

MATMUL = "g (float[m, 64] x) => (float[m, 96] y) <float[64, 96] w> { y = MatMul (x, w) }"
GEMM = """
    g (float[m, 64] x) => (float[m, 96] y) <float[96, 64] w, float[96] b> {
      y = Gemm <transB = 1> (x, w, b)
    }"""
CONV = """
    g (float[1, 16, 9, 9] x) => (float[1, 32, 9, 9] y) <float[32, 16, 3, 3] w> {
      y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)
    }"""
TABLE = "g (int64[b, t] i) => (float[b, t, 64] y) <float[80, 64] w> { y = Gather (w, i) }"
TIED = """
    g (int64[t] i) => (float[t, 80] y) <float[80, 64] w> {
      e = Gather (w, i)
      v = Transpose <perm = [1, 0]> (w)
      y = MatMul (e, v)
    }"""
GPTQ = ("MatMul", "Gemm", "Gather", "ConvTranspose", "LSTM")
# The kernel rounds activations to 8 bits.
KERNEL = 0.03


def quantized(
    source: str | onnx.ModelProto, samples: Sequence[Any] | None = None, **options: Any
) -> Result:
    proto = model(source) if isinstance(source, str) else source
    return Pipeline((QuantizeWeights(**{"smallest": 512, **options}),)).run(proto, samples=samples)


def operators(result: Result) -> list[str]:
    return [node.op_type for node in result.model.nodes()]


def provider_operators(result: Result) -> list[str]:
    found = optimized_model(result.model.to_proto())
    return [node.op_type for node in found.graph.node]


def codes(result: Result) -> set[str]:
    return {item.code for item in result.diagnostics}


def feeds(proto: onnx.ModelProto, seed: int = 0, size: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = {}
    for info in proto.graph.input:
        dims = [dim.dim_value or size for dim in info.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        if kind == np.int64:
            made[info.name] = rng.integers(0, 80, dims)
        else:
            made[info.name] = rng.normal(size=dims).astype(kind)
    return made


def relative_error(source: str | onnx.ModelProto, result: Result, **options: Any) -> float:
    """Largest difference of the first output, as a share of its largest value."""
    proto = model(source) if isinstance(source, str) else source
    given_feeds = feeds(proto, **options)
    outputs = []
    for each in (proto, result.model.to_proto()):
        onnx.checker.check_model(each, full_check=True)
        with Session.open(each) as session:
            outputs.append(next(iter(session.run(given_feeds).values())))
    assert outputs[0].shape == outputs[1].shape
    assert outputs[0].dtype == outputs[1].dtype
    return float(np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max())


@pytest.mark.parametrize(
    ("options", "kind", "bits", "limit"),
    [
        ({}, onnx.TensorProto.UINT4, 4, 0.15),
        ({"symmetric": True}, onnx.TensorProto.INT4, 4, 0.2),
        ({"bits": 8}, onnx.TensorProto.INT8, 8, KERNEL),
        ({"bits": 8, "block": 0}, onnx.TensorProto.INT8, 8, KERNEL),
        ({"bits": 2}, onnx.TensorProto.UINT2, 2, 0.8),
        ({"block": 16, "method": "hqq"}, onnx.TensorProto.UINT4, 4, 0.15),
        ({"block": 0, "method": "rtn"}, onnx.TensorProto.UINT4, 4, 0.25),
    ],
)
def test_a_matrix_becomes_one_kernel(
    options: dict[str, Any], kind: int, bits: int, limit: float
) -> None:
    result = quantized(MATMUL, **options)
    assert operators(result) == ["DequantizeLinear", "MatMul"]
    assert provider_operators(result) == ["MatMulNBits"]
    types = {tensor.data_type for tensor in result.model.to_proto().graph.initializer}
    assert types == {kind, onnx.TensorProto.FLOAT}
    assert result.model.nbytes < 64 * 96 * (bits / 8 + 0.3)
    assert 0.001 < relative_error(MATMUL, result) < limit


def test_a_transposed_gemm_turns_its_weight() -> None:
    result = quantized(GEMM)
    gemm = next(node for node in result.model.nodes() if node.op_type == "Gemm")
    assert "transB" not in gemm.attributes
    assert provider_operators(result) == ["MatMulNBits"]
    assert relative_error(GEMM, result) < 0.15


@pytest.mark.parametrize(
    "gemm",
    [
        "Gemm <alpha = 0.5> (x, w, b)",
        "Gemm <beta = 2.0> (x, w, b)",
        "Gemm <transA = 1> (z, w, b)",
        "Gemm (x, w, c)",
    ],
)
def test_what_has_no_kernel_is_unpacked(gemm: str) -> None:
    text = f"""
        g (float[5, 64] x) => (float[5, 96] y) <float[64, 96] w, float[96] b, float[1, 96] c> {{
          z = Transpose <perm = [1, 0]> (x)
          y = {gemm}
        }}"""
    result = quantized(text, stored_bits=4)
    assert "DequantizeLinear" not in operators(result)
    found = provider_operators(result)
    assert not {"Mul", "Sub", "Cast", "MatMulNBits"} & set(found), "computed when it is loaded"
    assert relative_error(text, result) < 0.15


@pytest.mark.parametrize("stored_bits", [8, 4, 3, 2])
def test_a_convolution_is_as_fast_as_before(stored_bits: int) -> None:
    result = quantized(CONV, stored_bits=stored_bits)
    found = provider_operators(result)
    assert [name for name in found if not name.startswith("Reorder")] == ["Conv"]
    assert result.model.nbytes < 32 * 144 * (stored_bits / 8 + 0.35)
    limits = {8: 0.01, 4: 0.15, 3: 0.3, 2: 0.6}
    assert relative_error(CONV, result) < limits[stored_bits]


def test_only_rows_that_are_picked_are_computed() -> None:
    for table_bits, limit in ((8, 0.01), (4, 0.1)):
        result = quantized(TABLE, table_bits=table_bits)
        assert operators(result)[:2] == ["Gather", "Gather"]
        assert "DequantizeLinear" not in operators(result)
        assert result.model.nbytes < 80 * 64 * (table_bits / 8 + 0.2)
        assert relative_error(TABLE, result) < limit


def test_an_embedding_that_is_the_last_layer_too() -> None:
    result = quantized(TIED)
    assert "Transpose" not in operators(result)
    assert provider_operators(result).count("MatMulNBits") == 1
    assert relative_error(TIED, result) < 0.15
    assert result.model.nbytes < 0.5 * 80 * 64 * 4


def test_rows_that_do_not_fill_the_last_block() -> None:
    text = MATMUL.replace("64", "70")
    result = quantized(text)
    assert provider_operators(result) == ["MatMulNBits"]
    assert relative_error(text, result) < 0.15


@pytest.mark.parametrize("columns", [17, 18, 20])
def test_two_bits_are_packed_only_where_the_provider_is_right(columns: int) -> None:
    text = MATMUL.replace("96", str(columns))
    result = quantized(text, bits=2, block=16)
    plain = quantized(text, bits=2, block=16, format="unpacked")
    assert ("WQT103" in codes(result)) == (columns % 4 != 0)
    feed = feeds(model(text))
    with Session.open(result.model) as first, Session.open(plain.model) as second:
        found, expected = first.run(feed)["y"], second.run(feed)["y"]
    assert np.abs(found - expected).max() < KERNEL * np.abs(expected).max()


def test_what_the_provider_leaves_as_two_nodes_is_unpacked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "onnxcomp_passes.quantize.weight_writing.optimized_model",
        lambda model, **_: model.to_proto(),
    )
    result = quantized(MATMUL, format="qdq")
    assert "WQT103" in codes(result)
    assert "DequantizeLinear" not in operators(result)
    assert relative_error(MATMUL, result) < 0.15
    # Blocks that do not fill the rows cannot be unpacked by a Reshape: the weight stays as it was.
    odd = MATMUL.replace("64", "70")
    assert operators(quantized(odd, format="qdq")) == ["MatMul"]


def test_each_reader_of_a_shared_weight_has_its_own_tensors() -> None:
    text = """
        g (float[m, 64] x, float[m, 64] z) => (float[m, 96] y, float[m, 96] u)
        <float[64, 96] w> { y = MatMul (x, w) u = MatMul (z, w) }"""
    result = quantized(text)
    assert provider_operators(result) == ["MatMulNBits", "MatMulNBits"]
    assert relative_error(text, result) < 0.15


def test_a_weight_that_many_share_is_stored_once() -> None:
    nodes = "\n".join(f"y{i} = MatMul (x, w)" for i in range(5))
    outputs = ", ".join(f"float[m, 96] y{i}" for i in range(5))
    text = f"g (float[m, 64] x) => ({outputs}) <float[64, 96] w> {{ {nodes} }}"
    result = quantized(text)
    assert "DequantizeLinear" not in operators(result)
    assert result.model.nbytes < 0.2 * 64 * 96 * 4


@pytest.mark.parametrize("other", ["Relu (w)", "MatMul (w, k)", "Add (w, w)"])
def test_a_weight_that_something_else_reads_stays(other: str) -> None:
    text = f"""
        g (float[m, 64] x) => (float[m, 96] y, u) <float[64, 96] w, float[96, 2] k> {{
          y = MatMul (x, w)
          u = {other}
        }}""".replace(", u)", ", float[p, q] u)")
    if "k)" in other:
        assert quantized(text).changed  # as a matrix on the left it is unpacked
        return
    assert_refuses(QuantizeWeights(smallest=512), text, code="WQT101", at="w")


def test_bodies_have_their_tensors_inside() -> None:
    text = """
        g (float[m, 64] x, bool c) => (float[m, 96] y) <float[64, 96] w> {
          y = If (c) <
            then_branch = t () => (float[m, 96] a) { a = MatMul (x, w) },
            else_branch = e () => (float[m, 96] b) { d = MatMul (x, w) b = Neg (d) }
          >
        }"""
    proto = model(text)
    result = quantized(proto)
    source = {"x": feeds(model(MATMUL))["x"]}
    for branch in (True, False):
        given_feeds = {**source, "c": np.array(branch)}
        with Session.open(proto) as first, Session.open(result.model.to_proto()) as second:
            expected, found = first.run(given_feeds)["y"], second.run(given_feeds)["y"]
        assert np.abs(expected - found).max() < 0.15 * np.abs(expected).max()
    bodies = [graph for graph in result.model.graphs() if graph is not result.model.graph]
    assert all(len(graph.initializers) == 3 for graph in bodies)


def test_half_precision_stays() -> None:
    text = MATMUL.replace("float[", "float16[")
    result = quantized(text)
    scales = [t for t in result.model.to_proto().graph.initializer if "scale" in t.name]
    assert {t.data_type for t in scales} == {onnx.TensorProto.FLOAT16}
    assert relative_error(text, result) < 0.15


def test_the_provider_s_own_operator_needs_no_opset() -> None:
    header = '<ir_version: 7, opset_import: ["" : 11]>'
    for source in (f"{header}\n{MATMUL}", f"{header}\n{GEMM}"):
        every: list[dict[str, Any]] = [{"bits": 4}, {"bits": 8}, {"bits": 4, "symmetric": True}]
        for options in every:
            result = quantized(source, format="matmulnbits", **options)
            assert result.model.opset == 11
            assert operators(result) == ["MatMulNBits"]
            with Session.open(model(source)) as first, Session.open(result.model) as second:
                feed = feeds(model(source))
                expected, found = first.run(feed)["y"], second.run(feed)["y"]
            assert np.abs(expected - found).max() < 0.15 * np.abs(expected).max()


def test_standard_and_own_operator_mean_the_same_numbers() -> None:
    standard = quantized(MATMUL, format="qdq", method="mse").model.to_proto()
    own = quantized(MATMUL, format="matmulnbits", method="mse").model.to_proto()
    feed = feeds(model(MATMUL))
    with Session.open(standard) as first, Session.open(own) as second:
        np.testing.assert_array_equal(first.run(feed)["y"], second.run(feed)["y"])


@pytest.mark.parametrize(
    ("opset", "node"),
    [
        (
            12,
            'u = Resize <coordinate_transformation_mode = "tf_half_pixel_for_nn", mode = "nearest">'
            " (z, roi, k)",
        ),
        (7, "u = BatchNormalization <spatial = 0> (z, a, a, a, a)"),
    ],
)
def test_where_the_opset_is_out_of_reach_there_are_eight_bits(opset: int, node: str) -> None:
    text = f"""
        <ir_version: 7, opset_import: ["" : {opset}]>
        g (float[m, 64] x, float[1, 2, 4, 4] z) => (float[m, 96] y, float[1, 2, h, w] u)
        <float[64, 96] w, float[2, 4, 4] a, float[4] k = {{1, 1, 2, 2}}, float[8] roi> {{
          y = MatMul (x, w)
          {node}
        }}"""
    result = quantized(model(text), bits=4)
    assert result.model.opset == opset
    assert "WQT102" in codes(result)
    assert "DequantizeLinear" not in operators(result)
    assert result.model.nbytes < 0.35 * 64 * 96 * 4


def test_a_weight_in_a_constant_node() -> None:
    proto = model(MATMUL)
    node = onnx.helper.make_node("Constant", [], ["w"], value=proto.graph.initializer[0])
    del proto.graph.initializer[:]
    proto.graph.node.insert(0, node)
    result = quantized(proto)
    assert operators(result) == ["DequantizeLinear", "MatMul"]
    assert relative_error(proto, result) < 0.15


def test_the_bias_gives_back_the_mean() -> None:
    text = """
        g (float[m, 64] x) => (float[m, 96] y) <float[64, 96] w, float[96] b> {
          p = MatMul (x, w)
          y = Add (b, p)
        }"""
    samples = [{"x": feed["x"] + 3.0} for feed in correlated()]
    result = quantized(text, samples, format="unpacked")
    assert result.outcomes[0].stats["biases corrected"] == 1
    held = [{"x": feed["x"] + 3.0} for feed in correlated(40)[20:]]
    means = []
    for each in (model(text), result.model.to_proto()):
        with Session.open(each) as session:
            means.append(np.mean([session.run(feed)["y"].mean(0) for feed in held], axis=0))
    shift = np.abs(means[0] - means[1]).max()
    assert shift < 0.02 * np.abs(means[0]).max()


def test_scales_of_awq_go_into_the_norm_in_front() -> None:
    text = """
        g (float[m, 64] x) => (float[m, 96] y)
        <float[64] s, float[64] t, float[64, 96] w> {
          n = LayerNormalization (x, s, t)
          y = MatMul (n, w)
        }"""
    proto = model(text)
    scale = np.ones(64, "f4")
    scale[:3] = 40.0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(scale, "s"))
    result = quantized(proto, correlated(), method="awq", format="unpacked")
    plain = quantized(proto, correlated(), method="mse", format="unpacked")
    assert result.outcomes[0].stats["activations scaled"] == 1
    assert operators(result).count("Mul") == 1, "none but that of the scales of the weight"
    sqnr = []
    for each in (result, plain):
        with Session.open(proto) as first, Session.open(each.model.to_proto()) as second:
            sqnr.append(compare(first, second, correlated(40)[20:]).worst("sqnr_db") or 0.0)
    assert sqnr[0] > sqnr[1] + 1


def test_many_rows_are_unpacked_and_few_are_not() -> None:
    few = quantized(MATMUL.replace("m,", "2,"))
    many = quantized(MATMUL.replace("m,", "128,"))
    assert provider_operators(few) == ["MatMulNBits"]
    assert provider_operators(many) == ["MatMul"]
    assert "WQT104" in codes(many)
    assert "WQT106" in codes(quantized(MATMUL))
    samples = [{"x": np.ones((128, 64), "f4")}]
    assert provider_operators(quantized(MATMUL, samples)) == ["MatMul"]
    assert provider_operators(quantized(MATMUL, samples, format="qdq")) == ["MatMulNBits"]
    assert provider_operators(quantized(MATMUL, samples, block=128, bits=8)) == ["MatMulNBits"]


def correlated(count: int = 16) -> list[dict[str, np.ndarray]]:
    """Inputs of which a few directions are large."""
    rng = np.random.default_rng(5)
    mix = rng.normal(size=(6, 64))
    noise = 0.05 * rng.normal(size=(count, 20, 64))
    return [{"x": (rng.normal(size=(20, 6)) @ mix + n).astype("f4")} for n in noise]


def test_samples_bring_it_nearer_to_float() -> None:
    samples = correlated()
    proto = model(MATMUL)
    sqnr = {}
    for method in ("rtn", "mse", "gptq"):
        result = quantized(proto, samples, method=method, format="unpacked")
        with Session.open(proto) as first, Session.open(result.model.to_proto()) as second:
            sqnr[method] = compare(first, second, correlated(40)[20:]).worst("sqnr_db") or 0.0
    assert sqnr["gptq"] > sqnr["mse"] + 3 > sqnr["rtn"] + 3


def test_weights_with_several_readers_are_fitted_to_all() -> None:
    text = """
        g (float[20, 64] x, float[20, 64] z) => (float[20, 96] y, float[20, 96] u)
        <float[64, 96] w> { y = MatMul (x, w) u = MatMul (z, w) }"""
    samples = [{**a, "z": b["x"]} for a, b in zip(correlated(), correlated(32)[16:], strict=True)]
    proto = model(text)
    sqnr = {}
    for method in ("mse", "gptq"):
        result = quantized(proto, samples, method=method, format="unpacked")
        with Session.open(proto) as first, Session.open(result.model.to_proto()) as second:
            sqnr[method] = compare(first, second, samples).worst("sqnr_db") or 0.0
    assert sqnr["gptq"] > sqnr["mse"] + 3


def test_a_tied_embedding_is_fitted_as_a_matrix() -> None:
    text = """
        g (int64[t] i) => (float[t, 80] y) <float[80, 64] w> {
          e = Gather (w, i)
          y = Gemm <transB = 1> (e, w)
        }"""
    rng = np.random.default_rng(1)
    samples = [{"i": rng.integers(0, 6, 30)} for _ in range(8)]
    proto = model(text)
    sqnr = {}
    for method in ("mse", "gptq"):
        result = quantized(proto, samples, method=method, format="qdq")
        with Session.open(proto) as first, Session.open(result.model.to_proto()) as second:
            sqnr[method] = compare(first, second, samples).worst("sqnr_db") or 0.0
    assert sqnr["gptq"] > sqnr["mse"] + 1


def test_gptq_that_does_not_help_is_not_kept() -> None:
    # One row in the first half of the samples, another world in the second.
    first, second = np.zeros((1, 64), "f4"), np.zeros((1, 64), "f4")
    first[0, :32], second[0, 32:] = 1.0, np.arange(1, 33)
    result = quantized(MATMUL, [{"x": first}, {"x": second}], method="gptq")
    assert "WQT105" in codes(result)


def test_bits_by_pattern() -> None:
    text = """
        g (float[m, 64] x) => (float[m, 96] y, float[m, 96] u, float[m, 96] v)
        <float[64, 96] a, float[64, 96] b, float[64, 96] c> {
          y = MatMul (x, a) u = MatMul (x, b) v = MatMul (x, c)
        }"""
    result = quantized(text, bits_of={"b": 8, "v": 0})
    types = {t.name.split("_")[0]: t.data_type for t in result.model.to_proto().graph.initializer}
    kinds = onnx.TensorProto
    held = {t.name: t.data_type for t in result.model.to_proto().graph.initializer}
    assert held["a_quantized"] == kinds.UINT4
    assert held["b_quantized"] == kinds.INT8
    assert types["c"] == kinds.FLOAT
    assert {name for name in held if name.startswith("c")} == {"c"}


def test_skip_and_only() -> None:
    assert_unchanged(QuantizeWeights(smallest=512, skip=("w",)), MATMUL)
    assert_unchanged(QuantizeWeights(smallest=512, only=("other*",)), MATMUL)
    assert quantized(MATMUL, only=("y",)).changed
    assert_unchanged(QuantizeWeights(), MATMUL.replace("64", "8"))


def test_recurrent_weights_on_demand() -> None:
    text = """
        g (float[7, 1, 32] x) => (float[7, 1, 1, 24] y)
        <float[1, 96, 32] w, float[1, 96, 24] r> {
          y = LSTM <hidden_size = 24> (x, w, r)
        }"""
    assert_unchanged(QuantizeWeights(smallest=512), text)
    result = quantized(text, operators=("LSTM",))
    assert provider_operators(result) == ["LSTM"]
    assert relative_error(text, result) < 0.03


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_stays(bad: float) -> None:
    proto = model(MATMUL)
    array = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array[3, 4] = bad
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    assert_refuses(QuantizeWeights(smallest=512), proto, code="WQT101", at="w")


def test_a_weight_that_callers_may_replace_stays() -> None:
    proto = model(MATMUL)
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 96])
    proto.graph.input.append(info)
    assert_unchanged(QuantizeWeights(smallest=512), proto)


def test_a_weight_that_is_an_output_stays() -> None:
    proto = model(MATMUL)
    info = onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [64, 96])
    proto.graph.output.append(info)
    assert_refuses(QuantizeWeights(smallest=512), proto, code="WQT101", at="w")


def test_again_changes_nothing_and_all_can_be_taken_back() -> None:
    for text in (MATMUL, GEMM, CONV, TABLE, TIED):
        rewrite = QuantizeWeights(smallest=512)
        assert_rolls_back(rewrite, model(text))
        assert_unchanged(rewrite, quantized(text).model.to_proto())


def test_options_that_mean_nothing_are_refused() -> None:
    for options in (
        {"bits": 5},
        {"stored_bits": 1},
        {"table_bits": 2},
        {"block": 24},
        {"bits_of": {"a": 6}},
    ):
        with pytest.raises(ValidationError, match="must be"):
            QuantizeWeights(**options)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    depth=st.integers(16, 80),
    columns=st.integers(8, 40),
    bits=st.sampled_from([2, 3, 4, 8]),
    block=st.sampled_from([None, 0, 16, 64]),
    symmetric=st.booleans(),
    form=st.sampled_from(["auto", "qdq", "unpacked", "matmulnbits"]),
    transposed=st.booleans(),
)
def test_every_combination_computes_what_its_numbers_say(
    *,
    rows: int,
    depth: int,
    columns: int,
    bits: int,
    block: int | None,
    symmetric: bool,
    form: str,
    transposed: bool,
) -> None:
    shape = f"[{columns}, {depth}]" if transposed else f"[{depth}, {columns}]"
    node = "Gemm <transB = 1> (x, w)" if transposed else "MatMul (x, w)"
    text = f"""
        g (float[{rows}, {depth}] x) => (float[{rows}, {columns}] y)
        <float{shape} w> {{ y = {node} }}"""
    result = quantized(text, bits=bits, block=block, symmetric=symmetric, format=form, smallest=64)
    feed = feeds(model(text))
    with Session.open(result.model) as fused, _plain(result) as plain:
        found, expected = fused.run(feed)["y"], plain.run(feed)["y"]
    assert np.abs(found - expected).max() <= KERNEL * np.abs(expected).max() + 1e-6
    limits = {2: 2.0, 3: 1.0, 4: 0.5, 8: 0.06}
    assert relative_error(text, result) < limits[bits]


def _plain(result: Result) -> Session:
    return Session.open(result.model, optimization="disable")


def test_a_single_row_of_a_table_is_a_vector() -> None:
    text = "g (int64 i) => (float[64] y) <float[80, 64] w> { y = Gather (w, i) }"
    result = quantized(text, table_bits=4)
    assert result.changed
    assert relative_error(text, result) < 0.15


def test_a_single_output_with_one_number_added() -> None:
    text = """
        g (float[4, 1024] x) => (float[4, 1] y) <float[1024, 1] w, float b> {
          m = MatMul (x, w)
          y = Add (m, b)
        }"""
    data = [feeds(model(text), seed) for seed in range(4)]
    result = quantized(text, data, method="gptq", format="unpacked")
    assert result.changed
    assert relative_error(text, result) < 0.3


def test_a_stack_of_matrices_behind_a_transpose_is_no_matrix() -> None:
    text = """
        g (float[1, 64] x) => (float[4, 1, 64] y) <float[64, 64, 4] w> {
          t = Transpose (w)
          y = MatMul (x, t)
        }"""
    result = quantized(text, format="qdq")
    assert not result.changed, "a Transpose is not among the operators"


@pytest.mark.parametrize("form", ["shared", "node"])
def test_awq_leaves_alone_what_it_would_have_to_copy(form: str) -> None:
    text = """
        g (float[m, 64] x, float[m, 64] z) => (float[m, 96] y, float[m, 64] u)
        <float[64, 64] w, float[64, 96] v> {
          a = MatMul (x, w)
          y = MatMul (a, v)
          u = MatMul (z, w)
        }"""
    proto = model(text)
    table = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    table[:, :3] *= 40.0
    made = numpy_helper.from_array(table, "w")
    proto.graph.initializer[0].CopyFrom(made)
    if form == "node":
        del proto.graph.initializer[0], proto.graph.node[2], proto.graph.output[1]
        node = onnx.helper.make_node("Constant", [], ["w"], value=made)
        proto.graph.node.insert(0, node)
        proto.graph.input.pop()
    data = [feeds(proto, seed) for seed in range(12)]
    result = quantized(proto, data, method="awq", format="qdq")
    assert relative_error(proto, result) < 0.3
    assert not result.outcomes[0].stats.get("activations scaled")


@pytest.mark.parametrize(
    "text",
    [
        "g (float[4, 64] x) => (float[4, 96] y) <float[64, 96] w> { y = Gemm <alpha = 0.5> (x, w) }",
        """g (float[4, 64] x, int64[3] i) => (float[4, 96] y, float[3, 96] z) <float[64, 96] w> {
          y = MatMul (x, w)
          z = Gather (w, i)
        }""",
        """g (float[1, 16, 6, 6] x) => (float[1, 24, 7, 7] y) <float[16, 24, 2, 2] w> {
          y = ConvTranspose (x, w)
        }""",
        """g (float[5, 2, 16] x) => (float[5, 1, 2, 24] y)
        <float[1, 96, 16] w, float[1, 96, 24] r> {
          y = LSTM <hidden_size = 24> (x, w, r)
        }""",
    ],
)
def test_gptq_leaves_alone_whose_outputs_lie_along_another_axis(text: str) -> None:
    data = [
        {**found, "i": np.arange(3)} if "i" in found else found
        for found in (feeds(model(text), seed) for seed in range(4))
    ]
    result = quantized(text, data, method="gptq", stored_bits=4, operators=GPTQ)
    assert result.changed
    with Session.open(model(text)) as one, Session.open(result.model) as two:
        assert (compare(one, two, data).worst("sqnr_db") or 0.0) > 12
