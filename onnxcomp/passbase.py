"""What a pass is, and what it is given to work with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from onnxcomp.diagnostics import Diagnostic, Location, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.samples import Samples
    from onnxcomp.targets import Target

    Place = ir.Node | ir.Value | str | None


class Task(Protocol):
    """A running piece of work that a progress bar follows."""

    def advance(self, amount: float = 1) -> None:
        """Reports that `amount` of the total is done."""
        ...


class Progress(Protocol):
    """Whoever shows progress to the user."""

    def __call__(self, total: float, text: str) -> AbstractContextManager[Task]:
        """Starts a piece of work of a known size."""
        ...


class _Quiet:
    """Progress that nobody watches."""

    def __call__(self, total: float, text: str) -> AbstractContextManager[Task]:
        del total, text
        return nullcontext(self)

    def advance(self, amount: float = 1) -> None:
        del amount


QUIET: Progress = _Quiet()


class Requirement(Protocol):
    """Something that must hold before a pass may run, checked before any pass of a pipeline runs."""

    def unmet(self, model: Model, samples: Samples | None) -> str | None:
        """Returns what is missing and how to supply it, None when nothing is."""
        ...


@dataclass(frozen=True)
class NeedsSamples:
    """The pass looks at real data."""

    minimum: int = 1

    def unmet(self, model: Model, samples: Samples | None) -> str | None:
        """Returns what is missing."""
        del model
        if samples is None:
            return "needs calibration samples: give --data (samples=), or --data random:32 to try it out"
        if len(samples) < self.minimum:
            return f"needs at least {self.minimum} samples, got {len(samples)}"
        return None


@dataclass
class Context:
    """Everything a pass may use. It prints nothing and logs nothing; it reports through here.

    Attributes:
        model: The model, to be read.
        edit: The way to change it.
        facts: Cached answers about it.
        target: Where the model will run.
        samples: Calibration data, if the caller gave any.
        progress: Progress bars for work that can take more than two seconds.
        threads: How many threads sessions of this pass may use.
        cache: Folder for results that are costly to find again, if the caller gave one.
    """

    model: Model
    edit: Edit
    facts: Facts
    target: Target
    samples: Samples | None = None
    progress: Progress = QUIET
    threads: int = 0
    diagnostics: list[Diagnostic] = field(default_factory=list)

    def skip(self, code: str, where: Place, why: str, hint: str = "") -> None:
        """Reports that something was left alone, and why."""
        self._report(Severity.SKIP, code, where, why, hint)

    def warn(self, code: str, where: Place, what: str, hint: str = "") -> None:
        """Reports something that the user should look at."""
        self._report(Severity.WARNING, code, where, what, hint)

    def note(self, code: str, where: Place, what: str, hint: str = "") -> None:
        """Reports something worth knowing."""
        self._report(Severity.NOTE, code, where, what, hint)

    def _report(self, severity: Severity, code: str, where: Place, text: str, hint: str) -> None:
        self.diagnostics.append(Diagnostic(code, severity, text, Location.of(where), hint))


class Pass(BaseModel, ABC):
    """One rewrite of a model. Fields are its options; the docstring is its help.

    Attributes:
        name: Name on the command line and in recipes, kebab-case.
        lossless: Whether outputs must stay what they were, so that the verifier may demand it.
        preserves: Types of questions whose answers still hold after this pass.
        needs: What must hold before it runs.
        codes: Diagnostics that this pass can report, with what they mean.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    preserves: ClassVar[frozenset[type[Any]]] = frozenset()
    needs: ClassVar[tuple[Requirement, ...]] = ()
    codes: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def run(self, ctx: Context) -> None:
        """Rewrites `ctx.model` through `ctx.edit`."""

    def options(self) -> dict[str, Any]:
        """Returns the options that differ from their defaults, with kebab-case names."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return {name.replace("_", "-"): value for name, value in values.items()}

    @override
    def __str__(self) -> str:
        from onnxcomp.recipe import format_step

        return format_step(self)


@dataclass(frozen=True)
class Outcome:
    """What one pass did.

    Attributes:
        step: The pass and its options as text.
        changed: Whether the model differs from before.
        stats: What was done, in words, with how often.
        diagnostics: What was left alone, and why.
        seconds: How long it took.
        rolled_back: Why its work was taken back, empty when it was kept.
    """

    step: str
    changed: bool
    stats: Mapping[str, int]
    diagnostics: Sequence[Diagnostic]
    seconds: float
    rolled_back: str = ""
