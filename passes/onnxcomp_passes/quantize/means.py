"""Means of the channels that weights read."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, constant, is_op, single_use
from onnxcomp.quant.balance import observe_channels

if TYPE_CHECKING:
    import numpy as np

    from onnxcomp.passbase import Context
    from onnxcomp.quant.candidates import Candidate, Candidates

# Samples that a mean is taken over.
_SAMPLES = 16


def channel_means(ctx: Context, candidates: Candidates) -> dict[str, np.ndarray]:
    """Returns the mean of each input channel of nodes that have a bias, by key."""
    wanted = [c for c in candidates if c.weight is not None and _has_bias(c)]
    if not wanted or ctx.samples is None:
        return {}
    names = {c.key: c.inputs[0].name or "" for c in wanted}
    stats = observe_channels(
        ctx.model,
        {names[c.key]: -1 if is_op(c.node, "MatMul") else 1 for c in wanted},
        {names[c.key]: _channels(c) for c in wanted},
        itertools.islice(ctx.samples, _SAMPLES),
        threads=ctx.threads,
        progress=ctx.progress,
    )
    return {key: stats[name].mean for key, name in names.items()}


def _has_bias(candidate: Candidate) -> bool:
    """Whether there is a bias to correct: an input, or an Add behind a MatMul."""
    if is_op(candidate.node, "MatMul"):
        tensor = constant(candidate.node.inputs[1])
        reader = single_use(candidate.node.outputs[0])
        return tensor is not None and len(tensor.shape) == 2 and is_op(reader, "Add")
    index = candidate.family.bias
    inputs = candidate.node.inputs
    return index is not None and index < len(inputs) and inputs[index] is not None


def _channels(candidate: Candidate) -> int:
    tensor = constant(candidate.node.inputs[1])
    if tensor is None:
        raise ValueError(f"no constant weight: {candidate.key}")
    shape = tuple(tensor.shape.numpy())
    if is_op(candidate.node, "Conv"):
        return int(shape[1] * attribute(candidate.node, "group", 1))
    return int(shape[1] if attribute(candidate.node, "transB", 0) else shape[0])
