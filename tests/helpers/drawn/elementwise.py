"""Operators that work element by element, and reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from tests.helpers.drawn.core import FLOATS, WHOLE, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.drawn.core import Drawing, Value

NUMBERS = (*FLOATS, *WHOLE)
# float32 more often: most kernels know nothing else.
MANY = ("float32",) * 6 + ("float64", "float16", "int64", "int32", "uint8", "int8")


def random_kind(d: Drawing, op_type: str, position: int = 0) -> str:
    """An element type that the definition allows for an input."""
    schema = onnx.defs.get_schema(op_type, d.opset, "")
    inputs = schema.inputs[min(position, len(schema.inputs) - 1)]
    names = {
        "tensor(float)": "float32", "tensor(double)": "float64", "tensor(string)": "str",
        "tensor(bool)": "bool", **{f"tensor({kind})": kind for kind in (*WHOLE, "float16")},
    }  # fmt: skip
    allowed = sorted(names[kind] for kind in inputs.types if kind in names)
    if "float32" in allowed and d.chance(0.6):
        return "float32"
    if not allowed:
        raise RefusedError("no type")
    return str(d.choice(allowed))


_RANGES: dict[str, tuple[float, float]] = {
    "alpha": (0.01, 2), "beta": (0.0, 1), "gamma": (0.5, 1.5), "lambd": (0.1, 1), "bias": (0, 0.5),
    "epsilon": (1e-5, 1e-2),
}  # fmt: skip


def some_attributes(d: Drawing, op_type: str) -> dict[str, float]:
    """Some of the numbers that an operator may be given."""
    schema = onnx.defs.get_schema(op_type, d.opset, "")
    return {
        name: float(d.choice([d.real(*_RANGES[name]), 0.0, 1.0, 0.5, round(1 / 6, 6)]))
        for name in schema.attributes
        if name in _RANGES and name != "epsilon" and d.chance(0.5)
    }


def unary(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)])
    source = value.name
    if op_type in {"Log", "Sqrt", "Acosh", "Asin", "Acos", "Atanh", "Reciprocal"}:
        source = _into_domain(d, value, op_type)
    attributes: dict[str, Any] = some_attributes(d, op_type)
    if op_type == "Gelu":
        attributes["approximate"] = str(d.choice(["none", "tanh"]))
    if op_type == "IsInf":
        attributes = {"detect_negative": d.integer(0, 2), "detect_positive": d.integer(0, 2)}
    return d.one(op_type, [source], **attributes)


def _into_domain(d: Drawing, value: Value, op_type: str) -> str:
    """Keeps an argument where the function is defined."""
    if op_type in {"Asin", "Acos", "Atanh"}:
        return d.one("Mul", [d.one("Tanh", [value.name]).name, d.scalar(0.5, value.dtype)]).name
    if value.kind != "f":
        return value.name
    magnitude = d.one("Abs", [value.name])
    return d.one("Add", [magnitude.name, d.scalar(1.0, value.dtype)]).name


def partner(d: Drawing, value: Value, *, positive: bool = False, nonzero: bool = False) -> Value:
    """A second operand of the same type that broadcasts."""
    dtype = str(value.dtype)
    if not (positive or nonzero) and d.chance(0.5):
        try:
            return d.find(lambda other: other.dtype == value.dtype and _broadcasts(other, value))
        except RefusedError:
            pass
    shape = [size if d.chance(0.6) and value.is_fixed else 1 for size in value.shape]
    shape = shape[d.integer(0, len(shape) + 1) :] if d.chance(0.4) else shape
    array = np.asarray(d.rng.normal(size=shape) * 2)
    if d.chance(0.3):
        array = np.full(shape, d.choice([0.0, 1.0, -1.0, 2.0, 0.5, -0.0]))
    if value.kind in "iu":
        array = np.asarray(d.rng.integers(0, 4, shape))
    if value.kind == "b":
        return d.weight(np.asarray(array > 0, bool), overridable=0.1)
    if value.kind == "O":
        return d.weight(np.asarray(d.rng.choice(["a", "bc"], shape), object), overridable=0.1)
    if positive or nonzero:
        array = np.abs(array) + (1 if value.kind in "iu" else 0.25)
        if nonzero and value.kind == "f" and d.chance(0.5):
            array = -array
    return d.weight(array.astype(dtype), overridable=0.0 if positive or nonzero else 0.1)


def _broadcasts(first: Value, second: Value) -> bool:
    try:
        for one, two in zip(first.worlds, second.worlds, strict=True):
            np.broadcast_shapes(one.shape, two.shape)
    except ValueError:
        return False
    return True


def binary(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)])
    attributes: dict[str, Any] = {}
    if op_type in {"Div", "Mod"}:
        other = partner(d, value, nonzero=True)
        if op_type == "Mod" and (value.kind == "f" or d.chance(0.3)):
            attributes["fmod"] = 1
        return d.one(op_type, [value.name, other.name], **attributes)
    if op_type == "Pow":
        exponent = d.choice([0.0, 1.0, 2.0, 3.0, 0.5, -1.0, 2.0])
        dtype: Any = value.dtype if d.chance(0.8) else np.dtype(str(d.choice(FLOATS[:2])))
        if value.kind != "f" or exponent in (0.5, -1.0):
            exponent = abs(exponent) if value.kind != "f" else exponent
        source = _into_domain(d, value, "Log") if exponent in (0.5, -1.0) else value.name
        return d.one("Pow", [source, d.scalar(exponent, dtype)])
    if op_type == "BitShift":
        attributes["direction"] = str(d.choice(["LEFT", "RIGHT"]))
    other = partner(d, value)
    pair = [value.name, other.name]
    if d.chance(0.3) and op_type not in {"BitShift", "PRelu"}:
        pair.reverse()
    return d.one(op_type, pair, **attributes)


def variadic(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)])
    count = d.integer(1, 4)
    others = [partner(d, value).name for _ in range(count - 1)]
    if d.opset < 8:
        others = [value.name] * (count - 1)
    return d.one(op_type, [value.name, *others])


def where(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type, 1)])
    other = partner(d, value)
    condition = d.tensor(["bool"], fits=lambda c: _broadcasts(c, value), fresh=0.3)
    return d.one("Where", [condition.name, value.name, other.name])


def clip(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)])
    low, high = sorted((d.integer(0, 3), d.integer(0, 7)))
    if value.kind == "f":
        low, high = d.choice([(0, 6), (-1, 1), (0, 1), (low, high), (2, 1)])
    if d.since("Clip") < 11:
        return d.one("Clip", [value.name], min=_maybe(d, float(low)), max=_maybe(d, float(high)))
    bounds = [d.scalar(x, value.dtype) if d.chance(0.8) else "" for x in (low, high)]
    return d.one("Clip", [value.name, *bounds])


def _maybe(d: Drawing, number: float) -> float | None:
    return number if d.chance(0.8) else None


def axes(d: Drawing, value: Value, least: int = 1, most: int = 9) -> list[int]:
    """Some axes of a value, counted from either end."""
    if value.rank < least:
        raise RefusedError("rank")
    count = d.integer(least, min(value.rank, most) + 1)
    found = [int(axis) for axis in d.rng.permutation(value.rank)[:count]]
    return [axis - value.rank if d.chance(0.3) else axis for axis in found]


def with_axes(
    d: Drawing, op_type: str, value: str, found: list[int] | None, since: int, **attributes: Any
) -> Value:
    """An operator whose axes were an attribute before a version and are an input from then on."""
    if found is not None and d.opset >= since:
        return d.one(op_type, [value, d.ints(*found)], **attributes)
    return d.one(op_type, [value], axes=found, **attributes)


def reduce(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(5), least=1)
    source = value.name
    if op_type == "ReduceLogSum":
        source = _into_domain(d, value, "Log")
    found = axes(d, value, 0) if d.chance(0.85) and value.rank else None
    if d.opset < 11 and found:
        found = sorted({axis % value.rank for axis in found})
    since = 13 if op_type == "ReduceSum" else 18
    attributes = {"keepdims": d.choice([0, 1, None])}
    if d.opset >= since and d.chance(0.3):
        attributes["noop_with_empty_axes"] = d.integer(0, 2)
        found = found if d.chance(0.5) else []
    return with_axes(d, op_type, source, found if found or d.opset >= since else None, since,
                     **attributes)  # fmt: skip


def arg_reduce(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(1, 5), least=1)
    axis = axes(d, value, 1, 1)[0] if d.opset >= 11 else d.integer(0, value.rank)
    attributes: dict[str, Any] = {"axis": axis, "keepdims": d.choice([0, 1, None])}
    if d.opset >= 12:
        attributes["select_last_index"] = d.integer(0, 2)
    return d.one(op_type, [value.name], **attributes)


def along_axis(d: Drawing, op_type: str) -> Value:
    """Softmax and its like: of one axis from opset 13 on, of a matrix before."""
    value = d.tensor([random_kind(d, op_type)], range(1, 5), least=1)
    low = -value.rank if d.opset >= 11 else 0
    axis = d.integer(low, value.rank) if d.chance(0.8) else None
    return d.one(op_type, [value.name], axis=axis)


def cumulative(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(1, 5), least=1)
    axis = d.scalar(d.integer(-value.rank, value.rank), d.choice(["int64", "int32"]))
    attributes = {"exclusive": d.integer(0, 2), "reverse": d.integer(0, 2)}
    return d.one(op_type, [value.name, axis], **attributes)


def lp_normalization(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(1, 5), least=2)
    return d.one(op_type, [value.name], axis=d.integer(-value.rank, value.rank), p=d.integer(1, 3))


_UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu "
    "Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
_BINARY = (
    "Add Sub Mul Div Pow Mod PRelu And Or Xor Equal Greater Less GreaterOrEqual LessOrEqual BitShift "
    "BitwiseAnd BitwiseOr BitwiseXor"
)
_REDUCE = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
)

MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    **dict.fromkeys(_UNARY.split(), unary),
    **dict.fromkeys(_BINARY.split(), binary),
    **dict.fromkeys(_REDUCE.split(), reduce),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    **dict.fromkeys(("ArgMax", "ArgMin"), arg_reduce),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along_axis),
    **dict.fromkeys(("CumSum", "CumProd"), cumulative),
    "Where": where,
    "Clip": clip,
    "LpNormalization": lp_normalization,
}
