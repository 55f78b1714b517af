"""Puts constants in the place of values."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, has_reference_attribute, is_op, standard_op
from onnxcomp_passes.simplify.folding.limits import TINY_BYTES
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, Model

# Operators whose result's shape follows from the contents of an operand.
_SHAPED_NAMES = (
    "Reshape Expand Tile Slice Pad Resize Upsample Range ConstantOfShape OneHot TopK Split Squeeze "
    "Unsqueeze ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceLogSum "
    "ReduceLogSumExp ReduceSumSquare MaxUnpool EyeLike Col2Im CenterCropPad AffineGrid DFT "
    "BlackmanWindow HannWindow HammingWindow MelWeightMatrix STFT NonMaxSuppression Compress If Loop "
    "Scan Where Gather Concat Cast Add Sub Mul Div Shape Size Equal Max Min"
)
_SHAPED_BY_CONTENTS = frozenset(_SHAPED_NAMES.split())

# Before this version a Constant node could make floating point numbers only.
_CONSTANTS_OF_ALL_TYPES = 9
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})

# Until then, Squeeze and Unsqueeze had them as an attribute.
_AXES_AS_INPUT = 13
_FLATTENS_EVERYTHING = 9


class Placer:
    """Replaces values by constants through an edit.

    Attributes:
        placed: Consumers of what was replaced since `informs` was last asked.
    """

    def __init__(self, model: Model, edit: Edit) -> None:
        self._model = model
        self._edit = edit
        self._functions = {function.graph for function in model.core.functions.values()}
        self.placed: list[ir.Node] = []

    @cached_property
    def _versions(self) -> dict[ir.Graph, int]:
        return scope_versions(self._model)

    def lift_constants(self) -> None:
        """Turns Constant nodes into initializers, except where they are the only possible form."""
        for graph in list(self._model.graphs()):
            if not self._holds_initializers(graph):
                continue
            for node in list(graph):
                if is_op(node, "Constant") and not has_reference_attribute(node):
                    tensor = constant(node.outputs[0])
                    if tensor is not None:
                        self._lift(node, _own(tensor))

    def skip_identities(self) -> None:
        """Lets everybody read a constant itself instead of an Identity of it.

        An output of the model gets a copy of its own where that is small.
        """
        for node in list(self._model.nodes()):
            if not is_op(node, "Identity"):
                continue
            value, tensor = node.outputs[0], constant(node.inputs[0])
            if tensor is None or node.inputs[0] is None:
                continue
            if not value.is_graph_output():
                self._edit.replace(value, node.inputs[0])
                self.drop(node)
            elif value.graph is self._model.graph and _is_tiny(tensor):
                self.place(value, ir.tensor(tensor.numpy().copy()))

    def _holds_initializers(self, graph: ir.Graph) -> bool:
        return graph not in self._functions and self._model.ir_version >= 4

    def _lift(self, node: ir.Node, tensor: ir.TensorProtocol) -> None:
        value = node.outputs[0]
        if not self._edit.output_as_constant(value, tensor) and not value.is_graph_output():
            graph = value.graph
            if graph is None:
                return
            made = self._edit.initializer(tensor, name=value.name or "", graph=graph)
            self._edit.replace(value, made)
            self._edit.remove(node)
        if node.graph is None:
            self._edit.count("constants lifted")

    def place(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        """Makes everybody read a constant instead of a value; returns whether that was possible."""
        node, graph = value.producer(), value.graph
        if node is None or graph is None or node.graph is None:
            return False
        if graph not in self._versions:
            # A body that went with the node that had it; facts may still know its values.
            return False
        needs_node = value.is_graph_output() and graph is not self._model.graph
        if (needs_node or not self._holds_initializers(graph)) and not self._fits(graph, tensor):
            return False
        makers = [operand.producer() for operand in node.inputs if operand is not None]
        self.placed += [usage.node for usage in value.uses()]
        if value.is_graph_output():
            done = self._place_output(value, node, tensor)
        elif self._edit.output_as_constant(value, tensor):
            done = True
        elif value.uses():
            made = self._edit.initializer(tensor, name=value.name or "", graph=graph)
            self._edit.replace(value, made)
            self.drop(node)
            done = True
        else:
            done = False
        if done:
            self._edit.count("values folded")
            for maker in makers:
                if maker is not None:
                    self.drop(maker)
        return done

    def _fits(self, graph: ir.Graph, tensor: ir.TensorProtocol) -> bool:
        """Whether a Constant node in a scope can make a tensor."""
        return tensor.dtype in _FLOATS or self._versions[graph] >= _CONSTANTS_OF_ALL_TYPES

    def set_operand(self, node: ir.Node, index: int, tensor: ir.TensorProtocol, name: str) -> None:
        """Gives one operand of a node a constant of its own."""
        graph = node.graph
        if graph is None or not (self._holds_initializers(graph) or self._fits(graph, tensor)):
            return
        self.placed.append(node)
        old = node.inputs[index]
        maker = None if old is None else old.producer()
        made = self._edit.initializer(tensor, name=name, graph=graph)
        self._edit.set_input(node, index, made)
        self._edit.count("targets simplified")
        if maker is not None:
            self.drop(maker)

    def set_attribute(self, node: ir.Node, name: str, value: object) -> None:
        """Sets an attribute of a node, or removes it (None)."""
        self._edit.set_attribute(node, name, value)

    def view(
        self, node: ir.Node, operator: str, axes: Sequence[int], source: ir.Value | None
    ) -> None:
        """Turns a Reshape into a Squeeze or Unsqueeze of some axes of a value."""
        graph = node.graph
        if graph is None:
            return
        makers = [value.producer() for value in node.inputs if value is not None]
        self._edit.set_input(node, 0, source)
        self.placed.append(node)
        if self._versions[graph] < _AXES_AS_INPUT:
            self._edit.truncate_inputs(node, 1)
            self._edit.set_attribute(node, "axes", list(axes))
        else:
            tensor = ir.tensor(np.array(axes, np.int64))
            name = f"{node.outputs[0].name}_axes"
            self._edit.set_input(node, 1, self._edit.initializer(tensor, name=name, graph=graph))
        self._edit.set_attribute(node, "allowzero", None)
        self._edit.set_operator(node, operator)
        self._edit.count("targets simplified")
        for maker in makers:
            if maker is not None:
                self.drop(maker)

    def flatten(self, node: ir.Node, axis: int) -> bool:
        """Turns a Reshape into a Flatten; returns whether the opset has one for every type."""
        if node.graph is None or self._versions[node.graph] < _FLATTENS_EVERYTHING:
            return False
        makers = [value.producer() for value in node.inputs if value is not None]
        self.placed.append(node)
        self._edit.truncate_inputs(node, 1)
        self._edit.set_attribute(node, "allowzero", None)
        self._edit.set_attribute(node, "axis", axis)
        self._edit.set_operator(node, "Flatten")
        self._edit.count("targets simplified")
        for maker in makers:
            if maker is not None:
                self.drop(maker)
        return True

    def _place_output(self, value: ir.Value, node: ir.Node, tensor: ir.TensorProtocol) -> bool:
        """An output of a body, or of a file of IR version 3, can only be made by a node."""
        if self._edit.output_as_constant(value, tensor):
            return True
        if len(node.outputs) != 1 or standard_op(node) == "Constant":
            return False
        self._edit.truncate_inputs(node, 0)
        for name in list(node.attributes):
            self._edit.set_attribute(node, name, None)
        self._edit.set_operator(node, "Constant")
        self._edit.set_attribute(node, "value", ir.AttrTensor("value", tensor))
        return True

    def drop(self, node: ir.Node) -> None:
        """Removes a node that nobody needs any more, and what only it needed."""
        pending = [node]
        while pending:
            dead = pending.pop()
            if dead.graph is None or any(v.uses() or v.is_graph_output() for v in dead.outputs):
                continue
            if standard_op(dead) is None:
                continue
            makers = [value.producer() for value in dead.inputs if value is not None]
            self._edit.remove(dead)
            pending += [maker for maker in makers if maker is not None]

    def informs(self, shapes: ShapeMap) -> bool:
        """Whether what was placed may tell more about shapes than was known."""
        readers, self.placed = self.placed, []
        return any(
            node.graph is not None
            and node.op_type in _SHAPED_BY_CONTENTS
            and any(shapes.static(value) is None for value in node.outputs)
            for node in readers
        )


def _is_tiny(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype != ir.DataType.STRING and tensor.nbytes <= TINY_BYTES


def _own(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor to be given a name: one read from a protobuf would write it into the caller's."""
    if not isinstance(tensor, ir.serde.TensorProtoTensor):
        return tensor
    if tensor.dtype == ir.DataType.STRING:
        return ir.StringTensor(list(tensor.raw.string_data), shape=tensor.shape)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(lambda: tensor, dtype=tensor.dtype, shape=shape)
