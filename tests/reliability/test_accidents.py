"""Never half: full disks, read-only folders, signals and kill -9 leave all or nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp.errors import UserError
from onnxcomp.ir import Model, streaming
from onnxcomp.ir.storage import save
from tests.helpers.text import model
from tests.reliability.command import onnxcomp, refusal, snapshot
from tests.reliability.hostile import GOOD, good

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

FOLDABLE = """
    g (float[2] x) => (float[2] y) <float[2] w> { a = Neg (w) b = Identity (x) y = Add (b, a) }
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A model that optimize changes."""
    path = tmp_path / "m.onnx"
    path.write_bytes(model(FOLDABLE).SerializeToString())
    return path


def large(path: Path, *, external: bool) -> Path:
    """A model of a few megabytes, so that writing takes a moment."""
    proto = model("g (float[1024] x) => (float[1024] y) <float[1024, 1024] w> { a = MatMul (x, w) b = Identity (a) y = Relu (b) }")  # fmt: skip
    if external:
        onnx.save_model(proto, path, save_as_external_data=True, location="weights.bin")
    else:
        path.write_bytes(proto.SerializeToString())
    return path


# ---------------------------------------------------------------- places that cannot be written


@pytest.mark.parametrize(
    "target",
    ["m.onnx", "./m.onnx", "sub/../m.onnx", "link.onnx", "hard.onnx", "sub", "none/out.onnx", "m.onnx/out.onnx",
     "pipe", "/dev/null", "/dev/full", "", "o" * 300],
)  # fmt: skip
def test_outputs_that_are_refused(source: Path, target: str) -> None:
    folder = source.parent
    (folder / "sub").mkdir()
    (folder / "link.onnx").symlink_to("m.onnx")
    os.link(source, folder / "hard.onnx")
    os.mkfifo(folder / "pipe")
    before = snapshot(folder)
    ended = onnxcomp("optimize", "m.onnx", "-o", target, cwd=folder)
    refusal(ended)
    assert snapshot(folder) == before
    assert ended.seconds < 30
    assert Path("/dev/null").is_char_device()


def test_the_report_may_not_replace_the_model(source: Path) -> None:
    before = snapshot(source.parent)
    refusal(onnxcomp("optimize", source, "-o", source.parent / "o.onnx", "--report", source))
    assert snapshot(source.parent) == before


def test_in_place_replaces_the_model_and_nothing_else(source: Path) -> None:
    before = source.read_bytes()
    assert onnxcomp("optimize", source, "--in-place").code == 0
    assert [path.name for path in source.parent.iterdir()] == ["m.onnx"]
    assert source.read_bytes() != before
    onnx.checker.check_model(source)


def test_a_link_as_output_is_replaced_and_not_followed(source: Path) -> None:
    other = source.parent / "precious"
    other.write_bytes(b"precious")
    (source.parent / "out.onnx").symlink_to(other)
    assert onnxcomp("optimize", source, "-o", source.parent / "out.onnx").code == 0
    assert other.read_bytes() == b"precious"
    assert not (source.parent / "out.onnx").is_symlink()


def _mounted(folder: Path, options: str) -> bool:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(words, check=False, capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte, where the user may mount one."""
    folder = tmp_path / "disk"
    if not _mounted(folder, "size=1m"):
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("external", [False, True])
def test_a_full_disk(tmp_path: Path, small_disk: Path, external: bool) -> None:
    (tmp_path / "in").mkdir()
    source = large(tmp_path / "in" / "m.onnx", external=external)
    before = snapshot(tmp_path / "in")
    line = refusal(onnxcomp("optimize", source, "-o", small_disk / "out.onnx"))
    assert "space" in line
    assert list(small_disk.iterdir()) == []
    assert snapshot(tmp_path / "in") == before
    assert shutil.disk_usage(small_disk).used < 100_000


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, small_disk: Path) -> None:
    source = large(tmp_path / "m.onnx", external=False)
    target = good(small_disk / "out.onnx")
    before = target.read_bytes()
    refusal(onnxcomp("optimize", source, "-o", target))
    assert target.read_bytes() == before
    assert list(small_disk.iterdir()) == [target]


def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    if not _mounted(folder, "size=1m"):
        pytest.skip("needs the right to mount")
    try:
        source = good(folder / "m.onnx")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        refusal(onnxcomp("optimize", source, "-o", folder / "out.onnx"))
        refusal(onnxcomp("optimize", source, "--in-place"))
        assert onnxcomp("inspect", source).code == 0
        assert onnxcomp("optimize", source, "-o", tmp_path / "out.onnx").code == 0
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_without_home_temporary_folder_and_locale(source: Path) -> None:
    nowhere = {"HOME": "/nonexistent", "TMPDIR": "/nonexistent", "LC_ALL": "C"}
    ended = onnxcomp("optimize", source, "-o", "out.onnx", cwd=source.parent, environment=nowhere)
    assert (ended.code, ended.err) == (0, "")


def test_above_two_gibibytes_inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What protobuf raises then is an error of its own kind, and no ValueError."""
    from google.protobuf.message import EncodeError  # type: ignore[import-untyped]

    def too_large() -> None:
        raise EncodeError("Failed to serialize proto")

    loaded = Model.load(model(GOOD))
    for patched, name, value in (
        (loaded, "to_proto", too_large),
        (streaming, "PROTO_BYTES", 20),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(patched, name, value)
            with pytest.raises(UserError, match="above 2 GiB"):
                save(loaded, tmp_path / "out.onnx", in_place=False, external=False)
        assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- the end at any moment


def start(*words: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "onnxcomp.cli.main", *(str(word) for word in words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _assert_all_or_nothing(folder: Path, source: Path, before: dict[str, str]) -> bool:
    """Fails unless the inputs are as they were and the output is complete or absent."""
    now = snapshot(folder)
    new = set(now) - set(before)
    assert {name: now[name] for name in before} == before
    assert new in (set(), {"out.onnx"}, {"out.onnx", "out.onnx.data"}), new
    if "out.onnx" not in new:
        return False
    written = Model.load(folder / "out.onnx")
    assert written.nbytes == Model.load(source).nbytes
    return True


@pytest.mark.parametrize("external", [False, True])
def test_kill_at_any_moment(tmp_path: Path, external: bool) -> None:
    """The watcher is killed outright; the janitor ends the worker."""
    source = large(tmp_path / "m.onnx", external=external)
    rng = np.random.default_rng(7)
    before = snapshot(tmp_path)
    clock = time.monotonic()
    process = start("optimize", source, "-o", tmp_path / "out.onnx", "--no-verify")
    process.communicate(timeout=60)
    whole = time.monotonic() - clock
    assert _assert_all_or_nothing(tmp_path, source, before)
    for _ in range(6):
        for name in ("out.onnx", "out.onnx.data"):
            (tmp_path / name).unlink(missing_ok=True)
        process = start("optimize", source, "-o", tmp_path / "out.onnx", "--no-verify")
        time.sleep(float(rng.uniform(0.3, 1.0)) * whole)
        process.kill()
        process.communicate(timeout=60)
        _wait_for_quiet(tmp_path)
        _assert_all_or_nothing(tmp_path, source, before)


def _wait_for_quiet(folder: Path) -> None:
    """Waits until nobody has a file of a folder open, or mapped."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _users(folder):
        time.sleep(0.02)


def _users(folder: Path) -> bool:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(folder) in entry.read_bytes():
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time\ndef feeds():\n    time.sleep(60)\n    yield {}\n")
    source = good(tmp_path / "m.onnx")
    before = snapshot(tmp_path)
    process = start("optimize", source, "--data", f"{script}:feeds", "-o", tmp_path / "out.onnx")
    time.sleep(1.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert out == b""
    assert err.count(b"\n") == 1
    assert b"Traceback" not in err
    after = {name: kind for name, kind in snapshot(tmp_path).items() if "__pycache__" not in name}
    assert after == before


def test_time_limit(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time\ndef feeds():\n    time.sleep(60)\n    yield {}\n")
    source = good(tmp_path / "m.onnx")
    line = refusal(
        onnxcomp(
            "optimize",
            source,
            "--data",
            f"{script}:feeds",
            "-o",
            tmp_path / "out.onnx",
            "--time-limit",
            "1",
        )
    )
    assert "--time-limit" in line
    assert not (tmp_path / "out.onnx").exists()


def test_memory_limit(tmp_path: Path) -> None:
    script = tmp_path / "greedy.py"
    script.write_text(
        "def feeds():\n    keep = []\n    while True:\n        keep.append(b'x' * 2**24)\n    yield {}\n"
    )
    source = good(tmp_path / "m.onnx")
    line = refusal(
        onnxcomp(
            "optimize",
            source,
            "--data",
            f"{script}:feeds",
            "-o",
            tmp_path / "out.onnx",
            "--memory-limit",
            "1G",
        )
    )
    assert "--memory-limit" in line
    assert not (tmp_path / "out.onnx").exists()


def test_a_crash_in_native_code(tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text("import ctypes\ndef feeds():\n    ctypes.string_at(0)\n    yield {}\n")
    source = good(tmp_path / "m.onnx")
    line = refusal(
        onnxcomp("optimize", source, "--data", f"{script}:feeds", "-o", tmp_path / "out.onnx")
    )
    assert "SIGSEGV" in line
    assert not (tmp_path / "out.onnx").exists()
