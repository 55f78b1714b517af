"""Reading model files: what is opened at all, and what is said about what is not a model."""

from __future__ import annotations

import os
import socket
import zipfile
from typing import TYPE_CHECKING

import onnx
import pytest
from onnx import parser

from onnxcomp.errors import ModelError, UserError
from onnxcomp.ir.guard import check_model, read_model

if TYPE_CHECKING:
    from pathlib import Path

MODEL = parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 13]>
    g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
      [first] a = Relu (x)
      [second] y = Add (a, w)
    }
""")
BYTES = MODEL.SerializeToString()


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_model(path)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_reads_a_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(BYTES)
    assert read_model(path) == MODEL
    assert read_model(str(path)) == MODEL


def test_the_model_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(BYTES)
    model = read_model(path)
    path.write_bytes(b"\0" * len(BYTES))
    assert model == MODEL


def test_a_link_to_the_model_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.onnx").write_bytes(BYTES)
    link = tmp_path / "link.onnx"
    link.symlink_to("real.onnx")
    assert read_model(link) == MODEL


def test_external_data_is_not_read(tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODEL)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    assert read_model(path).graph.initializer[0].external_data[0].value == "nowhere"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "PNG"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 50, "JPEG"),
        (b"hello, I am a text file\n" * 20, "text"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1c\0\0\0TFL3" + b"\0" * 40, "TensorFlow Lite"),
        (b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32"}}', "safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"\x7fELF\x02\x01", "program"),
        (b"\xff" * 100, "truncated or corrupt"),
        (b"\x08\x08", "truncated or corrupt"),  # parses, but holds no graph
    ],
)
def test_says_what_it_is_instead(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("member", "said"),
    [("archive/data.pkl", "PyTorch"), ("x.npy", "npz"), ("a.onnx", "zip archive")],
)
def test_tells_archives_apart(tmp_path: Path, member: str, said: str) -> None:
    path = tmp_path / "m.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, "x")
    assert said in refusal(path)


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.onnx")


def test_a_folder_with_a_model_in_it(tmp_path: Path) -> None:
    (tmp_path / "inner.onnx").write_bytes(BYTES)
    assert "inner.onnx" in refusal(tmp_path)


@pytest.mark.timeout(10)
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    assert "not a regular file" in refusal(tmp_path / "pipe.onnx")


def test_a_socket_is_not_opened(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert "not a regular file" in refusal(tmp_path / "s")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_not_opened(device: str, tmp_path: Path) -> None:
    link = tmp_path / "m.onnx"
    link.symlink_to(device)
    assert "not a regular file" in refusal(link)


def test_above_two_gibibytes(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    assert "external data" in refusal(path)


def test_a_link_that_leads_nowhere_or_in_circles(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "cannot read" in refusal(tmp_path / "a")


def test_a_name_with_nul_and_one_with_escapes(tmp_path: Path) -> None:
    assert "not a file name" in refusal(tmp_path / "a\0b")
    assert "\x1b" not in refusal(tmp_path / "\x1b[31mred\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(BYTES)
    path.chmod(0)
    assert "permission denied" in refusal(path)


def test_every_truncation_is_refused_or_a_valid_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    accepted = []
    for cut in range(len(BYTES)):
        path.write_bytes(BYTES[:cut])
        try:
            check_model(read_model(path), tmp_path)
        except ModelError:
            continue
        accepted.append(cut)
    # Cut between its last fields a model is still one: the opset comes last here, so none is.
    assert accepted == []


def test_two_files_in_one_are_not_merged_silently(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(BYTES + BYTES)
    with pytest.raises(ModelError, match="two inputs"):
        check_model(read_model(path), tmp_path)
