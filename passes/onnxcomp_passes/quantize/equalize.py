"""Cross-layer equalization and SmoothQuant."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import PositiveInt
from typing_extensions import override

from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, single_use
from onnxcomp.passbase import Context, NeedsSamples, Pass
from onnxcomp.quant.balance import Reader, best_scale, noise, observe_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Edit, ir

# Operators for which f(x / s) = f(x) / s holds channel by channel.
_HOMOGENEOUS = ("Relu", "Clip", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool")
_MAKERS = ("Conv", "Gemm", "LayerNormalization")
_READERS = ("Conv", "Gemm", "MatMul")
_LEAST_GAIN_DB = 0.5
# A Clip cuts scaled channels off elsewhere for values never seen; that takes a reason.
_LEAST_GAIN_CLIPPED_DB = 1.5


@dataclass(frozen=True, eq=False)
class Link:
    """An activation whose channels may be scaled.

    Attributes:
        value: The activation.
        maker: The node whose weights take the scale, None when a Mul has to.
        readers: The nodes whose weights take the inverse.
        axis: Axis of the channels.
        channels: How many.
        limit: Where a Clip in between cuts off.
    """

    value: ir.Value
    maker: ir.Node | None
    readers: tuple[ir.Node, ...]
    axis: int
    channels: int
    limit: float = math.inf


class Equalize(Pass):
    """Moves range from channels that have much to channels that have little.

    A tensor in int8 has one scale for all its channels; where one channel is a hundred times larger than
    another one, that other one is all noise. Dividing channels by numbers, and multiplying the weights
    that read them, changes nothing in float: through Conv, Relu, pools and depthwise Conv the weights in
    front take the division (cross-layer equalization); elsewhere, where it pays, a Mul does (SmoothQuant).

        Conv(w, b) -> Relu -> Conv(v)     Conv(w/s, b/s) -> Relu -> Conv(v*s)
    """

    name: ClassVar[str] = "equalize"
    needs = (NeedsSamples(),)
    codes: ClassVar[Mapping[str, str]] = {
        "EQL101": "The channels of this activation were scaled; the gain is the expected one.",
    }

    smooth_above_db: float = 3.0
    """Expected gain from which on a Mul is put in where no weight can take the scale; it costs time."""
    smooth_below_db: float = 40.0
    """Expected ratio of signal to noise above which no Mul is put in."""
    samples: PositiveInt = 32
    """How many samples to look at."""

    @override
    def run(self, ctx: Context) -> None:
        links = find_links(ctx.model.graph)
        if not links or ctx.samples is None:
            return
        stats = observe_channels(
            ctx.model,
            {link.value.name or "": link.axis for link in links},
            {link.value.name or "": link.channels for link in links},
            itertools.islice(ctx.samples, self.samples),
            threads=ctx.threads,
            progress=ctx.progress,
        )
        for link in links:
            found = stats[link.value.name or ""]
            readers = [_reader(node) for node in link.readers]
            scale, gain = best_scale(found, readers, limit=link.limit)
            if gain < self._least_gain(link, noise(found, readers, np.ones(link.channels))):
                continue
            apply_scale(ctx.edit, link, scale.astype(np.float32))
            ctx.note("EQL101", link.value, f"channels scaled, expected gain {gain:.1f} dB")
            ctx.edit.count("activations equalized" if link.maker else "activations smoothed")

    def _least_gain(self, link: Link, noise_share: float) -> float:
        if link.maker is not None:
            return _LEAST_GAIN_DB if math.isinf(link.limit) else _LEAST_GAIN_CLIPPED_DB
        if noise_share <= 0.0 or -10.0 * math.log10(noise_share) > self.smooth_below_db:
            return math.inf
        return self.smooth_above_db


def find_links(graph: ir.Graph) -> list[Link]:
    """Returns the activations of a scope that can be scaled, in order."""
    found = []
    for node in graph:
        for value in node.outputs:
            link = _link(graph, value)
            if link is not None:
                found.append(link)
    return found


def _link(graph: ir.Graph, value: ir.Value) -> Link | None:
    readers = [use.node for use in value.uses()]
    weighted = [n for n in readers if n.graph is graph and n.inputs[0] is value and _has_weight(n)]
    if not weighted:
        return None
    channels = {_input_channels(node) for node in weighted}
    kinds = {is_op(node, "MatMul") for node in weighted}
    if len(channels) != 1 or len(kinds) != 1:
        return None
    axis = -1 if kinds == {True} else 1
    size = channels.pop()
    if len(weighted) == len(value.uses()) and not value.is_graph_output():
        maker, limit = _maker(value, axis)
        if maker is not None:
            return Link(value, maker, tuple(weighted), axis, size, limit)
    if axis == -1:
        return Link(value, None, tuple(weighted), axis, size)
    return None


def _has_weight(node: ir.Node) -> bool:
    if not is_op(node, *_READERS) or attribute(node, "transA", 0):
        return False
    weight = node.inputs[1]
    tensor = constant(weight)
    if tensor is None or weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
        return False
    if not is_op(node, "Conv"):
        return len(tensor.shape) == 2
    group = attribute(node, "group", 1)
    return bool(group == 1 or (tensor.shape[1] == 1 and group == tensor.shape[0]))


def _is_depthwise(node: ir.Node) -> bool:
    return is_op(node, "Conv") and attribute(node, "group", 1) != 1


def _input_channels(node: ir.Node) -> int:
    shape = _shape(node)
    if is_op(node, "Conv"):
        return shape[0] if _is_depthwise(node) else shape[1]
    return shape[1] if attribute(node, "transB", 0) else shape[0]


def _shape(node: ir.Node) -> tuple[int, ...]:
    tensor = constant(node.inputs[1])
    return () if tensor is None else tuple(tensor.shape.numpy())


def _maker(value: ir.Value, axis: int) -> tuple[ir.Node | None, float]:
    """The node in front whose weights can take the scale, and the limit of a Clip in between."""
    limit = math.inf
    node = value.producer()
    while node is not None and is_op(node, *_HOMOGENEOUS):
        if axis == -1 and "Pool" in node.op_type:
            return None, limit
        if is_op(node, "Clip"):
            lower, upper = array(input_at(node, 1), limit=1), array(input_at(node, 2), limit=1)
            if lower is None or lower.size != 1 or float(lower.reshape(-1)[0]) != 0.0:
                return None, limit
            if upper is None and input_at(node, 2) is not None:
                return None, limit
            if upper is not None:
                limit = min(limit, float(upper.reshape(-1)[0]))
        source = node.inputs[0]
        if source is None or single_use(source) is not node:
            return None, limit
        node = source.producer()
    if node is None or not _takes_scale(node, axis):
        return None, limit
    return node, limit


def _takes_scale(node: ir.Node, axis: int) -> bool:
    if is_op(node, "LayerNormalization"):
        if axis != -1 or attribute(node, "axis", -1) != -1:
            return False
        return all(_own(value) for value in node.inputs[1:])
    if not is_op(node, "Conv", "Gemm") or axis != 1 or not _own(node.inputs[1]):
        return False
    bias = input_at(node, 2)
    if bias is None:
        return True
    tensor = constant(bias)
    if not _own(bias) or tensor is None or len(tensor.shape) != 1:
        return False
    return bool(tensor.shape[0] == _output_channels(node)) and attribute(node, "beta", 1.0) == 1.0


def _own(value: ir.Value | None) -> bool:
    """Whether a value is an initializer that nothing else reads."""
    if value is None:
        return True
    return value.is_initializer() and constant(value) is not None and len(value.uses()) == 1


def _output_channels(node: ir.Node) -> int:
    shape = _shape(node)
    return shape[0] if is_op(node, "Conv") or attribute(node, "transB", 0) else shape[1]


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
        _divide_maker(edit, link.maker, scale)
    else:
        _insert_mul(edit, link, scale)
    for node in link.readers:
        if _is_depthwise(node):
            axis = 0
        elif is_op(node, "Conv"):
            axis = 1
        else:
            axis = 1 if attribute(node, "transB", 0) else 0
        _multiply(edit, node.inputs[1], scale, axis)


def _divide_maker(edit: Edit, node: ir.Node, scale: NDArray[np.float32]) -> None:
    inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
    if is_op(node, "LayerNormalization"):
        for value in node.inputs[1:]:
            _multiply(edit, value, inverse, 0)
        return
    axis = 0 if is_op(node, "Conv") or attribute(node, "transB", 0) else 1
    _multiply(edit, node.inputs[1], inverse, axis)
    _multiply(edit, input_at(node, 2), inverse, 0)


def _multiply(edit: Edit, value: ir.Value | None, scale: NDArray[np.float32], axis: int) -> None:
    tensor = constant(value)
    if value is None or tensor is None:
        return
    old = tensor.numpy()
    shape = [1] * old.ndim
    shape[axis] = -1
    edit.set_tensor(value, (old * scale.reshape(shape)).astype(np.float32))


def _insert_mul(edit: Edit, link: Link, scale: NDArray[np.float32]) -> None:
    graph = link.readers[0].graph
    if graph is None:
        raise ValueError(f"not in a graph: {link.value.name}")
    inverse = (1.0 / scale.astype(np.float64)).astype(np.float32)
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
