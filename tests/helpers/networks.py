"""Random networks of many kinds of layers: images [2, channels, 4, 4] and rows [2, 16, channels]."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIDE = 4
SIZES = (4, 6, 8, 12)


@dataclass
class Network:
    """A graph that grows layer by layer.

    Attributes:
        images: Values of shape [2, channels, 4, 4], with their channels.
        rows: Values of shape [2, 16, channels].
    """

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    images: list[tuple[str, int]] = field(default_factory=lambda: [("x", 3)])
    rows: list[tuple[str, int]] = field(default_factory=list)

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one result; returns its name."""
        return self.nodes_of(op, inputs, 1, **attributes)[0]

    def nodes_of(self, op: str, inputs: Sequence[str], count: int, **attributes: Any) -> list[str]:
        """Adds a node with several results."""
        outputs = [f"t{len(self.nodes)}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), outputs, **attributes))
        return outputs

    def weight(self, *shape: int, positive: bool = False) -> str:
        """Adds random numbers."""
        found = self.rng.normal(size=shape) / max(prod(shape[1:]), 1) ** 0.5
        return self.constant((np.abs(found) + 0.5 if positive else found).astype(np.float32))

    def constant(self, array: Any) -> str:
        """Adds numbers; Python ones as int64."""
        name = f"w{len(self.weights)}"
        kind = array if isinstance(array, np.ndarray) else np.asarray(array, np.int64)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(kind), name))
        return name

    def image(self) -> tuple[str, int]:
        """Returns one of the images made so far, a late one more often."""
        return self.images[-1 - int(self.rng.integers(min(3, len(self.images))))]

    def row(self) -> tuple[str, int]:
        """Returns one of the rows, made of an image if there is none."""
        if not self.rows:
            to_rows(self)
        return self.rows[-1 - int(self.rng.integers(min(3, len(self.rows))))]

    def like(self, others: Sequence[tuple[str, int]], channels: int) -> str:
        """Returns a value with as many channels."""
        found = [name for name, size in others if size == channels]
        return found[int(self.rng.integers(len(found)))]

    def size(self) -> int:
        """Returns a number of channels."""
        return int(self.rng.choice(SIZES))

    def model(self) -> onnx.ModelProto:
        """Returns the model: what nobody reads is read by a last layer each."""
        read = {name for node in self.nodes for name in node.input}
        outputs = []
        for values, rank in ((self.images, 4), (self.rows, 3)):
            for name, channels in values:
                if name in read or name == "x":
                    continue
                if rank == 4:
                    made = self.node("Conv", name, self.weight(2, channels, 1, 1))
                else:
                    made = self.node("MatMul", name, self.weight(channels, 2))
                outputs.append(
                    helper.make_tensor_value_info(made, TensorProto.FLOAT, [None] * rank)
                )
        source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, SIDE, SIDE])
        graph = helper.make_graph(self.nodes, "drawn", [source], outputs, self.weights)
        imports = [helper.make_opsetid("", 21)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def conv(net: Network) -> None:
    source, channels = net.image()
    made, kernel = net.size(), int(net.rng.choice((1, 3)))
    bias = [net.weight(made)] if net.rng.random() < 0.5 else []
    weight = net.weight(made, channels, kernel, kernel)
    name = net.node("Conv", source, weight, *bias, pads=[kernel // 2] * 4)
    net.images.append((net.node("Relu", name) if net.rng.random() < 0.5 else name, made))


def grouped(net: Network) -> None:
    source, channels = net.image()
    group = next(count for count in (4, 3, 2, 1) if channels % count == 0)
    if net.rng.random() < 0.4:
        group = channels
    weight = net.weight(group * 2, channels // group, 1, 1)
    net.images.append((net.node("Conv", source, weight, group=group), group * 2))


def transposed(net: Network) -> None:
    source, channels = net.image()
    group = 2 if channels % 2 == 0 and net.rng.random() < 0.5 else 1
    weight = net.weight(channels, 4, 3, 3)
    net.images.append(
        (net.node("ConvTranspose", source, weight, group=group, pads=[1] * 4), 4 * group)
    )


def normalized(net: Network) -> None:
    source, channels = net.image()
    scale, bias = net.weight(channels), net.weight(channels)
    kind = net.rng.integers(4)
    if kind == 0:
        rest = (net.weight(channels), net.weight(channels, positive=True))
        name = net.node("BatchNormalization", source, scale, bias, *rest)
    elif kind == 1:
        name = net.node("InstanceNormalization", source, scale, bias)
    elif kind == 2:
        groups = 2 if channels % 2 == 0 else 1
        name = net.node("GroupNormalization", source, scale, bias, num_groups=groups)
    else:
        name = net.node("Softmax", source, axis=1)
    net.images.append((name, channels))


def added(net: Network) -> None:
    source, channels = net.image()
    other = net.like(net.images, channels)
    net.images.append(
        (net.node(str(net.rng.choice(["Add", "Mul", "Max"])), source, other), channels)
    )


def excited(net: Network) -> None:
    source, channels = net.image()
    mean = net.node("GlobalAveragePool", source)
    inner = net.node("Relu", net.node("Conv", mean, net.weight(4, channels, 1, 1)))
    gate = net.node("Sigmoid", net.node("Conv", inner, net.weight(channels, 4, 1, 1)))
    net.images.append((net.node("Mul", source, gate), channels))


def joined(net: Network) -> None:
    (one, first), (two, second) = net.image(), net.image()
    if first + second <= 24:
        net.images.append((net.node("Concat", one, two, axis=1), first + second))


def divided(net: Network) -> None:
    source, channels = net.image()
    if channels < 2:
        return
    cut = int(net.rng.integers(1, channels))
    sizes = net.constant([cut, channels - cut])
    first, second = net.nodes_of("Split", [source, sizes], 2, axis=1)
    net.images += [(first, cut), (second, channels - cut)]


def sliced(net: Network) -> None:
    source, channels = net.image()
    step = int(net.rng.choice((-2, -1, 2)))
    if channels == 1:
        step = -1  # from the second one on there is none
    start, end = (channels, -channels - 1) if step < 0 else (1, channels)
    bounds = [net.constant([number]) for number in (start, end, 1, step)]
    count = len(range(channels)[start : None if step < 0 else end : step])
    net.images.append((net.node("Slice", source, *bounds), count))


def picked(net: Network) -> None:
    source, channels = net.image()
    indices = net.rng.integers(-channels, channels, int(net.rng.integers(2, channels + 2)))
    net.images.append((net.node("Gather", source, net.constant(indices), axis=1), len(indices)))


def shuffled(net: Network) -> None:
    source, channels = net.image()
    if channels % 2:
        return
    apart = net.node("Reshape", source, net.constant([0, 2, -1, SIDE, SIDE]))
    turned = net.node("Transpose", apart, perm=[0, 2, 1, 3, 4])
    net.images.append((net.node("Reshape", turned, net.constant([2, -1, SIDE, SIDE])), channels))


def padded(net: Network) -> None:
    source, channels = net.image()
    before, after = (int(number) for number in net.rng.integers(0, 3, 2))
    pads = net.constant([0, before, 0, 0, 0, after, 0, 0])
    net.images.append((net.node("Pad", source, pads), channels + before + after))


def pooled(net: Network) -> None:
    source, channels = net.image()
    op = str(net.rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    name = net.node(op, source, kernel_shape=[3, 3], pads=[1] * 4)
    net.images.append((name, channels))


def spread(net: Network) -> None:
    """The mean over space, spread over space again by what its size was."""
    source, channels = net.image()
    mean = net.node("ReduceMean", source, net.constant([2, 3]), keepdims=1)
    net.images.append((net.node("Expand", mean, net.node("Shape", source)), channels))


def blocks(net: Network) -> None:
    source, channels = net.image()
    if channels % 4 == 0 and channels > 4:
        mode = str(net.rng.choice(["DCR", "CRD"]))
        large = net.node("DepthToSpace", source, blocksize=2, mode=mode)
        name = net.node("MaxPool", large, kernel_shape=[2, 2], strides=[2, 2])
        net.images.append((name, channels // 4))
    else:
        up = net.node("Resize", source, "", net.constant(np.array([1, 1, 2, 2], np.float32)))
        net.images.append((net.node("SpaceToDepth", up, blocksize=2), channels * 4))


def activated(net: Network) -> None:
    source, channels = net.image()
    if net.rng.random() < 0.5:
        net.images.append((net.node("PRelu", source, net.weight(channels, 1, 1)), channels))
        return
    quantized = net.node("Clip", net.node("Abs", source))
    net.images.append(
        (
            net.node(
                "Where", net.node("Not", net.node("Cast", quantized, to=9)), source, quantized
            ),
            channels,
        )
    )


def rounded(net: Network) -> None:
    """Quantized and back, with a scale for each channel; then a layer with quantized weights."""
    source, channels = net.image()
    scale = net.constant(np.full(channels, 0.05, np.float32))
    zero = net.constant(np.full(channels, 100, np.uint8))
    codes = net.node("QuantizeLinear", source, scale, zero, axis=1)
    real = net.node("DequantizeLinear", codes, scale, zero, axis=1)
    made = net.size()
    weight = net.constant(net.rng.integers(-9, 9, (made, channels, 1, 1)).astype(np.int8))
    scales = net.constant(np.full(made, 0.1, np.float32))
    filters = net.node("DequantizeLinear", weight, scales, axis=0)
    net.images.append((net.node("Conv", real, filters), made))


def branched(net: Network) -> None:
    source, channels = net.image()
    yes = net.constant(np.asarray(bool(net.rng.integers(2))))
    bodies = []
    for op in ("Relu", "Neg"):
        name = f"b{len(net.nodes)}{op}"
        node = helper.make_node(op, [source], [name])
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph([node], op, [], [out]))
    name = net.node("If", yes, then_branch=bodies[0], else_branch=bodies[1])
    net.images.append((name, channels))


def to_rows(net: Network) -> None:
    source, channels = net.image()
    flat = net.node("Reshape", source, net.constant([0, 0, -1]))
    net.rows.append((net.node("Transpose", flat, perm=[0, 2, 1]), channels))


def to_image(net: Network) -> None:
    source, channels = net.row()
    turned = net.node("Transpose", source, perm=[0, 2, 1])
    apart = net.node("Reshape", turned, net.constant([0, channels, SIDE, -1]))
    net.images.append((apart, channels))


def product(net: Network) -> None:
    source, channels = net.row()
    made = net.size()
    if net.rng.random() < 0.3:
        turned = net.node("Transpose", net.weight(made, channels), perm=[1, 0])
        name = net.node("MatMul", source, turned)
    elif net.rng.random() < 0.3:
        name = net.node("Einsum", source, net.weight(channels, made), equation="abc,cd->abd")
    else:
        name = net.node("MatMul", source, net.weight(channels, made))
    net.rows.append((net.node("Add", name, net.weight(made)), made))


def layered(net: Network) -> None:
    source, channels = net.row()
    net.rows.append((net.node("LayerNormalization", source, net.weight(channels)), channels))


def summed(net: Network) -> None:
    source, channels = net.row()
    net.rows.append((net.node("Add", source, net.like(net.rows, channels)), channels))


def attended(net: Network) -> None:
    """Attention as exporters write it, with two heads."""
    source, channels = net.row()
    inside = int(net.rng.choice((2, 4)))
    parts = []
    for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        name = net.node("MatMul", source, net.weight(channels, 2 * inside))
        apart = net.node("Reshape", name, net.constant([0, -1, 2, inside]))
        parts.append(net.node("Transpose", apart, perm=order))
    weights = net.node("Softmax", net.node("MatMul", parts[0], parts[1]))
    mixed = net.node("Transpose", net.node("MatMul", weights, parts[2]), perm=[0, 2, 1, 3])
    net.rows.append((net.node("Reshape", mixed, net.constant([0, 0, 2 * inside])), 2 * inside))


def recurrent(net: Network) -> None:
    source, channels = net.row()
    op, gates = (("LSTM", 4), ("GRU", 3), ("RNN", 1))[int(net.rng.integers(3))]
    ways, hidden = int(net.rng.choice((1, 2))), 4
    steps = net.node("Transpose", source, perm=[1, 0, 2])
    weights = (
        net.weight(ways, gates * hidden, channels),
        net.weight(ways, gates * hidden, hidden),
        net.weight(ways, 2 * gates * hidden),
    )
    direction = "bidirectional" if ways == 2 else "reverse"
    name = net.node(op, steps, *weights, hidden_size=hidden, direction=direction)
    turned = net.node("Transpose", name, perm=[2, 0, 1, 3])
    net.rows.append((net.node("Reshape", turned, net.constant([0, 0, -1])), ways * hidden))


STEPS: dict[str, Callable[[Network], None]] = {
    step.__name__: step
    for step in (
        conv,
        grouped,
        transposed,
        normalized,
        added,
        excited,
        joined,
        divided,
        sliced,
        picked,
        shuffled,
        padded,
        pooled,
        spread,
        blocks,
        activated,
        rounded,
        branched,
        to_rows,
        to_image,
        product,
        layered,
        summed,
        attended,
        recurrent,
    )
}


def drawn(steps: Sequence[str], seed: int) -> onnx.ModelProto:
    """Returns a network of these layers, with all else drawn from a seed."""
    net = Network(np.random.default_rng(seed))
    conv(net)
    for step in steps:
        STEPS[step](net)
    return net.model()
