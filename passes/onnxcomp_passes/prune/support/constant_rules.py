"""What operators make of channels that hold one number."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx

from onnxcomp.analysis.channels.elementwise import BROADCAST, UNARY
from onnxcomp.errors import UserError
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, input_at, standard_op, subgraphs
from onnxcomp_passes.prune.support.constant_layers import LAYERS
from onnxcomp_passes.prune.support.relations import MOVES
from onnxcomp_passes.prune.support.stored import FLOATS, weight_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp_passes.prune.support.constancy import Constancy

    Rule: TypeAlias = Callable[[Constancy, ir.Node], None]

Array = np.ndarray[Any, Any]
# What elements may be quantized to on their way.
_INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})
_SPATIAL = frozenset(
    ["MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMean", "ReduceMax", "ReduceMin"]
)


# Rounded correctly by everybody: no session is needed to know what they give.
_EXACT: dict[str, np.ufunc] = {
    "Abs": np.abs,
    "Add": np.add,
    "Div": np.divide,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
}


def is_known_type(shapes: ShapeMap, node: ir.Node) -> bool:
    """Whether an operator puts out numbers that are followed: floating point, and quantized ones."""
    dtype = next((shapes.dtype(output) for output in node.outputs if output.name), None)
    hands_on = MOVES | {"QuantizeLinear", "MaxPool", "GlobalMaxPool"}
    return dtype in FLOATS or (dtype in _INTEGERS and standard_op(node) in hands_on)


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


def _constant_of_shape(constancy: Constancy, node: ir.Node) -> None:
    given = node.attributes.get("value")
    number = 0.0 if given is None else float(given.as_tensor().numpy().reshape(-1)[0])
    sizes = constancy.shapes.shape(node.outputs[0]) or ()
    for axis in constancy.axes(node.outputs[0]):
        size = sizes[axis]
        constancy.store(node.outputs[0], axis, np.full(size, number))


def _resize(constancy: Constancy, node: ir.Node) -> None:
    nearest = attribute(node, "mode", "nearest") == "nearest"
    crops = attribute(node, "coordinate_transformation_mode", "") == "tf_crop_and_resize"
    (_spatial if nearest and not crops else _zeros)(constancy, node)


def _elementwise(constancy: Constancy, node: ir.Node) -> None:
    """Computes what operands that hold numbers make of them, with the runtime's own kernel."""
    spread = node.op_type in BROADCAST
    operands = list(node.inputs if spread else node.inputs[:1])
    masks = node.op_type == "Mul" and any(weight_of(value) is not None for value in operands)
    if not (constancy.anything(operands) or masks) or "broadcast" in node.attributes:
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
    found = weight_of(value)
    if found is None or found.dtype.kind not in "fbiu" or not found.size:
        return np.full(count, np.nan)
    flat = found.reshape(-1)
    return np.full(count, float(flat[0]) if (flat == flat[0]).all() else np.nan)


def _where(constancy: Constancy, node: ir.Node) -> None:
    """What is picked: the same at every position along an axis, or equal on both sides."""
    if not constancy.anything(node.inputs) and weight_of(node.inputs[0]) is None:
        return
    for axis in constancy.axes(node.outputs[0]):
        picks, one, other = (_aligned(constancy, v, node.outputs[0], axis) for v in node.inputs)
        picked = np.where(picks == 0, other, np.where(np.isnan(picks), np.nan, one))
        constancy.store(node.outputs[0], axis, np.where(one == other, one, picked))


def _quantize(constancy: Constancy, node: ir.Node) -> None:
    """Numbers of the integer type that channels are rounded to."""
    dtype = constancy.shapes.dtype(node.outputs[0])
    for axis, held, scale, zero in _scaled(constancy, node):
        if dtype in _INTEGERS:
            limits = np.iinfo(dtype.numpy())
            with np.errstate(divide="ignore", invalid="ignore"):
                rounded = np.rint((held / scale).astype(np.float32)) + zero
            constancy.store(node.outputs[0], axis, np.clip(rounded, limits.min, limits.max))


def _dequantize(constancy: Constancy, node: ir.Node) -> None:
    for axis, held, scale, zero in _scaled(constancy, node):
        constancy.store(node.outputs[0], axis, (held - zero) * scale)


def _scaled(constancy: Constancy, node: ir.Node) -> Iterator[tuple[int, Array, Array, Array]]:
    """Yields axes of which something is known, with what they hold, scales and zero points."""
    source, scale = node.inputs[0], array(node.inputs[1])
    given = input_at(node, 2)
    zero = np.zeros(1) if given is None else array(given)
    if not constancy.is_known(source) or source is None or scale is None or zero is None:
        return
    along = attribute(node, "axis", 1) % (constancy.shapes.rank(source) or 1)
    for axis in constancy.axes(source):
        held = constancy.of(source, axis)
        sizes = {1, len(held)} if axis == along else {1}
        if not attribute(node, "block_size", 0) and {scale.size, zero.size} <= sizes:
            yield (
                axis,
                held,
                scale.reshape(-1).astype(np.float64),
                zero.reshape(-1).astype(np.float64),
            )


def _computed(constancy: Constancy, node: ir.Node, held: Array, *, spread: bool) -> Array:
    """Runs the operator on vectors; unknown where the runtime does not."""
    from onnxcomp.runtime import Session

    exact = _EXACT.get(node.op_type)
    if node.op_type == "Relu":
        return np.asarray(np.maximum(held[0], 0.0), np.float64)
    if exact is not None and len(held) == exact.nin:
        dtype = constancy.shapes.dtype(node.inputs[0]) or ir.DataType.FLOAT
        with np.errstate(all="ignore"):
            return np.asarray(exact(*held.astype(dtype.numpy())), np.float64)
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


def _branches(constancy: Constancy, node: ir.Node) -> None:
    """What both branches hold, whichever runs."""
    bodies = list(subgraphs(node))
    for place, output in enumerate(node.outputs):
        for axis in constancy.axes(output) if output.name else ():
            sides = [constancy.of(body.outputs[place], axis) for body in bodies]
            if len({len(side) for side in sides}) != 1:
                continue
            held = np.stack(sides)
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
    **dict.fromkeys(MOVES, _moved),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(
        ("LpPool", "GlobalLpPool", "ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"), _zeros
    ),
    "AveragePool": _average_pool,
    "Pad": _pad,
    "ConstantOfShape": _constant_of_shape,
    "Resize": _resize,
    "Upsample": _resize,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Where": _where,
    **LAYERS,
}
