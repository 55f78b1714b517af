"""The pieces of a model that have one floating point type each.

A node is such a piece, with those of its operands that share a type. What a Loop or Scan carries from
round to round is one as well: the value before, the input of the body, its result and the value after
must agree. So is each output of an If with what its branches hand out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.ir.backend import ir
from onnxcomp.ir.ops import attribute, constant, is_op, subgraphs
from onnxcomp.quant.half.operands import half_operands, knows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from onnxcomp.ir import Model

    Owner: TypeAlias = "ir.Node | ir.Graph"

_SCAN_WITHOUT_BATCH = 9  # before, Scan had a batch axis and an optional first input


@dataclass(eq=False)
class Site:
    """Something with one floating point type.

    Attributes:
        node: The node it belongs to, None for the interface of the model.
        slots: Where it reads: inputs of nodes, outputs of graphs.
        makes: The float values that it makes.
        reason: Why it stays in 32 bits, empty as long as nothing speaks against 16.
    """

    node: ir.Node | None
    slots: list[tuple[Owner, int]] = field(default_factory=list)
    makes: list[ir.Value] = field(default_factory=list)
    reason: str = ""

    def reads(self) -> Iterator[ir.Value]:
        """Yields the values that it reads."""
        for owner, index in self.slots:
            value = owner.outputs[index] if isinstance(owner, ir.Graph) else owner.inputs[index]
            if value is not None:
                yield value


@dataclass
class Sites:
    """All sites of a model, in order.

    Attributes:
        found: The sites.
        maker: The site that makes a float value.
        reader: The site that reads at a place; places that are missing want 32 bits.
        indifferent: Places where either type will do, because only shape or a conversion counts.
        repeated: Bodies of loops, and the graphs inside them: what is in there runs many times.
    """

    found: list[Site] = field(default_factory=list)
    maker: dict[ir.Value, Site] = field(default_factory=dict)
    reader: dict[tuple[Owner, int], Site] = field(default_factory=dict)
    indifferent: set[tuple[Owner, int]] = field(default_factory=set)
    repeated: set[ir.Graph] = field(default_factory=set)

    def add(self, site: Site) -> None:
        """Enters a site into the maps."""
        self.found.append(site)
        self.maker.update(dict.fromkeys(site.makes, site))
        self.reader.update(dict.fromkeys(site.slots, site))


def slots_of(value: ir.Value) -> list[tuple[Owner, int]]:
    """Returns every place that reads a value."""
    found: list[tuple[Owner, int]] = [(use.node, use.idx) for use in value.uses()]
    if value.is_graph_output() and value.graph is not None:
        outputs = value.graph.outputs
        found += [(value.graph, i) for i, output in enumerate(outputs) if output is value]
    return found


def find_sites(
    model: Model,
    half: ir.DataType,
    dtype: Callable[[ir.Value], Any],
    *,
    keep_io: bool,
) -> Sites:
    """Returns the sites of a model without local functions.

    Args:
        model: The model.
        half: The 16-bit type.
        dtype: Element type of a value, None when it is unknown or no tensor.
        keep_io: Whether inputs and outputs of the model stay as they are.
    """
    builder = _Builder(model.opset, half, dtype, Sites())
    builder.interface(model.graph, "inputs and outputs keep their type" if keep_io else "")
    builder.graph(model.graph)
    return builder.sites


@dataclass
class _Builder:
    version: int
    half: ir.DataType
    dtype: Callable[[ir.Value], Any]
    sites: Sites

    def interface(self, graph: ir.Graph, reason: str) -> None:
        """Inputs and outputs of the main graph."""
        for value in graph.inputs:
            if self._is_float(value):
                given = "callers may replace it" if value.is_initializer() else reason
                self.sites.add(Site(None, [], [value], given))
        for index, value in enumerate(graph.outputs):
            if self._is_float(value):
                self.sites.add(Site(None, [(graph, index)], [], reason))

    def graph(self, graph: ir.Graph) -> None:
        """All nodes of a scope and of the scopes inside."""
        for value in graph.initializers.values():
            is_known = constant(value) is not None and not value.is_graph_output()
            if self._is_float(value) and not is_known and value not in self.sites.maker:
                self.sites.add(Site(None, [], [value], "something outside the graph refers to it"))
        for node in graph:
            if not is_op(node, "Constant"):
                self._node(node)

    def _node(self, node: ir.Node) -> None:
        bodies = list(subgraphs(node))
        if not bodies:
            self._plain(node)
            return
        if is_op(node, "If"):
            self._if(node, bodies)
        elif is_op(node, "Loop") and len(bodies) == 1:
            self._loop(node, bodies[0])
        elif is_op(node, "Scan") and len(bodies) == 1 and self.version >= _SCAN_WITHOUT_BATCH:
            self._scan(node, bodies[0])
        else:
            self._opaque(node, bodies)
        for body in bodies:
            if is_op(node, "Loop", "Scan") or node.graph in self.sites.repeated:
                self.sites.repeated.add(body)
            self.graph(body)

    def _plain(self, node: ir.Node) -> None:
        if is_op(node, "Shape", "Size"):
            self.sites.indifferent.add((node, 0))
            return
        if is_op(node, "Cast"):
            self._cast(node)
            return
        operands = half_operands(node, self.version, self.half, self.dtype)
        if operands.reason:
            made = [value for value in node.outputs if self._is_float(value)]
            read: list[tuple[Owner, int]] = [
                (node, i) for i, v in enumerate(node.inputs) if v is not None and self._is_float(v)
            ]
            if made or read:
                self.sites.add(Site(node, read, made, operands.reason))
            return
        slots: list[tuple[Owner, int]] = [(node, index) for index in operands.inputs]
        makes = [node.outputs[index] for index in operands.outputs]
        self.sites.add(Site(node, slots, makes))
        rest = [v for i, v in enumerate(node.outputs) if i not in operands.outputs]
        for value in rest:
            if self._is_float(value):
                self.sites.add(Site(node, [], [value], "the operator gives this in 32 bits only"))

    def _cast(self, node: ir.Node) -> None:
        source, made = node.inputs[0], node.outputs[0]
        if source is None:
            return
        if not self._is_float(made):
            self.sites.indifferent.add((node, 0))
        elif self._is_float(source):
            self.sites.add(Site(node, [(node, 0)], [made]))
        else:
            text = self.dtype(source) in {None, ir.DataType.STRING}
            self.sites.add(Site(node, [], [made], "made of texts" if text else ""))

    def _if(self, node: ir.Node, bodies: list[ir.Graph]) -> None:
        for index, value in enumerate(node.outputs):
            slots: list[tuple[Owner, int]] = [
                (body, index) for body in bodies if index < len(body.outputs)
            ]
            self._joint(node, slots, [value])

    def _loop(self, node: ir.Node, body: ir.Graph) -> None:
        carried = len(node.inputs) - 2
        for index in range(carried):
            self._carried(node, body, index + 2, index + 2, index + 1, index)
        for index in range(carried, len(node.outputs)):
            self._joint(node, [(body, index + 1)], [node.outputs[index]])

    def _scan(self, node: ir.Node, body: ir.Graph) -> None:
        states = len(node.inputs) - int(attribute(node, "num_scan_inputs", 0))
        for index in range(states):
            self._carried(node, body, index, index, index, index)
        for index in range(states, len(node.inputs)):
            self._joint(node, [(node, index)], [body.inputs[index]])
        for index in range(states, len(node.outputs)):
            self._joint(node, [(body, index)], [node.outputs[index]])

    def _carried(
        self, node: ir.Node, body: ir.Graph, given: int, into: int, out: int, result: int
    ) -> None:
        slots: list[tuple[Owner, int]] = [(node, given), (body, out)]
        makes = [body.inputs[into]]
        if result < len(node.outputs):
            makes.append(node.outputs[result])
        self._joint(node, slots, makes)

    def _joint(self, node: ir.Node, slots: list[tuple[Owner, int]], makes: list[ir.Value]) -> None:
        site = Site(node, slots, makes)
        kinds = {self.dtype(value) for value in (*makes, *site.reads()) if value.name}
        if ir.DataType.FLOAT not in kinds:
            return
        if not knows(node.op_type, self.version, self.half):
            site.reason = f"opset {self.version} has no {node.op_type} of such values"
        if kinds != {ir.DataType.FLOAT}:
            site.makes = [value for value in makes if self._is_float(value)]
            site.reason = "the type of what is carried is not known throughout"
        self.sites.add(site)

    def _opaque(self, node: ir.Node, bodies: list[ir.Graph]) -> None:
        """A node with bodies that are called in a way not known here."""
        reason = "bodies of this operator keep their types at their borders"
        makes = [value for value in node.outputs if self._is_float(value)]
        makes += [value for body in bodies for value in body.inputs if self._is_float(value)]
        slots: list[tuple[Owner, int]] = [
            (node, i) for i, v in enumerate(node.inputs) if v is not None and self._is_float(v)
        ]
        for body in bodies:
            slots += [(body, i) for i, v in enumerate(body.outputs) if self._is_float(v)]
        self.sites.add(Site(node, slots, makes, reason))

    def _is_float(self, value: ir.Value) -> bool:
        return bool(self.dtype(value) == ir.DataType.FLOAT)
