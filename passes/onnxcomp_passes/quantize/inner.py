"""Quantizes the bodies of If and Loop as models of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import constant, is_read
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.bodies import collect, find_bodies, put_back

if TYPE_CHECKING:
    from onnxcomp.passbase import Context, Pass
    from onnxcomp.quant.bodies import Body

# Without one of these a body is not worth looking into.
_HEAVY = frozenset({"Conv", "Gemm", "MatMul"})


def bodies_with_samples(ctx: Context) -> list[Body]:
    """Returns bodies with heavy operators, and what they are given on the samples."""
    bodies = find_bodies(ctx.model, ctx.facts.refresh(Shapes()), _HEAVY)
    if bodies and ctx.samples is not None:
        collect(ctx.model, bodies, ctx.samples, threads=ctx.threads)
    return bodies


def quantize_bodies(ctx: Context, step: Pass, bodies: list[Body], code: str) -> int:
    """Runs a pass on each body; returns how many it changed."""
    changed = 0
    read = [value for value in ctx.model.graph.initializers.values() if is_read(value)]
    for body in bodies:
        place = f"{body.attribute} of {body.node.op_type} {body.node.name or ''}".strip()
        if not body.samples:
            ctx.skip(code, body.node, f"no sample came through {place}")
            continue
        pipeline = Pipeline((step,), target=ctx.target_name)
        result = pipeline.run(
            body.model, samples=body.samples, threads=ctx.threads, progress=ctx.progress
        )
        ctx.diagnostics.extend(result.diagnostics)
        if result.changed:
            put_back(ctx.edit, body, result.model)
            changed += 1
            for outcome in result.outcomes:
                for what, number in outcome.stats.items():
                    ctx.edit.count(what, number)
    # Bodies have weights of their own now, in place of those that they captured.
    unread = (value for value in read if not is_read(value) and constant(value) is not None)
    ctx.edit.drop_initializers(unread)
    return changed
