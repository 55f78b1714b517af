"""Rules that follow from what a target's table says it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.diagnostics import Severity
from onnxcomp.ir.ops import constant
from onnxcomp.lint.rule import Finding, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.lint.view import View
    from onnxcomp.targets import Refusal

# Operators that hold integers themselves, in the standard and in onnxruntime's own domain.
_INTEGER = ("QLinear", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "DynamicQuantize")


def no_int8(view: View) -> Iterator[Finding]:
    """Q and DQ for a target that computes nothing in int8."""
    found = [node for node in view.quantizers if constant(node.inputs[0]) is None]
    if found and not view.target.int8:
        text = f"{len(found)} activations are quantized, and this target computes nothing in int8"
        yield finding("model", text, hint=view.target.instead)


def integer_operators(view: View) -> Iterator[Finding]:
    """Operators that hold integers themselves, for a target that wants Q and DQ."""
    for node in view.nodes:
        if not node.op_type.startswith(_INTEGER) or node.op_type == "DynamicQuantizeLinear":
            continue
        refusal = view.target.refuses("qoperator", node.op_type)
        if refusal is not None:
            yield finding(
                node, f"{node.op_type}: {refusal.why}", hint=refusal.instead, severity=_how(refusal)
            )


def by_channel(view: View) -> Iterator[Finding]:
    """Weights with a scale for each channel, for operators that take one scale."""
    for node, weight in view.layers():
        refusal, grid = view.target.refuses("per-channel-weight", node.op_type), view.grid(weight)
        if refusal is not None and grid is not None and not grid.single:
            text = f"its weight has {grid.scale.size} scales: {refusal.why}"
            yield finding(node, text, hint=refusal.instead, severity=_how(refusal))


def open_shapes(view: View) -> Iterator[Finding]:
    """Inputs with open dimensions, for a target that compiles for fixed ones."""
    refusal = view.target.refuses("dynamic-shape")
    for spec in view.model.signature().inputs if refusal else ():
        if spec.shape is None or not all(isinstance(dim, int) for dim in spec.shape):
            value = next((v for v in view.model.graph.inputs if v.name == spec.name), "model")
            if refusal is not None:
                yield finding(value, f"has open dimensions: {refusal.why}", hint=refusal.instead)


def _how(refusal: Refusal) -> Severity:
    return Severity.WARNING if refusal.effect == "slow" else Severity.ERROR
