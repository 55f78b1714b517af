"""What small integer tensors contain, as far as it is known: `Shape -> Gather -> Mul -> Concat`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.symbolic import dims, vectors
from onnxcomp.analysis.symbolic.vectors import INTEGERS, MAX_ITEMS, Vector
from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import attribute, input_at, integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Known


def contents(known: Known, node: ir.Node) -> Vector | None:
    """Returns what is known of the contents of a node's first output, None when it is no vector."""
    rule = _RULES.get(node.op_type)
    return None if rule is None else rule(known, node)


def _shape(known: Known, node: ir.Node) -> Vector | None:
    shape = known.sizes(node.inputs[0])
    start, end = attribute(node, "start"), attribute(node, "end")
    if shape is None or not all(isinstance(bound, (int, type(None))) for bound in (start, end)):
        return None
    return Vector(shape[start:end], False, ir.DataType.INT64)


def _size(known: Known, node: ir.Node) -> Vector | None:
    shape = known.sizes(node.inputs[0])
    if shape is None:
        return None
    return Vector((dims.product(shape),), True, ir.DataType.INT64)


def _gather(known: Known, node: ir.Node) -> Vector | None:
    data, places = known.vector(node.inputs[0]), known.vector(node.inputs[1])
    if data is None or places is None or data.scalar or attribute(node, "axis", 0) not in (0, -1):
        return None
    size = len(data.items)
    picked = []
    for place in places.items:
        if not isinstance(place, int) or not -size <= place < size:
            return None
        picked.append(data.items[place])
    return Vector(tuple(picked), places.scalar, data.dtype)


def _slice(known: Known, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    if data is None or data.scalar:
        return None
    bounds = _slice_bounds(node)
    if bounds is None:
        return None
    start, end, step = bounds
    if step <= 0:
        return None
    return Vector(data.items[start:end:step], False, data.dtype)


def _slice_bounds(node: ir.Node) -> tuple[int, int, int] | None:
    if "starts" in node.attributes:  # opset 1 to 9
        starts, ends = attribute(node, "starts"), attribute(node, "ends")
        if not isinstance(starts, (tuple, list)) or not isinstance(ends, (tuple, list)):
            return None
        return (starts[0], ends[0], 1) if len(starts) == 1 and len(ends) == 1 else None
    lists = [integers(input_at(node, index)) for index in (1, 2)]
    axes, steps = input_at(node, 3), input_at(node, 4)
    if (axes is not None and integers(axes) not in ([0], [-1])) or None in lists:
        return None
    step = [1] if steps is None else integers(steps)
    parts = [*lists, step]
    if any(part is None or len(part) != 1 for part in parts):
        return None
    numbers = [part[0] for part in parts if part is not None]
    return numbers[0], numbers[1], numbers[2]


def _concat(known: Known, node: ir.Node) -> Vector | None:
    if attribute(node, "axis", 0) not in (0, -1):
        return None
    items: list[Item] = []
    dtype = None
    for value in node.inputs:
        part = known.vector(value) or known.open_vector(value)
        if part is None or part.scalar:
            return None
        items += part.items
        dtype = part.dtype
        if len(items) > MAX_ITEMS:
            return None
    return Vector(tuple(items), False, dtype) if dtype is not None else None


def _to_vector(known: Known, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    axes = integers(input_at(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    if data is None or not data.scalar or not isinstance(axes, (list, tuple)) or len(axes) != 1:
        return None
    return Vector(data.items, False, data.dtype)


def _to_scalar(known: Known, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    axes_input = input_at(node, 1)
    if axes_input is not None and integers(axes_input) not in ([0], [-1]):
        return None
    if data is None or data.scalar or len(data.items) != 1:
        return None
    return Vector(data.items, True, data.dtype)


def _reshape(known: Known, node: ir.Node) -> Vector | None:
    data, target = known.vector(node.inputs[0]), integers(input_at(node, 1))
    if data is None or target is None or len(target) > 1:
        return None
    if target and target[0] not in (-1, len(data.items)):
        return None
    if not target and len(data.items) != 1:
        return None
    return Vector(data.items, not target, data.dtype)


def _cast(known: Known, node: ir.Node) -> Vector | None:
    data, to = known.vector(node.inputs[0]), attribute(node, "to", 0)
    if data is None or not isinstance(to, int):
        return None
    dtype = ir.DataType(to)
    if dtype == data.dtype:
        return data
    if dtype not in INTEGERS or not all(vectors.fits(item, dtype) for item in data.items):
        return None
    return Vector(data.items, data.scalar, dtype)


def _same(known: Known, node: ir.Node) -> Vector | None:
    return known.vector(node.inputs[0])


def _arithmetic(known: Known, node: ir.Node) -> Vector | None:
    operands = [known.vector(value) for value in node.inputs]
    left, right = (operands[0], operands[1]) if len(operands) == 2 else (None, None)
    if left is None or right is None or left.dtype not in INTEGERS or left.dtype != right.dtype:
        return None
    rows = vectors.broadcast((left, right))
    if rows is None or attribute(node, "fmod", 0) != 0:
        return None
    items = tuple(vectors.combine(node.op_type, a, b) for a, b in rows[0])
    if not all(vectors.fits(item, left.dtype) for item in items):
        return None
    return Vector(items, rows[1], left.dtype)


def _negated(known: Known, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    if data is None or data.dtype not in INTEGERS:
        return None
    items = tuple(dims.negate(item) for item in data.items)
    fit = all(vectors.fits(item, data.dtype) for item in items)
    return Vector(items, data.scalar, data.dtype) if fit else None


def _compare(known: Known, node: ir.Node) -> Vector | None:
    left, right = known.vector(node.inputs[0]), known.vector(node.inputs[1])
    if left is None or right is None:
        return None
    rows = vectors.broadcast((left, right))
    if rows is None:
        return None
    items = tuple(vectors.compare(node.op_type, a, b) for a, b in rows[0])
    return Vector(items, rows[1], ir.DataType.BOOL)


def _logic(known: Known, node: ir.Node) -> Vector | None:
    """And, Or and Not of conditions that are partly known."""
    operands = [known.vector(value) for value in node.inputs]
    given = [operand for operand in operands if operand is not None]
    if len(given) != len(operands) or any(v.dtype != ir.DataType.BOOL for v in given):
        return None
    rows = vectors.broadcast(given)
    if rows is None:
        return None
    items = tuple(_truth(node.op_type, row) for row in rows[0])
    return Vector(items, rows[1], ir.DataType.BOOL)


def _truth(operator: str, row: tuple[Item, ...]) -> Item:
    if operator == "Not":
        return 1 - row[0] if isinstance(row[0], int) else None
    deciding = int(operator == "Or")
    if deciding in row:
        return deciding
    return None if None in row else 1 - deciding


def _where(known: Known, node: ir.Node) -> Vector | None:
    parts = [known.vector(value) or known.open_vector(value) for value in node.inputs]
    condition, yes, no = (*parts, None, None, None)[:3]
    if condition is None or yes is None or no is None or yes.dtype != no.dtype:
        return None
    rows = vectors.broadcast((condition, yes, no))
    if rows is None:
        return None
    items = []
    for choice, a, b in rows[0]:
        if isinstance(choice, int):
            items.append(a if choice else b)
        else:
            items.append(a if a == b else None)
    return Vector(tuple(items), rows[1], yes.dtype)


def _filled(known: Known, node: ir.Node) -> Vector | None:
    shape = known.vector(node.inputs[0])
    if shape is None or not shape.known or len(shape.items) > 1:
        return None
    size = shape.items[0] if shape.items else 1
    tensor = attribute(node, "value", None)
    if tensor is None or not isinstance(size, int) or not 0 <= size <= MAX_ITEMS:
        return None
    if tensor.dtype not in vectors.HANDLED:
        return None
    return Vector((int(tensor.numpy().reshape(-1)[0]),) * size, not shape.items, tensor.dtype)


def _expand(known: Known, node: ir.Node) -> Vector | None:
    data, target = known.vector(node.inputs[0]), integers(input_at(node, 1))
    if data is None or target is None or len(target) > 1:
        return None
    length = target[0] if target else 1
    if not 0 <= length <= MAX_ITEMS or 1 not in (length, len(data.items)):
        return data if length == len(data.items) and not data.scalar else None
    items = data.items * length if len(data.items) == 1 else data.items
    return Vector(items, data.scalar and not target, data.dtype)


def _reduce_product(known: Known, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    keep = attribute(node, "keepdims", 1)
    if data is None or data.scalar or data.dtype not in INTEGERS or keep not in (0, 1):
        return None
    axes = attribute(node, "axes", None)
    axes_input = input_at(node, 1)
    given = integers(axes_input) if axes_input is not None else axes
    if (axes_input is not None and given is None) or (given and list(given) not in ([0], [-1])):
        return None
    if given is not None and not list(given):
        return None
    item: Item = dims.product(data.items)
    if node.op_type == "ReduceSum":
        item = 0
        for part in data.items:
            item = dims.add(item, part)
    return Vector((item,), keep == 0, data.dtype) if vectors.fits(item, data.dtype) else None


_RULES: dict[str, Callable[[Known, ir.Node], Vector | None]] = {
    "Shape": _shape,
    "Size": _size,
    "Gather": _gather,
    "Slice": _slice,
    "Concat": _concat,
    "Unsqueeze": _to_vector,
    "Squeeze": _to_scalar,
    "Reshape": _reshape,
    "Cast": _cast,
    "Identity": _same,
    "Neg": _negated,
    "Where": _where,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"), _arithmetic),
    **dict.fromkeys(("Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"), _compare),
    **dict.fromkeys(("And", "Or", "Not"), _logic),
    **dict.fromkeys(("ReduceProd", "ReduceSum"), _reduce_product),
}
