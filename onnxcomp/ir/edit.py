"""The only way to change a model: counts what it does and can take it back."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import RELEASED, following, is_read, subgraphs
from onnxcomp.ir.storage import named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from onnxcomp.ir.model import Model
    from onnxcomp.ir.trace import Trace

PROVENANCE = "onnxcomp.pass"
# Before this version every initializer had to be an input of the graph as well.
_IR_WITH_FREE_INITIALIZERS = 4


class Edit:
    """Changes a model on behalf of one pass at a time.

    Every change is journaled, so that `rollback` restores structure, names and order at a cost that
    grows with the number of changes, never with the size of the weights. Names are allocated here.

    Attributes:
        stats: What was done, in words, with how often: `{"nodes removed": 3}`.
        touched: Nodes whose inputs changed or that were made, in order; drivers re-queue them.
        trace: What is done in terms of nodes, where somebody asked for an explanation.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._journal: list[Callable[[], None]] = []
        self._names: set[str] | None = None
        self.stats: Counter[str] = Counter()
        self.stamp = ""
        self.touched: list[ir.Node] = []
        self.trace: Trace | None = None

    # -- transactions ------------------------------------------------------------------------------

    @property
    def changed(self) -> bool:
        """Whether anything was done since `begin`."""
        return bool(self._journal)

    def begin(self, stamp: str = "") -> None:
        """Starts a transaction; what was done before can no longer be taken back."""
        self._journal.clear()
        self.stats = Counter()
        self.stamp = stamp
        self.touched = []
        if self.trace is not None:
            self.trace.begin(self._model.nodes())

    def rollback(self, mark: int = 0) -> None:
        """Takes back everything since `begin`, or since a `mark`."""
        while len(self._journal) > mark:
            self._journal.pop()()
        if self.trace is not None:
            self.trace.rollback(mark)
        if mark == 0:
            self.stats = Counter()
        self.touched = []
        self._names = None

    def mark(self) -> int:
        """Returns a point in the transaction that `rollback` can go back to."""
        return len(self._journal)

    def count(self, what: str, number: int = 1) -> None:
        """Adds to the statistics that the report shows for this pass."""
        self.stats[what] += number

    def record(self, undo: Callable[[], None], what: str = "") -> None:
        """Journals a change that a helper of this package made itself (see `regions`)."""
        self._journal.append(undo)
        if what:
            self.stats[what] += 1

    # -- names -------------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        """Returns a name that no value or node of any scope has, and reserves it."""
        names = self._taken()
        name, number = base or "value", 1
        while name in names:
            name = f"{base}_{number}"
            number += 1
        names.add(name)
        return name

    def _taken(self) -> set[str]:
        if self._names is None:
            names: set[str] = set()
            for graph in self._model.graphs():
                names.update(value.name for value in graph.inputs if value.name)
                names.update(graph.initializers)
                for node in graph:
                    names.add(node.name or "")
                    names.update(value.name for value in node.outputs if value.name)
                    names.update(value.name for value in node.inputs if value and value.name)
            self._names = names
        return self._names

    # -- building ----------------------------------------------------------------------------------

    def insert(  # noqa: PLR0913 - one door for every way to place a node
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        *,
        before: ir.Node | None = None,
        after: ir.Node | None = None,
        graph: ir.Graph | None = None,
        outputs: int | Sequence[str] = 1,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
        like: ir.Value | None = None,
        name: str | None = None,
    ) -> ir.Node:
        """Adds a node before or after another one, or at the end (`graph` alone).

        Args:
            op_type: The operator.
            inputs: Its inputs, None for one that is left out.
            before: The node to stand before.
            after: The node to stand after.
            graph: The scope whose end to stand at, when neither neighbour is given.
            outputs: How many outputs, or wishes for their names; names are made fresh.
            attributes: Plain Python values, numpy arrays for tensors, or `ir.Attr`.
            domain: Domain of the operator.
            like: A value whose type and shape output 0 gets.
            name: Wish for the node's name.

        Returns:
            The new node.
        """
        wishes = [f"{op_type}_out"] * outputs if isinstance(outputs, int) else list(outputs)
        values = [ir.Value(name=self.fresh(wish)) for wish in wishes]
        if like is not None:
            values[0].type, values[0].shape = _copied_type(like), like.shape
        node = ir.Node(
            domain,
            op_type,
            list(inputs),
            _attributes(attributes or {}),
            outputs=values,
            name=self.fresh(name or f"{op_type}_{values[0].name}" if values else op_type),
        )
        if self.stamp:
            node.metadata_props[PROVENANCE] = self.stamp
        scope = self._place(node, before, after, graph)
        self._journal.append(lambda: _unlink(scope, node))
        if self.trace is not None:
            self.trace.added(node, len(self._journal))
        self.stats["nodes added"] += 1
        self.touched.append(node)
        return node

    @staticmethod
    def _place(
        node: ir.Node, before: ir.Node | None, after: ir.Node | None, graph: ir.Graph | None
    ) -> ir.Graph:
        if before is not None:
            scope = _scope(before)
            scope.insert_before(before, node)
        elif after is not None:
            scope = _scope(after)
            scope.insert_after(after, node)
        elif graph is not None:
            scope = graph
            scope.append(node)
        else:
            raise ValueError("say where to put the node: before, after or graph")
        return scope

    def initializer(
        self,
        array: np.ndarray[Any, Any] | ir.TensorProtocol,
        *,
        name: str,
        graph: ir.Graph,
        exact: bool = False,
    ) -> ir.Value:
        """Adds a constant to a scope.

        Where initializers are not possible (function bodies, files of IR version 3) it becomes a
        Constant node at the start of the scope.

        Args:
            array: Contents; a tensor keeps its own storage (memory-mapped stays memory-mapped).
            name: Wish for the name.
            graph: The scope.
            exact: Take the name as it is, because it was just freed.

        Returns:
            The value.
        """
        tensor = _as_tensor(array)
        final = name if exact else self.fresh(name)
        if self._needs_constant_node(graph):
            return self._constant_node(tensor, final, graph)
        tensor = named(tensor, final)
        value = ir.Value(
            name=final,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
        )
        graph.register_initializer(value)
        self._journal.append(lambda: _forget(graph, value))
        if self.trace is not None:
            self.trace.weighed(tensor.nbytes, len(self._journal))
        self.stats["initializers added"] += 1
        return value

    def _needs_constant_node(self, graph: ir.Graph) -> bool:
        if self._model.ir_version < _IR_WITH_FREE_INITIALIZERS:
            return True
        return any(function.graph is graph for function in self._model.core.functions.values())

    def _constant_node(self, tensor: ir.TensorProtocol, name: str, graph: ir.Graph) -> ir.Value:
        self._taken().discard(name)
        first = next(iter(graph), None)
        node = self.insert(
            "Constant",
            [],
            before=first,
            graph=graph,
            outputs=[name],
            attributes={"value": ir.AttrTensor("value", tensor)},
        )
        value = node.outputs[0]
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        return value

    # -- changing ----------------------------------------------------------------------------------

    def set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        """Makes a node read another value; the input list grows if the index lies behind it."""
        if self.trace is not None:
            self.trace.changed(node, len(self._journal) + 1)
        self._set_input(node, index, value)

    def _set_input(self, node: ir.Node, index: int, value: ir.Value | None) -> None:
        if index >= len(node.inputs):
            size = len(node.inputs)
            node.resize_inputs(index + 1)
            self._journal.append(lambda: node.resize_inputs(size))
        old = node.inputs[index]
        if old is value:
            return
        node.replace_input_with(index, value)
        self._journal.append(lambda: node.replace_input_with(index, old))
        self.stats["inputs rewired"] += 1
        self.touched.append(node)

    def truncate_inputs(self, node: ir.Node, size: int) -> None:
        """Drops the inputs of a node from `size` on."""
        for index in range(size, len(node.inputs)):
            self.set_input(node, index, None)
        before = len(node.inputs)
        if size < before:
            node.resize_inputs(size)
            self._journal.append(lambda: node.resize_inputs(before))

    def set_attribute(self, node: ir.Node, name: str, value: object) -> None:
        """Sets an attribute to a plain Python value or `ir.Attr`; None removes it."""
        old = dict(node.attributes)
        if value is None and name not in node.attributes:
            return
        if self.trace is not None:
            self.trace.changed(node, len(self._journal) + 1)
        if value is None:
            del node.attributes[name]
        else:
            node.attributes.add(_attributes({name: value})[0])
        self._journal.append(lambda: _restore_attributes(node, old))
        self.stats["attributes set"] += 1
        self.touched.append(node)

    def set_operator(self, node: ir.Node, op_type: str, domain: str = "") -> None:
        """Turns a node into another operator; inputs, outputs and attributes stay."""
        old = (node.op_type, node.domain)
        if self.trace is not None:
            self.trace.changed(node, len(self._journal) + 1)
        node.op_type, node.domain = op_type, domain

        def undo() -> None:
            node.op_type, node.domain = old

        self._journal.append(undo)
        self.stats["operators changed"] += 1
        self.touched.append(node)

    def set_type(
        self,
        value: ir.Value,
        dtype: ir.DataType | None = None,
        shape: Sequence[int | str | None] | ir.Shape | None = None,
    ) -> None:
        """Declares type and shape of a value; what is not given stays."""
        old = (value.type, value.shape)
        if dtype is not None:
            value.type = ir.TensorType(dtype)
        if shape is not None:
            value.shape = shape if isinstance(shape, ir.Shape) else ir.Shape(shape)

        def undo() -> None:
            value.type, value.shape = old

        self._journal.append(undo)

    def forget_shape(self, value: ir.Value) -> None:
        """Drops the declared shape of a value that is no longer known to hold."""
        old = value.shape
        value.shape = None
        self._journal.append(lambda: setattr(value, "shape", old))

    def set_tensor(self, value: ir.Value, array: np.ndarray[Any, Any] | ir.TensorProtocol) -> None:
        """Gives an initializer new contents, type and shape. Every reader sees them."""
        if not value.is_initializer():
            raise ValueError(f"not an initializer: {value.name}")
        tensor = named(_as_tensor(array), value.name or "")
        old = (value.const_value, value.type, value.shape)
        if self.trace is not None:
            before = 0 if value.const_value is None else value.const_value.nbytes
            self.trace.weighed(tensor.nbytes - before, len(self._journal) + 1)
            self.trace.read_by(value.consumers(), len(self._journal) + 1)
        value.const_value = tensor
        value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())

        def undo() -> None:
            value.const_value, value.type, value.shape = old

        self._journal.append(undo)
        self.stats["tensors replaced"] += 1
        self.touched.extend(value.consumers())

    def replace(self, old: ir.Value, new: ir.Value) -> None:
        """Makes every reader of `old` read `new`, outputs of the graph included.

        Names of outputs belong to the interface and stay: where `new` is free to take such a name it
        takes it, elsewhere (it is an input, an initializer, another output, or lives in an outer
        scope) an Identity stands between.
        """
        if old is new:
            return
        for usage in old.uses():
            self._set_input(usage.node, usage.idx, new)
        if old.is_graph_output():
            self._replace_output(old, new)
        self.stats["values replaced"] += 1

    def can_alias(self, old: ir.Value, new: ir.Value) -> bool:
        """Whether `replace` would need no Identity to keep the name of an output."""
        if not old.is_graph_output():
            return True
        maker = new.producer()
        return maker is not None and maker.graph is old.graph and not new.is_graph_output()

    def _replace_output(self, old: ir.Value, new: ir.Value) -> None:
        graph = old.graph
        if graph is None:
            raise ValueError(f"an output without a graph: {old.name}")
        if not self.can_alias(old, new):
            new = self.insert("Identity", [new], graph=graph, like=old).outputs[0]
        name = old.name or ""
        self._rename(old, self.fresh(name))
        self._rename(new, name)
        # Declared type and shape of an output are part of the interface.
        self._set_declared(new, old)
        for index, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[index] = new
                self._journal.append(partial(graph.outputs.__setitem__, index, old))

    def _set_declared(self, value: ir.Value, like: ir.Value) -> None:
        before = (value.type, value.shape, value.doc_string, dict(value.metadata_props))
        # The shape of a scalar is empty, which does not mean that there is none.
        value.type = value.type if like.type is None else like.type
        value.shape = value.shape if like.shape is None else like.shape
        value.doc_string = like.doc_string or value.doc_string
        value.metadata_props.update(like.metadata_props)

        def undo() -> None:
            value.type, value.shape, value.doc_string = before[:3]
            value.metadata_props.clear()
            value.metadata_props.update(before[3])

        self._journal.append(undo)

    def _rename(self, value: ir.Value, name: str) -> None:
        if self.trace is not None:
            self.trace.renaming(value)
        old = value.name
        value.name = name
        self._journal.append(lambda: setattr(value, "name", old))

    def output_as_constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> bool:
        """Turns an output of the main graph into an initializer of the same name; its node goes.

        Returns:
            False when that is not possible here (a body's output, a file of IR version 3, a node
            with other outputs in use); nothing is changed then.
        """
        graph, node = value.graph, value.producer()
        if graph is not self._model.graph or node is None or self._needs_constant_node(graph):
            return False
        if any(other is not value and _is_used(other) for other in node.outputs):
            return False
        name = value.name or ""
        self._rename(value, self.fresh(name))
        made = self.initializer(tensor, name=name, graph=graph, exact=True)
        for usage in value.uses():
            self._set_input(usage.node, usage.idx, made)
        self._set_declared(made, value)
        for index, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[index] = made
                self._journal.append(partial(graph.outputs.__setitem__, index, value))
        self.remove(node)
        return True

    # -- removing ----------------------------------------------------------------------------------

    def remove(self, node: ir.Node) -> None:
        """Removes a node whose outputs nobody uses, with the graphs it carries.

        Raises:
            ValueError: If an output is still read or is an output of the graph.
        """
        if any(_is_used(value) for value in node.outputs):
            raise ValueError(f"still in use: {node.op_type} {node.name}")
        for graph in subgraphs(node):
            self.release(graph)
        scope = _scope(node)
        for index, value in enumerate(node.inputs):
            if value is not None:
                self._detach(node, index, value)
        next_node = following(scope, node)
        scope.remove(node)
        self._journal.append(lambda: _relink(scope, node, next_node))
        if self.trace is not None:
            self.trace.removed(node, len(self._journal))
        self.stats["nodes removed"] += 1

    def _detach(self, node: ir.Node, index: int, value: ir.Value) -> None:
        maker = value.producer()
        node.replace_input_with(index, None)
        self._journal.append(lambda: node.replace_input_with(index, value))
        if maker is not None:
            self.touched.append(maker)

    def release(self, graph: ir.Graph) -> None:
        """Makes the nodes of a body that goes away stop reading values of outer scopes."""
        graph.meta[RELEASED] = True
        self._journal.append(lambda: graph.meta.pop(RELEASED, None))
        for node in graph:
            for inner in subgraphs(node):
                self.release(inner)
            for index, value in enumerate(node.inputs):
                if value is not None and value.graph is not graph:
                    self._detach(node, index, value)

    def drop_initializer(self, value: ir.Value) -> None:
        """Removes an initializer that nobody reads."""
        graph = value.graph
        if graph is None or not value.is_initializer() or is_read(value):
            raise ValueError(f"not an unused initializer: {value.name}")
        order = list(graph.initializers.values())
        graph.initializers.pop(value.name or "")
        self._journal.append(lambda: _reorder(graph, order))
        self._dropped([value])

    def drop_initializers(self, values: Iterable[ir.Value]) -> None:
        """Removes many unused initializers of one scope at the cost of one."""
        found = list(values)
        if not found:
            return
        graph = found[0].graph
        if graph is None:
            raise ValueError("an initializer without a graph")
        order = list(graph.initializers.values())
        for value in found:
            graph.initializers.pop(value.name or "")
        self._journal.append(lambda: _reorder(graph, order))
        self._dropped(found)

    def _dropped(self, values: list[ir.Value]) -> None:
        self.stats["initializers removed"] += len(values)
        if self.trace is not None:
            size = sum(v.const_value.nbytes for v in values if v.const_value is not None)
            self.trace.weighed(-size, len(self._journal))

    # -- the model as a whole ----------------------------------------------------------------------

    def raise_opset(self, version: int) -> None:
        """Declares a newer version of ONNX's own operator set, without changing any node."""
        imports = self._model.opset_imports
        key = "" if "" in imports or "ai.onnx" not in imports else "ai.onnx"
        self._set_import(imports, key, version)

    def import_domain(self, domain: str, version: int) -> None:
        """Declares the operator set of another domain if it is not declared yet."""
        if domain not in self._model.opset_imports:
            self._set_import(self._model.opset_imports, domain, version)

    def _set_import(self, imports: dict[str, int], key: str, version: int) -> None:
        old = imports.get(key)
        imports[key] = version

        def undo() -> None:
            if old is None:
                del imports[key]
            else:
                imports[key] = old

        self._journal.append(undo)
        self.stats["opsets set"] += 1

    def require_ir_version(self, version: int) -> None:
        """Raises the file format's version to what a new type or field needs."""
        core, old = self._model.core, self._model.core.ir_version
        if old < version:
            core.ir_version = version
            self._journal.append(lambda: setattr(core, "ir_version", old))

    def remove_function(self, identifier: tuple[str, str, str]) -> None:
        """Removes a local function that nobody calls."""
        functions = self._model.core.functions
        order = dict(functions)
        del functions[identifier]

        def undo() -> None:
            functions.clear()
            functions.update(order)

        self._journal.append(undo)
        self.stats["functions removed"] += 1

    def replace_model(self, core: ir.Model) -> None:
        """Puts a whole new IR in place of the model's, for passes that work on a protobuf."""
        old = self._model.core
        self._model.core = core
        self._names = None
        self._journal.append(lambda: setattr(self._model, "core", old))
        self.stats["models replaced"] += 1


def _scope(node: ir.Node) -> ir.Graph:
    if node.graph is None:
        raise ValueError(f"not in a graph: {node.op_type} {node.name}")
    return node.graph


def _is_used(value: ir.Value) -> bool:
    return is_read(value)


def _relink(graph: ir.Graph, node: ir.Node, following: ir.Node | None) -> None:
    if following is None:
        graph.append(node)
    else:
        graph.insert_before(following, node)


def _unlink(graph: ir.Graph, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        if value is not None:
            node.replace_input_with(index, None)
    graph.remove(node)


def _forget(graph: ir.Graph, value: ir.Value) -> None:
    graph.initializers.pop(value.name or "")


def _reorder(graph: ir.Graph, order: list[ir.Value]) -> None:
    graph.initializers.clear()
    for value in order:
        graph.initializers.add(value)


def _restore_attributes(node: ir.Node, old: Mapping[str, ir.Attr]) -> None:
    node.attributes.clear()
    for attr in old.values():
        node.attributes.add(attr)


def _attributes(values: Mapping[str, Any]) -> list[ir.Attr]:
    made = []
    for name, value in values.items():
        if value is None:
            continue
        if isinstance(value, ir.Attr):
            made.append(value)
        elif isinstance(value, np.ndarray):
            made.append(ir.AttrTensor(name, ir.tensor(value)))
        else:
            made.append(ir.convenience.convert_attribute(name, value))
    return made


def _as_tensor(array: np.ndarray[Any, Any] | ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(array, (np.ndarray, np.generic)):
        return ir.tensor(np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array))
    return array


def _copied_type(value: ir.Value) -> ir.TypeProtocol | None:
    return ir.TensorType(value.type.dtype) if isinstance(value.type, ir.TensorType) else value.type
