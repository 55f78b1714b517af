"""Which nodes may be evaluated ahead of time, and at what cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.envelope import ATTRIBUTES
from onnxcomp.ir.ops import (
    attribute,
    bit_width,
    constant,
    has_reference_attribute,
    input_at,
    is_pure,
    standard_op,
    subgraphs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Quantized weights stay small, and the runtime fuses the pair; control flow may not end; what an
# Identity hands on need not be copied.
NEVER = frozenset(
    {
        "Constant",
        "Identity",
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
    }
)
_SMALL_BYTES = 64 * 1024
# Shapes, axes and scalars take no more than the node that makes them.
TINY_BYTES = 128


@dataclass
class Budget:
    """How much folding may still cost.

    Attributes:
        node_bytes: Result that a node may have whatever its inputs are.
        growth: Bytes by which the model may still grow.
        flops: Operations that evaluation may still take.
        exceeded: Whether a node was refused because the model would have grown too much.
    """

    node_bytes: int = _SMALL_BYTES
    growth: int = _SMALL_BYTES
    flops: float = 1e9
    exceeded: bool = False
    refusals: dict[ir.Node, str] = field(default_factory=dict)


def is_candidate(node: ir.Node) -> bool:
    """Whether a node is a function of its inputs alone that the runtime can compute."""
    name = standard_op(node)
    if name is None or name in NEVER or ATTRIBUTES in node.meta or not node.outputs:
        return False
    if has_reference_attribute(node) or any(True for _ in subgraphs(node)):
        return False
    return is_pure(node)


def size_in_bytes(dtype: ir.DataType, shape: tuple[int, ...]) -> int:
    """Returns the bytes of a tensor."""
    return (prod(shape) * bit_width(dtype) + 7) // 8


def operations(node: ir.Node, inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> int:
    """Returns roughly how many operations a node takes."""
    made = sum(prod(shape) for shape in outputs)
    read = sum(prod(shape) for shape in inputs)
    name = node.op_type
    if name in {"MatMul", "Gemm", "MatMulInteger", "QLinearMatMul"} and inputs and inputs[0]:
        return made * max(inputs[0]) + read
    if name.startswith(("Conv", "QLinearConv")) and len(inputs) > 1:
        return made * prod(inputs[1][1:]) + read * (prod(inputs[1][2:]) if "T" in name else 1)
    if name in {"Einsum", "LSTM", "GRU", "RNN", "NonMaxSuppression", "Det", "DFT", "STFT"}:
        return prod([max(prod(shape), 1) for shape in inputs[:2]]) + made
    if name.endswith("Pool"):
        return made * prod(_list(attribute(node, "kernel_shape", ())) or [1]) + read
    return made + read


def _list(value: object) -> list[int]:
    return [int(item) for item in value] if isinstance(value, (list, tuple)) else []


def danger(node: ir.Node, dtypes: Sequence[ir.DataType]) -> str:
    """Returns why evaluating a node could kill the process or depend on the machine.

    Empty when it is safe, `wait` when its operands have to be known first.
    """
    if node.op_type in _DANGEROUS_FOR_INTEGERS and not any(dtype.is_integer() for dtype in dtypes):
        return ""
    if node.op_type == "Cast" and dtypes and not dtypes[0].is_floating_point():
        return "" if dtypes[0] != ir.DataType.STRING else "casts strings"
    check = _DANGERS.get(node.op_type)
    return check(node) if check else ""


def _divides(node: ir.Node) -> str:
    dividend, divisor = _operand(node, 0), _operand(node, 1)
    if dividend is None or divisor is None:
        return "wait"
    if divisor.dtype.kind not in "iu":
        return ""
    if (divisor == 0).any():
        return "divides integers by zero"
    smallest = np.iinfo(divisor.dtype).min
    if divisor.dtype.kind == "i" and (divisor == -1).any() and (dividend == smallest).any():
        return "divides the smallest integer by -1, which is not defined"
    return ""


def _casts(node: ir.Node) -> str:
    source, to = _operand(node, 0), attribute(node, "to", 0)
    if source is None:
        return "wait"
    if not isinstance(to, int):
        return "casts to a type that only the caller knows"
    dtype = ir.DataType(to)
    if dtype == ir.DataType.STRING or source.dtype.kind == "O":
        return "casts strings"
    if source.dtype.kind not in "fV" or dtype.numpy().kind not in "iu":
        return ""
    if dtype.bitwidth < 8:
        return "casts to packed integers"
    limits = np.iinfo(dtype.numpy())
    wide = source.astype(np.float64)
    # 2**63 as a float is above the largest int64, so the upper end must stay below.
    inside = np.isfinite(wide) & (wide > float(limits.min) - 1) & (wide < float(limits.max))
    if float(limits.min) - 1 == float(limits.min):
        inside |= wide == float(limits.min)
    return "" if inside.all() else "casts numbers that the integer type cannot hold"


def _shifts(node: ir.Node) -> str:
    amount = _operand(node, 1)
    if amount is None:
        return "wait"
    return "" if (amount < amount.dtype.itemsize * 8).all() else "shifts by too many bits"


def _ranges(node: ir.Node) -> str:
    parts = [_operand(node, index) for index in range(3)]
    if any(part is None or part.size != 1 for part in parts):
        return "wait"
    start, limit, step = (float(part.reshape(-1)[0]) for part in parts if part is not None)
    if not np.isfinite([start, limit, step]).all() or step == 0:
        return "has no end"
    return "" if (limit - start) / step < 1e7 else "is too long"


def _averages(node: ir.Node) -> str:
    source = input_at(node, 0)
    tensor = constant(source)
    if tensor is None:
        return "wait"
    return "averages nothing" if tensor.size == 0 else ""


def _fills(node: ir.Node) -> str:
    shape = _operand(node, 0)
    if shape is None:
        return "wait"
    return "has a negative dimension" if (shape < 0).any() else ""


def _operand(node: ir.Node, index: int) -> np.ndarray | None:
    tensor = constant(input_at(node, index))
    return None if tensor is None else tensor.numpy()


_DANGEROUS_FOR_INTEGERS = frozenset({"Div", "Mod", "ReduceMean"})
_DANGERS: dict[str, Callable[[ir.Node], str]] = {
    "Div": _divides,
    "Mod": _divides,
    "Cast": _casts,
    "BitShift": _shifts,
    "Range": _ranges,
    "ReduceMean": _averages,
    "ConstantOfShape": _fills,
}
