"""What there is to say about the outcome of a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.quant.recognize import is_quantized
from onnxcomp.runtime import available_providers
from onnxcomp.targets import load_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.ir import Model
    from onnxcomp.trials import Trial


def explained(chosen: Trial, trials: Sequence[Trial]) -> list[Diagnostic]:
    """Says plainly when the result is not what was hoped for."""
    found = [d for outcome in chosen.outcomes for d in outcome.diagnostics]
    quantized = [trial for trial in trials if trial.label not in {"original", "simplified"}]
    if chosen in quantized:
        return found
    if not quantized:
        why = "nothing in this model could be quantized for the target"
    elif all(trial.rejected for trial in quantized):
        best = min(quantized, key=lambda trial: trial.drop)
        why = f"no quantized candidate stayed inside the limit; the best one: {best.rejected}"
    else:
        why = "no quantized candidate inside the limit was faster than float"
    hint = "allow a larger --max-drop, or give more samples"
    return [
        *found,
        Diagnostic(
            "CMP202", Severity.WARNING, f"the result is float: {why}", Location("model"), hint
        ),
    ]


def conversions(model: Model, target: str) -> list[Diagnostic]:
    """Says which Q and DQ of a result the provider runs as nodes of their own, and why."""
    from onnxcomp.quant.fusion_report import fusion_report

    table = load_target(target)
    if table.provider not in available_providers() or not is_quantized(model):
        return []
    found = fusion_report(model, provider=table.provider, target=table)
    return [
        Diagnostic(
            "CMP203",
            Severity.NOTE,
            f"{count} Q/DQ run as {'a node' if count == 1 else 'nodes'} of their own: {why}",
            Location("model"),
        )
        for why, count in found.reasons.items()
    ]
