"""Multiplications and additions behind a normalization go into its scale and bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, has_reference_attribute, input_at
from onnxcomp.rules import NOTHING, Match, Miss
from onnxcomp_passes.simplify.support.base import bypass, shapes_of
from onnxcomp_passes.simplify.support.formulas import inner, operands

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit

    Array = np.ndarray[Any, Any]

NORMS = ("LayerNormalization", "RMSNormalization", "InstanceNormalization")
LARGEST = 1 << 20


@dataclass(frozen=True)
class Absorbed:
    """New scale and bias of a normalization: constants, values, or None for what stays."""

    norm: ir.Node
    scale: Array | ir.Value | None
    bias: Array | ir.Value | None


class AbsorbBehind:
    """`norm(x, s) * c` is `norm(x, s * c)`, and `norm(x, s) + c` is `norm(x, s, c)`."""

    name = "scales and biases of normalizations"
    ops = frozenset({"Mul", "Add"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Absorbed] | Miss:
        """Finds the normalization and computes its parameters."""
        for value, other in operands(node):
            norm = inner(value, *NORMS)
            if norm is None or other is None or len(norm.outputs) != 1:
                continue
            if has_reference_attribute(norm) or norm.graph is not node.graph:
                continue
            found = _absorbed(norm, node.op_type, other, shapes_of(facts))
            if found is not None:
                return Match(node, found)
        return NOTHING

    def apply(self, match: Match[Absorbed], edit: Edit) -> None:
        """Writes the parameters; a value may be made behind the normalization, which moves then."""
        node, found = match.node, match.found
        graph, norm = node.graph, found.norm
        assert graph is not None
        inputs = list(norm.inputs) + [None] * (3 - len(norm.inputs))
        for index, wanted in ((1, found.scale), (2, found.bias)):
            if isinstance(wanted, ir.Value):
                inputs[index] = wanted
            elif wanted is not None:
                wish = ("norm_scale", "norm_bias")[index - 1]
                inputs[index] = edit.initializer(wanted, name=wish, graph=graph)
        while inputs[-1] is None:
            inputs.pop()
        options = dict(norm.attributes)
        like = node.outputs[0]
        made = edit.insert(norm.op_type, inputs, before=node, attributes=options, like=like)
        bypass(edit, node, made.outputs[0])


def _absorbed(norm: ir.Node, operator: str, other: ir.Value, shapes: ShapeMap) -> Absorbed | None:
    """Returns the parameters with one more factor or summand."""
    shape = shapes.static(norm.inputs[1])
    if shape is None or shapes.dtype(norm.inputs[1]) != ir.DataType.FLOAT:
        return None
    if operator == "Add":
        return None if norm.op_type == "RMSNormalization" else _shifted(norm, other, shape, shapes)
    return _scaled(norm, other, shape, shapes)


def _shifted(
    norm: ir.Node, other: ir.Value, shape: tuple[int, ...], shapes: ShapeMap
) -> Absorbed | None:
    before = input_at(norm, 2)
    if before is None and _is_like(norm, other, shape, shapes):
        return Absorbed(norm, None, other)
    spread = _spread(norm, array(other, limit=LARGEST), shape, shapes)
    bias = array(before, limit=LARGEST)
    if spread is None or (before is not None and (bias is None or bias.shape != shape)):
        return None
    return Absorbed(norm, None, spread if bias is None else _rounded(bias + spread))


def _scaled(
    norm: ir.Node, other: ir.Value, shape: tuple[int, ...], shapes: ShapeMap
) -> Absorbed | None:
    before = input_at(norm, 2)
    scale, bias = array(norm.inputs[1], limit=LARGEST), array(before, limit=LARGEST)
    if scale is None or (before is not None and (bias is None or bias.shape != shape)):
        return None
    if before is None and bool((scale == 1).all()) and _is_like(norm, other, shape, shapes):
        return Absorbed(norm, other, None)
    spread = _spread(norm, array(other, limit=LARGEST), shape, shapes)
    if spread is None:
        return None
    return Absorbed(
        norm, _rounded(scale * spread), None if bias is None else _rounded(bias * spread)
    )


def _is_like(norm: ir.Node, other: ir.Value, shape: tuple[int, ...], shapes: ShapeMap) -> bool:
    """Whether a value can be the scale or bias as it is, constant or not."""
    if norm.op_type == "InstanceNormalization" or shapes.shape(other) != shape:
        return False
    axis, rank = attribute(norm, "axis", -1), shapes.rank(norm.inputs[0])
    if rank is None or (axis if axis < 0 else axis - rank) != -len(shape):
        return False
    return shapes.dtype(other) == ir.DataType.FLOAT


def _spread(
    norm: ir.Node, found: Array | None, shape: tuple[int, ...], shapes: ShapeMap
) -> Array | None:
    """Lays a constant out like the scale, None when it does not vary along these axes only."""
    if found is None or found.dtype != np.float32 or not bool(np.isfinite(found).all()):
        return None
    rank = shapes.rank(norm.inputs[0])
    if rank is None or found.ndim > rank:
        return None
    if norm.op_type == "InstanceNormalization":
        padded = found.reshape((1,) * (rank - found.ndim) + found.shape)
        per_channel = padded.shape[1] in (1, *shape) and padded.size == padded.shape[1]
        trimmed = padded.reshape(-1) if per_channel else None
    else:
        axis = attribute(norm, "axis", -1)
        if (axis if axis < 0 else axis - rank) != -len(shape):
            return None
        extra = found.ndim - len(shape)
        leading = found.shape[: max(extra, 0)]
        trimmed = found.reshape(found.shape[max(extra, 0) :]) if set(leading) <= {1} else None
    if trimmed is None or any(
        one not in (1, other) for one, other in zip(trimmed.shape[::-1], shape[::-1], strict=False)
    ):
        return None
    return np.ascontiguousarray(np.broadcast_to(trimmed, shape))


def _rounded(values: Array) -> Array:
    return np.asarray(values, np.float32)
