"""Running a model in two independent ways, on seeded feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

Feeds = Mapping[str, np.ndarray]
RUNTIMES = ("reference", "onnxruntime")


def seeded_feeds(proto: onnx.ModelProto, variant: int = 0) -> dict[str, np.ndarray]:
    """Returns feeds for every input that has no default.

    A symbolic dimension has one size throughout; the sizes differ between variants, so that a rewrite
    which guessed one is found out.
    """
    defaults = {tensor.name for tensor in proto.graph.initializer}
    feeds = {}
    for value in proto.graph.input:
        if value.name in defaults:
            continue
        tensor = value.type.tensor_type
        shape = [_size(dim, variant) for dim in tensor.shape.dim]
        seed = crc32(f"{value.name}/{variant}".encode())
        feeds[value.name] = _random(np.random.default_rng(seed), tensor.elem_type, shape)
    return feeds


def _size(dim: onnx.TensorShapeProto.Dimension, variant: int) -> int:
    if dim.HasField("dim_value"):
        return dim.dim_value
    return 2 + (crc32(dim.dim_param.encode()) + 3 * variant) % 4


def _random(rng: np.random.Generator, dtype: int, shape: Sequence[int]) -> np.ndarray:
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    if kind.kind == "O":
        return rng.choice(np.array(["a", "b", "cd"], object), shape)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    if kind.kind in "iu":
        return rng.integers(0, 3, shape).astype(kind)
    return (rng.normal(size=shape) * 2).astype(kind)


def run(proto: onnx.ModelProto, feeds: Feeds, runtime: str) -> list[Any]:
    """Returns the outputs of a model, in order."""
    if runtime == "reference":
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, dict(feeds)))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def assert_same_numbers(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    feeds: Feeds,
    *,
    runtimes: Sequence[str] = RUNTIMES,
    rtol: float = 0.0,
    atol: float = 0.0,
) -> None:
    """Fails unless both models give the same outputs: types, shapes and values (NaN equals NaN)."""
    names = [value.name for value in before.graph.output]
    for runtime in runtimes:
        expected = run(before, feeds, runtime)
        got = run(after, feeds, runtime)
        for name, first, second in zip(names, expected, got, strict=True):
            _assert_equal(first, second, f"output {name} in {runtime}", rtol, atol)


def _assert_equal(first: Any, second: Any, what: str, rtol: float, atol: float) -> None:
    if isinstance(first, (list, tuple)):
        assert len(first) == len(second), what
        for one, two in zip(first, second, strict=True):
            _assert_equal(one, two, what, rtol, atol)
        return
    if not isinstance(first, (np.ndarray, np.generic)):
        assert first == second, what
        return
    a, b = np.asarray(first), np.asarray(second)
    assert a.dtype == b.dtype, f"{what}: {a.dtype} became {b.dtype}"
    assert a.shape == b.shape, f"{what}: {a.shape} became {b.shape}"
    if a.dtype.kind in "fcV" and (rtol or atol):
        np.testing.assert_allclose(
            b.astype(np.float64), a.astype(np.float64), rtol=rtol, atol=atol, err_msg=what
        )
    else:
        np.testing.assert_array_equal(b, a, err_msg=what)
