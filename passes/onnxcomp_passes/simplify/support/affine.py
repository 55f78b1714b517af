"""Multiplications and additions of constants per channel, before or behind a linear operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.diagnostics import Location
from onnxcomp.ir.ops import (
    array,
    attribute,
    constant,
    has_reference_attribute,
    input_at,
    is_op,
    is_training,
)
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss, read_beside
from onnxcomp_passes.simplify.support.base import bypass, rewire, shapes_of
from onnxcomp_passes.simplify.support.dims import only_axis
from onnxcomp_passes.simplify.support.linear import (
    ACCURATE,
    LINEAR,
    Linear,
    linear_before,
    linear_of,
    shared_linear,
    store,
    store_bias,
)
from onnxcomp_passes.simplify.support.patterns import completes_a_formula

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir

    Array = np.ndarray[Any, Any]

_CURVES = ("Erf", "Tanh", "Sigmoid", "HardSigmoid", "Clip", "Softplus")
# Constants with more elements are no factors per channel.
LARGEST_FACTOR = 1 << 20


@dataclass(frozen=True)
class Affine:
    """`source * scale + shift`, with one number per channel."""

    source: ir.Value
    scale: Array
    shift: Array

    @property
    def is_finite(self) -> bool:
        """Whether no number is infinite or NaN."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())


@dataclass(frozen=True)
class Fused:
    """What a linear operator becomes when `source * scale + shift` goes into it.

    A weight of None stays as it is.
    """

    linear: Linear
    source: ir.Value
    weight: Array | None
    bias: Array


def normalization(node: ir.Node) -> Affine | str:
    """Returns a BatchNormalization in inference as what it does per channel, or why it is none."""
    if has_reference_attribute(node) or is_training(node) or attribute(node, "spatial", 1) != 1:
        return "it updates its statistics, has them per element, or its attributes are not known"
    parameters = [array(value, limit=LARGEST_FACTOR) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (
        None if found is None else found.astype(np.float64) for found in parameters
    )
    if gamma is None or beta is None or mean is None or variance is None:
        return "its parameters are not constant"
    spread = variance + float(attribute(node, "epsilon", 1e-5))
    if not (spread > 0).all():
        return "its variance is not positive"
    scale = gamma / np.sqrt(spread)
    assert node.inputs[0] is not None
    return Affine(node.inputs[0], scale, beta - mean * scale)


def arithmetic(node: ir.Node, rank: int, axis: int, channels: int) -> Affine | None:
    """Returns Add, Sub, Mul or Div of a constant per channel of a value of that rank as affine."""
    for index, source in enumerate(node.inputs):
        found = array(node.inputs[1 - index], limit=LARGEST_FACTOR)
        if found is None or source is None or constant(source) is not None:
            continue
        if found.dtype.kind != "f" or not only_axis(found.shape, rank, axis, channels):
            return None
        return _as_affine(node.op_type, index, source, found.astype(np.float64), channels)
    return None


def _as_affine(
    operator: str, index: int, source: ir.Value, found: Array, channels: int
) -> Affine | None:
    values = np.broadcast_to(found.reshape(-1), (channels,))
    ones, zeros = np.ones(channels), np.zeros(channels)
    if operator == "Add":
        return Affine(source, ones, values)
    if operator == "Mul":
        return Affine(source, values, zeros)
    if operator == "Sub":
        return Affine(source, ones, -values) if index == 0 else Affine(source, -ones, values)
    if index == 1 or not values.all():
        return None
    return Affine(source, 1 / values, zeros)


def fused_behind(linear: Linear, affine: Affine) -> Fused | str:
    """Returns a linear operator with what stands behind it, or why they cannot be one."""
    if affine.scale.shape != (linear.outputs,) or not affine.is_finite:
        return "a parameter is not finite"
    place, index = linear.bias_place()
    bias = linear.bias()
    if bias is None:
        return "the bias is not constant"
    only_shifts = bool((affine.scale == 1).all())
    if not _may_round(linear, unchanged=only_shifts and input_at(place, index) is None):
        return "half precision would be rounded once more"
    if affine.shift.any() and not _can_shift(linear):
        # A MatMul of more than two dimensions has no bias, and that is how it is meant.
        return ""
    made = bias * affine.scale + affine.shift
    if only_shifts:
        return Fused(linear, affine.source, None, made)
    weight = linear.scaled(linear.along_outputs(affine.scale)) if linear.may_change() else None
    return (
        "the weight cannot be changed"
        if weight is None
        else Fused(linear, affine.source, weight, made)
    )


def fused_before(linear: Linear, affine: Affine) -> Fused | str:
    """Returns a linear operator with what stands before it, or why they cannot be one."""
    bias = linear.bias()
    if affine.scale.shape != (linear.inputs,) or not affine.is_finite:
        return "a parameter is not finite"
    if bias is None or not _may_round(linear):
        return "the bias is not constant, or half precision would be rounded once more"
    if affine.shift.any():
        if linear.node.op_type == "ConvTranspose" or not (_unpadded(linear) and _can_shift(linear)):
            return "padding would have to be shifted too"
        bias = bias + linear.shift_through(affine.shift)
    weight = linear.scaled(linear.along_inputs(affine.scale)) if linear.may_change() else None
    if weight is None or not np.isfinite(bias).all():
        return "the weight cannot be changed"
    return Fused(linear, affine.source, weight, bias)


def _may_round(linear: Linear, *, unchanged: bool = False) -> bool:
    tensor = constant(linear.weight)
    return unchanged or (tensor is not None and tensor.dtype in ACCURATE)


def _can_shift(linear: Linear) -> bool:
    """Whether the operator has a bias, or can get one: a MatMul of rank 2 turns into a Gemm."""
    if linear.node.op_type != "MatMul" or linear.adder is not None:
        return True
    # onnxruntime has no Gemm of every type that it has a MatMul of.
    return linear.rank == 2 and _may_round(linear)


def _unpadded(linear: Linear) -> bool:
    if not linear.is_conv:
        return True
    auto = attribute(linear.node, "auto_pad", "NOTSET")
    return auto == "VALID" or (auto == "NOTSET" and not any(attribute(linear.node, "pads") or ()))


def apply_fused(edit: Edit, fused: Fused) -> None:
    """Writes the new weight and bias."""
    if fused.weight is not None:
        store(edit, fused.linear.node, 1, fused.weight, "weight")
    store_bias(edit, fused.linear, fused.bias)


class FuseBehind:
    """Arithmetic with constants per channel goes into the linear operator before it."""

    def __init__(self, name: str, *operators: str) -> None:
        self.name = name
        self.ops = frozenset(operators)

    def match(self, node: ir.Node, facts: Facts) -> Match[Fused] | Miss:
        """Finds the linear operator and computes what it becomes."""
        shapes = shapes_of(facts)
        for source in node.inputs:
            linear = linear_before(source, node, shapes)
            if linear is None and (miss := self._shared(source, node, shapes)):
                return miss
            if linear is None or linear.rank is None or linear.axis is None:
                continue
            affine = arithmetic(node, linear.rank, linear.axis, linear.outputs)
            if affine is None or affine.source is not source:
                continue
            fused = fused_behind(linear, affine)
            return Miss(fused, near=bool(fused)) if isinstance(fused, str) else Match(node, fused)
        return NOTHING

    @staticmethod
    def _shared(source: ir.Value | None, node: ir.Node, shapes: ShapeMap) -> Miss | None:
        """Says so when all would fit, but the linear operator is not read by the arithmetic alone."""
        linear = shared_linear(source, shapes)
        if source is None or linear is None or linear.rank is None or linear.axis is None:
            return None
        beside = read_beside(source, node)
        affine = arithmetic(node, linear.rank, linear.axis, linear.outputs) if beside else None
        if affine is None or affine.source is not source or completes_a_formula(node):
            return None
        if any(is_op(usage.node, *_CURVES) for usage in node.outputs[0].uses()):
            return None  # the beginning of a GELU or another gate
        return Miss(f"{Location.of(linear.node)} before it {beside}", near=True)

    def apply(self, match: Match[Fused], edit: Edit) -> None:
        """Writes weight and bias, and lets readers read the linear operator."""
        apply_fused(edit, match.found)
        bypass(edit, match.node, match.found.linear.last.outputs[0])


class FuseBefore:
    """Arithmetic with constants per channel goes into the linear operator behind it."""

    def __init__(self, name: str, *operators: str) -> None:
        self.name = name
        self.operators = frozenset(operators)
        self.ops = frozenset(LINEAR)

    def match(self, node: ir.Node, facts: Facts) -> Match[Fused] | Miss:
        """Finds what stands before and computes what the linear operator becomes."""
        shapes = shapes_of(facts)
        value = node.inputs[0]
        before = None if value is None else value.producer()
        if before is None or before.op_type not in self.operators or before.domain != node.domain:
            return NOTHING
        linear = linear_of(node, shapes)
        if linear is None or value is None:
            return NOTHING
        if attribute(node, "transA", 0) != 0 or completes_a_formula(before):
            return NOTHING
        affine = affine_before(before, linear, shapes)
        if not isinstance(affine, Affine):
            return Miss(affine, near=bool(affine))
        if only_reader(value) is not node:
            beside = read_beside(value, node)
            return Miss(f"{Location.of(before)} before it {beside}", near=bool(beside))
        fused = fused_before(linear, affine)
        return Miss(fused, near=bool(fused)) if isinstance(fused, str) else Match(node, fused)

    def apply(self, match: Match[Fused], edit: Edit) -> None:
        """Writes weight and bias, and reads past what stood before."""
        apply_fused(edit, match.found)
        rewire(edit, match.node, 0, match.found.source)


def affine_before(before: ir.Node, linear: Linear, shapes: ShapeMap) -> Affine | str:
    """Returns what stands before a linear operator per channel, or why it cannot be used."""
    if before.op_type == "BatchNormalization":
        affine = normalization(before)
        matrix = not linear.is_conv and shapes.rank(before.inputs[0]) != 2
        return "channels are not what is multiplied" if matrix else affine
    rank = linear.rank if linear.is_conv else shapes.rank(linear.node.inputs[0])
    if rank is None:
        return ""
    axis = 1 if linear.is_conv else rank - 1
    found = arithmetic(before, rank, axis, linear.inputs)
    shape = None if found is None else shapes.shape(found.source)
    # A constant must not be what widens the value to the number of channels.
    if found is None or shape is None or len(shape) != rank or shape[axis] != linear.inputs:
        return ""
    return found
