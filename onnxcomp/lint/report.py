"""Runs the rules over a model and collects what they find."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.cpuinfo import cpu
from onnxcomp.diagnostics import Severity
from onnxcomp.ir import Model
from onnxcomp.lint.rule import as_diagnostic
from onnxcomp.lint.table import RULES
from onnxcomp.lint.view import View
from onnxcomp.targets import Target, load_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.diagnostics import Diagnostic
    from onnxcomp.ir.model import Source
    from onnxcomp.lint.rule import Rule

_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


@dataclass(frozen=True)
class Found:
    """One finding.

    Attributes:
        diagnostic: Code, severity, place, words and hint.
        title: What the rule is about, in a few words.
        fixable: Whether `fix-quantization` mends it.
    """

    diagnostic: Diagnostic
    title: str
    fixable: bool


@dataclass(frozen=True)
class LintReport:
    """What was found in a model.

    Attributes:
        target: Name of the target.
        findings: The findings, errors first.
        conversions: Q and DQ that run as nodes of their own; None where the provider was not asked.
        quantized: Whether the model is quantized at all.
    """

    target: str
    findings: tuple[Found, ...]
    conversions: int | None
    quantized: bool

    def at_least(self, severity: Severity) -> tuple[Found, ...]:
        """Returns the findings that matter at least so much."""
        wanted = _ORDER[: _ORDER.index(severity) + 1]
        return tuple(found for found in self.findings if found.diagnostic.severity in wanted)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many there are of each code."""
        return dict(Counter(found.diagnostic.code for found in self.findings))

    @override
    def __str__(self) -> str:
        return "\n".join(str(found.diagnostic) for found in self.findings)


def codes() -> dict[str, str]:
    """Returns what each code means."""
    return {rule.code: rule.meaning for rule in RULES}


def lint(model: Source, *, target: str | Target = "cpu", provider_graph: bool = True) -> LintReport:
    """Looks for what is wrong or slow in a quantized model; changes nothing.

    Args:
        model: A model, or where it is.
        target: Where it shall run.
        provider_graph: Whether to let the target's provider optimise the model and to look at the graph
            that it really runs; only done where this build of the runtime has the provider.

    Raises:
        UserError: If the model cannot be read or there is no such target.
    """
    table = target if isinstance(target, Target) else load_target(target)
    view = view_of(Model.load(model), table, provider_graph=provider_graph)
    found = [(rule, item) for rule in RULES for item in rule.find(view)]
    findings = [
        Found(as_diagnostic(rule, item), rule.title, item.fix is not None) for rule, item in found
    ]
    findings.sort(key=lambda item: _ORDER.index(item.diagnostic.severity))
    asked = view.asks_provider and not view.placement.problem
    return LintReport(
        table.name,
        tuple(findings),
        view.placement.total if asked else None,
        is_quantized(view),
    )


def view_of(model: Model, target: Target, *, provider_graph: bool = True) -> View:
    """Returns what rules look at; the provider is asked only where it is installed."""
    from onnxcomp.runtime import available_providers

    here = target.machine is None or target.machine.arch == cpu().arch
    asks = provider_graph and here and target.provider in available_providers()
    return View(model, target, provider_graph=asks)


def is_quantized(view: View) -> bool:
    """Whether a model holds quantized operators."""
    if view.quantizers or view.dequantizers:
        return True
    marks = ("QLinear", "DynamicQuantize", "ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm")
    return any(node.op_type.startswith(marks) for node in view.nodes)


def rules_by_code() -> dict[str, Rule]:
    """Returns the rules by their codes."""
    return {rule.code: rule for rule in RULES}
