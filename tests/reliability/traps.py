"""Valid models in which careless tools fall: each must come through with the same numbers and interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Callable

TRAPS: dict[str, onnx.ModelProto] = {}


def _trap(name: str, text: str, change: Callable[[onnx.ModelProto], object] | None = None) -> None:
    proto = model(text)
    if change:
        change(proto)
    TRAPS[name] = proto


def _override(proto: onnx.ModelProto) -> None:
    """Makes every weight an input with a default."""
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        )


WEIGHTED = (
    "g (float[2] x) => (float[2] y) <float[2] w> { n = Neg (w) z = Add (x, n) y = Identity (z) }"
)
_trap("overridable weights", WEIGHTED, _override)
_trap(
    "weights that are inputs before IR 4",
    f'<ir_version: 3, opset_import: ["" : 9]> {WEIGHTED}',
    _override,
)
_trap(
    "a weight as output",
    "g (float[2] x) => (float[2] y, float[2] w) <float[2] w> { n = Neg (w) y = Add (x, n) }",
)
_trap(
    "only a weight as output",
    "g (float[2] x) => (float[2] w) <float[2] w> { n = Neg (w) y = Add (x, n) }",
)
_trap("an input as output", "g (float[2] x) => (float[2] x, float[2] y) { y = Identity (x) }")
_trap(
    "an input as output that is declared otherwise",
    "g (float[N, 2] x) => (float[M, K] x, float[N, 2] y) { y = Identity (x) }",
)
_trap(
    "one value as two outputs",
    "g (float[2] x) => (float[2] y, float[2] z) { a = Relu (x) y = Identity (a) z = Identity (a) }",
)
_trap(
    "an output that is read",
    "g (float[2] x) => (float[2] y, float[2] z) { y = Relu (x) a = Identity (y) z = Neg (a) }",
)
_trap(
    "all outputs constant",
    "g (float[2] x) => (float[2] y, float[2] z) <float[2] w> { y = Neg (w) z = Neg (w) }",
)
_trap(
    "unused inputs",
    "g (float[2] x, float[2] unused) => (float[2] y) { a = Identity (x) y = Relu (a) }",
)
_trap(
    "unsorted nodes", "g (float[2] x) => (float[2] y) { y = Relu (b) b = Identity (a) a = Neg (x) }"
)
_trap(
    "two nodes of one name",
    "g (float[2] x) => (float[2] y) { [same] a = Neg (x) [same] b = Identity (a) [same] y = Relu (b) }",
)
_trap(
    "names that collide",
    "g (float[2] x) => (float[2] y) <float[2] w, float[2] w_1, float[2] a_folded> { a = Neg (w) a_1 = Neg (a) a_2 = Add (a_1, w_1) b = Add (a_2, a_folded) y = Add (x, b) }",
)
_trap(
    "strange names",
    "g (float[2] x) => (float[2] y) { a = Identity (x) y = Relu (a) }",
    lambda m: setattr(m.graph.node[0], "name", "a b/\u00e9%s\n"),
)
_trap(
    "no elements",
    "g (float[N, 0] x) => (float[N, 3] y) <float[0, 3] w> { a = MatMul (x, w) b = Identity (a) y = Relu (b) }",
)
_trap(
    "a constant without elements",
    "g (float[1] x) => (float[0] y) <float[0] e> { a = Mul (x, e) b = Add (a, e) y = Relu (b) }",
)
_trap(
    "reductions of nothing",
    "g (float[2] x) => (float[2] y) <float[0] e> { s = ReduceSum <keepdims = 0> (e) y = Add (x, s) }",
)
_trap("a scalar", "g (float x) => (float y) <float w = {2}> { a = Neg (w) y = Mul (x, a) }")
_trap(
    "an output of another rank than declared",
    "g (float[2, 3] x) => (y) { a = Identity (x) y = Relu (a) }".replace("(y)", "(float[6] y)"),
    lambda m: None,
)
_trap(
    "a symbol for two sizes",
    "g (float[N, 2] x, float[N, 2] z) => (float[M, 2] y) { a = Concat <axis = 0> (x, z) y = Identity (a) }",
)
_trap(
    "missing optional inputs",
    "g (float[3, 2, 4] x) => (float[3, 1, 2, 5] y) <float[1, 20, 4] w, float[1, 20, 5] r, float[1, 2, 5] h> { n = Neg (h) y = LSTM <hidden_size = 5> (x, w, r, , , n) }",
)
_trap(
    "missing optional outputs",
    "g (float[3, 2, 4] x) => (float[1, 2, 5] h) <float[1, 20, 4] w, float[1, 20, 5] r> { , h = LSTM <hidden_size = 5> (x, w, r) }",
)
_trap(
    "clip with one bound",
    "g (float[4] x) => (float[4] y) <float high = {0.5}> { y = Clip (x, , high) }",
)
_trap(
    "own Relu",
    '<ir_version: 10, opset_import: ["" : 21, "own" : 1]> g (float[4] x) => (float[4] y) { a = Relu (x) b = own.Relu (a) y = own.Identity (b) } <domain: "own", opset_import: ["" : 21]> Relu (a) => (b) { b = Neg (a) } <domain: "own", opset_import: ["" : 21]> Identity (a) => (b) { b = Exp (a) }',
)
_trap(
    "functions in functions",
    '<ir_version: 10, opset_import: ["" : 21, "f" : 1]> g (float[4] x) => (float[4] y) { y = f.outer <k = 2.0> (x) } <domain: "f", opset_import: ["" : 21, "f" : 1]> outer <k> (a) => (b) { c = f.inner (a) d = Constant <value_float : float = @k> () e = Identity (c) b = Mul (e, d) } <domain: "f", opset_import: ["" : 21]> inner (a) => (b) { w = Constant <value_float = -1.0> () n = Neg (w) c = Add (a, n) b = Relu (c) }',
)
_trap(
    "a branch that reads outside",
    "g (bool c, float[2] x) => (float[2] y) <float[2] w> { n = Neg (w) i = Identity (x) y = If (c) <then_branch = t () => (float[2] p) { p = Add (i, n) }, else_branch = e () => (float[2] q) { j = Identity (i) q = Mul (j, w) }> }",
)
_trap(
    "a branch that hides a name",
    "g (bool c, float[2] x) => (float[2] y) <float[2] w> { y = If (c) <then_branch = t () => (float[2] p) { a = Neg (x) p = Add (a, w) }, else_branch = e () => (float[2] q) { a = Exp (x) q = Mul (a, a) }> }",
)
_trap(
    "a branch that is always taken",
    "g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> { y = If (c) <then_branch = t () => (float[2] p) { p = Neg (x) }, else_branch = e () => (float[2] q) { q = Exp (x) }> z = Identity (y) }",
)
_trap(
    "a loop",
    "g (float[2] x) => (float[2] y, float[3, 2] all) <int64 n = {3}, bool go = {1}, float[2] w> { y, all = Loop (n, go, x) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t, float[2] u) { d = Identity (c) v = Neg (w) k = Identity (s) t = Add (k, v) u = Identity (t) }> }",
)
_trap(
    "a scan",
    "g (float[3, 2] x, float[2] s) => (float[2] e, float[3, 2] y) <float[2] w> { e, y = Scan <num_scan_inputs = 1, body = b (float[2] a, float[2] i) => (float[2] o, float[2] r) { n = Neg (w) j = Identity (i) m = Add (a, j) o = Add (m, n) r = Identity (o) }> (s, x) }",
)
_trap(
    "sequences",
    "g (float[2] x) => (float[4] y, int64 n) <float[2] w, int64 one = {1}> { m = Neg (w) i = Identity (x) s = SequenceConstruct (i, m, i) e = SequenceErase (s, one) y = ConcatFromSequence <axis = 0> (e) n = SequenceLength (e) }",
)
_trap(
    "optionals",
    "g (float[2] x) => (float[2] y, bool has) { i = Identity (x) o = Optional (i) y = OptionalGetElement (o) has = OptionalHasElement (o) }",
)
_trap(
    "strings",
    'g (string[2] x) => (bool[2] y, string[2] z) <string[2] w = {"a", "b"}> { v = Identity (w) y = Equal (x, v) z = Identity (v) }',
)
_trap(
    "bfloat16",
    "g (float[2] x) => (float[2] y) <bfloat16[2] w> { n = Identity (w) c = Cast <to = 1> (n) y = Add (x, c) }",
)
_trap(
    "random numbers",
    "g (float[2] x) => (float[8] y, float[8] z) { y = RandomUniform <shape = [8], seed = 1.0> () z = RandomUniform <shape = [8], seed = 1.0> () }",
)
_trap(
    "division of integers",
    "g (int64[4] x) => (int64[4] y, int64[4] m) <int64[4] a = {7, -7, 7, -7}, int64[4] b = {2, 2, -2, -2}> { q = Div (a, b) y = Add (x, q) r = Mod (a, b) m = Add (x, r) }",
)
_trap(
    "overflow that reordering hides",
    "g (float[2] x) => (float[2] y) <float s = {1e30}, float t = {1e-30}> { a = Mul (x, s) b = Mul (a, s) c = Mul (b, t) y = Mul (c, t) }",
)
_trap(
    "zero times infinity",
    "g (float[3] x) => (float[3] y, float[3] z) <float o = {0}> { y = Mul (x, o) d = Sub (x, x) z = Add (d, o) }",
)
_trap(
    "negative zero",
    "g (float[3] x) => (float[3] y, float[3] z) <float[3] p = {0, 0, 0}, float[3] n = {-0.0, -0.0, -0.0}> { y = Add (x, p) z = Add (x, n) }",
)
_trap(
    "pad before a pool",
    "g (float[1, 1, 4, 4] x) => (float[1, 1, 5, 5] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> { a = Pad (x, p) y = MaxPool <kernel_shape = [2, 2]> (a) }",
)
_trap(
    "pad counted by an average",
    "g (float[1, 1, 4, 4] x) => (float[1, 1, 5, 5] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> { a = Pad (x, p) y = AveragePool <kernel_shape = [2, 2], count_include_pad = 0> (a) }",
)
_trap(
    "shared weights",
    "g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y, float[1, 2, 4, 4] z) <float[2, 2, 1, 1] w, float[2] s, float[2] b, float[2] m, float[2] v = {1, 2}> { c = Conv (x, w) y = BatchNormalization (c, s, b, m, v) d = Neg (x) z = Conv (d, w) }",
)
_trap(
    "normalisation that trains",
    "g (float[2, 3] x) => (float[2, 3] y, float[3] m2, float[3] v2) <float[3] s, float[3] b, float[3] m, float[3] v = {1, 2, 3}> { y, m2, v2 = BatchNormalization <training_mode = 1> (x, s, b, m, v) }",
)
_trap("dropout with a mask", "g (float[4] x) => (float[4] y, bool[4] k) { y, k = Dropout (x) }")
_trap(
    "quantized already",
    "g (float[2, 4] x) => (float[2, 3] y) <float s = {0.1}, uint8 z = {3}, int8[4, 3] w, float t = {0.2}, int8 n = {0}> { q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) k = DequantizeLinear (w, t, n) y = MatMul (d, k) }",
)
_trap(
    "axes that count from the end",
    "g (float[2, 3, 4] x) => (float[2, 3, 4] y) <int64[1] a = {-1}> { u = Unsqueeze (x, a) s = Squeeze (u, a) y = Softmax <axis = -2> (s) }",
)
_trap(
    "equal but for an attribute",
    "g (float[4] x) => (float[4] y, float[4] z) { y = LeakyRelu <alpha = 0.1> (x) z = LeakyRelu <alpha = 0.2> (x) }",
)
_trap(
    "weights of equal bytes",
    "g (float[2] x, int32[2] i) => (float[2] y, int32[2] z) <float[2] a = {0, 0}, int32[2] b = {0, 0}> { c = Exp (a) y = Add (x, c) d = Neg (b) z = Add (i, d) }",
)

for _opset in (7, 8, 9, 10, 11, 12, 13, 15, 18, 20, 22, 24, 25, 26):
    _trap(
        f"opset {_opset}",
        f'<ir_version: {min(4 + _opset // 3, 10)}, opset_import: ["" : {_opset}]> '
        "g (float[1, 2, 4, 4] x) => (float[1, 2, 2, 2] y) <float[2, 2, 1, 1] w, float[2] s, float[2] b, float[2] m, float[2] v = {1, 2}> {"
        " i = Identity (x) c = Conv (i, w) n = BatchNormalization (c, s, b, m, v) r = Relu (n) y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r) }",
    )


def _packed(kind: int) -> onnx.ModelProto:
    """A weight in a type that NumPy has not."""
    proto = model(
        "g (float[4] x) => (float[4] y) { c = Cast <to = 1> (w) n = Identity (c) y = Add (x, n) }"
    )
    array = np.array([1, 2, 3, 1], helper.tensor_dtype_to_np_dtype(kind))
    proto.graph.initializer.append(numpy_helper.from_array(array, "w"))
    return proto


for _kind in (
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E5M2,
    TensorProto.INT4,
    TensorProto.UINT4,
    TensorProto.FLOAT16,
):
    TRAPS[f"weights of {TensorProto.DataType.Name(_kind)}"] = _packed(_kind)


def _bits() -> onnx.ModelProto:
    """Weights whose very bits matter: NaN with contents, negative zero, denormals, infinities."""
    proto = model(
        "g (float[6] x) => (float[6] y, float[6] same) { n = Identity (w) same = Identity (n) y = Add (x, n) }"
    )
    bits = np.array(
        [0x7FC12345, 0x80000000, 0x00000001, 0xFF800000, 0xFFC00001, 0x80000001], np.uint32
    )
    proto.graph.initializer.append(numpy_helper.from_array(bits.view(np.float32), "w"))
    return proto


TRAPS["bits of special numbers"] = _bits()


def _decorated() -> onnx.ModelProto:
    """Everything that a model can say beside what it computes."""
    proto = model(
        "g (float[N, 2] x) => (float[N, 2] y) <float[2] w> { [a] i = Identity (x) [b] j = Add (i, w) [c] y = Relu (j) }"
    )
    proto.producer_name, proto.producer_version, proto.domain = "maker", "7", "org.example"
    proto.model_version, proto.doc_string = 42, "about the model"
    proto.metadata_props.add(key="licence", value="MIT")
    proto.graph.doc_string = "about the graph"
    proto.graph.metadata_props.add(key="graph", value="yes")
    proto.graph.node[2].doc_string = "about the node"
    proto.graph.node[2].metadata_props.add(key="node", value="yes")
    proto.graph.input[0].doc_string = "about the input"
    proto.graph.output[0].metadata_props.add(key="output", value="yes")
    proto.graph.initializer[0].doc_string = "about the weight"
    annotation = proto.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    training = proto.training_info.add()
    training.algorithm.name = "step"
    proto.opset_import.add(domain="org.unused", version=3)
    return proto


TRAPS["everything decorated"] = _decorated()
