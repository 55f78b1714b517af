"""Ceilings on what a file may ask for, counted before any native code sees it.

Native checkers, inference and runtimes recurse over bodies and expand functions: thirty functions
that each call the next one twice hang all of them, three thousand in a chain end in a segmentation
fault. Everything here is iterative and linear in the size of the file.
"""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir.walk import FunctionKey, call_key, function_key, function_scope, main_scope, nested

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto

    from onnxcomp.ir.walk import Scope

# protobuf counts bytes in a signed 32-bit integer; no option can raise this.
PROTO_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Limits:
    """How much a model may ask for. Every field has an option `--max-...` of the same name.

    Attributes:
        nodes: Nodes of all graphs, functions expanded at every call.
        calls: Calls of functions after expansion.
        graph_depth: Bodies of If, Loop and Scan inside each other, functions expanded.
        function_depth: Functions that call each other in a chain.
        rank: Dimensions of a tensor or value.
        tensors: Initializers of all graphs.
    """

    nodes: int = 1_000_000
    calls: int = 1_000_000
    graph_depth: int = 64
    function_depth: int = 64
    rank: int = 64
    tensors: int = 1_000_000

    def hold(self, name: str, amount: int, what: str) -> None:
        """Raises `ModelError` when an amount is above the limit of that name."""
        limit: int = getattr(self, name)
        if amount > limit:
            count = f"{amount:,}" if amount < 10**15 else "more than 10^15"
            raise ModelError(
                f"the model has {count} {what}, the limit is {limit:,}",
                hint=f"raise it with --max-{name.replace('_', '-')}",
            )


DEFAULT_LIMITS = Limits()
# What a program set for all models that it loads from here on.
ACTIVE_LIMITS: ContextVar[Limits] = ContextVar("limits", default=DEFAULT_LIMITS)


@dataclass
class _Body:
    """What one function (or the main graph) costs by itself, and whom it calls."""

    name: str
    nodes: int = 0
    depth: int = 0
    calls: Counter[FunctionKey] = field(default_factory=Counter)
    # Depth in bodies of the deepest call of each function.
    deepest: dict[FunctionKey, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cost:
    """What one function (or the main graph) costs with every call expanded."""

    nodes: int
    calls: int
    graph_depth: int
    function_depth: int


def check_budget(model: ModelProto, limits: Limits = DEFAULT_LIMITS) -> None:
    """Raises `ModelError` when a model asks for more than the limits, naming the option to raise.

    Also refuses functions that call themselves, directly or through others: they have no expansion.
    """
    local = {function_key(function) for function in model.functions}
    _check_sizes(model, limits)
    main = _measure(main_scope(model), "the graph", local)
    limits.hold("nodes", main.nodes, "nodes")
    limits.hold("graph_depth", main.depth, "bodies inside each other")
    if not local:
        return
    functions = {
        function_key(function): _measure(function_scope(function), function.name, local)
        for function in model.functions
    }
    costs: dict[FunctionKey, _Cost] = {}
    for key in _callees_first(functions):
        costs[key] = cost = _expand(functions[key], costs)
        limits.hold(
            "function_depth", cost.function_depth, "functions calling each other in a chain"
        )
    total = _expand(main, costs)
    unused = sum(body.nodes for body in functions.values())
    limits.hold("calls", total.calls, "function calls once expanded")
    limits.hold("nodes", max(total.nodes, main.nodes + unused), "nodes once functions are expanded")
    limits.hold("graph_depth", total.graph_depth, "bodies inside each other")
    for key, cost in costs.items():
        name = quoted(key[1])
        limits.hold("calls", cost.calls, f"function calls once {name} is expanded")
        limits.hold("nodes", cost.nodes, f"nodes once {name} is expanded")
        limits.hold("graph_depth", cost.graph_depth, f"bodies inside each other below {name}")


def _measure(root: Scope, name: str, local: set[FunctionKey]) -> _Body:
    body = _Body(name)
    for scope in nested(root):
        body.nodes += len(scope.nodes)
        body.depth = max(body.depth, scope.depth)
        if local:
            for node in scope.nodes:
                if (key := call_key(node)) in local:
                    body.calls[key] += 1
                    body.deepest[key] = max(body.deepest.get(key, 0), scope.depth)
    return body


def _expand(body: _Body, costs: Mapping[FunctionKey, _Cost]) -> _Cost:
    """Adds what the callees cost; Python integers cannot overflow, however wild the file."""
    nodes, calls, graph_depth, function_depth = body.nodes, 0, body.depth, 0
    for key, count in body.calls.items():
        callee = costs[key]
        nodes += count * callee.nodes
        calls += count * (1 + callee.calls)
        graph_depth = max(graph_depth, body.deepest[key] + callee.graph_depth)
        function_depth = max(function_depth, callee.function_depth)
    return _Cost(nodes, calls, graph_depth, function_depth + 1)


def _callees_first(functions: Mapping[FunctionKey, _Body]) -> list[FunctionKey]:
    """Returns the functions so that each comes after those it calls; raises on recursion."""
    order: list[FunctionKey] = []
    state: dict[FunctionKey, bool] = {}  # False while on the path, True when done
    for start in functions:
        if start in state:
            continue
        state[start] = False
        path = [(start, iter(functions[start].calls))]
        while path:
            key, callees = path[-1]
            callee = next(callees, None)
            if callee is None:
                state[key] = True
                order.append(key)
                path.pop()
            elif callee not in state:
                state[callee] = False
                path.append((callee, iter(functions[callee].calls)))
            elif not state[callee]:
                _refuse_recursion([key for key, _ in path], callee)
    return order


def _refuse_recursion(path: list[FunctionKey], again: FunctionKey) -> None:
    loop = [*path[path.index(again) :], again]
    names = [quoted(key[1], 30) for key in loop]
    if len(names) > 5:
        names[2:-2] = ["…"]
    raise ModelError(f"a function calls itself: {' → '.join(names)}")


def _check_sizes(model: ModelProto, limits: Limits) -> None:
    """Counts initializers, and the ranks that are declared in the main graph and its tensors."""
    graph = model.graph
    graphs = [graph]
    for training in model.training_info:
        graphs += [training.initialization, training.algorithm]
        limits.hold("nodes", sum(len(each.node) for each in graphs), "nodes")
    tensors = sum(len(each.initializer) + len(each.sparse_initializer) for each in graphs)
    limits.hold("tensors", tensors, "initializers")
    for each in graphs:
        _check_ranks(each, limits)


def _check_ranks(graph: GraphProto, limits: Limits) -> None:
    _hold_tensors(graph.initializer, limits)
    for sparse in graph.sparse_initializer:
        what = f"dimensions in sparse initializer {quoted(sparse.values.name)}"
        limits.hold("rank", len(sparse.dims), what)
    _hold_values(graph.input, limits)
    _hold_values(graph.output, limits)
    _hold_values(graph.value_info, limits)


def _hold_tensors(tensors: Iterable[TensorProto], limits: Limits) -> None:
    for tensor in tensors:
        if len(tensor.dims) > limits.rank:
            what = f"dimensions in tensor {quoted(tensor.name)}"
            limits.hold("rank", len(tensor.dims), what)


def _hold_values(values: Iterable[ValueInfoProto], limits: Limits) -> None:
    for value in values:
        rank = len(value.type.tensor_type.shape.dim)
        if rank > limits.rank:
            limits.hold("rank", rank, f"dimensions in value {quoted(value.name)}")
