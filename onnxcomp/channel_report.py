"""Which channels of a model could go, what they cost, and what stands in the way of the others."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.cost import Costs
from onnxcomp.analysis.facts import Facts
from onnxcomp.inspection import folded_model, sized_model
from onnxcomp.ir.ops import constant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.channels import Barrier, ChannelMap, Group
    from onnxcomp.analysis.channels.space import Prefer
    from onnxcomp.analysis.cost import NodeCost
    from onnxcomp.ir import Model, ir


@dataclass(frozen=True)
class GroupRow:
    """Channels that go together.

    Attributes:
        units: How many there are.
        layers: Nodes whose weights make them, in the order of the graph.
        readers: Nodes whose weights read them.
        parameters: Numbers in weights that belong to them.
        flops: Arithmetic of the nodes that make or read them; None when a shape is not known.
        mixed: Why removing one changes what the others compute, if it does.
        scaled: Why removing one may round the others in another way, if it does.
        weights: Axes of weights that lose positions, such as `conv1.weight axis 0 (64)`.
    """

    units: int
    layers: tuple[str, ...]
    readers: tuple[str, ...]
    parameters: int
    flops: int | None
    mixed: tuple[str, ...]
    scaled: tuple[str, ...]
    weights: tuple[str, ...]


@dataclass(frozen=True)
class BarrierRow:
    """Axes of weights that keep their positions, for one reason.

    Attributes:
        reason: The reason.
        parameters: Numbers in these weights; a weight that is kept for two reasons counts for both.
        weights: Axes of weights, the largest weights first.
    """

    reason: str
    parameters: int
    weights: tuple[str, ...]


@dataclass(frozen=True)
class ChannelReport:
    """What is known of a model's channels.

    Attributes:
        groups: Channels that can go, those with the most parameters first.
        barriers: Why other axes of weights cannot, those with the most parameters first.
        parameters: Numbers in all weights of the model, constants that nodes hold and make among them.
        reachable: Those that belong to some group.
    """

    groups: tuple[GroupRow, ...]
    barriers: tuple[BarrierRow, ...]
    parameters: int
    reachable: int


def channel_report(
    model: Model, *, prefer: Prefer = "large", dims: Mapping[str, int] | None = None
) -> ChannelReport:
    """Describes groups of channels and barriers.

    Args:
        model: The model; shape arithmetic that can be folded is, on a copy.
        dims: Sizes of open dimensions, as for `inspection.inspect_model`, to count arithmetic.
        prefer: Along which factor an axis is cut that is a product: `large`, `outer` (heads), `inner`.
    """
    sized, _ = sized_model(model, dict(dims or {}))
    folded = folded_model(sized)
    facts = Facts(folded)
    channels = facts.get(Channels(prefer))
    costs = facts.get(Costs())
    groups = [_group(channels, group, costs) for group in channels.groups]
    weights = {
        member.value: constant(member.value)
        for group in channels.groups
        for member in group.members
    }
    return ChannelReport(
        tuple(sorted((row for row in groups if row.parameters), key=lambda row: -row.parameters)),
        _barriers(channels),
        sum(value.const_value.size for value in folded.initializers() if value.const_value),
        sum(tensor.size for tensor in weights.values() if tensor is not None),
    )


def _group(channels: ChannelMap, group: Group, costs: dict[ir.Node, NodeCost]) -> GroupRow:
    makers: dict[ir.Node, None] = {}
    readers: dict[ir.Node, None] = {}
    weights: list[str] = []
    parameters = 0
    for member in group.members:
        key = (member.value, member.axis)
        tensor = constant(member.value)
        if tensor is None:
            continue
        weights.append(_axis(member.value, member.axis))
        size = tuple(tensor.shape.numpy())[member.axis]
        parameters += tensor.size * member.positions.size // max(size, 1)
        if key in channels.producers:
            makers[channels.producers[key]] = None
        if key in channels.consumers:
            readers[channels.consumers[key]] = None
    counts = [costs[node].flops for node in {**makers, **readers} if node in costs]
    known = [count for count in counts if count is not None]
    return GroupRow(
        group.units,
        tuple(map(_name, makers)),
        tuple(map(_name, readers)),
        parameters,
        sum(known) if len(known) == len(counts) else None,
        group.mixed,
        group.scaled,
        tuple(weights),
    )


def _name(node: ir.Node) -> str:
    return node.name or f"{node.op_type} {node.outputs[0].name}"


def _axis(value: ir.Value, axis: int) -> str:
    shape = () if value.const_value is None else value.const_value.shape.numpy()
    return f"{value.name} axis {axis} ({shape[axis] if axis < len(shape) else '?'})"


def _barriers(channels: ChannelMap) -> tuple[BarrierRow, ...]:
    found: dict[str, dict[ir.Value, list[int]]] = defaultdict(dict)
    known = {value for value, _ in (*channels.producers, *channels.consumers)}
    for barrier in channels.barriers():
        if _is_told(channels, barrier, known):
            found[barrier.reason].setdefault(barrier.value, []).append(barrier.axis)
    rows = []
    for reason, axes in found.items():
        sizes = {value: value.const_value.size if value.const_value else 0 for value in axes}
        ordered = sorted(axes, key=lambda value: -sizes[value])
        names = [_axis(value, axis) for value in ordered for axis in axes[value]]
        rows.append(BarrierRow(reason, sum(sizes.values()), tuple(names)))
    return tuple(sorted(rows, key=lambda row: -row.parameters))


def _is_told(channels: ChannelMap, barrier: Barrier, known: set[ir.Value]) -> bool:
    """Whether an axis is one that a user would expect to be prunable: channels, not windows."""
    tensor = barrier.value.const_value if barrier.value.is_initializer() else None
    if tensor is None:
        return False
    key = (barrier.value, barrier.axis)
    if key in channels.producers or key in channels.consumers:
        return True
    # Weights of operators that no rule knows have no role; those of known ones do, in other axes.
    return tensor.shape.rank() > 1 and barrier.value not in known
