"""`onnxcomp run`: any passes, from a recipe file or from text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import (
    MODEL,
    conditions_options,
    data_options,
    explain_option,
    output_options,
    reference_option,
)
from onnxcomp.cli.output import progress
from onnxcomp.cli.rewrite import Job, conclude
from onnxcomp.cli.settings import everywhere

if TYPE_CHECKING:
    from pathlib import Path

    from onnxcomp.cli.options import Conditions, Data, Output
    from onnxcomp.recipe import Recipe


@click.command(cls=Command)
@click.argument("files", type=MODEL, nargs=-1, required=True, metavar="[RECIPE.toml] MODEL")
@click.option("--passes", metavar="TEXT", help="Passes as text, instead of a recipe.")
@output_options
@data_options
@reference_option
@explain_option
@conditions_options
@everywhere
def run(
    *,
    files: tuple[Path, ...],
    passes: str | None,
    output: Output,
    data: Data,
    reference: Path | None,
    explain: bool,
    conditions: Conditions,
) -> int:
    """Runs passes on MODEL, in the order that a recipe gives.

    A recipe is a TOML file; the text form of --passes is the same in one line.

        onnxcomp run recipe.toml model.onnx -o out.onnx
        onnxcomp run --passes "fold-constants,fuse-batchnorm" model.onnx -o out.onnx
    """
    model, recipe_file = _files(files, passes)
    place = output.place(model)
    from onnxcomp.cli.checks import check_names, checked
    from onnxcomp.ir import Model
    from onnxcomp.pipeline import Pipeline
    from onnxcomp.snapshots import Snapshots

    recipe = _recipe(recipe_file, passes)
    snapshots = Snapshots()
    watching = (snapshots,) if conditions.measure else ()
    pipeline = Pipeline(recipe.steps, watching, conditions.target or recipe.target)
    source = Model.load(model)
    samples = data.load(source.signature().inputs)
    options = {
        "recipe": recipe_file,
        "target": pipeline.target,
        "check": recipe.check,
        "explain": explain,
    }
    job = Job("run", model, place, output, data, conditions, samples, options, snapshots)
    check_names(recipe.check)
    result = pipeline.run(
        source,
        samples=samples,
        threads=conditions.threads,
        progress=progress(),
        explain=explain,
        reference=reference,
    )
    gates = checked(recipe.check, source, result.model, samples, seed=conditions.seed)
    return conclude(job, result, gates)


def _files(files: tuple[Path, ...], passes: str | None) -> tuple[Path, Path | None]:
    if passes is not None and len(files) == 1:
        return files[0], None
    if passes is None and len(files) == 2:
        return files[1], files[0]
    wanted = "one model" if passes is not None else "a recipe and a model, or --passes and a model"
    raise click.UsageError(f"give {wanted}", click.get_current_context())


def _recipe(file: Path | None, passes: str | None) -> Recipe:
    from onnxcomp.recipe import Recipe, parse_steps, read_recipe

    return Recipe(parse_steps(passes or "")) if file is None else read_recipe(file)
