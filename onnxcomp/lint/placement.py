"""Which Q and DQ of a model its provider leaves, edge by edge."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.errors import UserError
from onnxcomp.ir import Edit
from onnxcomp.ir.ops import use_count
from onnxcomp.lint.grid import DOMAINS
from onnxcomp.quant.fusion_report import Leftover, report_on
from onnxcomp.quant.provider_graph import ProviderGraph
from onnxcomp.runtime import optimized_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.ir import Model, ir
    from onnxcomp.targets import Target

_LABEL = re.compile(r"^#\d+#")


@dataclass(frozen=True)
class Edge:
    """One reader of a DQ: the node and the index of its input."""

    dequantizer: ir.Node
    reader: ir.Node
    index: int


@dataclass(frozen=True)
class Placement:
    """What a provider makes of the Q and DQ of a model.

    Attributes:
        problem: Why it does not load the model, empty when it does.
        quantizers: Q nodes that run on their own.
        edges: Readers for which a DQ runs on its own.
        ends: DQ nodes that make an output of their graph and run on their own.
        made: What the provider put in itself.
        names: Names that the provider's nodes have in the model.
        slow: Nodes that became kernels which are slower than float, by operator.
    """

    problem: str = ""
    quantizers: Mapping[ir.Node, Leftover] = field(default_factory=dict)
    edges: Mapping[Edge, Leftover] = field(default_factory=dict)
    ends: Mapping[ir.Node, Leftover] = field(default_factory=dict)
    made: tuple[Leftover, ...] = ()
    names: Mapping[str, ir.Node] = field(default_factory=dict)
    slow: Mapping[str, tuple[ir.Node, ...]] = field(default_factory=dict)

    def reader_of(self, found: Leftover) -> ir.Node | None:
        """Returns the model's node on the float side of a leftover."""
        match = _LABEL.match(found.place)
        return None if match is None else self.names.get(match.group(0))

    @property
    def total(self) -> int:
        """How many Q and DQ run on their own."""
        return len(self.quantizers) + len(self.edges) + len(self.ends) + len(self.made)


def find_placement(model: Model, target: Target) -> Placement:
    """Lets the target's provider optimise a model and reads which Q and DQ it left."""
    copy = model.copy()
    originals = dict(zip(copy.nodes(), model.nodes(), strict=True))
    edges = _one_reader_each(copy, originals)
    names = {}
    for index, node in enumerate(copy.nodes()):
        node.name = f"#{index}#"
        names[node.name] = node
    try:
        optimized = optimized_model(copy, provider=target.provider, weights=False)
    except UserError as error:
        return Placement(error.message)
    found: dict[ir.Node, Leftover] = {}
    made = []
    for leftover in report_on(optimized, target, provider=target.provider).leftovers:
        match = _LABEL.match(leftover.node)
        own = names.get(match.group(0)) if match else None
        if own is None or own.op_type != leftover.operator:
            made.append(leftover)
        else:
            found[own] = leftover
    known = {name: originals[node] for name, node in names.items() if node in originals}
    return Placement(
        quantizers={originals[n]: f for n, f in found.items() if n.op_type == "QuantizeLinear"},
        edges={edges[n]: f for n, f in found.items() if n in edges},
        ends={
            originals[n]: f
            for n, f in found.items()
            if n.op_type == "DequantizeLinear" and n not in edges and n in originals
        },
        made=tuple(made),
        names=known,
        slow=_slow(ProviderGraph(optimized), known),
    )


def _slow(graph: ProviderGraph, names: Mapping[str, ir.Node]) -> dict[str, tuple[ir.Node, ...]]:
    """The model's nodes that became a MaxPool of bytes or a Softmax of bytes."""
    found: dict[str, list[ir.Node]] = {}
    for node in graph.nodes:
        match = _LABEL.match(node.name)
        original = names.get(match.group(0)) if match else None
        pools = node.op_type == "MaxPool" and graph.is_bytes(node.input[0])
        if original is not None and (pools or node.op_type == "QLinearSoftmax"):
            found.setdefault(node.op_type, []).append(original)
    return {kind: tuple(nodes) for kind, nodes in found.items()}


def _one_reader_each(copy: Model, originals: Mapping[ir.Node, ir.Node]) -> dict[ir.Node, Edge]:
    """Gives every reader of a DQ a DQ of its own, as the runtime does; returns the edge of each."""
    edit = Edit(copy)
    edges = {}
    for node in list(copy.nodes()):
        if node.op_type != "DequantizeLinear" or node.domain not in DOMAINS:
            continue
        own = node.outputs[0].is_graph_output()
        for use in list(node.outputs[0].uses()):
            mine = node
            if own or use_count(node.outputs[0]) > 1:
                mine = edit.insert(
                    "DequantizeLinear",
                    list(node.inputs),
                    before=node,
                    attributes=dict(node.attributes),
                    domain=node.domain,
                    like=node.outputs[0],
                )
                edit.set_input(use.node, use.idx, mine.outputs[0])
            edges[mine] = Edge(originals[node], originals[use.node], use.idx)
    return edges
