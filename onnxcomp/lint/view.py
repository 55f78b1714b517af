"""A model as the rules of the linter see it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir.ops import constant, input_at
from onnxcomp.lint.grid import DOMAINS, Grid, grid_of
from onnxcomp.lint.placement import Placement, find_placement

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model, ir
    from onnxcomp.targets import Target

Q, DQ = "QuantizeLinear", "DequantizeLinear"


def is_quantizer(node: ir.Node | None) -> bool:
    """Whether a node is a QuantizeLinear."""
    return node is not None and node.op_type == Q and node.domain in DOMAINS


def is_dequantizer(node: ir.Node | None) -> bool:
    """Whether a node is a DequantizeLinear."""
    return node is not None and node.op_type == DQ and node.domain in DOMAINS


class View:
    """Answers to what rules ask. Made anew after every change of the model.

    Attributes:
        model: The model.
        target: Where it shall run.
    """

    def __init__(self, model: Model, target: Target, *, provider_graph: bool = True) -> None:
        self.model = model
        self.target = target
        self.asks_provider = provider_graph
        self._grids: dict[ir.Node, Grid | None] = {}

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The nodes of all scopes."""
        return tuple(self.model.nodes())

    @cached_property
    def quantizers(self) -> tuple[ir.Node, ...]:
        """The QuantizeLinear nodes."""
        return tuple(node for node in self.nodes if is_quantizer(node))

    @cached_property
    def dequantizers(self) -> tuple[ir.Node, ...]:
        """The DequantizeLinear nodes."""
        return tuple(node for node in self.nodes if is_dequantizer(node))

    @cached_property
    def shapes(self) -> ShapeMap:
        """Shapes and types of values."""
        return Facts(self.model).get(Shapes())

    @cached_property
    def placement(self) -> Placement:
        """What the provider makes of the Q and DQ; empty where there is nobody to ask."""
        if not self.asks_provider or not (self.quantizers or self.dequantizers):
            return Placement()
        return find_placement(self.model, self.target)

    def grid(self, node: ir.Node) -> Grid | None:
        """Returns the parameters of a Q or DQ."""
        if node not in self._grids:
            self._grids[node] = grid_of(node)
        return self._grids[node]

    def dq(self, value: ir.Value | None) -> ir.Node | None:
        """Returns the DQ that makes a value."""
        node = None if value is None else value.producer()
        return node if is_dequantizer(node) else None

    def constant_dq(self, value: ir.Value | None) -> ir.Node | None:
        """Returns the DQ of a stored tensor that makes a value."""
        node = self.dq(value)
        return node if node is not None and constant(input_at(node, 0)) is not None else None

    def activation_dq(self, value: ir.Value | None) -> ir.Node | None:
        """Returns the DQ of an activation that makes a value."""
        node = self.dq(value)
        return node if node is not None and constant(input_at(node, 0)) is None else None

    def quantizer_behind(self, value: ir.Value) -> ir.Node | None:
        """Returns the Q that is the only reader of a value."""
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return None
        return uses[0].node if is_quantizer(uses[0].node) and uses[0].idx == 0 else None

    def dq_readers(self, quantizer: ir.Node) -> list[ir.Node] | None:
        """Returns the DQ nodes behind a Q, None when something else reads it too."""
        value = quantizer.outputs[0]
        if value.is_graph_output():
            return None
        found = [use.node for use in value.uses()]
        return found if found and all(map(is_dequantizer, found)) else None

    def layers(self) -> Iterator[tuple[ir.Node, ir.Node]]:
        """Yields Conv, ConvTranspose, Gemm and MatMul with the DQ of a stored weight (input 1)."""
        for node in self.nodes:
            if node.domain in {"", "ai.onnx"} and node.op_type in {
                "Conv",
                "ConvTranspose",
                "Gemm",
                "MatMul",
            }:
                weight = self.constant_dq(input_at(node, 1))
                if weight is not None:
                    yield node, weight
