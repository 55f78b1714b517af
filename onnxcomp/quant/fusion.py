"""Checks a quantized model against the graph that the provider really runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.quant.candidates import key_of
from onnxcomp.quant.fusion_report import report_on
from onnxcomp.quant.measure import labelled, node_of
from onnxcomp.runtime import optimized_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from onnxcomp.ir import Model
    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.quant.fusion_report import Leftover
    from onnxcomp.quant.plan import Plan
    from onnxcomp.targets import Target


@dataclass(frozen=True)
class Check:
    """What the provider made of a quantized model.

    Attributes:
        strays: Nodes that were planned in int8 and run in float, with the reason, by key.
        leftovers: Q and DQ nodes that run on their own, with the reason.
    """

    strays: Mapping[str, str]
    leftovers: Sequence[Leftover]


def check_fusion(model: Model, plan: Plan, candidates: Candidates, target: Target) -> Check:
    """Reads the provider's graph of a quantized model and compares it with the plan."""
    copy, keys = labelled(model)
    values = {value.name or "" for node in copy.graph for value in node.outputs}
    optimized = optimized_model(copy, provider=target.provider, weights=False)
    graph = optimized.graph
    makers = {name: node for node in graph.node for name in node.output}
    # In float the provider names a fused Conv after the Relu behind it.
    fused = {key_of(c.absorbed): c.key for c in candidates if c.absorbed is not None}
    strays = {}
    for node in graph.node:
        key = node_of(node.name, list(node.output), keys, values)
        key = fused.get(key, key)
        if key in plan.nodes and (reason := _runs_in_float(node, candidates.found[key], makers)):
            strays[key] = reason
    report = report_on(optimized, target, provider=target.provider)
    return Check(strays, report.leftovers)


def _runs_in_float(
    node: onnx.NodeProto, candidate: Candidate, makers: Mapping[str, onnx.NodeProto]
) -> str:
    kind = candidate.node.op_type
    if candidate.family.role in {"follow", "read"}:
        maker = makers.get(node.input[0]) if node.input else None
        if node.op_type == kind and maker is not None and maker.op_type == "DequantizeLinear":
            return f"the provider runs {kind} behind a DequantizeLinear"
        return ""
    if node.op_type in {kind, f"Fused{kind}"}:
        return f"the provider runs it as {node.op_type} in float"
    return ""
