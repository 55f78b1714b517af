"""Which nodes a target could compute in int8, and why the others stay float."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, single_use, standard_op
from onnxcomp.quant.plan_inputs import keep_inputs

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.targets import Family, Target

_FLOAT = ir.DataType.FLOAT
# Constants beyond this stand for infinity, as in masks.
_HUGE = 1e6
_RESIZE_MODES = frozenset({"nearest", "linear"})


def key_of(node: ir.Node) -> str:
    """Returns the name that stands for a node in plans: that of its first output."""
    return next((value.name for value in node.outputs if value.name), "") or ""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A node that the target can compute in int8.

    Attributes:
        node: The node.
        family: How it is treated.
        absorbed: A Relu or Clip behind it that vanishes into the Q.
        weight: Index of the constant weight, None when it has none.
        activations: Indices of the inputs that are activations.
        float_outputs: Whether no output carries a Q.
    """

    node: ir.Node
    family: Family
    absorbed: ir.Node | None
    weight: int | None
    activations: tuple[int, ...]
    float_outputs: bool = False

    @property
    def key(self) -> str:
        """Name in plans."""
        return key_of(self.node)

    @property
    def points(self) -> tuple[ir.Value, ...]:
        """The outputs that carry a Q, behind what is absorbed."""
        if self.absorbed is not None:
            return (self.absorbed.outputs[0],)
        if self.family.role == "read" or self.float_outputs:
            return ()
        return tuple(value for value in self.node.outputs if value.name)

    @property
    def inputs(self) -> tuple[ir.Value, ...]:
        """The inputs that are activations."""
        return tuple(v for i in self.activations if (v := self.node.inputs[i]) is not None)

    @property
    def is_product_of_activations(self) -> bool:
        """Whether it multiplies two activations (attention)."""
        return self.family.weight is not None and self.weight is None


@dataclass(frozen=True)
class Filter:
    """Nodes that the user wants left alone.

    Attributes:
        skip: Patterns for names of nodes (and their outputs) to leave float.
        only: Operators to quantize, all when empty.
        skip_ops: Operators to leave float.
    """

    skip: Sequence[str] = ()
    only: Sequence[str] = ()
    skip_ops: Sequence[str] = ()

    def rejects(self, node: ir.Node) -> str:
        """Returns why a node is left alone, empty when it is not."""
        if node.op_type in self.skip_ops or (self.only and node.op_type not in self.only):
            return f"{node.op_type} is left out by option"
        names = (node.name or "", key_of(node))
        for pattern in self.skip:
            if pattern in names or any(fnmatchcase(name, pattern) for name in names):
                return f"it matches the skip pattern {pattern}"
        return ""


@dataclass
class Candidates:
    """Candidates of a graph by key, and why other nodes that could matter are none."""

    found: dict[str, Candidate] = field(default_factory=dict)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.found.values())


def find_candidates(
    graph: ir.Graph, target: Target, shapes: ShapeMap, options: Filter
) -> Candidates:
    """Returns the nodes of a scope that the target can compute in int8."""
    result = Candidates()
    for node in graph:
        family = target.family_of(standard_op(node))
        if family is None or not _is_float(node, family, shapes):
            continue
        reason = options.rejects(node) or _unfit(node, family)
        if reason:
            result.refused.append((node, reason))
        else:
            result.found[key_of(node)] = _candidate(node, family, target, options)
    for candidate in list(result):
        if candidate.absorbed is not None:
            result.found.pop(key_of(candidate.absorbed), None)
    if target.style == "inputs":
        keep_inputs(result, shapes)
    return result


def _candidate(node: ir.Node, family: Family, target: Target, options: Filter) -> Candidate:
    weight = _weight_index(node, family)
    return Candidate(
        node,
        family,
        _absorbed(node, target.absorbed_behind(family), options),
        weight,
        tuple(_activation_indices(node, family, weight)),
    )


def _is_float(node: ir.Node, family: Family, shapes: ShapeMap) -> bool:
    """Whether the node works on float32 tensors that change from run to run."""
    first = family.first
    if constant(input_at(node, first)) is not None and (
        constant(input_at(node, first + 1)) is not None
    ):
        return False
    if family.role == "read":
        return shapes.dtype(input_at(node, 0)) == _FLOAT
    kinds = {shapes.dtype(value) for value in node.outputs if value.name}
    return kinds == {_FLOAT}


def _weight_index(node: ir.Node, family: Family) -> int | None:
    rule = family.weight
    if rule is None or constant(input_at(node, rule.input)) is None:
        return None
    return rule.input


def _activation_indices(node: ir.Node, family: Family, weight: int | None) -> Iterator[int]:
    if family.role == "join" or (family.weight is not None and weight is None):
        for index, value in enumerate(node.inputs):
            if index >= family.first and value is not None and constant(value) is None:
                yield index
    else:
        yield 0


def _unfit(node: ir.Node, family: Family) -> str:
    """Returns why the int8 kernel of a family cannot take a node, empty when it can."""
    for name, wanted in family.require.items():
        if attribute(node, name, wanted) != wanted:
            return f"its attribute {name} is not {wanted:g}"
    first = input_at(node, 0)
    if first is None or (family.role != "join" and constant(first) is not None):
        return "its first input is a constant"
    if family.inputs is not None and len(node.inputs) != family.inputs:
        return f"it has {len(node.inputs)} inputs"
    return _unfit_weight(node, family) or _unfit_join(node, family) or _unfit_resize(node)


def _unfit_weight(node: ir.Node, family: Family) -> str:
    rule = family.weight
    if rule is None:
        return ""
    tensor = constant(input_at(node, rule.input))
    if tensor is None:
        return "" if rule.optional else "its weight is not a constant"
    if tensor.dtype != _FLOAT:
        return f"its weight is {tensor.dtype.name.lower()}"
    if len(tensor.shape) < 2:
        return "its weight has less than two dimensions"
    bias = None if family.bias is None else input_at(node, family.bias)
    if bias is not None:
        found = constant(bias)
        if found is None:
            return "its bias is not a constant"
        if found.dtype != _FLOAT or (
            len(found.shape) > 1 and any(d != 1 for d in found.shape[:-1])
        ):
            return "its bias is not a vector of floats"
    return ""


def _unfit_join(node: ir.Node, family: Family) -> str:
    if family.role != "join":
        return ""
    for value in node.inputs[family.first :]:
        tensor = constant(value)
        if tensor is None:
            continue
        if tensor.size != 1 or tensor.dtype != _FLOAT:
            return "an input is a constant with more than one value"
        if not abs(float(tensor.numpy().reshape(-1)[0])) < _HUGE:
            return "a constant is so large that nothing else would be left on its grid"
    return ""


def _unfit_resize(node: ir.Node) -> str:
    if not is_op(node, "Resize"):
        return ""
    if attribute(node, "mode", "nearest") not in _RESIZE_MODES or attribute(node, "antialias", 0):
        return "its way of interpolating has no int8 kernel"
    return ""


def _absorbed(node: ir.Node, absorbable: Collection[str], options: Filter) -> ir.Node | None:
    """Returns the Relu or Clip behind a node that a Q starting at 0 makes redundant."""
    if len([value for value in node.outputs if value.name]) != 1:
        return None
    reader = single_use(node.outputs[0])
    if reader is None or reader.graph is not node.graph or not is_op(reader, *absorbable):
        return None
    if reader.inputs[0] is not node.outputs[0] or options.rejects(reader):
        return None
    return reader if is_op(reader, "Relu") or _clips_at_zero(reader) else None


def _clips_at_zero(node: ir.Node) -> bool:
    lower = array(input_at(node, 1), limit=1)
    if lower is None or lower.size != 1 or float(lower.reshape(-1)[0]) != 0.0:
        return attribute(node, "min", None) == 0.0
    upper = input_at(node, 2)
    return upper is None or constant(upper) is not None
