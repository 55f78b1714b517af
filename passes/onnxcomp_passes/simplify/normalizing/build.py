"""What a normalization becomes: LayerNormalization, InstanceNormalization or RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.normalizing.core import Core, core_of, divides_by_root
from onnxcomp_passes.simplify.support.base import OpsetFloor, bypass, shapes_of
from onnxcomp_passes.simplify.support.formulas import most_dimensions

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

# Opsets that brought the operators.
LAYER_NORM, RMS_NORM = 17, 23
# Scales of ones above this are not worth it.
LARGEST_SCALE = 1 << 20


@dataclass(frozen=True)
class Plan:
    """What to build: the operator, its attributes, and the shape of its scale."""

    core: Core
    operator: str
    scale: tuple[int, ...]
    attributes: tuple[tuple[str, float | int], ...]


class BuildNormalization:
    """`(x - mean(x)) / sqrt(variance(x) + epsilon)` is one operator, with a scale of ones at first."""

    name = "normalizations put together"
    ops = frozenset({"Div", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Plan] | Miss:
        """Finds what is normalized along which axes, and the operator for that."""
        core = _known_core(node, facts)
        if core is None:
            return NOTHING
        opset, shapes = facts.get(OpsetFloor()), shapes_of(facts)
        plan: Plan | Miss | None
        if core.centre is None:
            plan = _root_mean_square(core, shapes) if opset >= RMS_NORM else None
        else:
            plan = _instance(core, node, shapes)
            if plan is None:
                plan = _layer(core, shapes) if opset >= LAYER_NORM else None
        if isinstance(plan, Miss):
            return plan
        return NOTHING if plan is None else Match(node, plan)

    def apply(self, match: Match[Plan], edit: Edit) -> None:
        """Builds it, and multiplies by what stood beside the root."""
        node, plan = match.node, match.found
        assert node.graph is not None
        like = node.outputs[0]
        inputs = [plan.core.source]
        for name, contents in _parameters(plan):
            inputs.append(edit.initializer(contents, name=name, graph=node.graph))
        made = edit.insert(
            plan.operator, inputs, before=node, attributes=dict(plan.attributes), like=like
        ).outputs[0]
        if plan.core.factor is not None:
            made = edit.insert("Mul", [made, plan.core.factor], before=node, like=like).outputs[0]
        bypass(edit, node, made)


def _parameters(plan: Plan) -> list[tuple[str, np.ndarray]]:
    found = [("norm_scale", np.ones(plan.scale, np.float32))]
    if plan.operator == "InstanceNormalization":
        found.append(("norm_bias", np.zeros(plan.scale, np.float32)))
    return found


def _known_core(node: ir.Node, facts: Facts) -> Core | None:
    """Returns a normalization in single precision whose constants widen nothing."""
    core = core_of(node, shapes_of(facts)) if divides_by_root(node) else None
    if core is None or shapes_of(facts).dtype(core.source) != ir.DataType.FLOAT:
        return None
    widest = most_dimensions(core.root, core.source)
    factor = constant(core.factor)
    if factor is not None:
        widest = max(widest, len(factor.shape))
    elif core.factor is not None:
        rank = shapes_of(facts).rank(core.factor)
        widest = core.mean.rank + 1 if rank is None else max(widest, rank)
    return core if widest <= core.mean.rank else None


def _layer(core: Core, shapes: ShapeMap) -> Plan | Miss | None:
    tail = _tail(core, shapes)
    if tail is None or isinstance(tail, Miss):
        return tail
    axis = core.mean.last
    assert axis is not None
    return Plan(core, "LayerNormalization", tail, (("axis", axis), ("epsilon", core.epsilon)))


def _root_mean_square(core: Core, shapes: ShapeMap) -> Plan | Miss | None:
    tail = _tail(core, shapes)
    if tail is None or isinstance(tail, Miss):
        return tail
    axis = core.mean.last
    assert axis is not None
    return Plan(core, "RMSNormalization", tail, (("axis", axis), ("epsilon", core.epsilon)))


def _tail(core: Core, shapes: ShapeMap) -> tuple[int, ...] | Miss | None:
    """Returns the shape of what is normalized, which the scale must have."""
    shape = shapes.shape(core.source)
    if core.mean.last is None or shape is None:
        return None
    sizes = shape[core.mean.last :]
    numbers = tuple(dim for dim in sizes if isinstance(dim, int))
    if len(numbers) < len(sizes):
        return Miss("the size of the normalized axis is not known before it runs", near=True)
    return numbers if 0 < np.prod(numbers) <= LARGEST_SCALE else None


def _instance(core: Core, node: ir.Node, shapes: ShapeMap) -> Plan | None:
    """Plans a normalization over all axes behind the channels."""
    rank, shape = core.mean.rank, shapes.shape(core.source)
    if core.mean.axes != tuple(range(2, rank)) or shape is None or rank < 3:
        return None
    channels = shape[1]
    if not isinstance(channels, int) or channels == 0 or core.epsilon == 0:
        return None
    # Of three dimensions it is a layer normalization, unless groups are made an image again.
    reader = only_reader(node.outputs[0])
    if rank == 3 and (reader is None or reader.op_type != "Reshape"):
        return None
    return Plan(core, "InstanceNormalization", (channels,), (("epsilon", core.epsilon),))


class SpellNormalization:
    """Where the operator is too new, the spelling that onnxruntime runs as one: Pow, Sqrt and Div."""

    name = "normalizations spelled as the runtime knows them"
    ops = frozenset({"Div", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Core] | Miss:
        """Finds a normalization that is scaled, and spelled otherwise."""
        reader = only_reader(node.outputs[0])
        if reader is None or reader.op_type != "Mul":
            return NOTHING
        core = _known_core(node, facts)
        if core is None or core.spelled or core.mean.last != -1 or core.factor is not None:
            return NOTHING
        newer = LAYER_NORM if core.centre is not None else RMS_NORM
        return NOTHING if facts.get(OpsetFloor()) >= newer else Match(node, core)

    def apply(self, match: Match[Core], edit: Edit) -> None:
        """Builds the last three operators anew."""
        node, core = match.node, match.found
        assert node.graph is not None
        square = core.mean.source.producer()
        assert square is not None
        if square.op_type == "Mul":
            two = edit.initializer(np.array(2, np.float32), name="two", graph=node.graph)
            power = edit.insert("Pow", [core.value, two], before=square, like=core.mean.source)
            edit.replace(core.mean.source, power.outputs[0])
            edit.remove(square)
        if node.op_type == "Mul":
            like = node.outputs[0]
            made = edit.insert("Div", [core.value, core.root.outputs[0]], before=node, like=like)
            bypass(edit, node, made.outputs[0])
