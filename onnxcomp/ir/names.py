"""Which name means which value: definitions, uses, captures, and the order they ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir.walk import attribute_graphs, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, NodeProto

    from onnxcomp.ir.walk import Scope


@dataclass(frozen=True, slots=True, eq=False)
class Definitions:
    """Names that a scope defines, each with the index of the node it comes from.

    Attributes:
        scope: The scope.
        names: Index by name; -1 for inputs and initializers.
        parent: Definitions of the enclosing scope.
    """

    scope: Scope
    names: dict[str, int]
    parent: Definitions | None


def define(scope: Scope, parent: Definitions | None) -> Definitions:
    """Collects what a scope defines; raises `ModelError` when a name is defined twice."""
    names: dict[str, int] = {}
    graph = scope.graph
    inputs = scope.function.input if graph is None and scope.function else ()
    for name in inputs if graph is None else (value.name for value in graph.input):
        _define_input(scope, names, name)
    if graph is not None:
        _define_initializers(scope, graph, names)
    defined = Definitions(scope, names, parent)
    for index, node in enumerate(scope.nodes):
        for name in node.output:
            if not name:
                continue
            if name in names:
                _refuse_second(node, name, names[name], scope)
            names[name] = index
            if parent is not None:
                _refuse_shadow(node, name, defined)
    return defined


def _define_input(scope: Scope, names: dict[str, int], name: str) -> None:
    if not name:
        raise ModelError(f"an input of {scope.describe()} has no name")
    if name in names:
        raise ModelError(f"{scope.describe()} has two inputs named {quoted(name)}")
    names[name] = -1


def _define_initializers(scope: Scope, graph: GraphProto, names: dict[str, int]) -> None:
    seen: set[str] = set()
    tensors = [tensor.name for tensor in graph.initializer]
    tensors += [sparse.values.name for sparse in graph.sparse_initializer]
    for name in tensors:
        if not name:
            raise ModelError(f"an initializer of {scope.describe()} has no name")
        if name in seen:
            raise ModelError(f"two initializers of {scope.describe()} are named {quoted(name)}")
        seen.add(name)
        names[name] = -1


def _refuse_second(node: NodeProto, name: str, first: int, scope: Scope) -> None:
    if first < 0:
        other = "an input or initializer"
    else:
        other = f"an output of {place_of(scope.nodes[first])}"
        if scope.nodes[first] is node:
            other = "another of its outputs"
    raise ModelError(f"{place_of(node)} has an output {quoted(name)}, which is also {other}")


def _refuse_shadow(node: NodeProto, name: str, inner: Definitions) -> None:
    """Refuses an output that hides an outer value; readers disagree about what it means."""
    owner, outer = inner.scope.owner, inner.parent
    while outer is not None:
        if outer.names.get(name, owner) < owner:
            raise ModelError(
                f"{place_of(node)} in {inner.scope.describe()} has an output {quoted(name)}, "
                f"which is also a value outside"
            )
        owner, outer = outer.scope.owner, outer.parent


def resolve(defined: Definitions) -> list[Definitions]:
    """Finds the definition of every name used; returns scopes where it comes after the use.

    Raises:
        ModelError: A name is used that is defined nowhere.
    """
    names, parent = defined.names, defined.parent
    late: list[Definitions] = []
    for index, node in enumerate(defined.scope.nodes):
        for slot, name in enumerate(node.input):
            if not name:
                continue
            source = names.get(name)
            if source is not None:
                if source >= index and defined not in late:
                    late.append(defined)
            elif parent is None:
                _refuse_dangling(node, slot, name)
            else:
                found = _capture(defined, name)
                if found is None:
                    _refuse_dangling(node, slot, name)
                elif found[1] >= found[2] and found[0] not in late:
                    late.append(found[0])
    _check_outputs(defined)
    return late


def _capture(inner: Definitions, name: str) -> tuple[Definitions, int, int] | None:
    """Returns where an outer name is defined: the scope, the node, and the node that holds us."""
    owner, outer = inner.scope.owner, inner.parent
    while outer is not None:
        source = outer.names.get(name)
        if source is not None:
            return outer, source, owner
        owner, outer = outer.scope.owner, outer.parent
    return None


def _refuse_dangling(node: NodeProto, slot: int, name: str) -> None:
    raise ModelError(f"{place_of(node)} reads {quoted(name)} (input {slot}), which nothing defines")


def _check_outputs(defined: Definitions) -> None:
    scope = defined.scope
    graph = scope.graph
    outputs = scope.function.output if graph is None and scope.function else ()
    for name in outputs if graph is None else (value.name for value in graph.output):
        if name not in defined.names:
            what = f"output {quoted(name)} of {scope.describe()}"
            outside = name and _capture(defined, name) is not None
            raise ModelError(
                f"{what} is a value from outside of the body"
                if outside
                else f"{what} is defined by nothing"
            )


def refuse_cycle(defined: Definitions) -> None:
    """Raises `ModelError` when nodes of an unsorted scope wait for each other."""
    nodes, names = defined.scope.nodes, defined.names
    readers: list[list[int]] = [[] for _ in nodes]
    waiting = [0] * len(nodes)
    for index, node in enumerate(nodes):
        sources = {names.get(name, -1) for name in _reads(node)} - {-1}
        waiting[index] = len(sources)
        for source in sources:
            readers[source].append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    while ready:
        for reader in readers[ready.pop()]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    stuck = next((index for index, count in enumerate(waiting) if count), None)
    if stuck is not None:
        _name_cycle(defined, waiting, stuck)


def _name_cycle(defined: Definitions, waiting: list[int], start: int) -> None:
    """Walks back from a node that waits; a walk among such nodes must meet itself."""
    nodes, names = defined.scope.nodes, defined.names
    seen: dict[int, None] = {}
    index = start
    while index not in seen:
        seen[index] = None
        sources = {names.get(name, -1) for name in _reads(nodes[index])} - {-1}
        index = min(source for source in sources if waiting[source])
    path = list(seen)
    length = len(path) - path.index(index)
    raise ModelError(
        f"{defined.scope.describe()} has a cycle of {length} node{'s' * (length > 1)} "
        f"through {place_of(nodes[index])}"
    )


def _reads(node: NodeProto) -> Iterator[str]:
    """Yields the names a node reads, and those that its bodies capture from outside."""
    yield from node.input
    # Pairs of a graph and the names that are defined around it, inside of the node.
    waiting: list[tuple[GraphProto, frozenset[str]]] = [
        (graph, frozenset()) for graph in attribute_graphs(node)
    ]
    while waiting:
        graph, around = waiting.pop()
        inner = around | _defined_in(graph)
        for each in graph.node:
            yield from (name for name in each.input if name and name not in inner)
            waiting.extend((below, inner) for below in attribute_graphs(each))


def _defined_in(graph: GraphProto) -> set[str]:
    names = {value.name for value in graph.input}
    names.update(tensor.name for tensor in graph.initializer)
    names.update(sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        names.update(node.output)
    return names
