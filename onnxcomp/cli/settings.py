"""Options that every command understands, before and after its name."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import click
from typing_extensions import override

from onnxcomp.allowance import MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.cli.worker import Publisher

    Command = TypeVar("Command", bound=Callable[..., Any])

_BYTES = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# Limits on what a model may ask for: the defaults are those of `onnxcomp.ir.budget.Limits`.
CEILINGS = {
    "nodes": (1_000_000, "Nodes, with functions expanded"),
    "calls": (1_000_000, "Calls of functions, expanded"),
    "graph-depth": (64, "Bodies of If, Loop and Scan inside each other"),
    "function-depth": (64, "Functions that call each other in a chain"),
    "rank": (64, "Dimensions of a tensor"),
    "tensors": (1_000_000, "Initializers"),
}
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def size(text: str) -> int:
    """Reads a number of bytes: `8G`, `512MiB`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a size such as 512M or 8G")
    return int(float(match[1]) * _BYTES[match[2]])


def seconds(text: str) -> float:
    """Reads a time span: `90`, `90s`, `5m`, `1h`."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*([smh]?)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(f"{text!r} is not a time such as 90, 90s, 5m or 1h")
    return float(match[1]) * _SECONDS[match[2]]


def share(text: str) -> float:
    """Reads a part of a whole: `1%` or `0.01`."""
    match = re.fullmatch(r"(\d*\.?\d+)\s*(%?)", text.strip())
    number = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= number <= 1:
        raise click.BadParameter(f"{text!r} is not a share such as 1% or 0.01")
    return number


class Settings:
    """What the user asked of the program as a whole."""

    def __init__(self) -> None:
        self.quiet = False
        self.verbose = False
        self.json = False
        self.debug = False
        self.publisher: Publisher | None = None

    def switch_on(self, name: str) -> None:
        """Takes a flag."""
        setattr(self, name, True)
        if name == "verbose" and self.publisher is not None:
            self.publisher.update(verbose=True)

    def limit(self, name: str, value: float) -> None:
        """Takes a limit: on what models may ask for, or one that the watcher enforces from now on."""
        if name.startswith("max_"):
            from onnxcomp.ir.budget import ACTIVE_LIMITS

            raised = {name.removeprefix("max_"): int(value)}
            ACTIVE_LIMITS.set(replace(ACTIVE_LIMITS.get(), **raised))
            return
        if name == "memory_limit":
            MEMORY.set(int(value))
        if self.publisher is None:
            return
        if name == "time_limit":
            self.publisher.update(time_limit=value)
        else:
            self.publisher.update(memory_limit=int(value))

    def announce(self, path: str, name: str) -> None:
        """Tells the watcher which subcommand runs; `path` is the program and the groups above it."""
        if self.publisher is not None:
            self.publisher.update(command=" ".join([*path.split()[1:], name]))


def settings() -> Settings:
    """Returns the settings of the command that is running."""
    found = click.get_current_context().find_object(Settings)
    return found if found is not None else Settings()


def _take(ctx: click.Context, param: click.Parameter, value: float | None) -> None:
    # Given twice, before and after the subcommand, the later one counts; not given changes nothing.
    settings_here = ctx.ensure_object(Settings)
    if value is True:
        settings_here.switch_on(str(param.name))
    elif value:
        settings_here.limit(str(param.name), value)


class Everywhere(click.Option):
    """An option that the whole program understands; listed apart in the help."""


class Ceiling(click.Option):
    """A limit on models from strangers; listed only in the help of the program."""

    @override
    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return super().get_help_record(ctx) if ctx.parent is None else None


def everywhere(command: Command) -> Command:
    """Adds the options that every command understands."""
    options = (
        (("-q", "--quiet"), {"is_flag": True, "help": "Print nothing but results and errors."}),
        (
            ("-v", "--verbose"),
            {"is_flag": True, "help": "Print more, and what native code prints."},
        ),
        (("--json",), {"is_flag": True, "help": "Print one JSON document instead of tables."}),
        (("--debug",), {"is_flag": True, "help": "Run unwatched and show the trace of an error."}),
        (
            ("--time-limit",),
            {"type": seconds, "help": "Stop after this time: 90, 5m, 1h.  [default: no limit]"},
        ),
        (
            ("--memory-limit",),
            {
                "type": size,
                "help": "Stop above this much memory: 8G.  [default: 90% of what is free]",
            },
        ),
    )
    for names, kind in reversed(options):
        add = click.option(*names, cls=Everywhere, expose_value=False, callback=_take, **kind)
        command = add(command)
    for name, (default, text) in reversed(CEILINGS.items()):
        command = click.option(
            f"--max-{name}",
            cls=Ceiling,
            expose_value=False,
            callback=_take,
            type=click.IntRange(min=1),
            metavar="N",
            help=f"{text}.  [default: {default:,}]",
        )(command)
    return command
