"""Quantizing for a target that is not this machine: what cannot be measured here, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.runtime import available_providers
from onnxcomp.targets.features import runs_here, saturates

if TYPE_CHECKING:
    from onnxcomp.passbase import Context
    from onnxcomp.targets import Target

CODES = {
    "QNT120": "The execution provider of the target computes nothing in int8, so Q/DQ would only cost "
    "time. The table of the target (`onnxcomp targets NAME`) says what it computes instead.",
    "QNT121": "The provider of the target, or the processor that it stands for, is not on this machine, or "
    "it compiles whole graphs, so no node was measured: what is quantized follows from the table of the "
    "target. Compare the result with the float model there.",
    "QNT122": "The target refuses something that this model has.",
}


def computes_no_int8(ctx: Context) -> bool:
    """Whether static quantization is of no use for the target; says so."""
    target = ctx.target
    if target.int8:
        return False
    ctx.skip("QNT120", None, target.instead, hint=f"see: onnxcomp targets {target.name}")
    return True


def is_readable(target: Target) -> bool:
    """Whether the graph that the provider makes of a model can be read here, on whatever processor."""
    return target.provider in available_providers() and not target.compiles


def is_measurable(target: Target) -> bool:
    """Whether nodes can be timed here as they will run on the target."""
    return runs_here(target) and is_readable(target)


def testable(target: Target) -> Target:
    """The target with a provider that is here: its own, or the processor to compute with all the same."""
    return target if is_readable(target) else target.model_copy(update={"provider": "cpu"})


def note_unmeasured(ctx: Context) -> None:
    """Says that what is quantized follows from a table."""
    ctx.warn(
        "QNT121",
        None,
        f"not measured ({_obstacle(ctx.target)}): placement follows the table of {ctx.target.name}",
    )


def _obstacle(target: Target) -> str:
    if target.provider not in available_providers():
        return f"the provider {target.provider} is not here"
    if target.machine is None or runs_here(target):
        return f"{target.provider} compiles whole graphs"
    lacking = (
        f" without {', '.join(sorted(target.machine.none_of))}" if target.machine.none_of else ""
    )
    return f"{target.machine.arch}{lacking} is not here"


def note_refusals(ctx: Context) -> None:
    """Says what the target refuses whatever is quantized."""
    row = ctx.target.refuses("dynamic-shape")
    unknown = [
        spec.name
        for spec in ctx.model.signature().inputs
        if spec.shape is None or any(not isinstance(size, int) for size in spec.shape)
    ]
    if row is not None and unknown:
        text = f"{', '.join(unknown)} has dimensions that are not fixed: {row.why}"
        ctx.warn("QNT122", None, text, hint=row.instead)


def needs_reduced_range(target: Target) -> bool:
    """Whether weights have to have 7 bits: the table says so, or it is this processor that matters."""
    if target.weight.bits is not None:
        return target.weight.bits < 8
    return target.provider == "cpu" and target.machine is None and saturates()
