"""What is left of branches and layers of which every channel lost its effect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.channels.elementwise import BROADCAST
from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, constant, input_at, is_op, is_training, standard_op
from onnxcomp_passes.prune.support.constant_layers import is_padded
from onnxcomp_passes.prune.support.stored import FLOATS, weight_of
from onnxcomp_passes.simplify.support.base import bypass, rewire
from onnxcomp_passes.simplify.support.dims import same_shape

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.constancy import Constancy

Array = np.ndarray[Any, Any]
# Numbers that an operator hands its other operand on with, and at which place they may stand.
_NEUTRAL: dict[str, tuple[float, tuple[int, ...]]] = {
    "Add": (0.0, (0, 1)),
    "Sum": (0.0, (0, 1)),
    "Sub": (0.0, (1,)),
    "Mul": (1.0, (0, 1)),
    "Div": (1.0, (1,)),
}


def drop_constant_branches(ctx: Context, constancy: Constancy) -> int:
    """Puts a vector in place of a branch that always holds the same; returns how often.

    Only where a sum or product with something else reads it, which then gives the result its shape.
    """
    done = 0
    known = dict.fromkeys(value for value, _, _ in constancy.whole())
    for value, axis, numbers in list(constancy.whole()):
        if constant(value) is not None or weight_of(value) is not None:
            continue
        for use in list(value.uses()):
            node = use.node
            others = [v for place, v in enumerate(node.inputs) if place != use.idx]
            if node.graph is None or standard_op(node) not in BROADCAST or node.outputs[0] in known:
                continue
            if is_op(node, "PRelu") and use.idx == 0:
                continue  # slopes are spread over what they are applied to, not the other way
            if any(same_shape(constancy.shapes, other, node.outputs[0]) for other in others):
                vector = _vector(ctx, node, constancy, value, axis, numbers)
                rewire(ctx.edit, node, use.idx, vector)
                done += 1
    return done


def _vector(
    ctx: Context,
    node: ir.Node,
    constancy: Constancy,
    value: ir.Value,
    axis: int,
    numbers: Array,
) -> ir.Value:
    rank = constancy.shapes.rank(value) or 1
    dtype = constancy.shapes.dtype(value) or ir.DataType.FLOAT
    shape = (len(numbers),) + (1,) * (rank - 1 - axis)
    tensor = numbers.astype(dtype.numpy()).reshape(shape)
    assert isinstance(node.graph, ir.Graph)
    return ctx.edit.initializer(tensor, name=f"{value.name}_constant", graph=node.graph)


def drop_noops(ctx: Context, shapes: ShapeMap) -> int:
    """Removes layers that hand on what they read; returns how many."""
    done = 0
    for node in list(ctx.model.nodes()):
        if node.graph is None or not node.outputs or shapes.dtype(node.outputs[0]) not in FLOATS:
            continue
        source = _handed_on(node, shapes)
        if (
            source is not None
            and same_shape(shapes, source, node.outputs[0])
            and ctx.edit.can_alias(node.outputs[0], source)
        ):
            bypass(ctx.edit, node, source)
            done += 1
    return done


def _handed_on(node: ir.Node, shapes: ShapeMap) -> ir.Value | None:
    """Returns the operand that a result equals but for rounding and the sign of zero."""
    name = standard_op(node) or ""
    if name in _NEUTRAL:
        return _beside_neutral(node, *_NEUTRAL[name])
    source = input_at(node, 0)
    if name == "Concat" and len(node.inputs) == 1:
        return source
    if name in {"Conv", "Gemm", "MatMul"}:
        return source if _is_identity(node, shapes) else None
    if name == "BatchNormalization":
        return source if _is_even(node) else None
    return None


def _beside_neutral(node: ir.Node, number: float, places: tuple[int, ...]) -> ir.Value | None:
    if len(node.inputs) != 2:
        return None
    for place in places:
        found = weight_of(node.inputs[place])
        if found is not None and found.size and found.dtype.kind == "f" and (found == number).all():
            return node.inputs[1 - place]
    return None


def _is_identity(node: ir.Node, shapes: ShapeMap) -> bool:
    """Whether each output of a layer is one input, in order, times one, plus nothing."""
    weight = weight_of(input_at(node, 1))
    added = input_at(node, 2)
    if weight is None or not weight.size or weight.dtype.kind != "f":
        return False
    if added is not None and not _is_zero(added):
        return False
    if is_op(node, "Conv"):
        steps = set(attribute(node, "strides", ())) <= {1}
        if not steps or is_padded(node) or set(weight.shape[2:]) - {1}:
            return False
        group = attribute(node, "group", 1)
        blocks = weight.reshape(group, -1, weight.shape[1])
        return blocks.shape[1] == blocks.shape[2] and _is_eye(blocks)
    if is_op(node, "Gemm") and (attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1):
        return False
    if (shapes.rank(node.inputs[0]) or 0) < 2:
        return False
    return weight.ndim == 2 and weight.shape[0] == weight.shape[1] and _is_eye(weight[None])


def _is_eye(blocks: Array) -> bool:
    # The corner tells nearly all weights apart before anything large is compared.
    if blocks.size == 0 or blocks[0, 0, 0] != 1:
        return False
    return bool((blocks == np.eye(blocks.shape[1], dtype=blocks.dtype)).all())


def _is_zero(value: ir.Value) -> bool:
    found = weight_of(value)
    return found is not None and not found.any()


def _is_even(node: ir.Node) -> bool:
    """Whether a BatchNormalization neither scales nor shifts."""
    if is_training(node) or any(output.name for output in node.outputs[1:]):
        return False
    given = [weight_of(value) for value in node.inputs[1:5]]
    if any(found is None for found in given):
        return False
    scale, shift, mean, variance = (np.asarray(found, np.float64) for found in given)
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return bool((factor == 1).all() and (shift == mean * factor).all())
