"""Nets that Hypothesis draws, quantized for targets that want Q/DQ in different places."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

ONE = ("Relu", "Sigmoid", "Exp", "MaxPool", "Transpose", "LeakyRelu", "Identity")
TWO = ("Add", "Mul", "Concat")


@st.composite
def nets(draw: DrawFn) -> onnx.ModelProto:
    """A net of layers that read any earlier value; all have four channels but what a Concat makes."""
    lines, weights = ["v0 = Relu (x)"], []
    channels = {"v0": 4}
    for index in range(1, draw(st.integers(2, 9))):
        name = f"v{index}"
        kind = draw(st.sampled_from(("Conv", "Conv", "Conv", *ONE, *TWO)))
        source = draw(st.sampled_from(sorted(channels)))
        width = channels[source]
        if kind == "Conv":
            weights.append(f"float[4, {width}, 1, 1] w{index}, float[4] b{index}")
            lines.append(f"{name} = Conv ({source}, w{index}, b{index})")
            width = 4
        elif kind in TWO:
            others = sorted(v for v, c in channels.items() if kind == "Concat" or c == width)
            other = draw(st.sampled_from(others))
            more = " <axis = 1>" if kind == "Concat" else ""
            lines.append(f"{name} = {kind}{more} ({source}, {other})")
            width += channels[other] if kind == "Concat" else 0
        elif kind == "Exp":
            lines.append(f"s{index} = Sigmoid ({source}) {name} = Exp (s{index})")
        elif kind == "MaxPool":
            lines.append(
                f"{name} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({source})"
            )
        elif kind == "Transpose":
            lines.append(f"{name} = Transpose <perm = [0, 1, 3, 2]> ({source})")
        else:
            lines.append(f"{name} = {kind} ({source})")
        channels[name] = width
    given_out = {f"v{len(channels) - 1}", draw(st.sampled_from(sorted(channels)))}
    outputs = ", ".join(f"float[1, {channels[name]}, 6, 6] {name}" for name in sorted(given_out))
    body = " ".join(lines)
    return model(f"g (float[1, 4, 6, 6] x) => ({outputs}) <{', '.join(weights)}> {{ {body} }}")


def check_tensorrt(graph: onnx.GraphProto) -> None:
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    kinds = {name: node.op_type for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = arrays[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
        if node.op_type == "DequantizeLinear":
            assert node.output[0] not in outputs
        if node.op_type == "Add" and "DequantizeLinear" in (kinds.get(n) for n in node.input):
            assert sorted(kinds[name] for name in node.input) == ["Conv", "DequantizeLinear"]
        if node.op_type == "Conv":
            assert {kinds[name] for name in node.input[:2]} == {"DequantizeLinear"}


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(net=nets())
def test_a_drawn_net_is_valid_and_near_float(target: str, net: onnx.ModelProto) -> None:
    rng = np.random.default_rng(3)
    feeds = [{"x": rng.normal(size=(1, 4, 6, 6)).astype("f4")} for _ in range(3)]
    step = QuantizeStatic(placement="all", prepare=False, observer="min-max")
    result = Pipeline((step,), target=target).run(net, samples=feeds, threads=1)
    made = result.model.to_proto()
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == [value.name for value in net.graph.output]
    with Session.open(net) as one, Session.open(result.model) as two:
        assert (compare(one, two, feeds).worst("sqnr_db") or 0.0) > 8
    if target == "tensorrt" and result.changed:
        check_tensorrt(made.graph)
