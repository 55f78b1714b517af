"""What passes that recover accuracy layer by layer have in common."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeVar

from onnxcomp.quant.recovery import Recovery
from onnxcomp.quant.rounded import quantized_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.passbase import Context
    from onnxcomp.quant.recovery import Verdict

# One sample of so many only decides whether a change stays.
_EVERY = 4
# Samples behind those that layers are improved on; they only decide too, which takes little time.
_MORE = 32

CODES: Mapping[str, str] = {
    "RCV101": "The change of these layers brought the model nearer to float on samples held out, and stays.",
    "RCV102": "The change of these layers did not bring the model nearer to float on samples held out, so "
    "it was taken back.",
    "RCV103": "The float model has no layer that this one comes from, or one that gives something else, so "
    "it was left alone. A pass that renames or merges nodes may stand between the two models.",
    "RCV104": "No layer of the model has a weight behind a DequantizeLinear. Quantize it first.",
    "RCV105": "The model cannot be run piece by piece, because a sequence or a map lies between its layers, "
    "or its outputs do not tell how near to float they are.",
}


Kind = TypeVar("Kind", bound=Recovery)


def recovery(
    ctx: Context, count: int, kind: type[Kind], *, rows: int = 256, chunks: int = 12
) -> Kind | None:
    """Returns what goes through the layers, None where samples or the float model are missing."""
    if ctx.samples is None or ctx.reference is None:
        return None
    feeds = list(itertools.islice(ctx.samples, count + _MORE))
    used, more = feeds[:count], feeds[count:]
    rest = [feed for index, feed in enumerate(used) if index % _EVERY != _EVERY - 1]
    held_out = [*used[_EVERY - 1 :: _EVERY], *more] or [rest.pop()]
    return kind(
        ctx.model,
        ctx.edit,
        ctx.reference,
        rest,
        held_out,
        threads=ctx.threads,
        rows=rows,
        chunks=chunks,
        progress=ctx.progress,
    )


def report(ctx: Context, work: Recovery, verdicts: Sequence[Verdict], what: str) -> None:
    """Says what was kept, taken back and left alone."""
    if work.problem:
        ctx.skip("RCV105", None, work.problem)
    for layer in work.unmatched:
        ctx.skip("RCV103", layer.node, "it has no counterpart in the float model")
    for verdict in verdicts:
        place = verdict.layers[0]
        more = f" and {len(verdict.layers) - 1} more" if len(verdict.layers) > 1 else ""
        numbers = f"{verdict.before:.2f} dB before, {verdict.after:.2f} dB after"
        if verdict.kept:
            ctx.note("RCV101", place, f"{what}{more}: {numbers}")
            ctx.edit.count(what, len(verdict.layers))
        else:
            ctx.near("RCV102", place, f"taken back{more}: {numbers}")
    if not work.problem and not quantized_layers(ctx.model.graph):
        ctx.skip("RCV104", None, "no layer has a quantized weight")
