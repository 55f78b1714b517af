"""Type and shape of every value, as far as they follow from inputs, weights and operators."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from onnxcomp.analysis.propagation import infer_shapes
from onnxcomp.ir.backend import ir
from onnxcomp.ir.model import shape_of
from onnxcomp.ir.ops import constant
from onnxcomp.ir.scopes import ir_graphs, proto_graphs

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model
    from onnxcomp.signature import Shape


class ShapeMap:
    """What is known of each value; unknown stays None and is never guessed."""

    def __init__(self) -> None:
        self._found: dict[ir.Value, tuple[ir.DataType | None, Shape | None]] = {}

    def record(self, value: ir.Value, dtype: ir.DataType | None, shape: Shape | None) -> None:
        """Notes what is known of a value."""
        self._found[value] = (dtype, shape)

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Returns the dimensions of a value: numbers, symbols, or None for an unknown one."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return tuple(tensor.shape.numpy())
        return self._found.get(value, (None, None))[1]

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Returns the element type of a value, None when it is unknown or no tensor."""
        if value is None:
            return None
        if (tensor := constant(value)) is not None:
            return tensor.dtype
        return self._found.get(value, (None, None))[0]

    def static(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Returns the shape when every dimension is a known number."""
        shape = self.shape(value)
        if shape is None:
            return None
        numbers = tuple(dim for dim in shape if isinstance(dim, int))
        return numbers if len(numbers) == len(shape) else None

    def rank(self, value: ir.Value | None) -> int | None:
        """Returns the number of dimensions."""
        shape = self.shape(value)
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


@dataclass(frozen=True)
class Shapes:
    """Shape inference by onnx (`onnx.shape_inference`, with data propagation) on the bare structure.

    Declared shapes of intermediate values and of outputs are not trusted: files exist that declare
    rank 2 and return rank 3. Inputs are, because the runtime refuses feeds that do not match.
    Symbols that the inference invents are dropped: they say nothing about equality.
    """

    def compute(self, model: Model, facts: Facts) -> ShapeMap:
        """Infers all shapes of all scopes."""
        del facts
        proto = model.to_proto(weights=False)
        symbols = _undeclare(proto)
        result = ShapeMap()
        try:
            inferred = infer_shapes(proto)
        except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
            inferred = proto
        for graph, graph_proto in zip(ir_graphs(model.core), proto_graphs(inferred), strict=True):
            _read(result, graph, graph_proto, symbols)
        return result


def _undeclare(proto: onnx.ModelProto) -> set[str]:
    """Removes every declaration that could lie; returns the symbols of the inputs."""
    for graph in proto_graphs(proto):
        graph.ClearField("value_info")
        if isinstance(graph, onnx.GraphProto):
            lies = [*graph.output] if graph is proto.graph else [*graph.output, *graph.input]
            for info in lies:
                if info.type.HasField("tensor_type"):
                    info.type.tensor_type.ClearField("shape")
    symbols: set[str] = set()
    for info in proto.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                symbols.add(dim.dim_param)
            elif dim.dim_value < 0:
                dim.Clear()  # real files declare -1; inference would calculate with it
    return symbols


def _read(
    result: ShapeMap,
    graph: ir.Graph,
    proto: onnx.GraphProto | onnx.FunctionProto,
    symbols: set[str],
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


def _dims(tensor_type: onnx.TypeProto.Tensor, symbols: set[str]) -> Shape | None:
    if not tensor_type.HasField("shape"):
        return None
    return tuple(_dim(dim, symbols) for dim in tensor_type.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension, symbols: set[str]) -> int | str | None:
    if dim.HasField("dim_value"):
        return dim.dim_value if dim.dim_value >= 0 else None
    return dim.dim_param if dim.dim_param in symbols else None
