"""Rules made of a pattern and a replacement, and passes made of such rules."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.diagnostics import Location
from onnxcomp.errors import UserError
from onnxcomp.ir.ops import is_op
from onnxcomp.patterns.building import (
    Made,
    NewOps,
    Operand,
    Plan,
    mark,
    was_made_by,
)
from onnxcomp.patterns.matching import Matcher, imports_at, is_of_main
from onnxcomp.patterns.terms import Refusal, called, trace
from onnxcomp.rules import NOTHING, Match, Miss, RulePass

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir
    from onnxcomp.patterns.building import Input
    from onnxcomp.patterns.matching import State
    from onnxcomp.patterns.terms import Pattern
    from onnxcomp.rules import Rule

    Function = Callable[..., Any]

# A pattern of one operator fits too often by half for that to be worth a word.
_NEAR_FROM = 2


class RewriteRule:
    """A rewrite of your own: a pattern, its replacement, and perhaps a condition.

    Made by `rewrite_rule`. `name` is shown in statistics and near-misses.
    """

    def __init__(
        self,
        pattern: Function,
        replacement: Function | None = None,
        check: Function | None = None,
        *,
        name: str = "",
    ) -> None:
        self.name = name or getattr(pattern, "__name__", "rule").strip("_<>") or "rule"
        self.__doc__ = pattern.__doc__
        self._pattern: Pattern = trace(self.name, pattern)
        root = self._pattern.results[0].node
        domain = "" if root.domain in {"", "ai.onnx"} else f"{root.domain}."
        self.ops = frozenset({f"{domain}{root.op_type}"})
        self._replacement: Function | None = None
        self._check: Function | None = None
        if replacement is not None:
            self.becomes(replacement)
        if check is not None:
            self.when(check)

    def becomes(self, function: Function) -> Function:
        """Says what the pattern becomes; gets the operators and those values of the pattern that it names."""
        self._replacement = self._asking(function, "replacement", skip=1)
        return function

    def when(self, function: Function) -> Function:
        """Says when the rule applies: True, or why not; gets those values of the pattern that it names."""
        self._check = self._asking(function, "condition", skip=0)
        return function

    def _asking(self, function: Function, what: str, *, skip: int) -> Function:
        known = self._pattern.names
        for name in list(inspect.signature(function).parameters)[skip:]:
            if name not in known:
                raise UserError(
                    f"rule {self.name}: the {what} asks for {name}, which the pattern does not have",
                    hint=f"it has {', '.join(sorted(known)) or 'no open values'}",
                )
        return function

    def match(self, node: ir.Node, facts: Facts) -> Match[Plan] | Miss:
        """Lays the pattern over the graph and plans what to put in its place."""
        miss: Miss = NOTHING
        for state in Matcher(self._pattern, facts).solutions(node):
            found = self._plan(state, facts)
            if isinstance(found, Plan):
                return Match(node, found)
            miss = miss if miss.near else found
        return miss

    def _plan(self, state: State, facts: Facts) -> Plan | Miss:
        if all(was_made_by(node, self) for node in state.nodes.values()):
            return NOTHING
        near = len(state.nodes) >= _NEAR_FROM
        if state.problems:
            return Miss(state.problems[0](), near=near and len(state.problems) == 1)
        if reader := self._read_elsewhere(state):
            return Miss(reader, near=near)
        named = self._named(state, facts)
        if self._check is not None:
            answer = _call(self.name, "condition", self._check, named)
            if answer is False or isinstance(answer, str):
                return Miss(answer or "", near=near and bool(answer))
        try:
            return self._built(state, named, facts)
        except Refusal as refusal:
            return Miss(refusal.why, near=True, hint=refusal.hint)

    def _named(self, state: State, facts: Facts) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for name, variable in self._pattern.variables.items():
            if variable in state.attributes:
                named[name] = state.attributes[variable]
            else:
                value = state.values.get(variable)
                named[name] = None if value is None else Operand(value, facts)
        return named | {part.name: node for part, node in state.nodes.items() if part.name}

    def _read_elsewhere(self, state: State) -> str:
        """Returns who else needs a value between the nodes, empty if nobody does."""
        found = set(state.nodes.values())
        for value in state.values.values():
            if value is not None and (maker := value.producer()) in found and maker is not None:
                return f"the result of {Location.of(maker)} is read beside the pattern too"
        results = {(result.node, result.index) for result in self._pattern.results}
        for part, node in state.nodes.items():
            for index, value in enumerate(node.outputs):
                if (part, index) in results:
                    continue
                if value.is_graph_output():
                    return f"the result of {Location.of(node)} is an output of the graph"
                for usage in value.uses():
                    if usage.node not in found:
                        return f"{Location.of(node)} is also read by {Location.of(usage.node)}"
        return ""

    def _built(self, state: State, named: Mapping[str, Any], facts: Facts) -> Plan | Miss:
        if self._replacement is None:
            raise UserError(
                f"rule {self.name} has no replacement", hint=f"write one under @{self.name}.becomes"
            )
        first = state.nodes[self._pattern.results[0].node]
        ops = NewOps(self.name, imports_at(first, facts), may_import=is_of_main(first, facts))
        returned = _call(self.name, "replacement", self._replacement, named, ops)
        results = list(returned) if isinstance(returned, tuple) else [returned]
        if len(results) != len(self._pattern.results) or not all(
            isinstance(result, (Operand, Made, np.ndarray)) for result in results
        ):
            raise UserError(
                f"rule {self.name}: the replacement must return as many values as the pattern"
            )
        plan = Plan(ops.made, results, rule=self, gone=list(state.nodes.values()))
        plan.shapes = facts.get(Shapes())
        plan.old = [state.nodes[r.node].outputs[r.index] for r in self._pattern.results]
        plan.place = _place(plan, state)
        if plan.place is None:
            return Miss("what it reads is made only after its first result", near=True)
        return plan if _makes_progress(plan) else NOTHING

    def apply(self, match: Match[Plan], edit: Edit) -> None:
        """Builds the planned nodes, and removes those of the pattern."""
        plan = match.found
        place = plan.place
        assert place is not None
        assert place.graph is not None
        scope = place.graph
        made: dict[object, list[ir.Value]] = {}

        def real(value: Input) -> ir.Value | None:
            if isinstance(value, Operand):
                return value.value
            if isinstance(value, Made):
                return made[value.node][value.index]
            if value is None:
                return None
            return edit.initializer(value, name=f"{self.name}_constant", graph=scope)

        last = {
            result.node: old
            for result, old in zip(plan.results, plan.old, strict=True)
            if isinstance(result, Made) and result.index == 0
        }
        for new in plan.nodes:
            if new.domain:
                edit.import_domain(new.domain, 1)
            node = edit.insert(
                new.op_type,
                [real(value) for value in new.inputs],
                before=place,
                outputs=new.count,
                attributes=new.attributes,
                domain=new.domain,
                like=last.get(new),
                name=new.name or None,
            )
            mark(node, self)
            made[new] = list(node.outputs)
        for old, result in zip(plan.old, plan.results, strict=True):
            value = real(result)
            assert value is not None
            if plan.shapes is not None and isinstance(result, Made):
                plan.shapes.record(value, plan.shapes.dtype(old), plan.shapes.shape(old))
            edit.replace(old, value)
        _remove(plan, edit)


def _call(
    rule: str, what: str, function: Function, named: Mapping[str, Any], *first: object
) -> Any:  # noqa: ANN401 - whatever it returns
    names = list(inspect.signature(function).parameters)[len(first) :]
    return called(rule, what, function, *first, **{name: named[name] for name in names})


def _place(plan: Plan, state: State) -> ir.Node | None:
    """Returns the node before which the new ones can stand: the first that makes a result."""
    roots = list(dict.fromkeys(value.producer() for value in plan.old))
    if len(roots) == 1:
        return roots[0]
    # A result may be read before the other ones are made, so all must be there that early.
    needed = {
        maker
        for value in state.values.values()
        if value is not None and (maker := value.producer()) is not None
    }
    graph = plan.gone[0].graph
    for node in graph or ():
        if node in roots:
            inside = {maker for maker in needed if maker.graph is graph}
            return None if inside else node
        needed.discard(node)
    return None


def _makes_progress(plan: Plan) -> bool:
    """Whether something changes: an Identity that keeps the name of an output would come back."""
    if plan.nodes or len(plan.gone) > len(plan.results):
        return True
    for old, result in zip(plan.old, plan.results, strict=True):
        maker = result.value.producer() if isinstance(result, Operand) else None
        free = maker is not None and maker.graph is old.graph
        if old.is_graph_output() and not (
            free and isinstance(result, Operand) and not result.value.is_graph_output()
        ):
            return False
    return True


def _remove(plan: Plan, edit: Edit) -> None:
    """Removes the nodes of the pattern, readers before makers, and constants that only they read."""
    waiting = list(plan.gone)
    while waiting:
        free = [node for node in waiting if not any(_is_used(value) for value in node.outputs)]
        for node in free:
            makers = [value.producer() for value in node.inputs if value is not None]
            edit.remove(node)
            waiting.remove(node)
            for maker in dict.fromkeys(makers):
                if (
                    maker is not None
                    and is_op(maker, "Constant")
                    and not _is_used(maker.outputs[0])
                ):
                    edit.remove(maker)
        if not free:
            return


def _is_used(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


@overload
def rewrite_rule(pattern: Function, /) -> RewriteRule: ...
@overload
def rewrite_rule(
    *, name: str = "", replacement: Function | None = None, check: Function | None = None
) -> Callable[[Function], RewriteRule]: ...
def rewrite_rule(
    pattern: Function | None = None,
    /,
    *,
    name: str = "",
    replacement: Function | None = None,
    check: Function | None = None,
) -> RewriteRule | Callable[[Function], RewriteRule]:
    """Makes a rule of a pattern function; `rule.becomes` and `rule.when` add the rest.

    Args:
        pattern: Gets the operators and the values that are left open; returns what is to be replaced.
        name: Name of the rule, by default that of the function.
        replacement: What it becomes, instead of a function under `@rule.becomes`.
        check: When it applies, instead of a function under `@rule.when`.

    Raises:
        UserError: If the function does not describe a pattern.
    """
    if pattern is not None:
        return RewriteRule(pattern, replacement, check, name=name)
    return lambda function: RewriteRule(function, replacement, check, name=name)


def rule_pass(name: str, *rules: Rule, lossless: bool = True) -> type[RulePass]:
    """Makes a pass of rules, for an entry point or a pipeline.

    Args:
        name: Name of the pass, kebab-case.
        rules: The rules, in order of preference.
        lossless: Whether the model must compute what it did, so that the verifier may demand it.
    """
    texts = [
        text for rule in rules if (text := inspect.getdoc(rule)) and isinstance(rule, RewriteRule)
    ]
    found = "\n\n".join(texts) or f"Rewrites: {', '.join(rule.name for rule in rules)}."
    body = {
        "__doc__": found,
        "__module__": __name__,
        "name": name,
        "lossless": lossless,
        "near_miss_code": "RUL101",
        "codes": {"RUL101": NEAR_MISS},
        "rules": lambda self: rules,
    }
    return type("RewritePass", (RulePass,), body)


NEAR_MISS = (
    "A rule of your own found all operators of its pattern, but does not apply, for the reason given: a value "
    "between them is read elsewhere, a number or an attribute differs, the model's operator set has no such "
    "operator, or its condition says so."
)
