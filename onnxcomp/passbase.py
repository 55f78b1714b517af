"""What a pass is, and what it is given to work with."""

from __future__ import annotations

import ast
import inspect
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict
from typing_extensions import override

from onnxcomp.diagnostics import Diagnostic, Location, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeAlias

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.ir.trace import Change
    from onnxcomp.samples import Samples
    from onnxcomp.targets import Target

    Place: TypeAlias = ir.Node | ir.Value | str | None


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


def follow(task: Task) -> Callable[[float], None]:
    """Returns a function that takes the share of the whole that is done, for code that knows no steps."""
    done = 0.0

    def advance(share: float) -> None:
        nonlocal done
        task.advance(share - done)
        done = share

    return advance


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


@dataclass(frozen=True)
class NeedsReference:
    """The pass compares the model with what it was before anything lossy was done to it.

    A pipeline keeps that model from the step before its first lossy pass; where none comes before, the
    caller has to give it.
    """

    def unmet(self, model: Model, samples: Samples | None) -> str | None:
        """Returns nothing: whether there is a reference is known to the pipeline alone."""
        del model, samples
        return None


@dataclass
class Context:
    """Everything a pass may use. It prints nothing and logs nothing; it reports through here.

    Attributes:
        model: The model, to be read.
        edit: The way to change it.
        facts: Cached answers about it.
        target_name: Where the model will run; `target` is the table of what runs fast there.
        samples: Calibration data, if the caller gave any.
        progress: Progress bars for work that can take more than two seconds.
        threads: How many threads sessions of this pass may use.
        reference: What the model was before anything lossy was done to it, for passes that need it
            (`NeedsReference`); not to be changed.
    """

    model: Model
    edit: Edit
    facts: Facts
    target_name: str = "cpu"
    samples: Samples | None = None
    progress: Progress = QUIET
    threads: int = 0
    reference: Model | None = None
    diagnostics: list[Diagnostic] = field(default_factory=list)

    @cached_property
    def target(self) -> Target:
        """What the place where the model will run can do."""
        from onnxcomp.targets import load_target

        return load_target(self.target_name)

    def skip(self, code: str, where: Place, why: str, hint: str = "") -> None:
        """Reports that something was left alone, and why."""
        self._report(Severity.SKIP, code, where, why, hint)

    def near(self, code: str, where: Place, why: str, hint: str = "") -> None:
        """Reports a rewrite that nearly applied, and what was in its way."""
        self._report(Severity.NEAR, code, where, why, hint)

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

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    lossless: ClassVar[bool] = False
    preserves: ClassVar[frozenset[type[Any]]] = frozenset()
    needs: ClassVar[tuple[Requirement, ...]] = ()
    codes: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def run(self, ctx: Context) -> None:
        """Rewrites `ctx.model` through `ctx.edit`."""

    @classmethod
    def option_help(cls) -> dict[str, str]:
        """Returns what each option means: the docstrings under the fields, read from the source."""
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            if base is not Pass and issubclass(base, Pass):
                found.update(_field_docstrings(base))
        return {name: found.get(name, "") for name in cls.model_fields}

    def options(self) -> dict[str, Any]:
        """Returns the options that differ from their defaults, with kebab-case names."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return {name.replace("_", "-"): value for name, value in values.items()}

    @override
    def __str__(self) -> str:
        from onnxcomp.recipe import format_step

        return format_step(self)


def _field_docstrings(cls: type) -> dict[str, str]:
    """The texts that stand under annotated names of a class; none when its source is not there."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = getattr(tree.body[0], "body", [])
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


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
        changes: What became of which nodes, if the run was to be explained.
    """

    step: str
    changed: bool
    stats: Mapping[str, int]
    diagnostics: Sequence[Diagnostic]
    seconds: float
    rolled_back: str = ""
    changes: Sequence[Change] = ()
