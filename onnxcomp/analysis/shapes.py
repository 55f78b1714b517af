"""Type and shape of every value, as far as they follow from inputs, weights and operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxcomp.analysis.symbolic.dims import text_of
from onnxcomp.analysis.symbolic.types import typed_like
from onnxcomp.analysis.symbolic.values import PartialValues
from onnxcomp.ir.backend import ir
from onnxcomp.ir.fragile import follow_runtime, make_inferable
from onnxcomp.ir.model import shape_of
from onnxcomp.ir.ops import constant
from onnxcomp.ir.scopes import ir_graphs, proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.symbolic.dims import Item
    from onnxcomp.analysis.symbolic.known import Sizes
    from onnxcomp.analysis.symbolic.vectors import Vector
    from onnxcomp.ir import Model
    from onnxcomp.signature import Shape


class ShapeMap:
    """What is known of each value; unknown stays None and is never guessed.

    A dimension that is no number is an expression over the sizes of the inputs and of what depends
    on data. Equal expressions are equal sizes in every run. Different ones may still be equal, and
    every one may be 0 or 1.
    """

    def __init__(self) -> None:
        self._found: dict[ir.Value, tuple[ir.DataType | None, Shape | None]] = {}
        self._shapes: dict[ir.Value, Shape] = {}
        self._partial = PartialValues({}, frozenset())

    def record(self, value: ir.Value, dtype: ir.DataType | None, shape: Shape | None) -> None:
        """Notes what is known of a value."""
        self._found[value] = (dtype, shape)
        self._shapes.pop(value, None)

    def follow(self, roots: Iterable[ir.Graph], symbols: frozenset[str]) -> None:
        """Follows what was recorded through the operators: sizes as expressions, shape vectors.

        Args:
            roots: The main graph and the bodies of functions.
            symbols: Symbols that stand for one size each.
        """
        self._partial = PartialValues(dict(self._found), symbols)
        for root in roots:
            self._partial.sweep(root)

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """Returns the dimensions of a value as numbers and expressions, None for an unknown rank."""
        return self._partial.sizes(value)

    def vector(self, value: ir.Value | None) -> Vector | None:
        """Returns what is known of the contents of a small integer tensor."""
        return self._partial.vector(value)

    def vectors(self) -> Iterable[tuple[ir.Value, Vector]]:
        """Yields the small integer tensors that nodes make, with what is known of them."""
        return self._partial.vectors()

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Returns the dimensions of a value: numbers, or expressions as text; None for no rank."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return tuple(tensor.shape.numpy())
        recorded = self._found.get(value, (None, None))[1]
        if recorded is not None and all(isinstance(dim, int) for dim in recorded):
            return recorded
        found = self._shapes.get(value)
        if found is None:
            items = self._partial.sizes(value)
            if items is None:
                return recorded
            found = self._shapes[value] = tuple(_rendered(item) for item in items)
        return found

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Returns the element type of a value, None when it is unknown or no tensor."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return tensor.dtype
        if value in self._found:
            return self._found[value][0]
        if value.dtype is not None:
            return value.dtype  # made by a pass, which declared it
        operand = typed_like(value)
        return None if operand is None else self.dtype(operand)

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Returns the shape when every dimension is a known number."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return tuple(tensor.shape.numpy())
        shape: Sizes | Shape | None = self._found.get(value, (None, None))[1]
        if shape is None or not all(isinstance(dim, int) for dim in shape):
            shape = self._partial.sizes(value)
        if shape is None:
            return None
        numbers = tuple(dim for dim in shape if isinstance(dim, int))
        return numbers if len(numbers) == len(shape) else None

    def rank(self, value: ir.Value | None) -> int | None:
        """Returns the number of dimensions."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return len(tensor.shape)
        shape: Sizes | Shape | None = self._found.get(value, (None, None))[1]
        shape = self._partial.sizes(value) if shape is None else shape
        return None if shape is None else len(shape)

    def size(self, value: ir.Value | None) -> int | None:
        """Returns the number of elements."""
        shape = self.static(value)
        if shape is None:
            return None
        product = 1
        for dim in shape:
            product *= dim
        return product


def _rendered(item: Item) -> int | str | None:
    return None if item is None else item if isinstance(item, int) else text_of(item)


@dataclass(frozen=True)
class Shapes:
    """Shape inference by onnx on the bare structure, then by expressions where it says "unknown".

    Declared shapes of intermediate values and of outputs are not trusted: files exist that declare
    rank 2 and return rank 3. Inputs are, because the runtime refuses feeds that do not match. It
    does not compare two dimensions that are declared with one symbol, though, so such a symbol says
    nothing; neither do the symbols that onnx's inference invents.
    """

    def compute(self, model: Model, facts: Facts) -> ShapeMap:
        """Infers all shapes of all scopes."""
        del facts
        proto = model.to_proto(weights=False)
        symbols = _undeclare(proto)
        result = ShapeMap()
        try:
            # Contents of shape vectors are followed afterwards, in less time and bounded memory.
            follow_runtime(proto)
            survives = make_inferable(proto)
            inferred = onnx.shape_inference.infer_shapes(proto) if survives else proto
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = proto
        for graph, graph_proto in zip(ir_graphs(model.core), proto_graphs(inferred), strict=True):
            _read(result, graph, graph_proto, symbols)
        functions = model.core.functions.values()
        result.follow([model.graph, *(function.graph for function in functions)], symbols)
        return result


def _undeclare(proto: onnx.ModelProto) -> frozenset[str]:
    """Removes every declaration that could lie; returns symbols that stand for one size each."""
    for graph in proto_graphs(proto):
        graph.ClearField("value_info")
        if isinstance(graph, onnx.GraphProto):
            lies = [*graph.output] if graph is proto.graph else [*graph.output, *graph.input]
            for info in lies:
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")
    dims = [dim for info in proto.graph.input for dim in info.type.tensor_type.shape.dim]
    count = Counter(dim.dim_param for dim in dims)
    for dim in dims:
        # Real files declare -1; inference would calculate with it.
        if count[dim.dim_param] > 1 if dim.dim_param else dim.dim_value < 0:
            dim.Clear()
    return frozenset(name for name, number in count.items() if name and number == 1)


def _read(
    result: ShapeMap,
    graph: ir.Graph,
    proto: onnx.GraphProto | onnx.FunctionProto,
    symbols: frozenset[str],
) -> None:
    infos = {info.name: info.type for info in proto.value_info}
    if isinstance(proto, onnx.GraphProto):
        infos.update((info.name, info.type) for info in (*proto.output, *proto.input))
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        found = infos.get(value.name or "")
        if found is not None and found.HasField("tensor_type"):
            tensor_type = found.tensor_type
            dtype = ir.DataType(tensor_type.elem_type) if tensor_type.elem_type else None
            result.record(value, dtype, _dims(tensor_type, symbols))
    for value in graph.initializers.values():
        result.record(value, value.dtype, shape_of(value.shape))


def _dims(tensor_type: onnx.TypeProto.Tensor, symbols: frozenset[str]) -> Shape | None:
    if not tensor_type.HasField("shape"):
        return None
    return tuple(_dim(dim, symbols) for dim in tensor_type.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension, symbols: frozenset[str]) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param in symbols else None
