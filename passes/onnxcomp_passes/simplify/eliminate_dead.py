"""Removes everything that no output needs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.operators import Operator, operator
from onnxcomp.ir.ops import (
    OVERRIDABLE,
    PROTECTED,
    STANDARD_DOMAINS,
    is_read,
    standard_op,
    subgraphs,
)
from onnxcomp.ir.regions import drop_branch_output, leave_out_output
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.scopes import scope_versions

if TYPE_CHECKING:
    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Context

# Domains whose operators are known to do nothing beyond making their outputs.
_WITHOUT_EFFECTS = STANDARD_DOMAINS | {"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc"}
_ANNOTATION = "quant_parameter_tensor_names"


class EliminateDead(Pass):
    """Remove nodes, weights and functions that no output of the model needs.

    Works in every scope: a value that only the body of an If, Loop or Scan reads is in use. Optional
    outputs that nobody reads are left out, unused results of an If leave its branches, empty inputs
    at the end of a list are cut off. Inputs and outputs of the model stay as they are, and so do
    weights that a caller may override, and operators of unknown domains, which may have effects.

        a = Relu(x)                        a = Relu(x)
        b = Exp(a)              ->         y, _ = Dropout(a)
        y, mask = Dropout(a)
    """

    name: ClassVar[str] = "eliminate-dead"
    lossless: ClassVar[bool] = True
    preserves: ClassVar[frozenset[type[object]]] = frozenset({Shapes})

    @override
    def run(self, ctx: Context) -> None:
        model, edit = ctx.model, ctx.edit
        pure = _WITHOUT_EFFECTS | _effect_free_functions(model)
        _remove_nodes(model, edit, pure)
        _remove_initializers(model, edit)
        _remove_functions(model, edit)


def _effect_free_functions(model: Model) -> frozenset[str]:
    """Domains of local functions whose bodies use nothing of unknown effect."""
    domains = {identifier[0] for identifier in model.core.functions}
    known = _WITHOUT_EFFECTS | domains
    for identifier, function in model.core.functions.items():
        if any(node.domain not in known for node in function.all_nodes()):
            domains.discard(identifier[0])
    return frozenset(domains)


def _remove_nodes(model: Model, edit: Edit, pure: frozenset[str]) -> None:
    """Works backwards, so that a chain of dead nodes is seen in one sweep."""
    queue = deque(reversed(list(model.nodes())))
    versions = scope_versions(model)
    while queue:
        node = queue.popleft()
        if node.graph is None:
            continue
        edit.touched.clear()
        if _is_dead(node) and node.domain in pure and node.outputs:
            edit.remove(node)
        else:
            _trim(node, versions, edit)
        queue.extend(edit.touched)


def _is_dead(node: ir.Node) -> bool:
    return not any(_is_used(value) for value in node.outputs)


def _is_used(value: ir.Value) -> bool:
    return is_read(value)


def _trim(node: ir.Node, versions: dict[ir.Graph, int], edit: Edit) -> None:
    """Leaves out the outputs and inputs that a living node does without."""
    name = standard_op(node)
    if name is None:
        return
    if name == "If":
        _trim_branches(node, edit)
        return
    unused = [i for i, value in enumerate(node.outputs) if value.name and not _is_used(value)]
    # An empty input keeps onnxruntime from folding a Pad into a Conv, which fuse-pad decides better.
    empty = bool(node.inputs) and node.inputs[-1] is None and name != "Pad"
    if not unused and not empty:
        return
    version = versions.get(node.graph, 0) if node.graph is not None else 0
    known = operator("", name, version)
    if not isinstance(known, Operator):
        return
    # Outputs of a BatchNormalization tell training from inference.
    if unused and name != "BatchNormalization":
        optional = frozenset(range(_declared_outputs(name, version))) - known.needed_outputs
        for index in reversed(unused):
            if index in optional:
                leave_out_output(edit, node, index)
    if empty:
        _cut_inputs(node, edit, known.inputs[0])


def _declared_outputs(name: str, version: int) -> int:
    """Number of outputs that are no variadic list (whose length means something)."""
    from onnx import defs

    schema = defs.get_schema(name, version, "")
    variadic = defs.OpSchema.FormalParameterOption.Variadic
    return sum(1 for formal in schema.outputs if formal.option != variadic)


def _cut_inputs(node: ir.Node, edit: Edit, minimum: int) -> None:
    size = len(node.inputs)
    while size > minimum and node.inputs[size - 1] is None:
        size -= 1
    if size < len(node.inputs):
        edit.truncate_inputs(node, size)
        edit.count("empty inputs cut off")


def _trim_branches(node: ir.Node, edit: Edit) -> None:
    """Drops unused results of an If, but not all: an If without results is no valid node."""
    for index in reversed(range(len(node.outputs))):
        if len(node.outputs) > 1 and not _is_used(node.outputs[index]):
            drop_branch_output(edit, node, index)


def _remove_initializers(model: Model, edit: Edit) -> None:
    annotated = {
        name
        for graph in model.graphs()
        for value in _values(graph)
        for name in (value.meta.get(_ANNOTATION) or {}).values()
    }
    for graph in model.graphs():
        edit.drop_initializers(
            value
            for value in graph.initializers.values()
            if _is_droppable(value) and value.name not in annotated
        )


def _values(graph: ir.Graph) -> list[ir.Value]:
    made = (value for node in graph for value in node.outputs)
    return [*graph.inputs, *graph.initializers.values(), *made]


def _is_droppable(value: ir.Value) -> bool:
    if value.is_graph_input() or OVERRIDABLE in value.meta or PROTECTED in value.meta:
        return False
    return not _is_used(value)


def _remove_functions(model: Model, edit: Edit) -> None:
    functions = model.core.functions
    if not functions:
        return
    reached: set[tuple[str, str, str]] = set()
    pending = [node.op_identifier() for node in _all_nodes(model.graph)]
    while pending:
        identifier = pending.pop()
        if identifier in reached or identifier not in functions:
            continue
        reached.add(identifier)
        pending += [node.op_identifier() for node in _all_nodes(functions[identifier].graph)]
    for identifier in [key for key in functions if key not in reached]:
        edit.remove_function(identifier)


def _all_nodes(graph: ir.Graph) -> list[ir.Node]:
    found = []
    for node in graph:
        found.append(node)
        for inner in subgraphs(node):
            found += _all_nodes(inner)
    return found
