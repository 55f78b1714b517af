"""Whether a model hangs together: what native checkers do not look at, do wrong, or explain badly.

Valid models that only need tidying (nodes in another order, two nodes of one name) are reported,
never refused; what has no meaning is refused with the place of it. Weights are not looked at beyond
their length, and nothing here recurses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnx import IR_VERSION

from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir import names, operators
from onnxcomp.ir.budget import DEFAULT_LIMITS, Limits
from onnxcomp.ir.nodes import check_body, check_call, check_values
from onnxcomp.ir.operators import STANDARD_DOMAINS
from onnxcomp.ir.tensors import BITS, check_sparse, check_tensor
from onnxcomp.ir.texts import check_texts
from onnxcomp.ir.walk import (
    call_key,
    domain_of,
    function_key,
    function_scope,
    main_scope,
    nested,
    place_of,
    tensors,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto

    from onnxcomp.ir.walk import FunctionKey, Scope

CODES: dict[str, str] = {
    "MDL101": "Nodes come before the nodes they read from. onnxruntime sorts them, and so do we; other "
    "readers refuse such a file.",
    "MDL102": "Two nodes of a graph have the same name, which onnxruntime refuses. The output gets "
    "unique names.",
    "MDL103": "The model uses an operator in the main domain that the ONNX standard does not have but "
    "onnxruntime does. It is left alone, and other runtimes will refuse it.",
    "MDL104": "A declared dimension is negative. It is taken as unknown, as onnxruntime does.",
    "MDL105": "The graph has no name, which the standard asks for.",
    "MDL106": "A shape is declared that the value cannot have. onnxruntime warns and goes by what the "
    "operators say; so do we.",
    "MDL107": "Weights are declared as inputs as well, so callers may replace them in every run and nothing "
    "can be folded into them. Where nobody does, the pass fix-signature makes them constants.",
    "MDL108": "The model does not say which version of a runtime's own operators it uses. There is only one, "
    "which is what onnxruntime takes; the output declares it.",
}

# Runtimes register operators in these domains next to functions of the same domain.
_RUNTIME_DOMAINS = ("com.microsoft", "com.ms.", "ai.onnx.contrib", "com.nvidia", "trt.")


@dataclass(frozen=True)
class Structure:
    """What was found in a valid model that a reader should know.

    Attributes:
        needs_sort: Some scope has its nodes in another order than they can run in.
        duplicate_node_names: Some scope has two nodes of one name.
        undeclared: Domains of the main graph that it uses without import, to be declared as version 1.
        diagnostics: One remark for each kind of finding.
    """

    needs_sort: bool = False
    duplicate_node_names: bool = False
    undeclared: frozenset[str] = frozenset()
    diagnostics: tuple[Diagnostic, ...] = ()


def check_structure(model: ModelProto, limits: Limits = DEFAULT_LIMITS) -> Structure:
    """Checks a model for everything that can be seen without running native code on it.

    `check_budget` comes first. Works on a model with or without its weights.

    Raises:
        ModelError: The model is not valid; the first problem found, with its place.
    """
    check_texts(model)
    return _Check(model, limits).run()


class _Check:
    """One run over one model."""

    def __init__(self, model: ModelProto, limits: Limits) -> None:
        self.model = model
        self.limits = limits
        self.opsets = _opsets(model.opset_import, "the model")
        self.functions: dict[FunctionKey, FunctionProto] = {}
        self.function_domains: set[str] = set()
        self.needs_sort = False
        self.undeclared: set[str] = set()
        self.findings: dict[str, Diagnostic] = {}

    def run(self) -> Structure:
        self.check_versions()
        self.check_functions()
        self.check_interface(self.model.graph)
        self.check_tree(main_scope(self.model), self.opsets)
        for function in self.model.functions:
            opsets = _opsets(function.opset_import, f"function {quoted(function.name)}")
            self.check_tree(function_scope(function), opsets)
        for place, tensor in tensors(self.model):
            check_tensor(tensor, place, self.limits)
        found = self.findings
        sort, names = "MDL101" in found, "MDL102" in found
        return Structure(sort, names, frozenset(self.undeclared), tuple(found.values()))

    def find(self, code: str, message: str, place: str = "model", hint: str = "") -> None:
        """Keeps the first finding of each kind."""
        if code not in self.findings:
            where = Location(place)
            # A hint is something to do, and is shown; other findings are asked for.
            severity = Severity.SKIP if hint else Severity.NOTE
            self.findings[code] = Diagnostic(code, severity, message, where, hint)

    # -- the model as a whole

    def check_versions(self) -> None:
        version = self.model.ir_version
        if version < 1:
            raise ModelError("the model does not say which IR version it has")
        if version > IR_VERSION:
            raise ModelError(
                f"the model has IR version {version}, the installed onnx knows up to {IR_VERSION}",
                hint="upgrade onnx, if there is a newer one",
            )
        if version < 3:
            self.opsets.setdefault("", 1)
        elif not self.opsets:
            raise ModelError("the model does not say which opset it uses")

    def check_functions(self) -> None:
        for function in self.model.functions:
            key = function_key(function)
            place = f"function {quoted(function.name)}"
            if not function.name:
                raise ModelError("a function has no name")
            if key in self.functions:
                raise ModelError(f"{place} of domain {quoted(key[0])} is defined twice")
            if key[0] in STANDARD_DOMAINS:
                version = self.opsets.get(key[0], operators.newest(key[0]))
                known = operators.operator(key[0], function.name, version)
                if not isinstance(known, str):
                    raise ModelError(
                        f"{place} has the name of a standard operator, so that readers disagree "
                        f"about which one runs",
                        hint="give the function a domain of its own",
                    )
            self.functions[key] = function
            self.function_domains.add(key[0])

    def check_interface(self, graph: GraphProto) -> None:
        if not graph.output:
            empty = not graph.node
            raise ModelError("the graph is empty" if empty else "the graph has no outputs")
        if not graph.name:
            self.find("MDL105", "the graph has no name")
        for value in graph.input:
            if not value.HasField("type") or value.type.WhichOneof("value") is None:
                raise ModelError(f"input {quoted(value.name)} has no type")
        self.check_defaults(graph)
        for what, values in (("input", graph.input), ("output", graph.output)):
            for value in values:
                tensor_type = value.type.tensor_type
                if value.type.HasField("tensor_type") and tensor_type.elem_type not in _ELEMENTS:
                    raise ModelError(
                        f"{what} {quoted(value.name)} has an unknown element type, "
                        f"number {tensor_type.elem_type}"
                    )
                if any(dim.dim_value < 0 for dim in tensor_type.shape.dim):
                    message = f"{what} {quoted(value.name)} declares a negative dimension"
                    self.find("MDL104", message)

    def check_defaults(self, graph: GraphProto) -> None:
        """Counts weights that are inputs as well; before IR version 4 all had to be."""
        if self.model.ir_version >= 4 and graph.initializer:
            inputs = {value.name for value in graph.input}
            count = sum(1 for tensor in graph.initializer if tensor.name in inputs)
            if count:
                what = f"{count} weight{'s' * (count > 1)} may be replaced by callers, being inputs too"
                hint = "--passes fix-signature makes them constants, if nobody does that"
                self.find("MDL107", what, hint=hint)

    # -- scopes

    def check_tree(self, root: Scope, opsets: Mapping[str, int]) -> None:
        definitions: dict[int, names.Definitions] = {}
        unsorted: list[names.Definitions] = []
        for scope in nested(root):
            parent = definitions[id(scope.parent)] if scope.parent else None
            defined = names.define(scope, parent)
            definitions[id(scope)] = defined
            if scope.graph is not None:
                for sparse in scope.graph.sparse_initializer:
                    check_sparse(sparse, f"initializer {quoted(sparse.values.name)}", self.limits)
            self.check_nodes(scope, opsets)
            unsorted += [each for each in names.resolve(defined) if each not in unsorted]
        for defined in unsorted:
            names.refuse_cycle(defined)
            self.find("MDL101", f"the nodes of {defined.scope.describe()} are not sorted")

    def check_nodes(self, scope: Scope, opsets: Mapping[str, int]) -> None:
        seen: set[str] = set()
        for node in scope.nodes:
            if node.name:
                if node.name in seen:
                    message = f"two nodes of {scope.describe()} are named {quoted(node.name)}"
                    self.find("MDL102", message)
                seen.add(node.name)
            if node.attribute:
                check_values(node, scope)
            self.check_operator(node, opsets)

    def declare(self, node: NodeProto, domain: str, opsets: Mapping[str, int]) -> None:
        """Notes a domain that the runtime takes as imported; refuses any other."""
        place = f"{place_of(node)} is of domain {quoted(domain)}"
        if domain not in operators.ALWAYS_IMPORTED or opsets is not self.opsets:
            raise ModelError(f"{place}, whose version is not stated")
        self.undeclared.add(domain)
        self.find("MDL108", f"{place}, which is not imported")

    def check_operator(self, node: NodeProto, opsets: Mapping[str, int]) -> None:
        if not node.op_type:
            raise ModelError(f"a node does not say which operator it is: {place_of(node)}")
        domain = domain_of(node.domain)
        version = opsets.get(domain)
        if domain in self.function_domains:
            function = self.functions.get(call_key(node))
            if function is not None:
                check_call(node, function)
            elif domain not in STANDARD_DOMAINS and not domain.startswith(_RUNTIME_DOMAINS):
                raise ModelError(f"{place_of(node)} calls a function that is not in the model")
        if version is None:
            self.declare(node, domain, opsets)
            return
        if domain not in STANDARD_DOMAINS or call_key(node) in self.functions:
            return
        known = operators.operator(domain, node.op_type, version)
        if isinstance(known, operators.Operator):
            operators.check_operands(node, known)
            operators.check_attributes(node, known)
            if not domain:
                check_body(node, version)
        elif operators.only_in_runtime(domain, node.op_type, version):
            self.find("MDL103", f"{place_of(node)} is an operator of onnxruntime, not of ONNX")
        else:
            raise ModelError(f"{place_of(node)}: the operator {known}")


_ELEMENTS = frozenset(BITS) | {8}  # and strings


def _opsets(imports: Iterable[OperatorSetIdProto], where: str) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        domain, version = domain_of(entry.domain), entry.version
        if opsets.setdefault(domain, version) != version:
            raise ModelError(
                f"{where} imports domain {quoted(domain)} twice, as {opsets[domain]} and {version}"
            )
        if domain not in STANDARD_DOMAINS:
            continue
        newest = operators.newest(domain)
        name = f"version {version} of {domain}" if domain else f"opset {version}"
        if version > newest:
            raise ModelError(
                f"{where} uses {name}, the installed onnx knows up to {newest}",
                hint="upgrade onnx, if there is a newer one",
            )
        if version < 1:
            raise ModelError(f"{where} uses {name}, which does not exist")
    return opsets
