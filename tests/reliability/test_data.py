"""Samples that cannot be used: one line, before any work, nothing unpickled, nothing unpacked without bound."""

from __future__ import annotations

import io
import os
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
from typing_extensions import override

from tests.helpers.text import model
from tests.reliability.command import onnxcomp, refusal, snapshot
from tests.reliability.hostile import good

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

QUANTIZABLE = (
    "g (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w> { a = MatMul (x, w) y = Relu (a) }"
)
RIGHT = np.ones((8, 2), np.float32)


class Payload:
    """Leaves a trace when it is unpickled."""

    @override
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("unpickled",))


def _npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _zip(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def _header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _with(value: float) -> np.ndarray:
    array = RIGHT.copy()
    array[3, 1] = value
    return array


BAD: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a zip archive\n" * 9,
    "truncated": lambda: _npz(x=RIGHT)[:-40],
    "damaged": lambda: _npz(x=RIGHT).replace(np.float32(1).tobytes(), b"\1\2\3\4", 1),
    "no arrays": lambda: _zip({}),
    "pickle": lambda: _npz(x=np.array([Payload()], dtype=object)),
    "bare pickle": lambda: _zip({"x.npy": b"\x80\x04\x95" + bytes(40)}),
    "not a number": lambda: _npz(x=_with(np.nan)),
    "infinity": lambda: _npz(x=_with(-np.inf)),
    "another name": lambda: _npz(image=RIGHT),
    "one name too many": lambda: _npz(x=RIGHT, ghost=RIGHT),
    "another shape": lambda: _npz(x=np.ones((8, 3), np.float32)),
    "another rank": lambda: _npz(x=np.ones((8, 1, 1, 2), np.float32)),
    "another type": lambda: _npz(x=np.array([["a", "b"]])),
    "complex": lambda: _npz(x=RIGHT.astype(np.complex64)),
    "no samples": lambda: _npz(x=np.ones((0, 2), np.float32)),
    "zip bomb": lambda: _zip({"x.npy": _npy(RIGHT) + bytes(1 << 30)}),
    "header that lies": lambda: _zip({"x.npy": _header("(9000000000000, 2)") + bytes(64)}),
    "header with code": lambda: _zip({"x.npy": _header("__import__('os').mkdir('unpickled')")}),
    "header that is long": lambda: _zip({"x.npy": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(99)}),
    "negative shape": lambda: _zip({"x.npy": _header("(-8, 2)") + bytes(64)}),
    "path in the name": lambda: _zip({"../x.npy": _npy(RIGHT)}),
    "very many members": lambda: _zip({f"{i}/x.npy": b"" for i in range(20_000)}),
}  # fmt: skip
LATE = ("damaged", "infinity", "not a number", "zip bomb")
COMMANDS = (
    ("optimize", "m.onnx", "-o", "out.onnx"),
    ("quantize", "static", "m.onnx", "-o", "out.onnx"),
    ("compress", "m.onnx", "-o", "out.onnx"),
    ("compare", "m.onnx", "m.onnx"),
    ("bench", "m.onnx"),
)


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """Made once, because it takes a moment to pack a gigabyte."""
    return BAD["zip bomb"]()


@pytest.mark.parametrize("index", range(len(BAD)), ids=list(BAD))
def test_unusable_data(tmp_path: Path, index: int, bomb: bytes) -> None:
    name = list(BAD)[index]
    (tmp_path / "m.onnx").write_bytes(model(QUANTIZABLE).SerializeToString())
    (tmp_path / "data.npz").write_bytes(bomb if name == "zip bomb" else BAD[name]())
    before = snapshot(tmp_path)
    # Optimize looks at two samples only and so need not notice what is wrong later.
    chosen = COMMANDS[1:4] if name in LATE else COMMANDS
    for command in (chosen[index % len(chosen)], chosen[(index + 2) % len(chosen)]):
        line = refusal(
            onnxcomp(*command, "--data", "data.npz", "--memory-limit", "1G", cwd=tmp_path)
        )
        assert "data.npz" in line or '"x"' in line or "ghost" in line or "image" in line, command
        assert "memory-limit" not in line
        assert snapshot(tmp_path) == before, command


@pytest.mark.parametrize("source", ["none.npz", "random:0", "random:x", "random:-1", "m.onnx", "empty", "pipe", "script.py:none", "script.py", "script.py:raises", "script.py:number"])  # fmt: skip
def test_unusable_sources(tmp_path: Path, source: str) -> None:
    good(tmp_path / "m.onnx")
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "script.py").write_text(
        "def raises():\n    raise RuntimeError('boo')\nnumber = 3\n"
    )
    before = snapshot(tmp_path)
    refusal(onnxcomp("optimize", "m.onnx", "-o", "out.onnx", "--data", source, cwd=tmp_path))
    after = {name: kind for name, kind in snapshot(tmp_path).items() if "__pycache__" not in name}
    assert after == before
