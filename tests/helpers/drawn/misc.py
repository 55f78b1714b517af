"""Text, sequences, optional values, random numbers, signals, and operators of other domains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, helper

from tests.helpers.drawn.core import RefusedError
from tests.helpers.drawn.elementwise import MANY, partner

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.drawn.core import Drawing, Value


def text(d: Drawing, op_type: str) -> Any:
    value = d.tensor(["str"], range(1, 3))
    if op_type == "StringConcat":
        return d.one(op_type, [value.name, partner(d, value).name])
    if op_type == "StringSplit":
        return d.node(op_type, [value.name], 2, delimiter=" ")
    if op_type == "RegexFullMatch":
        return d.one(op_type, [value.name], pattern="[a-z]+")
    value = d.new("str", (d.choice([1, 3]),))
    if op_type == "StringNormalizer":
        return d.one(op_type, [value.name], case_change_action=str(d.choice(["LOWER", "UPPER", "NONE"])),
                     locale="C", stopwords=["a"])  # fmt: skip
    numbers = d.new("int64", (4,), bound=5)
    return d.one("TfIdfVectorizer", [numbers.name], mode="TF", min_gram_length=1, max_gram_length=1,
                 max_skip_count=0, ngram_counts=[0], ngram_indexes=[0, 1, 2], pool_int64s=[1, 2, 3])  # fmt: skip


def sequences(d: Drawing, op_type: str) -> Any:
    value = d.tensor(["float32", "int64"], range(1, 4), least=1)
    twin = d.one("Identity" if d.chance(0.5) else "Neg", [value.name])
    if op_type == "SplitToSequence":
        found = d.one(op_type, [value.name], axis=0, keepdims=d.integer(0, 2))
    elif op_type == "SequenceEmpty":
        empty = d.one(op_type, [], dtype=helper.np_dtype_to_tensor_dtype(value.dtype))
        found = d.one("SequenceInsert", [empty.name, value.name])
    else:
        found = d.one("SequenceConstruct", [value.name, twin.name, value.name])
    if op_type == "SequenceErase":
        found = d.one(op_type, [found.name, *([d.scalar(-1, "int64")] if d.chance(0.5) else [])])
    if op_type == "SequenceInsert":
        found = d.one(op_type, [found.name, twin.name, d.scalar(d.integer(-1, 2), "int64")])
    if op_type == "SequenceLength" or d.chance(0.2):
        return d.one("SequenceLength", [found.name])
    if op_type == "SequenceAt" or d.chance(0.5):
        return d.one("SequenceAt", [found.name, d.scalar(0, "int64")])
    return d.one("ConcatFromSequence", [found.name], axis=0, new_axis=d.integer(0, 2))


def optionals(d: Drawing, op_type: str) -> Any:
    value = d.tensor(["float32", "int64"])
    made = d.make("Optional", [value.name])
    element = d.make("OptionalGetElement", [made.output[0]])
    has = d.make("OptionalHasElement", [made.output[0]])
    return d.group([made, element, has], [element.output[0], has.output[0]])


def chance(d: Drawing, op_type: str) -> Value:
    """Random numbers may not reach an output, but their shape may."""
    value = d.tensor(["float32"], [2], least=1)
    seed: dict[str, Any] = {"seed": 3.0} if d.chance(0.5) else {}
    if op_type == "Bernoulli":
        node = d.make(op_type, [d.one("Sigmoid", [value.name]).name], **seed)
    elif op_type == "Multinomial":
        node = d.make(op_type, [value.name], sample_size=3, **seed)
    elif op_type.endswith("Like"):
        node = d.make(op_type, [value.name], **seed)
    else:
        node = d.make(op_type, [], shape=[2, 3], **seed)
    size = d.make("Shape", [node.output[0]])
    return d.group([node, size])[0]


def signals(d: Drawing, op_type: str) -> Value:
    if op_type.endswith("Window"):
        return d.one(op_type, [d.scalar(4, "int64")], periodic=d.integer(0, 2))
    if op_type == "MelWeightMatrix":
        whole = [d.scalar(n, "int64") for n in (4, 8, 8000)]
        return d.one(op_type, [*whole, d.scalar(0.0), d.scalar(4000.0)])
    if op_type == "STFT":
        signal = d.new("float32", (d.choice(["N", 1]), 8, 1))
        return d.one(op_type, [signal.name, d.scalar(2, "int64"), d.weight(np.ones(4, np.float32)).name,
                               d.scalar(4, "int64")])  # fmt: skip
    value = d.new("float32", (d.choice(["N", 1]), 4, 1))
    if d.opset < 20:
        return d.one(op_type, [value.name], axis=1, onesided=d.integer(0, 2))
    return d.one(op_type, [value.name, "", d.scalar(1, "int64")], onesided=d.integer(0, 2))


def foreign(d: Drawing, op_type: str) -> Value:
    """Operators that only the runtime knows."""
    value = d.tensor(["float32"], [2], least=1)
    kind = d.integer(0, 4)
    if kind == 0:
        return d.one("Gelu", [value.name], domain="com.microsoft")
    if kind == 1:
        return d.one("Normalizer", [value.name], domain="ai.onnx.ml", norm="L1")
    if kind == 2:
        return d.one("Binarizer", [value.name], domain="ai.onnx.ml", threshold=0.25)
    return d.one(
        "FusedMatMul", [value.name, value.name], domain="com.microsoft", transB=1, alpha=0.5
    )


def odd_types(d: Drawing, op_type: str) -> Value:
    """Arithmetic in a type that NumPy has not, between two casts."""
    value = d.tensor(["float32"])
    middle = TensorProto.BFLOAT16 if d.chance(0.5) else TensorProto.FLOAT16
    if d.opset < 13:
        middle = TensorProto.FLOAT16
    first = d.make("Cast", [value.name], to=middle)
    work = d.make(str(d.choice(["Identity", "Neg", "Mul", "Relu"])), [first.output[0]])
    if work.op_type == "Mul":
        work.input.append(first.output[0])
    return d.group([first, work, d.make("Cast", [work.output[0]], to=1)])[0]


def four_bits(d: Drawing, op_type: str) -> Value:
    """A weight of four or eight bits in another format, dequantized."""
    if d.opset < 21:
        raise RefusedError("opset")
    kind = d.choice([TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN])
    tensor = helper.make_tensor("w", kind, [2, 2], [1, 2, 3, 1])
    constant = d.make("Constant", [], value=tensor)
    nodes = [constant, d.make("DequantizeLinear", [constant.output[0], d.scalar(0.5)])]
    return d.group(nodes)[0]


MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    **dict.fromkeys(
        ("StringConcat", "StringSplit", "RegexFullMatch", "StringNormalizer", "TfIdfVectorizer"), text
    ),
    **dict.fromkeys(
        ("SequenceConstruct", "SequenceAt", "SequenceErase", "SequenceInsert", "SequenceEmpty",
         "SequenceLength", "SplitToSequence", "ConcatFromSequence"), sequences,
    ),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), optionals),
    **dict.fromkeys(
        ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
         "RandomUniformLike"), chance,
    ),
    **dict.fromkeys(
        ("DFT", "STFT", "BlackmanWindow", "HannWindow", "HammingWindow", "MelWeightMatrix"), signals
    ),
}  # fmt: skip
EXTRAS = (foreign, odd_types, four_bits)
__all__ = ["EXTRAS", "MAKERS", "MANY"]
