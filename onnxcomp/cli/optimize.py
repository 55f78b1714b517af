"""`onnxcomp optimize`: lossless passes only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.options import (
    MODEL,
    conditions_options,
    data_options,
    explain_option,
    model_argument,
    output_options,
)
from onnxcomp.cli.output import progress
from onnxcomp.cli.proc import collect_rarely, share_heap
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
@click.option(
    "--input-shape",
    "input_shapes",
    multiple=True,
    metavar="SHAPE",
    help="Fix open dimensions: x:1,3,224,224 (? leaves one open), or by symbol: seq=16.  [repeatable]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    help="Fix the first dimension of every input where it is open.",
)
@click.option(
    "--opset",
    type=click.IntRange(1),
    metavar="N",
    help="Convert to this opset first; newer ones have operators that stand for many nodes.",
)
@click.option(
    "--inline-functions/--keep-functions",
    default=False,
    show_default=True,
    help="Put local functions in the places of their calls, so that passes see through them.",
)
@click.option(
    "--rules",
    type=MODEL,
    multiple=True,
    metavar="FILE.py",
    help="Also apply rewrites of your own, see `onnxcomp passes show rules`; the file is run.  [repeatable]",
)
@explain_option
@conditions_options
@everywhere
def optimize(  # noqa: PLR0913 - one for each option
    *,
    model: Path,
    output: Output,
    data: Data,
    verify: bool,
    input_shapes: tuple[str, ...],
    batch: int | None,
    opset: int | None,
    inline_functions: bool,
    rules: tuple[Path, ...],
    explain: bool,
    conditions: Conditions,
) -> int:
    """Simplifies MODEL without changing what it computes.

    Folds constants, fuses batch normalisations into weights, removes what has no effect and what is
    there twice. With --data the result is verified on these samples, else on made-up inputs. With
    --input-shape and --batch the result takes inputs of these sizes only, and shape arithmetic goes.
    """
    if not conditions.measure:
        share_heap()
        collect_rarely()
    place = output.place(model)
    from onnxcomp.optimization import optimize as run
    from onnxcomp.optimization import pin_shapes

    samples = None
    if data.data is not None:
        pinned = pin_shapes(model, input_shapes, batch).model
        samples = data.load(pinned.signature().inputs)
    job = Job(
        "optimize",
        model,
        place,
        output,
        data,
        conditions,
        samples,
        {
            "verify": verify,
            "opset": opset,
            "inline_functions": inline_functions,
            "rules": rules,
            "explain": explain,
            "input_shapes": input_shapes,
            "batch": batch,
        },
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
        opset=opset,
        inline_functions=inline_functions,
        rules=rules,
        input_shapes=input_shapes,
        batch=batch,
    )
    return conclude(job, result)
