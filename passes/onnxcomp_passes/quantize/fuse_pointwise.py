"""Two linear Conv in a row become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import override

from onnxcomp.ir import ir
from onnxcomp.ir.ops import (
    attribute,
    constant,
    input_at,
    is_interface,
    is_op,
    producer_of,
    single_use,
)
from onnxcomp.passbase import Context, Pass

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FLOAT = ir.DataType.FLOAT


class FusePointwise(Pass):
    """Merges a Conv into the pointwise Conv behind it when nothing stands between them.

    The result has a few more products but one tensor less. That tensor is often the one that cannot be
    rounded: a narrow linear bottleneck whose large values cancel out in the next Conv.

        y = Conv1x1(Conv(x, w, b), v, c)     y = Conv(x, v*w, v*b + c)
    """

    name: ClassVar[str] = "fuse-pointwise"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {}

    growth: Annotated[float, Field(ge=1.0)] = 1.6
    """How many times more products the merged Conv may have than both together."""

    @override
    def run(self, ctx: Context) -> None:
        for graph in ctx.model.graphs():
            for node in list(graph):
                while (first := self._partner(node)) is not None:
                    _merge(ctx, first, node)

    def _partner(self, node: ir.Node) -> ir.Node | None:
        """The Conv in front that a pointwise Conv can be merged into."""
        if not is_op(node, "Conv") or not _is_pointwise(node):
            return None
        first = producer_of(node.inputs[0], "Conv")
        if first is None or first.graph is not node.graph or attribute(first, "group", 1) != 1:
            return None
        if single_use(first.outputs[0]) is not node:
            return None
        if attribute(node, "auto_pad", "NOTSET") not in {"NOTSET", "VALID"}:
            return None
        if any(not _is_plain(value) for conv in (first, node) for value in conv.inputs[1:]):
            return None
        before, after = _weight(first), _weight(node)
        merged = after.shape[0] * math.prod(before.shape[1:])
        return first if merged <= self.growth * (before.size + after.size) else None


def _is_pointwise(node: ir.Node) -> bool:
    tensor = constant(node.inputs[1])
    if tensor is None or attribute(node, "group", 1) != 1:
        return False
    spatial = tuple(tensor.shape.numpy())[2:]
    steps, pads = attribute(node, "strides", (1,)), attribute(node, "pads", (0,))
    return all(size == 1 for size in (*spatial, *steps)) and not any(pads)


def _is_plain(value: ir.Value | None) -> bool:
    tensor = constant(value)
    return value is None or (tensor is not None and tensor.dtype == _FLOAT)


def _weight(node: ir.Node) -> NDArray[np.float32]:
    tensor = constant(node.inputs[1])
    if tensor is None:
        raise ValueError(f"no constant weight: {node.name}")
    return tensor.numpy()


def _bias(node: ir.Node) -> NDArray[np.float64]:
    tensor = constant(input_at(node, 2))
    size = _weight(node).shape[0]
    return np.zeros(size) if tensor is None else tensor.numpy().astype(np.float64)


def _merge(ctx: Context, first: ir.Node, second: ir.Node) -> None:
    """Gives the first Conv the products of both weights, and its result to the readers of the second."""
    before = _weight(first).astype(np.float64)
    after = _weight(second).reshape(_weight(second).shape[:2]).astype(np.float64)
    weight = np.tensordot(after, before, axes=1).astype(np.float32)
    bias = (after @ _bias(first) + _bias(second)).astype(np.float32)
    graph, edit = second.graph, ctx.edit
    if graph is None:
        raise ValueError(f"not in a graph: {second.name}")
    name = second.outputs[0].name
    old = [*first.inputs[1:], *second.inputs[1:]]
    for index, array, what in ((1, weight, "weight"), (2, bias, "bias")):
        edit.set_input(second, index, edit.initializer(array, name=f"{name}_{what}", graph=graph))
    for key in list(second.attributes):
        edit.set_attribute(second, key, None)
    for key, attr in first.attributes.items():
        edit.set_attribute(second, key, attr)
    edit.set_input(second, 0, first.inputs[0])
    edit.remove(first)
    unused = (v for v in dict.fromkeys(old) if v is not None and v.is_initializer())
    edit.drop_initializers(v for v in unused if not v.uses() and not is_interface(v))
    edit.count("convolutions merged")
