"""Dimensions of results that follow from those of operands, where inference only says "unknown"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import dims, parts, windows
from onnxcomp.ir.ops import attribute, input_at, integers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Known, Sizes
    from onnxcomp.ir import ir


def derived(known: Known, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of a node's first output; None for those and ranks that do not follow."""
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(known, node)
    window = _WINDOWS.get(node.op_type)
    return window(known.sizes(input_at(node, 0)), node) if window else None


def derived_all(known: Known, node: ir.Node) -> list[Sizes | None]:
    """Returns the dimensions of each output of a node, as far as they follow."""
    if node.op_type == "Split":
        return parts.split(known, node)
    if node.op_type in {"LSTM", "GRU", "RNN"}:
        return recurrent(known, node)
    return [derived(known, node)]


def recurrent(known: Known, node: ir.Node) -> list[Sizes | None]:
    """Returns the dimensions of all steps and of the last states of a recurrent layer."""
    shape, hidden = known.sizes(input_at(node, 0)), attribute(node, "hidden_size")
    if shape is None or len(shape) != 3 or not isinstance(hidden, int):
        return []
    if attribute(node, "layout", 0) != 0:
        return []
    steps, batch, _ = shape
    ways = 2 if attribute(node, "direction", "forward") == "bidirectional" else 1
    state = (ways, batch, hidden)
    return [(steps, ways, batch, hidden), state, state]


def _same(known: Known, node: ir.Node) -> Sizes | None:
    return known.sizes(input_at(node, 0))


def _broadcast(known: Known, node: ir.Node) -> Sizes | None:
    if "axis" in node.attributes or "broadcast" in node.attributes:
        return None  # before opset 7 the second operand went wherever the attributes said
    shapes = [known.sizes(value) for value in node.inputs if value is not None]
    found: Sizes = ()
    for shape in shapes:
        if shape is None:
            return None
        found = aligned(found, shape)
    return found


def aligned(first: Sizes, second: Sizes) -> Sizes:
    """Returns what two shapes broadcast to."""
    rank = max(len(first), len(second))
    rows = [(1,) * (rank - len(sizes)) + sizes for sizes in (first, second)]
    return tuple(dims.join(*pair) for pair in zip(*rows, strict=True))


def _matmul(known: Known, node: ir.Node) -> Sizes | None:
    at = 3 if node.op_type == "QLinearMatMul" else 1
    left, right = known.sizes(input_at(node, 0)), known.sizes(input_at(node, at))
    return multiplied(left, right) if left and right else None


def multiplied(left: Sizes, right: Sizes) -> Sizes:
    """Returns what a product of matrices, or of a vector and matrices, has for dimensions."""
    before = left if len(left) > 1 else (1, *left)
    after = right if len(right) > 1 else (*right, 1)
    rows = (before[-2],) if len(left) > 1 else ()
    columns = (after[-1],) if len(right) > 1 else ()
    return (*aligned(before[:-2], after[:-2]), *rows, *columns)


def _expanded(known: Known, node: ir.Node) -> Sizes | None:
    shape, target = known.sizes(input_at(node, 0)), known.vector(input_at(node, 1))
    if shape is None or target is None or target.scalar:
        return None
    return aligned(shape, target.items)


def _filled(known: Known, node: ir.Node) -> Sizes | None:
    shape = known.vector(input_at(node, 0))
    return None if shape is None or shape.scalar else shape.items


def _tiled(known: Known, node: ir.Node) -> Sizes | None:
    shape, repeats = known.sizes(input_at(node, 0)), known.vector(input_at(node, 1))
    if shape is None or repeats is None or len(repeats.items) != len(shape):
        return None
    if len(node.inputs) != 2:
        return None  # opset 1 had three
    return tuple(dims.multiply(a, b) for a, b in zip(shape, repeats.items, strict=True))


def _counted(known: Known, node: ir.Node) -> Sizes | None:
    start, limit, step = (known.vector(input_at(node, index)) for index in range(3))
    if start is None or limit is None or step is None or step.items != (1,):
        return None
    return (dims.maximum(dims.subtract(limit.items[0], start.items[0]), 0),)


def _gemm(known: Known, node: ir.Node) -> Sizes | None:
    left, right = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 1))
    flags = [attribute(node, name, 0) for name in ("transA", "transB")]
    if left is None or right is None or any(flag not in (0, 1) for flag in flags):
        return None
    if len(left) != 2 or len(right) != 2:
        return None
    return (left[flags[0]], right[1 - flags[1]])


def _reduced(known: Known, node: ir.Node) -> Sizes | None:
    shape, keep = known.sizes(input_at(node, 0)), attribute(node, "keepdims", 1)
    axes = _axes(node)
    if shape is None or keep not in (0, 1) or not axes:
        return None
    return _without(shape, axes, keep == 1)


def _without(shape: Sizes, axes: Sequence[int], keep: bool) -> Sizes:
    gone = {axis % len(shape) for axis in axes} if shape else set()
    if keep:
        return tuple(1 if axis in gone else item for axis, item in enumerate(shape))
    return tuple(item for axis, item in enumerate(shape) if axis not in gone)


def _selected(known: Known, node: ir.Node) -> Sizes | None:
    """ArgMax and ArgMin."""
    shape, keep = known.sizes(input_at(node, 0)), attribute(node, "keepdims", 1)
    axis = attribute(node, "axis", 0)
    if not shape or keep not in (0, 1) or not isinstance(axis, int):
        return None
    return _without(shape, [axis], keep == 1)


def _transposed(known: Known, node: ir.Node) -> Sizes | None:
    shape, order = known.sizes(input_at(node, 0)), attribute(node, "perm")
    if shape is None:
        return None
    if order is None:
        return shape[::-1]
    if not isinstance(order, (list, tuple)) or sorted(order) != list(range(len(shape))):
        return None
    return tuple(shape[axis] for axis in order)


def _unsqueezed(known: Known, node: ir.Node) -> Sizes | None:
    shape, axes = known.sizes(input_at(node, 0)), _axes(node)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    places = {axis % rank for axis in axes}
    rest = iter(shape)
    return tuple(1 if place in places else next(rest, None) for place in range(rank))


def _squeezed(known: Known, node: ir.Node) -> Sizes | None:
    shape, axes = known.sizes(input_at(node, 0)), _axes(node)
    if not shape or not axes:
        return None
    places = {axis % len(shape) for axis in axes}
    return tuple(item for place, item in enumerate(shape) if place not in places)


def _axes(node: ir.Node) -> Sequence[int] | None:
    found = integers(input_at(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    return found if isinstance(found, (list, tuple)) else None


def _reshaped(known: Known, node: ir.Node) -> Sizes | None:
    target, source = known.vector(input_at(node, 1)), known.sizes(input_at(node, 0))
    if target is None or target.scalar:
        return None
    return reshaped(source, target.items, copies=attribute(node, "allowzero", 0) == 0)


def reshaped(source: Sizes | None, target: Sizes, *, copies: bool) -> Sizes:
    """Returns the dimensions that a Reshape makes.

    Args:
        source: Dimensions of what is reshaped, None when not even their number is known.
        target: Elements of the wanted shape.
        copies: Whether a 0 stands for the dimension in the same place.
    """
    result: list[Item] = []
    for place, item in enumerate(target):
        here = source[place] if source is not None and place < len(source) else None
        wanted = item if dims.is_nonnegative(item) else None  # it could come out as the -1
        outside = source is not None and place >= len(source)  # nothing to copy: a 0 is an error
        result.append(dims.copied(wanted, here) if copies and not outside else wanted)
    if list(target).count(-1) == 1 and source is not None:
        place = target.index(-1)
        whole, others = _without_common(source, [*result[:place], *result[place + 1 :]])
        # Where the others are 0 there is no answer, and the runtime says so.
        result[place] = dims.quotient(dims.product(whole), dims.product(others))
    return tuple(result)


def _without_common(left: Sizes, right: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Drops expressions that are factors of both; a product of sums would hide them."""
    ones, others = list(left), []
    for item in right:
        if isinstance(item, dims.Dim) and item in ones:
            ones.remove(item)
        else:
            others.append(item)
    return ones, others


def _flattened(known: Known, node: ir.Node) -> Sizes | None:
    shape, axis = known.sizes(input_at(node, 0)), attribute(node, "axis", 1)
    if shape is None or not isinstance(axis, int):
        return None
    axis = axis + len(shape) if axis < 0 else axis
    return (dims.product(shape[:axis]), dims.product(shape[axis:]))


def _gathered(known: Known, node: ir.Node) -> Sizes | None:
    data, places = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 1))
    axis = attribute(node, "axis", 0)
    if not data or places is None or not isinstance(axis, int):
        return None
    axis %= len(data)
    return (*data[:axis], *places, *data[axis + 1 :])


def _picked(known: Known, node: ir.Node) -> Sizes | None:
    """GatherElements: one element for each index."""
    return known.sizes(input_at(node, 1))


def _concatenated(known: Known, node: ir.Node) -> Sizes | None:
    return concatenated([known.sizes(value) for value in node.inputs], attribute(node, "axis"))


def concatenated(shapes: Sequence[Sizes | None], axis: object) -> Sizes | None:
    """Returns the dimensions of operands that follow one another along an axis."""
    first = next((shape for shape in shapes if shape), None)
    if first is None or not isinstance(axis, int):
        return None
    axis %= len(first)
    whole: Item = 0
    for shape in shapes:
        whole = None if shape is None else dims.add(whole, shape[axis])
    given = [shape for shape in shapes if shape is not None]
    full = [shape for shape in given if all(map(dims.is_positive, shape))]
    # The runtime does not look at the other dimensions of operands without elements.
    return tuple(
        whole if i == axis else _agreed([shape[i] for shape in (full[:1] or given)])
        for i in range(len(first))
    )


def _agreed(items: Sequence[Item]) -> Item:
    return items[0] if all(item == items[0] for item in items) else None


def _resized(known: Known, node: ir.Node) -> Sizes | None:
    shape = known.sizes(input_at(node, 0))
    wanted = known.vector(input_at(node, 3)) if node.op_type == "Resize" else None
    plain = "axes" not in node.attributes and attribute(node, "keep_aspect_ratio_policy") is None
    if wanted is not None and plain and shape is not None and len(wanted.items) == len(shape):
        return tuple(item if dims.is_nonnegative(item) else None for item in wanted.items)
    return windows.resized(shape, node)


def _blocks(known: Known, node: ir.Node) -> Sizes | None:
    """DepthToSpace and SpaceToDepth."""
    shape, block = known.sizes(input_at(node, 0)), attribute(node, "blocksize")
    if shape is None or len(shape) != 4 or not isinstance(block, int):
        return None
    move = (dims.quotient, dims.multiply) if node.op_type == "DepthToSpace" else None
    inward, outward = move or (dims.multiply, dims.quotient)
    batch, channels, height, width = shape
    area = block * block
    return (batch, inward(channels, area), outward(height, block), outward(width, block))


_BROADCASTING = (
    "Add Sub Mul Div Pow Max Min Sum Mean Where And Or Xor Equal Greater Less GreaterOrEqual "
    "LessOrEqual Mod PRelu BitwiseAnd BitwiseOr BitwiseXor BitShift"
)
_REDUCING = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp"
)
_SHAPED_LIKE_FIRST = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitwiseNot Cast CastLike Ceil Celu Clip "
    "Cos Cosh CumSum DequantizeLinear Dropout DynamicQuantizeLinear Elu Erf Exp Floor Gelu "
    "GroupNormalization HardSigmoid HardSwish Hardmax Identity InstanceNormalization IsInf IsNaN LRN "
    "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization MeanVarianceNormalization Mish Neg "
    "Not QuantizeLinear RMSNormalization Reciprocal Relu Round ScatterElements ScatterND Selu "
    "Shrink Sigmoid Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu"
)
_RULES: dict[str, Callable[[Known, ir.Node], Sizes | None]] = {
    **dict.fromkeys(_SHAPED_LIKE_FIRST.split(), _same),
    **dict.fromkeys(_BROADCASTING.split(), _broadcast),
    **dict.fromkeys(_REDUCING.split(), _reduced),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("ArgMax", "ArgMin"), _selected),
    **dict.fromkeys(("Resize", "Upsample"), _resized),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    "Expand": _expanded,
    "ConstantOfShape": _filled,
    "Tile": _tiled,
    "Range": _counted,
    "Gemm": _gemm,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Flatten": _flattened,
    "Gather": _gathered,
    "GatherElements": _picked,
    "Concat": _concatenated,
    "Slice": parts.sliced,
    "Pad": parts.padded,
}
_WINDOWS: dict[str, Callable[[Sizes | None, ir.Node], Sizes | None]] = {
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), windows.convolved),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), windows.pooled),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), windows.pooled_whole),
    "ConvTranspose": windows.spread,
}
