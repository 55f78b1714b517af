"""The tree of commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from typing import TYPE_CHECKING

import click

from onnxcomp import __version__, stages
from onnxcomp.cli.command import Group
from onnxcomp.cli.lines import say
from onnxcomp.cli.settings import Settings, everywhere
from onnxcomp.cli.worker import Interrupted, Publisher
from onnxcomp.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.cli.shared import SharedState

# Groups that find their commands in the registry of passes.
_FAMILIES = frozenset({"quantize", "prune", "convert", "apply"})
COMMANDS = {
    name: f"onnxcomp.cli.{'family' if name in _FAMILIES else name}:{name}"
    for name in (
        "compress",
        "optimize",
        "quantize",
        "prune",
        "convert",
        "apply",
        "run",
        "compare",
        "bench",
        "inspect",
        "lint",
        "sensitivity",
        "passes",
        "targets",
        "explain",
        "demo",
    )
}
# A reader that went away, as the shell counts it.
BROKEN_PIPE = 128 + 13
USER_ERROR, USAGE_ERROR = 1, 2


@click.command(cls=Group, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="onnxcomp %(version)s")
@everywhere
def cli() -> None:
    """Makes any ONNX model smaller and faster on the runtime it is deployed on, and proves that it works.

    Exit codes: 0 done, 1 error, 2 wrong usage, 3 a limit on accuracy, size or speed was missed,
    130 interrupted.
    """


def run(arguments: Sequence[str], shared: SharedState | None = None) -> int:
    """Runs one command line and returns its exit code.

    Args:
        arguments: The words after the program's name.
        shared: Where to publish what is being done, when somebody watches.
    """
    settings = Settings()
    if shared is not None:
        settings.publisher = Publisher(shared)
        stages.BOARD.listener = settings.publisher.publish
    settings.debug = "--debug" in arguments
    if not sys.warnoptions and not settings.debug:
        # Warnings of libraries are about their use, not about the user's model.
        warnings.simplefilter("ignore")
    _choose_characters()
    code = _guarded(arguments, settings)
    return _flushed(code)


def _guarded(arguments: Sequence[str], settings: Settings) -> int:
    try:
        return _invoke(list(arguments), settings)
    except UserError as error:
        _trace(settings)
        notes = "; ".join(getattr(error, "__notes__", []))
        say(f"{error}; {notes}" if notes else str(error), prefix="error: ")
        return error.exit_code
    except click.ClickException as error:
        say(_usage_text(error), prefix="error: ")
        return USAGE_ERROR if isinstance(error, click.UsageError) else USER_ERROR
    except Interrupted:
        raise
    except (KeyboardInterrupt, click.Abort):
        say("interrupted")
        return 130
    except BrokenPipeError:
        return _reader_is_gone()
    except MemoryError:
        _trace(settings)
        say(f"out of memory{_in_stage()}", prefix="error: ")
        return USER_ERROR
    except OSError as error:
        _trace(settings)
        say(_system_text(error), prefix="error: ")
        return USER_ERROR
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback for users
        _trace(settings)
        first = next(iter(str(error).strip().splitlines()), "")
        text = f"{type(error).__name__}: {first}" if first else type(error).__name__
        say(
            f"internal error{_in_stage()}: {text}; run with --debug for the trace", prefix="error: "
        )
        return USER_ERROR


def _invoke(arguments: list[str], settings: Settings) -> int:
    if "_ONNXCOMP_COMPLETE" in os.environ:
        cli.main(arguments, prog_name="onnxcomp")
    try:
        with cli.make_context("onnxcomp", arguments, obj=settings) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return USAGE_ERROR
    return result if isinstance(result, int) else 0


def _usage_text(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    if isinstance(error, click.UsageError) and error.ctx is not None:
        return f"{text} (see '{error.ctx.command_path} --help')"
    return text


def _system_text(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    return f"{error.filename}: {reason}" if error.filename else f"{reason}{_in_stage()}"


def _in_stage() -> str:
    stage = stages.current_stage()
    return f" in {stage}" if stage else ""


def _trace(settings: Settings) -> None:
    if settings.debug:
        traceback.print_exc()


def _choose_characters() -> None:
    """Keeps to ASCII where the user's locale says so; never fails on a letter that cannot be shown."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            encoding = "ascii" if locale in {"C", "POSIX"} else None
            reconfigure(encoding=encoding, errors="backslashreplace")


def _flushed(code: int) -> int:
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        return _reader_is_gone()
    except OSError as error:
        _silence_stdout()
        say(
            f"cannot write to standard output: {(error.strerror or str(error)).lower()}",
            prefix="error: ",
        )
        return code or USER_ERROR
    return code


def _reader_is_gone() -> int:
    _silence_stdout()
    return BROKEN_PIPE


def _silence_stdout() -> None:
    """Lets what is still buffered go nowhere, so that the interpreter can end quietly."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
