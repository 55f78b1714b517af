"""What changed between two models: operators, weights, interface, versions; the largest differences first."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.inspection import header_of
from onnxcomp.ir import Model, ir
from onnxcomp.ir.ops import STANDARD_DOMAINS, is_op
from onnxcomp.ir.storage import attribute_tensors
from onnxcomp.passbase import QUIET
from onnxcomp.weight_diff import digest_of, kind_of, weight_changes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from onnxcomp.ir.model import Source
    from onnxcomp.passbase import Progress
    from onnxcomp.signature import TensorSpec
    from onnxcomp.weight_diff import WeightChange

# Letters of an attribute that are kept.
_LONGEST = 200
MAIN, BODIES = "main graph", "bodies of If, Loop and Scan"


@dataclass(frozen=True)
class OperatorChange:
    """Nodes of one operator in one scope, before and after.

    Attributes:
        scope: The main graph, the bodies in it, or a function; empty for all scopes together.
        operator: `Conv`, or `com.microsoft.FusedConv`.
        before: How many there were.
        after: How many there are.
    """

    scope: str
    operator: str
    before: int
    after: int

    @property
    def difference(self) -> int:
        """How many more there are."""
        return self.after - self.before


@dataclass(frozen=True)
class InterfaceChange:
    """An input or output that came, went or changed.

    Attributes:
        side: `input` or `output`.
        name: Its name.
        before: Type and shape before, None when it was not there.
        after: Type and shape after, None when it is gone.
    """

    side: str
    name: str
    before: TensorSpec | None
    after: TensorSpec | None


@dataclass(frozen=True)
class AttributeChange:
    """An attribute of a node that is in both models under its name and operator.

    Attributes:
        operator: The operator.
        node: Name of the node, or of its first output where it has none.
        attribute: Name of the attribute.
        before: Its value as text, None when it was not given.
        after: Its value as text, None when it is not given.
    """

    operator: str
    node: str
    attribute: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class FunctionChange:
    """A local function that came, went or has other nodes; None where it is not there."""

    name: str
    before: int | None
    after: int | None


@dataclass(frozen=True)
class ModelDiff:
    """What changed between two models. Everything that is equal is left out, but for the totals.

    Attributes:
        totals: `nodes`, `parameters`, `weight_bytes`, and `quantized`, the share of parameters in types of
            8 bits and less; each before and after.
        header: What changed of versions, operator sets, producer, texts and metadata, before and after.
        interface: Inputs and outputs.
        order: Whether inputs or outputs that are in both are in another order.
        operators: By operator over all scopes.
        scopes: By operator and scope, if there is more than the main graph.
        weights: By name and contents.
        functions: Local functions.
        attributes: Attributes of nodes that are in both.
        rewired: Nodes that are in both and read other values, by operator.
    """

    totals: Mapping[str, tuple[float, float]]
    header: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)
    interface: tuple[InterfaceChange, ...] = ()
    order: bool = False
    operators: tuple[OperatorChange, ...] = ()
    scopes: tuple[OperatorChange, ...] = ()
    weights: tuple[WeightChange, ...] = ()
    functions: tuple[FunctionChange, ...] = ()
    attributes: tuple[AttributeChange, ...] = ()
    rewired: Mapping[str, int] = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether nothing was found. Order and names of nodes and of values in between may differ."""
        structure = (self.operators, self.scopes, self.functions, self.attributes, self.rewired)
        return not any((self.header, self.interface, self.order, self.weights, *structure))


def diff_models(before: Source, after: Source, *, progress: Progress = QUIET) -> ModelDiff:
    """Compares two models without running them; weights in external data are read in pieces.

    Args:
        before: A model, or where it is.
        after: Another one.
        progress: Progress bars.

    Raises:
        UserError: If one of them cannot be read.
    """
    old, new = Model.load(before), Model.load(after)
    old_counts, new_counts = _operators(old), _operators(new)
    old_totals, new_totals = _totals(old), _totals(new)
    scopes = _changes(old_counts, new_counts)
    names = {scope for scope, _ in (*old_counts, *new_counts)}
    common = _common_nodes(old, new)
    return ModelDiff(
        totals={name: (value, new_totals[name]) for name, value in old_totals.items()},
        header=_header(old, new),
        interface=tuple(_interface(old, new)),
        order=_reordered(old, new),
        operators=_changes(_together(old_counts), _together(new_counts)),
        scopes=scopes if names - {MAIN} else (),
        weights=weight_changes(old, new, progress),
        functions=_functions(old, new),
        attributes=tuple(change for pair in common for change in _attribute_changes(*pair)),
        rewired=_rewired(common),
    )


# -- structure ---------------------------------------------------------------------------------------


def _operators(model: Model) -> Counter[tuple[str, str]]:
    """Counts nodes by scope and operator."""
    functions = {function.graph: function for function in model.core.functions.values()}
    found: Counter[tuple[str, str]] = Counter()
    inside = ""
    for graph in model.graphs():
        if graph in functions:
            inside = f"function {functions[graph].domain}.{functions[graph].name}"
        scope = inside or (MAIN if graph is model.graph else BODIES)
        found.update((scope, _operator(node)) for node in graph)
    return found


def _operator(node: ir.Node) -> str:
    return node.op_type if node.domain in STANDARD_DOMAINS else f"{node.domain}.{node.op_type}"


def _together(counts: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (_, operator), number in counts.items():
        found["", operator] += number
    return found


def _changes(
    before: Counter[tuple[str, str]], after: Counter[tuple[str, str]]
) -> tuple[OperatorChange, ...]:
    keys = dict.fromkeys((*before, *after))
    found = [OperatorChange(*key, before[key], after[key]) for key in keys]
    found = [row for row in found if row.difference]
    return tuple(sorted(found, key=lambda row: (-abs(row.difference), row.scope, row.operator)))


def _totals(model: Model) -> dict[str, float]:
    tensors = [*_tensors(model)]
    parameters = sum(tensor.size for tensor in tensors)
    small = sum(tensor.size for tensor in tensors if _is_quantized(tensor.dtype))
    return {
        "nodes": sum(1 for _ in model.nodes()),
        "parameters": parameters,
        "weight_bytes": sum(tensor.nbytes for tensor in tensors),
        "quantized": small / parameters if parameters else 0.0,
    }


def _tensors(model: Model) -> Iterator[ir.TensorProtocol]:
    for value in model.initializers():
        if value.const_value is not None:
            yield value.const_value
    yield from attribute_tensors(model)


def _is_quantized(dtype: ir.DataType) -> bool:
    if dtype in {ir.DataType.STRING, ir.DataType.BOOL, ir.DataType.UNDEFINED}:
        return False
    return dtype.bitwidth <= 8


def _header(old: Model, new: Model) -> dict[str, tuple[Any, Any]]:
    """What changed, with operator sets and metadata one by one."""
    flat = [_flat(header_of(model)) for model in (old, new)]
    keys = dict.fromkeys((*flat[0], *flat[1]))
    pairs = {key: (flat[0].get(key), flat[1].get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _flat(header: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in header.items():
        if name == "functions":
            continue
        if isinstance(value, dict):
            found |= {f"{name.removesuffix('s')} {key}": item for key, item in value.items()}
        else:
            found[name] = value
    return found


def _interface(old: Model, new: Model) -> Iterator[InterfaceChange]:
    for side in ("inputs", "outputs"):
        before = {spec.name: spec for spec in getattr(old.signature(), side)}
        after = {spec.name: spec for spec in getattr(new.signature(), side)}
        for name in dict.fromkeys((*before, *after)):
            if before.get(name) != after.get(name):
                yield InterfaceChange(side[:-1], name, before.get(name), after.get(name))


def _reordered(old: Model, new: Model) -> bool:
    for side in ("inputs", "outputs"):
        names = [[spec.name for spec in getattr(m.signature(), side)] for m in (old, new)]
        common = set(names[0]) & set(names[1])
        first, second = ([name for name in each if name in common] for each in names)
        if first != second:
            return True
    return False


def _functions(old: Model, new: Model) -> tuple[FunctionChange, ...]:
    before, after = (_by_function(model) for model in (old, new))
    found = [
        FunctionChange(name, _length(before, name), _length(after, name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    return tuple(
        sorted(found, key=lambda row: (-abs((row.after or 0) - (row.before or 0)), row.name))
    )


def _by_function(model: Model) -> dict[str, list[tuple[Any, ...]]]:
    return {
        f"{function.domain}.{function.name}": [
            (_operator(node), *(value.name if value else "" for value in node.inputs), node.name)
            for node in function
        ]
        for function in model.core.functions.values()
    }


def _length(functions: Mapping[str, Sequence[object]], name: str) -> int | None:
    return len(functions[name]) if name in functions else None


# -- nodes -------------------------------------------------------------------------------------------


def _common_nodes(old: Model, new: Model) -> list[tuple[ir.Node, ir.Node]]:
    """Nodes of one name and operator in both, where the name says which one is meant."""
    before, after = _by_name(old), _by_name(new)
    return [(node, after[key]) for key, node in before.items() if key in after]


def _by_name(model: Model) -> dict[tuple[str, str], ir.Node]:
    found: dict[tuple[str, str], ir.Node] = {}
    repeated = set()
    for node in model.nodes():
        key = (_operator(node), _node_name(node))
        if key in found:
            repeated.add(key)
        found[key] = node
    return {key: node for key, node in found.items() if key[1] and key not in repeated}


def _node_name(node: ir.Node) -> str:
    return node.name or next((value.name for value in node.outputs if value.name), None) or ""


def _attribute_changes(old: ir.Node, new: ir.Node) -> Iterator[AttributeChange]:
    if is_op(old, "Constant"):
        return  # a weight
    for name in dict.fromkeys((*old.attributes, *new.attributes)):
        before, after = (_attribute_text(node.attributes.get(name)) for node in (old, new))
        if before != after:
            yield AttributeChange(_operator(old), _node_name(old), name, before, after)


def _attribute_text(attr: ir.Attr | None) -> str | None:
    if attr is None:
        return None
    if attr.is_ref():
        return f"@{attr.ref_attr_name}"
    if attr.type == ir.AttributeType.TENSOR:
        tensor = attr.as_tensor()
        return f"{kind_of(tensor)} {digest_of(tensor).hex()[:8]}"
    if attr.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
        return "a graph"  # its nodes are compared by themselves
    value = attr.value
    return str(list(value) if isinstance(value, tuple) else value)[:_LONGEST]


def _rewired(common: Sequence[tuple[ir.Node, ir.Node]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for pair in common:
        before, after = ([value.name if value else "" for value in node.inputs] for node in pair)
        if before != after:
            found[_operator(pair[0])] += 1
    return dict(found.most_common())
