"""Changes that `Edit` makes to whole regions: outputs dropped, bodies moved into the scope around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.ir.ops import subgraphs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.ir.backend import ir
    from onnxcomp.ir.edit import Edit


def leave_out_output(edit: Edit, node: ir.Node, index: int) -> None:
    """Stops a node from making an optional output that nobody uses.

    Its place stays, without a name, as long as a later output has one.
    """
    value = node.outputs[index]
    if value.uses() or value.is_graph_output():
        raise ValueError(f"still in use: {value.name}")
    outputs = list(node.outputs)
    name, kind, shape = value.name, value.type, value.shape
    value.name, value.type, value.shape = "", None, None
    size = len(outputs)
    while size > 1 and not outputs[size - 1].name:
        size -= 1
    set_outputs(node, outputs[:size])

    def undo() -> None:
        set_outputs(node, outputs)
        value.name, value.type, value.shape = name, kind, shape

    edit.record(undo, "outputs left out")


def drop_branch_output(edit: Edit, node: ir.Node, index: int) -> None:
    """Removes an unused output of an If: from the node and from each of its branches."""
    branches = list(subgraphs(node))
    old_outputs = list(node.outputs)
    if old_outputs[index].uses() or old_outputs[index].is_graph_output():
        raise ValueError(f"still in use: {old_outputs[index].name}")
    old_branches = [list(branch.outputs) for branch in branches]
    set_outputs(node, [*old_outputs[:index], *old_outputs[index + 1 :]])
    for branch, outputs in zip(branches, old_branches, strict=True):
        reset_outputs(branch, [*outputs[:index], *outputs[index + 1 :]])
        maker = outputs[index].producer()
        if maker is not None:
            edit.touched.append(maker)

    def undo() -> None:
        set_outputs(node, old_outputs)
        for branch, outputs in zip(branches, old_branches, strict=True):
            reset_outputs(branch, outputs)

    edit.record(undo, "outputs left out")


def reset_outputs(graph: ir.Graph, outputs: Sequence[ir.Value]) -> None:
    """Makes a graph give exactly these values, without a record."""
    graph.outputs.clear()
    graph.outputs.extend(outputs)


def set_outputs(node: ir.Node, outputs: Sequence[ir.Value]) -> None:
    """Gives a node exactly these outputs, without a record; onnx-ir can only cut them off at the end."""
    for value in node.outputs:
        value._producer, value._index = None, -1
    node._outputs = tuple(outputs)
    for index, value in enumerate(outputs):
        value._producer, value._index = node, index


def inline_body(edit: Edit, node: ir.Node, body: ir.Graph) -> None:
    """Puts the nodes of a branch in the place of the If that carries it; the If goes."""
    results = dissolve(edit, node, body)
    for old, new in zip(list(node.outputs), results, strict=True):
        edit.replace(old, new)
    edit.remove(node)
    edit.count("branches inlined")


def dissolve(
    edit: Edit, node: ir.Node, body: ir.Graph, inputs: Sequence[ir.Value] = ()
) -> list[ir.Value]:
    """Moves what a body holds to the place before the node that carries it.

    Every value of the body gets a fresh name: names of one scope may repeat those of its siblings.

    Args:
        edit: Makes the changes.
        node: The node that carries the body; it stays.
        body: The body; it is empty afterwards.
        inputs: What the body's inputs are.

    Returns:
        What the body's outputs are.
    """
    scope = node.graph
    if scope is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    became: dict[ir.Value, ir.Value] = dict(zip(body.inputs, inputs, strict=True))
    for value in body.initializers.values():
        if value.const_value is None:
            raise ValueError(f"initializer without contents: {value.name}")
        became[value] = edit.initializer(value.const_value, name=value.name or "", graph=scope)
    for old, new in became.items():
        for usage in old.uses():
            edit.set_input(usage.node, usage.idx, new)
    results = list(body.outputs)
    body.outputs.clear()
    edit.record(lambda: body.outputs.extend(results))
    for inner in list(body):
        _move(edit, inner, body, scope, node)
    return [became.get(value, value) for value in results]


def _move(edit: Edit, inner: ir.Node, body: ir.Graph, scope: ir.Graph, place: ir.Node) -> None:
    names = [inner.name, *(value.name for value in inner.outputs)]
    body.remove(inner)
    inner.name = edit.fresh(inner.name) if inner.name else inner.name
    for value in inner.outputs:
        value.name = edit.fresh(value.name) if value.name else value.name
    scope.insert_before(place, inner)
    edit.touched.append(inner)

    def undo() -> None:
        scope.remove(inner)
        inner.name = names[0]
        for value, name in zip(inner.outputs, names[1:], strict=True):
            value.name = name
        # Undone last to first, each node comes before those that are back already.
        first = next(iter(body), None)
        if first is None:
            body.append(inner)
        else:
            body.insert_before(first, inner)

    edit.record(undo)


def dissolve_copy(
    edit: Edit, node: ir.Node, body: ir.Graph, inputs: Sequence[ir.Value] = ()
) -> list[ir.Value]:
    """Does the same with a copy of the body; the body stays as it is."""
    copy = body.clone(allow_outer_scope_values=True)
    edit.record(lambda: _let_go(copy))
    return dissolve(edit, node, copy, inputs)


def _let_go(graph: ir.Graph) -> None:
    """Makes the nodes of a graph that nobody has any more stop reading values."""
    for node in graph:
        for inner in subgraphs(node):
            _let_go(inner)
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
