"""Patterns as data: what a pattern function returns when it is called once, at its definition."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from onnxcomp.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    Term: TypeAlias = "Variable | Number | Output | None"


class Refusal(Exception):  # noqa: N818 - no error: the rule does not apply here
    """A replacement cannot be built at this place."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


MAX_NODES = 64
# Options of an operator in a pattern or a replacement; everything else is an attribute.
OPTIONS = ("_domain", "_outputs", "_name", "_attributes", "_like")


@dataclass(frozen=True, eq=False)
class Variable:
    """A value or an attribute that the pattern leaves open.

    Attributes:
        name: Name of the parameter.
        is_constant: Whether the value must be the same in every run.
        is_optional: Whether the model may leave it out.
    """

    name: str
    is_constant: bool = False
    is_optional: bool = False


@dataclass(frozen=True, eq=False)
class Number:
    """A constant with known contents.

    Attributes:
        wanted: The contents.
        is_scalar: Whether one number was given, which stands for any constant of one element that
            widens nothing.
        rtol: Relative tolerance; by default two units in the last place of the constant's type.
    """

    wanted: np.ndarray[Any, Any]
    is_scalar: bool
    rtol: float | None = None


@dataclass(frozen=True, eq=False)
class Output:
    """An output of an operator of the pattern."""

    node: NodePattern
    index: int


@dataclass(frozen=True, eq=False)
class NodePattern:
    """An operator of the pattern."""

    op_type: str
    domain: str
    inputs: tuple[Term, ...]
    attributes: dict[str, Any]
    count: int
    name: str
    any_attributes: bool
    outputs: list[Output] = field(default_factory=list)


@dataclass(frozen=True)
class constant:  # noqa: N801 - reads as a word in signatures and patterns
    """A value that is the same in every run; nothing that a caller may override.

    As the default of a parameter, `w=constant`, it makes that such a value. In a pattern, `constant(1.702, rtol=1e-3)` is a
    number with a tolerance of its own.

    Attributes:
        contents: What it must be: a number, a list or an array; None for anything.
        rtol: Relative tolerance; by default two units in the last place of the constant's type.
    """

    contents: Any = None
    rtol: float | None = None


@dataclass(frozen=True)
class Pattern:
    """A whole pattern.

    Attributes:
        variables: What is left open, by name.
        nodes: All operators; the first one is where the search begins.
        results: The values to be replaced.
    """

    variables: dict[str, Variable]
    nodes: tuple[NodePattern, ...]
    results: tuple[Output, ...]

    @property
    def names(self) -> frozenset[str]:
        """What other functions of a rule may ask for."""
        return frozenset({*self.variables, *(node.name for node in self.nodes if node.name)})


class Ops:
    """Stands for the operators in a pattern function: each call makes a part of the pattern."""

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self.made: list[NodePattern] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def make(*inputs: Any, **rest: Any) -> Any:  # noqa: ANN401 - what a user writes
            return self._make(op_type, inputs, rest)

        return make

    def _make(self, op_type: str, inputs: Sequence[Any], rest: dict[str, Any]) -> Any:  # noqa: ANN401
        options = split_options(self._rule, op_type, rest)
        node = NodePattern(
            op_type,
            options.get("_domain", ""),
            tuple(self._term(op_type, value) for value in inputs),
            rest,
            int(options.get("_outputs", 1)),
            options.get("_name", ""),
            options.get("_attributes") == "any",
        )
        node.outputs.extend(Output(node, index) for index in range(node.count))
        self.made.append(node)
        if len(self.made) > MAX_NODES:
            raise UserError(f"rule {self._rule}: a pattern has at most {MAX_NODES} operators")
        return node.outputs[0] if node.count == 1 else tuple(node.outputs)

    def _term(self, op_type: str, value: object) -> Term:
        if value is None or isinstance(value, (Variable, Output, Number)):
            return value
        if value is constant:
            return Variable("", is_constant=True)
        if isinstance(value, constant):
            if value.contents is None:
                return Variable("", is_constant=True)
            return number(value.contents, value.rtol)
        if isinstance(value, (bool, int, float, list, tuple, np.ndarray, np.generic)):
            return number(value)
        raise UserError(
            f"rule {self._rule}: {op_type} gets a {type(value).__name__}",
            hint="inputs are parameters, results of operators, numbers, lists and arrays",
        )


def split_options(rule: str, op_type: str, rest: dict[str, Any]) -> dict[str, Any]:
    """Takes the options out of the keywords of an operator; attributes are left."""
    unknown = sorted(key for key in rest if key.startswith("_") and key not in OPTIONS)
    if unknown:
        raise UserError(
            f"rule {rule}: {op_type} has no option {unknown[0]}",
            hint=f"known: {', '.join(OPTIONS)}",
        )
    return {key: rest.pop(key) for key in OPTIONS if key in rest}


def number(contents: object, rtol: float | None = None) -> Number:
    """Returns contents as a term."""
    found = np.asarray(contents)
    return Number(
        found, is_scalar=not isinstance(contents, np.ndarray) and found.ndim == 0, rtol=rtol
    )


def trace(rule: str, function: Callable[..., Any]) -> Pattern:
    """Calls a pattern function and returns what it describes.

    Raises:
        UserError: If it cannot be a pattern.
    """
    variables = _variables(rule, function)
    ops = Ops(rule)
    returned = called(rule, "pattern", function, ops, *variables.values())
    results = returned if isinstance(returned, tuple) else (returned,)
    if not results or not all(isinstance(result, Output) for result in results):
        raise UserError(f"rule {rule}: the pattern must return what operators make")
    named = {name: found for name, found in variables.items() if isinstance(found, Variable)}
    nodes = tuple(_reached(results))
    lost = next((node for node in ops.made if node not in nodes), None)
    if lost is not None:
        raise UserError(f"rule {rule}: nothing in the pattern reads its {lost.op_type}")
    _refuse_double_meaning(rule, nodes)
    return Pattern(named, nodes, results)


def _variables(rule: str, function: Callable[..., Any]) -> dict[str, Variable | Number]:
    parameters = list(inspect.signature(function).parameters.values())
    fixed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or any(each.kind not in fixed for each in parameters):
        raise UserError(
            f"rule {rule}: the pattern takes the operators and its open values",
            hint="def pattern(op, x): return op.Relu(x)",
        )
    return {each.name: _variable(rule, each) for each in parameters[1:]}


def _variable(rule: str, parameter: inspect.Parameter) -> Variable | Number:
    default = parameter.default
    if default is inspect.Parameter.empty:
        return Variable(parameter.name)
    if default is None:
        return Variable(parameter.name, is_optional=True)
    if default is constant or (isinstance(default, constant) and default.contents is None):
        return Variable(parameter.name, is_constant=True)
    if isinstance(default, constant):
        return number(default.contents, default.rtol)
    raise UserError(
        f"rule {rule}: the default of {parameter.name} means nothing",
        hint="a default is constant, or None for what may be left out",
    )


def called(
    rule: str, what: str, function: Callable[..., Any], *args: object, **named: object
) -> Any:  # noqa: ANN401
    """Calls a function of a rule; what it raises becomes one line that names the rule."""
    try:
        return function(*args, **named)
    except (UserError, Refusal):
        raise
    except Exception as error:
        raise UserError(
            f"rule {rule}: the {what} raises {type(error).__name__}: {error}"
        ) from error


def _reached(results: Sequence[Output]) -> Iterator[NodePattern]:
    """Yields the operators behind the results, those nearest to the first result first."""
    seen: dict[NodePattern, None] = {}
    waiting = [result.node for result in results]
    while waiting:
        node = waiting.pop(0)
        if node not in seen:
            seen[node] = None
            yield node
            waiting += [term.node for term in node.inputs if isinstance(term, Output)]


def _refuse_double_meaning(rule: str, nodes: Sequence[NodePattern]) -> None:
    values = {term for node in nodes for term in node.inputs if isinstance(term, Variable)}
    for node in nodes:
        for value in node.attributes.values():
            if isinstance(value, Variable) and value in values:
                raise UserError(f"rule {rule}: {value.name} is both an input and an attribute")


class _Missing:
    """What an attribute without a value or a default compares as."""

    @override
    def __repr__(self) -> str:
        return "nothing"


MISSING = _Missing()
