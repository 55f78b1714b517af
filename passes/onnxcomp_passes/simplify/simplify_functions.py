"""Takes out of local functions what no call needs; calls of equal functions call one."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.bodies import drop_body_input, drop_operand, drop_result, set_body_outputs
from onnxcomp.ir.envelope import ATTRIBUTES
from onnxcomp.ir.ops import array, constant
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.equality import attribute_key, tensor_key

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from onnxcomp.ir import Edit, Model
    from onnxcomp.passbase import Context

# Larger constants stay arguments: in a function they would be nodes.
_SMALL = 64


class SimplifyFunctions(Pass):
    """Remove inputs and outputs of local functions that no call needs; merge equal functions.

    An argument that is the same small constant in every call becomes a constant of the function. Calls
    in all scopes follow, those in other functions too; functions that nobody calls any more are left
    to eliminate-dead.

        y, _ = f (x, u)                                          y = f (x)
        f (a, b) => (p, q) { p = Relu(a)  q = Neg(a) }    ->     f (a) => (p) { p = Relu(a) .. }
    """

    name: ClassVar[str] = "simplify-functions"
    lossless: ClassVar[bool] = True

    @override
    def run(self, ctx: Context) -> None:
        if not ctx.model.core.functions:
            return
        _merge_equal(ctx.model, ctx.edit)
        while True:
            mark = ctx.edit.mark()
            calls = _calls(ctx.model)
            for identifier, found in calls.items():
                body = ctx.model.core.functions[identifier].graph
                _set_constants(body, found, ctx.edit)
                _drop_inputs(body, found, ctx.edit)
                _drop_outputs(body, found, ctx.edit)
            if ctx.edit.mark() == mark:
                return


def _calls(model: Model) -> dict[ir.OperatorIdentifier, list[ir.Node]]:
    """Every call, by function; functions that nobody calls are left out."""
    found: dict[ir.OperatorIdentifier, list[ir.Node]] = {}
    for node in model.nodes():
        identifier = node.op_identifier()
        if identifier in model.core.functions:
            found.setdefault(identifier, []).append(node)
    return found


def _merge_equal(model: Model, edit: Edit) -> None:
    """Makes calls of equal functions of one domain call the first of them, innermost ones first."""
    while True:
        first: dict[Hashable, ir.OperatorIdentifier] = {}
        stands_for: dict[ir.OperatorIdentifier, ir.OperatorIdentifier] = {}
        for identifier, function in model.core.functions.items():
            key = _function_key(function)
            if key is None:
                continue
            known = first.setdefault(key, identifier)
            if known != identifier:
                stands_for[identifier] = known
        moved = False
        for identifier, nodes in _calls(model).items():
            if identifier not in stands_for:
                continue
            domain, name, _ = stands_for[identifier]
            for node in nodes:
                edit.set_operator(node, name, domain)
                edit.count("calls of equal functions")
            moved = True
        if not moved:
            return


def _function_key(function: ir.Function) -> Hashable | None:
    """What two functions share that differ in their names only, None for what cannot be compared."""
    if function.overload:
        return None
    attributes = []
    for name, attr in function.attributes.items():
        key = None if attr.value is None else attribute_key(attr)
        attributes.append((name, attr.type, attr.value is None, key))
    body = _body_key(function.graph, {}, [0])
    if body is None:
        return None
    opsets = tuple(sorted(function.opset_imports.items()))
    return (function.domain, opsets, tuple(attributes), body)


def _body_key(body: ir.Graph, names: dict[ir.Value, int], count: list[int]) -> Hashable | None:
    """Nodes in order, their values named by when they appear."""
    for value in body.inputs:
        names[value] = count[0] = count[0] + 1
    weights = []
    for value in body.initializers.values():
        names[value] = count[0] = count[0] + 1
        tensor = value.const_value
        weights.append(None if tensor is None else tensor_key(tensor))
    nodes = []
    for node in body:
        key = _node_key(node, names, count)
        if key is None:
            return None
        nodes.append(key)
    outputs = tuple(names.get(value, 0) for value in body.outputs)
    return (len(body.inputs), tuple(weights), tuple(nodes), outputs)


def _node_key(node: ir.Node, names: dict[ir.Value, int], count: list[int]) -> Hashable | None:
    if ATTRIBUTES in node.meta:
        return None
    operands = tuple(None if value is None else names.get(value, 0) for value in node.inputs)
    attributes: list[Hashable] = []
    for name, attr in sorted(node.attributes.items()):
        if attr.type == ir.AttributeType.GRAPH and not attr.is_ref():
            key = _body_key(attr.as_graph(), names, count)
        else:
            key = attribute_key(attr)
        if key is None:
            return None
        attributes.append((name, key))
    made = []
    for value in node.outputs:
        names[value] = count[0] = count[0] + 1
        made.append(bool(value.name))
    return (node.op_identifier(), operands, tuple(made), tuple(attributes))


def _set_constants(body: ir.Graph, calls: Sequence[ir.Node], edit: Edit) -> None:
    """Gives a function the constants that every call hands it."""
    for index, parameter in enumerate(body.inputs):
        arguments = [_at(call, index) for call in calls]
        tensor = constant(arguments[0])
        if not parameter.uses() or tensor is None or array(arguments[0], limit=_SMALL) is None:
            continue
        key = tensor_key(tensor)
        others = [constant(value) for value in arguments[1:]]
        if any(other is None or tensor_key(other) != key for other in others):
            continue
        made = edit.initializer(tensor, name=parameter.name or "", graph=body)
        for usage in parameter.uses():
            edit.set_input(usage.node, usage.idx, made)
        edit.count("constant arguments")


def _at(call: ir.Node, index: int) -> ir.Value | None:
    return call.inputs[index] if index < len(call.inputs) else None


def _drop_inputs(body: ir.Graph, calls: Sequence[ir.Node], edit: Edit) -> None:
    for index in reversed(range(len(body.inputs))):
        parameter = body.inputs[index]
        if parameter.uses() or parameter in body.outputs or len(body.inputs) == 1:
            continue
        drop_body_input(edit, body, index)
        for call in calls:
            if index < len(call.inputs):
                drop_operand(edit, call, index)
        edit.count("arguments that nobody reads")


def _drop_outputs(body: ir.Graph, calls: Sequence[ir.Node], edit: Edit) -> None:
    for index in reversed(range(len(body.outputs))):
        results = [call.outputs[index] for call in calls if index < len(call.outputs)]
        if len(body.outputs) == 1 or any(_is_used(value) for value in results):
            continue
        if any(len(call.outputs) == 1 for call in calls if index < len(call.outputs)):
            continue
        left = list(body.outputs)
        del left[index]
        set_body_outputs(edit, body, left)
        for call in calls:
            if index < len(call.outputs):
                drop_result(edit, call, index)
        edit.count("results that nobody reads")


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()
