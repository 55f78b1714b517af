"""`onnxcomp quantize`: one command for each installed pass named `quantize-...`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click
from typing_extensions import override

from onnxcomp.cli.command import Command, Group
from onnxcomp.cli.options import (
    conditions_options,
    data_options,
    model_argument,
    output_options,
)
from onnxcomp.cli.output import progress
from onnxcomp.cli.rewrite import Job, conclude
from onnxcomp.cli.settings import everywhere
from onnxcomp.errors import RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxcomp.cli.options import Conditions, Data, Output
    from onnxcomp.passbase import Pass

PREFIX = "quantize-"


class QuantizeGroup(Group):
    """Finds its commands in the registry of passes."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        from onnxcomp import registry

        names = (name for name in registry.passes() if name.startswith(PREFIX))
        return [name.removeprefix(PREFIX) for name in names]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from onnxcomp import registry

        try:
            return make_command(cmd_name, registry.get(PREFIX + cmd_name))
        except RecipeError as error:
            return _broken(cmd_name, error)


@click.group(cls=QuantizeGroup)
@everywhere
def quantize() -> None:
    """Makes a model compute with smaller numbers. Plug-ins add methods."""


def make_command(name: str, found: type[Pass]) -> click.Command:
    """Makes the command of a pass; its options and its help come from the pass."""
    from onnxcomp.cli.pass_options import build, options_of

    @model_argument
    @output_options
    @data_options
    @click.option(
        "--simplify/--no-simplify",
        default=True,
        show_default=True,
        help="Run the lossless passes first.",
    )
    @conditions_options
    @everywhere
    def call(**values: Any) -> int:  # noqa: ANN401 - what click collected
        return _run(found.name, build(found, values), **_own(values))

    command = click.command(name, cls=Command, help=inspect.getdoc(found))(call)
    # After the argument, before the options that all methods share.
    command.params[1:1] = options_of(found)
    return command


def _own(values: dict[str, Any]) -> dict[str, Any]:
    from onnxcomp.cli.pass_options import PREFIX as OF_PASS

    return {key: value for key, value in values.items() if not key.startswith(OF_PASS)}


def _run(
    command: str,
    step: Pass,
    *,
    model: Path,
    output: Output,
    data: Data,
    simplify: bool,
    conditions: Conditions,
) -> int:
    place = output.place(model)
    from onnxcomp.ir import Model
    from onnxcomp.optimization import SIMPLIFY
    from onnxcomp.pipeline import Pipeline

    steps = (*Pipeline.parse(SIMPLIFY).steps, step) if simplify else (step,)
    pipeline = Pipeline(steps, target=conditions.target or "cpu")
    source = Model.load(model)
    samples = data.load(source.signature().inputs)
    job = Job(command, model, place, output, data, conditions, samples, step.options())
    result = pipeline.run(source, samples=samples, threads=conditions.threads, progress=progress())
    return conclude(job, result)


def _broken(name: str, error: RecipeError) -> click.Command:
    def fail() -> None:
        raise error

    text = f"Broken: {error}"
    return Command(name, callback=everywhere(fail), help=text, short_help=text)
