"""Whether one node is what its operator, or the function it calls, asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto

from onnxcomp.errors import ModelError, quoted
from onnxcomp.ir import operators
from onnxcomp.ir.budget import DEFAULT_LIMITS
from onnxcomp.ir.operators import STANDARD_DOMAINS
from onnxcomp.ir.tensors import check_sparse
from onnxcomp.ir.walk import domain_of, place_of, printable

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto

    from onnxcomp.ir.walk import Scope

_A = AttributeProto
# The field that a kind of attribute keeps its value in, when it has to be there: a number that is
# zero may be absent, because writers of the third protobuf syntax leave it out.
_MUST_HAVE = {_A.TENSOR: "t", _A.GRAPH: "g", _A.SPARSE_TENSOR: "sparse_tensor", _A.TYPE_PROTO: "tp"}
_SCALARS = {_A.FLOAT: "f", _A.INT: "i", _A.STRING: "s", **_MUST_HAVE}
_HEAVY = {
    "t": _A.TENSOR,
    "g": _A.GRAPH,
    "sparse_tensor": _A.SPARSE_TENSOR,
}
_LISTS = {
    _A.FLOATS: "floats",
    _A.INTS: "ints",
    _A.STRINGS: "strings",
    _A.TENSORS: "tensors",
    _A.GRAPHS: "graphs",
    _A.SPARSE_TENSORS: "sparse_tensors",
    _A.TYPE_PROTOS: "type_protos",
}
_HEAVY_LISTS = {"tensors": _A.TENSORS, "graphs": _A.GRAPHS, "sparse_tensors": _A.SPARSE_TENSORS}


def check_values(node: NodeProto, scope: Scope) -> None:
    """Raises `ModelError` unless attributes are unambiguous: one of a name, one value of its kind."""
    seen: set[str] = set()
    for attribute in node.attribute:
        name, kind = attribute.name, attribute.type
        if name in seen or not name:
            what = f"two attributes {printable(name)}" if name else "an attribute without a name"
            raise ModelError(f"{place_of(node)} has {what}")
        seen.add(name)
        if attribute.ref_attr_name:
            if scope.function is None:
                raise ModelError(
                    f"attribute {printable(name)} of {place_of(node)} refers to an attribute of a "
                    f"function, but is not in one"
                )
            continue
        if kind not in _SCALARS and kind not in _LISTS:
            raise ModelError(f"attribute {printable(name)} of {place_of(node)} has no type")
        needed = _MUST_HAVE.get(kind)
        if needed is not None and not attribute.HasField(needed):
            raise ModelError(f"attribute {printable(name)} of {place_of(node)} has no value")
        if any(kind != of and attribute.HasField(field) for field, of in _HEAVY.items()) or any(
            kind != of and getattr(attribute, field) for field, of in _HEAVY_LISTS.items()
        ):
            raise ModelError(f"attribute {printable(name)} of {place_of(node)} has two values")
        if kind == _A.SPARSE_TENSOR:
            place = f"attribute {printable(name)} of {place_of(node)}"
            check_sparse(attribute.sparse_tensor, place, DEFAULT_LIMITS)


def check_call(node: NodeProto, function: FunctionProto) -> None:
    """Raises `ModelError` when a node calls a function with operands it does not take."""
    for what, given, taken in (
        ("inputs", node.input, function.input),
        ("outputs", node.output, function.output),
    ):
        if len(given) > len(taken):
            raise ModelError(
                f"{place_of(node)} has {len(given)} {what}, the function it calls has {len(taken)}"
            )
    given_names = {attribute.name for attribute in node.attribute}
    for needed in function.attribute:
        if needed not in given_names:
            raise ModelError(f"{place_of(node)} lacks its attribute {printable(needed)}")
    missing = _needed_inputs(function) if len(node.input) < len(function.input) else set()
    for index in range(len(node.input), len(function.input)):
        if function.input[index] in missing:
            raise ModelError(
                f"{place_of(node)} has {len(node.input)} inputs, "
                f"the function it calls needs {quoted(function.input[index])} too"
            )


def _needed_inputs(function: FunctionProto) -> set[str]:
    """Returns inputs of a function that its body cannot do without."""
    opsets = {domain_of(entry.domain): entry.version for entry in function.opset_import}
    needed: set[str] = set(function.output)
    for node in function.node:
        domain = domain_of(node.domain)
        if domain not in STANDARD_DOMAINS or domain not in opsets:
            continue
        known = operators.operator(domain, node.op_type, opsets[domain])
        if isinstance(known, operators.Operator):
            needed.update(
                name for index, name in enumerate(node.input) if index in known.needed_inputs
            )
    return needed


def _graph(node: NodeProto, name: str) -> GraphProto | None:
    """Returns a body by name; `None` when it is a reference to an attribute of a function."""
    for attribute in node.attribute:
        if attribute.name == name and attribute.type == _A.GRAPH and not attribute.ref_attr_name:
            graph: GraphProto = attribute.g
            return graph
    return None


def _refuse_body(node: NodeProto, what: str, has: int, needs: int) -> None:
    raise ModelError(f"the body of {place_of(node)} has {has} {what}, it needs {needs}")


def _check_if(node: NodeProto, _version: int) -> None:
    for name in ("then_branch", "else_branch"):
        graph = _graph(node, name)
        if graph is None:
            continue
        if graph.input:
            raise ModelError(f"{name} of {place_of(node)} has inputs, it cannot have any")
        if len(graph.output) != len(node.output):
            raise ModelError(
                f"{name} of {place_of(node)} has {len(graph.output)} outputs, "
                f"the node has {len(node.output)}"
            )


def _check_loop(node: NodeProto, _version: int) -> None:
    graph = _graph(node, "body")
    if graph is None:
        return
    if len(graph.input) != len(node.input):
        _refuse_body(node, "inputs", len(graph.input), len(node.input))
    if len(graph.output) != len(node.output) + 1:
        _refuse_body(node, "outputs", len(graph.output), len(node.output) + 1)
    if len(graph.output) < len(graph.input) - 1:
        _refuse_body(node, "outputs", len(graph.output), len(graph.input) - 1)


def _check_scan(node: NodeProto, version: int) -> None:
    graph = _graph(node, "body")
    if graph is None:
        return
    carried = len(node.input) - (version < 9)  # before 9, the first input holds the lengths
    if len(graph.input) != carried:
        _refuse_body(node, "inputs", len(graph.input), carried)
    if len(graph.output) != len(node.output):
        _refuse_body(node, "outputs", len(graph.output), len(node.output))
    scanned = next((each.i for each in node.attribute if each.name == "num_scan_inputs"), 1)
    if not 1 <= scanned <= max(carried, 1):
        raise ModelError(f"{place_of(node)} scans {scanned} of {carried} inputs")


_BODIES = {"If": _check_if, "Loop": _check_loop, "Scan": _check_scan}


def check_body(node: NodeProto, version: int) -> None:
    """Raises `ModelError` when the bodies of a control-flow operator do not fit its operands."""
    check = _BODIES.get(node.op_type)
    if check is not None:
        check(node, version)
