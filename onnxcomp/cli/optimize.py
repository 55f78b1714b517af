"""`onnxcomp optimize`: lossless passes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import (
    conditions_options,
    data_options,
    explain_option,
    model_argument,
    output_options,
)
from onnxcomp.cli.output import progress
from onnxcomp.cli.proc import share_heap
from onnxcomp.cli.rewrite import Job, conclude
from onnxcomp.cli.settings import everywhere

if TYPE_CHECKING:
    from pathlib import Path

    from onnxcomp.cli.options import Conditions, Data, Output


@click.command(cls=Command)
@model_argument
@output_options
@data_options
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the result with the original on a few inputs, and take back what changed the function.",
)
@explain_option
@conditions_options
@everywhere
def optimize(
    *,
    model: Path,
    output: Output,
    data: Data,
    verify: bool,
    explain: bool,
    conditions: Conditions,
) -> int:
    """Simplifies MODEL without changing what it computes.

    Folds constants, fuses batch normalisations into weights, removes what has no effect and what is
    there twice. With --data the result is verified on these samples, else on made-up inputs.
    """
    if not conditions.measure:
        share_heap()
    place = output.place(model)
    from onnxcomp.ir import Model
    from onnxcomp.optimization import optimize as run

    samples = None if data.data is None else data.load(Model.load(model).signature().inputs)
    job = Job(
        "optimize",
        model,
        place,
        output,
        data,
        conditions,
        samples,
        {"verify": verify, "explain": explain},
    )
    result = run(
        model,
        target=conditions.target or "cpu",
        verify=verify,
        samples=None if samples is None else list(samples.take(min(2, len(samples)))),
        threads=conditions.threads,
        seed=conditions.seed,
        progress=progress(),
        explain=explain,
    )
    return conclude(job, result)
