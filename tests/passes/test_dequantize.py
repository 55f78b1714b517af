"""dequantize: the same function in float, whatever form the integers had."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.recognize import is_quantized
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.dequantize import Dequantize
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.check import assert_rewrites, assert_rolls_back, assert_unchanged
from tests.helpers.drawn import draw_any
from tests.helpers.drawn.core import RefusedError
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Sequence

RNG = np.random.default_rng(11)
PAIR = """
    g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y)
    <float s = {0.05}, uint8 z = {ZERO}, float[6, 4, 1, 1] w> {
      a = BEFORE
      q = QuantizeLinear (a, s, z)
      d = DequantizeLinear (q, s, z)
      y = Conv (d, w)
    }"""
PLAIN = """
    g (float[N, 4, 8, 8] x) => (float[N, 6, 8, 8] y) <float[6, 4, 1, 1] w> { BODY y = Conv (c, w) }"""


@pytest.mark.parametrize(
    ("zero", "before", "body"),
    [
        ("128", "Neg (x)", "c = Neg (x)"),
        ("0", "Neg (x)", "a = Neg (x) c = Relu (a)"),
        ("0", "Sigmoid (x)", "c = Sigmoid (x)"),
        ("0", "Relu (x)", "c = Relu (x)"),
    ],
)
def test_a_relu_that_the_zero_point_stood_for_comes_back(zero: str, before: str, body: str) -> None:
    text = PAIR.replace("ZERO", zero).replace("BEFORE", before)
    assert_rewrites(
        Dequantize(),
        before=text,
        after=PLAIN.replace("BODY", body),
        feeds=[{"x": RNG.uniform(-3, 3, (2, 4, 8, 8)).astype(np.float32)}],
        rtol=0.0,
        atol=0.4,
    )


def test_a_clip_of_six_comes_back() -> None:
    text = PAIR.replace("ZERO", "0").replace("BEFORE", "Neg (x)").replace("0.05", "0.023529412")
    ops = operators(back(model(text)))
    assert ops == ["Neg", "Clip", "Conv"]


def test_samples_show_where_numbers_are_cut_off() -> None:
    proto = model(PAIR.replace("ZERO", "128").replace("BEFORE", "Neg (x)").replace("0.05", "0.01"))
    rng = np.random.default_rng(0)
    large = [{"x": (5 * rng.normal(size=(1, 4, 8, 8))).astype("f4")} for _ in range(3)]
    small = [{"x": (0.01 * feeds["x"]).astype("f4")} for feeds in large]
    cut = Pipeline((Dequantize(),)).run(proto, samples=large).model
    assert operators(cut.to_proto()) == ["Neg", "Clip", "Conv"]
    assert fidelity(proto, cut.to_proto(), large) > 35
    assert "Clip" not in operators(
        Pipeline((Dequantize(),)).run(proto, samples=small).model.to_proto()
    )


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


def back(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    result = Pipeline((Dequantize.model_validate(options),)).run(proto)
    got = result.model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    return got


def fidelity(
    first: onnx.ModelProto,
    second: onnx.ModelProto,
    feeds: Sequence[dict[str, np.ndarray]],
    optimization: Literal["all", "disable"] = "all",
) -> float:
    with (
        Session.open(first, optimization=optimization) as one,
        Session.open(second, optimization=optimization) as two,
    ):
        found = compare(one, two, feeds)
    assert found, found.reason
    return found.worst("sqnr_db") or 0.0


U8, S8 = np.uint8, np.int8


def integers(*shape: int, dtype: Any = U8) -> np.ndarray:
    bounds = np.iinfo(dtype)
    return RNG.integers(bounds.min, bounds.max + 1, shape).astype(dtype)


def one(
    op_type: str,
    inputs: dict[str, Any],
    *,
    domain: str = "com.microsoft",
    shape: tuple[int, ...] = (2, 4, 6, 6),
    version: int = 17,
    quantized: bool = True,
    rank: int = 0,
    **attributes: Any,
) -> onnx.ModelProto:
    """A quantized operator between QuantizeLinear and DequantizeLinear; None stands for the activation."""
    tensors = [
        numpy_helper.from_array(np.asarray(v), k) for k, v in inputs.items() if v is not None
    ]
    names = list(inputs)
    x = next(k for k, v in inputs.items() if v is None)
    scale = np.asarray(0.04, np.float32)
    tensors += [numpy_helper.from_array(np.asarray(v), k) for k, v in
                (("in_scale", scale), ("in_zero", U8(120)), ("out_scale", np.float32(0.1)),
                 ("out_zero", U8(110)))]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "in_scale", "in_zero"], [x]),
        helper.make_node(op_type, names, ["q" if quantized else "y"], domain=domain, **attributes),
    ]
    if quantized:
        ends = ("ys", "yz") if "ys" in inputs else ("out_scale", "out_zero")
        nodes.append(helper.make_node("DequantizeLinear", ["q", *ends], ["y"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * (rank or len(shape)))],
        tensors,
    )
    imports = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


XS, XZ = np.float32(0.04), U8(120)
YS, YZ = np.float32(0.1), U8(110)
X = {"x": None, "xs": XS, "xz": XZ}
Y = {"ys": YS, "yz": YZ}
PER_CHANNEL = (0.01 * (1 + RNG.random(5))).astype(np.float32)
CASES: dict[str, onnx.ModelProto] = {
    "QLinearConv": one(
        "QLinearConv",
        {**X, "w": integers(5, 4, 3, 3, dtype=S8), "ws": PER_CHANNEL, "wz": np.zeros(5, S8), **Y,
         "b": RNG.integers(-3000, 3000, 5).astype(np.int32)},
        domain="", pads=[1, 1, 1, 1],
    ),
    "QLinearConv grouped": one(
        "QLinearConv",
        {**X, "w": integers(4, 1, 3, 3, dtype=U8), "ws": np.float32(0.01), "wz": U8(100), **Y},
        domain="", group=4,
    ),
    "QLinearMatMul": one(
        "QLinearMatMul",
        {**X, "w": integers(6, 5, dtype=S8), "ws": PER_CHANNEL, "wz": np.zeros(5, S8), **Y}, domain="",
    ),
    "QLinearAdd": one("QLinearAdd", {**X, "w": integers(4, 1, 6), "ws": np.float32(0.03), "wz": U8(9), **Y}),
    "QLinearMul": one("QLinearMul", {**X, "w": integers(6), "ws": np.float32(0.01), "wz": U8(99), **Y}),
    "QLinearSigmoid": one("QLinearSigmoid", {**X, "ys": np.float32(1 / 256), "yz": U8(0)}),
    "QLinearLeakyRelu": one("QLinearLeakyRelu", {**X, **Y}, alpha=0.3),
    "QLinearSoftmax": one("QLinearSoftmax", {**X, "ys": np.float32(1 / 256), "yz": U8(0)}, axis=-1, opset=17),
    "QLinearAveragePool": one("QLinearAveragePool", {**X, **Y}, kernel_shape=[2, 2], strides=[2, 2]),
    "QLinearGlobalAveragePool": one("QLinearGlobalAveragePool", {**X, **Y}),
    "QLinearConcat": one(
        "QLinearConcat",
        {"ys": YS, "yz": YZ, **X, "w": integers(2, 3, 6, 6), "ws": np.float32(0.05), "wz": U8(7)}, axis=1,
    ),
    "QGemm": one(
        "QGemm",
        {**X, "w": integers(5, 7, dtype=S8), "ws": PER_CHANNEL, "wz": np.zeros(5, S8),
         "c": RNG.integers(-3000, 3000, 5).astype(np.int32), **Y},
        shape=(3, 7), transB=1, alpha=1.0,
    ),
    "QGemm to float": one(
        "QGemm",
        {**X, "w": integers(7, 5, dtype=S8), "ws": np.float32(0.01), "wz": S8(0),
         "c": RNG.integers(-3000, 3000, 5).astype(np.int32)},
        shape=(3, 7), alpha=1.0, quantized=False,
    ),
    "MatMulIntegerToFloat": one(
        "MatMulIntegerToFloat",
        {"x": None, "w": integers(6, 5, dtype=S8), "xs": XS, "ws": PER_CHANNEL, "xz": XZ, "wz": np.zeros(5, S8),
         "b": RNG.normal(size=5).astype(np.float32)},
        quantized=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operators_on_integers(name: str) -> None:
    proto = CASES[name]
    got = back(proto)
    assert not is_quantized(Model.load(got)), operators(got)
    shape = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    # Inside of what the integers of input and output can hold.
    feeds = [{"input": RNG.uniform(-2, 2, shape).astype(np.float32)} for _ in range(4)]
    with Session.open(proto) as before, Session.open(got) as after:
        for feed in feeds:
            want, found = before.run(feed)["y"], after.run(feed)["y"]
            assert want.shape == found.shape
            inside = (want > -10.9) & (want < 14.4)
            error = np.abs(want - found)[inside]
            assert error.max() <= 0.06 * max(1.0, float(np.abs(want).max())), error.max()
            assert np.sqrt(np.square(error).mean()) < 0.04 + 0.01 * np.abs(want).max()


def test_dynamic_products() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 16] x) => (float[N, 8] y, float[N, 8] t)
        <int8[16, 8] w, float[8] ws, int8[8] wz, int8[16, 8] v, float vs = {0.02}> {
          q, s, z = DynamicQuantizeLinear (x)
          a = MatMulInteger (q, w, z, wz)
          b = Cast <to = 1> (a)
          c = Mul (s, ws)
          y = Mul (b, c)
          d = MatMulInteger (q, v, z)
          e = Cast <to = 1> (d)
          f = Mul (vs, s)
          t = Mul (e, f)
        }"""
    proto = model(text)
    got = back(proto)
    assert sorted(operators(got)) == ["MatMul", "MatMul"]
    feeds = [{"x": RNG.normal(size=(5, 16)).astype(np.float32)} for _ in range(3)]
    assert fidelity(proto, got, feeds) > 35


def test_products_of_two_activations_and_convolutions() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y, float[1, 3, 8, 8] t)
        <uint8[5, 3, 3, 3] w, float ws = {0.01}, uint8 wz = {4}, float[5, 1, 1] per> {
          q, s, z = DynamicQuantizeLinear (x)
          a = ConvInteger (q, w, z, wz)
          b = Cast <to = 1> (a)
          c = Mul (s, per)
          y = Mul (b, c)
          m = Transpose <perm = [0, 1, 3, 2]> (x)
          r, u, v = DynamicQuantizeLinear (m)
          d = MatMulInteger (q, r, z, v)
          e = Cast <to = 1> (d)
          f = Mul (s, u)
          t = Mul (e, f)
        }"""
    proto = model(text)
    got = back(proto)
    assert sorted(operators(got)) == ["Conv", "MatMul", "Transpose"]
    feeds = [{"x": RNG.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    assert fidelity(proto, got, feeds) > 30


def lstm() -> onnx.ModelProto:
    numbers = {
        "w": integers(1, 4, 24, dtype=S8), "r": integers(1, 6, 24, dtype=S8),
        "b": RNG.normal(size=(1, 48)).astype(np.float32), "ws": np.full((1,), 0.005, np.float32),
        "wz": np.zeros(1, S8), "rs": (0.004 * np.ones((1, 24))).astype(np.float32), "rz": np.zeros((1, 24), S8),
    }  # fmt: skip
    node = helper.make_node(
        "DynamicQuantizeLSTM",
        ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"],
        ["y", "h"],
        domain="com.microsoft",
        hidden_size=6,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", 2, 4])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)
            for name, rank in (("y", 4), ("h", 3))
        ],
        [numpy_helper.from_array(array, name) for name, array in numbers.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def test_a_quantized_lstm() -> None:
    proto = lstm()
    got = back(proto)
    assert operators(got) == ["LSTM"]
    feeds = [{"x": RNG.normal(size=(7, 2, 4)).astype(np.float32)} for _ in range(3)]
    assert fidelity(proto, got, feeds) > 30


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_in_blocks(bits: int, zeros: bool) -> None:
    rows, columns, block = 48, 5, 16
    blocks = rows // block
    inputs: dict[str, np.ndarray] = {
        "b": integers(columns, blocks, block * bits // 8),
        "s": (0.01 * (1 + RNG.random((columns, blocks)))).astype(np.float32),
    }
    if zeros:
        inputs["z"] = integers(columns, -(-blocks * bits // 8))
    node = helper.make_node(
        "MatMulNBits", ["x", *inputs], ["y"], domain="com.microsoft",
        K=rows, N=columns, bits=bits, block_size=block,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", columns])],
        [numpy_helper.from_array(array, name) for name, array in inputs.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=8)
    got = back(proto)
    assert operators(got) == ["MatMul"]
    feeds = [{"x": RNG.normal(size=(3, rows)).astype(np.float32)}]
    assert fidelity(proto, got, feeds) > 90


def test_blocks_of_a_dequantize_linear_and_a_table() -> None:
    text = """
        g (int64[N] i, float[M, 32] x) => (float[N, 8] y, float[M, 8] z)
        <int8[32, 8] w, float[2, 8] s, int8[10, 8] table, float[10] ts> {
          d = DequantizeLinear <axis = 0, block_size = 16> (w, s)
          z = MatMul (x, d)
          g = DequantizeLinear <axis = 0> (table, ts)
          y = Gather (g, i)
        }"""
    proto = model(text)
    got = back(proto)
    assert sorted(operators(got)) == ["Gather", "MatMul"]
    feeds = [{"i": np.array([3, 9]), "x": RNG.normal(size=(2, 32)).astype(np.float32)}]
    assert fidelity(proto, got, feeds, "disable") > 100


def test_operators_that_move_integers_move_floats() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 5, 16] y) <float s = {0.05}, uint8 z = {128}, uint8 c = {118},
        int64[3] to = {1, 5, 16}, int64[8] pads = {0, 1, 0, 0, 0, 0, 0, 0}> {
          q = QuantizeLinear (x, s, z)
          m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (q)
          p = Pad (m, pads, c)
          r = Reshape (p, to)
          y = DequantizeLinear (r, s, z)
        }"""
    proto = model(text)
    got = back(proto)
    assert operators(got) == ["MaxPool", "Pad", "Reshape"]
    feeds = [{"x": RNG.normal(size=(1, 4, 8, 8)).astype(np.float32)}]
    with Session.open(proto) as before, Session.open(got) as after:
        error = before.run(feeds[0])["y"] - after.run(feeds[0])["y"]
    assert np.abs(error).max() < 0.026


def test_integers_at_the_border_of_the_model_stay() -> None:
    text = """
        g (uint8[N, 8] x) => (uint8[N, 8] y) <float s = {0.05}, uint8 z = {128}> {
          d = DequantizeLinear (x, s, z)
          r = Sigmoid (d)
          y = QuantizeLinear (r, s, z)
        }"""
    outcome = assert_unchanged(Dequantize(), text)
    assert [d.code for d in outcome.diagnostics].count("DQT102") == 2


def test_another_grid_behind_is_not_dropped() -> None:
    text = """
        g (float[N, 8] x) => (float[N, 8] y) <float s = {0.05}, float t = {0.1}, uint8 z = {128}> {
          q = QuantizeLinear (x, s, z)
          y = DequantizeLinear (q, t, z)
        }"""
    assert_unchanged(Dequantize(), text)


def test_a_float_model_stays() -> None:
    outcome = assert_unchanged(Dequantize(), "g (float[2] x) => (float[2] y) { y = Relu (x) }")
    assert outcome.diagnostics[0].code == "DQT101"


NET = """
    g (float[1, 4, 16, 16] x) => (float[1, 10] y)
    <float[16, 4, 3, 3] w, float[16] b, float[16, 16, 3, 3] v, float[16, 10] f> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      c = Relu (a)
      d = Conv <pads = [1, 1, 1, 1]> (c, v)
      e = Relu (d)
      g = GlobalAveragePool (e)
      h = Flatten (g)
      y = MatMul (h, f)
    }"""


def test_quantizing_and_back_only_rounds_the_weights() -> None:
    proto = model(NET)
    rng = np.random.default_rng(2)
    feeds = [{"x": rng.normal(size=(1, 4, 16, 16)).astype(np.float32)} for _ in range(8)]
    step = QuantizeStatic(placement="all", prepare=False, correct_bias=False)
    quantized = Pipeline((step,)).run(proto, samples=feeds).model
    found = is_quantized(quantized)
    assert found.activations
    assert found.tool == "onnxcomp"
    got = back(quantized.to_proto())
    assert not is_quantized(Model.load(got))
    near, rounded = fidelity(proto, got, feeds), fidelity(proto, quantized.to_proto(), feeds)
    assert near > max(rounded, 35)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    restored = [numpy_helper.to_array(t) for t in got.graph.initializer if t.dims == [16, 4, 3, 3]]
    assert np.abs(restored[0] - weights["w"]).max() < np.abs(weights["w"]).max() / 127


def test_rolling_back_restores_every_byte() -> None:
    for proto in (*CASES.values(), lstm()):
        assert_rolls_back(Dequantize(), proto)


@pytest.mark.parametrize(
    "recipe",
    [
        "palettize-weights{bits=3}",
        'binarize-weights{only=["*"] bases=2}',
        "quantize-weights{bits=4}",
        "quantize-weights{bits=4 format=matmulnbits}",
    ],
)
def test_stored_weights_are_expanded(recipe: str) -> None:
    text = """
        g (float[N, 256] x) => (float[N, 128] y) <float[256, 256] w, float[256, 128] v> {
          a = MatMul (x, w)
          b = Relu (a)
          y = MatMul (b, v)
        }"""
    small = Pipeline.parse(recipe).run(model(text)).model
    found = is_quantized(small)
    assert found
    assert not found.activations
    got = back(small.to_proto())
    assert operators(got) == ["MatMul", "Relu", "MatMul"]
    feeds = [{"x": RNG.normal(size=(4, 256)).astype(np.float32)} for _ in range(2)]
    # MatMulNBits computes with activations in 8 bits.
    least = 38 if "matmulnbits" in recipe else 90
    assert fidelity(small.to_proto(), got, feeds, "disable") > least


QUANTIZED = (
    "QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "MatMulInteger",
)  # fmt: skip


def test_whatever_is_drawn_loads_and_keeps_its_signature() -> None:
    changed = near = 0
    for seed in range(60):
        try:
            found = draw_any(seed, 5, QUANTIZED[seed % len(QUANTIZED)])
        except RefusedError:
            continue
        result = Pipeline((Dequantize(),)).run(found.proto)
        assert not result.outcomes[0].rolled_back, seed
        if not result.changed:
            continue
        changed += 1
        assert result.model.signature() == Model.load(found.proto).signature(), seed
        given = found.feeds("ordinary")
        with (
            Session.open(found.proto, optimization="disable") as before,
            Session.open(result.model) as after,
        ):
            want, got = before.run(given), after.run(given)
        kinds = [(np.asarray(got[n]).dtype, np.shape(got[n])) for n in want]
        assert kinds == [(np.asarray(want[n]).dtype, np.shape(want[n])) for n in want], seed
        near += all(
            np.allclose(got[n], want[n], rtol=0.1, atol=0.1, equal_nan=True)
            for n in want
            if isinstance(want[n], np.ndarray) and want[n].dtype.kind == "f"
        )
    assert changed > 15
    # The others have scales that fit nothing: what they round or cut off is gone.
    assert near >= 0.6 * changed


def test_a_scale_for_each_column_of_each_matrix_stays() -> None:
    scales = ", ".join(str(0.1 + index / 100) for index in range(10))
    zeros = ", ".join("0" for _ in range(10))
    text = f"""
        g (float[2, 3, 4] x) => (y)
        <float s = {{0.05}}, uint8 z = {{128}}, uint8[2, 4, 5] b, float t = {{0.2}},
         float[2, 1, 5] bs = {{{scales}}}, uint8[2, 1, 5] bz = {{{zeros}}}> {{
          q = QuantizeLinear (x, s, z)
          r = QLinearMatMul (q, s, z, b, bs, bz, t, z)
          y = DequantizeLinear (r, t, z)
        }}"""
    result = Pipeline((Dequantize(),)).run(model(text))
    kinds = [node.op_type for node in result.model.to_proto().graph.node]
    assert kinds == ["QuantizeLinear", "QLinearMatMul", "DequantizeLinear"]
    assert "another shape" in " ".join(str(found) for found in result.diagnostics)


@pytest.mark.parametrize("size", [4, 1 << 40])
def test_blocks_are_as_large_as_what_they_lie_in_at_most(size: int) -> None:
    text = f"""
        g (float[2, 4] x) => (y) <int8[4, 3] w, float[1, 3] s> {{
          d = DequantizeLinear <axis = 0, block_size = {size}> (w, s)
          y = MatMul (x, d)
        }}"""
    result = Pipeline((Dequantize(),)).run(model(text))
    assert [node.op_type for node in result.model.to_proto().graph.node] == ["MatMul"]
