"""The original with every rounding disturbed: how far its own results move is how far they may be off."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.ir.fragile import make_inferable
from onnxcomp.ir.scopes import proto_graphs
from tests.helpers.drawn.core import RUNTIME_ERRORS, open_session

# These hand on or compare numbers and round nothing.
_NAMES = (
    "Identity Reshape Transpose Squeeze Unsqueeze Flatten Slice Gather GatherElements GatherND Expand Tile "
    "Concat Split Pad Where Relu Abs Neg Max Min Clip Sign Floor Ceil Round MaxPool GlobalMaxPool ReduceMax "
    "ReduceMin TopK Dropout Compress ScatterElements ScatterND Scatter Trilu DepthToSpace SpaceToDepth "
    "ReverseSequence Constant ConstantOfShape Loop If Scan Range EyeLike OneHot Unique Hardmax Cast "
    "SequenceConstruct SequenceAt ConcatFromSequence QuantizeLinear Resize Upsample CenterCropPad "
    "Optional OptionalGetElement SequenceInsert SequenceErase SequenceEmpty SplitToSequence CastLike"
)
_EXACT = frozenset(_NAMES.split())
_RUNS = 16
# Reordered sums are off by some units in the last place for each term.
_UNITS = 2.0
_KINDS: dict[int, float] = {
    TensorProto.FLOAT: 2.0**-23,
    TensorProto.DOUBLE: 2.0**-52,
    TensorProto.FLOAT16: 2.0**-10,
}
_SLACK = 8.0


def is_as_far(
    proto: onnx.ModelProto, feeds: dict[str, np.ndarray], expected: list[Any], got: list[Any]
) -> bool:
    """Whether disturbing the last place of inputs, weights and results moves the outputs as far.

    Then the model is ill-conditioned there, and one order of summation as right as another.
    """
    noisy = []
    for seed in range(_RUNS):
        try:
            session = open_session(disturbed(proto, seed))
            noisy.append(session.run(None, nudged(feeds, seed)))
        except RUNTIME_ERRORS:
            continue
    return all(
        _covers([np.asarray(run[i]) for run in noisy], np.asarray(one), np.asarray(two))
        for i, (one, two) in enumerate(zip(expected, got, strict=True))
    )


def _covers(noisy: list[np.ndarray], one: np.ndarray, two: np.ndarray) -> bool:
    """Whether the noise moves an output as far as the rewrite did."""
    if one.dtype != two.dtype:
        return False
    if one.shape != two.shape:
        return any(other.shape != one.shape for other in noisy)
    noisy = [other for other in noisy if other.shape == one.shape]
    if one.dtype.kind not in "fc":
        moved = max((int((other != one).sum()) for other in noisy), default=0)
        return int((two != one).sum()) <= 2 * moved
    with np.errstate(all="ignore"):
        finite = np.isfinite(one)
        broken = finite != np.isfinite(two)
        if broken.any() and not any((np.isfinite(other) != finite).any() for other in noisy):
            return False
        off = np.abs(two - one)[finite & np.isfinite(two)].max(initial=0)
        peak = np.abs(one[finite]).max(initial=0)
        if off <= 1e-37 + 2e-5 * peak:
            return True
        swing = [np.abs(o - one)[finite & np.isfinite(o)].max(initial=0) for o in noisy]
        return bool(off <= _SLACK * max(swing, default=0))


def nudged(feeds: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Inputs off by one unit in the last place."""
    rng = np.random.default_rng(seed)
    return {
        name: _nudge(array, rng) if array.dtype.kind == "f" else array
        for name, array in feeds.items()
    }


def _nudge(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ends = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(array.dtype)
    with np.errstate(all="ignore"):
        moved = np.nextafter(array, ends)
    return np.where(np.isfinite(moved) & (rng.random(array.shape) < 0.7), moved, array).astype(
        array.dtype
    )


def disturbed(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """A copy in which whatever rounds is multiplied by one and a bit, element by element."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = next(o.version for o in copy.opset_import if o.domain in {"", "ai.onnx"})
    types = _types(copy)
    rng = np.random.default_rng(seed)
    _disturb(copy.graph, types, opset, rng, [0])
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.dtype != np.float16:
            tensor.CopyFrom(numpy_helper.from_array(_nudge(array, rng), tensor.name))
    return copy


def is_unstable(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> bool:
    """Whether some kernel gives another result each time: one that reads memory it did not write."""
    runs = []
    for number in range(4):
        # Whatever was freed last is what an allocation finds.
        del_me = [np.full(size, number + 0.5, np.float32) for size in (16, 64, 256, 1024, 4096)]
        del del_me
        try:
            runs.append(open_session(exposed(proto)).run(None, feeds))
        except RUNTIME_ERRORS:
            return False
    return any(
        not isinstance(one, list)
        and np.asarray(one).dtype.kind != "O"
        and np.asarray(one).tobytes() != np.asarray(two).tobytes()
        for run in runs[1:]
        for one, two in zip(runs[0], run, strict=True)
    )


def overflows(
    before: onnx.ModelProto, after: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> bool:
    """Whether some value in one of the models is infinite or NaN."""
    for proto in (before, after):
        try:
            found = open_session(exposed(proto)).run(None, feeds)
        except RUNTIME_ERRORS:
            continue
        for value in found:
            array = None if isinstance(value, list) else np.asarray(value)
            if array is not None and array.dtype.kind == "f" and not np.isfinite(array).all():
                return True
    return False


def exposed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose every tensor is an output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {output.name for output in copy.graph.output}
    odd = {TensorProto.BFLOAT16, TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT8E4M3FN}
    types = _types(proto)
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in known and types.get(name, 16) not in odd:
                copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


def element_types(proto: onnx.ModelProto) -> set[int]:
    """Every element type in a model, as far as inference finds them."""
    found = set(_types(proto).values()) | {t.data_type for t in proto.graph.initializer}
    found |= {info.type.tensor_type.elem_type for info in proto.graph.input}
    nodes = (node for graph in proto_graphs(proto) for node in graph.node)
    casts = [a.i for node in nodes for a in node.attribute if a.name == "to"]
    return found | set(casts)


def _types(proto: onnx.ModelProto) -> dict[str, int]:
    """Element types of values, bodies included."""
    try:
        inferred = onnx.ModelProto.FromString(proto.SerializeToString())
        if make_inferable(inferred):
            inferred = onnx.shape_inference.infer_shapes(inferred)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        inferred = proto
    types: dict[str, int] = {}

    def collect(graph: onnx.GraphProto) -> None:
        for info in (*graph.value_info, *graph.output):
            if info.type.HasField("tensor_type"):
                types[info.name] = info.type.tensor_type.elem_type
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    collect(attribute.g)

    collect(inferred.graph)
    return types


def _disturb(
    graph: onnx.GraphProto,
    types: dict[str, int],
    opset: int,
    rng: np.random.Generator,
    count: list[int],
) -> None:
    nodes = []
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _disturb(attribute.g, types, opset, rng, count)
        nodes.append(node)
        if not node.domain and node.op_type in _EXACT and not _narrows(node):
            continue
        for index, name in enumerate(node.output):
            kind = types.get(name, 0)
            if name and kind in _KINDS:
                count[0] += 1
                raw = f"{name}__raw{count[0]}"
                node.output[index] = raw
                nodes += _noise(raw, name, kind, opset, rng)
    del graph.node[:]
    graph.node.extend(nodes)


def _narrows(node: onnx.NodeProto) -> bool:
    """Whether a node makes float16, which the runtime may or may not round to."""
    return any(a.name == "to" and a.i == TensorProto.FLOAT16 for a in node.attribute)


def _noise(
    raw: str, name: str, kind: int, opset: int, rng: np.random.Generator
) -> list[onnx.NodeProto]:
    """name = raw * (1 + unit * sin(raw * frequency + phase))."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)

    def constant(number: float, suffix: str) -> onnx.NodeProto:
        tensor = numpy_helper.from_array(np.array(number, dtype))
        return helper.make_node("Constant", [], [raw + suffix], value=tensor)

    unit = _KINDS[kind] * _UNITS
    fast = 1e2 if kind == TensorProto.FLOAT16 else 1e5
    return [
        constant(float(rng.uniform(fast / 10, fast)), "_f"), constant(float(rng.uniform(0, 6)), "_p"),
        constant(unit, "_u"), constant(1.0, "_1"),
        helper.make_node("Mul", [raw, raw + "_f"], [raw + "_a"]),
        helper.make_node("Add", [raw + "_a", raw + "_p"], [raw + "_b"]),
        helper.make_node("Sin" if kind == TensorProto.FLOAT or opset >= 7 else "Tanh", [raw + "_b"], [raw + "_c"]),
        helper.make_node("Mul", [raw + "_c", raw + "_u"], [raw + "_d"]),
        helper.make_node("Add", [raw + "_1", raw + "_d"], [raw + "_e"]),
        helper.make_node("Mul", [raw, raw + "_e"], [name]),
    ]  # fmt: skip
