"""Replaces calls of local functions by the functions' nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.envelope import SPARSE_INITIALIZERS
from onnxcomp.ir.inlining import inline_call, inline_obstacle
from onnxcomp.ir.ops import standard_op
from onnxcomp.passbase import Pass
from onnxcomp_passes.convert.opsets import convert_function, schema
from onnxcomp_passes.simplify.scopes import nested

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from onnxcomp.ir import Model, ir
    from onnxcomp.passbase import Context

Identifier: TypeAlias = tuple[str, str, str]

# Runtimes have kernels for operators of these domains; a function beside them is for those that do not.
RUNTIME_DOMAINS = ("com.microsoft", "com.ms.", "ai.onnx.contrib", "com.nvidia", "trt.")


class InlineFunctions(Pass):
    """Replace calls of local functions by the nodes of the functions, and remove the functions.

    Also calls inside bodies and inside other functions, callees first. Attributes of the call take the
    places of references, defaults where the call gives none; operands that are left out stay left out.
    Names inside begin with the name of the call; results keep theirs, weights are shared.

    A function of another opset is converted first, and stays a function where that is not possible.
    Functions in domains of a runtime (com.microsoft and the like) stay, because the runtime may have a
    faster kernel of that name; name them in `only` to inline them all the same.

        y = my.Twice <by = 2.0> (x)            ->        c = Constant <value_float = 2.0> ()
                                                         y = Mul (x, c)
    """

    name: ClassVar[str] = "inline-functions"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "FUN101": "A function stays because its name stands for an operator of a runtime, which may have a faster "
        "kernel for it. Name it in the option only to inline it all the same.",
        "FUN102": "A function stays because the model would get more nodes than max-nodes allows.",
        "FUN103": "A function stays because it was written for another opset, and cannot be said in that of the "
        "model in the same way.",
        "FUN104": "A call stays, for the reason given.",
    }

    only: tuple[str, ...] = ()
    """Patterns for the functions to inline, as `name` or `domain::name`; all when there are none."""
    skip: tuple[str, ...] = ()
    """Patterns for functions that stay."""
    max_nodes: PositiveInt = 100_000
    """Most nodes that the model may get, all scopes counted."""
    shrink: bool = False
    """Inline only what leaves the model with fewer nodes, or as many: functions that are called once, and
    tiny ones."""

    @override
    def run(self, ctx: Context) -> None:
        if ctx.model.core.functions:
            _Inliner(ctx, self).run()

    def wants(self, identifier: Identifier) -> bool:
        """Whether the options ask for a function."""
        domain, name, _ = identifier
        words = (name, f"{domain}::{name}")
        if any(fnmatchcase(word, pattern) for pattern in self.skip for word in words):
            return False
        return not self.only or any(
            fnmatchcase(word, pattern) for pattern in self.only for word in words
        )


@dataclass
class _Inliner:
    """One run over one model."""

    ctx: Context
    options: InlineFunctions

    def run(self) -> None:
        model = self.ctx.model
        self.functions: dict[Identifier, ir.Function] = dict(model.core.functions)
        self.size = sum(len(graph) for graph in model.graphs())
        for identifier in _callees_first(self.functions):
            if self.options.wants(identifier):
                self._inline(identifier, self.functions[identifier])

    def _inline(self, identifier: Identifier, function: ir.Function) -> None:
        """Inlines every call of one function whose own calls were dealt with before."""
        calls = list(_calls(self.ctx.model, identifier))
        if not calls or not self._is_worth_it(identifier, function, len(calls)):
            return
        left = 0
        for call, imports in calls:
            reason = inline_obstacle(call, function) or self._other_version(function, imports)
            if reason:
                left += 1
                self.ctx.skip("FUN104", call, reason)
            else:
                self.size += len(function.graph) - 1
                inline_call(self.ctx.edit, call, function)
        if not left:
            self.size -= len(function.graph)
            self.ctx.edit.remove_function(identifier)

    def _is_worth_it(self, identifier: Identifier, function: ir.Function, calls: int) -> bool:
        place = "::".join(part for part in identifier[:2] if part)
        size = sum(len(graph) for graph in nested(function.graph))
        if identifier[0].startswith(RUNTIME_DOMAINS) and not self.options.only:
            self.ctx.skip("FUN101", place, "it stands for an operator of a runtime")
            return False
        if self.options.shrink and calls * size > size + calls:
            return False
        if self.size + calls * size > self.options.max_nodes:
            why = f"{calls} calls of {size} nodes would exceed {self.options.max_nodes:,} nodes"
            self.ctx.skip("FUN102", place, why, hint="raise max-nodes")
            return False
        if any(SPARSE_INITIALIZERS in graph.meta for graph in nested(function.graph)):
            self.ctx.skip("FUN104", place, "a body in it has sparse weights")
            return False
        if reason := self._brought_to_model(function):
            self.ctx.skip("FUN103", place, reason)
            return False
        return True

    def _brought_to_model(self, function: ir.Function) -> str:
        """Converts a function to the opset of the model; returns why that is not possible."""
        model, edit = self.ctx.model, self.ctx.edit
        if not model.opset or not _differs(function, model.opset_imports, "", self.functions):
            return ""
        mark = edit.mark()
        blocked = convert_function(model, edit, self.ctx.facts.get(Shapes()), function)
        if not blocked:
            return ""
        edit.rollback(mark)
        node, reason = blocked[0].node, blocked[0].reason
        return f"{node.op_type} cannot be converted: {reason}" if node is not None else reason

    def _other_version(self, function: ir.Function, imports: dict[str, int]) -> str:
        """Returns which domain the caller has in another version; declares those that it lacks."""
        for domain in sorted({node.domain for node in _all_nodes(function.graph)}):
            if _differs(function, imports, domain, self.functions):
                return f"it was written for another version of {domain or 'the standard operators'}"
        for domain, version in function.opset_imports.items():
            if _version(imports, domain) == 0:
                _declare(self.ctx, imports, domain, version)
        return ""


def _declare(ctx: Context, imports: dict[str, int], domain: str, version: int) -> None:
    imports[domain] = version
    ctx.edit.record(lambda: imports.__delitem__(domain))


def _calls(model: Model, identifier: Identifier) -> Iterator[tuple[ir.Node, dict[str, int]]]:
    """Yields the calls of a function, with the opsets of the graph or function around each."""
    functions = model.core.functions.values()
    roots = [(model.graph, model.opset_imports), *((f.graph, f.opset_imports) for f in functions)]
    for root, imports in roots:
        for node in _all_nodes(root):
            if node.op_identifier() == identifier:
                yield node, imports


def _version(imports: Mapping[str, int], domain: str) -> int:
    if domain in {"", "ai.onnx"}:
        return imports.get("", imports.get("ai.onnx", 0))
    return imports.get(domain, 0)


def _differs(
    function: ir.Function, imports: Mapping[str, int], domain: str, local: Container[Identifier]
) -> bool:
    """Whether some operator of a domain is another one for the caller than it is in a function."""
    own, other = _version(function.opset_imports, domain), _version(imports, domain)
    if own == other or not own or not other:
        return False
    nodes = [node for node in _all_nodes(function.graph) if node.op_identifier() not in local]
    if domain not in {"", "ai.onnx"}:
        return any(node.domain == domain for node in nodes)
    names = {standard_op(node) for node in nodes} - {None}
    return any(_since(name or "", own) != _since(name or "", other) for name in names)


def _since(name: str, version: int) -> int:
    found = schema(name, version)
    return -version if found is None else found.since_version


def _all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    return (node for inner in nested(graph) for node in inner)


def _called(graph: ir.Graph) -> Counter[Identifier]:
    return Counter(node.op_identifier() for node in _all_nodes(graph))


def _callees_first(functions: Mapping[Identifier, ir.Function]) -> list[Identifier]:
    """Orders functions so that each comes after those that it calls; none calls itself."""
    order: dict[Identifier, None] = {}
    for start in functions:
        stack = [(start, False)]
        while stack:
            identifier, ready = stack.pop()
            if identifier in order or identifier not in functions:
                continue
            if ready:
                order[identifier] = None
                continue
            stack.append((identifier, True))
            stack += [(callee, False) for callee in _called(functions[identifier].graph)]
    return list(order)
