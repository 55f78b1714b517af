"""prune-channels: what can be made up for exactly is, in every kind of layer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support.arithmetic import arithmetic
from onnxcomp_passes.prune.support.bends import path_of
from onnxcomp_passes.prune.support.selection import Candidate, counts, given_back
from tests.helpers.numbers import run, seeded_feeds
from tests.helpers.text import model
from tests.passes.test_shrink_channels import FAMILIES

if TYPE_CHECKING:
    from onnxcomp.pipeline import Result

    Feeds = list[dict[str, np.ndarray]]


def put(proto: onnx.ModelProto, **tensors: np.ndarray) -> onnx.ModelProto:
    """Replaces initializers."""
    for tensor in proto.graph.initializer:
        if tensor.name in tensors:
            array = tensors[tensor.name].astype("f4")
            assert array.shape == tuple(tensor.dims)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def twice(array: np.ndarray, axis: int) -> np.ndarray:
    """Every position of an axis twice."""
    return np.repeat(array, 2, axis)


def drawn(shape: tuple[int, ...], count: int = 24, seed: int = 5) -> Feeds:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]


def decibels(proto: onnx.ModelProto, result: Result, shape: tuple[int, ...]) -> float:
    with Session.open(proto) as before, Session.open(result.model) as after:
        return compare(before, after, drawn(shape, seed=77)).worst("sqnr_db") or 0.0


def prune(proto: onnx.ModelProto, feeds: Feeds | None, **options: Any) -> Result:
    step = PruneChannels(**{"ratio": 0.5, "multiple": 1, **options})
    return Pipeline((step,)).run(proto, samples=feeds, threads=1)


KEPT = ("reader",)
HEAD = "p = GlobalAveragePool (r) f = Flatten (p) y = MatMul (f, v)"
READERS = {
    "conv": ("float[6, 8, 3, 3] w", "[reader] c = Conv <pads = [1, 1, 1, 1]> (a, w) r = Relu (c)"),
    "transposed": (
        "float[8, 6, 2, 2] w",
        "[reader] c = ConvTranspose <strides = [2, 2]> (a, w) r = Relu (c)",
    ),
    "grouped": ("float[6, 4, 1, 1] w", "[reader] c = Conv <group = 2> (a, w) r = Relu (c)"),
    "normalized": (
        "float[6, 8, 1, 1] w, float[6] s, float[6] o, float[6] m, float[6] n = {1, 2, 3, 4, 5, 6}",
        "[reader] c = Conv (a, w) b = BatchNormalization (c, s, o, m, n) r = Relu (b)",
    ),
    "sloped": (
        "float[6, 8, 1, 1] w, float[6, 1, 1] s = {0, 0.1, 0.2, 0.3, 0.4, 0.5}",
        "[reader] c = Conv (a, w) r = PRelu (c, s)",
    ),
    "clipped": (
        "float[6, 8, 1, 1] w, float low = {0}, float high = {2}",
        "[reader] c = Conv (a, w) r = Clip (c, low, high)",
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_channels_that_repeat_others_are_no_loss(kind: str) -> None:
    weights, text = READERS[kind]
    proto = model(f"""
        g (float[1, 3, 6, 6] x) => (float[1, 5] y)
        <float[8, 3, 3, 3] k, float[8] z, {weights}, float[6, 5] v> {{
          q = Conv <pads = [1, 1, 1, 1]> (x, k, z)
          a = Relu (q)
          {text}
          {HEAD}
        }}""")
    rng = np.random.default_rng(0)
    once = rng.normal(size=(4, 3, 3, 3)) / 3
    put(proto, k=twice(once, 0), z=twice(rng.normal(size=4), 0))
    plain = prune(proto, drawn((1, 3, 6, 6)), reconstruct=False, skip=KEPT)
    fitted = prune(proto, drawn((1, 3, 6, 6), 96), skip=KEPT)
    left = {value.name: value.shape for value in fitted.model.graph.initializers.values()}
    assert left["k"][0] == 4  # type: ignore[index]
    assert decibels(proto, plain, (1, 3, 6, 6)) < 20
    assert decibels(proto, fitted, (1, 3, 6, 6)) > 50


LINEAR = {
    "gemm": "m = Gemm (a, w, b)",
    "scaled": "m = Gemm <alpha = 0.5, beta = 3.0> (a, w, b)",
    "product": "q = MatMul (a, w) m = Add (q, b)",
}


@pytest.mark.parametrize("kind", LINEAR)
def test_a_layer_behind_repeated_channels_is_fitted_exactly(kind: str) -> None:
    proto = model(f"""
        g (float[4, 6] x) => (float[4, 5] m) <float[6, 8] k, float[8] z, float[8, 5] w, float[5] b> {{
          c = Gemm (x, k, z)
          a = Relu (c)
          {LINEAR[kind]}
        }}""")
    rng = np.random.default_rng(0)
    put(proto, k=twice(rng.normal(size=(6, 4)), 1), z=twice(rng.normal(size=4), 0))
    plain = prune(proto, drawn((4, 6)), reconstruct=False)
    assert decibels(proto, plain, (4, 6)) < 20
    assert decibels(proto, prune(proto, drawn((4, 6))), (4, 6)) > 50


@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_that_read_repeated_channels(cell: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cell] * 3
    proto = model(f"""
        g (float[5, 2, 6] x) => (y)
        <float[6, 8] k, float[2, {gates}, 8] w, float[2, {gates}, 3] r, float[2, {2 * gates}] b> {{
          a = MatMul (x, k)
          y = {cell} <hidden_size = 3, direction = "bidirectional"> (a, w, r, b)
        }}""")
    rng = np.random.default_rng(0)
    put(proto, k=twice(rng.normal(size=(6, 4)), 1))
    plain = prune(proto, drawn((5, 2, 6)), reconstruct=False)
    assert decibels(proto, plain, (5, 2, 6)) < 30
    fitted = prune(proto, drawn((5, 2, 6)))
    assert decibels(proto, fitted, (5, 2, 6)) > 60
    with Session.open(proto) as before:
        names = [spec.name for spec in before.outputs]
    assert [spec.name for spec in fitted.model.signature().outputs] == names


def test_what_one_branch_loses_another_makes_up_for() -> None:
    """All is linear: what the path through the narrow layer loses, the layer beside it can give."""
    proto = model("""
        g (float[4, 6] x) => (float[4, 3] y)
        <float[6, 4] k, float[4, 5] w, float[6, 5] u, float[5, 3] v> {
          h = MatMul (x, k)
          a = MatMul (h, w)
          b = MatMul (x, u)
          s = Add (a, b)
          r = Relu (s)
          y = MatMul (r, v)
        }""")
    skip = {"skip": ("u", "w", "a", "b")}
    names = iter("habsry")
    for node in proto.graph.node:
        node.name = next(names)
    plain = prune(proto, drawn((4, 6)), reconstruct=False, **skip)
    assert decibels(proto, plain, (4, 6)) < 20
    fitted = prune(proto, drawn((4, 6)), **skip)
    assert fitted.model.graph.initializers["k"].shape == [6, 2]
    assert decibels(proto, fitted, (4, 6)) > 50


def test_the_way_of_an_output() -> None:
    proto = model("""
        g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w, float[1, 2, 1, 1] m = {2, -3}, float[2, 1, 1] p = {5, 7}> {
          [reader] c = Conv (x, w)
          d = Mul (c, m)
          e = Add (p, d)
          i = Identity (e)
          s = Add (i, x)
          y = Sigmoid (s)
        }""")
    graph = Model.load(proto).graph
    path = path_of(graph[0].outputs[0], 2, 2)
    assert path.factor.tolist() == [2, -3]
    assert path.shift.tolist() == [5, 7]
    assert path.aside is graph.inputs[0]
    assert path.end.name == "s"
    assert path.bend is not None
    numbers = np.linspace(-3, 3, 5, dtype="f4")
    np.testing.assert_allclose(path.bend(numbers), 1 / (1 + np.exp(-numbers)), rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "d = Relu (c) e = Add (c, d) y = Relu (e)",  # something else reads it
        "e = Add (c, c) y = Relu (e)",
        "y = Softmax (c)",
        "e = Add (c, rows) y = Relu (e)",
        "e = Add (c, z) y = Relu (e)",  # one number for each place, not for each channel
    ],
)
def test_ways_that_are_not_followed(text: str) -> None:
    proto = model(f"""
        g (float[1, 2, 2, 4] x) => (float[1, 2, 2, 4] y) <float[2, 2, 1, 1] w, float[2, 4] z, float[2, 1] rows> {{
          [reader] c = Conv (x, w)
          {text}
        }}""")
    path = path_of(Model.load(proto).graph[0].outputs[0], 2, 2)
    assert path.end.name == "c"
    assert path.aside is None
    assert path.bend is None


class Units:
    """Stands for a group."""

    def __init__(self, units: int) -> None:
        self.units = units


def candidate(scores: list[float], saving: float, multiple: int = 1) -> Candidate:
    return Candidate(Units(len(scores)), np.asarray(scores), multiple, multiple, saving)  # type: ignore[arg-type]


def test_what_saves_more_goes_first() -> None:
    cheap, dear = candidate([1.0, 2, 3, 4], 0.01), candidate([2.0, 4, 6, 8], 0.1)
    assert counts([cheap, dear], 0.5, "uniform") == [2, 2]
    assert counts([cheap, dear], 0.4, "global") == [2, 1]
    assert counts([cheap, dear], 0.4, "efficient") == [0, 3]


def test_what_comes_back_first_matters_most_for_its_price() -> None:
    assert given_back(candidate([1.0, 2, 3, 4], 0.5), 2) == (1, 4.0)
    assert given_back(candidate([1.0, 2, 3, 4, 5, 6], 0.5, multiple=2), 4) == (2, 7.0)


@pytest.mark.parametrize("goal", ["flops", "parameters"])
def test_no_more_goes_than_has_to(goal: str) -> None:
    proto = model("""
        g (float[1, 3, 16, 16] x) => (float[1, 5] y)
        <float[24, 3, 3, 3] k, float[20, 24, 3, 3] w, float[20, 5] v> {
          a = Conv <pads = [1, 1, 1, 1]> (x, k)
          q = Relu (a)
          [reader] c = Conv <strides = [2, 2]> (q, w)
          r = Relu (c)
          p = GlobalAveragePool (r) f = Flatten (p) y = MatMul (f, v)
        }""")
    result = prune(proto, drawn((1, 3, 16, 16)), ratio=None, **{goal: 0.5})
    before, after = Model.load(proto), result.model
    if goal == "flops":
        left = arithmetic(after) / arithmetic(before)
    else:
        sizes = [
            sum(v.const_value.size for v in each.initializers() if v.const_value)
            for each in (before, after)
        ]
        left = sizes[1] / sizes[0]
    assert 0.46 < left <= 0.5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y = LeakyRelu <alpha = 0.25> (c)", [-0.5, -0.25, 0, 1, 2]),
        ("y = PRelu (c, slope)", [-1, -0.5, 0, 1, 2]),
        ("y = Clip (c, low)", [-1, -1, 0, 1, 2]),
        ("y = HardSigmoid (c)", [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("y = Elu (c)", [np.expm1(-2), np.expm1(-1), 0, 1, 2]),
        ("y = Tanh (c)", np.tanh([-2, -1, 0, 1, 2])),
        ("y = PRelu (c, falling)", None),
        ("y = PRelu (c, places)", None),
        ("y = Clip (c)", None),
    ],
)
def test_functions_that_follow(text: str, expected: list[float] | None) -> None:
    proto = model(f"""
        g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w, float[2, 1, 1] slope = {{0.5, 0.5}}, float[2, 1, 1] falling = {{1, -1}},
         float[4, 4] places, float low = {{-1}}> {{
          c = Conv (x, w)
          {text}
        }}""")
    bend = path_of(Model.load(proto).graph[0].outputs[0], 2, 2).bend
    if expected is None:
        assert bend is None
        return
    assert bend is not None
    numbers = np.repeat(np.arange(-2, 3, dtype="f4")[None, :, None], 2, axis=2)
    made = bend(numbers)
    np.testing.assert_allclose(made[0, :, 1], expected, atol=1e-6)
    slopes = np.diff(bend(np.linspace(-3, 3, 100, dtype="f4").reshape(1, 50, 2)), axis=1)
    assert (slopes >= 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_is_fitted(family: str) -> None:
    proto = model(FAMILIES[family])
    rng = np.random.default_rng(3)
    feeds = [
        {
            name: array if array.dtype.kind != "f" else rng.normal(size=array.shape).astype("f4")
            for name, array in seeded_feeds(proto).items()
        }
        for _ in range(8)
    ]
    result = Pipeline((PruneChannels(ratio=0.5),)).run(proto, samples=feeds, threads=1)
    after = result.model.to_proto()
    onnx.checker.check_model(after, full_check=True)
    for output in run(after, feeds[0], "onnxruntime"):
        assert np.isfinite(output).all()
    (note,) = [d.message for d in result.diagnostics if d.code in {"PRN104", "PRN105"}]
    found = re.search(r"layers fitted: ([-0-9.]+) dB before, ([-0-9.]+) dB after", note)
    if found is not None:
        assert float(found[2]) >= float(found[1])
