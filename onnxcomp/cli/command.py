"""Commands whose help is grouped, and a group that imports its commands when they are needed."""

from __future__ import annotations

import importlib
import inspect
from difflib import get_close_matches
from typing import TYPE_CHECKING

import click
from typing_extensions import override

from onnxcomp.cli.settings import Ceiling, Everywhere, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


_SECTIONS: dict[type[click.Parameter], str] = {
    click.Option: "Options",
    Everywhere: "Options of every command",
    Ceiling: "Limits on what a model may ask for, also of every command",
}


class Command(click.Command):
    """A command that lists the options of the whole program after its own.

    Indented lines of its help are kept as they are; everything else is wrapped.
    """

    @override
    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        text = self.help
        self.help = _keeping_indented(text or "")
        super().format_help_text(ctx, formatter)
        self.help = text

    @override
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self, ctx, formatter)


class Group(click.Group):
    """A group of commands, each in a module of its own.

    Args:
        lazy: Where each command is, `module:name`. The module is imported when the command runs or when
            its help is listed, so it imports nothing large at its top.
    """

    command_class = Command

    def __init__(self, *, lazy: Mapping[str, str] | None = None, **rest: object) -> None:
        super().__init__(**rest)  # type: ignore[arg-type]  # click's own keywords, passed through
        self.lazy = lazy or {}

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *self.commands]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return self.commands.get(cmd_name)
        module, _, name = self.lazy[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"no command {args[0]!r}{hint}", ctx)
        found = super().resolve_command(ctx, args)
        ctx.ensure_object(Settings).announce(ctx.command_path, str(found[0]))
        return found

    @override
    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self, ctx, formatter)


def _keeping_indented(text: str) -> str:
    """Marks paragraphs with indented lines the way click wants it, with a backspace."""
    return "\n\n".join(
        f"\b\n{part}" if any(line.startswith(" ") for line in part.splitlines()) else part
        for part in inspect.cleandoc(text).split("\n\n")
    )


def _write_options(
    command: click.Command, ctx: click.Context, formatter: click.HelpFormatter
) -> None:
    sections: dict[str, list[tuple[str, str]]] = {title: [] for title in _SECTIONS.values()}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None and not isinstance(parameter, click.Argument):
            sections[_SECTIONS.get(type(parameter), _SECTIONS[click.Option])].append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
