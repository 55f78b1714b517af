"""Computes the gates of parallel branches side by side."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.ops import (
    array,
    attribute,
    constant,
    has_reference_attribute,
    input_at,
    single_use,
    standard_op,
    subgraphs,
)
from onnxcomp.ir.order import sort
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.support.base import OLDEST_OPSET, OpsetFloor, shapes_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit
    from onnxcomp.passbase import Context

ACTIVATIONS = frozenset(
    {"Relu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "LeakyRelu", "Tanh"}
)
SPLIT_INPUT = 13  # the opset in which Split takes the sizes as an input
# Fewer nodes saved than this are not worth a Concat and a Split.
FEWEST_SAVED = 3
SHORTEST = 3
LARGEST_WEIGHT = 1 << 20
# Each is a look at the whole graph.
MOST_GROUPS = 16


@dataclass(frozen=True)
class Chain:
    """Convolutions of single pixels with activations between, which nobody else reads.

    Attributes:
        nodes: In order.
        key: Equal for chains that can be computed side by side.
    """

    nodes: tuple[ir.Node, ...]
    key: Hashable

    @property
    def source(self) -> ir.Value:
        """What goes in."""
        found = self.nodes[0].inputs[0]
        assert found is not None
        return found

    @property
    def result(self) -> ir.Value:
        """What comes out."""
        return self.nodes[-1].outputs[0]


def chain_from(node: ir.Node, shapes: ShapeMap) -> Chain | None:
    """Returns the chain that begins with a Conv of single pixels, None when there is none."""
    shape = shapes.shape(node.inputs[0])
    if shape is None or shape[0] is None or any(dim != 1 for dim in shape[2:]):
        return None  # asked first: the way along a deep network is long, and each Conv begins one
    if shapes.dtype(node.inputs[0]) != ir.DataType.FLOAT:
        return None
    nodes: list[ir.Node] = []
    keys: list[Hashable] = []
    following: ir.Node | None = node
    while following is not None and (key := _key_of(following)) is not None:
        nodes.append(following)
        keys.append(key)
        value = following.outputs[0]
        reader = single_use(value)
        if reader is None or reader.inputs[0] is not value or reader.graph is not node.graph:
            break
        following = reader
    if len(nodes) < SHORTEST or nodes[-1].outputs[0].is_graph_output():
        return None
    return Chain(tuple(nodes), (shape, *keys))


def _key_of(node: ir.Node) -> Hashable | None:
    """Returns what must be equal for nodes to be computed as one, None when they cannot be."""
    if has_reference_attribute(node) or len(node.outputs) != 1:
        return None
    operator = standard_op(node)
    if operator == "Conv":
        return _key_of_conv(node)
    if operator not in ACTIVATIONS:
        return None
    limits = [array(value, limit=1) for value in node.inputs[1:] if value is not None]
    if any(limit is None for limit in limits):
        return None
    attributes = tuple(sorted((name, str(attr.value)) for name, attr in node.attributes.items()))
    places = tuple(value is None for value in node.inputs[1:])
    return (
        operator,
        attributes,
        places,
        tuple(float(np.ravel(one)[0]) for one in limits if one is not None),
    )


def _key_of_conv(node: ir.Node) -> Hashable | None:
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    if weight is None or (input_at(node, 2) is not None and bias is None):
        return None
    shape = tuple(weight.shape.numpy())
    plain = (
        attribute(node, "group", 1) == 1
        and not any(attribute(node, "pads") or ())
        and all(stride == 1 for stride in attribute(node, "strides") or ())
        and attribute(node, "auto_pad", "NOTSET") in {"NOTSET", "VALID"}
        and all(dim == 1 for dim in shape[2:])
        and weight.size <= LARGEST_WEIGHT
    )
    return ("Conv", shape, bias is None) if plain else None


def levels(graph: ir.Graph, chains: Sequence[Chain]) -> dict[int, list[Chain]]:
    """Returns chains by how many of them lie one behind the other before each.

    Those of one number do not wait for each other.
    """
    ends = {chain.nodes[-1] for chain in chains}
    begins = {chain.nodes[0]: chain for chain in chains}
    depth: dict[ir.Node, int] = {}
    found: defaultdict[int, list[Chain]] = defaultdict(list)
    for node in graph:
        makers = [value.producer() for value in node.inputs if value is not None]
        deepest = max((depth.get(maker, 0) for maker in makers if maker is not None), default=0)
        if node in begins:
            found[deepest].append(begins[node])
        depth[node] = deepest + (node in ends)
    return found


def group_of(graph: ir.Graph, shapes: ShapeMap) -> list[Chain]:
    """Returns chains that are equal but for their weights and do not wait for each other, or none."""
    inside: set[ir.Node] = set()
    kinds: defaultdict[Hashable, list[Chain]] = defaultdict(list)
    for node in graph:
        if node not in inside and standard_op(node) == "Conv":
            chain = chain_from(node, shapes)
            if chain is not None:
                inside.update(chain.nodes)
                kinds[chain.key].append(chain)
    for chains in kinds.values():
        if _saves(chains):
            group = max(levels(graph, chains).values(), key=len)
            if _saves(group):
                return group
    return []


def _saves(group: Sequence[Chain]) -> bool:
    length = len(group[0].nodes)
    return len(group) * length - (length + 2) >= FEWEST_SAVED


def batch(group: Sequence[Chain], opset: int, edit: Edit) -> None:
    """Puts one chain of grouped convolutions in the place of several."""
    place = group[-1].nodes[0]
    graph = place.graph
    assert graph is not None
    value = edit.insert(
        "Concat", [chain.source for chain in group], before=place, attributes={"axis": 1}
    ).outputs[0]
    for nodes in zip(*(chain.nodes for chain in group), strict=True):
        inputs = [value, *_side_by_side(nodes, graph, edit)]
        options: dict[str, Any] = dict(nodes[0].attributes)
        if nodes[0].op_type == "Conv":
            options["group"] = len(group)
        made = edit.insert(nodes[0].op_type, inputs, before=place, attributes=options)
        value = made.outputs[0]
    results = _split(value, group, opset, edit)
    for chain, result in zip(group, results, strict=True):
        edit.replace(chain.result, result)
        for node in reversed(chain.nodes):
            inputs = list(node.inputs)
            edit.remove(node)
            _drop_unused(inputs, edit)
    sort(edit, graph)
    edit.count("gates computed side by side", len(group))


def _drop_unused(values: Sequence[ir.Value | None], edit: Edit) -> None:
    for value in values:
        if value is None or not value.is_initializer() or constant(value) is None:
            continue
        if not value.uses() and not value.is_graph_output():
            edit.drop_initializer(value)


def _side_by_side(nodes: Sequence[ir.Node], graph: ir.Graph, edit: Edit) -> list[ir.Value | None]:
    """Returns the other inputs of the node that stands for several: weights one behind the other."""
    if nodes[0].op_type != "Conv":
        return list(nodes[0].inputs[1:])
    made: list[ir.Value | None] = []
    for index in range(1, len(nodes[0].inputs)):
        arrays = [array(node.inputs[index]) for node in nodes]
        if nodes[0].inputs[index] is None:
            continue
        joined = np.concatenate([found for found in arrays if found is not None])
        first = nodes[0].inputs[index]
        name = (first.name if first is not None else None) or "weight"
        made.append(edit.initializer(joined, name=name, graph=graph))
    return made


def _split(value: ir.Value, group: Sequence[Chain], opset: int, edit: Edit) -> tuple[ir.Value, ...]:
    place = group[-1].nodes[0]
    assert place.graph is not None
    convs = [node for node in group[0].nodes if node.op_type == "Conv"]
    weight = constant(convs[-1].inputs[1])
    assert weight is not None
    sizes = [int(weight.shape.numpy()[0])] * len(group)
    inputs: list[ir.Value | None] = [value]
    options: dict[str, Any] = {"axis": 1}
    if opset < SPLIT_INPUT:
        options["split"] = sizes
    else:
        inputs.append(edit.initializer(np.array(sizes, np.int64), name="split", graph=place.graph))
    names = [chain.result.name or "gate" for chain in group]
    made = edit.insert("Split", inputs, before=place, attributes=options, outputs=names)
    for chain, result in zip(group, made.outputs, strict=True):
        result.type, result.shape = chain.result.type, chain.result.shape
    return tuple(made.outputs)


class BatchGates(Pass):
    """Computes the gates of parallel branches side by side.

    Branches of a feature pyramid have squeeze-and-excitation gates of the same sizes: small
    convolutions of one pixel each. Those that do not wait for each other become one chain of grouped
    convolutions between a Concat and a Split: fewer nodes, the same numbers, as fast as before.

        p -> Conv -> Relu -> Conv -> Sigmoid -> y      p, q, r -> Concat -> Conv(group 3) -> Relu
        q -> Conv -> Relu -> Conv -> Sigmoid -> z          -> Conv(group 3) -> Sigmoid -> Split -> y, z, u
        r -> Conv -> Relu -> Conv -> Sigmoid -> u
    """

    name = "batch-gates"
    lossless = True
    preserves = frozenset({Shapes, OpsetFloor})

    @override
    def run(self, ctx: Context) -> None:
        opset = ctx.facts.get(OpsetFloor())
        if opset < OLDEST_OPSET:
            return
        for graph in list(ctx.model.graphs()):
            if not _may_have_gates(graph):
                continue
            # One group at a time: of two that wait for parts of each other only one can be made.
            for _ in range(MOST_GROUPS):
                group = group_of(graph, shapes_of(ctx.facts))
                if not group:
                    break
                batch(group, opset, ctx.edit)


def _may_have_gates(graph: ir.Graph) -> bool:
    """Whether there are convolutions at all, and no bodies: what they read is an order too."""
    convolutions = 0
    for node in graph:
        convolutions += standard_op(node) == "Conv"
        if next(subgraphs(node), None) is not None:
            return False
    return convolutions > FEWEST_SAVED
