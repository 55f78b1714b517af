"""Why a node of a provider's graph computes in float although Q or DQ stand beside it.

The conditions are those of onnxruntime's `qdq_selectors.cc` and `qdq_util.cc`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import onnx

from onnxcomp.quant.provider_graph import MOVING, base_operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxcomp.quant.provider_graph import ProviderGraph
    from onnxcomp.targets import Family, Target

_SIXTEEN = frozenset({onnx.TensorProto.INT16, onnx.TensorProto.UINT16})


class Reason(StrEnum):
    """Kinds of reasons for which a conversion stays a node of its own."""

    INPUT = "input"
    OUTPUT = "output"
    CONSTANT = "constant"
    FLOAT_OPERATOR = "float-operator"
    FUSED_FLOAT = "fused-float"
    FLOAT_INPUT = "float-input"
    FLOAT_RESULT = "float-result"
    NO_OUTPUT_Q = "no-output-q"
    FAN_OUT = "fan-out"
    PARAMETERS = "parameters"
    TYPE = "type"
    REQUANTIZE = "requantize"
    UNREAD = "unread"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Why:
    """A reason: its kind, and words."""

    reason: Reason
    text: str


def why_float(node: onnx.NodeProto, graph: ProviderGraph, target: Target) -> Why:
    """Returns why a node was not turned into an int8 kernel."""
    kind = base_operator(node)
    if graph.is_kernel(node):
        return Why(Reason.FLOAT_INPUT, f"{node.op_type} takes this input in float")
    family = target.family_of(kind)
    if family is None and kind not in MOVING:
        if node.domain not in {"", "ai.onnx", "com.microsoft", "com.microsoft.nchwc"}:
            return Why(Reason.FLOAT_OPERATOR, f"{kind} is of the domain {node.domain}")
        return Why(Reason.FLOAT_OPERATOR, f"{kind} runs in float: {_table_reason(kind, target)}")
    checks = (
        _fused(node, kind, graph),
        *_table(node, kind, graph),
        *_inputs(node, kind, family, graph),
        *_outputs(node, kind, graph, must=not (family is not None and family.float_output)),
        *_types(node, kind, family, graph),
        *_rest(node, kind, family, graph),
    )
    for found in checks:
        if found is not None:
            return found
    return Why(Reason.UNKNOWN, f"{kind} runs in float for no reason that is known here")


def _table_reason(kind: str, target: Target) -> str:
    text = target.why_float(kind)
    return text if "not in the table" not in text else "the provider has no int8 kernel for it"


def _fused(node: onnx.NodeProto, kind: str, graph: ProviderGraph) -> Why | None:
    activation = _attribute(node, "activation")
    if not activation or node.op_type == kind:
        activation = activation if node.domain == "com.microsoft.nchwc" else ""
    if not activation:
        return None
    if activation in {"Relu", "Clip"}:
        quantizers = [n for n in graph.readers(node.output[0]) if n.op_type == "QuantizeLinear"]
        if quantizers and graph.maker(node.input[0]) is not None and _from_dq(node.input[0], graph):
            text = f"{kind} with {activation} behind it: the range of the Q does not make the {activation} redundant"
            return Why(Reason.FUSED_FLOAT, text)
        return None
    text = f"{kind} was fused with the {activation} behind it, which runs in float"
    return Why(Reason.FUSED_FLOAT, text)


def _table(node: onnx.NodeProto, kind: str, graph: ProviderGraph) -> Iterator[Why | None]:
    """A stored tensor that an operator would hand on as bytes if it had one scale."""
    maker = graph.float_maker(node.input[0]) if kind in MOVING and node.input else None
    if (
        maker is None
        or maker.op_type != "DequantizeLinear"
        or not graph.is_constant(maker.input[0])
    ):
        return
    if _dims(maker.input[1], graph) not in {(), (1,), None}:
        yield Why(Reason.PARAMETERS, f"{kind} hands on bytes of a tensor with one scale only")


def _attribute(node: onnx.NodeProto, name: str) -> str:
    for attribute in node.attribute:
        if attribute.name == name and attribute.type == onnx.AttributeProto.STRING:
            text: str = attribute.s.decode(errors="replace")
            return text
    return ""


def _activations(node: onnx.NodeProto, kind: str, family: Family | None) -> list[str]:
    """The inputs that must come out of a DQ."""
    if family is None or family.role == "follow":
        return [name for name in node.input[:1] if name]
    if family.role == "join":
        return [name for name in node.input if name]
    count = 2 if family.weight is not None else 1
    del kind
    return [name for name in node.input[:count] if name]


def _from_dq(value: str, graph: ProviderGraph) -> bool:
    maker = graph.float_maker(value)
    return maker is not None and maker.op_type == "DequantizeLinear"


def _inputs(
    node: onnx.NodeProto, kind: str, family: Family | None, graph: ProviderGraph
) -> Iterator[Why | None]:
    for name in _activations(node, kind, family):
        if _from_dq(name, graph):
            continue
        if name in graph.initializers:
            yield Why(Reason.FLOAT_INPUT, f"{kind} has a constant in float as input")
            continue
        maker = graph.float_maker(name)
        source = "an input of the model" if maker is None else maker.op_type
        yield Why(Reason.FLOAT_INPUT, f"another input of {kind} comes in float from {source}")


def _outputs(
    node: onnx.NodeProto, kind: str, graph: ProviderGraph, *, must: bool
) -> Iterator[Why | None]:
    for name in (name for name in node.output if name):
        readers = graph.float_readers(name)
        quantizers = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if graph.is_output(name):
            if must or quantizers:
                yield Why(Reason.OUTPUT, f"the result of {kind} is an output in float")
        elif not quantizers and must:
            follower = readers[0].op_type if readers else "nobody"
            yield Why(
                Reason.NO_OUTPUT_Q, f"no Q behind {kind}: its result goes to {follower} in float"
            )
        elif quantizers and len(readers) > 1:
            others = [r.op_type for r in readers if r.op_type != "QuantizeLinear"]
            also = f"{others[0]} reads it in float too" if others else "it is quantized twice"
            yield Why(Reason.FAN_OUT, f"the result of {kind} has several readers: {also}")


def _types(
    node: onnx.NodeProto, kind: str, family: Family | None, graph: ProviderGraph
) -> Iterator[Why | None]:
    weighted = family is not None and family.weight is not None
    activations = [
        name
        for name in _activations(node, kind, family)
        if not (weighted and _is_constant_dq(name, graph))
    ]
    found = [code for name in activations if (code := _kind_of_bytes(name, graph))]
    behind = [
        code
        for name in node.output
        for reader in graph.float_readers(name)
        if reader.op_type == "QuantizeLinear" and (code := _zero_type(reader, graph))
    ]
    if any(code in _SIXTEEN for code in (*found, *behind)):
        yield Why(Reason.TYPE, f"{kind} has no kernel for 16 bits")
    if kind not in MOVING and onnx.TensorProto.INT8 in found:
        text = f"{kind} reads int8, and its kernel on x64 wants uint8: onnxruntime turns only values with one reader into uint8"
        yield Why(Reason.TYPE, text)
    if len({*found, *behind}) > 1:
        yield Why(Reason.TYPE, f"{kind} reads another type than it writes")


def _is_constant_dq(value: str, graph: ProviderGraph) -> bool:
    maker = graph.float_maker(value)
    return (
        maker is not None
        and maker.op_type == "DequantizeLinear"
        and graph.is_constant(maker.input[0])
    )


def _kind_of_bytes(value: str, graph: ProviderGraph) -> int:
    maker = graph.float_maker(value)
    if maker is None or maker.op_type != "DequantizeLinear":
        return 0
    return _zero_type(maker, graph)


def _zero_type(conversion: onnx.NodeProto, graph: ProviderGraph) -> int:
    if len(conversion.input) < 3 or not conversion.input[2]:
        return onnx.TensorProto.UINT8
    tensor = graph.tensor(conversion.input[2])
    return 0 if tensor is None else int(tensor.data_type)


def _rest(
    node: onnx.NodeProto, kind: str, family: Family | None, graph: ProviderGraph
) -> Iterator[Why | None]:
    for value in _activations(node, kind, family)[:1]:
        if (found := _uneven(value, graph)) is not None:
            yield Why(Reason.PARAMETERS, f"{kind} reads an activation {found}")
    quantizers = [r for o in node.output for r in graph.float_readers(o)]
    for reader in quantizers:
        if reader.op_type == "QuantizeLinear" and _dims(reader.input[1], graph) not in {(), None}:
            yield Why(Reason.PARAMETERS, f"the Q behind {kind} has more than one scale")
    if kind in MOVING:
        yield Why(Reason.PARAMETERS, f"scale or zero point before and behind {kind} differ")
    if family is not None and family.weight is not None:
        yield from _weighted(node, kind, family, graph)
    if family is not None and family.inputs is not None and len(node.input) != family.inputs:
        yield Why(Reason.FLOAT_OPERATOR, f"{kind} has {len(node.input)} inputs")


def _uneven(value: str, graph: ProviderGraph) -> str | None:
    maker = graph.float_maker(value)
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    dims = _dims(maker.input[1], graph)
    if dims is None:
        return "whose scale is no constant"
    if dims not in {(), (1,)} and not graph.is_constant(maker.input[0]):
        return "with a scale for each channel"
    return None


def _dims(value: str, graph: ProviderGraph) -> tuple[int, ...] | None:
    tensor = graph.tensor(value)
    return None if tensor is None else tuple(tensor.dims)


def _weighted(
    node: onnx.NodeProto, kind: str, family: Family, graph: ProviderGraph
) -> Iterator[Why]:
    if family.bias is not None and len(node.input) > family.bias and node.input[family.bias]:
        bias = node.input[family.bias]
        if not _from_dq(bias, graph):
            yield Why(Reason.TYPE, f"{kind} has a bias in float")
    for attribute in node.attribute:
        wanted = family.require.get(attribute.name)
        value = attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i
        if wanted is not None and value != wanted:
            yield Why(Reason.PARAMETERS, f"{kind} with {attribute.name} = {value:g}")
    weight = graph.float_maker(node.input[1]) if len(node.input) > 1 else None
    if weight is not None and weight.op_type == "DequantizeLinear":
        code, first = _zero_type(weight, graph), _kind_of_bytes(node.input[0], graph)
        if first == onnx.TensorProto.UINT8 or code == onnx.TensorProto.INT8:
            dims = _dims(weight.input[1], graph)
            if dims not in {(), None}:
                yield Why(
                    Reason.PARAMETERS, f"the weight of {kind} has a scale for each slice of an axis"
                )
        else:
            yield Why(Reason.TYPE, f"{kind} has no kernel for these types")
