"""palettize-weights: small files, the same function nearly, and honest about what is left."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.optimization import SIMPLIFY
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.palette import kmeans, nearest, palettize
from onnxcomp.runtime import Session, optimized_model
from onnxcomp_passes.quantize.coded_weights import find_weights
from onnxcomp_passes.quantize.palettize_weights import PalettizeWeights
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.text import model

NET = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[N, 48] x, int64[N] i) => (float[N, 33] y)
    <float[48, 64] w, float[64, 64] v, float[33, 64] u, float[50, 64] table, float[64] b, float[33] k> {
      a = MatMul (x, w)
      t = Gather (table, i)
      c = Add (a, t)
      d = Relu (c)
      e = Gemm (d, v, b)
      f = Relu (e)
      y = Gemm <transB = 1> (f, u, k)
    }"""


def feeds(count: int = 12, rows: int = 16) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(4)
    spread = np.exp(rng.normal(size=48))
    return [
        {
            "x": (spread * rng.normal(size=(rows, 48))).astype(np.float32),
            "i": rng.integers(0, 50, rows),
        }
        for _ in range(count)
    ]


def decibels(first: onnx.ModelProto, second: onnx.ModelProto) -> float:
    with Session.open(first) as one, Session.open(second) as two:
        found = compare(one, two, feeds())
    assert found, found.reason
    return found.worst("sqnr_db") or 0.0


def palettized(samples: object = None, **options: object) -> onnx.ModelProto:
    step = PalettizeWeights.model_validate(options)
    got = Pipeline((step,)).run(model(NET), samples=samples).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    return got


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_number_of_bits_is_stored_as_such_and_read_back(bits: int) -> None:
    proto, got = model(NET), palettized(bits=bits)
    floats = sum(4 * np.prod(t.dims) for t in proto.graph.initializer if len(t.dims) > 1)
    codes = sum(len(t.raw_data) for t in got.graph.initializer if "_codes" in t.name)
    assert codes <= floats * bits / 32 + 8 * 4
    assert decibels(proto, got) > 5.0 * bits - 6
    result = Pipeline((PalettizeWeights(bits=bits),)).run(proto).model
    weights = {weight.name: weight for weight in find_weights(Model.load(proto))}
    assert set(weights) == {"w", "v", "u", "table"}
    assert result.nbytes < Model.load(proto).nbytes * (bits / 32 + 0.12)


def test_what_the_file_expands_to_is_the_palette() -> None:
    got = palettized(bits=3, only=("u",))
    weight = next(t for t in model(NET).graph.initializer if t.name == "u")
    expected = palettize(numpy_helper.to_array(weight), 3, kept=(0,)).expand()
    gemm = next(n for n in got.graph.node if n.op_type == "Gemm" and n.input[1] not in {"v"})
    with Session.open(got, outputs=[gemm.input[1]], optimization="disable") as session:
        found = session.run(feeds(1)[0])[gemm.input[1]]
    assert np.array_equal(found, expected)


def test_the_runtime_expands_it_once_when_it_loads() -> None:
    kinds = {node.op_type for node in optimized_model(Model.load(palettized(bits=3))).graph.node}
    assert not kinds & {"BitShift", "Cast", "Mul", "Add"} - {"Add"}
    assert "BitShift" not in kinds


@pytest.mark.parametrize("bits", [3, 8])
def test_expanding_in_every_run_gives_the_same_and_survives_optimisers(bits: int) -> None:
    loaded, run = palettized(bits=bits, skip=("table",)), palettized(bits=bits, expand="run")
    given = feeds(1)[0]
    with Session.open(loaded) as one, Session.open(run) as two:
        assert np.array_equal(one.run(given)["y"], two.run(given)["y"])
    kinds = [node.op_type for node in optimized_model(Model.load(run)).graph.node]
    assert kinds.count("Gather") == 4
    assert Pipeline.parse(SIMPLIFY).run(run).model.nbytes < 1.1 * Model.load(run).nbytes


def test_simplifying_does_not_blow_it_up_again() -> None:
    text = "g (float[N, 384] x) => (float[N, 384] y) <float[384, 384] w> { y = MatMul (x, w) }"
    got = Pipeline((PalettizeWeights(bits=2),)).run(model(text)).model
    simplified = Pipeline.parse(SIMPLIFY).run(got).model
    assert simplified.nbytes <= 1.05 * got.nbytes


def test_samples_help() -> None:
    proto = model(NET)
    blind = decibels(proto, palettized(bits=3))
    weighed = decibels(proto, palettized(feeds(), bits=3, compensate=False, least_sqnr_db=0.0))
    compensated = decibels(proto, palettized(feeds(), bits=3, least_sqnr_db=0.0))
    assert weighed > blind - 0.5
    assert compensated > max(blind, weighed) + 1


def test_bits_rise_until_the_outputs_are_near() -> None:
    step = PalettizeWeights(bits=1, least_sqnr_db=25.0)
    outcome = Pipeline((step,)).run(model(NET), samples=feeds()).outcomes[0]
    (note,) = [d for d in outcome.diagnostics if d.code == "PAL101"]
    reached, bits = re.findall(r"([0-9.]+) (?:dB|bits)", str(note))
    assert float(reached) >= 25.0
    assert 3.5 < float(bits) < 5.5


def test_what_cannot_be_near_is_taken_back() -> None:
    step = PalettizeWeights(bits=7, least_sqnr_db=90.0)
    assert_refuses(step, model(NET), code="PAL103", samples=feeds())


def test_a_budget_is_kept_and_spent_where_it_helps() -> None:
    proto = model(NET)
    budget = 0.125
    got = palettized(feeds(), budget=budget, least_sqnr_db=0.0)
    total = sum(4 * np.prod(t.dims) for t in proto.graph.initializer if len(t.dims) > 1)
    spent = sum(
        len(t.raw_data)
        for t in got.graph.initializer
        if any(part in t.name for part in ("_codes", "_codebook", "_scale"))
    )
    assert spent <= budget * total
    assert spent > 0.9 * budget * total
    even = palettized(feeds(), bits=3, least_sqnr_db=0.0)
    assert decibels(proto, got) > decibels(proto, even)


def test_pruned_weights_stay_zero() -> None:
    proto = model(NET)
    tensor = next(t for t in proto.graph.initializer if t.name == "w")
    pruned = numpy_helper.to_array(tensor).copy()
    pruned[np.abs(pruned) < 0.5] = 0.0
    found = palettize(pruned, 2, kept=(1,)).expand()
    assert (found[pruned == 0.0] == 0.0).all()


def test_a_weight_with_two_readers_and_a_body() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 64] x, bool c) => (float[N, 64] y) <float[64, 64] w> {
          a = MatMul (x, w)
          y = If (c) <then_branch = t () => (float[N, 64] p) <float[64, 64] v> {
                        q = MatMul (a, v)
                        p = MatMul (q, w)
                      },
                      else_branch = e () => (float[N, 64] r) { r = Relu (a) }>
        }"""
    proto = model(text)
    got = Pipeline((PalettizeWeights(bits=8),)).run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    rng = np.random.default_rng(1)
    for flag in (True, False):
        given = {"x": rng.normal(size=(3, 64)).astype(np.float32), "c": np.array(flag)}
        want, found = Session.open(proto).run(given)["y"], Session.open(got).run(given)["y"]
        assert np.abs(want - found).max() < 0.1 * np.abs(want).max()


def test_weights_in_constant_nodes() -> None:
    proto = model(NET)
    for tensor in list(proto.graph.initializer):
        if tensor.name == "v":
            node = onnx.helper.make_node("Constant", [], ["v"], value=tensor)
            proto.graph.node.insert(0, node)
            proto.graph.initializer.remove(tensor)
    got = Pipeline((PalettizeWeights(bits=6),)).run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert "Constant" not in {node.op_type for node in got.graph.node}
    assert decibels(proto, got) > 22
    assert_rolls_back(PalettizeWeights(bits=6), proto)
    assert_rolls_back(PalettizeWeights(budget=0.2), proto)
    measured = Pipeline((PalettizeWeights(budget=0.2),)).run(proto, samples=feeds()).model
    assert decibels(proto, measured.to_proto()) > 15


def test_weights_that_are_not_finite_or_named_stay() -> None:
    proto = model(NET)
    for tensor in proto.graph.initializer:
        if tensor.name == "w":
            array = numpy_helper.to_array(tensor).copy()
            array[0, 0] = np.inf
            tensor.CopyFrom(numpy_helper.from_array(array, "w"))
    assert_refuses(PalettizeWeights(only=("w",)), proto, code="PAL104", at="w")
    assert_refuses(PalettizeWeights(only=("nothing",)), proto, code="PAL105")


def test_older_opsets_get_bytes_only() -> None:
    proto = model(
        NET.replace("i)", "i)").replace('"" : 21', '"" : 10').replace("version: 10", "version: 7")
    )
    assert_refuses(PalettizeWeights(bits=4), proto, code="PAL102")
    got = Pipeline((PalettizeWeights(bits=8),)).run(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert decibels(proto, got) > 38


def test_rolling_back_restores_every_byte() -> None:
    assert_rolls_back(PalettizeWeights(bits=5), model(NET))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([2, 3, 8, 16]), heavy=st.booleans())
def test_no_other_codebook_near_by_is_better(seed: int, size: int, *, heavy: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, 600) if heavy else rng.normal(size=600)
    share = rng.random(600) + 0.1

    def cost(colours: np.ndarray) -> float:
        return float(np.sum(share * np.square(colours[nearest(values, colours)] - values)))

    found = kmeans(values, share, size)
    assert (np.diff(found) >= 0).all()
    best = cost(found)
    for _ in range(8):
        moved = np.sort(found + 0.02 * rng.normal(size=size)).astype(np.float32)
        assert cost(moved) >= best * (1 - 2e-3)


def test_a_gaussian_costs_what_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400_000)
    for bits, theory in ((1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22)):
        found = palettize(values, bits).expand()
        ratio = 10 * np.log10(np.square(values).sum() / np.square(values - found).sum())
        assert ratio == pytest.approx(theory, abs=0.1)


def test_a_weight_that_a_loop_reads_is_stored_without_looking_inside() -> None:
    text = """
        g (float[2, 64] x) => (float[2, 64] y)
        <float[64, 64] w, float[64, 64] v, int64 n = {1}, bool t = {1}> {
          h = MatMul (x, v)
          y = Loop (n, t, h) <body = b (int64 i, bool more, float[2, 64] s) => (bool again, float[2, 64] r) {
            again = Identity (more)
            m = MatMul (s, w)
            r = Tanh (m)
          }>
        }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(2, 64)).astype("f4")} for _ in range(8)]
    result = Pipeline((PalettizeWeights(bits=6, least_sqnr_db=0),)).run(model(text), samples=feeds)
    assert not {"w", "v"} & set(result.model.graph.initializers)
    with Session.open(model(text)) as before, Session.open(result.model) as after:
        assert (compare(before, after, feeds).worst("sqnr_db") or 0.0) > 10.0
