"""Which Q and DQ of a model a provider leaves as nodes of their own, and why each one."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.errors import quoted
from onnxcomp.quant.provider_graph import ProviderGraph, label
from onnxcomp.quant.why_float import Reason, Why, why_float
from onnxcomp.runtime import optimized_model
from onnxcomp.targets import load_target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx

    from onnxcomp.handover import Source
    from onnxcomp.targets import Target

__all__ = ["FusionReport", "Leftover", "Reason", "Side", "fusion_report", "report_on"]


class Side(StrEnum):
    """Where the float side of a conversion is."""

    BEFORE = "before"  # of a QuantizeLinear
    BEHIND = "behind"  # of a DequantizeLinear


@dataclass(frozen=True)
class Leftover:
    """A Q or DQ that runs as a node of its own.

    Attributes:
        node: Its name in the provider's graph.
        operator: `QuantizeLinear` or `DequantizeLinear`.
        value: The value that it makes.
        source: The value that it reads.
        beside: The operator on its float side, as the provider calls it; empty at the model's border.
        place: The name of that node.
        reason: What kind of reason it has.
        why: The reason in words.
    """

    node: str
    operator: str
    value: str
    source: str
    beside: str
    place: str
    reason: Reason
    why: str

    @override
    def __str__(self) -> str:
        return f"{self.operator} {quoted(self.node)}: {self.why}"


@dataclass(frozen=True)
class FusionReport:
    """What a provider makes of the Q and DQ of a model.

    Attributes:
        provider: The execution provider.
        leftovers: Those that stay, in the provider's order.
        kernels: Nodes that compute with integers, by operator.
        floats: Nodes beside leftovers that compute in float, by operator.
    """

    provider: str
    leftovers: tuple[Leftover, ...]
    kernels: Mapping[str, int]
    floats: Mapping[str, int]

    @property
    def unexplained(self) -> tuple[Leftover, ...]:
        """Those for which no reason was found."""
        return tuple(found for found in self.leftovers if found.reason is Reason.UNKNOWN)

    @property
    def reasons(self) -> Mapping[str, int]:
        """How many have the same reason in words, the most frequent first."""
        return dict(Counter(found.why for found in self.leftovers).most_common())

    @override
    def __str__(self) -> str:
        head = f"{len(self.leftovers)} Q/DQ run as nodes of their own on {self.provider}"
        return "\n".join([head, *(f"{count} x {why}" for why, count in self.reasons.items())])


def fusion_report(
    model: Source, *, provider: str = "cpu", target: Target | None = None
) -> FusionReport:
    """Lets a provider optimise a model and explains every Q and DQ that is left.

    Args:
        model: The model, as for `Session.open`.
        provider: The execution provider.
        target: The table of what it computes in int8, by default the one of the provider's name.

    Raises:
        RuntimeUnavailableError: If the provider is missing or does not load the model.
        ModelError: If the model is not valid.
    """
    optimized = optimized_model(model, provider=provider, weights=False)
    return report_on(optimized, target or load_target(provider), provider=provider)


def report_on(optimized: onnx.ModelProto, target: Target, *, provider: str = "cpu") -> FusionReport:
    """Explains the Q and DQ of a graph that a provider has optimised already."""
    graph = ProviderGraph(optimized)
    leftovers = tuple(found for node in graph.nodes for found in _leftover(node, graph, target))
    kernels = Counter(node.op_type for node in graph.nodes if graph.is_kernel(node))
    beside = {(found.beside, found.place) for found in leftovers if found.place}
    return FusionReport(provider, leftovers, kernels, Counter(name for name, _ in beside))


def _leftover(node: onnx.NodeProto, graph: ProviderGraph, target: Target) -> Iterator[Leftover]:
    if node.op_type == "QuantizeLinear":
        beside, why = _before(node, graph, target)
    elif node.op_type == "DequantizeLinear":
        beside, why = _behind(node, graph, target)
    else:
        return
    yield Leftover(
        node.name,
        node.op_type,
        node.output[0],
        node.input[0],
        "" if beside is None else beside.op_type,
        "" if beside is None else label(beside),
        why.reason,
        why.text,
    )


def _before(
    node: onnx.NodeProto, graph: ProviderGraph, target: Target
) -> tuple[onnx.NodeProto | None, Why]:
    """What makes the float value that a Q reads, and why that is not done in int8."""
    maker = graph.float_maker(node.input[0])
    if maker is None:
        if graph.is_constant(node.input[0]):
            return None, Why(Reason.CONSTANT, "it quantizes a constant at every run")
        return None, Why(Reason.INPUT, "an input of the model, or of a body, is float")
    if maker.op_type == "DequantizeLinear":
        text = "one quantized value is turned into another: the parameters before and behind differ"
        return maker, Why(Reason.REQUANTIZE, text)
    if graph.is_kernel(maker):
        return maker, Why(Reason.FLOAT_RESULT, f"{maker.op_type} computes in int8 and writes float")
    return maker, why_float(maker, graph, target)


def _behind(
    node: onnx.NodeProto, graph: ProviderGraph, target: Target
) -> tuple[onnx.NodeProto | None, Why]:
    """Who reads the float value that a DQ makes, and why not in int8."""
    value = node.output[0]
    readers = graph.float_readers(value)
    if not readers:
        if graph.is_output(value):
            return None, Why(Reason.OUTPUT, "an output of the model, or of a body, is float")
        return None, Why(Reason.UNREAD, "nobody reads it in this scope; a body of a loop may")
    for reader in readers:
        if reader.op_type == "QuantizeLinear":
            text = "one quantized value is turned into another: the parameters before and behind differ"
            return reader, Why(Reason.REQUANTIZE, text)
    reasons = [(reader, why_float(reader, graph, target)) for reader in readers]
    known = [pair for pair in reasons if pair[1].reason is not Reason.UNKNOWN]
    return (known or reasons)[0]
