"""Which dimensions of a result are dimensions of its operands: where inference only says "unknown"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

from onnxcomp.ir.ops import attribute, constant, input_at, integers
from onnxcomp_passes.simplify.folding.vectors import Item, Size, Vector, certain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnxcomp.ir import ir

Sizes: TypeAlias = tuple[Item, ...]


class Known(Protocol):
    """Whoever knows sizes and contents of operands."""

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """Returns the dimensions of a value, None for an unknown rank."""
        ...

    def vector(self, value: ir.Value | None) -> Vector | None:
        """Returns what is known of the contents of an integer vector."""
        ...


def derived(known: Known, node: ir.Node) -> Sizes | None:
    """Returns the dimensions of a node's first output; None for those and ranks that do not follow."""
    rule = _RULES.get(node.op_type)
    return rule(known, node) if rule else None


def _same(known: Known, node: ir.Node) -> Sizes | None:
    return known.sizes(input_at(node, 0))


def _broadcast(known: Known, node: ir.Node) -> Sizes | None:
    shapes = [known.sizes(value) for value in node.inputs]
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    columns: list[list[Item]] = [[] for _ in range(rank)]
    for shape in shapes:
        if shape is None:
            return None
        for column, item in zip(columns[rank - len(shape) :], shape, strict=True):
            column.append(item)
    return tuple(_joined(column) for column in columns)


def _joined(items: Sequence[Item]) -> Item:
    """The size that several sizes broadcast to; a 1 gives way, equal ones agree."""
    others = [item for item in items if item != 1]
    if not others:
        return 1
    numbers = [item for item in others if isinstance(item, int)]
    if numbers:
        return numbers[0]
    if any(item != others[0] for item in others):
        return None
    # Equal as declared; if one of them is in doubt, so is the result.
    return next((item for item in others if not certain(item)), others[0])


def _matmul(known: Known, node: ir.Node) -> Sizes | None:
    left, right = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 1))
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    return (*_aligned(left[:-2], right[:-2]), left[-2], right[-1])


def _aligned(first: Sizes, second: Sizes) -> Sizes:
    rank = max(len(first), len(second))
    rows = [(1,) * (rank - len(sizes)) + sizes for sizes in (first, second)]
    return tuple(_joined(pair) for pair in zip(*rows, strict=True))


def _expanded(known: Known, node: ir.Node) -> Sizes | None:
    shape, target = known.sizes(input_at(node, 0)), known.vector(input_at(node, 1))
    if shape is None or target is None or target.scalar:
        return None
    return _aligned(shape, target.items)


def _counted(known: Known, node: ir.Node) -> Sizes | None:
    start, limit, step = (known.vector(input_at(node, index)) for index in range(3))
    if start is None or limit is None or step is None:
        return None
    if start.items != (0,) or step.items != (1,) or not isinstance(limit.items[0], Size):
        return None
    return limit.items


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
    axes = integers(input_at(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    if shape is None or keep not in (0, 1) or not isinstance(axes, (list, tuple)) or not axes:
        return None
    gone = {axis % len(shape) for axis in axes} if shape else set()
    if keep:
        return tuple(1 if axis in gone else item for axis, item in enumerate(shape))
    return tuple(item for axis, item in enumerate(shape) if axis not in gone)


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
    copies = attribute(node, "allowzero", 0) == 0
    result: list[Item] = []
    for place, item in enumerate(target.items):
        here = source[place] if source is not None and place < len(source) else None
        if item == 0:
            result.append(here if copies else 0)
        elif isinstance(item, Size):
            # If it turns out to be 0 it copies another size, unless that is the same one.
            result.append(item if not copies or item == here else Size(item.of, certain=False))
        else:
            result.append(item if isinstance(item, int) and item > 0 else None)
    if list(target.items).count(-1) == 1 and source is not None:
        place = target.items.index(-1)
        result[place] = _left_over(source, [*result[:place], *result[place + 1 :]])
    return tuple(result)


def _left_over(source: Sizes, others: Sequence[Item]) -> Item:
    """The size that is in the source but not among the other sizes of the result."""
    rest = [item for item in source if item != 1]
    for item in others:
        if item is None:
            return None
        if item in rest:
            rest.remove(item)
        elif item != 1:
            return None
    if not rest:
        return 1
    only = rest[0] if len(rest) == 1 else None
    return Size(only.of, certain=False) if isinstance(only, Size) else only


def _gathered(known: Known, node: ir.Node) -> Sizes | None:
    data, places = known.sizes(input_at(node, 0)), known.sizes(input_at(node, 1))
    axis = attribute(node, "axis", 0)
    if not data or places is None or not isinstance(axis, int):
        return None
    axis %= len(data)
    return (*data[:axis], *places, *data[axis + 1 :])


def _joined_along(known: Known, node: ir.Node) -> Sizes | None:
    shapes = [known.sizes(value) for value in node.inputs]
    axis = attribute(node, "axis")
    first = shapes[0] if shapes else None
    if not first or not isinstance(axis, int):
        return None
    axis %= len(first)
    columns = [
        [shape[i] for shape in shapes if shape and len(shape) == len(first)]
        for i in range(len(first))
    ]
    return tuple(
        None if place == axis else next((item for item in column if item is not None), None)
        for place, column in enumerate(columns)
    )


def _convolved(known: Known, node: ir.Node) -> Sizes | None:
    weight = constant(input_at(node, 1))
    if weight is None:
        return None
    dims = weight.shape.numpy()
    shape = known.sizes(input_at(node, 0)) or (None,)
    return (shape[0], int(dims[0]), *(None for _ in dims[2:]))


_BROADCASTING = (
    "Add Sub Mul Div Pow Max Min Sum Mean Where And Or Xor Equal Greater Less GreaterOrEqual "
    "LessOrEqual PRelu Mod BitwiseAnd BitwiseOr BitwiseXor"
)
_REDUCING = (
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare "
    "ReduceLogSum ReduceLogSumExp"
)
_SHAPED_LIKE_FIRST = (
    "Abs Cast Ceil Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity Log "
    "LayerNormalization BatchNormalization LeakyRelu LogSoftmax Neg Not Reciprocal Relu Round Selu "
    "Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tanh QuantizeLinear DequantizeLinear"
)
_RULES: dict[str, Callable[[Known, ir.Node], Sizes | None]] = {
    **dict.fromkeys(_SHAPED_LIKE_FIRST.split(), _same),
    **dict.fromkeys(_BROADCASTING.split(), _broadcast),
    **dict.fromkeys(_REDUCING.split(), _reduced),
    "MatMul": _matmul,
    "Expand": _expanded,
    "Range": _counted,
    "Gemm": _gemm,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
    "Squeeze": _squeezed,
    "Reshape": _reshaped,
    "Gather": _gathered,
    "Concat": _joined_along,
    "Conv": _convolved,
}
