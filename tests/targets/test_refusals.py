"""What the table of the processor says against models, and about number formats: each row is run."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import UserError
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session, runtime_version
from onnxcomp.targets import load_target
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model
from tests.targets.judges import Verdict, in_onnxruntime
from tests.targets.rows import one_operator, samples

CPU = load_target("cpu")
RNG = np.random.default_rng(5)
RESIDUAL = """
    g (float[1, 8, 8, 8] x) => (float[1, 8, 8, 8] y)
    <float[8, 8, 1, 1] w, float[8, 8, 1, 1] v, float[8, 8, 1, 1] u> {
      a = Conv (x, w) b = Conv (a, v) c = Add (a, b) y = Conv (c, u)
    }"""


def graph(nodes: list[onnx.NodeProto], arrays: dict[str, Any], shape: list[int]) -> onnx.ModelProto:
    """A model from `x` to `y`."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    made = helper.make_graph(nodes, "g", [x], [y], kept)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def around(kind: str, weight: np.ndarray, axis: int, scale: Any = 0.02) -> onnx.ModelProto:
    """An operator between Q/DQ, with a weight of s8 that has scales along an axis."""
    count = weight.shape[axis]
    arrays = {
        "xs": np.asarray(scale, np.float32),
        "xz": np.full(np.shape(scale), 128, np.uint8),
        "ys": np.float32(0.1),
        "yz": np.uint8(128),
        "w": weight,
        "ws": np.linspace(0.01, 0.05, count, dtype=np.float32),
        "wz": np.zeros(count, np.int8),
    }
    nodes = [
        node("QuantizeLinear", "x xs xz", "xq", axis=1),
        node("DequantizeLinear", "xq xs xz", "xd", axis=1),
        node("DequantizeLinear", "w ws wz", "wd", axis=axis),
        node(kind, "xd wd", "a"),
        node("QuantizeLinear", "a ys yz", "aq"),
        node("DequantizeLinear", "aq ys yz", "y"),
    ]
    shape = [1, 4, 6, 6] if kind == "Conv" else [3, 4]
    return graph(nodes, arrays, shape)


def judge(proto: onnx.ModelProto) -> Verdict:
    return in_onnxruntime(proto, "cpu")


def static(proto: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{"x": RNG.normal(size=shape).astype("f4")} for _ in range(3)]
    step = QuantizeStatic(placement="all", prepare=False, observer="min-max", **options)
    return Pipeline((step,)).run(proto, samples=feeds, threads=1).model.to_proto()


def bytes_of(*shape: int) -> np.ndarray:
    return RNG.integers(-100, 100, shape).astype(np.int8)


def version() -> tuple[int, ...]:
    return tuple(int(part) for part in runtime_version().split(".")[:2])


# -- refusals --------------------------------------------------------------------------------------


def test_there_is_a_test_for_every_refusal() -> None:
    names = "\n".join(name for name in globals() if name.startswith("test_"))
    for row in CPU.refuse:
        assert f"test_{row.rule.replace('-', '_')}" in names


def test_int8_activation_with_several_readers_falls_back_to_float() -> None:
    unsigned = judge(static(model(RESIDUAL), withdraw=False))
    signed = judge(static(model(RESIDUAL), withdraw=False, activations="int8"))
    assert not unsigned.floats
    assert signed.floats & {"Conv", "Add"}


def test_per_channel_axis_of_a_conv_is_ignored_without_a_word() -> None:
    proto = around("Conv", bytes_of(4, 4, 1, 1), axis=1)
    feeds = {"x": RNG.normal(size=(1, 4, 6, 6)).astype("f4")}
    with Session.open(proto) as fast, Session.open(proto, optimization="disable") as exact:
        error = np.abs(fast.run(feeds)["y"] - exact.run(feeds)["y"]).max()
    assert error > 1.0
    right = around("Conv", bytes_of(4, 4, 1, 1), axis=0)
    with Session.open(right) as fast, Session.open(right, optimization="disable") as exact:
        assert np.abs(fast.run(feeds)["y"] - exact.run(feeds)["y"]).max() < 0.2


def test_per_channel_axis_of_a_matmul_fails_when_it_runs_or_is_right() -> None:
    feeds = {"x": RNG.normal(size=(3, 4)).astype("f4")}
    rows = around("MatMul", bytes_of(4, 5), axis=0)
    with Session.open(rows, optimization="disable") as exact:
        (expected,) = exact.run(feeds).values()
    with Session.open(rows) as session:
        try:
            (found,) = session.run(feeds).values()
        except UserError:  # onnxruntime up to 1.31
            found = expected
    np.testing.assert_allclose(found, expected, atol=0.05)
    with Session.open(around("MatMul", bytes_of(4, 5), axis=1)) as session:
        session.run(feeds)


def test_per_channel_activation_is_fused_and_fails_when_it_runs() -> None:
    proto = around("Conv", bytes_of(4, 4, 1, 1), 0, np.full(4, 0.02))
    feeds = {"x": RNG.normal(size=(1, 4, 6, 6)).astype("f4")}
    assert "QLinearConv" in judge(proto).operators
    with Session.open(proto, optimization="disable") as exact:
        exact.run(feeds)
    with Session.open(proto) as fast, pytest.raises(UserError):
        fast.run(feeds)


@pytest.mark.parametrize("op_type", ["Transpose", "MaxPool"])
def test_not_constant_scales_keep_numbers_from_being_handed_on(op_type: str) -> None:
    attributes = {"kernel_shape": [2, 2]} if op_type == "MaxPool" else {"perm": [0, 1, 3, 2]}
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node(op_type, "d", "a", **attributes),
        node("QuantizeLinear", "a s z", "aq"),
        node("DequantizeLinear", "aq s z", "y"),
    ]
    proto = graph(nodes, {"s": np.float32(0.02), "z": np.uint8(128)}, [1, 4, 6, 6])
    assert judge(proto).conversions == 2
    del proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, []))
    assert judge(proto).conversions == 4


@pytest.mark.parametrize(
    "op_type", [kind for row in CPU.refuse if row.rule == "sixteen-bit" for kind in row.types]
)
def test_sixteen_bit_activations_stay_float(op_type: str) -> None:
    proto = one_operator(op_type)
    step = QuantizeStatic(
        placement="all", prepare=False, observer="min-max", withdraw=False, activations="uint16"
    )
    made = Pipeline((step,)).run(proto, samples=samples(proto), threads=1).model.to_proto()
    verdict = judge(made)
    # From 1.32 on onnxruntime takes the weights of some without rounding activations.
    assert op_type in verdict.floats or "MatMulNBits" in verdict.operators


@pytest.mark.parametrize("op_type", ["Transpose", "Reshape", "Slice"])
def test_sixteen_bit_numbers_are_handed_on(op_type: str) -> None:
    assert CPU.format_of("uint16").use == "storage"  # type: ignore[union-attr]
    family = CPU.family_of(op_type)
    assert family is not None
    assert family.sixteen


# -- number formats --------------------------------------------------------------------------------


def blocks(kind: str, axis: int, size: int = 32) -> onnx.ModelProto:
    """A MatMul with a weight of 64 x 64 in blocks."""
    shape = [64, 64]
    shape[axis] //= size
    weight = RNG.integers(0 if kind[0] == "u" else -7, 7, (64, 64))
    arrays: dict[str, Any] = {
        "w": weight.astype(getattr(ml_dtypes, kind, kind)),
        "s": np.full(shape, 0.1, np.float32),
    }
    inputs = "w s"
    if kind[0] == "u":
        arrays["z"] = np.full(shape, 8).astype(getattr(ml_dtypes, kind, kind))
        inputs += " z"
    return graph(
        [
            node("DequantizeLinear", inputs, "d", axis=axis, block_size=size),
            node("MatMul", "x d", "y"),
        ],
        arrays,
        [1, 64],
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("int4",) * 2, ("uint4",) * 2, ("int8-weights", "int8")]
)
@pytest.mark.parametrize("size", [16, 32])
def test_weights_in_blocks_are_unpacked_as_they_are_multiplied(
    name: str, kind: str, size: int
) -> None:
    if name == "int8-weights" and version() < (1, 31):
        pytest.skip("this onnxruntime does so with 4 bits only")
    assert CPU.format_of(name).use == "weights"  # type: ignore[union-attr]
    assert judge(blocks(kind, 0, size)).operators == ("MatMulNBits",)


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_block_axis_1_is_unpacked_in_every_run(kind: str) -> None:
    assert "DequantizeLinear" in judge(blocks(kind, 1)).operators


def test_blocks_of_8_are_unpacked_in_every_run() -> None:
    assert "DequantizeLinear" in judge(blocks("int4", 0, 8)).operators


def test_float8_fuses_with_nothing() -> None:
    assert CPU.format_of("float8e4m3fn").use == "storage"  # type: ignore[union-attr]
    kind = ml_dtypes.float8_e4m3fn
    arrays = {
        "s": np.float32(0.1),
        "z": np.zeros((), kind),
        "w": RNG.normal(size=(4, 4)).astype("f4"),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("MatMul", "d w", "y"),
    ]
    found = judge(graph(nodes, arrays, [1, 4])).operators
    assert found == ("QuantizeLinear", "DequantizeLinear", "MatMul")


def test_float16_is_computed_between_casts() -> None:
    assert CPU.format_of("float16").use == "storage"  # type: ignore[union-attr]
    text = """g (float16[1, 4, 6, 6] x) => (float16[1, 4, 6, 6] y) <float16[4, 4, 1, 1] w>
        { a = Conv (x, w) y = HardSwish (a) }"""
    proto = model(text.replace("<float16[4, 4, 1, 1] w>", ""))
    weight = RNG.normal(size=(4, 4, 1, 1)).astype("f2")
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    assert "Cast" in judge(proto).operators
