"""Never wrong, nothing lost: valid models in which careless tools fall."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from tests.helpers.check import serialized
from tests.helpers.numbers import run, seeded_feeds
from tests.reliability.traps import TRAPS

SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40], np.float32)
# Reordered sums may differ in the last place; everything else must not.
REORDERS = ("opset", "shared weights")


def simplified(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Without the comparison of numbers, which would hide what a pass does wrong."""
    return Pipeline.parse(SIMPLIFY).run(proto).model.to_proto()


def all_feeds(proto: onnx.ModelProto, runtime: str) -> list[dict[str, np.ndarray]]:
    feeds = [seeded_feeds(proto, 0), seeded_feeds(proto, 1)]
    if runtime == "reference":  # its pooling takes NaN for padding
        return feeds
    if not any(np.asarray(value).dtype == np.float32 for value in feeds[0].values()):
        return feeds
    special = {
        name: np.resize(SPECIAL, value.shape) if value.dtype == np.float32 else value
        for name, value in feeds[0].items()
    }
    overriding = dict(feeds[0])
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name in inputs and proto.ir_version >= 4:
            array = onnx.numpy_helper.to_array(tensor)
            overriding[tensor.name] = array + np.ones_like(array)
    return [*feeds, special, overriding]


def outcomes(proto: onnx.ModelProto, runtime: str) -> list[list[Any]] | None:
    """What a runtime makes of a model, None when it cannot run it at all."""
    normalises = any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    if runtime == "reference" and normalises and 9 <= proto.opset_import[0].version < 14:
        return None  # it takes these versions for training
    if runtime == "reference" and any(node.op_type == "Optional" for node in proto.graph.node):
        return None  # it gives what is in an optional as a list of one
    try:
        with np.errstate(all="ignore"):
            return [run(proto, feeds, runtime) for feeds in all_feeds(proto, runtime)]
    except Exception:  # noqa: BLE001 - evaluators lack types and versions, each in its own words
        return None


def assert_equal(expected: Any, got: Any, *, exact: bool) -> None:
    if isinstance(expected, list):
        assert len(expected) == len(got)
        for one, two in zip(expected, got, strict=True):
            assert_equal(one, two, exact=exact)
        return
    first, second = np.asarray(expected), np.asarray(got)
    assert (first.dtype, first.shape) == (second.dtype, second.shape)
    if exact or first.dtype.kind not in "f":
        np.testing.assert_array_equal(second, first)
        if first.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(second), np.signbit(first))
    else:
        np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRAPS)
@pytest.mark.filterwarnings("ignore")
def test_numbers_and_interface_are_kept(name: str) -> None:
    proto = TRAPS[name]
    before = serialized(proto)
    got = simplified(proto)
    assert serialized(proto) == before
    for kind in ("input", "output"):
        kept, made = getattr(proto.graph, kind), getattr(got.graph, kind)
        assert [value.name for value in made] == [value.name for value in kept]
        assert [value.type.SerializeToString() for value in made] == [
            value.type.SerializeToString() for value in kept
        ]
    assert (got.ir_version, list(got.opset_import)) == (proto.ir_version, list(proto.opset_import))
    ran = 0
    for runtime in ("reference", "onnxruntime"):
        expected = outcomes(proto, runtime)
        if expected is not None and "random" not in name:
            ran += 1
            assert_equal(expected, outcomes(got, runtime), exact=not name.startswith(REORDERS))
    assert ran or "random" in name


@pytest.mark.parametrize("name", TRAPS)
def test_a_second_run_changes_nothing(name: str) -> None:
    once = simplified(TRAPS[name])
    assert serialized(simplified(once)) == serialized(once)


@pytest.mark.parametrize("name", ["everything decorated"])
def test_what_a_model_says_beside_its_graph_is_kept(name: str) -> None:
    proto = TRAPS[name]
    got = onnxcomp.optimize(proto).model.to_proto()
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string",
                  "metadata_props", "training_info", "functions"):  # fmt: skip
        assert getattr(got, field) == getattr(proto, field), field
    for field in ("doc_string", "metadata_props", "quantization_annotation", "input", "output"):
        assert getattr(got.graph, field) == getattr(proto.graph, field), field
    assert got.graph.node[-1].doc_string == "about the node"
    assert proto.graph.node[2].metadata_props[0] in got.graph.node[-1].metadata_props
    assert got.graph.initializer[0].doc_string == "about the weight"


def test_random_numbers_stay_two() -> None:
    got = simplified(TRAPS["random numbers"])
    assert [node.op_type for node in got.graph.node] == ["RandomUniform", "RandomUniform"]


def test_an_operator_of_ones_own_is_not_the_standard_one() -> None:
    got = simplified(TRAPS["own Relu"])
    assert [(node.domain, node.op_type) for node in got.graph.node] == [
        ("", "Relu"),
        ("own", "Relu"),
        ("own", "Identity"),
    ]


def test_bits_of_weights_are_kept() -> None:
    proto = TRAPS["bits of special numbers"]
    got = run(simplified(proto), {"x": np.zeros(6, np.float32)}, "onnxruntime")[1]
    expected = onnx.numpy_helper.to_array(proto.graph.initializer[0])
    assert got.tobytes() == expected.tobytes()
