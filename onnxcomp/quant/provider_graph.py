"""Reading the graph that a provider made: who computes with integers, who in float."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import onnx

from onnxcomp.ir.scopes import proto_graphs

if TYPE_CHECKING:
    from collections.abc import Iterator

# onnxruntime puts these between others for the sake of memory layout.
LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})
# Work on bytes as well as on floats, so that Q and DQ around them can be dropped.
MOVING = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "NhwcMaxPool",
        "Reshape",
        "Resize",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "GatherBlockQuantized",
        "MatMulInteger",
        "MatMulInteger16",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "NhwcMaxPool",
        "QAttention",
        "QEmbedLayerNormalization",
        "QGemm",
        "QMoE",
        "QOrderedMatMul",
    }
)
_BYTES = frozenset(
    {
        onnx.TensorProto.INT8,
        onnx.TensorProto.UINT8,
        onnx.TensorProto.INT16,
        onnx.TensorProto.UINT16,
        onnx.TensorProto.INT4,
        onnx.TensorProto.UINT4,
    }
)
_FUSED = {
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "NhwcFusedConv": "Conv",
    "TransposeMatMul": "MatMul",
}


def base_operator(node: onnx.NodeProto) -> str:
    """Returns the standard operator that a fused one does the work of."""
    return _FUSED.get(node.op_type, node.op_type)


def label(node: onnx.NodeProto) -> str:
    """Returns what a node is called in reports."""
    return node.name or next((name for name in node.output if name), "")


class ProviderGraph:
    """An optimised graph with its bodies, by value.

    Attributes:
        nodes: All nodes of all scopes.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graphs = [graph for graph in proto_graphs(model) if isinstance(graph, onnx.GraphProto)]
        self.nodes = [node for graph in graphs for node in graph.node]
        self._makers = {name: node for node in self.nodes for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self._readers[name].append(node)
        self.initializers = {t.name: t for graph in graphs for t in graph.initializer}
        self._outputs = {info.name for graph in graphs for info in graph.output}
        self._bytes: dict[str, bool] = {}

    def maker(self, value: str) -> onnx.NodeProto | None:
        """Returns the node that makes a value."""
        return self._makers.get(value)

    def readers(self, value: str) -> list[onnx.NodeProto]:
        """Returns the nodes that read a value, once for each time."""
        return self._readers.get(value, [])

    def is_output(self, value: str) -> bool:
        """Whether a value leaves the model or a body."""
        return value in self._outputs

    def is_constant(self, value: str) -> bool:
        """Whether a value is the same in every run."""
        maker = self.maker(value)
        return value in self.initializers or (maker is not None and maker.op_type == "Constant")

    def tensor(self, value: str) -> onnx.TensorProto | None:
        """Returns a constant; large ones come without their contents."""
        return self.initializers.get(value)

    def is_kernel(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies or adds integers."""
        return node.op_type in _KERNELS or node.op_type.startswith("QLinear")

    def is_bytes(self, value: str) -> bool:
        """Whether a value holds quantized numbers."""
        found = self._bytes.get(value)
        if found is None:
            self._bytes[value] = False  # for graphs that are no order
            found = self._bytes[value] = self._find_bytes(value)
        return found

    def _find_bytes(self, value: str) -> bool:
        tensor = self.initializers.get(value)
        if tensor is not None:
            return tensor.data_type in _BYTES
        seen: set[str] = set()
        while (node := self.maker(value)) is not None and value not in seen:
            seen.add(value)
            if node.op_type in {"QuantizeLinear", "DynamicQuantizeLinear"}:
                return True
            if node.op_type.startswith("QLinear"):
                return True
            if node.op_type == "QGemm":
                return len(node.input) > 8 and bool(node.input[8])
            if node.op_type not in MOVING | LAYOUT or not node.input:
                return False
            value = node.input[0]
        tensor = self.initializers.get(value)
        return tensor is not None and tensor.data_type in _BYTES

    def float_maker(self, value: str) -> onnx.NodeProto | None:
        """Returns the node that makes a value, past changes of layout."""
        node = self.maker(value)
        while node is not None and node.op_type in LAYOUT:
            node = self.maker(node.input[0])
        return node

    def float_readers(self, value: str) -> list[onnx.NodeProto]:
        """Returns the nodes that read a value, past changes of layout."""
        return list(self._past_layout(value))

    def _past_layout(self, value: str) -> Iterator[onnx.NodeProto]:
        stack = [value]
        while stack:
            for reader in self.readers(stack.pop()):
                if reader.op_type in LAYOUT:
                    stack.extend(reader.output)
                else:
                    yield reader
