"""What exporters write: patterns that passes look for, right ones and slightly wrong ones."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.helpers.drawn import control, layout, misc, neural
from tests.helpers.drawn.core import RefusedError
from tests.helpers.drawn.elementwise import partner, with_axes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.drawn.core import Drawing, Value


def nearly(d: Drawing, number: float) -> float:
    """A constant of a pattern, sometimes off by a little or by much."""
    return float(d.choice([number] * 6 + [number * 1.001, number + 1e-7, -number, 0.0, number * 2]))


def constant(d: Drawing, number: float, value: Value) -> str:
    shape = d.choice([(), (), (1,), (1,) * value.rank])
    return d.weight(np.full(shape, nearly(d, number), value.dtype)).name


def both(d: Drawing, op_type: str, first: str, second: str) -> Value:
    pair = [first, second]
    return d.one(op_type, pair if d.chance(0.7) else pair[::-1])


def floats(d: Drawing, ranks: range = range(5), least: int = 0) -> Value:
    return d.tensor(["float32"] * 4 + ["float64", "float16"], ranks, least=least)


def normalised_conv(d: Drawing) -> None:
    made = neural.conv(d, str(d.choice(["Conv", "Conv", "ConvTranspose"])))
    if d.chance(0.2):
        d.one("Relu", [made.name])
    count = made.shape[1]
    for _ in range(d.integer(1, 3)):
        kind = d.integer(0, 3)
        if kind == 0:
            parts = [neural.weights(d, count).name for _ in range(3)]
            spread = d.weight((np.abs(d.rng.normal(size=count)) + 0.1).astype(np.float32)).name
            made = d.one("BatchNormalization", [made.name, *parts, spread])
        else:
            shape = d.choice(
                [(count,) + (1,) * (made.rank - 2), (1, count) + (1,) * (made.rank - 2), (), (1,)]
            )
            made = both(
                d, str(d.choice(["Mul", "Add", "Sub", "Div"])), made.name, _nonzero(d, shape)
            )
    d.one("Relu", [made.name])


def _nonzero(d: Drawing, shape: tuple[int, ...]) -> str:
    array = d.rng.normal(size=shape)
    return d.weight((array + np.sign(array) * 0.2).astype(np.float32), overridable=0.05).name


def scaled_product(d: Drawing) -> None:
    value = d.tensor(["float32"], range(1, 4), fits=neural.one_width)
    if d.chance(0.5):
        value = both(
            d,
            str(d.choice(["Mul", "Add"])),
            value.name,
            _nonzero(d, d.choice([(), value.shape[-1:]])),
        )
    made = neural.matmul(d, "MatMul")
    with suppress(RefusedError):
        made = d.one("MatMul", [value.name, neural.weights(d, value.shape[-1], 3).name])
    both(
        d,
        str(d.choice(["Mul", "Add", "Sub", "Div"])),
        made.name,
        _nonzero(d, d.choice([(), made.shape[-1:]])),
    )


def padded(d: Drawing) -> None:
    value = neural.image(d)
    pads = [0, 0, *(d.integer(0, 2) for _ in range(2))] * 2
    fill = d.choice([0.0, 0.0, 1.0, float("-inf")])
    if d.opset < 11:
        value = d.one("Pad", [value.name], pads=pads, value=0.0)
    else:
        nodes = [d.make("Pad", [value.name, d.ints(*pads), d.scalar(fill)])]
        kind = d.integer(0, 3)
        last = nodes[0].output[0]
        if kind == 0:
            weight = neural.weights(d, 2, value.shape[1], 2, 2).name
            nodes.append(d.make("Conv", [last, weight], pads=d.choice([None, [1, 0, 0, 1]])))
        else:
            name = "MaxPool" if kind == 1 else "AveragePool"
            more: dict[str, Any] = {"count_include_pad": d.integer(0, 2)} if kind == 2 else {}
            nodes.append(d.make(name, [last], kernel_shape=[2, 2], strides=[2, 2], **more))
        d.group(nodes)
        return
    neural.pool(d, str(d.choice(["MaxPool", "AveragePool"])))


def transposes(d: Drawing) -> None:
    """A layout there and back around operators that do not care."""
    value = floats(d, range(2, 5))
    order = [int(axis) for axis in d.rng.permutation(value.rank)]
    if value.rank == 4 and d.chance(0.5):
        order = [0, 2, 3, 1]
    made = d.one("Transpose", [value.name], perm=order)
    for _ in range(d.integer(0, 3)):
        kind = d.integer(0, 4)
        if kind == 0:
            made = d.one(str(d.choice(["Relu", "Sigmoid", "Neg"])), [made.name])
        elif kind == 1:
            made = both(d, str(d.choice(["Add", "Mul"])), made.name, partner(d, made).name)
        elif kind == 2:
            made = with_axes(d, "ReduceMean", made.name, [d.integer(0, made.rank)], 18, keepdims=1)
        else:
            made = d.one("Concat", [made.name, made.name], axis=d.integer(0, made.rank))
    back = [order.index(axis) for axis in range(len(order))]
    d.one("Transpose", [made.name], perm=back if d.chance(0.8) else order)


def shape_chain(d: Drawing) -> None:
    """Reshape to a target that is computed from sizes."""
    value = d.tensor(["float32"], range(2, 5), least=1)
    shape = d.one("Shape", [value.name])
    parts = []
    for axis in range(value.rank):
        kind = d.integer(0, 4)
        if kind == 0 and len({a.shape[axis] for a in value.worlds}) == 1:
            parts.append(d.ints(value.shape[axis]))
        elif kind == 1:
            if d.opset < 10:
                raise RefusedError("slice")
            parts.append(
                d.one("Slice", [shape.name, d.ints(axis), d.ints(axis + 1), d.ints(0)]).name
            )
        else:
            size = d.one("Gather", [shape.name, d.scalar(axis, "int64")], axis=0)
            if d.chance(0.3):
                size = both(d, "Mul", size.name, d.scalar(1, "int64"))
            if d.chance(0.2):
                size = d.one(
                    "Cast", [d.one("Cast", [size.name], to=d.choice([1, 6, 11])).name], to=7
                )
            parts.append(with_axes(d, "Unsqueeze", size.name, [0], 13).name)
    if len(parts) > 1 and d.chance(0.6):
        place = d.integer(0, len(parts) - 1)
        product = both(d, "Mul", parts[place], parts[place + 1])
        parts[place : place + 2] = [product.name if d.chance(0.6) else d.ints(-1)]
    target = d.one("Concat", parts, axis=0)
    made = d.one("Reshape", [value.name, target.name])
    if d.chance(0.5):
        d.one("Reshape", [made.name, shape.name])


def sizes_computed(d: Drawing) -> None:
    """Arithmetic on sizes that ends in a number or in a constant tensor of that shape."""
    value = d.tensor(["float32"], range(1, 4))
    shape = d.one("Shape", [value.name])
    size = d.one("Gather", [shape.name, d.scalar(d.integer(0, value.rank), "int64")], axis=0)
    other = d.scalar(d.choice([1, 2, 3]), "int64")
    size = d.one(str(d.choice(["Add", "Sub", "Mul", "Div"])), [size.name, other])
    if d.chance(0.5):
        d.one("Cast", [size.name], to=1)
    equal = d.one("Equal", [shape.name, shape.name]) if d.chance(0.3) and d.opset >= 7 else None
    ones = d.one("ConstantOfShape", [shape.name]) if d.opset >= 9 else None
    if equal is not None and ones is not None and d.opset >= 9:
        minus = d.one("ConstantOfShape", [d.one("Shape", [shape.name]).name])
        d.one("Where", [equal.name, shape.name, minus.name])
    if d.opset >= 8:
        d.one("Expand", [value.name, shape.name])


def layer_normalization(d: Drawing) -> None:
    value = d.tensor(
        ["float32"], range(2, 5), least=2, fits=lambda v: len({a.shape[-1] for a in v.worlds}) == 1
    )
    axis = [d.choice([-1, value.rank - 1])] if d.opset >= 11 else [value.rank - 1]
    keep = d.choice([1, 1, 1, None])
    mean = with_axes(d, "ReduceMean", value.name, axis, 18, keepdims=keep)
    centred = d.one("Sub", [value.name, mean.name])
    square = (
        d.one("Pow", [centred.name, constant(d, 2.0, value)])
        if d.chance(0.7)
        else d.one("Mul", [centred.name, centred.name])
    )
    variance = with_axes(d, "ReduceMean", square.name, axis, 18, keepdims=1)
    safe = both(d, "Add", variance.name, constant(d, 1e-3, value))
    root = d.one("Sqrt", [safe.name])
    if d.chance(0.3):
        made = both(d, "Mul", centred.name, d.one("Reciprocal", [root.name]).name)
    else:
        made = d.one("Div", [centred.name, root.name])
    shape = d.choice([value.shape[-1:], value.shape[-1:], (1,), (1, value.shape[-1])])
    if d.chance(0.8):
        made = both(d, "Mul", made.name, neural.weights(d, *shape).name)
        if d.chance(0.8):
            made = both(d, "Add", made.name, neural.weights(d, *shape).name)
    if d.chance(0.2):
        d.one("Relu", [mean.name])


def gelu(d: Drawing) -> None:
    value = floats(d)
    if d.opset < 9 or d.chance(0.25):
        cube = d.one("Pow", [value.name, constant(d, 3.0, value)])
        inner = both(
            d, "Add", value.name, both(d, "Mul", cube.name, constant(d, 0.044715, value)).name
        )
        made = d.one("Tanh", [both(d, "Mul", inner.name, constant(d, 0.7978845608, value)).name])
    elif d.chance(0.5):
        made = d.one("Erf", [d.one("Div", [value.name, constant(d, 2**0.5, value)]).name])
    else:
        made = d.one("Erf", [both(d, "Mul", value.name, constant(d, 0.5**0.5, value)).name])
    one = both(d, "Add", made.name, constant(d, 1.0, value))
    if d.chance(0.5):
        both(d, "Mul", both(d, "Mul", value.name, one.name).name, constant(d, 0.5, value))
    else:
        both(d, "Mul", both(d, "Mul", value.name, constant(d, 0.5, value)).name, one.name)


def activation(d: Drawing) -> None:
    """HardSwish, Swish, Mish, Softplus, HardSigmoid, Softsign, Relu6 taken apart."""
    value = floats(d)
    kind = d.integer(0, 7)
    if kind == 0:
        both(d, "Mul", value.name, d.one("Sigmoid", [value.name]).name)
    elif kind in {1, 2}:
        if str(value.dtype) == "float16" and d.opset < 11:
            raise RefusedError("type")
        low, high = nearly(d, 0.0), nearly(d, 6.0)
        moved = both(d, "Add", value.name, constant(d, 3.0, value))
        if d.opset < 11:
            bounded = d.one("Clip", [moved.name], min=low, max=high)
        else:
            bounded = d.one(
                "Clip", [moved.name, d.scalar(low, value.dtype), d.scalar(high, value.dtype)]
            )
        divided = d.one("Div", [bounded.name, constant(d, 6.0, value)])
        if kind == 1:
            both(d, "Mul", value.name, divided.name)
    elif kind == 3:
        soft = d.one("Softplus", [value.name]) if d.chance(0.6) else _softplus(d, value)
        both(d, "Mul", value.name, d.one("Tanh", [soft.name]).name)
    elif kind == 4:
        _softplus(d, value)
    elif kind == 5:
        one = both(d, "Add", d.one("Abs", [value.name]).name, constant(d, 1.0, value))
        d.one("Div", [value.name, one.name])
    else:
        made = d.one("Relu", [value.name])
        if d.opset >= 12:
            made = d.one("Clip", [made.name, "", d.scalar(nearly(d, 6.0), value.dtype)])
        d.one("Min", [made.name, constant(d, 6.0, value)])


def _softplus(d: Drawing, value: Value) -> Value:
    return d.one(
        "Log", [both(d, "Add", d.one("Exp", [value.name]).name, constant(d, 1.0, value)).name]
    )


def rms_normalization(d: Drawing) -> None:
    value = d.tensor(
        ["float32"], range(2, 4), least=2, fits=lambda v: len({a.shape[-1] for a in v.worlds}) == 1
    )
    square = d.one("Pow", [value.name, constant(d, 2.0, value)])
    mean = with_axes(d, "ReduceMean", square.name, [value.rank - 1], 18, keepdims=1)
    root = d.one("Sqrt", [both(d, "Add", mean.name, constant(d, 1e-3, value)).name])
    made = d.one("Div", [value.name, root.name])
    both(d, "Mul", made.name, neural.weights(d, value.shape[-1]).name)


def attention(d: Drawing) -> None:
    """Softmax of a scaled product, times a third."""
    query, key, other = (d.new("float32", ("N", 2, 3, 4)) for _ in range(3))
    turned = d.one(
        "Transpose", [key.name], perm=d.choice([[0, 1, 3, 2], [0, 1, 3, 2], [0, 1, 2, 3]])
    )
    if turned.shape[-2] != query.shape[-1]:
        raise RefusedError("shape")
    scores = d.one("MatMul", [query.name, turned.name])
    scores = d.one("Div", [scores.name, constant(d, 2.0, scores)])
    weights = d.one("Softmax", [scores.name], axis=3)
    d.one("MatMul", [weights.name, other.name])


def quantized_layer(d: Drawing) -> None:
    value = d.tensor(
        ["float32"],
        [2],
        fits=lambda v: v.shape[-1] > 0 and len({a.shape[-1] for a in v.worlds}) == 1,
    )
    scale, zero = d.scalar(0.05), d.scalar(d.integer(0, 9), "uint8")
    left = d.one(
        "DequantizeLinear", [d.one("QuantizeLinear", [value.name, scale, zero]).name, scale, zero]
    )
    stored = d.weight(d.rng.integers(-9, 9, (value.shape[-1], 3)).astype(np.int8)).name
    right = d.one("DequantizeLinear", [stored, d.scalar(0.1), d.scalar(0, "int8")])
    made = d.one("MatMul", [left.name, right.name])
    made = d.one("Add", [made.name, neural.weights(d, 3).name])
    d.one("DequantizeLinear", [d.one("QuantizeLinear", [made.name, scale, zero]).name, scale, zero])


def neutral(d: Drawing) -> None:
    """What does nothing, or nearly nothing."""
    value = d.tensor(["float32", "float32", "int64", "float64", "float16", "int32"], range(5))
    name = str(d.choice(["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min"]))
    number = d.choice([0.0, -0.0, 1.0]) if value.kind == "f" else d.choice([0, 1])
    if name in {"Div", "Pow"}:
        number = 1
    shape = d.choice([(), (1,), (1,) * (value.rank + 1), value.shape if value.is_fixed else ()])
    other = d.weight(np.full(shape, number, value.dtype)).name
    pair = [value.name, other]
    d.one(name, pair[::-1] if name not in {"Div", "Pow"} and d.chance(0.3) else pair)


def constants(d: Drawing) -> None:
    """A subexpression that is constant."""
    made = d.weight(
        d.rng.normal(size=d.choice([(), (2,), (1, 3), (0, 2), (4, 1)])).astype(np.float32)
    )
    for _ in range(d.integer(1, 4)):
        name = str(d.choice(["Neg", "Exp", "Relu", "Abs", "Add", "Mul", "Identity", "Unsqueeze"]))
        if name in {"Add", "Mul"}:
            made = d.one(name, [made.name, d.scalar(1.5)])
        elif name == "Unsqueeze":
            made = with_axes(d, name, made.name, [0], 13)
        else:
            made = d.one(name, [made.name])


def repeated(d: Drawing) -> None:
    """The same node again."""
    found = [n for n in d.nodes if n.output and n.op_type not in {"Constant", "If", "Loop", "Scan"}]
    found = [
        n for n in found if not n.op_type.startswith(("Random", "Bern", "Multi")) and not n.domain
    ]
    if not found:
        raise RefusedError("none yet")
    node = d.choice(found)
    from onnx import helper

    attributes = {
        a.name: helper.get_attribute_value(a) for a in node.attribute if not a.ref_attr_name
    }
    d.node(node.op_type, node.input, len(node.output), **attributes)


IDIOMS: tuple[Callable[[Drawing], object], ...] = (
    normalised_conv, normalised_conv, normalised_conv, scaled_product, scaled_product, padded, padded,
    transposes, transposes, shape_chain, shape_chain, shape_chain, sizes_computed, layer_normalization,
    layer_normalization, gelu, gelu, activation, activation, rms_normalization, attention,
    quantized_layer, neutral, neutral, constants, constants, repeated, repeated,
    lambda d: layout.cast(d, "Cast"), lambda d: layout.slices(d, "Slice"),
    lambda d: layout.reshape(d, "Reshape"), lambda d: layout.split(d, "Split"),
    lambda d: layout.concat(d, "Concat"), lambda d: control.branch(d, "If"),
    lambda d: control.loop(d, "Loop"), lambda d: control.function(d, ""),
    lambda d: control.function(d, ""), *(lambda d, make=make: make(d, "") for make in misc.EXTRAS),
)  # fmt: skip
