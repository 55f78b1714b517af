"""Means over images become pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, attribute, input_at, is_interface, is_op, standard_op
from onnxcomp.passbase import Context, Pass

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap

_AXES_ARE_INPUTS = 18
_SQUEEZE_AXES_ARE_INPUTS = 13
# N, C and at least one more.
_FEWEST_DIMENSIONS, _MOST_DIMENSIONS = 3, 5
_MOST_AXES = 8
_IMAGE_MAKERS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "QLinearConv"})
# What leaves an image an image, and how many of them are followed.
_SEEN_THROUGH = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "PRelu"}
    | {"Add", "Mul", "Sub", "Concat", "BatchNormalization", "Gelu"}
)
_MOST_STEPS = 16


class PoolMeans(Pass):
    """Turns a ReduceMean over all of an image into a GlobalAveragePool.

    They are the same number, but the pool works on int8 and on the channel blocks in which convolutions
    leave their results, and the mean does neither. Means of what no convolution or pool made (those of
    layer normalizations) stay.

        y = ReduceMean<axes = [2, 3], keepdims = 0>(x)     y = Squeeze<axes = [2, 3]>(GlobalAveragePool(x))
    """

    name: ClassVar[str] = "pool-means"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {}

    @override
    def run(self, ctx: Context) -> None:
        shapes = ctx.facts.get(Shapes())
        for graph in ctx.model.graphs():
            for node in list(graph):
                if is_op(node, "ReduceMean") and (
                    axes := _image_axes(node, ctx.model.opset, shapes)
                ):
                    _pool(ctx, node, axes)


def _image_axes(node: ir.Node, opset: int, shapes: ShapeMap) -> tuple[int, ...]:
    """The axes of a mean if they are all those of an image; none otherwise."""
    rank = shapes.rank(node.inputs[0])
    if not _is_image(node.inputs[0]):
        return ()
    if rank is None or not _FEWEST_DIMENSIONS <= rank <= _MOST_DIMENSIONS:
        return ()
    if shapes.dtype(node.inputs[0]) != ir.DataType.FLOAT:
        return ()
    if opset >= _AXES_ARE_INPUTS:
        found = array(input_at(node, 1), limit=_MOST_AXES)
        axes = () if found is None else found.reshape(-1).tolist()
    else:
        axes = attribute(node, "axes", ())
    images = tuple(range(2, rank))
    return images if sorted(int(axis) % rank for axis in axes) == list(images) else ()


def _is_image(value: ir.Value | None) -> bool:
    """Whether a value comes from a convolution or a pool."""
    for _ in range(_MOST_STEPS):
        maker = None if value is None else value.producer()
        kind = None if maker is None else standard_op(maker)
        if kind in _IMAGE_MAKERS:
            return True
        if maker is None or kind not in _SEEN_THROUGH:
            return False
        made = [v for v in maker.inputs if v is not None and v.producer() is not None]
        value = next(iter(made), None)
    return False


def _pool(ctx: Context, node: ir.Node, axes: tuple[int, ...]) -> None:
    edit, result = ctx.edit, node.outputs[0]
    made = edit.insert(
        "GlobalAveragePool", [node.inputs[0]], before=node, outputs=[f"{result.name}_pool"]
    )
    pooled = made.outputs[0]
    shape = None if node.inputs[0] is None else node.inputs[0].shape
    dims = None if shape is None else ir.Shape([*shape[:2], *(1 for _ in axes)])
    edit.set_type(pooled, ir.DataType.FLOAT, dims)
    if not attribute(node, "keepdims", 1):
        pooled = _squeezed(ctx, node, pooled, axes)
    old = input_at(node, 1)
    edit.replace(result, pooled)
    edit.remove(node)
    if old is not None and old.is_initializer() and not old.uses() and not is_interface(old):
        edit.drop_initializers([old])
    edit.count("means turned into pools")


def _squeezed(ctx: Context, node: ir.Node, pooled: ir.Value, axes: tuple[int, ...]) -> ir.Value:
    edit, graph = ctx.edit, node.graph
    if graph is None:
        raise ValueError(f"not in a graph: {node.name}")
    inputs, attributes = [pooled], None
    if ctx.model.opset >= _SQUEEZE_AXES_ARE_INPUTS:
        numbers = np.asarray(axes, np.int64)
        inputs.append(edit.initializer(numbers, name=f"{pooled.name}_axes", graph=graph))
    else:
        attributes = {"axes": list(axes)}
    made = edit.insert("Squeeze", inputs, before=node, attributes=attributes, like=node.outputs[0])
    return made.outputs[0]
