"""The tree of commands: help, errors as lines, exit codes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import fields
from typing import TYPE_CHECKING

import click
import pytest

from onnxcomp import __version__, stages
from onnxcomp.cli import app
from onnxcomp.cli.command import Command, Group
from onnxcomp.cli.settings import CEILINGS, everywhere, seconds, share, size
from onnxcomp.errors import GateMissedError, UserError
from onnxcomp.ir.budget import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]

ONNXCOMP = [sys.executable, "-m", "onnxcomp.cli.main"]


def process(
    *arguments: str, stdout: int | None = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ONNXCOMP, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Makes `onnxcomp fail` raise an error in the stage "loading"."""

    def install(error: BaseException) -> None:
        @click.command("fail", cls=Command)
        @everywhere
        def fail() -> None:
            with stages.stage("loading"):
                raise error

        monkeypatch.setitem(app.cli.commands, "fail", fail)

    return install


def test_version_is_quick_to_say_and_imports_no_onnx() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "onnxcomp.cli.main", "--version"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONNXCOMP_NO_SUPERVISOR": "1"},
    )
    assert done.stdout == f"onnxcomp {__version__}\n"
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"onnx", "onnxruntime", "numpy", "pydantic", "rich", "onnx_ir"}


def test_the_watcher_imports_next_to_nothing() -> None:
    code = "import sys, onnxcomp.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"click", "numpy", "onnx", "ctypes", "subprocess", "json"}


def test_help_lists_every_command_without_importing_onnx() -> None:
    code = (
        "import sys; from onnxcomp.cli.app import run; code = run(['--help'])\n"
        "assert not {'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    names = [line.split()[0] for line in lines if line[2] != " "]
    assert names == list(app.COMMANDS)
    assert "..." not in "".join(lines)


@pytest.mark.parametrize("name", [*app.COMMANDS, "passes show", "quantize"])
def test_every_command_explains_itself(name: str, command: Run) -> None:
    done = command(*name.split(), "--help")
    assert done.code == 0
    assert done.err == ""
    assert done.out.startswith(f"Usage: onnxcomp {name} ")
    assert "--json" in done.out.partition("Options of every command:")[2]


def test_help_of_optimize(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("optimize", "-h").out.partition("Options:")
    assert (
        shown[0]
        == """\
Usage: onnxcomp optimize [OPTIONS] MODEL

  Simplifies MODEL without changing what it computes.

  Folds constants, fuses batch normalisations into weights, removes what has
  no effect and what is there twice. With --data the result is verified on
  these samples, else on made-up inputs. With --input-shape and --batch the
  result takes inputs of these sizes only, and shape arithmetic goes.

"""
    )
    assert "-o, --output FILE" in shown[2]


def test_indented_parts_of_help_keep_their_lines(command: Run) -> None:
    shown = command("run", "-h").out
    assert "      onnxcomp run recipe.toml model.onnx -o out.onnx\n" in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["expain"],
            "error: no command 'expain'; did you mean 'explain'? (see 'onnxcomp --help')\n",
        ),
        (["zzz"], "error: no command 'zzz' (see 'onnxcomp --help')\n"),
        (["--zzz"], "error: no such option '--zzz' (see 'onnxcomp --help')\n"),
        (["optimize"], "error: missing argument 'MODEL' (see 'onnxcomp optimize --help')\n"),
        (
            ["optimize", "a.onnx"],
            "error: where shall the result go? give -o, for example -o a.small.onnx, or --in-place "
            "(see 'onnxcomp optimize --help')\n",
        ),
        (
            ["compress", "a.onnx", "-o", "b.onnx"],
            "error: compress needs samples: give --data, for example --data samples/ "
            "(see 'onnxcomp compress --help')\n",
        ),
        (
            ["explain", "--time-limit", "soon"],
            "error: invalid value for '--time-limit': 'soon' is not a time such as 90, 90s, 5m or 1h "
            "(see 'onnxcomp explain --help')\n",
        ),
        (
            ["run", "a.onnx", "-o", "b.onnx"],
            "error: give a recipe and a model, or --passes and a model (see 'onnxcomp run --help')\n",
        ),
        (
            ["inspect", "a.onnx", "--dim", "batch"],
            "error: invalid value for '--dim': 'batch' is not of the form NAME=SIZE "
            "(see 'onnxcomp inspect --help')\n",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], line: str, command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(*arguments) == (2, "", line)


def test_no_command_shows_the_help_and_is_wrong_usage(command: Run) -> None:
    done = command()
    assert done.code == 2
    assert "Commands:" in done.out


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such thing", hint="look"), 1, "error: no such thing (look)\n"),
        (GateMissedError("too slow"), 3, "error: too slow\n"),
        (UserError("two\nlines \x1b[31mred\x1b"), 1, "error: two lines \\x1b[31mred\\x1b\n"),
        (
            ValueError("bad\nmore"),
            1,
            "error: internal error in loading: ValueError: bad; run with --debug for the trace\n",
        ),
        (
            RecursionError(),
            1,
            "error: internal error in loading: RecursionError; run with --debug for the trace\n",
        ),
        (MemoryError(), 1, "error: out of memory in loading\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.onnx"),
            1,
            "error: x.onnx: no space left on device\n",
        ),
        (OSError(errno.EIO, "I/O error"), 1, "error: i/o error in loading\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_errors_are_one_line(
    error: BaseException,
    code: int,
    line: str,
    command: Run,
    failing: Callable[[BaseException], None],
) -> None:
    failing(error)
    assert command("fail") == (code, "", line)


def test_notes_of_an_error_are_part_of_its_line(
    command: Run, failing: Callable[[BaseException], None]
) -> None:
    error = UserError("broken")
    error.add_note("in step 3")
    failing(error)
    assert command("fail").err == "error: broken; in step 3\n"


def test_debug_shows_the_trace(command: Run, failing: Callable[[BaseException], None]) -> None:
    failing(ValueError("bad"))
    for arguments in (["--debug", "fail"], ["fail", "--debug"]):
        done = command(*arguments)
        assert done.code == 1
        assert done.err.startswith("Traceback")
        assert "internal error in loading: ValueError: bad" in done.err


def test_common_options_count_before_and_after_the_command(command: Run) -> None:
    for arguments in (["--json", "explain", "GEN101"], ["explain", "GEN101", "--json"]):
        done = command(*arguments)
        assert json.loads(done.out)["code"] == "GEN101"


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = f"{sys.executable} -m onnxcomp.cli.main explain | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert int(done.stdout) in (0, 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = process("explain", stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr == "error: cannot write to standard output: no space left on device\n"


def test_plain_locale_gets_plain_letters(tmp_path: Path) -> None:
    done = process("inspect", str(tmp_path / "größe\n.onnx"), LC_ALL="C")
    assert done.returncode == 1
    assert done.stderr.isascii()
    assert done.stderr.count("\n") == 1


def test_a_crash_in_a_command_is_one_line(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from onnxcomp.cli import main, app, explain\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "explain._codes = die\n"
        "sys.argv = ['onnxcomp', 'explain', 'GEN101']\n"
        "sys.exit(main.main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: onnxcomp explain died: SIGSEGV")
    assert done.stderr.count("\n") == 1


def test_groups_find_commands_of_their_own() -> None:
    group = Group(name="g")
    group.add_command(click.Command("one"))
    context = click.Context(group)
    assert group.list_commands(context) == ["one"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("8G", 8 << 30), ("512m", 512 << 20), ("1.5GiB", 3 << 29), ("100", 100), ("2 kB", 2048)],
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize(("text", "value"), [("90", 90), ("1.5s", 1.5), ("5m", 300), ("1h", 3600)])
def test_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), ("0.5", 0.5), (".5%", 0.005), ("0", 0)])
def test_shares(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("read", [size, seconds, share])
@pytest.mark.parametrize("text", ["", "x", "-1", "1x", "1..5", "101%", "nan"])
def test_nonsense_is_refused(read: Callable[[str], float], text: str) -> None:
    with pytest.raises(click.BadParameter):
        read(text)


@pytest.mark.parametrize("read", [size, seconds])
def test_limits_of_nothing_are_refused(read: Callable[[str], float]) -> None:
    with pytest.raises(click.BadParameter):
        read("0")


def test_limits_of_the_command_line_are_those_of_the_library() -> None:
    library = {field.name.replace("_", "-"): field.default for field in fields(Limits)}
    assert {name: default for name, (default, _) in CEILINGS.items()} == library
