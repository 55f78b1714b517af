"""Which candidates are worth computing in int8: measured times of nodes against the cost of conversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.quant.candidates import key_of
from onnxcomp.quant.mincut import Cut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.ir import ir
    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.quant.measure import NodeTimes
    from onnxcomp.quant.regions import Regions
    from onnxcomp.targets import Target

_NANO, _MICRO = 1e-9, 1e-6
_IMAGE = 4  # dimensions
# Float nodes that need a copy of their input when they stand between int8 ones.
_GUARDED = frozenset({"Conv", "ConvTranspose", "Gemm"})


@dataclass
class Placement:
    """Splits the nodes of a graph into float and int8 at the least total time.

    Every unit (what the provider runs as one kernel) costs its measured time on its side; a value that
    crosses costs a Q or a DQ in proportion to its size. The best split of such a graph is a minimum cut.

    Attributes:
        graph: The graph.
        candidates: Nodes that may be int8.
        regions: What the provider fuses in float.
        target: Costs of conversions.
        float_times: Measured on the float model.
        int8_times: Measured with all candidates in int8.
        elements: Size of each value, as seen during calibration.
    """

    graph: ir.Graph
    candidates: Candidates
    regions: Regions
    target: Target
    float_times: NodeTimes
    int8_times: NodeTimes
    elements: Mapping[str, int]

    def __post_init__(self) -> None:
        self._unit_of: dict[str, str] = {}
        self._node_of: dict[str, ir.Node] = {}
        for node in self.graph:
            key = key_of(node)
            self._node_of[key] = node
            self._unit_of[key] = self.regions.owner[key] if key in self.regions.sealed else key
        for candidate in self.candidates:
            if candidate.absorbed is not None:
                self._unit_of[key_of(candidate.absorbed)] = candidate.key

    def solve(self, weight: float = 1.0) -> set[str]:
        """Returns the candidates to compute in int8.

        Args:
            weight: Factor on the cost of conversions; more makes fewer, larger islands.
        """
        cut = Cut()
        vertices: dict[str, int] = {}
        for unit in self._unit_of.values():
            if unit not in vertices:
                vertices[unit] = cut.vertex()
        self._charge_units(cut, vertices)
        for node in self.graph:
            for value in node.outputs:
                self._charge_value(cut, vertices, value, weight)
        for value in self.graph.inputs:
            self._charge_value(cut, vertices, value, weight)
        floats = cut.source_side()
        return {c.key for c in self.candidates if vertices[c.key] not in floats}

    def _charge_units(self, cut: Cut, vertices: Mapping[str, int]) -> None:
        in_float = self._by_unit(self.float_times, fused=True)
        in_int8 = self._by_unit(self.int8_times, fused=False)
        for unit, vertex in vertices.items():
            if unit in self.candidates.found:
                cut.charge(vertex, cut.SINK, in_float.get(unit, 0.0))
                cut.charge(cut.SOURCE, vertex, in_int8.get(unit, 0.0))
            else:
                cut.charge(cut.SOURCE, vertex, 1e3)

    def _by_unit(self, times: NodeTimes, *, fused: bool) -> dict[str, float]:
        found: dict[str, float] = {}
        for key, seconds in times.seconds.items():
            owner = self.regions.owner.get(key, key) if fused else key
            unit = self._unit_of.get(owner, owner)
            found[unit] = found.get(unit, 0.0) + seconds
        return found

    def _charge_value(
        self, cut: Cut, vertices: Mapping[str, int], value: ir.Value, weight: float
    ) -> None:
        """Charges one Q for all int8 readers of a float value, and a DQ for each float reader."""
        readers = self._readers(value)
        size = self.elements.get(value.name or "", 0)
        maker = value.producer()
        made_by = None if maker is None else self._unit_of[key_of(maker)]
        readers.discard(made_by or "")
        cost = self.target.cost
        layout = cost.layout_ns if value.shape is not None and len(value.shape) == _IMAGE else 0.0
        quantize = weight * ((cost.quantize_ns + layout) * size * _NANO + cost.node_us * _MICRO)
        dequantize = weight * ((cost.dequantize_ns + layout) * size * _NANO + cost.node_us * _MICRO)
        source = cut.SOURCE if made_by is None else vertices[made_by]
        hub = cut.vertex()
        cut.charge(source, hub, quantize)
        for reader in readers:
            if reader in self.candidates.found:
                cut.charge(hub, vertices[reader], 1e3)
        if made_by is None or made_by not in self.candidates.found:
            return
        if self._writes_float(self.candidates.found[made_by]):
            return
        for reader in readers:
            guarded = self._node_of[reader].op_type in _GUARDED
            cut.charge(vertices[reader], source, dequantize * (2.0 if guarded else 1.0))
        if value.is_graph_output():
            cut.charge(cut.SOURCE, source, dequantize)

    def _readers(self, value: ir.Value) -> set[str]:
        found = set()
        for node in value.consumers():
            if node.graph is self.graph:
                found.add(self._unit_of[key_of(node)])
        return found

    @staticmethod
    def _writes_float(candidate: Candidate) -> bool:
        return candidate.family.float_output
