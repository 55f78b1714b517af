"""What operators make of channels that hold one number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from onnxcomp.analysis.channels.elementwise import BROADCAST, UNARY
from onnxcomp.errors import UserError
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, subgraphs

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp_passes.prune.support.constancy import Constancy

    Rule: TypeAlias = Callable[[Constancy, ir.Node], None]

Array = np.ndarray[Any, Any]
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16})
_MOVES = frozenset(
    [
        "Concat",
        "Split",
        "Slice",
        "Gather",
        "Transpose",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Expand",
        "Tile",
    ]
)
_SPATIAL = frozenset(
    ["MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin"]
)


def _moved(constancy: Constancy, node: ir.Node) -> None:
    sources = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    constancy.move(node, [value for value in sources if value is not None], np.isfinite)


def _spatial(constancy: Constancy, node: ir.Node) -> None:
    source = node.inputs[0]
    if source is not None:
        constancy.move(node, [source], np.isfinite)


def _zeros(constancy: Constancy, node: ir.Node) -> None:
    """Operators for which only a channel of zeros surely stays what it is."""
    source = node.inputs[0]
    if source is not None:
        constancy.move(node, [source], lambda number: number == 0)


def _average_pool(constancy: Constancy, node: ir.Node) -> None:
    padded = any(attribute(node, "pads", ())) or attribute(node, "auto_pad", "NOTSET") != "NOTSET"
    counted = padded and attribute(node, "count_include_pad", 0)
    (_zeros if counted else _spatial)(constancy, node)


def _pad(constancy: Constancy, node: ir.Node) -> None:
    if attribute(node, "mode", "constant") != "constant":
        _spatial(constancy, node)
        return
    given = input_at(node, 2)
    value = attribute(node, "value", 0.0) if given is None else array(given, limit=1)
    source = node.inputs[0]
    if source is not None and value is not None:
        fill = float(np.asarray(value).reshape(-1)[0])
        constancy.move(node, [source], lambda number: number == fill)


def _resize(constancy: Constancy, node: ir.Node) -> None:
    nearest = attribute(node, "mode", "nearest") == "nearest"
    crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    (_spatial if nearest and not crops else _zeros)(constancy, node)


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution sees zeros around its input."""
    if attribute(node, "auto_pad", "NOTSET") in {"SAME_UPPER", "SAME_LOWER"}:
        return True
    return any(attribute(node, "pads", ()))


def _conv(constancy: Constancy, node: ir.Node) -> None:
    """A filter that is zero wherever its input varies gives the same number everywhere."""
    weight, source = array(node.inputs[1]), node.inputs[0]
    bias = _bias(node, 2, weight.shape[0] if weight is not None else 0)
    if weight is None or source is None or bias is None or not constancy.axes(node.outputs[0]):
        return
    group = attribute(node, "group", 1)
    held = constancy.of(source, 1).reshape(group, 1, -1)
    if is_padded(node):
        held = np.where(held == 0, 0.0, np.nan)
    rows = weight.reshape(group, -1, weight.shape[1], int(np.prod(weight.shape[2:])))
    constancy.store(node.outputs[0], 1, _summed(rows, held, bias))


def _conv_transpose(constancy: Constancy, node: ir.Node) -> None:
    """A filter of zeros gives its bias; others overlap differently at the borders."""
    weight, source = array(node.inputs[1]), node.inputs[0]
    group = attribute(node, "group", 1)
    bias = _bias(node, 2, weight.shape[1] * group if weight is not None else 0)
    if weight is None or source is None or bias is None or not constancy.axes(node.outputs[0]):
        return
    held = constancy.of(source, 1).reshape(group, 1, -1)
    held = np.where(held == 0, 0.0, np.nan)
    rows = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1).swapaxes(1, 2)
    constancy.store(node.outputs[0], 1, _summed(rows, held, bias))


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
    found = array(value)
    return None if found is None else found.astype(np.float64)


def _matmul(constancy: Constancy, node: ir.Node) -> None:
    weight, source = array(node.inputs[1]), node.inputs[0]
    if weight is None:
        _product(constancy, node)
        return
    if source is None or weight.ndim != 2 or not constancy.axes(node.outputs[0]):
        return
    rank = constancy.shapes.rank(source) or 0
    if rank < 2:
        return
    held = constancy.of(source, rank - 1).reshape(1, 1, -1)
    rows = weight.T[None, :, :, None]
    out = (constancy.shapes.rank(node.outputs[0]) or 1) - 1
    constancy.store(node.outputs[0], out, _summed(rows, held, np.zeros(weight.shape[1])))


def _product(constancy: Constancy, node: ir.Node) -> None:
    """Of two operands that both vary: what one has zeros for, is zero."""
    out = node.outputs[0]
    rank = constancy.shapes.rank(out) or 0
    for axis in constancy.axes(out):
        zero: Array = constancy.of(out, axis) == 0  # nothing is known yet: all False
        for place, value in enumerate(node.inputs):
            own = constancy.shapes.rank(value)
            # Rows come from the left, columns from the right, everything before from both.
            if value is None or own is None or (axis == rank - 2 + (1 - place)):
                continue
            index = axis - (rank - own)
            if index >= 0 and (constancy.shapes.shape(value) or ())[index] == len(zero):
                zero = zero | (constancy.of(value, index) == 0)
        constancy.store(out, axis, np.where(zero, 0.0, np.nan))


def _gemm(constancy: Constancy, node: ir.Node) -> None:
    weight, source = array(node.inputs[1]), node.inputs[0]
    if weight is None or source is None or not constancy.axes(node.outputs[0]):
        return
    matrix = weight if attribute(node, "transB", 0) else weight.T
    added = input_at(node, 2)
    bias = np.zeros(len(matrix)) if added is None else _row(array(added), len(matrix))
    if bias is None:
        return
    held = constancy.of(source, 0 if attribute(node, "transA", 0) else 1).reshape(1, 1, -1)
    rows = matrix[None, :, :, None] * float(attribute(node, "alpha", 1.0))
    numbers = _summed(rows, held, bias * float(attribute(node, "beta", 1.0)))
    constancy.store(node.outputs[0], 1, numbers)


def _row(bias: Array | None, size: int) -> Array | None:
    """Returns a bias as one row, None when rows differ."""
    if bias is None or (bias.ndim == 2 and bias.shape[0] != 1):
        return None
    return np.broadcast_to(bias.reshape(-1), (size,)).astype(np.float64)


def _batch_normalization(constancy: Constancy, node: ir.Node) -> None:
    parameters = [array(value) for value in node.inputs[1:5]]
    source = node.inputs[0]
    if (
        source is None
        or any(found is None for found in parameters)
        or attribute(node, "training_mode", 0)
    ):
        return
    scale, shift, mean, variance = (np.asarray(found, np.float64) for found in parameters)
    held = constancy.of(source, 1)
    factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    numbers = np.where(factor == 0, shift, (held - mean) * factor + shift)
    constancy.store(node.outputs[0], 1, numbers)


def _elementwise(constancy: Constancy, node: ir.Node) -> None:
    """Computes what operands that hold numbers make of them, with the runtime's own kernel."""
    spread = node.op_type in BROADCAST
    operands = list(node.inputs if spread else node.inputs[:1])
    if not (constancy.anything(operands) or node.op_type == "Mul"):
        return
    for axis in constancy.axes(node.outputs[0]):
        vectors = [_aligned(constancy, value, node.outputs[0], axis) for value in operands]
        held = np.stack(vectors)
        numbers = np.full(held.shape[1], np.nan)
        known = ~np.isnan(held).any(0)
        if known.any():
            numbers[known] = _computed(constancy, node, held[:, known], spread=spread)
        if node.op_type == "Mul":
            numbers[(held == 0).any(0)] = 0
        constancy.store(node.outputs[0], axis, numbers)


def _aligned(constancy: Constancy, value: ir.Value | None, out: ir.Value, axis: int) -> Array:
    """Returns what an operand holds at each position of a result's axis."""
    shapes = constancy.shapes
    size = (shapes.shape(out) or ())[axis]
    count = size if isinstance(size, int) else 0
    rank, own = shapes.rank(out) or 0, shapes.rank(value)
    if value is None or own is None:
        return np.full(count, np.nan)
    place = axis - (rank - own)
    dims = shapes.shape(value) or ()
    if place >= 0 and dims[place] == count:
        return constancy.of(value, place)
    tensor = constant(value)
    if tensor is None or tensor.dtype not in FLOATS or not tensor.size:
        return np.full(count, np.nan)
    flat = tensor.numpy().reshape(-1)
    return np.full(count, float(flat[0]) if (flat == flat[0]).all() else np.nan)


def _computed(constancy: Constancy, node: ir.Node, held: Array, *, spread: bool) -> Array:
    """Runs the operator on vectors; unknown where the runtime does not."""
    from onnxcomp.runtime import Session

    rest = [] if spread else list(node.inputs[1:])
    extra = [array(value, limit=1) for value in rest]
    if any(value is not None and found is None for value, found in zip(rest, extra, strict=True)):
        return np.full(held.shape[1], np.nan)
    dtype = constancy.shapes.dtype(node.inputs[0]) or ir.DataType.FLOAT
    feeds = {f"x{index}": row.astype(dtype.numpy()) for index, row in enumerate(held)}
    for index, found in enumerate(extra, len(feeds)):
        if found is not None:
            feeds[f"x{index}"] = found
    try:
        with Session.open(_alone(node, feeds, constancy.opset), optimization="disable") as session:
            (result,) = session.run(feeds).values()
    except UserError:
        return np.full(held.shape[1], np.nan)
    return np.asarray(result, np.float64)


def _alone(node: ir.Node, feeds: dict[str, Array], opset: int) -> onnx.ModelProto:
    proto = ir.serde.serialize_node(node)
    count = len(node.inputs)
    del proto.input[:], proto.output[:]
    proto.input.extend(f"x{index}" if f"x{index}" in feeds else "" for index in range(count))
    proto.output.append("y")
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(found.dtype), found.shape
        )
        for name, found in feeds.items()
    ]
    graph = onnx.helper.make_graph([proto], "one", inputs, [onnx.ValueInfoProto(name="y")])
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_model(graph, ir_version=10, opset_imports=imports)


def _recurrent(constancy: Constancy, node: ir.Node) -> None:
    """A hidden unit whose candidate is always zero stays at zero, where it starts."""
    weight, recurrence = array(node.inputs[1]), array(node.inputs[2])
    states = [input_at(node, 5), *([input_at(node, 6)] if node.op_type == "LSTM" else [])]
    if weight is None or recurrence is None or node.attributes.get("activations") is not None:
        return
    if any(state is not None and not _is_zero(state) for state in states):
        return
    units = recurrence.shape[2]
    given = input_at(node, 3)
    bias = np.zeros((len(weight), 2 * weight.shape[1])) if given is None else array(given)
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
    for output in node.outputs:
        for axis in constancy.axes(output):
            constancy.store(output, axis, np.where(quiet, 0.0, np.nan))


def _is_zero(value: ir.Value) -> bool:
    found = array(value)
    return found is not None and not found.any()


def _branches(constancy: Constancy, node: ir.Node) -> None:
    """What both branches hold, whichever runs."""
    bodies = list(subgraphs(node))
    for place, output in enumerate(node.outputs):
        for axis in constancy.axes(output):
            held = np.stack([constancy.of(body.outputs[place], axis) for body in bodies])
            constancy.store(output, axis, np.where((held == held[0]).all(0), held[0], np.nan))


def _einsum(constancy: Constancy, node: ir.Node) -> None:
    """Where one operand has zeros along an axis that stays, so has the result."""
    terms, arrow, result = str(attribute(node, "equation", "")).replace(" ", "").partition("->")
    if not arrow or "." in terms:
        return
    for axis in constancy.axes(node.outputs[0]):
        zero: Array = constancy.of(node.outputs[0], axis) == 0
        for term, value in zip(terms.split(","), node.inputs, strict=False):
            if value is not None and term.count(result[axis]) == 1:
                zero = zero | (constancy.of(value, term.index(result[axis])) == 0)
        constancy.store(node.outputs[0], axis, np.where(zero, 0.0, np.nan))


RULES: dict[str, Rule] = {
    "If": _branches,
    "Einsum": _einsum,
    **dict.fromkeys(UNARY | BROADCAST, _elementwise),
    **dict.fromkeys(_MOVES, _moved),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(
        ("LpPool", "GlobalLpPool", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"), _zeros
    ),
    "AveragePool": _average_pool,
    "Pad": _pad,
    "Resize": _resize,
    "Upsample": _resize,
    "DepthToSpace": _moved,
    "SpaceToDepth": _moved,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "BatchNormalization": _batch_normalization,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
}
