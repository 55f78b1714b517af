"""Puts layer normalizations that exporters took apart together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.ops import attribute, has_reference_attribute, is_scalar, producer_of
from onnxcomp.rules import NOTHING, Match, Miss, Rule
from onnxcomp_passes.simplify.support.base import LocalPass, bypass, shapes_of
from onnxcomp_passes.simplify.support.dims import list_of, normalized
from onnxcomp_passes.simplify.support.formulas import inner, number, operands

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit


@dataclass(frozen=True)
class Normalized:
    """`(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`."""

    source: ir.Value
    scale: ir.Value
    bias: ir.Value | None
    epsilon: float
    axis: int


class BuildLayerNorm:
    """A normalization over the last axes in single precision is LayerNormalization."""

    name = "layer normalizations put together"
    ops = frozenset({"Add", "Mul"})

    def match(self, node: ir.Node, facts: Facts) -> Match[Normalized] | Miss:
        """Finds what is normalized, and by what it is scaled and shifted."""
        shapes = shapes_of(facts)
        if node.op_type == "Mul":
            # With an addition behind it the whole is found from there.
            readers = [usage.node for usage in node.outputs[0].uses()]
            if len(readers) == 1 and readers[0].op_type == "Add":
                return NOTHING
            found = _scaled(node, None, shapes)
            return NOTHING if found is None else Match(node, found)
        for product, bias in operands(node):
            found = _scaled(inner(product, "Mul"), bias, shapes)
            if found is not None:
                return Match(node, found)
        return NOTHING

    def apply(self, match: Match[Normalized], edit: Edit) -> None:
        """Builds it."""
        node, found = match.node, match.found
        inputs = [found.source, found.scale, *([found.bias] if found.bias is not None else [])]
        options = {"axis": found.axis, "epsilon": found.epsilon}
        made = edit.insert(
            "LayerNormalization", inputs, before=node, attributes=options, like=node.outputs[0]
        )
        bypass(edit, node, made.outputs[0])


def _scaled(node: ir.Node | None, bias: ir.Value | None, shapes: ShapeMap) -> Normalized | None:
    for quotient, scale in operands(node) if node is not None else ():
        division = inner(quotient, "Div")
        if division is None or scale is None:
            continue
        found = _divided(division, scale, bias, shapes)
        if found is not None and _fits(found, shapes):
            return found
    return None


def _divided(
    division: ir.Node, scale: ir.Value, bias: ir.Value | None, shapes: ShapeMap
) -> Normalized | None:
    """Follows `d / sqrt(mean(d * d) + epsilon)` with `d = x - mean(x)` backwards."""
    centred, root = division.inputs[0], inner(division.inputs[1], "Sqrt")
    total = inner(root.inputs[0], "Add") if root is not None else None
    difference = producer_of(centred, "Sub")
    if total is None or difference is None or centred is None:
        return None
    for variance, epsilon in operands(total):
        small, mean = number(epsilon), inner(variance, "ReduceMean")
        if (
            small is None
            or mean is None
            or not _is_square(inner(mean.inputs[0], "Pow", "Mul"), centred)
        ):
            continue
        source, centre = difference.inputs[0], inner(difference.inputs[1], "ReduceMean")
        axis = _last_axes(mean, shapes.rank(source))
        if source is None or centre is None or centre.inputs[0] is not source or axis is None:
            return None
        if len(centred.uses()) > 3 or axis != _last_axes(centre, shapes.rank(source)):
            return None
        return Normalized(source, scale, bias, small, axis)
    return None


def _is_square(node: ir.Node | None, base: ir.Value) -> bool:
    if node is None or node.inputs[0] is not base:
        return False
    return node.inputs[1] is base if node.op_type == "Mul" else is_scalar(node.inputs[1], 2.0)


def _last_axes(node: ir.Node, rank: int | None) -> int | None:
    """Returns the first axis of a mean over all axes from it on, counted from the back."""
    axes = list_of(node, "axes", 1)
    if (
        rank is None
        or not axes
        or has_reference_attribute(node)
        or attribute(node, "keepdims", 1) != 1
    ):
        return None
    found = sorted(normalized(axes, rank) or ())
    return -len(found) if found == list(range(rank - len(found), rank)) else None


def _fits(found: Normalized, shapes: ShapeMap) -> bool:
    """Whether scale and bias have the shape of what is normalized, and all is single precision."""
    shape = shapes.shape(found.source)
    tail = None if shape is None else shape[found.axis :]
    if tail is None or None in tail or shapes.dtype(found.source) != ir.DataType.FLOAT:
        return False
    return all(
        shapes.shape(value) == tail for value in (found.scale, found.bias) if value is not None
    )


class FuseLayernorm(LocalPass):
    """Puts layer normalizations that exporters took apart together again.

    Nine operators become LayerNormalization where the model's opset has it (17); the opset is not
    raised. Single precision only, because other types are computed in another precision. Results
    agree to a few units in the last place.

        x -> (x - mean) / sqrt(mean((x - mean)^2) + epsilon) * scale + bias -> y
        x -> LayerNormalization(scale, bias) -> y
    """

    name = "fuse-layernorm"
    lossless = True
    minimum_opset: ClassVar[int] = 17

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (BuildLayerNorm(),)
