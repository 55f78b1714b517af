"""Random valid models, each from a seed: operators, shapes, weights, outputs and traps are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = tuple[int, ...]
OPSETS = (13, 15, 17, 18, 19, 21)
SYMBOL = "N"
BATCH = 3


@dataclass(frozen=True)
class Value:
    """A float tensor in the graph, with its shape in the feeds that are drawn."""

    name: str
    shape: Shape


@dataclass
class Drawing:
    """A model while it is drawn."""

    seed: int
    # Without steps that turn a difference in the last place into a large one.
    smooth: bool = False
    rng: np.random.Generator = field(init=False)
    opset: int = field(init=False)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    constants: list[Value] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.opset = int(self.rng.choice(OPSETS))

    # -- small things

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def name(self, base: str = "v") -> str:
        # Some names look like those that passes make.
        self.count += 1
        ending = str(self.rng.choice(["", "_1", "_folded", "/fused", "_2"]))
        return f"{base}{self.count}{ending}"

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> Value | None:
        found = [value for value in (*self.values, *self.constants) if fits(value.shape)]
        if not found:
            return None
        # The newest more often, for graphs that are deep.
        weights = np.arange(1, len(found) + 1, dtype=float) ** 2
        return found[int(self.rng.choice(len(found), p=weights / weights.sum()))]

    def weight(self, array: np.ndarray, *, overridable: float = 0.05) -> str:
        if self.weights and self.chance(0.1):
            for tensor in self.weights:
                found = numpy_helper.to_array(tensor)
                if found.dtype == array.dtype and np.array_equal(found, array):
                    return tensor.name
        if self.chance(0.15):
            return self.node("Constant", [], value=numpy_helper.from_array(array))[0]
        name = self.name("w")
        self.weights.append(numpy_helper.from_array(array, name))
        if self.chance(overridable):
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.inputs.append(helper.make_tensor_value_info(name, kind, array.shape))
        return name

    def floats(self, shape: Shape) -> np.ndarray:
        kinds: list[Callable[[], np.ndarray]] = [
            lambda: self.rng.normal(size=shape),
            lambda: np.zeros(shape),
            lambda: np.ones(shape),
            lambda: self.rng.integers(-2, 3, shape).astype(float),
        ]
        return kinds[int(self.rng.choice(4, p=[0.7, 0.1, 0.1, 0.1]))]().astype(np.float32)

    def integers(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64), overridable=0.0)

    def node(
        self, op_type: str, inputs: list[str], *, outputs: int = 1, **attributes: Any
    ) -> list[str]:
        names = [self.name() for _ in range(outputs)]
        title = self.name("n") if self.chance(0.7) else ""
        self.nodes.append(helper.make_node(op_type, inputs, names, title, **attributes))
        return names

    def add(self, shape: Shape, op_type: str, inputs: list[str], **attributes: Any) -> Value:
        value = Value(self.node(op_type, inputs, **attributes)[0], shape)
        self.values.append(value)
        return value

    # -- the whole

    def model(self, steps: int) -> onnx.ModelProto:
        for _ in range(self.integer(1, 4)):
            self.add_input()
        if self.chance(0.4):
            shape = self.shape()
            self.constants.append(Value(self.weight(self.floats(shape)), shape))
        for _ in range(steps):
            step = STEPS[int(self.rng.integers(len(STEPS)))]
            if not (self.smooth and step in JUMPS):
                step(self)
            if (
                self.chance(0.08)
                and self.nodes
                and self.nodes[-1].output[0] == self.values[-1].name
            ):
                self.repeat()
        return self.finish()

    def add_input(self) -> None:
        shape = self.shape()
        name = self.name("x")
        declared: list[Any] = list(shape)
        if shape and shape[0] == BATCH and self.chance(0.5):
            declared[0] = SYMBOL
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, declared))
        self.values.append(Value(name, shape))

    def shape(self) -> Shape:
        rank = int(self.rng.choice([0, 1, 2, 3, 4], p=[0.05, 0.1, 0.25, 0.2, 0.4]))
        if rank == 4:
            return (int(self.rng.choice([1, BATCH])), self.integer(1, 5), self.integer(4, 8), 5)
        sizes = self.rng.choice([0, 1, 2, BATCH, 4, 5], rank, p=[0.02, 0.18, 0.2, 0.2, 0.2, 0.2])
        return tuple(int(size) for size in sizes)

    def repeat(self) -> None:
        """The same node again, for those who merge equal ones."""
        copy = onnx.NodeProto()
        copy.CopyFrom(self.nodes[-1])
        copy.name = self.name("n")
        copy.output[0] = self.name()
        self.nodes.append(copy)
        self.values.append(Value(copy.output[0], self.values[-1].shape))

    def finish(self) -> onnx.ModelProto:
        read = {name for node in self.nodes for name in node.input}
        ends = [value for value in self.values if value.name not in read]
        ends += [value for value in self.values if self.chance(0.1)]
        unique = {value.name: value for value in ends or self.values[-1:]}
        outputs = [
            helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None] * len(value.shape))
            for value in unique.values()
        ]
        graph = helper.make_graph(self.nodes, "drawn", self.inputs, outputs, self.weights)
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        made.metadata_props.add(key="seed", value=str(self.seed))
        return made


def draw(seed: int, steps: int = 12, *, smooth: bool = False) -> onnx.ModelProto:
    """Returns the model of a seed.

    Args:
        seed: Makes the model.
        steps: How many operators or patterns are tried.
        smooth: Leave out what turns a difference in the last place into a large one, so that results
            may be compared with a tolerance: rounding, comparing, normalising what is constant.
    """
    return Drawing(seed, smooth).model(steps)


def feeds(proto: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Returns feeds for a model that was drawn, special numbers among them."""
    rng = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for info in proto.graph.input:
        if info.name in defaults:
            continue
        shape = [
            dim.dim_value or (BATCH if dim.dim_param else 0)
            for dim in info.type.tensor_type.shape.dim
        ]
        array = rng.normal(size=shape).astype(np.float32)
        if seed % 4 == 3 and array.size:
            array.reshape(-1)[0] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e-40])
        found[info.name] = array
    return found


# ---------------------------------------------------------------- steps: each adds a value or gives up


def _unary(d: Drawing) -> None:
    value = d.pick()
    if value is None:
        return
    plain = [
        "Relu",
        "Neg",
        "Abs",
        "Sigmoid",
        "Tanh",
        "Identity",
        "Identity",
        "Floor",
        "Erf",
        "Sign",
    ]
    kind = str(d.rng.choice(plain))
    if not (d.smooth and kind in {"Floor", "Sign"}):
        d.add(value.shape, kind, [value.name])


def _activation(d: Drawing) -> None:
    value = d.pick()
    if value is None:
        return
    kind = d.integer(0, 5)
    if kind == 0:
        low, high = (d.weight(np.array(x, np.float32)) for x in (-1.0, 1.5))
        bounds = [["", high], [low, ""], [low, high], []][d.integer(0, 4)]
        while bounds and not bounds[-1]:
            bounds.pop()
        d.add(value.shape, "Clip", [value.name, *bounds])
    elif kind == 1:
        d.add(value.shape, "LeakyRelu", [value.name], alpha=float(d.rng.choice([0.0, 0.1, 1.0])))
    elif kind == 2:
        d.add(value.shape, "Dropout", [value.name])
    elif kind == 3 and value.shape:
        d.add(
            value.shape,
            "Softmax",
            [value.name],
            axis=d.integer(-len(value.shape), len(value.shape)),
        )
    elif kind == 4:
        gate = d.add(value.shape, "Sigmoid", [value.name])
        d.add(value.shape, "Mul", [value.name, gate.name])


def _cast(d: Drawing) -> None:
    value = d.pick()
    if value is not None:
        middle = int(d.rng.choice([1, 10, 11]))
        inner = d.node("Cast", [value.name], to=middle)[0]
        d.add(value.shape, "Cast", [inner], to=1)


def _binary(d: Drawing) -> None:
    left = d.pick()
    if left is None:
        return
    op_type = str(d.rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
    right = d.pick(lambda shape: _broadcasts(shape, left.shape)) if d.chance(0.5) else None
    if right is None:
        shape = tuple(size if d.chance(0.5) else 1 for size in left.shape)[d.integer(0, 2) :]
        array = d.floats(shape)
        right = Value(d.weight(array + (array == 0) if op_type == "Div" else array), shape)
    pair = [left, right] if d.chance(0.7) else [right, left]
    d.add(np.broadcast_shapes(left.shape, right.shape), op_type, [value.name for value in pair])


def _broadcasts(first: Shape, second: Shape) -> bool:
    try:
        shape = np.broadcast_shapes(first, second)
    except ValueError:
        return False
    return int(np.prod(shape)) < 5000


def _matmul(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 2 and shape[-1] > 0)
    if value is None:
        return
    width = d.integer(1, 5)
    weight = d.weight(d.floats((value.shape[-1], width)))
    made = d.add((*value.shape[:-1], width), "MatMul", [value.name, weight])
    if d.chance(0.5):
        d.add(
            made.shape, "Add", [d.weight(d.floats((width,))), made.name][:: d.integer(0, 2) * 2 - 1]
        )


def _gemm(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) == 2 and 0 not in shape)
    if value is None:
        return
    width, turned = d.integer(1, 5), d.integer(0, 2)
    shape = (width, value.shape[1]) if turned else (value.shape[1], width)
    inputs = [value.name, d.weight(d.floats(shape))]
    if d.chance(0.7):
        bias = [(width,), (1, width), (1,), ()][d.integer(0, 4)]
        inputs.append(d.weight(d.floats(bias)))
    scales = {"alpha": float(d.rng.choice([1.0, 0.5])), "beta": float(d.rng.choice([1.0, 2.0]))}
    d.add((value.shape[0], width), "Gemm", inputs, transB=turned, **scales)


def _conv(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) == 4 and min(shape) > 0 and min(shape[2:]) >= 3)
    if value is None:
        return
    batch, channels, height, width = value.shape
    groups = channels if d.chance(0.3) else 1
    made = groups * d.integer(1, 3)
    size, pad, stride = d.integer(1, 4), d.integer(0, 2), d.integer(1, 3)
    inputs = [value.name, d.weight(d.floats((made, channels // groups, size, size)))]
    if d.chance(0.5):
        inputs.append(d.weight(d.floats((made,))))
    shape = (batch, made, *((n + 2 * pad - size) // stride + 1 for n in (height, width)))
    conv = d.add(shape, "Conv", inputs, pads=[pad] * 4, strides=[stride] * 2, group=groups)
    if d.chance(0.5):
        _normalise(d, conv)


def _transposed_conv(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) == 4 and min(shape) > 0 and max(shape[2:]) < 8)
    if value is None:
        return
    batch, channels, height, width = value.shape
    weight = d.weight(d.floats((channels, 2, 2, 2)))
    made = d.add(
        (batch, 2, 2 * height, 2 * width), "ConvTranspose", [value.name, weight], strides=[2, 2]
    )
    if d.chance(0.5):
        _normalise(d, made)


def _batchnorm(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 2)
    if value is not None:
        _normalise(d, value)


def _normalise(d: Drawing, value: Value) -> None:
    count = value.shape[1]
    arrays = [d.floats((count,)) for _ in range(3)]
    arrays.append(np.abs(d.floats((count,))) + np.float32(0.1))
    names = [d.weight(array) for array in arrays]
    d.add(value.shape, "BatchNormalization", [value.name, *names], epsilon=1e-3)


def _pool(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) == 4 and min(shape) > 0 and min(shape[2:]) >= 2)
    if value is None:
        return
    if d.chance(0.3):
        d.add((*value.shape[:2], 1, 1), "GlobalAveragePool", [value.name])
        return
    source = value
    if d.chance(0.4):
        shape = (*value.shape[:2], value.shape[2] + 2, value.shape[3] + 2)
        inputs = [value.name, d.integers(0, 0, 1, 1, 0, 0, 1, 1)]
        if d.chance(0.5):
            inputs.append(d.weight(np.array(d.rng.choice([0.0, 1.0]), np.float32)))
        source = d.add(shape, "Pad", inputs)
    shape = (*source.shape[:2], *((n - 2) // 2 + 1 for n in source.shape[2:]))
    kind = str(d.rng.choice(["MaxPool", "AveragePool"]))
    d.add(shape, kind, [source.name], kernel_shape=[2, 2], strides=[2, 2])


def _transpose(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 2)
    if value is None:
        return
    order = [int(axis) for axis in d.rng.permutation(len(value.shape))]
    made = d.add(tuple(value.shape[axis] for axis in order), "Transpose", [value.name], perm=order)
    if d.chance(0.4):
        back = [order.index(axis) for axis in range(len(order))]
        d.add(value.shape, "Transpose", [made.name], perm=back)


def _reshape(d: Drawing) -> None:
    value = d.pick(lambda shape: 0 not in shape)
    if value is None:
        return
    total = int(np.prod(value.shape))
    kind = d.integer(0, 4)
    if kind == 0:
        d.add((total,), "Reshape", [value.name, d.integers(-1)])
    elif kind == 1 and len(value.shape) >= 2:
        rest = total // value.shape[0]
        d.add((value.shape[0], rest), "Reshape", [value.name, d.integers(0, -1)])
    elif kind == 2 and value.shape:
        axis = d.integer(0, len(value.shape) + 1)
        first = int(np.prod(value.shape[:axis]))
        d.add((first, total // first), "Flatten", [value.name], axis=axis)
    elif len(value.shape) >= 2:
        _reshape_by_shape(d, value, total)


def _reshape_by_shape(d: Drawing, value: Value, total: int) -> None:
    """The detour that exporters take: Shape, Gather, arithmetic, Concat, Reshape."""
    shape = d.node("Shape", [value.name])[0]
    first = d.node("Gather", [shape, d.integers(0)])[0]
    if d.chance(0.3):
        one = d.node("Mul", [first, d.integers(1)])[0]
        first = d.node("Cast", [one], to=7)[0]
    target = d.node("Concat", [first, d.integers(-1)], axis=0)[0]
    d.add((value.shape[0], total // value.shape[0]), "Reshape", [value.name, target])


def _squeeze(d: Drawing) -> None:
    value = d.pick()
    if value is None:
        return
    if 1 in value.shape and d.chance(0.5):
        axis = value.shape.index(1)
        shape = value.shape[:axis] + value.shape[axis + 1 :]
        d.add(shape, "Squeeze", [value.name, d.integers(axis)])
    elif len(value.shape) < 4:
        axis = d.integer(0, len(value.shape) + 1)
        shape = (*value.shape[:axis], 1, *value.shape[axis:])
        d.add(shape, "Unsqueeze", [value.name, d.integers(axis)])


def _slice(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 1 and max(shape) > 0)
    if value is None:
        return
    axis = int(np.argmax(value.shape))
    start, step = d.integer(0, value.shape[axis]), d.integer(1, 3)
    if d.chance(0.3):
        start, step = 0, 1  # takes everything
    size = len(range(start, value.shape[axis], step))
    shape = (*value.shape[:axis], size, *value.shape[axis + 1 :])
    inputs = [d.integers(number) for number in (start, 2**63 - 1, axis, step)]
    d.add(shape, "Slice", [value.name, *inputs])


def _concat(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 1 and int(np.prod(shape)) < 2000)
    if value is None:
        return
    axis = d.integer(0, len(value.shape))
    count = d.integer(1, 4)
    shape = (*value.shape[:axis], value.shape[axis] * count, *value.shape[axis + 1 :])
    made = d.add(shape, "Concat", [value.name] * count, axis=axis)
    if d.chance(0.5) and count > 1:
        sizes = d.integers(*[value.shape[axis]] * count)
        names = d.node("Split", [made.name, sizes], outputs=count, axis=axis)
        d.values += [Value(name, value.shape) for name in names]


def _expand(d: Drawing) -> None:
    value = d.pick(lambda shape: int(np.prod(shape)) < 500)
    if value is None:
        return
    if d.chance(0.5) and value.shape:
        repeats = [d.integer(1, 3) for _ in value.shape]
        shape = tuple(n * r for n, r in zip(value.shape, repeats, strict=True))
        d.add(shape, "Tile", [value.name, d.integers(*repeats)])
    else:
        shape = (*([2] if len(value.shape) < 4 and d.chance(0.5) else []), *value.shape)
        d.add(
            shape,
            "Expand",
            [value.name, d.integers(*shape)]
            if shape
            else [value.name, d.weight(np.zeros(0, np.int64))],
        )


def _gather(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 1 and shape[0] > 0)
    if value is None:
        return
    if d.chance(0.5):
        index = d.weight(
            np.array(d.integer(-value.shape[0], value.shape[0]), np.int64), overridable=0
        )
        d.add(value.shape[1:], "Gather", [value.name, index], axis=0)
    else:
        places = [d.integer(0, value.shape[0]) for _ in range(d.integer(1, 4))]
        d.add((len(places), *value.shape[1:]), "Gather", [value.name, d.integers(*places)], axis=0)


def _reduce(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 1 and min(shape) > 0)
    if value is None:
        return
    axis, keep = d.integer(0, len(value.shape)), d.integer(0, 2)
    shape = (*value.shape[:axis], *([1] if keep else []), *value.shape[axis + 1 :])
    if d.chance(0.5):
        d.add(shape, "ReduceSum", [value.name, d.integers(axis)], keepdims=keep)
    elif d.opset < 18:
        d.add(shape, "ReduceMean", [value.name], axes=[axis], keepdims=keep)
    else:
        d.add(shape, "ReduceMean", [value.name, d.integers(axis)], keepdims=keep)


def _layernorm(d: Drawing) -> None:
    value = d.pick(lambda shape: len(shape) >= 2 and min(shape) > 0 and shape[-1] > 1)
    if value is None:
        return
    axes: dict[str, Any] = {"axes": [-1]} if d.opset < 18 else {}
    more = [] if d.opset < 18 else [d.integers(-1)]
    mean = d.add((*value.shape[:-1], 1), "ReduceMean", [value.name, *more], **axes)
    centred = d.add(value.shape, "Sub", [value.name, mean.name])
    square = d.add(value.shape, "Pow", [centred.name, d.weight(np.array(2, np.float32))])
    variance = d.add(mean.shape, "ReduceMean", [square.name, *more], **axes)
    safe = d.add(mean.shape, "Add", [variance.name, d.weight(np.array(1e-3, np.float32))])
    root = d.add(mean.shape, "Sqrt", [safe.name])
    made = d.add(value.shape, "Div", [centred.name, root.name])
    scaled = d.add(value.shape, "Mul", [made.name, d.weight(d.floats(value.shape[-1:]))])
    d.add(value.shape, "Add", [scaled.name, d.weight(d.floats(value.shape[-1:]))])


def _gelu(d: Drawing) -> None:
    value = d.pick()
    if value is None:
        return
    inner = d.add(value.shape, "Div", [value.name, d.weight(np.array(2**0.5, np.float32))])
    erf = d.add(value.shape, "Erf", [inner.name])
    one = d.add(value.shape, "Add", [erf.name, d.weight(np.array(1, np.float32))])
    made = d.add(value.shape, "Mul", [value.name, one.name])
    d.add(value.shape, "Mul", [made.name, d.weight(np.array(0.5, np.float32))])


def _quantize(d: Drawing) -> None:
    value = d.pick()
    if value is None:
        return
    scale = d.weight(np.array(0.05, np.float32))
    zero = d.weight(np.array(d.integer(0, 255), np.uint8))
    quantized = d.node("QuantizeLinear", [value.name, scale, zero])[0]
    d.add(value.shape, "DequantizeLinear", [quantized, scale, zero])


def _where(d: Drawing) -> None:
    value = d.pick()
    if value is not None:
        zero = d.weight(np.zeros((), np.float32))
        condition = d.node("Greater", [value.name, zero])[0]
        d.add(value.shape, "Where", [condition, value.name, zero])


def _branch(d: Drawing) -> None:
    """An If whose bodies read from outside; its condition is a constant or computed."""
    value = d.pick()
    if value is None:
        return
    if d.chance(0.5):
        condition = d.weight(np.array(d.chance(0.5)))
    else:
        total = d.node("ReduceSum", [value.name], keepdims=0)[0]
        condition = d.node("Greater", [total, d.weight(np.zeros((), np.float32))])[0]
    bodies = []
    for op_type in ("Neg", "Abs"):
        inner, out = d.name("b"), d.name("b")
        nodes = [helper.make_node(op_type, [value.name], [inner])]
        weight = numpy_helper.from_array(
            np.array(0 if d.chance(0.5) else 2, np.float32), d.name("w")
        )
        nodes.append(helper.make_node("Add", [inner, weight.name], [out]))
        info = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
        bodies.append(helper.make_graph(nodes, "body", [], [info], [weight]))
    d.add(value.shape, "If", [condition], then_branch=bodies[0], else_branch=bodies[1])


STEPS: tuple[Callable[[Drawing], None], ...] = (
    _unary, _unary, _activation, _activation, _cast, _binary, _binary, _binary, _matmul, _gemm, _gemm,
    _conv, _conv, _transposed_conv, _batchnorm, _pool, _transpose, _transpose, _reshape, _reshape,
    _squeeze, _slice, _concat, _expand, _gather, _reduce, _layernorm, _gelu, _quantize, _where, _branch,
)  # fmt: skip
JUMPS = frozenset({_cast, _layernorm, _quantize, _where, _branch})
