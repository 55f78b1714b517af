"""Channels that weights read: where they are, and their means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import attribute, constant, is_op, single_use

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy as np

    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.quant.channels import Channels

_REORDERING = frozenset(
    {"DepthToSpace", "Flatten", "Reshape", "SpaceToDepth", "Squeeze", "Transpose", "Unsqueeze"}
)


def read_channels(candidates: Candidates) -> dict[str, tuple[int, int]]:
    """Returns axis and number of the channels that weights read, by value.

    A value that is read along different axes has those of its first reader.
    """
    found: dict[str, tuple[int, int]] = {}
    for candidate in candidates:
        if candidate.weight is not None:
            found.setdefault(_source(candidate), _channels(candidate))
    return {name: channels for name, channels in found.items() if channels[1]}


def same_values(candidates: Candidates, apart: Collection[str]) -> dict[str, str]:
    """Returns values that hold the same numbers as another one in another order, with that one.

    Args:
        candidates: Nodes in the order of the graph.
        apart: Values that are to be looked at for themselves.
    """
    found: dict[str, str] = {}
    for candidate in candidates:
        if candidate.node.op_type in _REORDERING:
            for point in candidate.points:
                if point.name not in apart:
                    source = candidate.inputs[0].name or ""
                    found[point.name or ""] = found.get(source, source)
    return found


def channel_means(candidates: Candidates, seen: Mapping[str, Channels]) -> dict[str, np.ndarray]:
    """Returns the mean of each input channel of nodes that have a bias, by key."""
    means = {}
    for candidate in candidates:
        found = seen.get(_source(candidate))
        if found is None or candidate.weight is None or not _has_bias(candidate):
            continue
        if (found.axis, found.size) == _channels(candidate) and found.count:
            means[candidate.key] = found.mean
    return means


def _source(candidate: Candidate) -> str:
    """The value that a weight multiplies, whether or not it is quantized right there."""
    value = candidate.node.inputs[0]
    return "" if value is None else value.name or ""


def _has_bias(candidate: Candidate) -> bool:
    """Whether there is a bias to correct: an input, or an Add behind a MatMul."""
    if is_op(candidate.node, "MatMul"):
        tensor = constant(candidate.node.inputs[1])
        reader = single_use(candidate.node.outputs[0])
        return tensor is not None and len(tensor.shape) == 2 and is_op(reader, "Add")
    index = candidate.family.bias
    inputs = candidate.node.inputs
    return index is not None and index < len(inputs) and inputs[index] is not None


def _channels(candidate: Candidate) -> tuple[int, int]:
    """Axis of the channels of the activation that a weight reads, and how many there are."""
    tensor = constant(candidate.node.inputs[1])
    shape = () if tensor is None else tuple(tensor.shape.numpy())
    if is_op(candidate.node, "Conv"):
        return 1, int(shape[1] * attribute(candidate.node, "group", 1))
    if is_op(candidate.node, "MatMul"):
        return -1, int(shape[-2]) if len(shape) > 1 else 0
    if is_op(candidate.node, "Gemm") and not attribute(candidate.node, "transA", 0):
        return 1, int(shape[1] if attribute(candidate.node, "transB", 0) else shape[0])
    if is_op(candidate.node, "ConvTranspose"):
        return 1, int(shape[0])
    return 1, 0
