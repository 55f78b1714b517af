"""Putting the body of a local function in the place of a call."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import subgraphs
from onnxcomp.ir.renames import swap_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.ir.edit import Edit


def inline_obstacle(call: ir.Node, function: ir.Function) -> str:
    """Returns why a call cannot be replaced by the body of its function, empty when it can."""
    given = dict(zip(function.inputs, call.inputs, strict=False))
    for value, result in zip(function.outputs, call.outputs, strict=False):
        if result.name and value in function.inputs and given.get(value) is None:
            return "it hands on an input that the call leaves out"
    return ""


def inline_call(edit: Edit, call: ir.Node, function: ir.Function) -> None:
    """Replaces a call by a copy of the function's nodes; tensors are shared, not copied.

    Attributes that refer to those of the function get the call's values, else the function's defaults;
    where there is neither they are left out. Everything made inside gets a fresh name, results keep the
    names that they have at the caller.
    """
    scope = call.graph
    if scope is None:
        raise ValueError(f"not in a graph: {call.op_type} {call.name}")
    copier = _Copier(edit, call, function)
    for node in function:
        made = copier.node(node)
        scope.insert_before(call, made)
        edit.record(partial(_take_out, scope, made))
        edit.touched.append(made)
    taken: set[ir.Value] = set()
    for old, inner in zip(call.outputs, function.outputs, strict=False):
        new = copier.values[inner]
        if not old.name or new is None:
            continue
        fresh = inner not in function.inputs and new not in taken
        taken.add(new)
        _hand_over(edit, old, new, fresh=fresh)
    edit.remove(call)
    edit.count("calls inlined")


def _hand_over(edit: Edit, old: ir.Value, new: ir.Value, *, fresh: bool) -> None:
    was_output = old.is_graph_output()
    edit.replace(old, new)
    if fresh and not was_output:
        swap_names(edit, old, new)
        kept = (new.type, new.shape, new.doc_string)
        new.type, new.shape = old.type or new.type, old.shape
        new.doc_string = old.doc_string or new.doc_string

        def undo() -> None:
            new.type, new.shape, new.doc_string = kept

        edit.record(undo)


def _take_out(scope: ir.Graph, node: ir.Node) -> None:
    _forget_inputs(node)
    scope.remove(node)


def _forget_inputs(node: ir.Node) -> None:
    """Makes a node and those in its bodies read nothing, so that no value counts them as readers."""
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, None)
    for graph in subgraphs(node):
        for inner in graph:
            _forget_inputs(inner)


class _Copier:
    """Copies nodes of a function for one call.

    Attributes:
        values: What each value of the function is at the caller; None for an input that is left out.
    """

    def __init__(self, edit: Edit, call: ir.Node, function: ir.Function) -> None:
        self._edit = edit
        self._place = call.name or next((v.name for v in call.outputs if v.name), "")
        self._metadata = dict(call.metadata_props)
        self._attributes = _bound_attributes(call, function)
        self.values: dict[ir.Value, ir.Value | None] = dict.fromkeys(function.inputs)
        self.values.update(zip(function.inputs, call.inputs, strict=False))

    def _name(self, name: str | None) -> str:
        return self._edit.fresh(f"{self._place}/{name}" if self._place else name or "")

    def _value(self, value: ir.Value | None) -> ir.Value | None:
        return None if value is None else self.values.get(value, value)

    def node(self, node: ir.Node) -> ir.Node:
        """Returns a copy of a node that reads what stands for its inputs at the caller."""
        outputs = [self._new(value) for value in node.outputs]
        attributes = [self._attribute(attr) for attr in node.attributes.values()]
        inputs = [self._value(value) for value in node.inputs]
        while inputs and inputs[-1] is None and node.inputs[len(inputs) - 1] is not None:
            inputs.pop()
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            [attr for attr in attributes if attr is not None],
            overload=node.overload,
            outputs=outputs,
            version=node.version,
            name=self._name(node.name or node.op_type),
            doc_string=node.doc_string,
            metadata_props={**self._metadata, **node.metadata_props},
        )
        made.meta.update(node.meta)
        return made

    def _new(self, value: ir.Value, *, typed: bool = False) -> ir.Value:
        """Copies a value; what a function declares of it need not hold for every call."""
        made = ir.Value(
            name=self._name(value.name) if value.name else "",
            type=value.type if typed else None,
            shape=value.shape if typed else None,
            doc_string=value.doc_string,
            const_value=value.const_value,
            metadata_props=dict(value.metadata_props),
        )
        made.meta.update(value.meta)
        self.values[value] = made
        return made

    def _attribute(self, attr: ir.Attr) -> ir.Attr | None:
        if attr.is_ref():
            bound = self._attributes.get(attr.ref_attr_name or "")
            return None if bound is None else self._renamed(attr.name, bound)
        return self._renamed(attr.name, attr)

    def _renamed(self, name: str, attr: ir.Attr) -> ir.Attr:
        doc = attr.doc_string
        if attr.is_ref():
            return ir.RefAttr(name, attr.ref_attr_name or "", attr.type, doc_string=doc)
        if attr.type == ir.AttributeType.GRAPH:
            return ir.Attr(name, attr.type, self._graph(attr.as_graph()), doc_string=doc)
        if attr.type == ir.AttributeType.GRAPHS:
            graphs = [self._graph(graph) for graph in attr.as_graphs()]
            return ir.Attr(name, attr.type, graphs, doc_string=doc)
        return ir.Attr(name, attr.type, attr.value, doc_string=doc)

    def _graph(self, graph: ir.Graph) -> ir.Graph:
        inputs = [self._new(value, typed=True) for value in graph.inputs]
        constants = [
            self.values[value] or value if value in graph.inputs else self._constant(value)
            for value in graph.initializers.values()
        ]
        nodes = [self.node(node) for node in graph]
        made = ir.Graph(
            inputs,
            [self._value(value) or value for value in graph.outputs],
            nodes=nodes,
            initializers=constants,
            doc_string=graph.doc_string,
            opset_imports=dict(graph.opset_imports),
            name=graph.name,
        )
        made.metadata_props.update(graph.metadata_props)
        made.meta.update(graph.meta)
        for old, new in zip(graph.outputs, made.outputs, strict=True):
            new.type, new.shape = old.type, old.shape
        return made

    def _constant(self, value: ir.Value) -> ir.Value:
        from onnxcomp.ir.storage import named

        made = self._new(value, typed=True)
        if value.const_value is not None:
            made.const_value = named(value.const_value, made.name or "")
        return made


def _bound_attributes(call: ir.Node, function: ir.Function) -> Mapping[str, ir.Attr]:
    """What the attributes of a function are in a call: given ones, then defaults."""
    defaults = {
        name: attr
        for name, attr in function.attributes.items()
        if not attr.is_ref() and attr.value is not None
    }
    return {**defaults, **call.attributes}
