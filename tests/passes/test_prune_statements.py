"""What passes that prune say of a model holds for the model that they give."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.compare import Reference
from onnxcomp.errors import RecipeError, UserError
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.recovery import Judge
from onnxcomp.recipe import make
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.prune_feature_maps import PruneFeatureMaps
from onnxcomp_passes.prune.prune_heads import PruneHeads
from onnxcomp_passes.prune.prune_layers import PruneLayers
from onnxcomp_passes.prune.support import regression
from onnxcomp_passes.prune.support.regression import Fit, Rows
from onnxcomp_passes.prune.support.trying import divide
from tests.helpers import text

if TYPE_CHECKING:
    from onnxcomp.passbase import Pass
    from onnxcomp.pipeline import Result

TWO = """g (float[N, 8] x) => (float[N, 4] y)
    <float[8, 32] w, float[32] b, float[32, 32] v, float[32, 4] u> {
      [first] a = Gemm (x, w, b)
      r = Relu (a)
      [second] c = MatMul (r, v)
      d = Relu (c)
      [third] y = MatMul (d, u)
    }"""
RESIDUAL = """g (float[N, 8] x) => (float[N, 8] y)
    <float[8, 32] w, float[32, 8] v, float[8, 32] s, float[32, 8] t> {
      a = MatMul (x, w)
      r = Relu (a)
      c = MatMul (r, v)
      h = Add (x, c)
      e = MatMul (h, s)
      k = Relu (e)
      f = MatMul (k, t)
      y = Add (h, f)
    }"""


def feeds(count: int = 24, rows: int = 4) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(7)
    return [{"x": rng.normal(size=(rows, 8)).astype("f4")} for _ in range(count)]


def after(step: Pass, proto: onnx.ModelProto | str, samples: Any) -> Result:
    source = text.model(proto) if isinstance(proto, str) else proto
    return Pipeline((step,)).run(source, samples=samples, threads=1)


def notes(result: Result, code: str) -> list[str]:
    return [found.message for found in result.diagnostics if found.code == code]


def held_out_decibels(proto: onnx.ModelProto, result: Result, samples: Any) -> float:
    with Session.open(proto) as session:
        return Judge(Reference(session, divide(samples)[1])).decibels(result.model)


def decibels_after(message: str) -> float:
    found = re.search(r"([-0-9.]+) dB after", message)
    assert found is not None
    return float(found[1])


def test_a_last_fit_that_is_worse_than_was_said_does_not_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = regression._again

    def spoilt(problem: Any, start: Fit, choice: Any) -> Any:
        found = again(problem, start, choice)
        if found is None or len(problem.samples) < 24:
            return found
        return Fit(found[0].weight * 0, found[0].bias), found[1]

    monkeypatch.setattr(regression, "_again", spoilt)
    proto, samples = text.model(TWO), feeds()
    result = after(PruneChannels(ratio=0.25, multiple=1), proto, samples)
    (message,) = notes(result, "PRN104")
    assert "then fitted" not in message
    found = held_out_decibels(proto, result, samples)
    assert found == pytest.approx(decibels_after(message), abs=0.06)


@pytest.mark.parametrize(
    "step", [PruneChannels(ratio=0.25, multiple=1), PruneLayers(count=1, replacement="none")]
)
def test_the_model_is_as_near_as_is_said(step: Pass) -> None:
    proto, samples = text.model(RESIDUAL), feeds()
    result = after(step, proto, samples)
    (message,) = notes(result, "PRN104") or notes(result, "PRL105")
    assert "layers fitted" in message
    assert held_out_decibels(proto, result, samples) >= decibels_after(message) - 0.06


def test_one_sample_cannot_judge_means_taken_from_itself() -> None:
    with pytest.raises(UserError, match="at least 2 samples"):
        after(PruneFeatureMaps(), TWO, feeds(1, rows=1))


@pytest.mark.parametrize("count", [2, 3])
def test_few_samples_are_divided_too(count: int) -> None:
    """What is the same in all rows of one sample but not in another one carries something."""
    result = after(PruneFeatureMaps(least_decibels=60), TWO, feeds(count, rows=1))
    proto = text.model(TWO)
    assert result.model.nbytes < 2**20
    with Session.open(proto) as session:
        judge = Judge(Reference(session, feeds(count, rows=1)[count - 1 :]))
        assert judge.decibels(result.model) >= 60


@pytest.mark.parametrize(("count", "fitted"), [(0, 0), (1, 1), (2, 1), (3, 2), (4, 3), (9, 7)])
def test_no_sample_judges_what_was_fitted_to_it(count: int, fitted: int) -> None:
    one, two = divide(list(range(count)))
    assert len(one) == fitted
    assert sorted([*one, *two]) == list(range(count))


@pytest.mark.parametrize("rows", [(0, 3), (2, 0)])
def test_empty_samples_among_others(rows: tuple[int, int]) -> None:
    samples = [each | {"x": each["x"][: rows[i % 2]]} for i, each in enumerate(feeds())]
    result = after(PruneChannels(ratio=0.25, multiple=1), RESIDUAL, samples)
    assert result.outcomes[0].stats["channels removed"] == 16


def test_activations_that_are_no_numbers_are_the_reason_that_is_given() -> None:
    graph = TWO.replace("d = Relu (c)", "d = Sqrt (c)").replace("r = Relu (a)", "r = Sqrt (a)")
    found = notes(after(PruneFeatureMaps(ratio=0.5), graph, feeds()), "PRM103")
    assert found
    assert all("NaN or infinite" in message for message in found)


@pytest.mark.parametrize("options", [{"keep": 1.0}, {"ratio": 0.1, "multiple": 16}])
def test_what_is_not_removed_is_not_for_want_of_samples(options: dict[str, Any]) -> None:
    result = after(PruneChannels(**options), TWO, feeds())
    assert "channels removed" not in result.outcomes[0].stats
    assert len(notes(result, "PRN101")) == 1
    assert not notes(result, "PRN105")


def test_to_remove_nothing_is_not_the_best_way_to_prune() -> None:
    """The least anywhere are eight of one layer; a share of each is less than a multiple."""
    proto = text.model(TWO)
    for tensor in proto.graph.initializer:
        if tensor.name in {"w", "b"}:
            array = numpy_helper.to_array(tensor).copy()
            array[..., :12] *= 1e-3
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    result = after(PruneChannels(ratio=0.2, multiple=8, criterion="obd"), proto, feeds())
    assert result.outcomes[0].stats["channels removed"] == 8


@pytest.mark.parametrize(("options", "less"), [({"keep": 0.5}, True), ({"keep": 0.01}, False)])
def test_a_share_that_is_out_of_reach_is_said(options: dict[str, Any], less: bool) -> None:
    step = PruneChannels(ratio=0.9, multiple=1, **options)
    found = notes(after(step, TWO, feeds()), "PRN102")
    assert len(found) == less
    assert all("50% of the channels that may go went, not 90%" in message for message in found)


def test_statistics_are_of_what_was_done_in_the_end() -> None:
    result = after(PruneChannels(flops=0.5, multiple=1, reconstruct=False), TWO, feeds())
    # Two weights, a bias and a weight on both sides.
    assert result.outcomes[0].stats["tensors replaced"] == 4


def in_half(graph: str) -> onnx.ModelProto:
    proto = text.model(graph)
    for tensor in proto.graph.initializer:
        half = numpy_helper.to_array(tensor).astype("f2")
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in [*proto.graph.input, *proto.graph.output]:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


def test_layers_that_cannot_be_fitted_are_not_said_to_be_no_better_for_it() -> None:
    samples = [{"x": each["x"].astype("f2")} for each in feeds()]
    result = after(PruneChannels(ratio=0.25, multiple=1), in_half(TWO), samples)
    assert not notes(result, "PRN104")
    assert "float32" in notes(result, "PRN105")[0]
    assert "dB on held-out samples" in notes(result, "PRN105")[0]


@pytest.mark.parametrize("step", [PruneChannels(ratio=0.25), PruneFeatureMaps(ratio=0.25)])
def test_outputs_that_cannot_be_compared_have_no_decibels(step: Pass) -> None:
    graph = TWO.replace("float[N, 4] y", "int64[N] z").replace(
        "y = MatMul (d, u)", "y = MatMul (d, u)  z = ArgMax <axis = 1, keepdims = 0> (y)"
    )
    result = after(step, graph, feeds())
    said = " ".join(found.message for found in result.diagnostics)
    assert "cannot be compared" in said
    assert "inf" not in said.replace("infinite", "")


def test_what_is_infinite_in_float_says_nothing_of_another_model() -> None:
    graph = "g (float[N, 8] x) => (float[N, 8] y) <float[8] m, float[8] s> { a = Mul (x, s)  y = Add (a, m) }"
    proto = text.model(graph)
    mask = np.where(np.arange(8) < 2, -np.inf, 0).astype("f4")
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(mask, "m"))
    with Session.open(proto) as session:
        assert Judge(Reference(session, feeds(2))).decibels(Model.load(proto)) == 80.0


def test_rows_that_are_no_numbers_are_left_out() -> None:
    inputs, wanted = np.ones((1, 5, 2), "f4"), np.ones((1, 5, 3), "f4")
    inputs[0, 1, 0], wanted[0, 3, 2] = np.nan, np.inf
    found = Rows(inputs, wanted, wanted).known()
    assert found.inputs.shape == (1, 3, 2)
    assert found.aside is not None
    assert np.isfinite(found.wanted).all()


def test_defaults_of_inputs_that_nobody_reads_any_more() -> None:
    """A model of the first years names its weights as inputs; those of what went stay there."""
    proto = text.model(RESIDUAL.replace("32", "1024"))
    for tensor in proto.graph.initializer:
        value = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        proto.graph.input.append(value)
    proto.ir_version, proto.opset_import[0].version = 3, 8
    result = after(PruneLayers(count=1), proto, feeds())
    assert result.outcomes[0].stats["blocks removed"] == 1
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


def test_heads_of_a_model_whose_outputs_cannot_be_compared() -> None:
    proto = text.model(
        """g (float[N, S, 8] x) => (int64[N, S] y)
        <int64[4] parts = {0, 0, 4, 2}, int64[3] whole = {0, 0, 8},
         float[8, 8] q, float[8, 8] k, float[8, 8] v, float[8, 8] o> {
          a = MatMul (x, q)  b = MatMul (x, k)  c = MatMul (x, v)
          a1 = Reshape (a, parts)  b1 = Reshape (b, parts)  c1 = Reshape (c, parts)
          a2 = Transpose <perm = [0, 2, 1, 3]> (a1)
          b2 = Transpose <perm = [0, 2, 3, 1]> (b1)
          c2 = Transpose <perm = [0, 2, 1, 3]> (c1)
          s = MatMul (a2, b2)
          p = Softmax <axis = -1> (s)
          t = MatMul (p, c2)
          t1 = Transpose <perm = [0, 2, 1, 3]> (t)
          t2 = Reshape (t1, whole)
          z = MatMul (t2, o)
          y = ArgMax <axis = -1, keepdims = 0> (z)
        }"""
    )
    samples = [{"x": each["x"][None]} for each in feeds()]
    result = after(PruneHeads(), proto, samples)
    assert result.outcomes[0].stats["heads removed"] == 2
    assert "cannot be compared" in notes(result, "PRH106")[0]


@pytest.mark.parametrize("name", ["prune-layers", "prune-feature-maps"])
def test_a_limit_that_is_no_number_is_refused(name: str) -> None:
    """Nothing is below it: everything would go."""
    with pytest.raises(RecipeError, match="least-decibels"):
        make(name, {"least_decibels": "nan"})


def test_two_goals_are_refused_in_words() -> None:
    with pytest.raises(RecipeError, match=r"^\(prune-layers\): give one of count"):
        make("prune-layers", {"count": 1, "ratio": 0.5})


def test_why_no_block_goes() -> None:
    skipped = after(PruneLayers(skip=("*",)), RESIDUAL, feeds())
    assert notes(skipped, "PRL101") == ["the names of all are among those to skip"]
    far = after(PruneLayers(least_decibels=70), RESIDUAL, feeds())
    assert "within the limits" in notes(far, "PRL101")[0]
    indices = RESIDUAL.replace("float[N, 8] y", "int64[N] z").replace(
        "y = Add (h, f)", "y = Add (h, f)  z = ArgMax <axis = 1, keepdims = 0> (y)"
    )
    unknown = after(PruneLayers(), indices, feeds())
    assert "cannot be compared" in notes(unknown, "PRL101")[0]


def test_one_map_goes_at_least() -> None:
    result = after(PruneFeatureMaps(ratio=0.001), TWO, feeds())
    assert result.outcomes[0].stats["maps removed"] == 1
