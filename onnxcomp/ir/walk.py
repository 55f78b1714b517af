"""Iterative walks over a protobuf model: no recursion, however deep the file nests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import AttributeProto

from onnxcomp.errors import quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import (
        FunctionProto,
        GraphProto,
        ModelProto,
        NodeProto,
        SparseTensorProto,
        TensorProto,
    )

# (domain, name, overload) of a function, and of the node that calls it.
FunctionKey = tuple[str, str, str]

_TENSOR = AttributeProto.TENSOR
_TENSORS = AttributeProto.TENSORS
_GRAPH = AttributeProto.GRAPH
_GRAPHS = AttributeProto.GRAPHS
_SPARSE = AttributeProto.SPARSE_TENSOR
_SPARSES = AttributeProto.SPARSE_TENSORS


def domain_of(domain: str) -> str:
    """Returns the domain with the two spellings of the main one made equal."""
    return "" if domain == "ai.onnx" else domain


def function_key(function: FunctionProto) -> FunctionKey:
    """Returns what identifies a function."""
    return domain_of(function.domain), function.name, function.overload


def call_key(node: NodeProto) -> FunctionKey:
    """Returns the key of the function that a node would call."""
    return domain_of(node.domain), node.op_type, node.overload


def printable(word: str) -> str:
    """Returns an operator or attribute name bare when it is an ordinary word, else quoted."""
    return word if word.isascii() and word.isidentifier() and len(word) <= 60 else quoted(word)


def place_of(node: NodeProto) -> str:
    """Returns an operator and a name to find the node by, safe to print."""
    name = node.name or next((output for output in node.output if output), "")
    kind = printable(node.op_type)
    return f"{kind} {quoted(name)}" if name else f"{kind} without a name"


@dataclass(slots=True)
class Scope:
    """One list of nodes with its own names: the main graph, a body, or a function.

    Attributes:
        nodes: The nodes in file order.
        graph: The graph, `None` for a function.
        function: The function that holds this scope, `None` below the main graph.
        parent: The enclosing scope.
        owner: Index of the node in the parent whose attribute is this graph.
        depth: Number of enclosing scopes.
    """

    nodes: list[NodeProto]
    graph: GraphProto | None
    function: FunctionProto | None = None
    parent: Scope | None = None
    owner: int = -1
    depth: int = 0

    def describe(self) -> str:
        """Returns what this scope is, safe to print."""
        if self.parent is not None:
            return f"a body of {place_of(self.parent.nodes[self.owner])}"
        if self.function is not None:
            return f"function {quoted(self.function.name)}"
        return "the graph"


def attribute_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yields the bodies of a node."""
    for attribute in node.attribute:
        if attribute.type == _GRAPH or attribute.HasField("g"):
            yield attribute.g
        if attribute.graphs:
            yield from attribute.graphs


def main_scope(model: ModelProto) -> Scope:
    """Returns the scope of the main graph."""
    return Scope(list(model.graph.node), model.graph)


def function_scope(function: FunctionProto) -> Scope:
    """Returns the scope of a function body."""
    return Scope(list(function.node), None, function)


def bodies(scope: Scope) -> Iterator[Scope]:
    """Yields the scopes directly below one."""
    for index, node in enumerate(scope.nodes):
        if node.attribute:
            for graph in attribute_graphs(node):
                yield Scope(list(graph.node), graph, scope.function, scope, index, scope.depth + 1)


def nested(root: Scope) -> Iterator[Scope]:
    """Yields a scope and everything below it, parents first."""
    waiting = [root]
    while waiting:
        scope = waiting.pop()
        yield scope
        waiting.extend(bodies(scope))


def scopes(model: ModelProto) -> Iterator[Scope]:
    """Yields every scope of a model: the main graph, functions, and all bodies."""
    yield from nested(main_scope(model))
    for function in model.functions:
        yield from nested(function_scope(function))


def _sparse(tensor: SparseTensorProto, place: str) -> Iterator[tuple[str, TensorProto]]:
    yield f"values of sparse {place}", tensor.values
    yield f"indices of sparse {place}", tensor.indices


def _of_attributes(
    attributes: Iterable[AttributeProto], owner: NodeProto | None, deeper: list[GraphProto]
) -> Iterator[tuple[str, TensorProto]]:
    for attribute in attributes:
        kind = attribute.type
        if kind in _PLAIN:
            continue
        place = f"attribute {printable(attribute.name)}"
        if owner is not None:
            place += f" of {place_of(owner)}"
        if kind == _TENSOR or attribute.HasField("t"):
            yield place, attribute.t
        if kind == _SPARSE or attribute.HasField("sparse_tensor"):
            yield from _sparse(attribute.sparse_tensor, place)
        for tensor in attribute.tensors:
            yield place, tensor
        for sparse in attribute.sparse_tensors:
            yield from _sparse(sparse, place)
        if kind == _GRAPH or attribute.HasField("g"):
            deeper.append(attribute.g)
        deeper.extend(attribute.graphs)


# Kinds of attribute that hold no tensor; a field that does not belong to its kind is refused
# by the structural checks, so that skipping these hides nothing.
_PLAIN = frozenset(AttributeProto.AttributeType.values()) - {
    AttributeProto.UNDEFINED,
    _TENSOR,
    _TENSORS,
    _GRAPH,
    _GRAPHS,
    _SPARSE,
    _SPARSES,
}


def tensors(model: ModelProto) -> Iterator[tuple[str, TensorProto]]:
    """Yields every tensor of a model with a place to print.

    Initializers, values and indices of sparse initializers, attributes of every kind in every body
    and function, defaults of function attributes, and the graphs of training information.
    """
    graphs = [model.graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto, None, graphs)
        for node in function.node:
            if node.attribute:
                yield from _of_attributes(node.attribute, node, graphs)
    while graphs:
        graph = graphs.pop()
        for tensor in graph.initializer:
            yield f"initializer {quoted(tensor.name)}", tensor
        for sparse in graph.sparse_initializer:
            yield from _sparse(sparse, f"initializer {quoted(sparse.values.name)}")
        for node in graph.node:
            if node.attribute:
                yield from _of_attributes(node.attribute, node, graphs)
