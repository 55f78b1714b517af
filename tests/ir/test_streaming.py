"""A model written in pieces is the model written at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.ir import Model, storage, streaming
from onnxcomp.ir.wire import varint
from tests.helpers.text import model

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 8] x, bool c) => (float[P, Q] y) <float[8, 4] a, float[4] b, int4[3] d> {
      m = MatMul (x, a)
      n = If (c) <
        then_branch = t () => (float[P, Q] u) <float[4] e> { u = Add (m, e) },
        else_branch = f () => (float[P, Q] v) { v = Add (m, b) }>
      y = Identity (n)
    }"""


def source() -> onnx.ModelProto:
    proto = model(TEXT)
    rng = np.random.default_rng(3)
    made = [
        numpy_helper.from_array(rng.normal(size=(8, 4)).astype(np.float32), "a"),
        numpy_helper.from_array(rng.normal(size=4).astype(np.float32), "b"),
        onnx.helper.make_tensor("d", onnx.TensorProto.INT4, [3], b"\x78\x01", raw=True),
        numpy_helper.from_array(np.array(["one", "two"], dtype=object), "s"),
    ]
    made[0].doc_string = "the weight"
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(made)
    proto.metadata_props.add(key="author", value="somebody")
    proto.graph.doc_string = "a graph"
    return proto


def parts(proto: onnx.ModelProto) -> tuple[bytes, list[bytes]]:
    tensors = sorted(t.SerializeToString(deterministic=True) for t in proto.graph.initializer)
    proto.graph.ClearField("initializer")
    return proto.SerializeToString(deterministic=True), tensors


@pytest.mark.parametrize("least", [1, 17, 1 << 16])
def test_the_same_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: int) -> None:
    monkeypatch.setattr(streaming, "STREAMED_BYTES", least)
    loaded = Model.load(source())
    before = parts(loaded.to_proto())
    loaded.save(tmp_path / "out.onnx")
    assert parts(onnx.load(str(tmp_path / "out.onnx"))) == before
    assert parts(loaded.to_proto()) == before, "saving changed the model"


def test_weights_of_other_files_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STREAMED_BYTES", 1)
    proto = source()
    expected = numpy_helper.to_array(proto.graph.initializer[0])
    monkeypatch.setattr(storage, "EXTERNAL_TENSOR_BYTES", 1)
    Model.load(proto).save(tmp_path / "in.onnx", external=True)
    Model.load(tmp_path / "in.onnx").save(tmp_path / "out.onnx", external=False)
    (tmp_path / "in.onnx.data").unlink()
    tensors = {t.name: t for t in onnx.load(str(tmp_path / "out.onnx")).graph.initializer}
    np.testing.assert_array_equal(numpy_helper.to_array(tensors["a"]), expected)


@pytest.mark.parametrize("number", [0, 127, 128, 300, 2**31 - 1])
def test_lengths(number: int) -> None:
    from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[import-untyped]

    assert varint(number) == _VarintBytes(number)
