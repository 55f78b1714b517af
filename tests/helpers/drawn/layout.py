"""Operators that move, pick, join and make elements."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper

from tests.helpers.drawn.core import FLOATS, RefusedError
from tests.helpers.drawn.elementwise import MANY, axes, random_kind, with_axes

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.helpers.drawn.core import Drawing, Value

ANY = (*MANY, "bool", "str")
TO = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}


def cast(d: Drawing, op_type: str) -> Value:
    value = d.tensor([*MANY, "bool"])
    if d.chance(0.3):
        return _round_trip(d, value)
    goals = ["float32", "float64", "float16", "int64", "int32", "bool"]
    goal = str(d.choice(goals))
    source = value.name
    if goal == "bool" or (value.kind == "f" and goal not in FLOATS and d.chance(0.5)):
        source = value.name
    return d.one("Cast", [source], to=TO[goal])


def _round_trip(d: Drawing, value: Value) -> Value:
    """There and back, through a type that is wider, narrower, or one that NumPy has not."""
    back = TO[str(value.dtype)]
    middle = int(
        d.choice([1, 10, 11, 7, 6, 16 if d.opset >= 13 else 1, 17 if d.opset >= 19 else 10])
    )
    first = d.make("Cast", [value.name], to=middle)
    chain = [first]
    if d.chance(0.3):
        chain.append(d.make("Cast", [first.output[0]], to=int(d.choice([1, 11]))))
    chain.append(d.make("Cast", [chain[-1].output[0]], to=back))
    return d.group(chain)[0]


def cast_like(d: Drawing, op_type: str) -> Value:
    return d.one("CastLike", [d.tensor(MANY).name, d.tensor(MANY).name])


def concat(d: Drawing, op_type: str) -> Value:
    first = d.tensor(ANY, range(1, 5))
    axis = d.integer(0, first.rank)

    def joins(other: Value) -> bool:
        return (
            other.dtype == first.dtype
            and all(
                a.shape[:axis] + a.shape[axis + 1 :] == b.shape[:axis] + b.shape[axis + 1 :]
                for a, b in zip(first.worlds, other.worlds, strict=True)
                if a.ndim == b.ndim
            )
            and other.rank == first.rank
        )

    parts = [first.name]
    parts += [d.find(joins).name for _ in range(d.integer(0, 3))]
    if d.chance(0.3) and first.is_fixed and first.kind != "O":
        shape = list(first.shape)
        shape[axis] = d.integer(0, 3)
        parts.insert(d.integer(0, 2), d.weight(np.ones(shape, first.dtype)).name)
    axis = axis - first.rank if d.opset >= 11 and d.chance(0.3) else axis
    return d.one("Concat", parts, axis=axis)


def split(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor(ANY, range(1, 5), least=1)
    axis = d.integer(0, value.rank)
    size = value.shape[axis]
    if len({a.shape[axis] for a in value.worlds}) > 1:
        raise RefusedError("open axis")
    if d.opset >= 18 and d.chance(0.3):
        count = d.integer(1, size + 1)
        return d.node("Split", [value.name], count, axis=axis, num_outputs=count)
    cuts = sorted({0, size, *(d.integer(0, size + 1) for _ in range(2))})
    sizes = [b - a for a, b in itertools.pairwise(cuts)]
    if d.opset >= 13:
        made = d.node("Split", [value.name, d.ints(*sizes)], len(sizes), axis=axis)
    else:
        made = d.node("Split", [value.name], len(sizes), axis=axis, split=sizes)
    if d.chance(0.4):
        order = made if d.chance(0.6) else made[::-1]
        d.one("Concat", [part.name for part in order], axis=axis)
    return made


def transpose(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(5))
    order = [int(axis) for axis in d.rng.permutation(value.rank)]
    made = d.one("Transpose", [value.name], perm=order if d.chance(0.9) else None)
    if d.chance(0.35) and value.rank > 1:
        back = [order.index(axis) for axis in range(len(order))]
        if d.chance(0.2):
            back[0], back[1] = back[1], back[0]
        middle = (
            d.one("Relu", [made.name]) if d.chance(0.5) and str(value.dtype) == "float32" else made
        )
        return d.one("Transpose", [middle.name], perm=back)
    return made


def reshape(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(5))
    total = int(np.prod(value.shape))
    shape: list[int] = [-1]
    kind = d.integer(0, 5)
    if kind == 1 and value.rank >= 2:
        shape = [0, -1]
    elif kind == 2 and value.rank:
        axis = d.integer(0, value.rank + 1)
        shape = [0] * axis + [1, -1] + list(value.shape[axis + 1 :])
    elif kind == 3 and value.is_fixed:
        shape = [int(size) for size in value.shape[::-1]]
    elif kind == 4 and total % 2 == 0 and total:
        shape = [-1, 2] if d.chance(0.5) else [2, -1]
    attributes = {}
    if d.opset >= 14 and d.chance(0.2) and -1 not in shape:
        attributes = {"allowzero": 1}
    if value.rank and d.chance(0.3):
        return d.one("Reshape", [value.name, _shape_of(d, value, shape)])
    return d.one("Reshape", [value.name, d.ints(*shape)], **attributes)


def _shape_of(d: Drawing, value: Value, fallback: list[int]) -> str:
    """A target as exporters compute it: from sizes of the value."""
    shape = d.one("Shape", [value.name])
    kind = d.integer(0, 3)
    if kind == 0:
        return shape.name
    first = d.one("Gather", [shape.name, d.scalar(0, "int64")], axis=0)
    first = with_axes(d, "Unsqueeze", first.name, [0], 13)
    rest = d.ints(-1)
    if kind == 1 and value.rank > 1:
        last = d.one("Gather", [shape.name, d.ints(value.rank - 1)], axis=0)
        return d.one("Concat", [first.name, rest, last.name], axis=0).name
    return d.one("Concat", [first.name, rest], axis=0).name


def squeeze(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(5))
    ones = [i for i in range(value.rank) if all(a.shape[i] == 1 for a in value.worlds)]
    if d.chance(0.15):
        return d.one("Squeeze", [value.name])
    if not ones:
        value = unsqueeze(d, "Unsqueeze")
        ones = [i for i in range(value.rank) if all(a.shape[i] == 1 for a in value.worlds)]
    chosen = [axis for axis in ones if d.chance(0.7)] or ones[:1]
    if d.opset >= 11 and d.chance(0.3):
        chosen = [axis - value.rank for axis in chosen]
    return with_axes(d, "Squeeze", value.name, chosen, 13)


def unsqueeze(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(4))
    count = d.integer(1, 3)
    rank = value.rank + count
    chosen = [int(axis) for axis in d.rng.permutation(rank)[:count]]
    if d.opset >= 11 and d.chance(0.3):
        chosen = [axis - rank for axis in chosen]
    return with_axes(d, "Unsqueeze", value.name, chosen if d.chance(0.5) else sorted(chosen), 13)


def flatten(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(5))
    low = -value.rank if d.opset >= 11 else 0
    return d.one("Flatten", [value.name], axis=d.integer(low, value.rank + 1))


def slices(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 5))
    if d.opset < 10:
        found = sorted({axis % value.rank for axis in axes(d, value)})
    else:
        found = axes(d, value)
        found = list({axis % value.rank: axis for axis in found}.values())
    starts = [d.choice([0, 0, 1, -1, -2, 10, -10]) for _ in found]
    ends = [d.choice([1, 2, 3, -1, 2**31 - 1, 2**63 - 1, -10, 100]) for _ in found]
    if d.opset < 10:
        return d.one("Slice", [value.name], starts=starts, ends=ends, axes=found)
    dtype = "int64"
    steps = [d.choice([1, 1, 1, 2, -1, -2]) for _ in found]
    ends = [
        -(2**63) + 1 if s < 0 and d.chance(0.5) else e for s, e in zip(steps, ends, strict=True)
    ]
    inputs = [value.name, d.ints(*starts, dtype=dtype), d.ints(*ends, dtype=dtype), d.ints(*found)]
    return d.one("Slice", [*inputs, d.ints(*steps)] if d.chance(0.7) else inputs)


def gather(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 5), least=1)
    axis = d.integer(0, value.rank)
    size = min(a.shape[axis] for a in value.worlds)
    low = -size if d.opset >= 11 else 0
    shape = d.choice([(), (1,), (2,), (2, 2), (0,)])
    if d.chance(0.25):
        indices = d.root().add_input(str(d.choice(["int64", "int32"])), shape, bound=size).name
    else:
        array = d.rng.integers(low, size, shape)
        indices = d.weight(np.asarray(array, d.choice(["int64", "int32"]))).name
    return d.one("Gather", [value.name, indices], axis=axis if d.chance(0.8) else axis - value.rank)


def gather_elements(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 4), least=1, fits=lambda v: v.is_fixed)
    axis = d.integer(0, value.rank)
    array = d.rng.integers(-value.shape[axis], value.shape[axis], value.shape)
    return d.one(op_type, [value.name, d.weight(np.asarray(array, np.int64)).name], axis=axis)


def gather_nd(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 4), least=1)
    depth = d.integer(1, value.rank + 1)
    sizes = [min(a.shape[i] for a in value.worlds) for i in range(depth)]
    array = np.stack([d.rng.integers(0, size, 3) for size in sizes], axis=-1)
    return d.one(op_type, [value.name, d.weight(array.astype(np.int64)).name])


def scatter_elements(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 4), least=1, fits=lambda v: v.is_fixed)
    axis = d.integer(0, value.rank)
    order = np.argsort(d.rng.random(value.shape), axis=axis)
    update = d.find(lambda v: v.dtype == value.dtype and v.shape == value.shape and v.is_fixed)
    attributes: dict[str, Any] = {"axis": axis}
    if d.opset >= 18 and value.kind != "O":
        attributes["reduction"] = str(d.choice(["none", "add", "mul", "max", "min"]))
    indices = d.weight(order.astype(np.int64)).name
    return d.one(op_type, [value.name, indices, update.name], **attributes)


def scatter_nd(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 4), least=1, fits=lambda v: v.is_fixed)
    rows = np.asarray(d.rng.permutation(value.shape[0])[: d.integer(1, 3)], np.int64)[:, None]
    updates = d.one("Gather", [value.name, d.weight(rows[::-1, 0]).name], axis=0)
    attributes = {}
    if d.opset >= 16 and value.kind == "f":
        attributes = {"reduction": str(d.choice(["none", "add", "mul"]))}
    return d.one("ScatterND", [value.name, d.weight(rows).name, updates.name], **attributes)


def expand(d: Drawing, op_type: str) -> Value:
    value = d.tensor(MANY, range(4))
    target = (
        [1 if d.chance(0.5) else size for size in value.shape]
        if value.is_fixed
        else [1] * value.rank
    )
    target = [d.integer(1, 4) if size == 1 and d.chance(0.5) else size for size in target]
    if d.chance(0.3):
        target = [d.integer(1, 3), *target]
    return d.one("Expand", [value.name, d.ints(*target)])


def tile(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(1, 4))
    return d.one("Tile", [value.name, d.ints(*(d.choice([1, 1, 2, 0]) for _ in value.shape))])


def pad(d: Drawing, op_type: str) -> Value:
    value = d.tensor(["float32", "float32", "float64", "int64", "int32"], range(1, 5), least=2)
    mode = str(d.choice(["constant", "constant", "reflect", "edge", "constant"]))
    if mode == "constant" and d.chance(0.2):
        pads = [d.choice([0, 1, -1]) for _ in range(2 * value.rank)]
    else:
        pads = [d.choice([0, 0, 1]) for _ in range(2 * value.rank)]
    if d.opset < 11:
        if str(value.dtype) not in FLOATS:
            raise RefusedError("type")
        return d.one("Pad", [value.name], pads=pads, mode=mode, value=d.choice([0.0, 1.5, None]))
    inputs = [value.name, d.ints(*pads)]
    if d.chance(0.5):
        inputs.append(d.scalar(d.choice([0, 1, 2]), value.dtype))
    if d.opset >= 18 and d.chance(0.3):
        count = d.integer(1, value.rank + 1)
        found = [int(axis) for axis in d.rng.permutation(value.rank)[:count]]
        inputs[1] = d.ints(*pads[: 2 * count])
        inputs = [*inputs, *([""] if len(inputs) == 2 else []), d.ints(*found)]
    return d.one("Pad", inputs, mode=mode)


def shape(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY)
    attributes: dict[str, Any] = {}
    if d.opset >= 15 and d.chance(0.5):
        attributes = {"start": d.integer(-2, 3), "end": d.choice([None, 1, 2, -1])}
    return d.one("Shape", [value.name], **attributes)


def size(d: Drawing, op_type: str) -> Value:
    return d.one("Size", [d.tensor(ANY).name])


def constant_of_shape(d: Drawing, op_type: str) -> Value:
    dtype = str(d.choice(["float32", "int64", "bool", "float64", "int32"]))
    fill = numpy_helper.from_array(np.array([d.choice([0, 1, 2])], dtype))
    source = d.ints(*(d.integer(0, 4) for _ in range(d.integer(0, 4))))
    if d.chance(0.5):
        source = d.one("Shape", [d.tensor(ANY).name]).name
    return d.one("ConstantOfShape", [source], value=fill if d.chance(0.8) else None)


def constant(d: Drawing, op_type: str) -> Value:
    d.since("Constant")
    if d.opset >= 11 and d.chance(0.3):
        indices = helper.make_tensor("i", 7, [2], [0, 3])
        values = helper.make_tensor("w", 1, [2], [d.real(), d.real()])
        sparse = helper.make_sparse_tensor(values, indices, [5])
        return d.one("Constant", [], sparse_value=sparse)
    array = d.rng.normal(size=d.choice([(), (2,), (1, 3)])).astype(str(d.choice(FLOATS)))
    return d.one("Constant", [], value=numpy_helper.from_array(array))


def range_(d: Drawing, op_type: str) -> Value:
    dtype = str(d.choice(["int64", "int32", "float32"]))
    start, limit, delta = d.choice([(0, 4, 1), (3, 0, -1), (0, 5, 2), (0, 0, 1)])
    end = d.scalar(limit, dtype)
    if dtype == "int64" and d.chance(0.5):
        end = d.one("Size", [d.tensor(ANY).name]).name
    return d.one(
        "Range", [d.scalar(start, dtype), end, d.scalar(abs(delta) if end else delta, dtype)]
    )


def eye_like(d: Drawing, op_type: str) -> Value:
    return d.one(
        "EyeLike", [d.tensor(MANY, [2]).name], k=d.integer(-1, 2), dtype=d.choice([None, 1, 7])
    )


def compress(d: Drawing, op_type: str) -> Value:
    value = d.tensor(ANY, range(1, 4), least=1)
    axis = d.integer(0, value.rank) if d.chance(0.7) else None
    flags = d.weight(np.asarray(d.rng.integers(0, 2, 2) if d.chance(0.8) else [1], bool)).name
    return d.one("Compress", [value.name, flags], axis=axis)


def non_zero(d: Drawing, op_type: str) -> Value:
    return d.one("NonZero", [d.tensor([random_kind(d, op_type)], range(1, 4)).name])


def unique(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor([random_kind(d, op_type)], range(1, 3), least=1)
    return d.node("Unique", [value.name], d.integer(1, 5), sorted=d.integer(0, 2),
                  axis=d.choice([None, 0]))  # fmt: skip


def one_hot(d: Drawing, op_type: str) -> Value:
    indices = d.root().add_input("int64", (d.choice(["N", 2]), 2), bound=4)
    values = d.weight(np.array([0, 1], d.choice(["float32", "int64"])))
    return d.one("OneHot", [indices.name, d.scalar(4, "int64"), values.name], axis=d.integer(-1, 2))


def top_k(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor([random_kind(d, op_type)], range(1, 4), least=2)
    axis = d.integer(0, value.rank)
    k = d.integer(1, min(a.shape[axis] for a in value.worlds) + 1)
    if d.opset < 10:
        return d.node("TopK", [value.name], 2, axis=axis, k=k)
    return d.node("TopK", [value.name, d.ints(k)], 2, axis=axis)


def trilu(d: Drawing, op_type: str) -> Value:
    value = d.tensor([random_kind(d, op_type)], range(2, 4))
    k = [d.scalar(d.integer(-2, 3), "int64")] if d.chance(0.5) else []
    return d.one("Trilu", [value.name, *k], upper=d.integer(0, 2))


def depth_and_space(d: Drawing, op_type: str) -> Value:
    if op_type == "DepthToSpace":
        mode = {"mode": str(d.choice(["DCR", "CRD"]))} if d.opset >= 11 else {}
        value = d.new("float32", ("N", 4, 2, 3))
        return d.one(op_type, [value.name], blocksize=2, **mode)
    return d.one(op_type, [d.new("float32", ("N", 1, 4, 2)).name], blocksize=2)


def reverse_sequence(d: Drawing, op_type: str) -> Value:
    value = d.new("float32", (3, 2, 2))
    lengths = d.weight(np.array([1, 3], np.int64))
    return d.one(op_type, [value.name, lengths.name], time_axis=0, batch_axis=1)


def dropout(d: Drawing, op_type: str) -> list[Value]:
    value = d.tensor(["float32"], range(5))
    outputs = d.choice([1, 1, 2])
    if d.opset < 12:
        return d.node("Dropout", [value.name], outputs, ratio=d.choice([None, 0.0, 0.3]))
    inputs = [value.name, d.scalar(0.4) if d.chance(0.5) else ""]
    if d.chance(0.4):
        inputs.append(d.weight(np.array(False)).name)
    return d.node("Dropout", inputs, outputs)


def center_crop_pad(d: Drawing, op_type: str) -> Value:
    value = d.tensor(["float32"], range(1, 4), least=1)
    return d.one(op_type, [value.name, d.ints(d.integer(1, 5))], axes=[d.integer(0, value.rank)])


def tensor_scatter(d: Drawing, op_type: str) -> Value:
    past, update = d.new("float32", (2, 4, 3)), d.new("float32", (2, 2, 3))
    return d.one(op_type, [past.name, update.name, d.ints(0, 1)], axis=1)


MAKERS: dict[str, Callable[[Drawing, str], object]] = {
    "Cast": cast, "CastLike": cast_like, "Concat": concat, "Split": split, "Transpose": transpose,
    "Reshape": reshape, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Flatten": flatten,
    "Slice": slices, "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd,
    "Scatter": scatter_elements, "ScatterElements": scatter_elements, "ScatterND": scatter_nd,
    "Expand": expand, "Tile": tile, "Pad": pad, "Shape": shape, "Size": size,
    "ConstantOfShape": constant_of_shape, "Constant": constant, "Range": range_,
    "EyeLike": eye_like, "Compress": compress, "NonZero": non_zero, "Unique": unique,
    "OneHot": one_hot, "TopK": top_k, "Trilu": trilu, "DepthToSpace": depth_and_space,
    "SpaceToDepth": depth_and_space, "ReverseSequence": reverse_sequence, "Dropout": dropout,
    "CenterCropPad": center_crop_pad, "TensorScatter": tensor_scatter,
}  # fmt: skip
