"""Finding a pattern in a graph."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.diagnostics import Location
from onnxcomp.errors import quoted
from onnxcomp.ir.ops import STANDARD_DOMAINS, UNKNOWN, array, attribute, is_op
from onnxcomp.ir.ops import constant as constant_of
from onnxcomp.ir.scopes import ir_graphs
from onnxcomp.patterns.terms import MISSING, NodePattern, Number, Output, Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model, ir
    from onnxcomp.patterns.terms import Pattern, Term

COMMUTATIVE = frozenset(
    {"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean"}
    | {"BitwiseAnd", "BitwiseOr", "BitwiseXor"}
)
# Operators that stretch their operands to a common shape.
_STRETCHING = COMMUTATIVE | {
    *("Sub", "Div", "Pow", "Mod", "PRelu", "Where", "BitShift"),
    *("Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
}
# Constants with more elements are no numbers of a formula.
_LARGEST = 1 << 16
# A pattern that could be laid over a graph in more ways is given up.
_MAX_STEPS = 4096


@dataclass(frozen=True)
class State:
    """A pattern laid over a graph, as far as it is.

    Attributes:
        values: Values of variables.
        attributes: Attributes in the place of variables.
        nodes: Nodes of operators.
        problems: What does not fit although the operators do.
    """

    values: Mapping[Variable, ir.Value | None] = field(default_factory=dict)
    attributes: Mapping[Variable, Any] = field(default_factory=dict)
    nodes: Mapping[NodePattern, ir.Node] = field(default_factory=dict)
    problems: tuple[Callable[[], str], ...] = ()

    def blamed(self, problem: Callable[[], str]) -> State:
        """Returns the same with one more problem."""
        return replace(self, problems=(*self.problems, problem))


@dataclass(frozen=True)
class Imports:
    """The operator sets of every scope: a function has its own."""

    def compute(self, model: Model, facts: Facts) -> dict[ir.Graph, Mapping[str, int]]:
        """Looks them up."""
        del facts
        found: dict[ir.Graph, Mapping[str, int]] = {}
        inner = {function.graph: function for function in model.core.functions.values()}
        current: Mapping[str, int] = model.opset_imports
        for graph in ir_graphs(model.core):
            # Bodies follow the graph that they are in.
            if graph is model.graph:
                current = model.opset_imports
            elif graph in inner:
                current = inner[graph].opset_imports
            found[graph] = current
        return found


def imports_at(node: ir.Node, facts: Facts) -> Mapping[str, int]:
    """Returns the operator sets that hold where a node stands."""
    return {} if node.graph is None else facts.get(Imports()).get(node.graph, {})


def is_of_main(node: ir.Node, facts: Facts) -> bool:
    """Whether a node stands in the main graph or a body in it, not in a function."""
    return imports_at(node, facts) is next(iter(facts.get(Imports()).values()))


def version_of(domain: str, imports: Mapping[str, int]) -> int:
    """Returns the version of an operator set, 0 when it is not imported."""
    return imports.get("", imports.get("ai.onnx", 0)) if not domain else imports.get(domain, 0)


@cache
def schema_of(op_type: str, version: int, domain: str) -> Any:  # noqa: ANN401 - an onnx.defs.OpSchema
    """Returns the definition of an operator, None when there is none."""
    from onnx import defs

    try:
        return defs.get_schema(op_type, version, domain)
    except defs.SchemaError:
        return None


@cache
def default_of(op_type: str, version: int, domain: str, name: str) -> Any:  # noqa: ANN401
    """Returns the default value of an attribute, `MISSING` when there is none."""
    from onnx import helper

    schema = schema_of(op_type, version, domain)
    found = schema.attributes.get(name) if schema is not None else None
    if found is None or not found.default_value.name:
        return MISSING
    value = helper.get_attribute_value(found.default_value)
    return value.decode() if isinstance(value, bytes) else value


class Matcher:
    """One search for a pattern at a node."""

    def __init__(self, pattern: Pattern, facts: Facts) -> None:
        self._pattern = pattern
        self._facts = facts
        self._steps = 0
        self._graph: ir.Graph | None = None

    def solutions(self, node: ir.Node) -> Iterator[State]:
        """Yields every way to lay the pattern over the graph with its first result at a node."""
        self._graph = node.graph
        first, *others = dict.fromkeys(result.node for result in self._pattern.results)
        for state in self._node(first, node, State()):
            yield from self._further(others, state)

    def _further(self, roots: Sequence[NodePattern], state: State) -> Iterator[State]:
        if not roots:
            yield state
            return
        for node in dict.fromkeys(self._candidates(roots[0], state)):
            for found in self._node(roots[0], node, state):
                yield from self._further(roots[1:], found)

    def _candidates(self, pattern: NodePattern, state: State) -> Iterator[ir.Node]:
        """Yields nodes that read what was found already, as another result must."""
        if pattern in state.nodes:
            yield state.nodes[pattern]
            return
        for term in pattern.inputs:
            if isinstance(term, Output):
                makers = list(self._candidates(term.node, state))
                values = [m.outputs[term.index] for m in makers if term.index < len(m.outputs)]
            elif isinstance(term, Variable) and state.values.get(term) is not None:
                values = [state.values[term]]  # type: ignore[list-item]  # not None
            else:
                continue
            yield from (usage.node for value in values for usage in value.uses())
            return

    def _node(self, pattern: NodePattern, node: ir.Node, state: State) -> Iterator[State]:
        if pattern in state.nodes:
            if state.nodes[pattern] is node:
                yield state
            return
        self._steps += 1
        if (
            self._steps > _MAX_STEPS
            or not self._is_like(pattern, node)
            or node in state.nodes.values()
        ):
            return
        state = replace(state, nodes={**state.nodes, pattern: node})
        for terms in _orders(pattern):
            for found in self._inputs(terms, node, 0, state):
                yield self._attributes(pattern, node, found)

    def _is_like(self, pattern: NodePattern, node: ir.Node) -> bool:
        if node.op_type != pattern.op_type or node.graph is not self._graph:
            return False
        if node.domain != pattern.domain and not (
            node.domain in STANDARD_DOMAINS and pattern.domain in STANDARD_DOMAINS
        ):
            return False
        count = len(pattern.inputs)
        return all(value is None for value in node.inputs[count:]) and not any(
            value.name and (value.uses() or value.is_graph_output())
            for value in node.outputs[pattern.count :]
        )

    def _inputs(
        self, terms: Sequence[Term], node: ir.Node, index: int, state: State
    ) -> Iterator[State]:
        if index == len(terms):
            yield state
            return
        value = node.inputs[index] if index < len(node.inputs) else None
        for found in self._term(terms[index], value, node, state):
            yield from self._inputs(terms, node, index + 1, found)

    def _term(
        self, term: Term, value: ir.Value | None, node: ir.Node, state: State
    ) -> Iterator[State]:
        if isinstance(term, Output):
            maker = None if value is None else value.producer()
            if maker is not None and value is not None and _index(maker, value) == term.index:
                yield from self._node(term.node, maker, state)
        elif isinstance(term, Variable):
            yield from self._variable(term, value, state)
        elif term is None or value is None:
            if term is None and value is None:
                yield state
        else:
            yield from self._number(term, value, node, state)

    @staticmethod
    def _variable(term: Variable, value: ir.Value | None, state: State) -> Iterator[State]:
        if term in state.values:
            if state.values[term] is value:
                yield state
            return
        if value is None and not term.is_optional:
            return
        if term.is_constant and constant_of(value) is None:
            return
        yield replace(state, values={**state.values, term: value})

    def _number(
        self, term: Number, value: ir.Value, node: ir.Node, state: State
    ) -> Iterator[State]:
        found = array(value, limit=_LARGEST)
        if found is None or found.dtype.kind not in "fiub" or (term.is_scalar and found.size != 1):
            return
        if not equals(found, term):
            yield state.blamed(lambda: _other_number(node, found, term))
        elif term.is_scalar and found.ndim and not self._widens_nothing(node, value, found.ndim):
            yield state.blamed(
                lambda: f"the constant of {Location.of(node)} may give its result more dimensions"
            )
        else:
            yield state

    def _widens_nothing(self, node: ir.Node, value: ir.Value, rank: int) -> bool:
        if not is_op(node, *_STRETCHING):
            return False
        shapes = self._facts.get(Shapes())
        others = [shapes.rank(other) for other in node.inputs if other is not value]
        return any(other is not None and other >= rank for other in others)

    def _attributes(self, pattern: NodePattern, node: ir.Node, state: State) -> State:
        version = version_of(pattern.domain, imports_at(node, self._facts))

        def have(name: str) -> Any:  # noqa: ANN401 - whatever an attribute is
            value = attribute(node, name, MISSING)
            if value is MISSING:
                return default_of(node.op_type, version, pattern.domain, name)
            return value

        for name, wanted in pattern.attributes.items():
            found = have(name)
            if isinstance(wanted, Variable):
                found = None if found is MISSING else found
                known = state.attributes.get(wanted, found)
                if found is UNKNOWN or not same_attribute(known, found):
                    state = state.blamed(lambda n=name: f"{n} of {Location.of(node)} differs")  # type: ignore[misc]
                state = replace(state, attributes={**state.attributes, wanted: found})
            elif not same_attribute(found, wanted):
                state = state.blamed(lambda n=name, f=found: _other_attribute(node, n, f))  # type: ignore[misc]
        for name in () if pattern.any_attributes else node.attributes:
            default = default_of(node.op_type, version, pattern.domain, name)
            if name not in pattern.attributes and not same_attribute(
                attribute(node, name), default
            ):
                state = state.blamed(lambda n=name: _other_attribute(node, n, attribute(node, n)))  # type: ignore[misc]
        return state


def _orders(pattern: NodePattern) -> tuple[tuple[Term, ...], ...]:
    swaps = pattern.domain in STANDARD_DOMAINS and pattern.op_type in COMMUTATIVE
    if not swaps or len(pattern.inputs) != 2 or pattern.inputs[0] is pattern.inputs[1]:
        return (pattern.inputs,)
    return pattern.inputs, pattern.inputs[::-1]


def _index(maker: ir.Node, value: ir.Value) -> int:
    return next(index for index, output in enumerate(maker.outputs) if output is value)


def equals(found: np.ndarray[Any, Any], term: Number) -> bool:
    """Whether a constant has the contents of a term; NaN equals nothing."""
    wanted = term.wanted
    if not term.is_scalar and found.shape != wanted.shape:
        return False
    if found.dtype.kind != "f" or found.dtype.itemsize < 2:
        return bool((found == wanted).all())
    near = wanted.astype(found.dtype)
    with np.errstate(invalid="ignore"):
        gap = 2 * np.spacing(np.abs(near)) if term.rtol is None else abs(term.rtol * near)
        close = np.isfinite(near) & (np.abs(found - near) <= gap)
    return bool(((found == near) | close).all())


def same_attribute(found: object, wanted: object) -> bool:
    """Whether two attributes are the same as far as a file could tell; graphs never are."""
    if found is MISSING or wanted is MISSING:
        return found is wanted
    if isinstance(found, float) or isinstance(wanted, float):
        numbers = isinstance(found, (int, float)) and isinstance(wanted, (int, float))
        return numbers and bool(np.float32(found) == np.float32(wanted))  # type: ignore[arg-type]
    if isinstance(found, (list, tuple)) and isinstance(wanted, (list, tuple)):
        pairs = zip(found, wanted, strict=False)
        return len(found) == len(wanted) and all(same_attribute(*pair) for pair in pairs)
    if isinstance(found, (int, str)) and isinstance(wanted, (int, str)):
        return found == wanted
    return found is None and wanted is None


def _other_number(node: ir.Node, found: np.ndarray[Any, Any], term: Number) -> str:
    if not term.is_scalar:
        return f"a constant of {Location.of(node)} has other contents"
    return f"the constant of {Location.of(node)} is {found.reshape(())[()]}, not {term.wanted[()]}"


def _other_attribute(node: ir.Node, name: str, found: object) -> str:
    if found is MISSING or found is UNKNOWN:
        return f"{Location.of(node)} has no {quoted(name)[1:-1]} that is known"
    what = quoted(found, 40)[1:-1]
    return f"{Location.of(node)} has {quoted(name)[1:-1]}={what}"
