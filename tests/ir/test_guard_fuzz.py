"""Whatever bytes a file has: a model comes out, or one clear line; never another exception."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, parser

from onnxcomp.errors import UserError
from onnxcomp.ir.guard import check_model, read_model

if TYPE_CHECKING:
    from pathlib import Path


def _bytes() -> bytes:
    """A small model that has a bit of everything."""
    model = parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17, "f" : 1], producer_name: "p",
         metadata_props: ["k": "v"]>
        g (float[N, 2] x, bool c) => (float[N, 2] y) <float[2] w = {1, 2}, float[N, 2] v> {
          k = Constant <value = float[2] {3, 4}> ()
          a = f.foo <axis = 1> (x)
          b = Add (a, w)
          v = Add (b, k)
          r = If (c) <then_branch = t () => (float z) { z = Add (v, s) },
                      else_branch = e () => (float z) { q = Pad <mode = "edge"> (v, p)
                                                        z = Slice (q, o, p, p) }>
          y = MaxPool <kernel_shape = [1, 1], auto_pad = "VALID"> (r)
        }
        <domain: "f", opset_import: ["" : 17]>
        foo <axis> (a) => (b) { b = Softmax <axis : int = @axis> (a) }
    """)
    graph = model.graph
    graph.initializer.append(helper.make_tensor("p", TensorProto.INT64, [4], [0, 0, 0, 0]))
    graph.initializer.append(helper.make_tensor("o", TensorProto.INT64, [1], b"\1" * 8, raw=True))
    external = graph.initializer.add(name="big", dims=[4], data_type=TensorProto.FLOAT)
    external.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.data"), ("offset", "0"), ("length", "16")):
        external.external_data.add(key=key, value=value)
    sparse = graph.sparse_initializer.add(dims=[2])
    sparse.values.CopyFrom(helper.make_tensor("s", TensorProto.FLOAT, [1], [3.0]))
    sparse.indices.CopyFrom(helper.make_tensor("s_at", TensorProto.INT64, [1], [1]))
    annotation = graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    data: bytes = model.SerializeToString()
    return data


MODEL = _bytes()

change = st.tuples(st.integers(0, len(MODEL) - 1), st.integers(0, 255))
mutation = st.one_of(
    st.lists(change, min_size=1, max_size=8).map(lambda changes: _changed(dict(changes))),
    st.tuples(change, st.integers(0, 40)).map(lambda cut: _without(cut[0][0], cut[1])),
    st.tuples(change, st.binary(max_size=12)).map(lambda put: _with(put[0][0], put[1])),
    st.tuples(change, change, st.integers(1, 60)).map(lambda copy: _copied(copy)),
    st.integers(0, len(MODEL) - 1).map(lambda end: MODEL[:end]),
    st.binary(max_size=200),
)


def _changed(changes: dict[int, int]) -> bytes:
    data = bytearray(MODEL)
    for at, byte in changes.items():
        data[at] = byte
    return bytes(data)


def _without(at: int, count: int) -> bytes:
    return MODEL[:at] + MODEL[at + count :]


def _with(at: int, more: bytes) -> bytes:
    return MODEL[:at] + more + MODEL[at:]


def _copied(copy: tuple[tuple[int, int], tuple[int, int], int]) -> bytes:
    (source, _), (target, _), count = copy
    return MODEL[:target] + MODEL[source : source + count] + MODEL[target + count :]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "w.data").write_bytes(bytes(16))
    return folder


def survives(folder: Path, data: bytes) -> bool:
    path = folder / "m.onnx"
    path.write_bytes(data)
    try:
        check_model(read_model(path), folder)
    except UserError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 1000
        return False
    return True


def test_the_model_itself_is_valid(folder: Path) -> None:
    assert survives(folder, MODEL)


def test_every_truncation(folder: Path) -> None:
    for end in range(len(MODEL)):
        survives(folder, MODEL[:end])


def test_every_bit(folder: Path) -> None:
    refused = 0
    for at in range(len(MODEL)):
        refused += not survives(folder, _changed({at: MODEL[at] ^ (1 << at % 8)}))
    assert refused > len(MODEL) // 2


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=mutation)
@example(data=b"\x3a\x00")  # a graph, and nothing else
def test_random_damage(folder: Path, data: bytes) -> None:
    survives(folder, data)
