"""The table of the CPU provider: every row is run, and must become what the row says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from onnxcomp.cpuinfo import Cpu
from onnxcomp.errors import RecipeError
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import optimized_model
from onnxcomp.targets import features, load_target
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

CPU = load_target("cpu")

# An operator between Conv nodes, which the provider runs in int8 anyway. Shapes are [1, 8, 8, 8].
BETWEEN = {
    "Conv": "b = Conv <kernel_shape = [1, 1]> (a, w, c)",
    "Add": "b = Add (a, a2)",
    "Mul": "b = Mul (a, a2)",
    "Concat": "b = Concat <axis = 1> (a, a2)",
    "AveragePool": "b = AveragePool <kernel_shape = [2, 2]> (a)",
    "GlobalAveragePool": "b = GlobalAveragePool (a)",
    "LeakyRelu": "b = LeakyRelu <alpha = 0.1> (a)",
    "Softmax": "b = Softmax <axis = -1> (a)",
    "Sigmoid": "b = Sigmoid (a)",
    "MaxPool": "b = MaxPool <kernel_shape = [2, 2]> (a)",
    "Resize": 'b = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
    'nearest_mode = "floor"> (a, , twice)',
    "Transpose": "b = Transpose <perm = [0, 1, 3, 2]> (a)",
    "Slice": "b = Slice (a, zero, four, two)",
    "DepthToSpace": "b = DepthToSpace <blocksize = 2> (a)",
    "Tile": "b = Tile (a, repeats)",
    "Expand": "b = Expand (a, shape)",
    "Gather": "b = Gather <axis = 2> (a, four)",
    "Reshape": "b = Reshape (a, reshaped)",
    "Squeeze": "b1 = Unsqueeze (a, zero) b = Squeeze (b1, zero)",
    "Unsqueeze": "b1 = Unsqueeze (a, zero) b = Squeeze (b1, zero)",
    "Split": "p, q = Split <axis = 1, num_outputs = 2> (a) b = Concat <axis = 1> (q, p)",
    "Where": "b = Where (mask, a, a2)",
    "ReduceMax": "b = ReduceMax (a, two)",
    "ReduceMin": "b = ReduceMin (a, two)",
}
CHANNELS = {"Concat": 16, "DepthToSpace": 2}
OTHERS = {
    "Gemm": (
        "g (float[4, 16] x) => (float[4, 8] y) <float[16, 8] w, float[8] c> { y = Gemm (x, w, c) }"
    ),
    "ArgMax": (
        "g (float[4, 16] x) => (int64[4, 1] y) <float[16, 8] w, float[8] c>"
        "{ a = Gemm (x, w, c) y = ArgMax <axis = 1> (a) }"
    ),
    "MatMul": "g (float[4, 16] x) => (float[4, 8] y) <float[16, 8] w> { y = MatMul (x, w) }",
    "Flatten": (
        "g (float[4, 4, 4] x) => (float[4, 8] y) <float[16, 8] w, float[8] c, float[8, 8] v>"
        "{ a = Flatten (x) b = Gemm (a, w, c) y = Gemm (b, v, c) }"
    ),
}


def between(op_type: str) -> onnx.ModelProto:
    channels = CHANNELS.get(op_type, 8)
    second = "a2 = Conv <kernel_shape = [1, 1]> (x, w, c)" if "a2" in BETWEEN[op_type] else ""
    return model(f"""
        g (float[1, 8, 8, 8] x) => (float[N, 8, H, W] y)
        <float[8, 8, 3, 3] w0, float[8, 8, 1, 1] w, float[8] c, float[8, {channels}, 1, 1] w1,
         float[4] twice = {{1, 1, 2, 2}}, int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] two = {{2}},
         int64[4] repeats = {{1, 1, 2, 1}}, int64[4] shape = {{2, 8, 8, 8}},
         int64[4] reshaped = {{1, 8, 4, 16}}, bool[8] mask = {{1, 0, 1, 1, 0, 0, 1, 0}}> {{
          a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, c)
          {second}
          {BETWEEN[op_type]}
          y = Conv <kernel_shape = [1, 1]> (b, w1, c)
        }}""")


def quantized(proto: onnx.ModelProto) -> onnx.GraphProto:
    rng = np.random.default_rng(0)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    samples = [{"x": rng.normal(size=shape).astype("f4")} for _ in range(4)]
    step = QuantizeStatic(placement="all", prepare=False, observer="min-max")
    result = Pipeline((step,)).run(proto, samples=samples, threads=1)
    strays = [str(d) for d in result.diagnostics if d.code == "QNT106"]
    assert not strays
    return optimized_model(result.model).graph


ROWS = [kind for family in CPU.family for kind in family.types]


@pytest.mark.parametrize("op_type", ROWS)
def test_the_provider_runs_the_row_in_int8(op_type: str) -> None:
    graph = quantized(model(OTHERS[op_type]) if op_type in OTHERS else between(op_type))
    kinds = [node.op_type for node in graph.node]
    # Whatever the operator became, no Q or DQ is left but the one at the input and at the output.
    assert kinds.count("QuantizeLinear") <= 1, kinds
    assert kinds.count("DequantizeLinear") <= 1, kinds
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Add", "Mul"} & set(kinds), kinds


def test_every_row_says_how_it_is_treated_once() -> None:
    assert len(ROWS) == len(set(ROWS))
    assert not set(ROWS) & {kind for row in CPU.float for kind in row.types}


def test_families_and_reasons() -> None:
    conv: Any = CPU.family_of("Conv")
    assert (conv.role, conv.weight.axis, conv.bias) == ("kernel", 0, 2)
    assert CPU.family_of("Erf") is None
    assert CPU.family_of(None) is None
    assert "no int8 kernel" in CPU.why_float("Erf")
    assert "not in the table" in CPU.why_float("Brandnew")


@pytest.mark.parametrize("name", ["gpuu", "../cpu", "table", ""])
def test_an_unknown_target_is_a_clear_error(name: str) -> None:
    with pytest.raises(RecipeError, match="there are: coreml, cpu"):
        load_target(name)


@pytest.mark.parametrize(
    ("arch", "flags", "expected"),
    [
        ("x86_64", {"avx2", "avx512f"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512_vnni"}, False),
        ("aarch64", {"neon"}, False),
    ],
)
def test_processors_that_saturate(
    monkeypatch: pytest.MonkeyPatch, arch: str, flags: set[str], expected: bool
) -> None:
    monkeypatch.setattr(features, "cpu", lambda: Cpu(arch, "", frozenset(flags)))
    assert features.saturates() is expected
