"""What a rule of the linter is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onnxcomp.diagnostics import Diagnostic, Location, Severity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxcomp.ir import Edit, ir
    from onnxcomp.lint.view import View

# What a fix does to the values that the model stands for.
Change = Literal["none", "same", "finer", "other", ""]


@dataclass(frozen=True)
class Rule:
    """One thing that can be wrong with a quantized model.

    Attributes:
        code: Stable code, `LNT101`.
        severity: How much it matters.
        title: A few words, for tables.
        meaning: What it is about and what to do, for `onnxcomp explain`.
        find: Yields what is found in a model.
        change: What the fix does to the values that the model stands for: `same` (but for the last
            place), `finer` (less rounding than before), `other`; empty when there is no fix.
    """

    code: str
    severity: Severity
    title: str
    meaning: str
    find: Callable[[View], Iterator[Finding]]
    change: Change = ""


@dataclass(frozen=True, eq=False)
class Finding:
    """Something that a rule found.

    Attributes:
        where: The node or value.
        message: What is wrong there, in one line.
        hint: What the user can do about it.
        fix: Mends it; None where that is not possible.
        severity: How much it matters, when it differs from the rule's.
    """

    where: Location
    message: str
    hint: str = ""
    fix: Callable[[Edit], None] | None = None
    severity: Severity | None = None


def finding(
    where: ir.Node | ir.Value | str,
    message: str,
    fix: Callable[[Edit], None] | None = None,
    *,
    hint: str = "",
    severity: Severity | None = None,
) -> Finding:
    """Makes a finding at a node or value."""
    return Finding(Location.of(where), message, hint, fix, severity)


def as_diagnostic(rule: Rule, found: Finding) -> Diagnostic:
    """Returns a finding in the form that reports show."""
    hint = found.hint or ("--fix mends it" if found.fix else "")
    return Diagnostic(rule.code, found.severity or rule.severity, found.message, found.where, hint)
