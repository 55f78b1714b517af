"""`onnxcomp demo`: the main job on a model and data that come with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxcomp.cli.command import Command
from onnxcomp.cli.compress import Goal, search
from onnxcomp.cli.options import Data, Output, finish, seed_option
from onnxcomp.cli.output import remark
from onnxcomp.cli.settings import everywhere, seconds
from onnxcomp.errors import UserError, quoted
from onnxcomp.stages import stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

LABELS = "label_class"


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
    assets = resources.files("onnxcomp") / "demo" / "assets"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"cannot make folder {quoted(folder, 200)}: {reason}") from None
    with resources.as_file(assets) as here:
        output = Output(folder / "small.onnx", False, None, folder / "report.json")
        place = output.place(here / "model.onnx")
        goal = Goal(
            target="cpu",
            max_drop=0.01,
            metric=None,
            validation=str(here / "evaluation.npz"),
            threads=1,
            trials=8,
            measure_time=measure_time,
            memory=True,
            seed=seed,
        )
        data = Data(str(here / "calibration.npz"), None, None)
        result = search(here / "model.onnx", data, goal, metric=accuracy)
    with stage("writing the result"):
        result.model.save(place)
    code = finish(result.report.with_(command="demo"), output)
    remark(f"wrote {place} and {output.report}")
    return code if result.met else 3


def accuracy(outputs: list[dict[str, np.ndarray]], labels: Mapping[str, Any]) -> float:
    """Returns the share of images whose largest score is that of the right class."""
    right = [
        int(next(iter(scores.values())).argmax()) == int(label)
        for scores, label in zip(outputs, labels[LABELS], strict=True)
    ]
    return sum(right) / len(right)
