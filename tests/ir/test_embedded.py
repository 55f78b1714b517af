"""Weights that are left in a large file: the model is the same as when everything is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.ir import Model, embedded, guard
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 1 << 16


@pytest.fixture(autouse=True)
def _every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "LARGE_FILE_BYTES", 0)


def a_model(dtype: int = TensorProto.FLOAT, name: str = "w") -> onnx.ModelProto:
    """x[1, 256] times w[256, 256], plus b[256]."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(256, 256)).astype(np.float32)
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", name], ["a"]),
            helper.make_node("Add", ["a", "b"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", dtype, [1, 256])],
        [helper.make_tensor_value_info("y", dtype, [1, 256])],
        [
            numpy_helper.from_array(np.zeros(256, kind), "b"),
            numpy_helper.from_array(weights.astype(kind), name),
        ],
        doc_string="before and after the weights",
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def write(path: Path, proto: onnx.ModelProto) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "BFLOAT16", "INT64"])
def test_loaded_and_serialised_as_if_read_whole(tmp_path: Path, kind: str) -> None:
    proto = a_model(getattr(TensorProto, kind))
    path = write(tmp_path / "m.onnx", proto)
    _, lean = guard.read_lean(path)
    assert lean is not None
    assert len(lean.message) < SIZE // 8
    model = Model.load(path)
    assert not model.external
    assert model.to_proto() == Model.load(proto).to_proto()


def test_packed_elements(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8)
    packed = TensorProto(
        name="w", data_type=TensorProto.INT4, dims=[2 * SIZE], raw_data=values.tobytes()
    )
    graph = helper.make_graph(
        [helper.make_node("Cast", ["w"], ["y"], to=TensorProto.FLOAT)],
        "g",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2 * SIZE])],
        [packed],
    )
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    model = Model.load(write(tmp_path / "m.onnx", proto))
    assert model.to_proto() == Model.load(proto).to_proto()


def test_runs_and_saves(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", a_model())
    model = Model.load(path)
    feeds = {"x": np.ones((1, 256), np.float32)}
    with Session.open(path) as session:
        expected = session.run(feeds)["y"]
    with Session.open(model) as session:
        assert (session.run(feeds)["y"] == expected).all()
    model.save(tmp_path / "again.onnx")
    assert onnx.load(tmp_path / "again.onnx").graph == Model.load(a_model()).to_proto().graph
    assert not (tmp_path / "again.onnx.data").exists()
    model.save(path, in_place=True)
    assert (Model.load(path).graph.initializers["w"].const_value.numpy() != 0).any()  # type: ignore[union-attr]


def test_another_file_of_that_name_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", a_model())
    model = Model.load(path)
    other = a_model()
    other.graph.initializer[1].raw_data = bytes(4 * SIZE)
    write(tmp_path / "other.onnx", other).replace(path)
    assert model.to_proto() == Model.load(a_model()).to_proto()


def test_a_weight_may_lie_anywhere(tmp_path: Path) -> None:
    """Names of every length move the weight through all places between multiples of four."""
    for length in range(1, 9):
        proto = a_model(name="w" * length)
        path = write(tmp_path / f"{length}.onnx", proto)
        model = Model.load(path)
        with Session.open(model, optimization="disable") as session:
            found = session.run({"x": np.ones((1, 256), np.float32)})["y"]
        weights = numpy_helper.to_array(proto.graph.initializer[1])
        np.testing.assert_allclose(found[0], weights.sum(0), rtol=1e-4, atol=1e-4)


def test_no_file_can_state_the_location(tmp_path: Path) -> None:
    """A file that claims that its weights lie in itself is refused like any other reference."""
    proto = a_model()
    tensor = proto.graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (
        ("location", embedded.new_location()),
        ("offset", "0"),
        ("length", str(4 * SIZE)),
    ):
        tensor.external_data.add(key=key, value=value)
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(SIZE, np.float32), "other"))
    with pytest.raises(ModelError, match="missing beside the model"):
        Model.load(write(tmp_path / "m.onnx", proto))


def test_bytes_of_another_length_are_refused(tmp_path: Path) -> None:
    proto = a_model()
    proto.graph.initializer[1].raw_data += b"1234"
    with pytest.raises(ModelError, match="needs 262,144"):
        Model.load(write(tmp_path / "m.onnx", proto))


def test_data_in_two_fields_is_refused(tmp_path: Path) -> None:
    proto = a_model()
    proto.graph.initializer[1].float_data.append(1)
    with pytest.raises(ModelError, match="data both"):
        Model.load(write(tmp_path / "m.onnx", proto))


@pytest.mark.parametrize("seed", range(200))
def test_damaged_files_are_read_or_refused_alike(tmp_path: Path, seed: int) -> None:
    """Whatever is damaged outside of the weights: never another model than the plain parser's."""
    rng = np.random.default_rng(seed)
    data = bytearray(a_model().SerializeToString())
    outside = [place for place in range(len(data)) if not 2000 < place < len(data) - 400]
    for place in rng.choice(outside, 1 + seed % 3):
        data[place] = int(rng.integers(256))
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert outcome(path) == outcome(path, whole=True)


def outcome(path: Path, *, whole: bool = False) -> object:
    """Returns the model, or that it was refused."""
    try:
        return (Model.load(guard.read_model(path)) if whole else Model.load(path)).to_proto()
    except ModelError:
        return "refused"
