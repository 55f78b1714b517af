"""Graphs as exporters write them, made from a seed: what an optimizer should clean up.

Each function returns a model in the state in which its framework's exporter leaves it: Transposes around
every convolution (TensorFlow keeps channels last), chains of Shape, Gather, Concat and Reshape (torch),
heads split and merged by hand, arithmetic that a preprocessor left in the graph.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
TO_NCHW, TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
FAR = np.iinfo(np.int64).max


class Graph:
    """Grows a model: one call per node, constants as arrays."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def __call__(self, op_type: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of names."""
        names = [self.name(item) for item in inputs]
        made = [f"{op_type}_{len(self.nodes)}_{number}" for number in range(outputs)]
        self.nodes.append(helper.make_node(op_type, names, made, name=made[0], **attributes))
        return made[0] if outputs == 1 else made

    def name(self, item: Any) -> str:
        """The name of a value; an array becomes an initializer."""
        if isinstance(item, str):
            return item
        array = np.asarray(item)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> np.ndarray[Any, Any]:
        """Numbers that keep activations at their size."""
        spread = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.1
        return (self.random.standard_normal(shape) * spread).astype(np.float32)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        outputs: Sequence[str],
        kinds: dict[str, int] | None = None,
        opset: int = OPSET,
    ) -> onnx.ModelProto:
        """The finished model."""
        kinds = kinds or {}
        graph = helper.make_graph(
            self.nodes,
            "exported",
            [
                helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
                for name, shape in inputs.items()
            ],
            [
                helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None)
                for name in outputs
            ],
            self.weights,
        )
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=8)
        model = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(model)
        return model


# ---------------------------------------------------------------- TensorFlow, channels last


def _nhwc_conv(g: Graph, x: str, ins: int, outs: int, kernel: int = 3, **attributes: Any) -> str:
    """What a TensorFlow converter writes for Conv2D and BiasAdd."""
    pads = attributes.pop("pads", [kernel // 2] * 4)
    weight: Any = g.weight(outs, ins // attributes.get("group", 1), kernel, kernel)
    if attributes.pop("quantized", False):
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        rounded = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        weight = g("DequantizeLinear", rounded, scale, np.zeros(outs, np.int8), axis=0)
    turned = g("Transpose", x, perm=TO_NCHW)
    y = g("Conv", turned, weight, pads=pads, kernel_shape=[kernel] * 2, **attributes)
    return str(g("Add", g("Transpose", y, perm=TO_NHWC), g.weight(outs)))


def _nhwc_batchnorm(g: Graph, x: str, channels: int) -> str:
    """An inference batch normalization that was taken apart."""
    scaled = g("Mul", x, 1 + 0.1 * g.weight(channels))
    return str(g("Add", scaled, g.weight(channels)))


def tf_convnet() -> onnx.ModelProto:
    """Convolutions, normalization, Relu6, residuals, pooling, a dense layer over all places."""
    g = Graph(1)
    x = _nhwc_conv(g, "image", 3, 16, strides=[2, 2])
    for _ in range(3):
        y = _nhwc_conv(g, x, 16, 32, 1)
        y = g("Clip", _nhwc_batchnorm(g, y, 32), np.float32(0), np.float32(6))
        y = g("Pad", y, [0, 1, 1, 0, 0, 1, 1, 0])
        y = _nhwc_conv(g, y, 32, 32, 3, group=32, pads=[0] * 4)
        y = g("Clip", _nhwc_batchnorm(g, y, 32), np.float32(0), np.float32(6))
        x = g("Add", x, _nhwc_batchnorm(g, _nhwc_conv(g, y, 32, 16, 1), 16))
    pooled = g("MaxPool", g("Transpose", x, perm=TO_NCHW), kernel_shape=[2, 2], strides=[2, 2])
    x = g("Relu", g("Transpose", pooled, perm=TO_NHWC))
    flat = g("Reshape", x, [-1, 16 * 16 * 16])
    x = g("Relu", g("Add", g("MatMul", flat, g.weight(4096, 32)), g.weight(32)))
    y = g("Softmax", g("Add", g("MatMul", x, g.weight(32, 10)), g.weight(10)), axis=-1)
    return g.model({"image": ["N", 64, 64, 3]}, [y])


def tf_squeeze_excite() -> onnx.ModelProto:
    """Blocks that scale channels by what a small network makes of their means."""
    g = Graph(2)
    x = _nhwc_conv(g, "image", 3, 24, strides=[2, 2])
    for _ in range(3):
        y = _nhwc_conv(g, x, 24, 24, 3, group=24)
        y = g("Mul", y, g("Sigmoid", y))
        mean = g("ReduceMean", y, axes=[1, 2], keepdims=0)
        mean = g("Reshape", mean, [-1, 1, 1, 24])
        s = _nhwc_conv(g, mean, 24, 6, 1)
        s = _nhwc_conv(g, g("Mul", s, g("Sigmoid", s)), 6, 24, 1)
        y = g("Mul", g("Sigmoid", s), y)
        x = g("Add", x, _nhwc_conv(g, y, 24, 24, 1))
    y = g("ReduceMean", x, axes=[1, 2], keepdims=0)
    y = g("Softmax", g("Add", g("MatMul", y, g.weight(24, 10)), g.weight(10)), axis=-1)
    return g.model({"image": [1, 64, 64, 3]}, [y])


def tf_unet() -> onnx.ModelProto:
    """Down and up again with Resize and Concat of what was there before."""
    g = Graph(3)
    x = g("Relu", _nhwc_conv(g, "image", 3, 8))
    kept = []
    for size in (8, 16):
        kept.append(x)
        pooled = g("MaxPool", g("Transpose", x, perm=TO_NCHW), kernel_shape=[2, 2], strides=[2, 2])
        x = g("Relu", _nhwc_conv(g, g("Transpose", pooled, perm=TO_NHWC), size, 2 * size))
    for size in (32, 16):
        turned = g("Transpose", x, perm=TO_NCHW)
        mode: dict[str, Any] = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        wide = g("Resize", turned, "", [1.0, 1.0, 2.0, 2.0], **mode)
        joined = g("Concat", g("Transpose", wide, perm=TO_NHWC), kept.pop(), axis=3)
        x = _nhwc_conv(g, joined, size + size // 2, size // 2)
        x = g("Max", g("Mul", x, np.float32(0.2)), x)
    y = g("Sigmoid", _nhwc_conv(g, x, 8, 1, 1))
    return g.model({"image": [1, 64, 64, 3]}, [y])


def tf_detector() -> onnx.ModelProto:
    """Heads at three scales, each made a list of boxes and scores, and decoded."""
    g = Graph(4)
    x = g("Sub", g("Div", g("Cast", "image", to=1), np.float32(127.5)), np.float32(1))
    boxes, scores = [], []
    for size, channels in ((32, 16), (16, 32), (8, 64)):
        before = 3 if size == 32 else channels // 2
        x = g("Relu", _nhwc_conv(g, x, before, channels, strides=[2, 2]))
        box = _nhwc_conv(g, x, channels, 12)
        boxes.append(g("Reshape", box, [-1, size * size * 3, 4]))
        score = _nhwc_conv(g, x, channels, 15)
        scores.append(g("Sigmoid", g("Reshape", score, [-1, size * size * 3, 5])))
    box = g("Concat", *boxes, axis=1)
    center = g("Slice", box, [0], [2], [2])
    extent = g("Slice", box, [2], [4], [2])
    center = g("Mul", g("Add", center, np.float32(0.5)), np.float32(64))
    half = g("Mul", g("Div", g("Exp", extent), np.float32(2)), np.float32(64))
    corners = g("Concat", g("Sub", center, half), g("Add", center, half), axis=2)
    return g.model(
        {"image": ["N", 64, 64, 3]},
        [corners, g("Concat", *scores, axis=1)],
        {"image": TensorProto.UINT8},
    )


def tf_quantized() -> onnx.ModelProto:
    """A convolutional network with quantized activations and weights, channels last."""
    g = Graph(5)

    def fake(x: str, scale: float) -> str:
        low = g("QuantizeLinear", x, np.float32(scale), np.int8(3))
        return str(g("DequantizeLinear", low, np.float32(scale), np.int8(3)))

    x = fake("image", 0.02)
    for ins, outs in ((3, 16), (16, 16), (16, 16)):
        # No sums: onnxruntime rounds quantized ones in another way depending on what is around them.
        x = fake(g("Relu", _nhwc_conv(g, x, ins, outs, quantized=True)), 0.03)
    y = g("ReduceMean", x, axes=[1, 2], keepdims=1)
    return g.model({"image": [1, 32, 32, 3]}, [g("Reshape", y, [-1, 16])])


# ---------------------------------------------------------------- torch


def _size(g: Graph, x: str, axis: int) -> str:
    """`x.size(axis)`, as a vector of one number."""
    number = g("Gather", g("Shape", x), np.int64(axis), axis=0)
    return str(g("Unsqueeze", number, [0]))


def _norm(g: Graph, x: str, width: int) -> str:
    """Layer normalization as exporters wrote it before there was an operator."""
    centered = g("Sub", x, g("ReduceMean", x, axes=[-1]))
    spread = g("ReduceMean", g("Pow", centered, np.float32(2)), axes=[-1])
    y = g("Div", centered, g("Sqrt", g("Add", spread, np.float32(1e-5))))
    return str(g("Add", g("Mul", y, 1 + 0.1 * g.weight(width)), g.weight(width)))


def _dense(g: Graph, x: str, ins: int, outs: int) -> str:
    return str(g("Add", g("MatMul", x, g.weight(ins, outs)), g.weight(outs)))


def _gelu(g: Graph, x: str) -> str:
    y = g("Add", g("Erf", g("Div", x, np.float32(2**0.5))), np.float32(1))
    return str(g("Mul", g("Mul", x, y), np.float32(0.5)))


def torch_vit() -> onnx.ModelProto:
    """Patches, a token in front, blocks with one product for query, key and value."""
    g = Graph(6)
    width, heads = 64, 4
    x = g("Conv", "image", g.weight(width, 3, 8, 8), g.weight(width), strides=[8, 8])
    target = g("Concat", _size(g, x, 0), _size(g, x, 1), [-1], axis=0)
    x = g("Transpose", g("Reshape", x, target), perm=[0, 2, 1])
    shape = g("Concat", _size(g, x, 0), [-1], [-1], axis=0)
    ones = g("ConstantOfShape", [3], value=numpy_helper.from_array(np.array([1], np.int64)))
    chosen = g("Where", g("Equal", shape, g("Mul", ones, np.int64(-1))), ones, shape)
    token = g("Expand", g.weight(1, 1, width), chosen)
    x = g("Add", g("Concat", token, x, axis=1), g.weight(1, 17, width))
    for _ in range(2):
        y = _dense(g, _norm(g, x, width), width, 3 * width)
        batch, length = _size(g, y, 0), _size(g, y, 1)
        split = g("Concat", batch, length, [3], [heads], [width // heads], axis=0)
        y = g("Transpose", g("Reshape", y, split), perm=[2, 0, 3, 1, 4])
        query, key, value = (g("Gather", y, np.int64(part), axis=0) for part in range(3))
        scores = g("MatMul", query, g("Transpose", key, perm=[0, 1, 3, 2]))
        scores = g("Softmax", g("Mul", scores, np.float32((width // heads) ** -0.5)), axis=-1)
        y = g("Transpose", g("MatMul", scores, value), perm=[0, 2, 1, 3])
        y = g("Reshape", y, g("Concat", batch, length, [width], axis=0))
        x = g("Add", x, _dense(g, y, width, width))
        y = _gelu(g, _dense(g, _norm(g, x, width), width, 2 * width))
        x = g("Add", x, _dense(g, y, 2 * width, width))
    first = g("Gather", _norm(g, x, width), np.int64(0), axis=1)
    y = g("Gemm", first, g.weight(10, width), g.weight(10), transB=1)
    return g.model({"image": ["batch", 3, 32, 32]}, [y])


def torch_attention_chunks() -> onnx.ModelProto:
    """Query, key and value by Slice; a mask that is widened by hand; heads by view and transpose."""
    g = Graph(7)
    width, heads = 64, 4
    mask = g("Cast", g("Unsqueeze", g("Unsqueeze", "mask", [1]), [2]), to=1)
    mask = g("Mul", g("Sub", np.float32(1), mask), np.float32(-10000))
    x = "tokens"
    for _ in range(2):
        y = _dense(g, x, width, 3 * width)
        parts = [g("Slice", y, [n * width], [(n + 1) * width], [2], [1]) for n in range(3)]
        shape = g("Concat", _size(g, x, 0), _size(g, x, 1), [heads], [width // heads], axis=0)
        turned = [g("Transpose", g("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts]
        scores = g("MatMul", turned[0], g("Transpose", turned[1], perm=[0, 1, 3, 2]))
        scores = g("Add", g("Div", scores, np.float32(4)), mask)
        y = g("MatMul", g("Softmax", scores, axis=3), turned[2])
        y = g("Transpose", y, perm=[0, 2, 1, 3])
        joined = g("Concat", _size(g, y, 0), _size(g, y, 1), [width], axis=0)
        x = _norm(g, g("Add", x, _dense(g, g("Reshape", y, joined), width, width)), width)
    return g.model(
        {"tokens": ["batch", "length", width], "mask": ["batch", "length"]},
        [x],
        {"mask": TensorProto.INT64},
    )


def torch_swin() -> onnx.ModelProto:
    """Windows of a picture, shifted by rolling, cut out and put together again."""
    g = Graph(8)
    x = "tokens"
    for shift in (0, 2):
        y = _norm(g, x, 16)
        if shift:
            for axis in (1, 2):
                front = g("Slice", y, [shift], [FAR], [axis])
                y = g("Concat", front, g("Slice", y, [0], [shift], [axis]), axis=axis)
        y = g("Reshape", y, [-1, 4, 4, 4, 4, 16])
        y = g("Reshape", g("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), [-1, 4, 4, 16])
        y = g("Reshape", y, [-1, 16, 16])
        y = _dense(
            g, g("Softmax", g("MatMul", y, g("Transpose", y, perm=[0, 2, 1])), axis=-1), 16, 16
        )
        y = g("Reshape", g("Reshape", y, [-1, 4, 4, 16]), [-1, 4, 4, 4, 4, 16])
        y = g("Reshape", g("Transpose", y, perm=[0, 1, 3, 2, 4, 5]), [-1, 16, 16, 16])
        if shift:
            for axis in (1, 2):
                back = g("Slice", y, [-shift], [FAR], [axis])
                y = g("Concat", back, g("Slice", y, [0], [-shift], [axis]), axis=axis)
        x = g("Add", x, y)
    return g.model({"tokens": [1, 16, 16, 16]}, [x])


def torch_shuffles() -> onnx.ModelProto:
    """Channel shuffle and pixel shuffle, written as views, with branches split and joined."""
    g = Graph(9)
    x = g("Relu", g("Conv", "image", g.weight(16, 3, 3, 3), g.weight(16), pads=[1] * 4))
    for _ in range(2):
        left, right = g("Split", x, [8, 8], axis=1, outputs=2)
        right = g("Relu", g("Conv", right, g.weight(8, 8, 1, 1), g.weight(8)))
        x = g("Concat", left, right, axis=1)
        batch, height, width = _size(g, x, 0), _size(g, x, 2), _size(g, x, 3)
        grouped = g("Reshape", x, g("Concat", batch, [2], [8], height, width, axis=0))
        turned = g("Transpose", grouped, perm=[0, 2, 1, 3, 4])
        x = g("Reshape", turned, g("Concat", batch, [-1], height, width, axis=0))
    wide = g("Reshape", x, [1, 4, 2, 2, 32, 32])
    y = g("Reshape", g("Transpose", wide, perm=[0, 1, 4, 2, 5, 3]), [1, 4, 64, 64])
    return g.model({"image": [1, 3, 32, 32]}, [g("Tanh", y)])


def torch_focus() -> onnx.ModelProto:
    """A YOLO stem and head: strided slices, concatenations of halves, decoding by hand."""
    g = Graph(10)
    parts = []
    for row, column in ((0, 0), (1, 0), (0, 1), (1, 1)):
        rows = g("Slice", "image", [row], [FAR], [2], [2])
        parts.append(g("Slice", rows, [column], [FAR], [3], [2]))
    x = g("Conv", g("Concat", *parts, axis=1), g.weight(16, 12, 3, 3), g.weight(16), pads=[1] * 4)
    x = g("Mul", x, g("Sigmoid", x))
    one = g("Conv", x, g.weight(8, 16, 1, 1), g.weight(8))
    two = g("Conv", x, g.weight(8, 16, 1, 1), g.weight(8))
    x = g("Concat", g("Mul", one, g("Sigmoid", one)), g("Mul", two, g("Sigmoid", two)), axis=1)
    y = g("Conv", x, g.weight(21, 16, 1, 1), g.weight(21))
    y = g("Reshape", y, [1, 3, 7, 16, 16])
    y = g("Sigmoid", g("Transpose", y, perm=[0, 1, 3, 4, 2]))
    place = g("Slice", y, [0], [2], [4], [1])
    extent = g("Slice", y, [2], [4], [4], [1])
    rest = g("Slice", y, [4], [FAR], [4], [1])
    grid = g.weight(1, 1, 16, 16, 2)
    place = g(
        "Mul",
        g("Add", g("Sub", g("Mul", place, np.float32(2)), np.float32(0.5)), grid),
        np.float32(8),
    )
    extent = g(
        "Mul", g("Pow", g("Mul", extent, np.float32(2)), np.float32(2)), g.weight(1, 3, 1, 1, 2)
    )
    y = g("Concat", place, extent, rest, axis=4)
    return g.model({"image": [1, 3, 32, 32]}, [g("Reshape", y, [1, -1, 7])])


def torch_lstm_steps() -> onnx.ModelProto:
    """An LSTM cell, unrolled over eight steps: gates by Split, steps by Gather, joined at the end."""
    g = Graph(11)
    width = 32
    hidden: Any = np.zeros((1, width), np.float32)
    cell: Any = np.zeros((1, width), np.float32)
    w, r, b = g.weight(4 * width, 16), g.weight(4 * width, width), g.weight(4 * width)
    names = [g.name(item) for item in (w, r, b)]
    steps = []
    for step in range(8):
        x = g("Gather", "sequence", np.int64(step), axis=1)
        gates = g("Gemm", x, names[0], names[2], transB=1)
        gates = g("Add", gates, g("Gemm", hidden, names[1], transB=1))
        i, f, c, o = g("Split", gates, [width] * 4, axis=1, outputs=4)
        cell = g("Add", g("Mul", g("Sigmoid", f), cell), g("Mul", g("Sigmoid", i), g("Tanh", c)))
        hidden = g("Mul", g("Sigmoid", o), g("Tanh", cell))
        steps.append(g("Unsqueeze", hidden, [1]))
    return g.model({"sequence": [1, 8, 16]}, [g("Concat", *steps, axis=1)])


# ---------------------------------------------------------------- what stands around a model


def preprocessing() -> onnx.ModelProto:
    """A picture of bytes made what a network wants, and what it says made what a user wants."""
    g = Graph(12)
    x = g("Cast", g("Cast", "image", to=TensorProto.INT32), to=TensorProto.FLOAT)
    x = g("Div", x, np.float32(255))
    x = g("Sub", x, np.array([0.485, 0.456, 0.406], np.float32))
    x = g("Div", x, np.array([0.229, 0.224, 0.225], np.float32))
    x = g("Transpose", g("Unsqueeze", x, [0]), perm=TO_NCHW)
    x = g("Relu", g("Conv", x, g.weight(8, 3, 3, 3), g.weight(8), strides=[2, 2]))
    x = g("Clip", g("Min", g("Max", x, np.float32(0)), np.float32(6)), np.float32(0), np.float32(5))
    x = g("Mul", g("Mul", x, np.float32(0.5)), np.float32(4))
    x = g("Add", g("Add", x, np.float32(1)), np.float32(2))
    mean = g("ReduceMean", g("ReduceMean", x, axes=[3], keepdims=1), axes=[2], keepdims=1)
    flat = g("Squeeze", g("Squeeze", mean, [3]), [2])
    y = g("Gemm", flat, g.weight(10, 8), g.weight(10), transB=1)
    y = g("Mul", g("Softmax", y, axis=1), np.float32(100))
    top, places = g("TopK", y, [3], axis=1, outputs=2)
    first = g("Cast", g("Cast", places, to=TensorProto.INT64), to=TensorProto.INT32)
    kinds: dict[str, int] = {"image": TensorProto.UINT8, first: TensorProto.INT32}
    return g.model({"image": [32, 32, 3]}, [g("Div", top, np.float32(100)), first], kinds)


def movement() -> onnx.ModelProto:
    """Pieces cut out, put together, widened and turned: nothing but movement, much of it for nothing."""
    g = Graph(13)
    x = g("Concat", *(g("Slice", "x", [n * 4], [n * 4 + 4], [1]) for n in range(4)), axis=1)
    a, b, c, d = g("Split", x, [4] * 4, axis=1, outputs=4)
    x = g("Concat", g("Concat", a, b, axis=1), g("Relu", g("Concat", c, d, axis=1)), axis=1)
    left, right = g("Split", x, [8, 8], axis=1, outputs=2)
    x = g("Add", left, g("Expand", g.weight(1, 8, 1), [1, 8, 24]))
    x = g("Slice", g("Slice", x, [2], [FAR], [2]), [0], [20], [2])
    x = g("Reshape", g("Transpose", g("Reshape", x, [1, 8, 1, 20]), perm=[0, 2, 1, 3]), [1, 8, 20])
    x = g("Mul", x, g("Tile", g.weight(8, 1), [1, 20]))
    x = g("Pad", g("Pad", x, [0, 0, 1, 0, 0, 1]), [0, 1, 0, 0, 1, 0])
    x = g("Squeeze", g("Neg", g("Unsqueeze", x, [0])), [0])
    x = g("Gather", g("Gather", x, [9, 8, 7, 6, 5, 4], axis=1), [0, 2, 4], axis=1)
    y = g("Reshape", g("Tanh", g("Reshape", right, [1, 192])), [1, 8, 24])
    return g.model({"x": [1, 16, 24]}, [x, y])


EXPORTERS: dict[str, Callable[[], onnx.ModelProto]] = {
    made.__name__: made
    for made in (
        tf_convnet,
        tf_squeeze_excite,
        tf_unet,
        tf_detector,
        tf_quantized,
        torch_vit,
        torch_attention_chunks,
        torch_swin,
        torch_shuffles,
        torch_focus,
        torch_lstm_steps,
        preprocessing,
        movement,
    )
}


def feeds_of(model: onnx.ModelProto, seed: int, size: int = 2) -> dict[str, np.ndarray[Any, Any]]:
    """Numbers for the inputs of one of these models; open dimensions have a size."""
    random = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray[Any, Any]] = {}
    for item in model.graph.input:
        kind = helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type)
        shape = [dim.dim_value or size for dim in item.type.tensor_type.shape.dim]
        if kind.kind == "f":
            feeds[item.name] = random.standard_normal(shape).astype(kind)
        else:
            feeds[item.name] = random.integers(0, 256 if kind == np.uint8 else 2, shape).astype(
                kind
            )
    return feeds
