"""Whether a model is quantized already: which nodes, in which form, by whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.ir.edit import PROVENANCE
from onnxcomp.ir.ops import constant, is_op

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.ir import Model, ir

_MICROSOFT = "com.microsoft"
# Form of each operator; what stands in no table and begins like them is an operator on integers too.
_FORMS: Mapping[str, str] = {
    "QuantizeLinear": "QDQ",
    "DequantizeLinear": "QDQ",
    "DynamicQuantizeLinear": "dynamic",
    "ConvInteger": "integer",
    "MatMulInteger": "integer",
    "MatMulInteger16": "integer",
    "DynamicQuantizeLSTM": "dynamic",
    "DynamicQuantizeMatMul": "dynamic",
    "MatMulIntegerToFloat": "integer",
    "MatMulNBits": "weight-only",
    "MatMulBnb4": "weight-only",
    "GatherBlockQuantized": "weight-only",
    "QAttention": "QOperator",
    "QEmbedLayerNormalization": "QOperator",
    "QGemm": "QOperator",
    "QMoE": "weight-only",
}
_PREFIXES = ("QLinear", "QOrdered")
_WEIGHT_FORMS = frozenset({"weights", "weight-only", "stored"})
# Where stored integers are first read, and from how many on they are weights rather than tables of something.
_UNPACKING = ("BitShift", "BitwiseAnd", "Cast")
_STORED_FROM = 1024
_TOOLS: Mapping[str, str] = {
    "onnx.quantize": "onnxruntime",
    "quark.onnx": "Quark",
    "vai_q_onnx": "Vitis AI",
    "nncf": "NNCF",
    "aimet": "AIMET",
    "modelopt": "ModelOpt",
    "neural-compressor": "Neural Compressor",
}


@dataclass(frozen=True)
class Quantized:
    """What is quantized in a model; true when something is.

    Attributes:
        nodes: Form of each quantized node: `QDQ`, `QOperator`, `integer`, `dynamic`, `weight-only`,
            `weights` (a DequantizeLinear of a constant), `stored` (small integers that plain operators
            turn into float weights).
        tool: Who made it, as far as the file tells; empty when it does not.
    """

    nodes: Mapping[ir.Node, str] = field(default_factory=dict)
    tool: str = ""

    def __bool__(self) -> bool:
        return bool(self.nodes)

    @property
    def forms(self) -> Mapping[str, int]:
        """How many nodes there are of each form."""
        return Counter(self.nodes.values())

    @property
    def activations(self) -> bool:
        """Whether more than weights is quantized, so that there is nothing left for static quantization."""
        return any(form not in _WEIGHT_FORMS for form in self.nodes.values())

    @override
    def __str__(self) -> str:
        parts = ", ".join(f"{count} of {form}" for form, count in sorted(self.forms.items()))
        return f"{parts} (by {self.tool})" if self.tool else parts


def is_quantized(model: Model) -> Quantized:
    """Finds what is quantized in a model, in every scope.

    Args:
        model: The model.

    Returns:
        The quantized nodes with their form; false when there is none.
    """
    nodes = {node: form for node in model.nodes() if (form := form_of(node))}
    return Quantized(nodes, _tool(model) if nodes else "")


def form_of(node: ir.Node) -> str:
    """Returns the form of a quantized node, empty when it computes in float."""
    if node.domain not in {"", "ai.onnx", _MICROSOFT}:
        return ""
    if is_op(node, "DequantizeLinear") and constant(node.inputs[0]) is not None:
        return "weights"
    if is_op(node, *_UNPACKING) and _is_stored(node):
        return "stored"
    if node.op_type.startswith(_PREFIXES):
        return "QOperator"
    return _FORMS.get(node.op_type, "")


def _is_stored(node: ir.Node) -> bool:
    tensor = constant(node.inputs[0])
    if tensor is None or tensor.size < _STORED_FROM:
        return False
    return tensor.dtype.is_integer() and tensor.dtype.bitwidth <= 8


def _tool(model: Model) -> str:
    core = model.core
    stamps = (node.metadata_props.get(PROVENANCE, "") for node in model.nodes())
    if any(stamp.startswith("quantize-") for stamp in stamps):
        return "onnxcomp"
    if "onnxruntime.quant" in core.metadata_props.values():
        return "onnxruntime"
    producer = (core.producer_name or "").lower()
    for prefix, name in _TOOLS.items():
        if producer.startswith(prefix):
            return name
    keys = " ".join(core.metadata_props).lower()
    if "onnxsim" in keys and any((node.name or "").endswith("/Q") for node in model.nodes()):
        return "onnxsim"
    if any("nncf" in (node.name or "").lower() for node in model.nodes()):
        return "NNCF"
    return ""
