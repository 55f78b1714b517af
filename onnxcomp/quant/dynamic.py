"""Products with constant matrices whose activations can be rounded while the model runs.

Which forms the CPU provider runs fast was read in onnxruntime's optimizer/matmul_integer_to_float.cc and
dynamic_quantize_matmul_fusion.cc, and measured: DynamicQuantizeLinear, MatMulInteger, Cast, a Mul with the
product of both scales (that of the activation first) and an Add whose second input is the bias become one
kernel. ConvInteger (1.1 to 8 times the time of Conv) and MatMulInteger of two activations (1.2 to 1.8
times) gain nothing, and there is no kernel for GRU and RNN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, single_use, standard_op
from onnxcomp.quant.candidates import key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp.quant.candidates import Filter

# Operators whose presence says that activations are rounded already.
ROUNDED = frozenset(
    {
        *("QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"),
        *("QLinearConv", "QLinearMatMul", "QGemm", "QAttention"),
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat"),
    }
)
CONTRIB = "com.microsoft"
GATES = 4
# What onnxruntime's optimizers make of MatMul; of these only Attention has an int8 kernel.
_OPTIMIZED = frozenset({"Attention", "MultiHeadAttention", "FusedMatMul", "FusedGemm"})
_ATTENTION_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "mask_filter_value", "scale"})
_ATTENTION_INPUTS = 5
_FLOAT = ir.DataType.FLOAT
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
# Below these sizes the kernel in float is as fast (measured with 1 to 256 rows).
_FEWEST_ROWS, _FEWEST_COLUMNS, _LEAST_WORK = 64, 64, 1 << 18
_USUAL_BATCH = 16
_LEAST_STATE = 1 << 16


@dataclass(frozen=True, eq=False)
class Site:
    """A node that multiplies an activation with a constant matrix.

    Attributes:
        node: The node: MatMul, Gemm, LSTM or onnxruntime's Attention.
        kind: How it is rewritten.
        source: The activation.
        weight: The matrix; of an LSTM that of the input.
        tensors: Its contents; of an LSTM those of the input's weight and of the state's.
        depth: Rows of the matrix: how many numbers of the activation make one product.
        width: Columns of the matrix.
        transposed: Whether the matrix is stored with its columns first.
        follower: The Add behind a MatMul that adds a constant vector.
        rank: Dimensions of the activation of a Conv, whose channels stand on axis 1; 0 for others.
    """

    node: ir.Node
    kind: Literal["product", "lstm", "attention"]
    source: ir.Value
    weight: ir.Value
    tensors: tuple[ir.TensorProtocol, ...]
    depth: int
    width: int
    transposed: bool = False
    follower: ir.Node | None = None
    rank: int = 0

    def matrix(self) -> NDArray[Any]:
        """Reads the weight of a product or of an attention as rows and columns."""
        found = (
            self.tensors[0]
            .numpy()
            .reshape((self.width, self.depth) if self.transposed else (self.depth, self.width))
        )
        return found.T if self.transposed else found

    @property
    def key(self) -> str:
        """Name of what the node gives."""
        return key_of(self.node)

    def pays(self, shapes: ShapeMap) -> bool:
        """Whether int8 can be expected to be faster, from sizes alone; of a Conv that cannot be told."""
        if self.kind == "lstm":
            return self.width * self.width // GATES >= _LEAST_STATE
        if self.rank or self.depth < _FEWEST_ROWS or self.width < _FEWEST_COLUMNS:
            return False
        rows = _rows(shapes, self.source)
        return rows * self.depth * self.width >= _LEAST_WORK


@dataclass
class Sites:
    """What was found, in order, and why other nodes stay float."""

    found: list[Site] = field(default_factory=list)
    refused: list[tuple[ir.Node, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.found)


def rounded_node(model: Model) -> ir.Node | None:
    """Returns a node that says that the activations of a model are rounded already."""
    return next((node for node in model.nodes() if node.op_type in ROUNDED), None)


def find_sites(
    model: Model, shapes: ShapeMap, options: Filter, *, contrib: bool, pointwise: bool = False
) -> Sites:
    """Returns the nodes of a model that can be computed in int8, bodies of If, Loop and Scan included.

    Args:
        model: The model.
        shapes: Types and shapes.
        options: Which nodes the user wants left alone.
        contrib: Whether operators that only onnxruntime has may be used.
        pointwise: Whether Conv with kernels of one element are of interest.
    """
    result = Sites()
    functions = {function.graph for function in model.core.functions.values()}
    for graph in model.graphs():
        if graph in functions:
            continue
        for node in graph:
            found = _site(node, shapes, contrib=contrib)
            if pointwise and is_op(node, "Conv"):
                found = _pointwise(node, shapes)
            if isinstance(found, Site):
                reason = options.rejects(node)
                found = reason or found
            if isinstance(found, Site):
                result.found.append(found)
            elif found:
                result.refused.append((node, found))
    return result


def _site(node: ir.Node, shapes: ShapeMap, *, contrib: bool) -> Site | str:
    """The site of a node, or why it is none; empty for nodes that do not matter."""
    if node.domain == CONTRIB and node.op_type in _OPTIMIZED:
        return _attention(node)
    name = standard_op(node)
    if name in _RECURRENT:
        return _recurrence(node, shapes, contrib=contrib)
    if name not in {"MatMul", "Gemm"}:
        return ""
    return _product(node, shapes)


def _product(node: ir.Node, shapes: ShapeMap) -> Site | str:
    source, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant(weight)
    if source is None or weight is None or constant(source) is not None:
        return "its first input is a constant"
    if tensor is None and weight.is_initializer():
        return "callers may replace its weight, which is an input too (see fix-signature)"
    if tensor is None:
        return "it multiplies two activations, which is not faster in int8"
    if tensor.dtype != _FLOAT or shapes.dtype(source) not in {None, _FLOAT}:
        return f"its weight is {tensor.dtype.name.lower()}, not float32"
    shape = tensor.shape.numpy()
    if len(shape) != 2 or not tensor.size:
        return "its weight is not a matrix"
    transposed = is_op(node, "Gemm") and bool(attribute(node, "transB", 0))
    if is_op(node, "Gemm") and (reason := _unfit_gemm(node)):
        return reason
    depth, width = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    follower = _following_bias(node, width)
    return Site(node, "product", source, weight, (tensor,), depth, width, transposed, follower)


def _pointwise(node: ir.Node, shapes: ShapeMap) -> Site | str:
    """The site of a Conv that is a product at each place; empty for any other."""
    source, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant(weight)
    if source is None or weight is None or tensor is None or not tensor.size:
        return ""
    shape = tensor.shape.numpy()
    steps = (attribute(node, "strides", (1,)), attribute(node, "pads", (0,)))
    if any(size != 1 for size in shape[2:]) or attribute(node, "group", 1) != 1:
        return ""
    if any(step != 1 for step in steps[0]) or any(pad != 0 for pad in steps[1]):
        return ""
    bias = input_at(node, 2)
    if tensor.dtype != _FLOAT or shapes.dtype(source) not in {None, _FLOAT}:
        return f"its weight is {tensor.dtype.name.lower()}, not float32"
    if constant(source) is not None or (bias is not None and constant(bias) is None):
        return "its bias is no constant" if bias is not None else "its first input is a constant"
    width, depth = shape[:2]
    return Site(
        node, "product", source, weight, (tensor,), depth, width, transposed=True, rank=len(shape)
    )


def _unfit_gemm(node: ir.Node) -> str:
    if attribute(node, "transA", 0) != 0:
        return "it transposes its activation"
    factors: list[object] = [attribute(node, name, 1.0) for name in ("alpha", "beta")]
    if not all(isinstance(factor, float) and math.isfinite(factor) for factor in factors):
        return "a factor is not a number"
    bias = input_at(node, 2)
    if factors[1] != 1.0 and bias is not None and constant(bias) is None:
        return "it scales an addend that is no constant"
    return ""


def _following_bias(node: ir.Node, width: int) -> ir.Node | None:
    """The Add behind a MatMul whose other input is a constant vector."""
    reader = single_use(node.outputs[0])
    if not is_op(node, "MatMul") or reader is None or not is_op(reader, "Add"):
        return None
    if reader.graph is not node.graph or len(reader.inputs) != 2:
        return None
    other = reader.inputs[1 if reader.inputs[0] is node.outputs[0] else 0]
    tensor = constant(other)
    if tensor is None or tensor.size != width or tuple(tensor.shape.numpy())[-1:] != (width,):
        return None
    return reader


def _recurrence(node: ir.Node, shapes: ShapeMap, *, contrib: bool) -> Site | str:
    if not is_op(node, "LSTM"):
        return f"no runtime has an int8 kernel for {node.op_type}"
    if not contrib:
        return "an int8 LSTM is no standard operator; allow-contrib takes onnxruntime's own"
    source, weight, state = (input_at(node, index) for index in range(3))
    tensor, recurrent = constant(weight), constant(state)
    if source is None or weight is None or tensor is None or recurrent is None:
        return "its weights are not constants"
    if {tensor.dtype, recurrent.dtype} != {_FLOAT}:
        return f"its weights are {tensor.dtype.name.lower()}, not float32"
    if attribute(node, "layout", 0) != 0 or shapes.dtype(source) not in {None, _FLOAT}:
        return "onnxruntime's int8 LSTM takes steps first, in float32"
    outer, inner = tuple(tensor.shape.numpy()), tuple(recurrent.shape.numpy())
    if len(outer) != 3 or len(inner) != 3 or outer[:2] != inner[:2] or 0 in (*outer, *inner):
        return "its weights have an unusual shape"
    if inner[1] != GATES * inner[2]:
        return "its weights have an unusual shape"
    tensors = (tensor, recurrent)
    return Site(node, "lstm", source, weight, tensors, outer[2] + inner[2], outer[1])


def _attention(node: ir.Node) -> Site | str:
    """An Attention as onnxruntime's optimizer of transformers writes it, which has QAttention beside it."""
    if node.op_type != "Attention":
        return f"onnxruntime has no int8 form of {node.op_type}; quantize first, optimize then"
    source, weight = input_at(node, 0), input_at(node, 1)
    tensor = constant(weight)
    if source is None or weight is None or tensor is None or constant(input_at(node, 2)) is None:
        return "its weight is not a constant"
    if tensor.dtype != _FLOAT or len(tensor.shape) != 2 or not tensor.size:
        return "its weight is not a matrix of float32"
    extra = [value for value in node.inputs[_ATTENTION_INPUTS:] if value is not None]
    if extra or not set(node.attributes) <= _ATTENTION_ATTRIBUTES:
        return "it uses what onnxruntime's QAttention does not have"
    depth, width = tensor.shape.numpy()
    return Site(node, "attention", source, weight, (tensor,), depth, width)


def _rows(shapes: ShapeMap, value: ir.Value) -> int:
    """How many rows an activation has, a usual number where that is not known."""
    shape = shapes.shape(value)
    known = [size for size in (shape or (None,))[:-1] if isinstance(size, int)]
    unknown = shape is None or len(known) < len(shape) - 1
    return math.prod(known) * (_USUAL_BATCH if unknown else 1)


def is_finite(site: Site) -> bool:
    """Whether all weights of a site are numbers; reads them."""
    return all(bool(np.isfinite(tensor.numpy()).all()) for tensor in site.tensors)


def scaled_bias(node: ir.Node) -> NDArray[np.float32] | None:
    """The addend of a Gemm times its factor; None when there is none or the factor is 1."""
    beta = attribute(node, "beta", 1.0)
    found = array(input_at(node, 2))
    if found is None or beta == 1.0:
        return None
    made: NDArray[np.float32] = (found * np.float32(beta)).astype(np.float32)
    return made
