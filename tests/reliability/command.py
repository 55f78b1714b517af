"""Running the real command, watcher and all, quickly: each run is forked from a process that has everything loaded."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import stat
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

FORK = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if FORK is not None:
    FORK.set_forkserver_preload(["tests.reliability.preload"])


@dataclass(frozen=True)
class Ended:
    """What a command left behind.

    Attributes:
        code: Exit code, negative for a signal.
        out: Standard output.
        err: Standard error.
        seconds: How long it took.
    """

    code: int
    out: str
    err: str
    seconds: float


def onnxcomp(
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    limit: float = 60,
) -> Ended:
    """Runs the command line to its end."""
    assert FORK is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        words = [str(argument) for argument in arguments]
        process = FORK.Process(
            target=_be_command, args=(words, str(out), str(err), cwd and str(cwd), environment)
        )
        start = time.monotonic()
        process.start()
        process.join(limit)
        seconds = time.monotonic() - start
        if process.exitcode is None:
            process.kill()
            process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        return Ended(code, _text(out), _text(err), seconds)


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace") if path.exists() else ""


def _be_command(
    words: Sequence[str],
    out: str,
    err: str,
    cwd: str | None,
    environment: Mapping[str, str] | None,
) -> None:
    for number, name in ((1, out), (2, err)):
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(descriptor, number)
    if cwd:
        os.chdir(cwd)
    os.environ.update(environment or {})
    sys.argv = ["onnxcomp", *words]
    from onnxcomp.cli.main import main

    code = main()
    sys.stdout.flush()
    os._exit(code)


def refusal(ended: Ended) -> str:
    """Fails unless a command refused as it must: code 1, one line, nothing else; returns the line."""
    assert ended.code == 1, (ended.code, ended.err[-2000:], ended.out[-500:])
    assert "Traceback" not in ended.err
    assert "internal error" not in ended.err, ended.err
    lines = [line for line in ended.err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: "), ended.err
    assert lines[0].isprintable()
    assert len(lines[0]) < 1000
    assert ended.out == ""
    return lines[0]


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder and below, contents included; pipes and links are not followed."""
    return dict(_entries(folder))


def _entries(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        kind = stat.filemode(status.st_mode)
        if stat.S_ISREG(status.st_mode):
            kind += hashlib.sha256(path.read_bytes()).hexdigest()
        elif stat.S_ISLNK(status.st_mode):
            kind += str(path.readlink())
        yield str(path.relative_to(folder)), kind
