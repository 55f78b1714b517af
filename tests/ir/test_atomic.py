"""Writing: a file is absent or complete, and nothing else is left behind."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from onnxcomp import stages
from onnxcomp.errors import UserError
from onnxcomp.ir import atomic
from onnxcomp.ir.atomic import AtomicWriter, check_output, copy_range

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAMED = "on a file system without unnamed files"


@pytest.fixture(params=["unnamed", NAMED], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs every test both ways of writing."""
    if request.param == NAMED:
        monkeypatch.setattr(atomic, "_UNNAMED", 0)
    return str(request.param)


@pytest.fixture(autouse=True)
def nothing_is_announced_afterwards() -> Iterator[None]:
    yield
    assert not stages.BOARD.temporaries


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


# -- writing


def test_a_new_file(tmp_path: Path) -> None:
    with AtomicWriter(tmp_path / "m.onnx") as writer:
        writer.open().write(b"model")
        assert "m.onnx" not in contents(tmp_path)
    assert contents(tmp_path) == {"m.onnx": b"model"}


def test_a_file_that_is_there_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"a long old model")
    path.chmod(0o640)
    with path.open("rb") as reader:
        with AtomicWriter(path) as writer:
            writer.open().write(b"new")
            assert path.read_bytes() == b"a long old model"
        assert reader.read() == b"a long old model"
    assert contents(tmp_path) == {"m.onnx": b"new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_data_and_model(tmp_path: Path) -> None:
    for turn in (b"1", b"2"):
        with AtomicWriter(tmp_path / "m.onnx", durable=False) as writer:
            model = writer.open()
            data = writer.open(tmp_path / "m.onnx.data")
            data.write(b"weights" + turn)
            model.write(b"model" + turn)
        assert contents(tmp_path) == {"m.onnx": b"model" + turn, "m.onnx.data": b"weights" + turn}


def test_the_model_gets_its_name_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    publish = atomic.OutputFile.publish

    def spy(self: atomic.OutputFile) -> None:
        order.append(self.path.name)
        publish(self)

    monkeypatch.setattr(atomic.OutputFile, "publish", spy)
    with AtomicWriter(tmp_path / "m.onnx") as writer:
        for name in ("m.onnx", "b.data", "a.data"):
            writer.open(tmp_path / name).write(b"x")
    assert order == ["b.data", "a.data", "m.onnx"]


def test_gaps_read_as_zeros(tmp_path: Path) -> None:
    with AtomicWriter(tmp_path / "m") as writer:
        file = writer.open()
        file.write(b"ab")
        file.seek(6)
        file.write(memoryview(b"cd"))
        assert file.tell() == 8
    assert contents(tmp_path) == {"m": b"ab\0\0\0\0cd"}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with AtomicWriter(tmp_path / "m") as writer:
            writer.open().write(b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == mode


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    (tmp_path / "m").symlink_to("precious")
    with AtomicWriter(tmp_path / "m") as writer:
        writer.open().write(b"model")
    assert contents(tmp_path) == {"precious": b"precious", "m": b"model"}
    assert not (tmp_path / "m").is_symlink()


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with AtomicWriter("m") as writer:
        writer.open().write(b"model")
    assert contents(tmp_path) == {"m": b"model"}


# -- failing


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("before", [{}, {"m": b"old", "m.data": b"old data"}])
def test_an_error_leaves_everything_as_it_was(
    tmp_path: Path, error: type[BaseException], before: dict[str, bytes]
) -> None:
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)

    def write() -> None:
        with AtomicWriter(tmp_path / "m") as writer:
            writer.open(tmp_path / "m.data").write(b"weights")
            writer.open().write(b"model")
            raise error

    with pytest.raises(error):
        write()
    assert contents(tmp_path) == before


def test_the_second_name_cannot_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish = atomic.OutputFile.publish

    def fail(self: atomic.OutputFile) -> None:
        if self.path.name == "m":
            raise OSError(errno.EIO, "Input/output error")
        publish(self)

    monkeypatch.setattr(atomic.OutputFile, "publish", fail)

    def write() -> None:
        with AtomicWriter(tmp_path / "m") as writer:
            writer.open(tmp_path / "m.data").write(b"weights")
            writer.open().write(b"model")

    assert "input/output error" in refusal(write)
    assert contents(tmp_path) == {}


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)

    def write() -> None:
        with AtomicWriter(tmp_path / "m") as writer:
            writer.open().write(b"model")

    assert "no space left" in refusal(write)
    assert contents(tmp_path) == {}


def test_a_system_that_cannot_name_unnamed_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: atomic.OutputFile, target: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "no /proc")

    monkeypatch.setattr(atomic.OutputFile, "_link", fail)
    with AtomicWriter(tmp_path / "m") as writer:
        writer.open().write(b"model" * 1000)
    assert contents(tmp_path) == {"m": b"model" * 1000}


CHILD = """
import os, sys, signal
from pathlib import Path
from onnxcomp.ir import atomic
folder = Path(sys.argv[1])
if sys.argv[2] == "naming":
    atomic.OutputFile.publish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
with atomic.AtomicWriter(folder / "m.onnx") as writer:
    writer.open(folder / "m.onnx.data").write(bytes(1 << 20))
    writer.open().write(b"model")
    if sys.argv[2] == "writing":
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["writing", "naming"])
@pytest.mark.parametrize("before", [{}, {"m.onnx": b"old", "m.onnx.data": b"old data"}])
def test_a_killed_process_leaves_nothing(
    tmp_path: Path, kind: str, when: str, before: dict[str, bytes]
) -> None:
    if kind == NAMED:
        pytest.skip("promised only where unnamed files exist; the command line's watcher cleans up")
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    child = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path), when], check=False)
    assert child.returncode == -signal.SIGKILL
    assert contents(tmp_path) == before


def test_temporary_names_are_announced(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").write_bytes(b"old")
    seen: list[str] = []
    monkeypatch.setattr(stages.BOARD, "listener", lambda: seen.extend(stages.BOARD.temporaries))
    with AtomicWriter(tmp_path / "m") as writer:
        writer.open().write(b"new")
        visible = [name for name in contents(tmp_path) if name != "m"]
        assert len(visible) == (kind == NAMED)
    assert len(set(seen)) == 1
    assert Path(seen[0]).parent == tmp_path


# -- refusing before work begins


def test_an_output_that_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"")
    check_output(tmp_path / "new", [], in_place=False)
    check_output(tmp_path / "old", [tmp_path / "missing input"], in_place=False)
    assert contents(tmp_path) == {"old": b""}


def test_the_input_under_any_name(tmp_path: Path) -> None:
    source = tmp_path / "in.onnx"
    source.write_bytes(b"model")
    (tmp_path / "link").symlink_to("in.onnx")
    os.link(source, tmp_path / "hard")
    (tmp_path / "sub").mkdir()
    for name in ("in.onnx", "link", "hard", "sub/../in.onnx"):
        path = tmp_path / name
        assert "--in-place" in refusal(partial(check_output, path, [source], in_place=False))
        check_output(path, [source], in_place=True)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing/m.onnx", "folder does not exist"),
        ("file/m.onnx", "its folder is a file"),
        ("", "it is a folder"),
        ("folder", "it is a folder"),
        ("folder/..", "it is a folder"),
        ("x" * 300, "name"),
        ("a\0b", "null"),
    ],
)
def test_places_that_cannot_be_written(tmp_path: Path, path: str, said: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    assert said in refusal(lambda: check_output(tmp_path / path, [], in_place=False))
    assert said in refusal(lambda: AtomicWriter(tmp_path / path).open())


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/full"])
def test_devices(tmp_path: Path, device: str) -> None:
    assert "not a regular file" in refusal(lambda: check_output(device, [], in_place=True))
    (tmp_path / "link").symlink_to(device)
    assert "not a regular file" in refusal(
        lambda: check_output(tmp_path / "link", [], in_place=True)
    )
    assert stat.S_ISCHR(Path(device).stat().st_mode)


@pytest.mark.timeout(10)
def test_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular" in refusal(lambda: check_output(tmp_path / "pipe", [], in_place=True))


def test_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Simulated: the tests may run as root, who may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "read-only" in refusal(lambda: check_output(tmp_path / "m", [], in_place=False))


def test_a_folder_that_becomes_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, flags: int, mode: int = 0) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", fail)
    assert "read-only file system" in refusal(lambda: AtomicWriter(tmp_path / "m").open())


# -- copying


@pytest.fixture(params=["kernel", "hand"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "hand":
        monkeypatch.setattr(atomic, "_copy_in_kernel", lambda *_: 0)
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("offset", "length"), [(0, 10_000), (0, 0), (4096, 4096), (17, 9_000)])
def test_copies_a_part_of_a_file(tmp_path: Path, offset: int, length: int) -> None:
    data = bytes(index * 7 % 251 for index in range(10_000))
    (tmp_path / "source").write_bytes(data)
    with (tmp_path / "source").open("rb") as source, AtomicWriter(tmp_path / "m") as writer:
        target = writer.open()
        target.write(b"head")
        copy_range(source.fileno(), target.fileno(), offset, length)
        target.write(b"tail")
    assert (tmp_path / "m").read_bytes() == b"head" + data[offset : offset + length] + b"tail"


@pytest.mark.usefixtures("way")
def test_a_source_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"short")

    def write() -> None:
        with (tmp_path / "source").open("rb") as source, AtomicWriter(tmp_path / "m") as writer:
            copy_range(source.fileno(), writer.open().fileno(), 0, 6)

    assert "ends early" in refusal(write)
    assert contents(tmp_path) == {"source": b"short"}


@pytest.mark.usefixtures("way")
def test_a_copy_onto_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"data")
    with (tmp_path / "source").open("rb") as source, Path("/dev/full").open("wb") as target:
        assert "no space left" in refusal(
            lambda: copy_range(source.fileno(), target.fileno(), 0, 4)
        )


def test_a_copy_between_kinds_of_files(tmp_path: Path) -> None:
    with Path("/proc/self/cmdline").open("rb") as source, AtomicWriter(tmp_path / "m") as writer:
        copy_range(source.fileno(), writer.open().fileno(), 0, 10)
    assert (tmp_path / "m").read_bytes() == Path("/proc/self/cmdline").read_bytes()[:10]
