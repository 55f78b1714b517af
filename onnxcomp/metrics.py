"""Metrics: a user's `score` function, or fidelity to the outputs of the float model.

The drop that `--max-drop` limits is relative to the model that came in: `(before - after) / |before|`, so
`1%` and `0.01` are the same, and 0.90 to 0.891 is a drop of 1 %. A metric that was 0 drops by the
difference. Built-in metrics: `top1` drops by the share of rows with another class, `cosine` by
1 - cosine, `sqnr` by the size of the noise relative to the signal (40 dB is a drop of 1 %).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from onnxcomp.compare import Comparison, Reference, compare
from onnxcomp.differences import SQNR_LIMIT_DB
from onnxcomp.errors import UserError, quoted
from onnxcomp.userfile import run_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType

    from onnxcomp.compare import Runner
    from onnxcomp.differences import OutputDifference

    ScoreFunction = Callable[[list[dict[str, Any]], dict[str, Any]], object]

# Class numbers, token numbers and flags: a near miss is a miss.
_IDENTIFIERS = frozenset(["bool", "int32", "int64", "uint32", "uint64"])

Kind = Literal["fidelity", "top1", "cosine", "sqnr"]


@dataclass(frozen=True)
class Score:
    """What a metric says about a model.

    Attributes:
        values: Numbers by name; the first is the one that limits refer to, higher is better.
    """

    values: dict[str, float]

    @property
    def name(self) -> str:
        """Name of the primary number."""
        return next(iter(self.values))

    @property
    def primary(self) -> float:
        """The primary number."""
        return self.values[self.name]


@dataclass(frozen=True)
class UserMetric:
    """A function of the user's: `score(outputs, labels)`.

    `outputs[i]` maps output names to the arrays of sample `i`; `labels` is what came with the samples. It
    returns a number or a dictionary of numbers, the first of which counts; higher is better.
    """

    name: str
    function: ScoreFunction

    def score(self, outputs: list[dict[str, Any]], labels: Mapping[str, Any]) -> Score:
        """Calls the function and checks what it returns.

        Raises:
            UserError: If the function raises or returns something that is not a number.
        """
        try:
            result = self.function(outputs, dict(labels))
        except Exception as error:  # the user's code may raise anything
            raise UserError(f"metric {quoted(self.name)} raised {_told(error)}") from error
        values = result if isinstance(result, dict) else {"score": result}
        if not values:
            raise UserError(f"metric {quoted(self.name)} returned nothing")
        return Score({str(key): self._number(key, value) for key, value in values.items()})

    def _number(self, key: object, value: object) -> float:
        array = np.asarray(value)
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise UserError(
                f"metric {quoted(self.name)} returned {quoted(key)} = {quoted(value)}, not a number"
            )
        number = float(array.reshape(()))
        return number if math.isfinite(number) else -math.inf

    def drop(self, before: Score, after: Score) -> float:
        """Returns how much worse `after` is, relative to `before`; negative when it is better."""
        return relative_drop(before.primary, after.primary)


@dataclass(frozen=True)
class Fidelity:
    """A built-in metric: how close the outputs are to those of the model that came in.

    Attributes:
        kind: `top1` counts rows with the same largest class, `cosine` compares directions, `sqnr` is the
            signal-to-noise ratio in dB; the worst output counts. `fidelity` takes, for outputs that
            look like class scores, the share of accuracy that is kept if the original's probabilities
            are right, and the cosine for all others.
    """

    kind: Kind = "fidelity"

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.kind

    def score(self, comparison: Comparison) -> Score:
        """Returns the metric, and the other ones for information.

        Raises:
            UserError: If no output has the metric, for instance `top1` of a model without scores.
        """
        everything: dict[str, float | None] = {
            "fidelity": min((_agreement(o) for o in comparison.outputs), default=None),
            "top1": comparison.worst("top1"),
            "cosine": comparison.worst("cosine"),
            "sqnr": comparison.worst("sqnr_db"),
        }
        primary = everything[self.kind]
        if primary is None:
            raise UserError(
                f"no output of the model has the metric {self.kind}",
                hint="choose another with --metric, or give your own as file.py:function",
            )
        values: dict[str, float] = {self.kind: primary}
        values.update({name: value for name, value in everything.items() if value is not None})
        return Score(values)

    def drop(self, before: Score, after: Score) -> float:
        """Returns how much worse `after` is than `before`."""
        if self.kind == "sqnr":
            return _noise_share(after.primary) - _noise_share(before.primary)
        return relative_drop(before.primary, after.primary)


Metric = UserMetric | Fidelity


def find_metric(text: str | None) -> Metric:
    """Returns the metric that a text names: nothing, a built-in name, or `file.py:function`.

    Raises:
        UserError: If it cannot be found or loaded.
    """
    if text is None:
        return Fidelity()
    if text in get_args(Kind):
        return Fidelity(cast("Kind", text))
    if ":" not in text:
        known = ", ".join(get_args(Kind))
        raise UserError(
            f"there is no metric {quoted(text)}", hint=f"known: {known}, or file.py:function"
        )
    return load_metric(text)


def load_metric(text: str) -> UserMetric:
    """Loads a function from a Python file, given as `file.py:function`.

    Raises:
        UserError: If the file cannot be read or run, or has no such function.
    """
    file, separator, name = text.rpartition(":")
    path = Path(file)
    if not separator or not name.isidentifier() or path.suffix != ".py":
        raise UserError(f"{quoted(text)} does not name a metric", hint="write file.py:function")
    if not path.is_file():
        raise UserError(f"metric file {quoted(path)} does not exist")
    function = getattr(_load(path), name, None)
    if not callable(function):
        raise UserError(f"metric file {quoted(path)} has no function {quoted(name)}")
    return UserMetric(text, function)


def evaluate(
    metric: Metric,
    model: Runner,
    samples: Iterable[Mapping[str, np.ndarray]],
    *,
    reference: Runner | Reference | None = None,
    labels: Mapping[str, Any] | None = None,
) -> Score:
    """Runs a model on all samples and scores it.

    Args:
        metric: The metric.
        model: The model to judge.
        samples: Its feeds.
        reference: The model that came in, or its remembered outputs; built-in metrics need it. The
            model that came in is its own reference when this is None.
        labels: What a user's metric needs to know about the samples.
    """
    if isinstance(metric, Fidelity):
        expected = reference if reference is not None else model
        return metric.score(compare(expected, model, samples))
    return metric.score([dict(model.run(feeds)) for feeds in samples], labels or {})


def relative_drop(before: float, after: float) -> float:
    """Returns `(before - after) / |before|`, or the difference where `before` is 0."""
    if after == before:
        return 0.0
    return (before - after) / (abs(before) if before and math.isfinite(before) else 1.0)


def parse_drop(text: str) -> float:
    """Reads a limit such as `1%` or `0.01`.

    Raises:
        UserError: If it is not a number from 0 up to 100 %.
    """
    number = text.strip()
    share = number.endswith("%")
    try:
        value = float(number.removesuffix("%")) / (100 if share else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{quoted(text)} is not a drop", hint="write 1% or 0.01")
    return value


def _agreement(output: OutputDifference) -> float:
    """Returns the share of an output that is kept: of accuracy, else cosine, else equal elements.

    What looks like scores but not like probabilities may be something else, so its direction counts too.
    """
    if output.kept is not None:
        if output.probabilities or output.cosine is None:
            return output.kept
        return min(output.kept, output.cosine)
    if output.cosine is not None and output.dtype not in _IDENTIFIERS:
        return output.cosine
    return 1 - output.differing / output.elements if output.elements else 1.0


def _noise_share(decibel: float) -> float:
    return 0.0 if decibel >= SQNR_LIMIT_DB else 10 ** (-decibel / 20)


def _load(path: Path) -> ModuleType:
    try:
        return run_file(path)
    except Exception as error:  # the user's code may raise anything
        raise UserError(f"metric file {quoted(path)} raised {_told(error)}") from error


def _told(error: Exception) -> str:
    """Returns an exception of the user's code and the line that raised it."""
    line, trace = "", error.__traceback__
    while trace is not None:
        line = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
        trace = trace.tb_next
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}{line}"
