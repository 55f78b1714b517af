"""Bodies of If and Loop as models of their own, with samples of what they are given."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import Model, ir
from onnxcomp.ir.bodies import replace_body
from onnxcomp.ir.ops import constant, is_op, subgraphs
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

    Feeds = Mapping[str, np.ndarray]

# Iterations of a Loop that are looked at in each sample, and how much is kept of what bodies are given.
_STEPS = 8
_MOST_SAMPLES = 32
_MOST_BYTES = 256 << 20
_LOOP_STATE = 2  # a Loop's body takes the iteration's number and the condition first


@dataclass(eq=False)
class Body:
    """A body as a model of its own: what it captures comes in as inputs.

    Attributes:
        node: The If or Loop.
        attribute: Which of its bodies.
        model: The model.
        outer: Where the body reads what is behind each input, and behind each constant from outside.
        samples: What the body was given.
        given: Names of its own inputs (of a Loop).
    """

    node: ir.Node
    attribute: str
    model: Model
    outer: dict[str, tuple[ir.Node, int]]
    given: tuple[str, ...] = ()
    samples: list[dict[str, np.ndarray]] = field(default_factory=list)

    @property
    def captured(self) -> list[str]:
        """Names of the inputs that are captured."""
        return [value.name or "" for value in self.model.graph.inputs if value.name in self.outer]

    def outside(self, name: str) -> ir.Value | None:
        """Returns what the body captures under a name; it may have been replaced since."""
        node, index = self.outer[name]
        return node.inputs[index]

    def take(self, feeds: Mapping[str, Any]) -> None:
        """Keeps a sample while there is room; text, sequences and absent values end it."""
        found = {value.name or "": feeds.get(value.name or "") for value in self.model.graph.inputs}
        if any(not isinstance(array, np.ndarray) for array in found.values()):
            return
        arrays = {name: np.asarray(array) for name, array in found.items()}
        held = sum(array.nbytes for sample in self.samples for array in sample.values())
        size = sum(array.nbytes for array in arrays.values())
        if len(self.samples) < _MOST_SAMPLES and held + size <= _MOST_BYTES:
            self.samples.append(arrays)


def find_bodies(model: Model, shapes: ShapeMap, operators: frozenset[str]) -> list[Body]:
    """Returns the bodies of the main graph's If and Loop nodes that hold one of these operators."""
    found = []
    for node in model.graph:
        if not is_op(node, "If", "Loop"):
            continue
        for name, attribute in node.attributes.items():
            if attribute.type != ir.AttributeType.GRAPH:
                continue
            graph = attribute.as_graph()
            if any(inner.op_type in operators for inner in _nodes(graph)):
                body = _alone(model, node, name, graph, shapes)
                found += [] if body is None else [body]
    return found


def collect(
    model: Model, bodies: list[Body], samples: Iterable[Feeds], *, threads: int = 0
) -> None:
    """Runs a model on samples and keeps what each body is given."""
    inputs = {spec.name for spec in model.signature().inputs}
    values = [v for b in bodies for v in (*b.node.inputs, *map(b.outside, b.outer))]
    names = dict.fromkeys(v.name or "" for v in values if v is not None and constant(v) is None)
    taps = [name for name in names if name and name not in inputs]
    with ExitStack() as stack:
        session = stack.enter_context(Session.open(model, outputs=taps, threads=threads))
        loops = {
            body: stack.enter_context(Session.open(body.model, threads=threads))
            for body in bodies
            if is_op(body.node, "Loop")
        }
        for feeds in islice(samples, _MOST_SAMPLES):
            known = {**feeds, **(session.run(feeds, taps) if taps else {})}
            for body in bodies:
                if body in loops:
                    _take_steps(body, known, loops[body])
                else:
                    _take_branch(body, known)


def put_back(edit: Edit, body: Body, result: Model) -> None:
    """Gives a node the rewritten body."""
    graph = result.graph
    for name in body.outer:
        value = next((v for v in graph.inputs if v.name == name), graph.initializers.get(name))
        outer = body.outside(name)
        if value is None or (value.is_initializer() and not _is_same(value, outer)):
            continue
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, outer)
        graph.initializers.pop(name, None)
    kept = [value for value in graph.inputs if value.name in body.given]
    graph.inputs.clear()
    graph.inputs.extend(kept)
    known = set(_names(body.node.attributes[body.attribute].as_graph()))
    for value in _made(graph):
        if value.name and value.name not in known:
            value.name = edit.fresh(value.name)
    replace_body(edit, body.node, body.attribute, graph)


def _is_same(value: ir.Value, outer: ir.Value | None) -> bool:
    """Whether a constant is still what it is outside; a pass may have given it other contents."""
    new, old = value.const_value, constant(outer)
    if new is old or new is None or old is None:
        return new is old
    return new.dtype == old.dtype and np.array_equal(new.numpy(), old.numpy())


def _names(graph: ir.Graph) -> Iterator[str]:
    for value in _made(graph):
        yield value.name or ""


def _made(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yields every value of a graph and of the bodies in it."""
    yield from (*graph.inputs, *graph.initializers.values())
    for node in _nodes(graph):
        yield from node.outputs
        for inner in subgraphs(node):
            yield from (*inner.inputs, *inner.initializers.values())


def _nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from _nodes(inner)


def _alone(
    model: Model, node: ir.Node, attribute: str, graph: ir.Graph, shapes: ShapeMap
) -> Body | None:
    """Copies a body into a model; None where it reads or gives something whose type is not known."""
    inside = {graph, *(inner for n in _nodes(graph) for inner in subgraphs(n))}
    reads = (v for n in _nodes(graph) for v in n.inputs if v is not None)
    outer = {v.name or "": v for v in reads if v.graph not in inside}
    made = {name: _stand_in(value, shapes) for name, value in outer.items()}
    if any(value is None for value in made.values()) or not _is_typed(graph, shapes):
        return None
    copy = graph.clone(allow_outer_scope_values=True)
    for inner in _nodes(copy):
        for index, value in enumerate(inner.inputs):
            if value is not None and outer.get(value.name or "") is value:
                inner.replace_input_with(index, made[value.name or ""])
    for value in (value for value in made.values() if value is not None):
        if value.const_value is None:
            copy.inputs.append(value)
        else:
            copy.register_initializer(value)
    for old, new in zip(
        (*graph.inputs, *graph.outputs), (*copy.inputs, *copy.outputs), strict=False
    ):
        _declare(old, new, shapes)
    core = ir.Model(copy, ir_version=model.ir_version)
    core.opset_imports.update(model.opset_imports)
    given = tuple(value.name or "" for value in graph.inputs)
    places = {
        v.name or "": (n, i)
        for n in _nodes(graph)
        for i, v in enumerate(n.inputs)
        if v is not None and outer.get(v.name or "") is v
    }
    return Body(node, attribute, Model.load(core), places, given)


def _is_typed(graph: ir.Graph, shapes: ShapeMap) -> bool:
    """Whether all inputs and outputs of a body are tensors of known type that it makes itself."""
    own = set(graph.inputs)
    made = {value for node in graph for value in node.outputs}
    if any(value not in made or value in own for value in graph.outputs):
        return False
    return all(shapes.dtype(value) is not None for value in (*graph.inputs, *graph.outputs))


def _declare(old: ir.Value, new: ir.Value, shapes: ShapeMap) -> None:
    """Gives a copied value the type that is known of the original."""
    kind = shapes.dtype(old)
    if new.type is None and kind is not None:
        new.type = ir.TensorType(kind)


def _stand_in(value: ir.Value, shapes: ShapeMap) -> ir.Value | None:
    """A new value of the same name, type and contents."""
    tensor = constant(value)
    if tensor is not None:
        return ir.Value(
            name=value.name,
            const_value=tensor,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(tuple(tensor.shape.numpy())),
        )
    dtype, shape = shapes.dtype(value), shapes.shape(value)
    if dtype is None:
        return None
    dims = None if shape is None else ir.Shape(shape)
    return ir.Value(name=value.name, type=ir.TensorType(dtype), shape=dims)


def _value(value: ir.Value | None, known: Mapping[str, Any]) -> np.ndarray | None:
    tensor = constant(value)
    if tensor is not None:
        return tensor.numpy()
    found = None if value is None else known.get(value.name or "")
    return found if isinstance(found, np.ndarray) else None


def _take_branch(body: Body, known: Mapping[str, Any]) -> None:
    condition = _value(body.node.inputs[0], known)
    if condition is not None and bool(condition.reshape(-1)[:1].any()) == (
        body.attribute == "then_branch"
    ):
        body.take(known)


def _take_steps(body: Body, known: Mapping[str, Any], session: Session) -> None:
    """Runs the body of a Loop as the runtime would, for a few iterations."""
    inputs = list(body.node.inputs)
    count, going = (_value(value, known) for value in inputs[:_LOOP_STATE])
    carried = [_value(value, known) for value in inputs[_LOOP_STATE:]]
    if any(array is None for array in carried):
        return
    state = [np.asarray(True) if going is None else going.reshape(()), *carried]
    most = _STEPS if count is None else min(int(count.reshape(-1)[0]), _STEPS)
    captured = {name: known[name] for name in body.captured if name in known}
    names = [value.name or "" for value in body.model.graph.outputs][: len(state)]
    for step in range(most):
        if not bool(np.asarray(state[0]).reshape(-1)[:1].all()):
            break
        given = [np.asarray(array) for array in (np.int64(step), *state)]
        feeds = {**dict(zip(body.given, given, strict=True)), **captured}
        body.take(feeds)
        read = {spec.name for spec in session.inputs}
        results = session.run({k: v for k, v in feeds.items() if k in read}, names)
        state = [results[name] for name in names]
