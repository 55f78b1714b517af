"""What layers with weights make of channels that hold one number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import attribute, input_at, producer_of
from onnxcomp_passes.prune.support.stored import weight_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.ir import ir
    from onnxcomp_passes.prune.support.constancy import Constancy

Array = np.ndarray[Any, Any]


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution sees zeros around its input."""
    if attribute(node, "auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        return True
    return any(attribute(node, "pads", ()))


def _conv(constancy: Constancy, node: ir.Node) -> None:
    """A filter that is zero wherever its input varies gives the same number everywhere."""
    weight, source = weight_of(node.inputs[1]), node.inputs[0]
    bias = _bias(node, 2, weight.shape[0] if weight is not None else 0)
    if weight is None or not weight.size or source is None or bias is None:
        return
    group = attribute(node, "group", 1)
    held = _held(constancy, source, 1, group * weight.shape[1]).reshape(group, 1, -1)
    if is_padded(node):
        held = np.where(held == 0, 0.0, np.nan)
    rows = weight.reshape(group, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    constancy.store(node.outputs[0], 1, _summed(rows, held, bias))


def _conv_transpose(constancy: Constancy, node: ir.Node) -> None:
    """A filter of zeros gives its bias; others overlap differently at the borders."""
    weight, source = weight_of(node.inputs[1]), node.inputs[0]
    group = attribute(node, "group", 1)
    bias = _bias(node, 2, weight.shape[1] * group if weight is not None else 0)
    if weight is None or not weight.size or source is None or bias is None:
        return
    held = _held(constancy, source, 1, len(weight)).reshape(group, 1, -1)
    held = np.where(held == 0, 0.0, np.nan)
    rows = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).swapaxes(1, 2)
    constancy.store(node.outputs[0], 1, _summed(rows, held, bias))


def _held(constancy: Constancy, source: ir.Value, axis: int, size: int) -> Array:
    """Returns what an operand holds, as many numbers as a weight has for it."""
    held = constancy.of(source, axis)
    return held if len(held) == size else np.full(size, np.nan)


def _summed(rows: Array, held: Array, bias: Array) -> Array:
    """Returns the number of each filter, NaN where it meets something that varies.

    Args:
        rows: [groups, filters, inputs, taps] weights.
        held: [groups, 1, inputs] what inputs hold, NaN where it varies.
        bias: [groups * filters] what is added.
    """
    meets = (rows != 0).any(3)
    varies = (meets & np.isnan(held)).any(2)
    total = (rows.sum(3, dtype=np.float64) * np.nan_to_num(held)).sum(2)
    numbers: Array = np.where(varies, np.nan, total).reshape(-1) + bias
    return numbers


def _bias(node: ir.Node, index: int, size: int) -> Array | None:
    """Returns a bias, zeros when there is none, None when it is not constant."""
    value = input_at(node, index)
    if value is None:
        return np.zeros(size)
    found = weight_of(value)
    return None if found is None else found.astype(np.float64)


def _matmul(constancy: Constancy, node: ir.Node) -> None:
    weight, source = weight_of(node.inputs[1]), node.inputs[0]
    if weight is None:
        _product(constancy, node)
        return
    if source is None or weight.ndim != 2:
        return
    rank = constancy.shapes.rank(source) or 0
    if rank < 2:
        return
    held = _held(constancy, source, rank - 1, len(weight)).reshape(1, 1, -1)
    rows = weight.T[None, :, :, None]
    out = (constancy.shapes.rank(node.outputs[0]) or 1) - 1
    constancy.store(node.outputs[0], out, _summed(rows, held, np.zeros(weight.shape[1])))


def _product(constancy: Constancy, node: ir.Node) -> None:
    """Of two operands that both vary: what one has zeros for, is zero; a mean of a number is it."""
    out = node.outputs[0]
    rank = constancy.shapes.rank(out) or 0
    for axis in constancy.axes(out):
        numbers = np.where(constancy.of(out, axis) == 0, 0.0, np.nan)  # all NaN so far
        for place, value in enumerate(node.inputs):
            own = constancy.shapes.rank(value)
            # Rows come from the left, columns from the right, everything before from both.
            if value is None or own is None or (axis == rank - 2 + (1 - place)):
                continue
            index = axis - (rank - own)
            if index < 0 or own < 2 or (constancy.shapes.shape(value) or ())[index] != len(numbers):
                continue
            held = constancy.of(value, index)
            averages = place == 1 and axis == rank - 1 and _is_softmax(constancy, node.inputs[0])
            numbers = np.where((held == 0) | averages, held, numbers)
        constancy.store(out, axis, numbers)


def _is_softmax(constancy: Constancy, value: ir.Value | None) -> bool:
    """Whether the rows of a matrix add up to one."""
    node, rank = producer_of(value, "Softmax"), constancy.shapes.rank(value)
    version = constancy.opset if node is None or node.version is None else node.version
    return (
        node is not None
        and rank is not None
        and attribute(node, "axis", -1 if version >= 13 else 1) in {-1, rank - 1}
    )


def _gemm(constancy: Constancy, node: ir.Node) -> None:
    weight, source = weight_of(node.inputs[1]), node.inputs[0]
    if weight is None or source is None:
        return
    matrix = weight if attribute(node, "transB", 0) else weight.T
    added = input_at(node, 2)
    bias = np.zeros(len(matrix)) if added is None else _row(weight_of(added), len(matrix))
    if bias is None:
        return
    read = 0 if attribute(node, "transA", 0) else 1
    held = _held(constancy, source, read, matrix.shape[1]).reshape(1, 1, -1)
    rows = matrix[None, :, :, None] * float(attribute(node, "alpha", 1.0))
    numbers = _summed(rows, held, bias * float(attribute(node, "beta", 1.0)))
    constancy.store(node.outputs[0], 1, numbers)


def _row(bias: Array | None, size: int) -> Array | None:
    """Returns a bias as one row, None when rows differ."""
    if bias is None or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    return np.broadcast_to(bias.reshape(-1), (size,)).astype(np.float64)


def _batch_normalization(constancy: Constancy, node: ir.Node) -> None:
    parameters = [weight_of(value) for value in node.inputs[1:5]]
    source = node.inputs[0]
    # Before opset 9 there could be numbers for each position in space.
    if source is None or any(found is None or found.ndim != 1 for found in parameters):
        return
    scale, shift, mean, variance = (np.asarray(found, np.float64) for found in parameters)
    held = _held(constancy, source, 1, len(scale))
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        numbers = np.where(factor == 0, shift, (held - mean) * factor + shift)
    constancy.store(node.outputs[0], 1, numbers)


def _instance_normalization(constancy: Constancy, node: ir.Node) -> None:
    """A channel of zeros has no variance, and one that is scaled by zero none that shows."""
    scale, shift = weight_of(node.inputs[1]), weight_of(node.inputs[2])
    source = node.inputs[0]
    if scale is None or shift is None or source is None:
        return
    quiet = (_held(constancy, source, 1, len(scale)) == 0) | (scale == 0)
    constancy.store(node.outputs[0], 1, np.where(quiet, shift.astype(np.float64), np.nan))


def _recurrent(constancy: Constancy, node: ir.Node) -> None:
    """A hidden unit whose candidate is always zero stays at zero, where it starts."""
    weight, recurrence = weight_of(node.inputs[1]), weight_of(node.inputs[2])
    states = [input_at(node, 5), *([input_at(node, 6)] if node.op_type == "LSTM" else [])]
    if weight is None or recurrence is None or node.attributes.get("activations") is not None:
        return
    units = recurrence.shape[2]
    starts = [_start(constancy, state, units) for state in states if state is not None]
    given = input_at(node, 3)
    bias = np.zeros((len(weight), 2 * weight.shape[1])) if given is None else weight_of(given)
    if bias is None:
        return
    # The candidate is the last gate: iofc of an LSTM, zrh of a GRU, the only one of an RNN.
    last = slice(weight.shape[1] - units, weight.shape[1])
    halves = bias.reshape(len(weight), 2, -1)
    quiet = ~(
        weight[:, last].any((0, 2))
        | recurrence[:, last].any((0, 2))
        | halves[:, :, last].any((0, 1))
    )
    for start in starts:
        quiet &= start == 0
    for output in node.outputs:
        rank = constancy.shapes.rank(output) if output.name else None
        if rank:
            constancy.store(output, rank - 1, np.where(quiet, 0.0, np.nan))


def _start(constancy: Constancy, state: ir.Value, units: int) -> Array:
    return _held(constancy, state, (constancy.shapes.rank(state) or 1) - 1, units)


LAYERS: dict[str, Callable[[Constancy, ir.Node], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _instance_normalization,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
