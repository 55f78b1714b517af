"""External data: nothing outside of the model's folder is ever read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, parser

from onnxcomp.errors import ModelError
from onnxcomp.ir.external import check_external, external_tensors, resolve_external

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of a model with 64 bytes of data, and a secret beside the folder."""
    (tmp_path / "secret").write_bytes(b"s" * 64)
    inner = tmp_path / "model"
    inner.mkdir()
    (inner / "w.data").write_bytes(bytes(range(64)))
    (inner / "sub").mkdir()
    (inner / "sub" / "sub").write_bytes(bytes(64))
    return inner


def stub(location: str | None, **entries: object) -> TensorProto:
    """A float[16] whose bytes lie elsewhere."""
    tensor = TensorProto(
        name="w", dims=[16], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL
    )
    for key, value in ({"location": location} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def model_with(tensor: TensorProto) -> onnx.ModelProto:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[16] x) => (float[16] y) { y = Add (x, w) }
    """)
    model.graph.initializer.append(tensor)
    return model


def refusal(model: onnx.ModelProto, folder: Path | None) -> str:
    with pytest.raises(ModelError) as caught:
        check_external(model, folder)
    text = str(caught.value)
    assert "\n" not in text
    assert "\x1b" not in text
    return text


@pytest.mark.parametrize("location", ["w.data", "./w.data", "sub/sub", "sub//sub", "sub/./sub"])
def test_accepts_files_beside_the_model(folder: Path, location: str) -> None:
    check_external(model_with(stub(location)), folder)
    assert resolve_external(folder, location).read_bytes()


def test_the_folder_itself_may_be_a_link(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    check_external(model_with(stub("w.data")), link)


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    check_external(model_with(stub("w.data")), "")


@pytest.mark.parametrize(
    "location",
    [
        "../secret",
        "sub/../../secret",
        "sub/../w.data",
        "..",
        "/etc/passwd",
        "//etc/passwd",
        "C:/w.data",
        "c:w.data",
        "..\\secret",
        "sub\\sub",
        "file:///etc/passwd",
        "file:w.data",
        "http://example.com/w",
        "s3://bucket/w",
        "*/_ORT_MEM_ADDR_/*",
        "w.data\0.txt",
        "w.data\n",
        "\x1b[31mw.data",
        "/",
        ".",
        "sub/",
        "sub",
        "none.data",
        "none/w.data",
        "w.data/w.data",
        "x" * 5000,
    ],
)
def test_refuses_every_other_location(folder: Path, location: str) -> None:
    refusal(model_with(stub(location)), folder)


@pytest.mark.parametrize("location", ["", None])
def test_refuses_no_location(folder: Path, location: str | None) -> None:
    assert "in which file" in refusal(model_with(stub(location)), folder)
    with pytest.raises(ModelError, match="empty location"):
        resolve_external(folder, "")


def _symlink(folder: Path) -> None:
    (folder / "bad").symlink_to("../secret")


def _symlink_inside(folder: Path) -> None:
    (folder / "bad").symlink_to("w.data")


def _hardlink(folder: Path) -> None:
    os.link(folder.parent / "secret", folder / "bad")


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "bad")


def _device(folder: Path) -> None:
    (folder / "bad").symlink_to("/dev/zero")


def _directory(folder: Path) -> None:
    (folder / "bad").mkdir()


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_symlink, "cp -L"),
        (_symlink_inside, "cp -L"),
        (_hardlink, "cp -L"),
        (_fifo, "not a regular file"),
        (_device, "symbolic link"),
        (_directory, "not a regular file"),
    ],
)
def test_refuses_what_is_not_a_file_by_itself(
    folder: Path, make: Callable[[Path], None], said: str
) -> None:
    make(folder)
    assert said in refusal(model_with(stub("bad")), folder)


def test_a_link_on_the_way(folder: Path) -> None:
    (folder / "out").symlink_to("..")
    assert "symbolic link" in refusal(model_with(stub("out/secret")), folder)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"length": 60}, "60 bytes"),
        ({"length": 0}, "0 bytes"),
        ({"length": 68}, "68 bytes"),
        ({"offset": 1}, "bytes 1 to 65"),
        ({"offset": 64}, "truncated"),
        ({"offset": 2**62, "length": 64}, "truncated"),
        ({"offset": -1}, "not a number"),
        ({"offset": "1e3"}, "not a number"),
        ({"offset": "1_0"}, "not a number"),
        ({"offset": "٣"}, "not a number"),
        ({"offset": " 0"}, "not a number"),
        ({"offset": ""}, "not a number"),
        ({"length": "9" * 400}, "not a number"),
    ],
)
def test_offsets_and_lengths(folder: Path, entries: dict[str, object], said: str) -> None:
    assert said in refusal(model_with(stub("w.data", **entries)), folder)


def test_a_missing_length_means_what_the_shape_needs(folder: Path) -> None:
    (folder / "long.data").write_bytes(bytes(500))
    check_external(model_with(stub("long.data", offset=100)), folder)
    assert next(external_tensors(model_with(stub("long.data")))).length == 64


def test_an_empty_tensor_needs_nothing(folder: Path) -> None:
    (folder / "empty.data").write_bytes(b"")
    tensor = stub("empty.data", length=0)
    tensor.dims[0] = 0
    check_external(model_with(tensor), folder)


def test_packed_elements(folder: Path) -> None:
    tensor = stub("w.data", length=32)
    tensor.dims[0] = 63
    tensor.data_type = TensorProto.INT4
    check_external(model_with(tensor), folder)
    tensor.dims[0] = 65
    assert "33" in refusal(model_with(tensor), folder)


def test_one_key_with_two_values(folder: Path) -> None:
    tensor = stub("w.data")
    tensor.external_data.add(key="location", value="sub/sub")
    assert "twice" in refusal(model_with(tensor), folder)


def test_strings_and_no_type(folder: Path) -> None:
    for kind in (TensorProto.STRING, TensorProto.UNDEFINED, 77):
        tensor = stub("w.data")
        tensor.data_type = kind
        assert "no type" in refusal(model_with(tensor), folder)


def test_a_model_without_a_place(folder: Path) -> None:
    assert "from its path" in refusal(model_with(stub("w.data")), None)


def _in_attribute(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.node.add(op_type="Constant", output=["c"]).attribute.add(
        name="value", type=AttributeProto.TENSOR, t=bad
    )


def _in_attribute_of_unknown_kind(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.node[0].attribute.add(name="hidden", t=bad)


def _in_tensors(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.node[0].attribute.add(name="many", type=AttributeProto.TENSORS, tensors=[bad])


def _in_sparse_values(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.sparse_initializer.add(dims=[16]).values.CopyFrom(bad)


def _in_sparse_indices(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.sparse_initializer.add(dims=[16]).indices.CopyFrom(bad)


def _in_sparse_attribute(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.node[0].attribute.add(
        name="s", type=AttributeProto.SPARSE_TENSOR
    ).sparse_tensor.indices.CopyFrom(bad)


def _in_sparse_tensors(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.graph.node[0].attribute.add(
        name="s", type=AttributeProto.SPARSE_TENSORS
    ).sparse_tensors.add().values.CopyFrom(bad)


def _in_body(model: onnx.ModelProto, bad: TensorProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="body", type=AttributeProto.GRAPH)
    attribute.g.initializer.append(bad)


def _in_bodies(model: onnx.ModelProto, bad: TensorProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="bodies", type=AttributeProto.GRAPHS)
    attribute.graphs.add().initializer.append(bad)


def _in_function(model: onnx.ModelProto, bad: TensorProto) -> None:
    node = model.functions.add(name="f").node.add(op_type="Constant")
    node.attribute.add(name="value", type=AttributeProto.TENSOR, t=bad)


def _in_function_default(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.functions.add(name="f").attribute_proto.add(
        name="value", type=AttributeProto.TENSOR, t=bad
    )


def _in_function_body(model: onnx.ModelProto, bad: TensorProto) -> None:
    node = model.functions.add(name="f").node.add(op_type="If")
    attribute = node.attribute.add(name="then_branch", type=AttributeProto.GRAPH)
    attribute.g.initializer.append(bad)


def _in_training(model: onnx.ModelProto, bad: TensorProto) -> None:
    model.training_info.add().algorithm.initializer.append(bad)


def _in_training_attribute(model: onnx.ModelProto, bad: TensorProto) -> None:
    node = model.training_info.add().initialization.node.add(op_type="Constant")
    node.attribute.add(name="value", type=AttributeProto.TENSOR, t=bad)


@pytest.mark.parametrize(
    "hide",
    [
        _in_attribute,
        _in_attribute_of_unknown_kind,
        _in_tensors,
        _in_sparse_values,
        _in_sparse_indices,
        _in_sparse_attribute,
        _in_sparse_tensors,
        _in_body,
        _in_bodies,
        _in_function,
        _in_function_default,
        _in_function_body,
        _in_training,
        _in_training_attribute,
    ],
)
def test_every_tensor_is_looked_at(
    folder: Path, hide: Callable[[onnx.ModelProto, TensorProto], None]
) -> None:
    model = model_with(stub("w.data"))
    hide(model, stub("../secret"))
    assert "leads out" in refusal(model, folder)


def test_reads_what_onnx_wrote(tmp_path: Path) -> None:
    weights = np.arange(1000, dtype=np.float32)
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1000], weights.tobytes(), raw=True)
    path = tmp_path / "m.onnx"
    onnx.save(
        model_with(tensor), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    written = onnx.load(path, load_external_data=False)
    check_external(written, tmp_path)
    assert [(each.location, each.length) for each in external_tensors(written)] == [
        ("m.data", 4000)
    ]
