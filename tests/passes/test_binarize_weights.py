"""binarize-weights: signs and scales, chosen as well as there is a way."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from pydantic import ValidationError

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.binary import binarize
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.binarize_weights import BinarizeWeights
from tests.helpers.check import assert_refuses, assert_rolls_back
from tests.helpers.text import model

NET = """
    g (float[1, 8, 9, 9] x) => (float[1, 10] y)
    <float[32, 8, 3, 3] w, float[32, 16, 3, 3] v, float[32, 70] u, float[70, 10] f> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w)
      c = Relu (a)
      d = ConvTranspose (c, v)
      e = Relu (d)
      p = GlobalAveragePool (c)
      h = Flatten (p)
      m = MatMul (h, u)
      r = Relu (m)
      z = ReduceMean <keepdims = 0> (e)
      n = MatMul (r, f)
      y = Add (n, z)
    }"""


def feeds(count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(6)
    return [{"x": rng.normal(size=(1, 8, 9, 9)).astype(np.float32)} for _ in range(count)]


def decibels(first: onnx.ModelProto, second: onnx.ModelProto) -> float:
    with Session.open(first) as one, Session.open(second) as two:
        return compare(one, two, feeds()).worst("sqnr_db") or 0.0


@pytest.mark.parametrize("bases", [1, 2, 3, 4])
def test_each_basis_costs_a_bit_and_brings_the_outputs_nearer(bases: int) -> None:
    proto = model(NET)
    result = Pipeline((BinarizeWeights(only=("*",), bases=bases),)).run(proto)
    got = result.model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    codes = sum(len(t.raw_data) for t in got.graph.initializer if "_codes" in t.name)
    numbers = 32 * 8 * 9 + 32 * 16 * 9 + 32 * 70
    assert numbers * bases / 8 <= codes <= numbers * bases / 8 + 8 * bases
    assert decibels(proto, got) > 4 * bases - 2


def test_signs_times_scale_in_the_weight_s_own_shape() -> None:
    proto = model(NET)
    got = Pipeline((BinarizeWeights(only=("v", "w", "u")),)).run(proto).model.to_proto()
    names = {
        "w": next(n.input[1] for n in got.graph.node if n.op_type == "Conv"),
        "v": next(n.input[1] for n in got.graph.node if n.op_type == "ConvTranspose"),
        "u": next(n.input[1] for n in got.graph.node if n.output[0] == "m"),
    }
    with Session.open(got, outputs=list(names.values()), optimization="disable") as session:
        found = session.run(feeds(1)[0])
    for name, axis in (("w", 0), ("v", 1), ("u", 1)):
        weight = onnx.numpy_helper.to_array(
            next(t for t in proto.graph.initializer if t.name == name)
        )
        others = tuple(i for i in range(weight.ndim) if i != axis)
        mean = np.abs(weight).mean(axis=others, keepdims=True)
        expected = np.where(weight >= 0, mean, -mean)
        assert np.allclose(found[names[name]], expected, rtol=1e-5)


def test_scales_and_signs_are_the_best_that_there_are() -> None:
    """Against all signs for one short row."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        row = rng.normal(size=6)
        found = binarize(row[None], 2)
        best = min(_least_squares(row, signs) for signs in _all_signs(6))
        error = float(np.square(found.expand()[0] - row).sum())
        assert error <= 1.6 * best + 1e-9
        assert error <= float(np.square(binarize(row[None], 1).expand()[0] - row).sum())


def _all_signs(size: int) -> list[np.ndarray]:
    rows = [np.array(signs) for signs in itertools.product([-1.0, 1.0], repeat=size)]
    return [np.stack(pair, axis=1) for pair in itertools.combinations(rows[: len(rows) // 2], 2)]


def _least_squares(row: np.ndarray, signs: np.ndarray) -> float:
    solved = np.linalg.lstsq(signs, row, rcond=None)[0]
    return float(np.square(signs @ solved - row).sum())


def test_importance_counts() -> None:
    rng = np.random.default_rng(8)
    weight, share = rng.normal(size=(16, 64)), np.exp(2 * rng.normal(size=(1, 64)))

    def cost(importance: np.ndarray | None) -> float:
        difference = binarize(weight, 2, importance=importance).expand() - weight
        return float((share * np.square(difference)).sum())

    assert cost(share) < cost(None)


def test_samples_guard_it() -> None:
    proto = model(NET)
    step = BinarizeWeights(only=("*",), least_sqnr_db=30.0)
    assert_refuses(step, proto, code="BIN103", samples=feeds())
    kept = Pipeline((BinarizeWeights(only=("*",), bases=3),)).run(proto, samples=feeds())
    assert kept.changed
    assert any("held-out" in str(item) for item in kept.diagnostics)


def test_weights_have_to_be_named() -> None:
    with pytest.raises(ValidationError):
        BinarizeWeights.model_validate({})
    assert_refuses(BinarizeWeights(only=("nothing",)), NET, code="BIN104")
    older = model(NET)
    older.opset_import[0].version = 10
    older.ir_version = 7
    older.graph.node[-3].attribute.append(onnx.helper.make_attribute("axes", [0, 1, 2, 3]))
    older.graph.node[-3].attribute[0].i = 0
    assert_refuses(BinarizeWeights(only=("*",)), older, code="BIN102")


def test_one_weight_of_many() -> None:
    result = Pipeline((BinarizeWeights(only=("u",)),)).run(model(NET))
    assert {"w", "v"} <= set(result.model.graph.initializers)
    assert result.model.nbytes < Model.load(model(NET)).nbytes
    assert_rolls_back(BinarizeWeights(only=("u",), bases=2), model(NET))
