"""The record of a run: enough to understand the result and to get it again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

from typing_extensions import override

from onnxcomp.report.environment import Environment

if TYPE_CHECKING:
    from onnxcomp.diagnostics import Diagnostic
    from onnxcomp.explanation import Explanation
    from onnxcomp.passbase import Outcome

# Raised when a field changes its meaning or goes away.
FORMAT = 1


@dataclass(frozen=True)
class Spread:
    """A measured number: the median, and the interval that holds it with 95 % confidence."""

    median: float
    low: float
    high: float

    def inverse(self) -> Spread:
        """Returns the spread of one divided by the number: a share of time as a speed-up."""
        return Spread(1 / self.median, 1 / self.high, 1 / self.low)


@dataclass(frozen=True)
class ModelRow:
    """One model in the table of results. What was not measured is `None`.

    Attributes:
        label: `original`, `result`, or the name of a candidate.
        path: Where the model is, empty when it is in memory only.
        bytes: Size of the file and its external data, or of the serialised model.
        nodes: Nodes of all scopes.
        latency: Seconds for one run.
        ratio: How many times as fast as the first row, from paired runs.
        peak_memory: Bytes that a process holds at most while it loads and runs the model.
        metrics: Quality by metric, `{"top1": 0.91}`.
        digest: SHA-256 of the contents.
    """

    label: str
    path: str = ""
    bytes: int | None = None
    nodes: int | None = None
    latency: Spread | None = None
    ratio: Spread | None = None
    peak_memory: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Step:
    """What one pass did, as `Outcome`, under a name that stays when the pass is gone."""

    step: str
    changed: bool
    stats: Mapping[str, int]
    seconds: float
    rolled_back: str = ""

    @classmethod
    def of(cls, outcome: Outcome) -> Step:
        """Takes over what a pipeline recorded."""
        return cls(
            outcome.step,
            outcome.changed,
            dict(outcome.stats),
            outcome.seconds,
            outcome.rolled_back,
        )


@dataclass(frozen=True)
class Contribution:
    """What one step did to the model before it. What was not measured is `None`.

    Attributes:
        step: What was done.
        size: Size of the model as a share of that before.
        speed: How many times as fast as before.
        metrics: What was added to each metric.
    """

    step: str
    size: float | None = None
    speed: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Gate:
    """A limit that the caller set, and whether the result keeps it.

    Attributes:
        name: What is limited, `top1 drop`.
        limit: The limit.
        value: What the result has.
        met: Whether it is kept.
    """

    name: str
    limit: float
    value: float
    met: bool

    @override
    def __str__(self) -> str:
        return f"{self.name} is {self.value:.4g}, the limit is {self.limit:.4g}"


@dataclass(frozen=True)
class Report:
    """The record of a run. Make a changed one with `with_`.

    Attributes:
        command: What was run, `optimize`.
        options: The options it ran with, defaults included.
        pipeline: Text form of the passes that ran.
        steps: What each pass did.
        models: Sizes, speed and quality, the original first.
        gates: The limits that were set.
        diagnostics: What was left alone or needs a look.
        notes: Remarks on the run as a whole, such as how samples were split.
        seeds: Seeds of everything random.
        digests: SHA-256 of `input`, `output`, `samples`.
        environment: Versions and hardware.
        seconds: How long it took.
        contributions: What each of several steps in a row added to the result.
        explanation: What was done where, and what was nearly done, if that was asked for.
    """

    command: str
    options: Mapping[str, Any] = field(default_factory=dict)
    pipeline: str = ""
    steps: tuple[Step, ...] = ()
    models: tuple[ModelRow, ...] = ()
    gates: tuple[Gate, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    notes: tuple[str, ...] = ()
    seeds: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    environment: Environment = field(default_factory=Environment.current)
    seconds: float = 0.0
    contributions: tuple[Contribution, ...] = ()
    explanation: Explanation | None = None

    @property
    def passed(self) -> bool:
        """Whether every limit is kept."""
        return all(gate.met for gate in self.gates)

    def with_(self, **changes: Any) -> Self:  # noqa: ANN401 - fields of any type
        """Returns a report with some fields changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data with a fixed order of keys, ready for JSON."""
        values = {entry.name: plain(getattr(self, entry.name)) for entry in fields(self)}
        return {"format": FORMAT, **values}

    def to_json(self) -> str:
        """Returns the JSON document, one line per entry."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    @override
    def __str__(self) -> str:
        from onnxcomp.report.text import to_text

        return to_text(self)


def plain(value: object) -> Any:  # noqa: ANN401 - JSON is what it is
    """Returns data that JSON can hold.

    Numbers that JSON does not know become the texts `inf`, `-inf` and `nan`; anything foreign its `str`.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    if isinstance(value, PathLike):
        return str(value)
    return str(value)
