"""What is known of shape vectors before the model runs: `Shape -> Gather -> Concat -> Reshape`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, integers, standard_op, subgraphs
from onnxcomp_passes.simplify.folding import sizes, vectors
from onnxcomp_passes.simplify.folding.vectors import INTEGERS, MAX_ITEMS, Item, Size, Vector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from onnxcomp.analysis.shapes import ShapeMap

# A symbol such as "?" stands for several sizes in real files.
_SYMBOL = re.compile(r"[A-Za-z_]\w*")
_MAX_RANK = 64


class PartialValues:
    """Partly known values of small integer tensors, found in one sweep over a model."""

    def __init__(self, shapes: ShapeMap, ambiguous: frozenset[str] = frozenset()) -> None:
        self._shapes = shapes
        self._ambiguous = ambiguous
        self._found: dict[ir.Value, Vector] = {}
        self._derived: dict[ir.Value, tuple[Item, ...]] = {}

    def sweep(self, graph: ir.Graph) -> None:
        """Looks at the nodes of a scope and of all scopes inside it, in order."""
        for node in graph:
            name = standard_op(node)
            rule = _RULES.get(name) if name else None
            if rule is not None and node.outputs:
                vector = rule(self, node)
                if vector is not None and self._agrees(vector, node.outputs[0]):
                    self._found[node.outputs[0]] = vector
            if name is not None and node.outputs and self._shapes.static(node.outputs[0]) is None:
                found = sizes.derived(self, node)
                if found is not None:
                    self._derived[node.outputs[0]] = found
            for inner in subgraphs(node):
                self.sweep(inner)

    def _agrees(self, vector: Vector, value: ir.Value) -> bool:
        """Whether a vector is short enough and of the shape that inference found."""
        shape = self._shapes.shape(value)
        if shape is None:
            return len(vector.items) <= MAX_ITEMS
        if len(shape) != int(not vector.scalar) or len(vector.items) > MAX_ITEMS:
            return False
        return not shape or not isinstance(shape[0], int) or shape[0] == len(vector.items)

    def vector(self, value: ir.Value | None) -> Vector | None:
        """Returns what is known of a value, constants included."""
        if value is None:
            return None
        found = self._found.get(value)
        if found is not None:
            return found
        tensor = constant(value)
        return None if tensor is None else vectors.from_tensor(tensor)

    def found(self) -> Iterable[tuple[ir.Value, Vector]]:
        """Yields the values that nodes make, with what is known of them."""
        return self._found.items()

    def sizes(self, value: ir.Value | None) -> tuple[Item, ...] | None:
        """Returns the dimensions of a tensor, open ones with an identity; None for unknown rank."""
        shape = self._shapes.shape(value)
        if value is None:
            return None
        derived = self._derived.get(value)
        if shape is None:
            shape = (None,) * len(derived) if derived is not None else None
        if shape is None or len(shape) > _MAX_RANK:
            return None
        if derived is None or len(derived) != len(shape):
            derived = (None,) * len(shape)
        return tuple(
            self._dimension(value, axis, dim, derived[axis]) for axis, dim in enumerate(shape)
        )

    def _dimension(self, value: ir.Value, axis: int, dim: int | str | None, derived: Item) -> Item:
        if isinstance(dim, int):
            return dim
        if derived is not None:
            return derived
        if dim is not None and _SYMBOL.fullmatch(dim):
            return Size((dim,), dim not in self._ambiguous)
        return Size((id(value), axis))


def ambiguous_symbols(graph: ir.Graph) -> frozenset[str]:
    """Returns the symbols that more than one dimension of the inputs is declared with."""
    names = [
        dim.value
        for value in graph.inputs
        if value.shape is not None
        for dim in value.shape
        if not isinstance(dim, int) and dim.value
    ]
    return frozenset(name for name in names if names.count(name) > 1)


def _shape(known: PartialValues, node: ir.Node) -> Vector | None:
    shape = known.sizes(node.inputs[0])
    start, end = attribute(node, "start"), attribute(node, "end")
    if shape is None or not all(isinstance(bound, (int, type(None))) for bound in (start, end)):
        return None
    return Vector(shape[start:end], False, ir.DataType.INT64)


def _size(known: PartialValues, node: ir.Node) -> Vector | None:
    shape = known.sizes(node.inputs[0])
    if shape is None:
        return None
    return Vector((_product(shape),), True, ir.DataType.INT64)


def _product(items: tuple[Item, ...]) -> Item:
    result: Item = 1
    for item in items:
        result = vectors.combine("Mul", result, item)
    return result


def _gather(known: PartialValues, node: ir.Node) -> Vector | None:
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


def _slice(known: PartialValues, node: ir.Node) -> Vector | None:
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


def _concat(known: PartialValues, node: ir.Node) -> Vector | None:
    if attribute(node, "axis", 0) not in (0, -1):
        return None
    items: list[Item] = []
    dtype = None
    for value in node.inputs:
        part = known.vector(value) or _open(known, value)
        if part is None or part.scalar:
            return None
        items += part.items
        dtype = part.dtype
        if len(items) > MAX_ITEMS:
            return None
    return Vector(tuple(items), False, dtype) if dtype is not None else None


def _open(known: PartialValues, value: ir.Value | None) -> Vector | None:
    """A vector of known length and type whose elements are not known."""
    shape, dtype = known._shapes.static(value), known._shapes.dtype(value)
    if shape is None or dtype not in INTEGERS or len(shape) > 1:
        return None
    size = shape[0] if shape else 1
    return Vector((None,) * size, not shape, dtype) if size <= MAX_ITEMS else None


def _to_vector(known: PartialValues, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    axes = integers(input_at(node, 1)) if len(node.inputs) > 1 else attribute(node, "axes")
    if data is None or not data.scalar or not isinstance(axes, (list, tuple)) or len(axes) != 1:
        return None
    return Vector(data.items, False, data.dtype)


def _to_scalar(known: PartialValues, node: ir.Node) -> Vector | None:
    data = known.vector(node.inputs[0])
    axes_input = input_at(node, 1)
    if axes_input is not None and integers(axes_input) not in ([0], [-1]):
        return None
    if data is None or data.scalar or len(data.items) != 1:
        return None
    return Vector(data.items, True, data.dtype)


def _reshape(known: PartialValues, node: ir.Node) -> Vector | None:
    data, target = known.vector(node.inputs[0]), integers(input_at(node, 1))
    if data is None or target is None or len(target) > 1:
        return None
    if target and target[0] not in (-1, len(data.items)):
        return None
    if not target and len(data.items) != 1:
        return None
    return Vector(data.items, not target, data.dtype)


def _cast(known: PartialValues, node: ir.Node) -> Vector | None:
    data, to = known.vector(node.inputs[0]), attribute(node, "to", 0)
    if data is None or not isinstance(to, int):
        return None
    dtype = ir.DataType(to)
    if dtype == data.dtype:
        return data
    if dtype not in INTEGERS or not all(vectors.fits(item, dtype) for item in data.items):
        return None
    return Vector(data.items, data.scalar, dtype)


def _same(known: PartialValues, node: ir.Node) -> Vector | None:
    return known.vector(node.inputs[0])


def _arithmetic(known: PartialValues, node: ir.Node) -> Vector | None:
    operands = [known.vector(value) for value in node.inputs]
    left, right = (operands[0], operands[1]) if len(operands) == 2 else (None, None)
    if left is None or right is None or left.dtype not in INTEGERS or left.dtype != right.dtype:
        return None
    rows = vectors.broadcast((left, right))
    if rows is None:
        return None
    items = tuple(vectors.combine(node.op_type, a, b) for a, b in rows[0])
    if not all(vectors.fits(item, left.dtype) for item in items):
        return None
    return Vector(items, rows[1], left.dtype)


def _compare(known: PartialValues, node: ir.Node) -> Vector | None:
    left, right = known.vector(node.inputs[0]), known.vector(node.inputs[1])
    if left is None or right is None:
        return None
    rows = vectors.broadcast((left, right))
    if rows is None:
        return None
    items = tuple(vectors.compare(node.op_type, a, b) for a, b in rows[0])
    return Vector(items, rows[1], ir.DataType.BOOL)


def _where(known: PartialValues, node: ir.Node) -> Vector | None:
    parts = [known.vector(value) or _open(known, value) for value in node.inputs]
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


def _filled(known: PartialValues, node: ir.Node) -> Vector | None:
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


def _reduce_product(known: PartialValues, node: ir.Node) -> Vector | None:
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
    item = _product(data.items)
    return Vector((item,), keep == 0, data.dtype) if vectors.fits(item, data.dtype) else None


_RULES: dict[str, Callable[[PartialValues, ir.Node], Vector | None]] = {
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
    "Add": _arithmetic,
    "Sub": _arithmetic,
    "Mul": _arithmetic,
    "Div": _arithmetic,
    "Max": _arithmetic,
    "Min": _arithmetic,
    "Equal": _compare,
    "Greater": _compare,
    "Less": _compare,
    "Where": _where,
    "ConstantOfShape": _filled,
    "ReduceProd": _reduce_product,
}
