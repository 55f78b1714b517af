"""Which nodes the provider already runs as one kernel in float, and which of those may be taken apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxcomp.quant.candidates import key_of
from onnxcomp.runtime import optimized_model

if TYPE_CHECKING:
    import onnx

    from onnxcomp.ir import Model, ir

# Fused kernels that have an int8 form for what they are made of; Q/DQ may go between their parts.
_SEPARABLE = frozenset(
    {
        "Conv",
        "FusedConv",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "ConvTranspose",
        "QuickGelu",
    }
)


@dataclass
class Regions:
    """Nodes of the model by the fused kernel that runs them.

    Attributes:
        sealed: Fused operator by the key of a node that must not be taken out of it.
        owner: Key of the node that stands for a fused kernel, by the key of each node in it.
    """

    sealed: dict[str, str] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)


def find_regions(model: Model, provider: str) -> Regions:
    """Reads the float graph that the provider runs and finds what it fused.

    Gelu, LayerNormalization or Attention spelled out in small operators are one fast kernel in float;
    a Q/DQ inside would cost that.
    """
    graph = model.graph
    optimized = optimized_model(model, provider=provider, level="extended", weights=False)
    makers = {value.name: node for node in graph for value in node.outputs if value.name}
    kept = {name for node in optimized.graph.node for name in node.output if name}
    result = Regions()
    for node in optimized.graph.node:
        inside = _inside(node, makers, kept)
        if len(inside) < 2:
            continue
        keys = [key_of(member) for member in inside]
        owner = keys[0] if node.op_type == "QuickGelu" else _main(inside, node.op_type)
        for key in keys:
            result.owner[key] = owner
            if node.op_type not in _SEPARABLE:
                result.sealed[key] = node.op_type
    return result


def _inside(node: onnx.NodeProto, makers: dict[str, ir.Node], kept: set[str]) -> list[ir.Node]:
    """The nodes of the model whose work a node of the optimised graph does, the last one first."""
    stops = {name for name in node.input if name} | kept
    found: dict[ir.Node, None] = {}
    todo = [makers[name] for name in node.output if name in makers]
    while todo:
        member = todo.pop()
        if member in found or member.op_type == "Constant":
            continue
        found[member] = None
        for value in member.inputs:
            name = "" if value is None else value.name or ""
            if name in makers and name not in stops:
                todo.append(makers[name])
    return list(found)


def _main(inside: list[ir.Node], op_type: str) -> str:
    """The key of the node that does most of a fused kernel's work."""
    for name in ("ConvTranspose", "Conv", "Gemm", "MatMul"):
        if name in op_type:
            for node in inside:
                if node.op_type == name:
                    return key_of(node)
    return key_of(inside[0])
