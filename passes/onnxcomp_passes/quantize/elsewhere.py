"""Quantizing for a target that is not this machine: what cannot be measured here, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.bench import Limits, measure
from onnxcomp.runtime import available_providers
from onnxcomp.targets.features import runs_here, saturates

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np

    from onnxcomp.passbase import Context
    from onnxcomp.targets import Target
    from onnxcomp_passes.quantize.trial import Bench

_SECONDS = 3.0
# int8 must be this much faster than float, or it may only look so.
_WORTH_IT = 0.98

CODES = {
    "QNT120": "The execution provider of the target computes nothing in int8, so Q/DQ would only cost "
    "time. The table of the target (`onnxcomp targets NAME`) says what it computes instead.",
    "QNT121": "The provider of the target, or the processor that it stands for, is not on this machine, so "
    "nothing was measured: what is quantized follows from the table of the target. Compare the result "
    "with the float model there.",
    "QNT122": "The target refuses something that this model has.",
    "QNT123": "The provider compiles whole graphs, so nodes cannot be timed: float and int8 were timed as wholes.",
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


def place_by_table(
    ctx: Context, bench: Bench, feeds: Callable[[], Mapping[str, np.ndarray]]
) -> frozenset[str]:
    """Returns all that the table of the target names; nothing when the provider is here and not faster.

    Args:
        ctx: Where to say so.
        bench: The model.
        feeds: Gives a run's worth of samples.
    """
    everything = frozenset(bench.candidates.found)
    target = ctx.target
    if not runs_here(target):
        text = f"not measured ({_obstacle(target)}): placement follows the table of {target.name}"
        ctx.warn("QNT121", None, text)
        return everything
    models = {"float": bench.model.copy()}
    with bench.applied(bench.plan(everything)) as model:
        models["int8"] = model.copy()
    limits = Limits(seconds=_SECONDS)
    timings = measure(models, feeds(), provider=target.provider, threads=ctx.threads, limits=limits)
    ratio = timings["int8"].ratio
    # The upper end of the interval counts, so that noise is not taken for a gain.
    if ratio.high < _WORTH_IT:
        text = (
            f"all that {target.name} takes in int8 runs in {ratio.median:.2f} of the time of float"
        )
        ctx.note("QNT123", None, text)
        return everything
    ctx.skip("QNT107", None, f"in int8 the model took {ratio.median:.2f} times as long")
    return frozenset()


def _obstacle(target: Target) -> str:
    if target.provider not in available_providers():
        return f"the provider {target.provider} is not here"
    if target.machine is None:
        return f"{target.provider} is not to be measured here"
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
