"""Operators of networks: products, convolutions, pools, normalisations, recurrences, quantized ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tests.helpers.drawn.core import RefusedError
from tests.helpers.drawn.elementwise import random_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.drawn.core import Drawing, Value


def weights(d: Drawing, *shape: int, dtype: str = "float32", scale: float = 1.0) -> Value:
    """A weight, sometimes a trivial one, sometimes one that a caller may override."""
    array = d.rng.normal(size=shape) * scale
    kind = d.rng.random()
    if kind < 0.1:
        array = np.zeros(shape)
    elif kind < 0.2:
        array = np.ones(shape)
    elif kind < 0.3:
        array = np.round(array)
    return d.weight(np.asarray(array).astype(dtype), overridable=0.06)


def one_width(value: Value) -> bool:
    """Whether the last axis has one size in every world; the runtime multiplies nothing by garbage."""
    return value.shape[-1] > 0 and len({a.shape[-1] for a in value.worlds}) == 1


def image(d: Drawing, kinds: tuple[str, ...] = ("float32",), spatial: int = 2) -> Value:
    """A batch of channels that is large enough for windows."""

    def fits(value: Value) -> bool:
        return (
            all(min(a.shape[2:]) >= 3 for a in value.worlds)
            and value.shape[1] > 0
            and (len({a.shape[1:] for a in value.worlds}) == 1)
        )

    if d.chance(0.75):
        try:
            return d.tensor(kinds, [2 + spatial], least=1, fits=fits, fresh=0)
        except RefusedError:
            pass
    sizes = [d.integer(4, 8) for _ in range(spatial)]
    return d.new(str(d.choice(kinds)), (d.choice(["N", 1, 2]), d.integer(1, 5), *sizes))


def windows(d: Drawing, spatial: int, *, dilations: bool = True) -> dict[str, Any]:
    """Attributes of a window; some left to their defaults."""
    found: dict[str, Any] = {}
    if d.chance(0.6):
        found["strides"] = [d.integer(1, 3) for _ in range(spatial)]
    if d.chance(0.15):
        found["auto_pad"] = str(d.choice(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"]))
    elif d.chance(0.6):
        found["pads"] = [d.integer(0, 2) for _ in range(2 * spatial)]
    if dilations and d.chance(0.15):
        found["dilations"] = [d.integer(1, 3) for _ in range(spatial)]
    return found


def conv(d: Drawing, op_type: str) -> Value:
    spatial = d.choice([1, 2, 2, 2, 2, 3])
    value = image(d, ("float32",), spatial)
    channels = value.shape[1]
    groups = channels if d.chance(0.3) else 1
    kernel = [d.integer(1, 4) for _ in range(spatial)]
    if op_type == "Conv":
        made = groups * d.integer(1, 4)
        weight = weights(d, made, channels // groups, *kernel, scale=0.5)
    else:
        made = groups * d.integer(1, 3)
        weight = weights(d, channels, made // groups, *kernel, scale=0.5)
    inputs = [value.name, weight.name]
    if d.chance(0.5):
        inputs.append(weights(d, made).name)
    attributes = windows(d, spatial)
    if groups > 1 or d.chance(0.3):
        attributes["group"] = groups
    if d.chance(0.5):
        attributes["kernel_shape"] = kernel
    if op_type == "ConvTranspose" and d.chance(0.2) and "strides" in attributes:
        attributes["output_padding"] = [min(1, s - 1) for s in attributes["strides"]]
    return d.one(op_type, inputs, **attributes)


def batch_normalization(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor(
        ["float32"], range(2, 5), fits=lambda v: len({a.shape[1] for a in v.worlds}) == 1
    )
    count = value.shape[1]
    parts = [weights(d, count) for _ in range(3)]
    spread = d.weight((np.abs(d.rng.normal(size=count)) + d.choice([0.0, 0.1])).astype(np.float32))
    attributes: dict[str, Any] = {"epsilon": d.choice([None, 1e-3, 0.0, 1e-5])}
    if d.opset < 9 and d.chance(0.3):
        attributes["spatial"] = 1
    if d.chance(0.5):
        attributes["momentum"] = 0.8
    inputs = [value.name, *(part.name for part in parts), spread.name]
    return d.node(op_type, inputs, 1, **attributes)


def pool(d: Drawing, op_type: str) -> Any:
    spatial = d.choice([1, 2, 2, 2, 3])
    value = image(d, ("float32",), spatial)
    if op_type.startswith("Global"):
        return d.one(
            op_type, [value.name], p=d.integer(1, 3) if op_type == "GlobalLpPool" else None
        )
    attributes = windows(d, spatial, dilations=False)
    attributes["kernel_shape"] = [d.integer(2, 4) for _ in range(spatial)]
    if op_type == "AveragePool":
        attributes["count_include_pad"] = d.integer(0, 2)
    if op_type == "LpPool":
        attributes["p"] = d.integer(1, 3)
    if op_type != "LpPool" and d.opset >= 10 and d.chance(0.2) and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    outputs = d.choice([1, 1, 2]) if op_type == "MaxPool" and d.opset >= 8 else 1
    return d.node(op_type, [value.name], outputs, **attributes)


def max_unpool(d: Drawing, op_type: str) -> Value:
    value = d.new("float32", (1, 2, 4, 4))
    made = d.node("MaxPool", [value.name], 2, kernel_shape=[2, 2], strides=[2, 2])
    return d.one("MaxUnpool", [one.name for one in made], kernel_shape=[2, 2], strides=[2, 2])


def matmul(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(1, 5),
                     fits=one_width)  # fmt: skip
    width = value.shape[-1]
    if value.kind in "iu":
        return d.one("MatMul", [value.name, d.weight(np.ones((width, 2), value.dtype)).name])
    shape = [width, d.integer(1, 5)] if d.chance(0.8) else [width]
    weight = weights(d, *shape, dtype=str(value.dtype), scale=0.7)
    made = d.one("MatMul", [value.name, weight.name])
    if d.chance(0.5) and len(shape) == 2:
        bias = weights(d, shape[1], dtype=str(value.dtype))
        pair = [made.name, bias.name]
        made = d.one("Add", pair if d.chance(0.5) else pair[::-1])
    return made


def gemm(d: Drawing, op_type: str) -> Value:
    value = d.tensor(["float32", "float32", "float64"], [2],
                     fits=one_width)  # fmt: skip
    width, dtype = d.integer(1, 5), str(value.dtype)
    turned = d.integer(0, 2)
    shape = (width, value.shape[1]) if turned else (value.shape[1], width)
    inputs = [value.name, weights(d, *shape, dtype=dtype).name]
    if d.opset < 11 or d.chance(0.7):
        bias = d.choice([(width,), (1, width), (1,), ()])
        inputs.append(weights(d, *bias, dtype=dtype).name)
    scales = {"alpha": d.choice([None, 1.0, 0.5, 0.0]), "beta": d.choice([None, 1.0, 2.0, 0.0])}
    return d.one("Gemm", inputs, transB=turned if turned or d.chance(0.5) else None, **scales)


def einsum(d: Drawing, op_type: str) -> Value:
    value = d.tensor(["float32"], [2, 3], least=1, fits=lambda v: v.is_fixed)
    other = weights(d, value.shape[-1], 2)
    text = {
        2: d.choice(["ij,jk->ik", "ij,jk->ki", "ij,jk"]),
        3: d.choice(["bij,jk->bik", "...ij,jk->...ik"]),
    }
    return d.one("Einsum", [value.name, other.name], equation=str(text[value.rank]))


def det(d: Drawing, op_type: str) -> Value:
    return d.one("Det", [d.new(str(d.choice(["float32", "float64"])), ("N", 2, 2)).name])


def normalization(d: Drawing, op_type: str) -> Value:
    """Those over channels or the last axes."""
    if op_type in {"LayerNormalization", "RMSNormalization"}:
        value = d.tensor(["float32"], range(1, 4), least=2, fits=lambda v: v.is_fixed)
        axis = d.integer(-value.rank, value.rank)
        parts = [
            weights(d, *value.shape[axis:])
            for _ in range(1 if op_type[0] == "R" else d.integer(1, 3))
        ]
        return d.one(op_type, [value.name, *(p.name for p in parts)], axis=axis,
                     epsilon=d.choice([None, 1e-3]))  # fmt: skip
    value = image(d)
    channels = value.shape[1]
    if op_type == "LRN":
        return d.one(
            op_type,
            [value.name],
            size=d.choice([1, 3]),
            alpha=d.choice([None, 0.01]),
            bias=d.choice([None, 2.0]),
        )
    if op_type == "MeanVarianceNormalization":
        return d.one(op_type, [value.name], axes=d.choice([None, [0, 2, 3]]))
    groups = d.choice([1, channels])
    parts = [
        weights(d, channels if op_type[0] == "I" or d.opset >= 21 else groups) for _ in range(2)
    ]
    attributes = {"num_groups": groups} if op_type == "GroupNormalization" else {}
    return d.one(op_type, [value.name, *(p.name for p in parts)], epsilon=1e-3, **attributes)


def recurrent(d: Drawing, op_type: str) -> list[Value]:
    value = d.new("float32", (d.choice([1, 3]), d.choice(["N", 2]), 2))
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type]
    both = d.integer(1, 3)
    hidden = 2
    inputs = [
        value.name,
        weights(d, both, gates * hidden, 2).name,
        weights(d, both, gates * hidden, hidden).name,
    ]
    if d.chance(0.5):
        inputs.append(weights(d, both, 2 * gates * hidden).name)
    elif value.is_fixed and d.chance(0.7):
        inputs += ["", "", d.weight(np.zeros((both, value.shape[1], hidden), np.float32)).name]
        if op_type == "LSTM" and d.chance(0.5):
            inputs.append(inputs[-1])
    attributes: dict[str, Any] = {"hidden_size": hidden}
    attributes["direction"] = (
        "bidirectional" if both == 2 else str(d.choice(["forward", "reverse"]))
    )
    if op_type == "GRU" and d.chance(0.5):
        attributes["linear_before_reset"] = 1
    return d.node(op_type, inputs, d.integer(1, 4 if op_type == "LSTM" else 3), **attributes)


def resize(d: Drawing, op_type: str) -> Value:
    value = image(d)
    factors = [1.0, 1.0, float(d.choice([1, 2])), float(d.choice([1, 2]))]
    if op_type == "Upsample":
        if d.opset < 9:
            return d.one(op_type, [value.name], scales=factors, mode="nearest")
        return d.one(op_type, [value.name, d.weight(factors).name], mode="nearest")
    scales = d.weight(factors).name
    if d.opset < 11:
        return d.one(op_type, [value.name, scales], mode=str(d.choice(["nearest", "linear"])))
    attributes: dict[str, Any] = {"mode": str(d.choice(["nearest", "linear", "cubic"]))}
    modes = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]
    attributes["coordinate_transformation_mode"] = str(d.choice(modes))
    empty = d.weight(np.zeros(0, np.float32)).name if d.opset < 13 else ""
    if d.chance(0.3) and d.opset >= 13 and value.is_fixed:
        return d.one(op_type, [value.name, "", "", d.ints(*value.shape[:2], 5, 6)], **attributes)
    return d.one(op_type, [value.name, empty, scales], **attributes)


def regions(d: Drawing, op_type: str) -> Value:
    value = d.new("float32", (1, 2, 6, 6))
    if op_type == "MaxRoiPool":
        rois = d.weight(np.array([[0, 0, 0, 3, 3], [0, 1, 1, 5, 5]], np.float32))
        return d.one(op_type, [value.name, rois.name], pooled_shape=[2, 2])
    rois = d.weight(np.array([[0, 0, 3, 3], [1, 1, 5, 5]], np.float32))
    return d.one(op_type, [value.name, rois.name, d.ints(0, 0)], output_height=2, output_width=2)


def sampling(d: Drawing, op_type: str) -> Value:
    if op_type == "AffineGrid":
        theta = weights(d, 1, 2, 3)
        return d.one(op_type, [theta.name, d.ints(1, 1, 3, 4)], align_corners=d.integer(0, 2))
    value = d.new("float32", (1, 2, 4, 4))
    grid = d.one("Tanh", [d.new("float32", (1, 3, 3, 2)).name])
    return d.one(op_type, [value.name, grid.name], align_corners=d.integer(0, 2),
                 padding_mode=str(d.choice(["zeros", "border", "reflection"])))  # fmt: skip


def suppression(d: Drawing, op_type: str) -> Value:
    boxes = d.weight(np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 2, 1, 3]]], np.float32))
    scores = d.new("float32", (1, 1, 3))
    return d.one(op_type, [boxes.name, scores.name, d.ints(2), d.weight([0.5]).name])


def deform_conv(d: Drawing, op_type: str) -> Value:
    value, offset = d.new("float32", (1, 1, 4, 4)), d.new("float32", (1, 8, 3, 3))
    return d.one(
        op_type, [value.name, weights(d, 1, 1, 2, 2).name, offset.name], kernel_shape=[2, 2]
    )


def col2im(d: Drawing, op_type: str) -> Value:
    value = d.new("float32", ("N", 4, 9))
    return d.one(op_type, [value.name, d.ints(4, 4), d.ints(2, 2)])


def attention(d: Drawing, op_type: str) -> Value:
    if op_type == "RotaryEmbedding":
        value = d.new("float32", ("N", 2, 3, 4))
        caches = [weights(d, 5, 2) for _ in range(2)]
        places = d.new("int64", ("N", 3), bound=5)
        return d.one(op_type, [value.name, *(c.name for c in caches), places.name])
    parts = [d.new("float32", ("N", 2, 3, 4)) for _ in range(3)]
    return d.one(op_type, [part.name for part in parts], is_causal=d.integer(0, 2))


def quantize(d: Drawing, op_type: str) -> Value:
    """There and back, whole or per axis."""
    value = d.tensor(["float32"], range(5))
    dtype = str(d.choice(["uint8", "int8"]))
    scale, zero = np.array(d.choice([0.05, 0.1, 1.0]), np.float32), np.array(d.integer(0, 9), dtype)
    if d.opset >= 13 and value.rank >= 2 and d.chance(0.3) and value.shape[1] and value.is_fixed:
        scale, zero = np.full(value.shape[1], scale), np.full(value.shape[1], zero)
    rest = [d.weight(scale).name]
    if d.chance(0.8) or dtype == "int8":
        rest.append(d.weight(zero).name)
    quantized = d.one("QuantizeLinear", [value.name, *rest])
    if d.chance(0.3):
        return quantized
    return d.one("DequantizeLinear", [quantized.name, *rest])


def quantize_dynamically(d: Drawing, op_type: str) -> Value:
    value = d.tensor(["float32"], range(1, 5), least=1)
    made = d.node("DynamicQuantizeLinear", [value.name], 3)
    return d.one("DequantizeLinear", [one.name for one in (made[0], made[1], made[2])])


def whole_products(d: Drawing, op_type: str) -> Value:
    if op_type == "MatMulInteger":
        value = d.tensor(["uint8"], [2, 3], least=1, fits=one_width)
        weight = d.weight(d.rng.integers(-9, 9, (value.shape[-1], 3)).astype(np.int8))
        zeros = [d.scalar(d.integer(0, 3), "uint8")] if d.chance(0.5) else []
        return d.one(op_type, [value.name, weight.name, *zeros])
    value = d.new("uint8", ("N", 2, 4, 4))
    weight = d.weight(d.rng.integers(0, 9, (3, 2, 2, 2)).astype(np.uint8))
    if op_type == "ConvInteger":
        return d.one(op_type, [value.name, weight.name])
    scale, zero = d.scalar(0.1), d.scalar(3, "uint8")
    return d.one(op_type, [value.name, scale, zero, weight.name, scale, zero, scale, zero])


def quantized_matmul(d: Drawing, op_type: str) -> Value:
    value = d.new("uint8", ("N", 3))
    weight = d.weight(d.rng.integers(0, 9, (3, 2)).astype(np.uint8))
    scale, zero = d.scalar(0.1), d.scalar(3, "uint8")
    return d.one(op_type, [value.name, scale, zero, weight.name, scale, zero, scale, zero])


def loss(d: Drawing, op_type: str) -> list[Value]:
    scores = d.new("float32", ("N", 4))
    labels = d.new("int64", ("N",), bound=4)
    if op_type == "NegativeLogLikelihoodLoss":
        scores = d.one("LogSoftmax", [scores.name])
    reduction = str(d.choice(["mean", "sum", "none"]))
    return d.node(op_type, [scores.name, labels.name], 1, reduction=reduction)


_CONV, _QUANT = dict.fromkeys(("Conv", "ConvTranspose"), conv), quantize
MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    **_CONV,
    "BatchNormalization": batch_normalization,
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), pool
    ),
    "MaxUnpool": max_unpool, "MatMul": matmul, "Gemm": gemm, "Einsum": einsum, "Det": det,
    **dict.fromkeys(
        ("LayerNormalization", "RMSNormalization", "LRN", "MeanVarianceNormalization",
         "InstanceNormalization", "GroupNormalization"), normalization,
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    **dict.fromkeys(("Resize", "Upsample"), resize),
    **dict.fromkeys(("MaxRoiPool", "RoiAlign"), regions),
    **dict.fromkeys(("AffineGrid", "GridSample"), sampling),
    "NonMaxSuppression": suppression, "DeformConv": deform_conv, "Col2Im": col2im,
    **dict.fromkeys(("Attention", "RotaryEmbedding"), attention),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _QUANT),
    "DynamicQuantizeLinear": quantize_dynamically,
    **dict.fromkeys(("MatMulInteger", "ConvInteger", "QLinearConv"), whole_products),
    "QLinearMatMul": quantized_matmul,
    **dict.fromkeys(("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), loss),
}  # fmt: skip
