"""Loading and saving lose nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from onnxcomp.errors import ModelError, UserError
from onnxcomp.ir import Model, ir

if TYPE_CHECKING:
    from pathlib import Path

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'


def parse(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER + text)


def rich_model() -> onnx.ModelProto:
    """A model with everything that rewriters are known to drop."""
    proto = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["" : 21, "own" : 1], producer_name: "maker",
         producer_version: "7", domain: "a.b", model_version: 3, doc_string: "about the model",
         metadata_props: ["author": "me", "licence": "MIT"]>
        main (float[N, 4] x, float[4] bias) => (float[N, 4] y, float[N, 4] z)
        <float[4] bias = {1, 2, 3, 4}, int8[4] small = {-8, 7, 0, 1}>
        {
            a = Add (x, bias)
            b = own.Twice (a)
            y = Abs (b)
            t = Cast <to = 1> (small)
            z = Mul (y, t)
        }
        <domain: "own", opset_import: ["" : 21]>
        Twice (p) => (q) { q = Add (p, p) }
        """
    )
    node = proto.graph.node[0]
    node.doc_string = "adds"
    entry = node.metadata_props.add()
    entry.key, entry.value = "origin", "layer 1"
    entry = proto.graph.metadata_props.add()
    entry.key, entry.value = "graph", "yes"
    proto.graph.doc_string = "about the graph"
    annotation = proto.graph.quantization_annotation.add()
    annotation.tensor_name = "a"
    note = annotation.quant_parameter_tensor_names.add()
    note.key, note.value = "SCALE_TENSOR", "bias"
    return proto


def canonical(proto: onnx.ModelProto) -> bytes:
    """The bytes of a model, an empty domain and an absent one made equal."""
    copy = onnx.ModelProto.FromString(proto.SerializeToString())
    for nodes in [copy.graph.node, *(function.node for function in copy.functions)]:
        for node in nodes:
            node.domain = node.domain  # marks the field as present
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def same(left: onnx.ModelProto, right: onnx.ModelProto) -> bool:
    return canonical(left) == canonical(right)


def test_keeps_everything() -> None:
    proto = rich_model()
    before = proto.SerializeToString(deterministic=True)
    made = Model.load(proto).to_proto()
    assert same(made, onnx.ModelProto.FromString(before))
    assert proto.SerializeToString(deterministic=True) == before


def test_copy_shares_weights_and_nothing_else() -> None:
    model = Model.load(rich_model())
    twin = model.copy()
    assert same(twin.to_proto(), model.to_proto())
    value = model.graph.initializers["bias"]
    other = twin.graph.initializers["bias"]
    assert value is not other
    assert value.const_value is other.const_value


def test_keeps_sparse_initializers_and_training_information() -> None:
    proto = parse("g (float[3] x) => (float[3] y) { y = Add (x, s) }")
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.array([5], np.float32), "s"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([1], np.int64), "s_indices"))
    sparse.dims.append(3)
    proto.training_info.add().algorithm.name = "step"
    model = Model.load(proto)
    assert model.to_proto().graph.sparse_initializer[0] == sparse
    assert model.copy().to_proto().training_info[0].algorithm.name == "step"


def test_keeps_map_types_of_the_interface() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]>'
        "g (float[N, 2] x) => (float[N, 2] y) { y = Identity (x) m = ai.onnx.ml.ZipMap"
        "<classlabels_int64s = [0, 1]> (x) }"
    )
    info = proto.graph.output.add(name="m")
    element = info.type.sequence_type.elem_type.map_type
    element.key_type = TensorProto.INT64
    element.value_type.tensor_type.elem_type = TensorProto.FLOAT
    assert Model.load(proto).to_proto().graph.output[1] == info
    assert Model.load(Model.load(proto)).signature().outputs[1].dtype is None


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (TensorProto.BFLOAT16, np.array([0x3F80, 0x7FC1], np.uint16)),
        (TensorProto.FLOAT8E4M3FN, np.array([1, 127, 255], np.uint8)),
        (TensorProto.UINT4, np.array([0x21, 0x03], np.uint8)),
        (TensorProto.INT64, np.array([-1, 2**62], np.int64)),
        (TensorProto.COMPLEX64, np.array([1 + 2j], np.complex64)),
    ],
)
def test_keeps_every_bit_of_unusual_types(dtype: int, array: np.ndarray) -> None:
    proto = parse("g (float[1] x) => (float[1] y) { y = Identity (x) z = Identity (w) }")
    count = 3 if dtype == TensorProto.UINT4 else array.size
    raw = array.tobytes()
    proto.graph.initializer.append(
        TensorProto(name="w", data_type=dtype, dims=[count], raw_data=raw)
    )
    assert Model.load(proto).to_proto().graph.initializer[0].raw_data == raw


def test_string_tensors_survive() -> None:
    proto = parse("g (float[1] x) => (float[1] y) { y = Identity (x) }")
    words = TensorProto(name="words", data_type=TensorProto.STRING, dims=[2])
    words.string_data.extend([b"a", b"\xff"])
    proto.graph.initializer.append(words)
    assert list(Model.load(proto).to_proto().graph.initializer[0].string_data) == [b"a", b"\xff"]


def test_unsorted_nodes_are_sorted_and_repeated_node_names_told_apart() -> None:
    proto = parse("g (float[1] x) => (float[1] y) { [n] y = Abs (a) [n] a = Neg (x) }")
    nodes = list(Model.load(proto).to_proto().graph.node)
    assert [node.op_type for node in nodes] == ["Neg", "Abs"]
    assert len({node.name for node in nodes}) == 2


def test_ir_3_initializers_stay_inputs_and_are_constants() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 9]> g (float[2] x, float[2] w) => (float[2] y)'
        "<float[2] w = {1, 2}> { y = Add (x, w) }"
    )
    model = Model.load(proto)
    assert [spec.name for spec in model.signature().inputs] == ["x"]
    assert same(model.to_proto(), proto)


def test_overridable_initializer_is_an_optional_input() -> None:
    specs = {spec.name: spec for spec in Model.load(rich_model()).signature().inputs}
    assert specs["bias"].optional
    assert not specs["x"].optional
    assert specs["x"].shape == ("N", 4)
    assert specs["x"].dtype == np.float32


def big_model(elements: int = 100_000) -> onnx.ModelProto:
    proto = parse(
        "g (float[1] x) => (float[1] y) { s = ReduceSum <keepdims = 0> (w) y = Add (x, s) }"
    )
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(elements).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    return proto


def test_external_data_stays_external_and_equal(tmp_path: Path) -> None:
    first, second = tmp_path / "a.onnx", tmp_path / "sub" / "b.onnx"
    second.parent.mkdir()
    Model.load(big_model()).save(first, external=True)
    assert first.stat().st_size < 2000
    model = Model.load(first)
    assert model.external
    model.save(second)
    assert sorted(path.name for path in second.parent.iterdir()) == ["b.onnx", "b.onnx.data"]
    assert (
        onnx.load(second).graph.initializer[0].raw_data == big_model().graph.initializer[0].raw_data
    )
    model.save(tmp_path / "inline.onnx", external=False)
    assert (
        onnx.load(tmp_path / "inline.onnx").graph.initializer[0].raw_data
        == big_model().graph.initializer[0].raw_data
    )


def test_saving_over_the_input_needs_permission_and_keeps_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    Model.load(big_model()).save(path, external=True)
    model = Model.load(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="in-place"):
        model.save(path)
    assert path.read_bytes() == before
    model.save(path, in_place=True)
    model.save(path, in_place=True)
    assert (
        onnx.load(path).graph.initializer[0].raw_data == big_model().graph.initializer[0].raw_data
    )
    assert sorted(found.name for found in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data"]


def test_external_data_without_a_folder_is_refused(tmp_path: Path) -> None:
    Model.load(big_model()).save(tmp_path / "a.onnx", external=True)
    proto = onnx.load(tmp_path / "a.onnx", load_external_data=False)
    with pytest.raises(ModelError, match="load it from its path"):
        Model.load(proto)


def test_stubs_leave_out_the_bytes_and_the_model_as_it_was() -> None:
    model = Model.load(big_model())
    bare = model.to_proto(weights=False)
    assert bare.ByteSize() < 2000
    assert list(bare.graph.initializer[0].dims) == [100_000]
    assert same(model.to_proto(), big_model())


def test_reads_an_onnx_ir_model_without_touching_it() -> None:
    source = ir.from_proto(rich_model())
    model = Model.load(source)
    assert model.core is not source
    assert same(model.to_proto(), rich_model())


def test_unknown_source_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="cannot read a model from int"):
        Model.load(7)


def test_negative_dimension_is_unknown() -> None:
    proto = parse("g (float[1, 3] x) => (float[1, 3] y) { y = Identity (x) }")
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    assert Model.load(proto).signature().inputs[0].shape == (None, 3)
