"""Says what a provider makes of a quantized model: for each operator, whether it computes in 8 bits."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxcomp.runtime import optimized_model

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Verdict:
    """What runs.

    Attributes:
        operators: Operators of the provider's graph, in order.
        floats: Operators of the model that are computed in float with conversions of their own around them.
        conversions: Number of Q and DQ that are left as nodes.
    """

    operators: tuple[str, ...]
    floats: frozenset[str] = frozenset()
    conversions: int = 0
    details: Mapping[str, str] = field(default_factory=dict)


def in_onnxruntime(model: onnx.ModelProto, provider: str) -> Verdict:
    """Reads the graph that onnxruntime makes for a provider."""
    kinds = tuple(n.op_type for n in optimized_model(model, provider=provider).graph.node)
    left = sum(kind in _CONVERSIONS for kind in kinds)
    known = {node.op_type for node in model.graph.node} - _CONVERSIONS
    names = {kind.removeprefix("Fused") for kind in kinds}
    return Verdict(kinds, frozenset(known & names), left)


def in_openvino(model: onnx.ModelProto) -> Verdict:
    """Reads the graph that OpenVINO's processor plugin runs.

    A node that reads 8 bits, or that also does the work of the Q behind it, needs no conversion of its own.
    """
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")
    names = {name: node for node in model.graph.node for name in node.output}
    kinds, details, conversions, floats = [], {}, 0, set()
    for made in compiled.get_runtime_model().get_ordered_ops():
        info = {key: _plain(value) for key, value in made.get_rt_info().items()}
        if info["layerType"] in {"Const", "Input", "Output", "Reorder"}:
            continue
        kinds.append(info["layerType"])
        parts = [_bare(part) for part in info["originalLayersNames"].split(",")]
        mine = [part for part in parts if part in names and names[part].op_type not in _CONVERSIONS]
        is_byte = info["runtimePrecision"] in {"u8", "i8"}
        quantizes = any(part.endswith(("_quantized", "_QuantizeLinear")) for part in parts)
        if not mine:
            conversions += 1
        for part in mine:
            details[part] = f"{info['layerType']} {info['runtimePrecision']}"
            if not is_byte and not quantizes:
                floats.add(names[part].op_type)
    return Verdict(tuple(kinds), frozenset(floats), conversions, details)


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


def _bare(part: str) -> str:
    """The output of the model that a part of a kernel stands for."""
    return part.split("/", maxsplit=1)[0].removesuffix("_original")
