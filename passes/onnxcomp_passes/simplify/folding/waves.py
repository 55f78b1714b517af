"""Which nodes are evaluated together, so that the model does not grow and no work explodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, standard_op
from onnxcomp_passes.simplify.folding.limits import (
    TINY_BYTES,
    Budget,
    danger,
    is_candidate,
    operations,
    size_in_bytes,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

Known = tuple["ir.DataType", tuple[int, ...]]
# Contents of larger constants are not shown to the inference of a single node.
_SHOWN_ELEMENTS = 1024


class Wave:
    """Nodes to evaluate in one session, chosen in the order of the model.

    A weight that several nodes read (three slices of one matrix) goes only when all of them are
    evaluated, so a wave is chosen hopefully first and strictly when the hope did not come true.
    """

    def __init__(self, budget: Budget, opset: int, runtime: int) -> None:
        """Starts empty.

        Args:
            budget: What it may cost.
            opset: Version of the operators.
            runtime: Version that they are evaluated as; the same, or the newest the runtime knows.
        """
        self._budget = budget
        self._opset = opset
        self._runtime = runtime
        self._begin(hopeful=True)

    def _begin(self, *, hopeful: bool) -> None:
        self.nodes: list[ir.Node] = []
        self._chosen: set[ir.Node] = set()
        self._made: dict[ir.Value, Known] = {}
        self._refused: dict[ir.Node, str] = {}
        self._hopeful = hopeful
        self._growth = 0
        self._flops = self._budget.flops
        # Weights that go if all of their readers are chosen.
        self._pending: dict[ir.Value, int] = {}
        self._exceeded = False

    def choose(self, nodes: Sequence[ir.Node]) -> list[ir.Node]:
        """Takes every node that may be evaluated now; its inputs are constants or made in the wave."""
        self._choose(nodes)
        if self._growth > self._budget.growth:
            self._begin(hopeful=False)
            self._choose(nodes)
        self._budget.growth -= self._growth
        self._budget.flops = self._flops
        self._budget.exceeded |= self._exceeded
        self._budget.refusals.update(self._refused)
        return self.nodes

    def _choose(self, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            if node not in self._budget.refusals and self._has_constant_inputs(node):
                reason = self._refusal(node) if is_candidate(node) else "wait"
                if reason and reason != "wait":
                    self._refused[node] = reason

    def _has_constant_inputs(self, node: ir.Node) -> bool:
        return all(
            value is None or value in self._made or constant(value) is not None
            for value in node.inputs
        )

    def _refusal(self, node: ir.Node) -> str:
        """Takes a node, or returns why not."""
        if self._opset > self._runtime and since_version(node, self._opset) > self._runtime:
            return "is an operator of an opset that the runtime does not know"
        dtypes = [self._known(value)[0] for value in node.inputs if value is not None]
        reason = danger(node, dtypes)
        if reason:
            return reason
        outputs = self._outputs(node)
        if outputs is None:
            made_here = any(value in self._made for value in node.inputs if value is not None)
            return "wait" if made_here else "makes something of unknown size"
        operands = [self._known(value)[1] for value in node.inputs if value is not None]
        cost = operations(node, operands, [shape for _, shape in outputs.values()])
        if cost > self._flops:
            return f"takes {cost:,} operations"
        made = sum(size_in_bytes(*known) for known in outputs.values())
        freed, pending = self._freed(node)
        if made > max(self._budget.node_bytes, freed + sum(pending.values())):
            return f"makes {made:,} bytes from {freed:,}"
        growth = self._growth + (made if made > TINY_BYTES else 0) - freed
        hope = sum({**self._pending, **pending}.values())
        if made > TINY_BYTES and growth - hope > self._budget.growth:
            self._exceeded = True
            return f"would make the model {growth:,} bytes larger"
        self._take(node, outputs, growth, cost, pending)
        return ""

    def _take(
        self,
        node: ir.Node,
        outputs: dict[ir.Value, Known],
        growth: int,
        cost: int,
        pending: dict[ir.Value, int],
    ) -> None:
        self._growth = growth
        self._flops -= cost
        self._chosen.add(node)
        self._made.update(outputs)
        self._pending.update(pending)
        for value in node.inputs:
            if value is not None and value in self._pending and self._is_freed(value, node):
                del self._pending[value]
        self.nodes.append(node)

    def _freed(self, node: ir.Node) -> tuple[int, dict[ir.Value, int]]:
        """Bytes of the operands that nobody needs any more, and of those that may come to that."""
        freed, pending = 0, {}
        for value in dict.fromkeys(value for value in node.inputs if value is not None):
            if value.is_graph_output():
                continue
            if self._is_freed(value, node):
                freed += size_in_bytes(*self._known(value))
            elif self._hopeful and all(self._may_come(usage.node) for usage in value.uses()):
                pending[value] = size_in_bytes(*self._known(value))
        return freed, pending

    def _is_freed(self, value: ir.Value, node: ir.Node) -> bool:
        others = (usage.node for usage in value.uses() if usage.node is not node)
        return all(other in self._chosen for other in others)

    def _may_come(self, node: ir.Node) -> bool:
        return node in self._chosen or (
            node not in self._budget.refusals
            and node not in self._refused
            and self._has_constant_inputs(node)
            and is_candidate(node)
        )

    def _known(self, value: ir.Value) -> Known:
        tensor = constant(value)
        if tensor is None:
            return self._made[value]
        return tensor.dtype, tuple(tensor.shape.numpy())

    def _outputs(self, node: ir.Node) -> dict[ir.Value, Known] | None:
        """Types and sizes of what a node makes; None when they depend on contents not known yet."""
        found = self._inferred(node)
        if found is None or any(_is_unusual(dtype) for dtype, _ in found.values()):
            return None
        return found

    def _compared(self, node: ir.Node) -> dict[ir.Value, Known] | None:
        """The result of a comparison, of which onnx knows nothing in opsets 12 to 15."""
        operands = [self._known(value)[1] for value in node.inputs if value is not None]
        try:
            shape = np.broadcast_shapes(*operands)
        except ValueError:
            return None
        return {node.outputs[0]: (ir.DataType.BOOL, shape)}

    def _inferred(self, node: ir.Node) -> dict[ir.Value, Known] | None:
        if node.op_type in {"GreaterOrEqual", "LessOrEqual"}:
            return self._compared(node)
        proto = ir.serde.serialize_node(node)
        types: dict[str, onnx.TypeProto] = {}
        data: dict[str, Any] = {}
        for name, value in zip(proto.input, node.inputs, strict=True):
            if value is None:
                continue
            dtype, shape = self._known(value)
            types[name] = onnx.helper.make_tensor_type_proto(int(dtype), shape)
            tensor = constant(value)
            if tensor is not None and tensor.size <= _SHOWN_ELEMENTS:
                data[name] = ir.serde.serialize_tensor(tensor)
        try:
            schema = onnx.defs.get_schema(standard_op(node) or "", self._opset, "")
            opsets = [onnx.helper.make_opsetid("", self._opset)]
            inferred = onnx.shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=opsets
            )
        except (
            onnx.shape_inference.InferenceError,
            onnx.defs.SchemaError,
            ValueError,
            RuntimeError,
        ):
            return None
        return _sizes(node, inferred)


def since_version(node: ir.Node, opset: int) -> int:
    """Returns the version in which an operator got the form that it has in an opset."""
    if opset > onnx.defs.onnx_opset_version():
        return opset  # it may have changed: nobody here knows
    try:
        return int(onnx.defs.get_schema(standard_op(node) or "", opset, "").since_version)
    except onnx.defs.SchemaError:
        return opset


def _sizes(node: ir.Node, types: dict[str, onnx.TypeProto]) -> dict[ir.Value, Known] | None:
    found: dict[ir.Value, Known] = {}
    for value in node.outputs:
        if not value.name:
            continue
        kind = types.get(value.name)
        if kind is None or not kind.HasField("tensor_type"):
            return None
        tensor = kind.tensor_type
        dims = tensor.shape.dim
        if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
            return None
        dtype = ir.DataType(tensor.elem_type)
        found[value] = (dtype, tuple(dim.dim_value for dim in dims))
    return found


def _is_unusual(dtype: ir.DataType) -> bool:
    return dtype in {ir.DataType.STRING, ir.DataType.UNDEFINED}
