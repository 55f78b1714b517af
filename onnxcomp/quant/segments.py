"""Runs a model piece by piece on activations that are kept between the pieces.

To correct layer after layer, each with the corrections of those before it in effect, the whole model would
have to run once for each layer. Running the piece up to the layer, keeping what later pieces read, and
going on from there costs one run of the model altogether.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx

from onnxcomp.errors import UserError, quoted
from onnxcomp.ir import ir
from onnxcomp.ir.bodies import reads
from onnxcomp.ir.ops import is_pure, subgraphs
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from onnxcomp.ir import Model

    Feeds = Mapping[str, np.ndarray]
    State = dict[str, np.ndarray]

MEMORY_LIMIT = 1 << 30


class NoTensorError(UserError):
    """A value between two pieces of a model is a sequence, a map or absent, and cannot be kept."""


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of a model.

    Attributes:
        nodes: Its nodes, without those that make constants.
        inputs: What it reads that other pieces made.
        outputs: What later pieces read.
        done: Inputs that no later piece reads.
        end: The node that it ends with.
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    done: tuple[ir.Value, ...]
    end: ir.Node


def split(graph: ir.Graph, ends: Collection[ir.Node]) -> list[Segment]:
    """Cuts the nodes of a scope, which stand in an order in which they can run, behind some of them."""
    fixed = constant_nodes(graph)
    pieces: list[list[ir.Node]] = [[]]
    for node in graph:
        if node in fixed:
            continue
        pieces[-1].append(node)
        if node in ends:
            pieces.append([])
    pieces = [piece for piece in pieces if piece]
    needed: list[set[ir.Value]] = []
    later: set[ir.Value] = set()
    for piece in reversed(pieces):
        needed.append(set(later))
        made = {value for node in piece for value in node.outputs}
        later = (later | set(_operands(piece, fixed))) - made
    return [
        _segment(piece, after, fixed) for piece, after in zip(pieces, reversed(needed), strict=True)
    ]


def _segment(piece: list[ir.Node], later: set[ir.Value], fixed: set[ir.Node]) -> Segment:
    made = dict.fromkeys(value for node in piece for value in node.outputs if value.name)
    inputs = dict.fromkeys(value for value in _operands(piece, fixed) if value not in made)
    outputs = tuple(value for value in made if value in later)
    done = tuple(value for value in inputs if value not in later)
    return Segment(tuple(piece), tuple(inputs), outputs, done, piece[-1])


def _operands(nodes: Sequence[ir.Node], fixed: set[ir.Node]) -> Iterator[ir.Value]:
    """What nodes read that changes from sample to sample."""
    for node in nodes:
        for value in reads(node):
            if not _is_fixed(value, fixed):
                yield value


def _is_fixed(value: ir.Value, fixed: set[ir.Node]) -> bool:
    if value.producer() is not None:
        return value.producer() in fixed
    return value.is_initializer() and not value.is_graph_input()


def constant_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Returns the nodes of a scope that make the same in every run: they go along with their readers."""
    fixed: set[ir.Node] = set()
    for node in graph:
        if any(True for _ in subgraphs(node)) or not is_pure(node):
            continue
        if all(value is None or _is_fixed(value, fixed) for value in node.inputs):
            fixed.add(node)
    return fixed


@dataclass
class Walk:
    """Runs pieces of a model one after the other.

    Attributes:
        model: The model; it may change between the pieces.
        states: For each sample, what has been computed and is read later.
        threads: Threads of the sessions.
    """

    model: Model
    states: list[State]
    threads: int = 0
    limit: int = MEMORY_LIMIT
    _functions: list[onnx.FunctionProto] = field(default_factory=list)

    @classmethod
    def start(cls, model: Model, samples: Sequence[Feeds], threads: int) -> Walk:
        """Begins with what the samples feed."""
        functions = [ir.to_proto(each) for each in model.core.functions.values()]
        return cls(model, [dict(feed) for feed in samples], threads, _functions=functions)

    def first(self, count: int) -> Walk:
        """Returns a walk at the same place with the first samples alone."""
        return replace(self, states=self.states[:count])

    def run(self, segment: Segment, taps: Sequence[ir.Value] = ()) -> Iterator[State]:
        """Runs a piece on each sample and yields what it makes, with `taps`; nothing is kept.

        Raises:
            NoTensorError: If a value between the pieces is no tensor.
        """
        names = [value.name or "" for value in dict.fromkeys((*segment.outputs, *taps))]
        fed = [value.name or "" for value in segment.inputs]
        if not names:
            yield from ({} for _ in self.states)
            return
        with Session.open(self._proto(segment, names), threads=self.threads) as session:
            wanted = [spec.name for spec in session.inputs]
            for state in self.states:
                feeds = {name: state[name] for name in fed if name in state and name in wanted}
                yield session.run(feeds, names)

    def advance(self, segment: Segment, outputs: Sequence[State]) -> None:
        """Goes on behind a piece whose outputs are given; what nobody reads any more is forgotten."""
        kept = {value.name or "" for value in segment.outputs}
        for state, made in zip(self.states, outputs, strict=True):
            for value in segment.done:
                state.pop(value.name or "", None)
            for name in kept & made.keys():
                if not isinstance(made[name], np.ndarray):
                    raise NoTensorError(f"the value {quoted(name)} between two layers is no tensor")
                state[name] = made[name]
        self._fit()

    def _fit(self) -> None:
        """Forgets samples when the activations of all of them take too much memory."""
        sizes = [sum(array.nbytes for array in state.values()) for state in self.states]
        while len(sizes) > 1 and sum(sizes) > self.limit:
            sizes.pop()
            self.states.pop()

    def mark(self) -> list[State]:
        """Returns where the walk is, for `back`."""
        return [dict(state) for state in self.states]

    def back(self, states: list[State]) -> None:
        """Returns to a mark."""
        self.states = [dict(state) for state in states]

    def _proto(self, segment: Segment, names: Sequence[str]) -> onnx.ModelProto:
        graph = onnx.GraphProto(name="segment")
        constants: dict[str, ir.Value] = {}
        nodes: list[ir.Node] = []
        fed = {value for value in segment.inputs if value.name in self.states[0]}
        _with_constants(segment.nodes, fed, nodes, constants)
        graph.node.extend(ir.to_proto(node) for node in nodes)
        for name, value in constants.items():
            if value.const_value is not None:
                graph.initializer.append(_written(name, value.const_value))
        graph.input.extend(self._info(value) for value in segment.inputs if value in fed)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        proto = onnx.ModelProto(ir_version=self.model.ir_version, graph=graph)
        for domain, version in self.model.opset_imports.items():
            proto.opset_import.add(domain=domain, version=version)
        proto.functions.extend(self._functions)
        return proto

    def _info(self, value: ir.Value) -> onnx.ValueInfoProto:
        name = value.name or ""
        array = self.states[0][name]
        code = ir.DataType.from_numpy(array.dtype).value
        return onnx.helper.make_tensor_value_info(name, code, [None] * array.ndim)


def _written(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    """Returns a tensor with its bytes, wherever they lie."""
    made = onnx.TensorProto(name=name, dims=tensor.shape.numpy(), data_type=tensor.dtype.value)
    if tensor.dtype == ir.DataType.STRING:
        made.string_data.extend(tensor.numpy().reshape(-1).tolist())
    else:
        made.raw_data = tensor.tobytes()
    return made


def _with_constants(
    wanted: Sequence[ir.Node],
    fed: set[ir.Value],
    nodes: list[ir.Node],
    constants: dict[str, ir.Value],
) -> None:
    """Collects nodes in the order in which they run, with what makes the constants they read."""
    placed: set[ir.Node] = set(wanted)

    def visit(node: ir.Node) -> None:
        pending = [(node, iter(list(reads(node))))]
        while pending:
            current, operands = pending[-1]
            value = next(operands, None)
            if value is None:
                nodes.append(current)
                pending.pop()
                continue
            if value in fed:
                continue
            maker = value.producer()
            if maker is not None and maker not in placed and maker.graph is wanted[0].graph:
                placed.add(maker)
                pending.append((maker, iter(list(reads(maker)))))
            elif maker is None and value.is_initializer() and value.graph is wanted[0].graph:
                constants[value.name or ""] = value

    for node in wanted:
        visit(node)
