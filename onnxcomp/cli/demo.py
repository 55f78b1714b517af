"""`onnxcomp demo`: the main job on a model and data that come with the package."""

from __future__ import annotations

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.compress import Goal, search
from onnxcomp.cli.options import Data, Output, finish, seed_option
from onnxcomp.cli.output import remark
from onnxcomp.cli.settings import everywhere, seconds
from onnxcomp.errors import UserError, quoted
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Iterator


@click.command(cls=Command)
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    default="onnxcomp-demo",
    show_default=True,
    help="Folder for the model and the report; made if it is not there.",
)
@click.option(
    "--measure-time",
    type=seconds,
    default="3",
    show_default=True,
    help="Time for the final measurement of speed.",
)
@seed_option
@everywhere
def demo(*, folder: Path, measure_time: float, seed: int) -> int:
    """Compresses a small image classifier on real data.

    A residual network for Fashion-MNIST comes with the package, with 128 images to calibrate on and
    1000 test images to judge on. Writes small.onnx and report.json.
    """
    with _folder(folder):
        return _demo(folder, measure_time, seed)


def _demo(folder: Path, measure_time: float, seed: int) -> int:
    from onnxcomp import demo as included

    output = Output(folder / "small.onnx", False, None, folder / "report.json")
    place = output.place(included.MODEL)
    goal = Goal(
        target="cpu",
        max_drop=0.01,
        metric=None,
        validation=str(included.EVALUATION),
        threads=1,
        trials=12,
        measure_time=measure_time,
        memory=True,
        prefer="speed",
        contrib=False,
        prune=False,
        batch=1,
        seed=seed,
    )
    data = Data(str(included.CALIBRATION), None, None)
    result = search(included.MODEL, data, goal, metric=included.accuracy)
    with stage("writing the result"):
        result.model.save(place)
    code = finish(result.report.with_(command="demo"), output)
    remark(f"wrote {place} and {output.report}")
    return code if result.met else 3


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """Makes a folder, and takes it away again if nothing comes into it."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot make folder {quoted(folder, 200)}: {reason}") from None
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise
