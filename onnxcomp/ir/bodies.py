"""Moving nodes between scopes, and changing what the bodies of Loop, Scan and If take and give."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import OVERRIDABLE, PROTECTED, following, subgraphs
from onnxcomp.ir.regions import reset_outputs, set_outputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnxcomp.ir.edit import Edit


def captures(node: ir.Node) -> Iterator[ir.Value]:
    """Yields what the bodies of a node read from outside of the node, once per use."""
    inside: set[ir.Graph] = set()
    pending = list(subgraphs(node))
    found: list[ir.Value] = []
    while pending:
        graph = pending.pop()
        inside.add(graph)
        for inner in graph:
            found += [value for value in inner.inputs if value is not None]
            pending += subgraphs(inner)
    for value in found:
        if value.graph not in inside:
            yield value


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Yields the operands of a node and what its bodies capture."""
    yield from (value for value in node.inputs if value is not None)
    yield from captures(node)


def move_before(edit: Edit, node: ir.Node, place: ir.Node) -> None:
    """Moves a node to the place before another one, which may be in another scope."""
    if place.graph is None:
        raise ValueError(f"not in a graph: {place.op_type} {place.name}")
    _move(edit, node, place.graph, place)


def move_to_end(edit: Edit, node: ir.Node, scope: ir.Graph) -> None:
    """Moves a node to the end of a scope."""
    _move(edit, node, scope, None)


def _move(edit: Edit, node: ir.Node, target: ir.Graph, place: ir.Node | None) -> None:
    """Moves a node; in another scope everything that it makes gets a fresh name.

    Names of one scope may repeat those of its siblings.
    """
    source = node.graph
    if source is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    after = following(source, node)
    names = [node.name, *(value.name for value in node.outputs)]
    source.remove(node)
    if source is not target:
        node.name = edit.fresh(node.name) if node.name else node.name
        for value in node.outputs:
            value.name = edit.fresh(value.name) if value.name else value.name
    _put(target, node, place)
    edit.touched.append(node)

    def undo() -> None:
        target.remove(node)
        node.name = names[0]
        for value, name in zip(node.outputs, names[1:], strict=True):
            value.name = name
        _put(source, node, after)

    edit.record(undo, "nodes moved")


def _put(graph: ir.Graph, node: ir.Node, before: ir.Node | None) -> None:
    if before is None:
        graph.append(node)
    else:
        graph.insert_before(before, node)


def can_lift(value: ir.Value) -> bool:
    """Whether a value is a constant of a body that may as well be one of a scope around it."""
    if not value.is_initializer() or value.const_value is None:
        return False
    return OVERRIDABLE not in value.meta and PROTECTED not in value.meta


def nodes_after(node: ir.Node) -> Iterator[ir.Node]:
    """Yields the nodes of a scope that stand behind one of them."""
    scope = node.graph
    if scope is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    found = following(scope, node)
    while found is not None:
        yield found
        found = following(scope, found)


def lift_initializer(edit: Edit, value: ir.Value, scope: ir.Graph) -> ir.Value:
    """Makes a constant of a body one of a scope around it; returns the new value.

    The old one stays where it is an output of its body, and is unused elsewhere.
    """
    if value.const_value is None:
        raise ValueError(f"initializer without contents: {value.name}")
    made = edit.initializer(value.const_value, name=value.name or "", graph=scope)
    for usage in value.uses():
        edit.set_input(usage.node, usage.idx, made)
    return made


def bind_input(edit: Edit, body: ir.Graph, index: int, value: ir.Value) -> None:
    """Makes the nodes of a body read an outer value instead of one of its inputs, which stays."""
    for usage in body.inputs[index].uses():
        edit.set_input(usage.node, usage.idx, value)


def drop_operand(edit: Edit, node: ir.Node, index: int) -> None:
    """Takes an operand out of a node's list; later ones move up."""
    size = len(node.inputs)
    for position in range(index, size - 1):
        edit.set_input(node, position, node.inputs[position + 1])
    edit.truncate_inputs(node, size - 1)


def drop_result(edit: Edit, node: ir.Node, index: int) -> None:
    """Takes an unused output out of a node's list; later ones move up."""
    old = list(node.outputs)
    if old[index].uses() or old[index].is_graph_output():
        raise ValueError(f"still in use: {old[index].name}")
    set_outputs(node, [*old[:index], *old[index + 1 :]])
    edit.record(partial(set_outputs, node, old), "outputs left out")


def hand_over_results(edit: Edit, source: ir.Node, target: ir.Node) -> None:
    """Makes a node give the outputs of another one after its own."""
    before, after = list(target.outputs), list(source.outputs)
    set_outputs(source, [])
    set_outputs(target, [*before, *after])

    def undo() -> None:
        set_outputs(target, before)
        set_outputs(source, after)

    edit.record(undo)


def replace_body(edit: Edit, node: ir.Node, name: str, body: ir.Graph) -> None:
    """Gives a node another body in the place of one that it has.

    Names inside the new one must be those of the old one, or fresh.
    """
    old = node.attributes[name].as_graph()
    edit.set_attribute(node, name, ir.Attr(name, ir.AttributeType.GRAPH, body))
    edit.release(old)
    edit.record(partial(_let_go, body), "bodies replaced")


def _let_go(graph: ir.Graph) -> None:
    """Makes the nodes of a body stop reading values of outer scopes, without a record."""
    inside = {graph}
    pending = [graph]
    while pending:
        scope = pending.pop()
        for node in scope:
            inner = list(subgraphs(node))
            inside.update(inner)
            pending += inner
            for index, value in enumerate(node.inputs):
                if value is not None and value.graph not in inside:
                    node.replace_input_with(index, None)


def add_result(edit: Edit, node: ir.Node, like: ir.Value) -> ir.Value:
    """Makes a node give one more output, of the type of another value; its body has to give it too."""
    before = list(node.outputs)
    value = ir.Value(name=edit.fresh(like.name or "result"), type=like.type, shape=like.shape)
    set_outputs(node, [*before, value])
    edit.record(partial(set_outputs, node, before))
    return value


def drop_body_input(edit: Edit, body: ir.Graph, index: int) -> None:
    """Takes an unused input out of a body."""
    value = body.inputs[index]
    if value.uses() or value in body.outputs:
        raise ValueError(f"still in use: {value.name}")
    body.inputs.pop(index)
    edit.record(lambda: body.inputs.insert(index, value))


def set_body_outputs(edit: Edit, body: ir.Graph, outputs: Sequence[ir.Value]) -> None:
    """Makes a body give exactly these values."""
    old = list(body.outputs)
    reset_outputs(body, outputs)
    for value in old:
        maker = value.producer()
        if maker is not None:
            edit.touched.append(maker)
    edit.record(partial(reset_outputs, body, old))
