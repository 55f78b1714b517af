"""A float model for each operator that a table of a target may name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

# An operator between Conv nodes, which providers run in int8 anyway. `a` and `a2` are [1, 16, 8, 8].
_BETWEEN = {
    "Conv": "b = Conv <kernel_shape = [1, 1]> (a, w, c)",
    "ConvTranspose": "r = Relu (a) b = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (r, t, c1)",
    "Add": "b = Add (a, a2)",
    "Mul": "b = Mul (a, a2)",
    "Sub": "b = Sub (a, a2)",
    "Div": "b0 = Abs (a2) b1 = Add (b0, one) b = Div (a, b1)",
    "Max": "b = Max (a, a2)",
    "Min": "b = Min (a, a2)",
    "Pow": "b = Pow (a, second)",
    "Concat": "b = Concat <axis = 1> (a, a2)",
    "AveragePool": "b = AveragePool <kernel_shape = [2, 2]> (a)",
    "GlobalAveragePool": "b = GlobalAveragePool (a)",
    "MaxPool": "b = MaxPool <kernel_shape = [2, 2]> (a)",
    "Relu": "b0 = Neg (a) b = Relu (b0)",
    "Clip": "b0 = Neg (a) b = Clip (b0, low, one)",
    "LeakyRelu": "b = LeakyRelu <alpha = 0.1> (a)",
    "PRelu": "b = PRelu (a, slope)",
    "Elu": "b = Elu (a)",
    "Gelu": "b = Gelu (a)",
    "HardSwish": "b = HardSwish (a)",
    "HardSigmoid": "b = HardSigmoid (a)",
    "Tanh": "b = Tanh (a)",
    "Erf": "b = Erf (a)",
    "Exp": "b0 = Clip (a, low, one) b = Exp (b0)",
    "Sqrt": "b0 = Abs (a) b = Sqrt (b0)",
    "Log": "b0 = Abs (a) b1 = Add (b0, one) b = Log (b1)",
    "Abs": "b = Abs (a)",
    "Neg": "b = Neg (a)",
    "Softmax": "b = Softmax <axis = -1> (a)",
    "LogSoftmax": "b = LogSoftmax <axis = -1> (a)",
    "Sigmoid": "b = Sigmoid (a)",
    "Resize": 'b = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric", '
    'nearest_mode = "floor"> (a, , twice)',
    "ReduceMean": "b = ReduceMean (a, two)",
    "ReduceSum": "b = ReduceSum (a, two)",
    "ReduceProd": "b0 = Clip (a, low, one) b = ReduceProd (b0, two)",
    "ReduceMax": "b = ReduceMax (a, two)",
    "ReduceMin": "b = ReduceMin (a, two)",
    "Pad": "b = Pad (a, pads)",
    "Transpose": "b = Transpose <perm = [0, 1, 3, 2]> (a)",
    "Slice": "b = Slice (a, zero, four, two)",
    "Split": "p, q = Split <axis = 1, num_outputs = 2> (a) p1 = Conv (p, h, c1) q1 = Conv (q, h, c2) "
    "b = Add (p1, q1)",
    "DepthToSpace": "b = DepthToSpace <blocksize = 2> (a)",
    "SpaceToDepth": "b = SpaceToDepth <blocksize = 2> (a)",
    "Tile": "b = Tile (a, repeats)",
    "Expand": "b = Expand (a, shape)",
    "Gather": "b = Gather <axis = 2> (a, four)",
    "Reshape": "b = Reshape (a, reshaped)",
    "Squeeze": "b1 = Unsqueeze (a, zero) b = Squeeze (b1, zero)",
    "Unsqueeze": "b1 = Unsqueeze (a, zero) b = Squeeze (b1, zero)",
    "Where": "b = Where (mask, a, a2)",
    "BatchNormalization": "b0 = Relu (a) b = BatchNormalization (b0, slope1, c, c, positive)",
    "InstanceNormalization": "b = InstanceNormalization (a, slope1, c)",
    "LayerNormalization": "b = LayerNormalization <axis = -1> (a, width, width)",
}
_CHANNELS = {"Concat": 32, "DepthToSpace": 4, "SpaceToDepth": 64}
_ALONE = {
    "Gemm": "g (float[4, 32] x) => (float[4, 16] y) <float[32, 16] w, float[16] c> { y = Gemm (x, w, c) }",
    "MatMul": "g (float[4, 32] x) => (float[4, 16] y) <float[32, 16] w> { y = MatMul (x, w) }",
    "ArgMax": "g (float[4, 32] x) => (int64[4, 1] y) <float[32, 16] w, float[16] c>"
    "{ a = Gemm (x, w, c) y = ArgMax <axis = 1> (a) }",
    "ArgMin": "g (float[4, 32] x) => (int64[4, 1] y) <float[32, 16] w, float[16] c>"
    "{ a = Gemm (x, w, c) y = ArgMin <axis = 1> (a) }",
    "Flatten": "g (float[4, 8, 4] x) => (float[4, 16] y) <float[32, 16] w, float[16] c, float[16, 16] v>"
    "{ a = Flatten (x) b = Gemm (a, w, c) y = Gemm (b, v, c) }",
    "LSTM": "g (float[4, 1, 8] x) => (float[4, 1, 1, 8] y) <float[1, 32, 8] w, float[1, 32, 8] r>"
    "{ y = LSTM <hidden_size = 8> (x, w, r) }",
    "GRU": "g (float[4, 1, 8] x) => (float[4, 1, 1, 8] y) <float[1, 24, 8] w, float[1, 24, 8] r>"
    "{ y = GRU <hidden_size = 8> (x, w, r) }",
    "RNN": "g (float[4, 1, 8] x) => (float[4, 1, 1, 8] y) <float[1, 8, 8] w, float[1, 8, 8] r>"
    "{ y = RNN <hidden_size = 8> (x, w, r) }",
}
KNOWN = frozenset(_BETWEEN) | frozenset(_ALONE)


def one_operator(op_type: str) -> onnx.ModelProto:
    """Returns a float model around one operator."""
    if op_type in _ALONE:
        return model(_ALONE[op_type])
    body = _BETWEEN[op_type]
    second = "a2 = Conv <kernel_shape = [1, 1]> (x, w, c)" if "a2" in body else ""
    return model(f"""
        g (float[1, 16, 8, 8] x) => (float[N, 16, H, W] y)
        <float[16, 16, 3, 3] w0, float[16, 16, 1, 1] w, float[16] c,
         float[16, {_CHANNELS.get(op_type, 16)}, 1, 1] w1, float[16, 16, 2, 2] t,
         float[16, 8, 1, 1] h, float[16] c1, float[16] c2,
         float[16, 1, 1] slope, float[16] slope1, float[8] width,
         float[16] positive = {{{", ".join("1.5" for _ in range(16))}}},
         float one = {{1}}, float second = {{2}}, float low = {{-1}}, float[4] twice = {{1, 1, 2, 2}},
         int64[1] zero = {{0}}, int64[1] four = {{4}}, int64[1] two = {{2}},
         int64[8] pads = {{0, 0, 1, 1, 0, 0, 1, 1}}, int64[4] repeats = {{1, 1, 2, 1}},
         int64[4] shape = {{2, 16, 8, 8}}, int64[4] reshaped = {{1, 16, 4, 16}},
         bool[8] mask = {{1, 0, 1, 1, 0, 0, 1, 0}}> {{
          a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, c)
          {second}
          {body}
          y = Conv <kernel_shape = [1, 1]> (b, w1, c)
        }}""")


def samples(proto: onnx.ModelProto, count: int = 4) -> list[dict[str, np.ndarray]]:
    """Returns random feeds for a model with one input of fixed shape."""
    rng = np.random.default_rng(0)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]
