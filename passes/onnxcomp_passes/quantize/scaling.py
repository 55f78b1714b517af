"""Activations whose channels may be scaled: who takes the division, whose weights take the product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import attribute, constant, is_op
from onnxcomp.quant.absorb import Absorber, find_absorber, fits
from onnxcomp.quant.balance import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, ir

_READERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True, eq=False)
class Link:
    """An activation whose channels may be scaled.

    Attributes:
        value: The activation.
        maker: What takes the division in front of it, None when a Mul has to.
        readers: The nodes whose weights take the product.
        axis: Axis of the channels.
        channels: How many.
    """

    value: ir.Value
    maker: Absorber | None
    readers: tuple[ir.Node, ...]
    axis: int
    channels: int

    @property
    def limit(self) -> float:
        """Where a Clip in between cuts off."""
        return math.inf if self.maker is None else self.maker.limit

    def takes(self, scale: NDArray[np.float32]) -> bool:
        """Whether all weights stay finite; a scale that is too much for half precision is none."""
        if self.maker is not None and not self.maker.takes(scale):
            return False
        return all(fits(node.inputs[1], _along(node, scale)) for node in self.readers)

    def weights(self) -> list[Reader]:
        """Returns the weights that read the activation."""
        return [_reader(node) for node in self.readers]


def find_links(
    graph: ir.Graph, shapes: ShapeMap | None = None, readers: Sequence[str] = _READERS
) -> list[Link]:
    """Returns the activations of a scope that can be scaled, in order.

    Args:
        graph: The scope.
        shapes: What is known of shapes.
        readers: Operators that must read the activation.
    """
    found = []
    for node in graph:
        for value in node.outputs:
            link = _link(graph, value, shapes, readers)
            if link is not None:
                found.append(link)
    return found


def _link(
    graph: ir.Graph, value: ir.Value, shapes: ShapeMap | None, operators: Sequence[str]
) -> Link | None:
    readers = [use.node for use in value.uses()]
    weighted = [
        node
        for node in readers
        if node.graph is graph
        and is_op(node, *operators)
        and node.inputs[0] is value
        and _has_weight(node)
    ]
    if not weighted:
        return None
    channels = {_input_channels(node) for node in weighted}
    kinds = {is_op(node, "MatMul") for node in weighted}
    if len(channels) != 1 or len(kinds) != 1:
        return None
    axis = -1 if kinds == {True} else 1
    size = channels.pop()
    if len(weighted) == len(value.uses()) and not value.is_graph_output():
        behind = len(_shape(weighted[0])) - 2 if is_op(weighted[0], "Conv") else 0
        maker = find_absorber(value, np.arange(size).reshape(-1, *(1,) * behind), shapes)
        if maker is not None:
            return Link(value, maker, tuple(weighted), axis, size)
    return Link(value, None, tuple(weighted), axis, size) if axis == -1 else None


def _has_weight(node: ir.Node) -> bool:
    if attribute(node, "transA", 0):
        return False
    weight = node.inputs[1]
    tensor = constant(weight)
    if tensor is None or weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
        return False
    if weight.is_graph_output():
        return False
    if not is_op(node, "Conv"):
        return len(tensor.shape) == 2
    group = attribute(node, "group", 1)
    return bool(group == 1 or (tensor.shape[1] == 1 and group == tensor.shape[0]))


def _is_depthwise(node: ir.Node) -> bool:
    return is_op(node, "Conv") and attribute(node, "group", 1) != 1


def _input_channels(node: ir.Node) -> int:
    shape = _shape(node)
    return shape[_input_axis(node)]


def _input_axis(node: ir.Node) -> int:
    """The axis of the weight along which the activation's channels lie."""
    if is_op(node, "Conv"):
        return 0 if _is_depthwise(node) else 1
    return 1 if attribute(node, "transB", 0) else 0


def _shape(node: ir.Node) -> tuple[int, ...]:
    tensor = constant(node.inputs[1])
    return () if tensor is None else tuple(tensor.shape.numpy())


def _reader(node: ir.Node) -> Reader:
    tensor = constant(node.inputs[1])
    if tensor is None:
        raise ValueError(f"no constant weight: {node.name}")
    weight = tensor.numpy()
    if is_op(node, "Conv"):
        return Reader(weight.reshape(*weight.shape[:2], -1), _is_depthwise(node))
    if not attribute(node, "transB", 0):
        weight = weight.T
    return Reader(weight[:, :, None])


def apply_scale(edit: Edit, link: Link, scale: NDArray[np.float32]) -> None:
    """Divides an activation by a scale for each channel and multiplies the weights that read it."""
    if link.maker is not None:
        link.maker.divide(edit, scale)
    else:
        _insert_mul(edit, link, scale)
    for node in link.readers:
        weight = node.inputs[1]
        tensor = constant(weight)
        if weight is None or tensor is None:
            continue
        old = tensor.numpy()
        edit.set_tensor(weight, (old * _along(node, scale)).astype(old.dtype))


def _along(node: ir.Node, scale: NDArray[np.float32]) -> NDArray[np.float64]:
    """The scale along the axis of a weight where the activation's channels lie."""
    shape = [1] * len(_shape(node))
    shape[_input_axis(node)] = -1
    return scale.astype(np.float64).reshape(shape)


def _insert_mul(edit: Edit, link: Link, scale: NDArray[np.float32]) -> None:
    graph = link.readers[0].graph
    tensor = constant(link.readers[0].inputs[1])
    if graph is None or tensor is None:
        raise ValueError(f"not in a graph: {link.value.name}")
    inverse = (1.0 / scale.astype(np.float64)).astype(tensor.dtype.numpy())
    made = edit.initializer(inverse, name=f"{link.value.name}_smooth_scale", graph=graph)
    node = edit.insert(
        "Mul",
        [link.value, made],
        before=_first(link.readers, graph),
        outputs=[f"{link.value.name}_smooth"],
        like=link.value,
    )
    for reader in link.readers:
        edit.set_input(reader, 0, node.outputs[0])


def _first(nodes: Sequence[ir.Node], graph: ir.Graph) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in graph if node in wanted)
