"""What passes that recover accuracy layer by layer have in common."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from onnxcomp.quant.recovery import Recovery

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.passbase import Context
    from onnxcomp.quant.recovery import Verdict

# One sample of so many only decides whether a change stays.
_EVERY = 4

CODES: Mapping[str, str] = {
    "RCV101": "The change of these layers brought the model nearer to float on samples held out, and stays.",
    "RCV102": "The change of these layers did not bring the model nearer to float on samples held out, so "
    "it was taken back.",
    "RCV103": "The float model has no layer that this one comes from, or one that gives something else, so "
    "it was left alone. A pass that renames or merges nodes may stand between the two models.",
    "RCV104": "No layer of the model has a weight behind a DequantizeLinear. Quantize it first.",
}


def recovery(ctx: Context, count: int, *, rows: int = 256, chunks: int = 12) -> Recovery | None:
    """Returns what goes through the layers, None where samples or the float model are missing."""
    if ctx.samples is None or ctx.reference is None:
        return None
    feeds = list(itertools.islice(ctx.samples, count))
    held_out = feeds[_EVERY - 1 :: _EVERY] or feeds[-1:]
    rest = [feed for index, feed in enumerate(feeds) if index % _EVERY != _EVERY - 1]
    return Recovery(
        ctx.model,
        ctx.edit,
        ctx.reference,
        rest[:-1] if rest[-1] is held_out[-1] else rest,
        held_out,
        threads=ctx.threads,
        rows=rows,
        chunks=chunks,
        progress=ctx.progress,
    )


def report(ctx: Context, work: Recovery, verdicts: Sequence[Verdict], what: str) -> None:
    """Says what was kept, taken back and left alone."""
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
    if not verdicts and not work.unmatched:
        ctx.skip("RCV104", None, "no layer has a quantized weight")
