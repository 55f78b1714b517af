"""Groups of options that several commands share, each one handed over as an object."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxcomp.cli.lines import say
from onnxcomp.cli.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxcomp.report import Report
    from onnxcomp.samples import Samples
    from onnxcomp.signature import TensorSpec

    Wrapped = TypeVar("Wrapped", bound=Callable[..., Any])

MODEL = click.Path(path_type=Path)

model_argument = click.argument("model", type=MODEL)


@dataclass(frozen=True)
class Output:
    """Where the result goes."""

    output: Path | None
    in_place: bool
    external_data: bool | None
    report: Path | None

    def place(self, source: Path) -> Path:
        """Returns the file to write, after checking that it can be written. Call it before any work.

        Args:
            source: The model that is read.

        Raises:
            UsageError: If neither an output nor `--in-place` was given.
            UserError: If the output cannot be written or is the input.
        """
        from onnxcomp.ir.atomic import check_output

        target = self.output or (source if self.in_place else None)
        if target is None:
            example = f"{source.stem or 'model'}.small.onnx"
            raise click.UsageError(
                f"where shall the result go? give -o, for example -o {example}, or --in-place",
                click.get_current_context(),
            )
        check_output(target, [source], self.in_place)
        if self.report is not None:
            check_output(self.report, [source, target], in_place=False)
        return target


@dataclass(frozen=True)
class Data:
    """Where samples come from."""

    data: str | None
    preprocess: str | None
    samples: int | None

    def load(self, inputs: Sequence[TensorSpec]) -> Samples | None:
        """Returns the samples, `None` if the user gave none; warns of made-up ones.

        Raises:
            SamplesError: If there are none or they do not fit the model.
        """
        if self.data is None:
            if self.preprocess is not None or self.samples is not None:
                name = "--preprocess" if self.preprocess is not None else "--samples"
                raise click.UsageError(f"{name} needs --data", click.get_current_context())
            return None
        from onnxcomp.samples import Preprocess, load_samples

        preprocess = None if self.preprocess is None else Preprocess.parse(self.preprocess)
        found = load_samples(self.data, inputs, preprocess=preprocess, limit=self.samples)
        for warning in found.diagnostics:
            warn(f"{warning.message} ({warning.hint})" if warning.hint else warning.message)
        for note in found.notes:
            warn(note)
        return found


@dataclass(frozen=True)
class Machine:
    """Where models run while they are measured or compared."""

    provider: str
    threads: int


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a model is rewritten."""

    target: str | None
    threads: int
    seed: int
    measure: bool


def warn(text: str) -> None:
    """Prints a warning on standard error; not when only results are wanted."""
    if not settings().quiet:
        say(text, prefix="warning: ")


def bundle(
    kind: type[Any], name: str, *options: Callable[[Any], Any]
) -> Callable[[Wrapped], Wrapped]:
    """Makes a decorator that adds options and hands their values over as one object.

    Args:
        kind: A dataclass whose fields are the options' names.
        name: Name of the argument that gets the object.
        options: What `click.option` returned.
    """
    fields = [entry.name for entry in dataclasses.fields(kind)]

    def decorate(function: Wrapped) -> Wrapped:
        @functools.wraps(function)
        def call(**values: Any) -> Any:  # noqa: ANN401 - whatever the command returns
            taken = {field: values.pop(field) for field in fields}
            return function(**{name: kind(**taken)}, **values)

        wrapped: Any = call
        for option in reversed(options):
            wrapped = option(wrapped)
        result: Wrapped = wrapped
        return result

    return decorate


output_options = bundle(
    Output,
    "output",
    click.option("-o", "--output", type=MODEL, metavar="FILE", help="Where to write the result."),
    click.option("--in-place", is_flag=True, help="Replace the model that is read."),
    click.option(
        "--external-data/--no-external-data",
        default=None,
        help="Put weights into a file beside the model.  [default: as they came in; always above 1 GiB]",
    ),
    click.option(
        "--report",
        type=MODEL,
        metavar="FILE",
        help="Also store the report, with everything to repeat the run: .json, or .html to look at.",
    ),
)

data_options = bundle(
    Data,
    "data",
    click.option(
        "--data",
        metavar="SOURCE",
        help="Samples: an .npz or .npy file, a folder of these or of images, file.py:function, or random:32 to try "
        "things out.",
    ),
    click.option(
        "--preprocess",
        metavar="OPTIONS",
        help="How images become inputs: size=256,crop=224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225, or a TOML "
        "file.",
    ),
    click.option("--samples", type=click.IntRange(min=1), help="Use at most this many samples."),
)

reference_option = click.option(
    "--reference",
    type=MODEL,
    metavar="MODEL",
    help="The float model, for passes that repair what quantizing or pruning did to it.",
)

machine_options = bundle(
    Machine,
    "machine",
    click.option(
        "--provider",
        default="cpu",
        show_default=True,
        help="Execution provider: cpu, cuda, tensorrt, openvino, ...",
    ),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=1,
        show_default=True,
        help="Threads of one operator; 0 leaves it to the runtime.",
    ),
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of everything random.",
)

conditions_options = bundle(
    Conditions,
    "conditions",
    click.option("--target", help="Where the result shall run.  [default: cpu]"),
    click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Threads that passes may use; 0 leaves it to the runtime.",
    ),
    seed_option,
    click.option(
        "--measure",
        is_flag=True,
        help="Also measure speed, memory and fidelity of both models, on one thread.",
    ),
)


explain_option = click.option(
    "--explain",
    is_flag=True,
    help="Say what each pass and rule did where, and which rewrites nearly applied, and why not.",
)


def finish(report: Report, output: Output) -> int:
    """Prints and stores a report; returns the exit code that its limits ask for."""
    from onnxcomp.cli.output import show_report

    show_report(report, file=output.report)
    for gate in report.gates:
        if not gate.met:
            say(str(gate), prefix="missed: ")
    return 0 if report.passed else 3
