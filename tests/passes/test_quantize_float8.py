"""quantize-float8: Q/DQ of 8 bits with an exponent in front of weighted layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.float8 import E4M3FN, E5M2, FORMATS, Float8
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.quantize_float8 import QuantizeFloat8
from tests.helpers.check import assert_refuses, assert_rolls_back, assert_unchanged, run_pass
from tests.helpers.text import model

if TYPE_CHECKING:
    from pathlib import Path

HEAD = '<ir_version: 9, opset_import: ["": 19]>'
NET = f"""{HEAD}
    g (float[2, 3, 6, 6] x) => (float[2, 5] y, float[2, 4, 6, 6] r)
    <float[4, 3, 3, 3] w, float[4] b, float[4, 4, 1, 1] v, float[5, 144] u, float[5] c> {{
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      r = Relu (a)
      p = Conv (r, v)
      s = Add (p, r)
      f = Flatten (s)
      y = Gemm <transB = 1> (f, u, c)
    }}"""


def feeds(shape: tuple[int, ...], count: int = 4, seed: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]


def outputs(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    with Session.open(proto) as session:
        return session.run(feed)


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(want).sum() / np.square(want - got).sum()))


def test_weighted_layers_read_float8_and_nothing_else_changes() -> None:
    proto, samples = model(NET), feeds((2, 3, 6, 6))
    step = QuantizeFloat8()
    got, outcome = run_pass(step, proto, samples)
    onnx.checker.check_model(got, full_check=True)
    kinds = [node.op_type for node in got.graph.node]
    pair, weight = ["QuantizeLinear", "DequantizeLinear"], ["DequantizeLinear"]
    assert kinds == [
        *(*pair, *weight, "Conv", "Relu"),
        *(*pair, *weight, "Conv", "Add", "Flatten"),
        *(*pair, *weight, "Gemm"),
    ]
    assert outcome.stats["nodes in float8"] == 3
    assert_rolls_back(step, proto, samples)
    assert_unchanged(step, got, samples=samples)


def test_the_rules_of_tensorrt() -> None:
    """Zero points are 0, biases float, scales positive; residual and output stay float."""
    got, _ = run_pass(QuantizeFloat8(), model(NET), feeds((2, 3, 6, 6)))
    tensors = {tensor.name: tensor for tensor in got.graph.initializer}
    for node in got.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = tensors[node.input[2]]
            assert zero.data_type == onnx.TensorProto.FLOAT8E4M3FN
            assert not any(zero.raw_data)
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            assert (numpy_helper.to_array(tensors[node.input[1]]) > 0).all()
        if node.op_type in {"Conv", "Gemm"} and len(node.input) > 2:
            assert tensors[node.input[2]].data_type == onnx.TensorProto.FLOAT
    add = next(node for node in got.graph.node if node.op_type == "Add")
    makers = {name: node.op_type for node in got.graph.node for name in node.output}
    assert [makers[name] for name in add.input] == ["Conv", "Relu"]


@pytest.mark.parametrize("way", ["proto", "bytes", "path", "model"])
def test_the_runtime_keeps_a_relu_in_front_of_float8(way: str, tmp_path: Path) -> None:
    """onnxruntime takes a float8 zero point for the smallest uint8 and drops the Relu as redundant."""
    net = model(f"""{HEAD} g (float[1, 3, 6] x) => (float[1, 4, 6] y) <float[4, 3, 1] w> {{
        r = Relu (x)
        y = Conv (r, w)
    }}""")
    samples = feeds((1, 3, 6))
    got, _ = run_pass(QuantizeFloat8(), net, samples)
    path = tmp_path / "model.onnx"
    onnx.save(got, path)
    ways = {"proto": got, "bytes": got.SerializeToString(), "path": path, "model": Model.load(got)}
    with Session.open(ways[way]) as session:
        found = session.run(samples[0])["y"]
    assert decibels(outputs(net, samples[0])["y"], found) > 20


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2"])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("transposed", [0, 1])
def test_numbers_are_those_of_the_format(name: str, per_channel: bool, transposed: int) -> None:
    shape = "5, 8" if transposed else "8, 5"
    proto = model(f"""{HEAD} g (float[4, 8] x) => (float[4, 5] y) <float[{shape}] w> {{
        y = Gemm <transB = {transposed}> (x, w) }}""")
    samples = feeds((4, 8))
    step = QuantizeFloat8.model_validate({"format": name, "per_channel": per_channel})
    got, _ = run_pass(step, proto, samples)
    number = FORMATS[name]
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    columns = weight.T if transposed else weight
    reach = np.abs(columns).max(axis=0) if per_channel else np.abs(columns).max()
    scale = (reach / number.largest).astype("f4")
    rounded = (columns / scale).astype(number.array).astype("f4") * scale
    largest = max(float(np.abs(feed["x"]).max()) for feed in samples)
    step_size = np.float32(largest / number.largest)
    for feed in samples:
        x = np.clip(feed["x"] / step_size, -number.largest, number.largest)
        x = x.astype(number.array).astype("f4") * step_size
        np.testing.assert_allclose(outputs(got, feed)["y"], x @ rounded, rtol=2e-5, atol=2e-5)


def test_what_was_never_seen_becomes_the_largest_number() -> None:
    proto = model(f"""{HEAD} g (float[1, 2] x) => (float[1, 1] y) <float[2, 1] w = {{1, 0}}> {{
        y = MatMul (x, w) }}""")
    got, _ = run_pass(QuantizeFloat8(), proto, [{"x": np.array([[1, -2]], "f4")}])
    beyond = outputs(got, {"x": np.array([[1e6, 0]], "f4")})["y"]
    np.testing.assert_allclose(beyond, [[2]], rtol=1e-6)


def test_readers_share_the_rounding_and_nodes_share_a_weight() -> None:
    proto = model(f"""{HEAD} g (float[4, 8] x) => (float[4, 8] y, float[4, 8] z)
        <float[8, 8] w> {{ y = MatMul (x, w) z = MatMul (x, w) }}""")
    got, _ = run_pass(QuantizeFloat8(), proto, feeds((4, 8)))
    assert [node.op_type for node in got.graph.node].count("QuantizeLinear") == 1
    stored = [t for t in got.graph.initializer if list(t.dims) == [8, 8]]
    assert [t.data_type for t in stored] == [onnx.TensorProto.FLOAT8E4M3FN]


def test_products_of_activations_when_asked() -> None:
    proto = model(
        f"{HEAD} g (float[4, 8] x, float[8, 4] z) => (float[4, 4] y) {{ y = MatMul (x, z) }}"
    )
    samples = [{**feed, "z": feed["x"].T.copy()} for feed in feeds((4, 8))]
    assert_refuses(QuantizeFloat8(), proto, code="FPE103", samples=samples)
    got, _ = run_pass(QuantizeFloat8(products=True), proto, samples)
    assert [node.op_type for node in got.graph.node].count("QuantizeLinear") == 2
    want = samples[0]["x"] @ samples[0]["z"]
    assert decibels(want, outputs(got, samples[0])["y"]) > 20


def test_an_older_opset_is_raised_and_the_file_format_with_it() -> None:
    proto = model("""<ir_version: 7, opset_import: ["": 11]>
        g (float[4, 8] x) => (float[4, 5] y) <float[8, 5] w> { y = MatMul (x, w) }""")
    got, _ = run_pass(QuantizeFloat8(), proto, feeds((4, 8)))
    assert (got.opset_import[0].version, got.ir_version) == (19, 9)
    onnx.checker.check_model(got, full_check=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_stay(bad: float) -> None:
    proto = model(
        f"{HEAD} g (float[4, 8] x) => (float[4, 5] y) <float[8, 5] w> {{ y = MatMul (x, w) }}"
    )
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[0, 0] = bad
    proto.graph.initializer[0].raw_data = weight.tobytes()
    assert_refuses(QuantizeFloat8(), proto, code="FPE103", samples=feeds((4, 8)))


def test_rounded_activations_are_not_rounded_again() -> None:
    got, _ = run_pass(QuantizeFloat8(), model(NET), feeds((2, 3, 6, 6)))
    assert_refuses(QuantizeFloat8(), got, code="FPE101", samples=feeds((2, 3, 6, 6)))


def test_options_leave_nodes_out() -> None:
    samples = feeds((2, 3, 6, 6))
    result = Pipeline((QuantizeFloat8(only=("Gemm",)),)).run(model(NET), samples=samples)
    assert result.outcomes[0].stats["nodes in float8"] == 1
    assert_refuses(QuantizeFloat8(skip=("*",)), model(NET), code="FPE104", samples=samples)


def test_more_digits_are_nearer_than_more_range() -> None:
    proto, samples = model(NET), feeds((2, 3, 6, 6))
    want = outputs(proto, samples[0])["y"]
    fine, _ = run_pass(QuantizeFloat8(), proto, samples)
    wide, _ = run_pass(QuantizeFloat8(format="e5m2"), proto, samples)
    first = decibels(want, outputs(fine, samples[0])["y"])
    assert first > 25
    assert first > decibels(want, outputs(wide, samples[0])["y"])


@given(
    values=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9),
    number=st.sampled_from([E4M3FN, E5M2]),
)
def test_rounding_is_within_half_a_step(values: list[float], number: Float8) -> None:
    array = np.array(values, "f4")
    scale = number.scale(np.abs(array).max())
    back = number.quantize(array, scale).astype("f4") * scale
    digits, smallest = {"e4m3fn": (3, 2.0**-9), "e5m2": (2, 2.0**-16)}[number.name]
    bound = np.maximum(np.abs(array) * 2.0 ** -(digits + 1), smallest * scale / 2)
    assert np.isfinite(back).all()
    assert (np.abs(back - array) <= bound * 1.001).all()
