"""`onnxcomp quantize`, `prune`, `convert`, `apply`: one command for each installed pass."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import click
from typing_extensions import override

from onnxcomp.cli.command import Command, Group
from onnxcomp.cli.options import (
    conditions_options,
    data_options,
    model_argument,
    output_options,
    reference_option,
)
from onnxcomp.cli.output import progress
from onnxcomp.cli.rewrite import Job, conclude
from onnxcomp.cli.settings import everywhere
from onnxcomp.errors import NothingToDoError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

    from onnxcomp.cli.options import Conditions, Data, Output
    from onnxcomp.passbase import Outcome, Pass

_REASONS = 3


@dataclass(frozen=True)
class Family:
    """Passes that are commands of one group.

    Attributes:
        prefix: What their names start with; the command's name is the rest.
        simplify: Whether the lossless passes run first unless the user says otherwise.
        must_change: Whether a pass that finds nothing to do ends the command with exit code 3.
    """

    prefix: str = ""
    simplify: bool = False
    must_change: bool = False


class FamilyGroup(Group):
    """Finds its commands in the registry of passes."""

    family: ClassVar[Family]

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        from onnxcomp import registry

        prefix = self.family.prefix
        return [name.removeprefix(prefix) for name in registry.passes() if name.startswith(prefix)]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        from onnxcomp import registry

        try:
            found = registry.get(self.family.prefix + cmd_name)
            return make_command(cmd_name, found, self.family)
        except RecipeError as error:
            return _broken(cmd_name, error)


class QuantizeGroup(FamilyGroup):
    """Passes named `quantize-...`."""

    family = Family("quantize-", simplify=True)


class PruneGroup(FamilyGroup):
    """Passes named `prune-...`."""

    family = Family("prune-", simplify=True, must_change=True)


class ConvertGroup(FamilyGroup):
    """Passes named `convert-...`."""

    family = Family("convert-")


class ApplyGroup(FamilyGroup):
    """All passes."""

    family = Family()


@click.group(cls=QuantizeGroup)
@everywhere
def quantize() -> None:
    """Makes a model compute with smaller numbers. Plug-ins add methods."""


@click.group(cls=PruneGroup)
@everywhere
def prune() -> None:
    """Takes parts of a model away. Plug-ins add methods."""


@click.group(cls=ConvertGroup)
@everywhere
def convert() -> None:
    """Changes the form of a model: its opset, its numbers. Plug-ins add forms."""


@click.group(cls=ApplyGroup)
@everywhere
def apply() -> None:
    """Runs one pass, by its name, on a model. `onnxcomp passes` lists them."""


def make_command(name: str, found: type[Pass], family: Family) -> click.Command:
    """Makes the command of a pass; its options and its help come from the pass."""
    from onnxcomp.cli.pass_options import build, options_of

    @model_argument
    @output_options
    @data_options
    @reference_option
    @click.option(
        "--simplify/--no-simplify",
        default=family.simplify,
        show_default=True,
        help="Run the lossless passes first.",
    )
    @conditions_options
    @everywhere
    def call(**values: Any) -> int:  # noqa: ANN401 - what click collected
        step = build(found, values)
        return _run(step, must_change=family.must_change, **_own(values))

    command = click.command(name, cls=Command, help=inspect.getdoc(found))(call)
    # After the argument, before the options that all methods share.
    command.params[1:1] = options_of(found)
    return command


def _own(values: dict[str, Any]) -> dict[str, Any]:
    from onnxcomp.cli.pass_options import PREFIX as OF_PASS

    return {key: value for key, value in values.items() if not key.startswith(OF_PASS)}


def _run(
    step: Pass,
    *,
    must_change: bool,
    model: Path,
    output: Output,
    data: Data,
    reference: Path | None,
    simplify: bool,
    conditions: Conditions,
) -> int:
    place = output.place(model)
    from onnxcomp.ir import Model
    from onnxcomp.optimization import SIMPLIFY
    from onnxcomp.pipeline import Pipeline
    from onnxcomp.snapshots import Snapshots

    steps = (*Pipeline.parse(SIMPLIFY).steps, step) if simplify else (step,)
    snapshots = Snapshots()
    watching = (snapshots,) if conditions.measure else ()
    pipeline = Pipeline(steps, watching, conditions.target or "cpu")
    source = Model.load(model)
    samples = data.load(source.signature().inputs)
    job = Job(step.name, model, place, output, data, conditions, samples, step.options(), snapshots)
    result = pipeline.run(
        source,
        samples=samples,
        threads=conditions.threads,
        progress=progress(),
        reference=reference,
    )
    if must_change:
        _check_changed(result.outcomes[-1])
    return conclude(job, result)


def _check_changed(outcome: Outcome) -> None:
    """Ends the command when the pass itself did nothing; the result would only look like one.

    Raises:
        NothingToDoError: With what the pass said about it.
    """
    if outcome.changed:
        return
    said = dict.fromkeys(f"{found.message} ({found.code})" for found in outcome.diagnostics)
    reasons = "; ".join(list(said)[:_REASONS]) or outcome.rolled_back or "it found nothing to do"
    raise NothingToDoError(
        f"{outcome.step} removed nothing: {reasons}",
        hint="no file was written; onnxcomp inspect --channels shows what is in the way",
    )


def _broken(name: str, error: RecipeError) -> click.Command:
    def fail() -> None:
        raise error

    text = f"Broken: {error}"
    return Command(name, callback=everywhere(fail), help=text, short_help=text)
