"""smooth-quant: the same function in float, nearer to it in int8, or nothing at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.facts import Facts
from onnxcomp.compare import compare
from onnxcomp.ir import Edit, Model
from onnxcomp.passbase import Context
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp.samples import load_samples
from onnxcomp_passes.quantize import smooth_quant
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from onnxcomp_passes.quantize.smooth_quant import SmoothQuant
from tests.helpers.check import assert_unchanged, serialized
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

BLOCK = """
    g (float[N, 16, 32] x) => (float[N, 16, 8] y)
    <float[32] g, float[32] h, float[32, 24] w, float[24] b, float[24, 8] v> {
      n = LayerNormalization (x, g, h)
      a = MatMul (n, w)
      c = Add (a, b)
      r = Relu (c)
      y = MatMul (r, v)
    }"""
POST_NORM = """
    g (float[N, 16, 32] x) => (float[N, 16, 32] y) <float[32] g, float[32] h, float[32, 32] w> {
      n = LayerNormalization (x, g, h)
      a = MatMul (n, w)
      y = Add (a, n)
    }"""


def outlying(text: str) -> onnx.ModelProto:
    """Makes a few channels of activations fifty times larger, and the weights that read them smaller."""
    proto = model(text)
    for tensor in proto.graph.initializer:
        array = np.frombuffer(tensor.raw_data, "f4").reshape(tensor.dims).copy()
        if tensor.name in {"g", "h"}:
            array[[3, 17]] *= 50
        elif tensor.name == "w":
            array[[3, 17]] /= 50
            array[:, [5, 9]] *= 50
        elif tensor.name == "b":
            array[[5, 9]] *= 50
        elif tensor.name == "v":
            array[[5, 9]] /= 50
        tensor.raw_data = array.tobytes()
    return proto


def samples(count: int = 12, seed: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, 16, 32)).astype("f4")} for _ in range(count)]


def sqnr(first: onnx.ModelProto, second: Any) -> float:
    with Session.open(first) as one, Session.open(second.model) as two:
        return compare(one, two, samples(8, 9)).worst("sqnr_db") or 0.0


STATIC = QuantizeStatic(placement="weighted", prepare=False)


def test_int8_is_nearer_to_float_and_float_is_the_same() -> None:
    proto = outlying(BLOCK)
    smooth = Pipeline((SmoothQuant(),)).run(proto, samples=samples())
    assert [node.op_type for node in smooth.model.nodes()] == [n.op_type for n in proto.graph.node]
    assert sqnr(proto, smooth) > 100
    plain = Pipeline((STATIC,)).run(proto, samples=samples())
    better = Pipeline((SmoothQuant(), STATIC)).run(proto, samples=samples())
    assert sqnr(proto, better) > sqnr(proto, plain) + 10
    codes = {item.code for item in smooth.diagnostics}
    assert {"SMQ101", "SMQ103"} <= codes


def test_a_mul_takes_the_division_where_nothing_else_can() -> None:
    proto = outlying(POST_NORM)
    smooth = Pipeline((SmoothQuant(least_gain_db=1.0),)).run(proto, samples=samples())
    kinds = [node.op_type for node in smooth.model.nodes()]
    assert kinds == ["LayerNormalization", "Mul", "MatMul", "Add"]
    assert sqnr(proto, smooth) > 100


def test_no_mul_when_that_is_not_wanted() -> None:
    outcome = assert_unchanged(SmoothQuant(insert=False), outlying(POST_NORM), samples=samples())
    assert [(d.code, d.where.name) for d in outcome.diagnostics] == [("SMQ104", "n")]


def test_what_does_not_help_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """All together, then each half, then (two of them) each alone: never nearer to float."""
    found = iter([30.0, 20.0, 29.9, 30.01])
    monkeypatch.setattr(smooth_quant._Guard, "_fidelity", lambda *_: next(found))
    outcome = assert_unchanged(SmoothQuant(alpha=0.6), outlying(BLOCK), samples=samples())
    codes = [item.code for item in outcome.diagnostics]
    assert codes == ["SMQ102", "SMQ102", "SMQ103"]
    assert "20.0" not in str(outcome.diagnostics[0])
    assert next(found, None) is None


def test_the_half_that_helps_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([30.0, 20.0, 31.0, 25.0])
    monkeypatch.setattr(smooth_quant._Guard, "_fidelity", lambda *_: next(found))
    proto = outlying(BLOCK)
    result = Pipeline((SmoothQuant(alpha=0.6),)).run(proto, samples=samples())
    assert result.outcomes[0].stats["activations smoothed"] == 1
    assert [item.code for item in result.diagnostics] == ["SMQ101", "SMQ102", "SMQ103"]
    assert sqnr(proto, result) > 100


def test_the_best_alpha_is_found_by_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = outlying(BLOCK)
    found = iter([30.0, 31.0, 33.0, 32.0, 33.0])
    monkeypatch.setattr(smooth_quant._Guard, "_fidelity", lambda *_: next(found))
    result = Pipeline((SmoothQuant(),)).run(proto, samples=samples())
    alone = Pipeline((SmoothQuant(alpha=0.5, guard=False),)).run(proto, samples=samples())
    assert result.model.to_proto().graph.initializer == alone.model.to_proto().graph.initializer


def test_a_model_without_outliers_is_left_alone() -> None:
    text = "g (float[N, 16, 32] x) => (float[N, 16, 8] y) <float[32, 8] w> { y = MatMul (x, w) }"
    assert_unchanged(SmoothQuant(), text, samples=samples())


def test_a_norm_that_something_else_reads_keeps_its_weights() -> None:
    text = BLOCK.replace("(float[N, 16, 8] y)", "(float[N, 16, 8] y, float[N, 16, 32] n)")
    proto = outlying(text)
    result = Pipeline((SmoothQuant(guard=False),)).run(proto, samples=samples())
    assert sqnr(proto, result) > 100


def test_rolling_back_restores_the_model() -> None:
    loaded = Model.load(outlying(POST_NORM))
    before = serialized(loaded.to_proto())
    edit = Edit(loaded)
    edit.begin("smooth-quant")
    feeds = load_samples(samples(), loaded.signature().inputs)
    SmoothQuant().run(Context(loaded, edit, Facts(loaded), samples=feeds))
    assert edit.changed
    edit.rollback()
    assert serialized(loaded.to_proto()) == before


def test_one_sample_is_enough() -> None:
    proto = outlying(BLOCK)
    assert sqnr(proto, Pipeline((SmoothQuant(),)).run(proto, samples=samples(1))) > 100


@settings(max_examples=10, deadline=None)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 5))
def test_float_is_the_same_for_every_alpha(alpha: float, seed: int) -> None:
    proto = outlying(BLOCK)
    step = SmoothQuant(alpha=alpha, guard=False, least_gain_db=-1000)
    assert sqnr(proto, Pipeline((step,)).run(proto, samples=samples(4, seed))) > 80


def test_half_precision_keeps_its_type() -> None:
    text = BLOCK.replace("float[", "float16[")
    proto = model(text)
    feeds = [{"x": feed["x"].astype("f2")} for feed in samples()]
    step = SmoothQuant(guard=False, least_gain_db=-1000)
    result = Pipeline((step,)).run(proto, samples=feeds)
    kinds = {
        value.const_value.dtype.name for value in result.model.initializers() if value.const_value
    }
    assert kinds == {"FLOAT16"}


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        SmoothQuant(alpha=alpha)
