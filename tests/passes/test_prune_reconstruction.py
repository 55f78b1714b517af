"""prune-channels: what is left is fitted to what layers gave before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.compare import compare
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support import regression
from onnxcomp_passes.prune.support.bends import Bend
from onnxcomp_passes.prune.support.regression import Fit, Problem, Rows, best_fit, fit_layer
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.pipeline import Result

# Channels of a net that was never trained are all equally useless; these repeat each other.
CHAIN = """
    g (float[1, 3, 8, 8] x) => (float[1, 5] y)
    <float[24, 3, 3, 3] w0, float[24] b0, float[24, 1, 3, 3] d, float[16, 24, 1, 1] w1,
     float[16, 5] w2, float[5] b2> {
      c0 = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w0, b0)
      r0 = Relu (c0)
      c1 = Conv <kernel_shape = [3, 3], group = 24> (r0, d)
      c2 = Conv (c1, w1)
      r2 = Relu (c2)
      p = GlobalAveragePool (r2)
      f = Flatten (p)
      m = MatMul (f, w2)
      y = Add (m, b2)
    }"""


def samples(count: int = 24) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(1, 3, 8, 8)).astype("f4")} for _ in range(count)]


def run(feeds: Sequence[Mapping[str, np.ndarray]] | None, **options: Any) -> Result:
    step = PruneChannels(ratio=0.5, **options)
    return Pipeline((step,)).run(model(CHAIN), samples=feeds, threads=1)


def decibels(result: Result) -> float:
    fresh = [{"x": np.random.default_rng(9).normal(size=(1, 3, 8, 8)).astype("f4")}]
    with Session.open(model(CHAIN)) as before, Session.open(result.model) as after:
        return compare(before, after, fresh).worst("sqnr_db") or 0.0


def notes(result: Result, code: str) -> list[str]:
    return [found.message for found in result.diagnostics if found.code == code]


def shapes(result: Result) -> dict[tuple[int, ...], int]:
    found: dict[tuple[int, ...], int] = {}
    for tensor in result.model.to_proto().graph.initializer:
        found[tuple(tensor.dims)] = found.get(tuple(tensor.dims), 0) + 1
    return found


def test_fitting_brings_outputs_nearer_and_says_by_how_much() -> None:
    plain, fitted = run(samples(), reconstruct=False), run(samples())
    assert decibels(fitted) > decibels(plain) + 3
    (text,) = notes(fitted, "PRN104")
    assert " layers fitted: " in text
    assert not notes(plain, "PRN104")


def test_fitting_changes_numbers_only() -> None:
    plain, fitted = run(samples(), reconstruct=False), run(samples())
    kinds = [node.op_type for node in plain.model.graph]
    assert [node.op_type for node in fitted.model.graph] == kinds
    weights = {shape for shape in shapes(plain) if len(shape) > 1}
    assert {shape for shape in shapes(fitted) if len(shape) > 1} == weights
    # A Conv without a bias gets one: it costs nothing.
    assert sum(shapes(fitted).values()) == sum(shapes(plain).values()) + 1


@pytest.mark.parametrize("count", [None, 3])
def test_without_samples_it_says_that_nothing_was_fitted(count: int | None) -> None:
    result = run(None if count is None else samples(count), criterion="l2")
    assert len(notes(result, "PRN105")) == 1
    plain = run(None, criterion="l2", reconstruct=False)
    assert result.model.to_proto() == plain.model.to_proto()


def test_what_does_not_help_is_taken_back() -> None:
    # Nothing can be learnt from samples that are all zero but those that judge.
    feeds = samples()
    for index, feed in enumerate(feeds):
        if index % 4 != 3:
            feed["x"][:] = 0
    result = run(feeds)
    assert notes(result, "PRN104")
    assert decibels(result) >= decibels(run(None, reconstruct=False)) - 1


def drawn(
    rng: np.random.Generator, weight: np.ndarray, bias: np.ndarray | None, count: int = 60
) -> Rows:
    rows = rng.normal(size=(weight.shape[0], count, weight.shape[1]))
    return Rows(rows, rows @ weight + (0 if bias is None else bias[:, None, :]))


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 3),
    inputs=st.integers(1, 6),
    outputs=st.integers(1, 4),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_a_linear_layer_is_found_again(
    groups: int, inputs: int, outputs: int, biased: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups, inputs, outputs))
    bias = rng.normal(size=(groups, outputs)) if biased else None
    fitted, judged = Problem([drawn(rng, weight, bias)]), Problem([drawn(rng, weight, bias)])
    start = Fit(np.zeros_like(weight), None if bias is None else np.zeros_like(bias))
    best = best_fit(fitted, judged, start)
    assert best is not None
    found, choice = best
    np.testing.assert_allclose(found.weight, weight, atol=1e-3)
    if found.bias is not None and bias is not None:
        np.testing.assert_allclose(found.bias, bias, atol=1e-3)
    again, _ = fit_layer(fitted, judged, start, [choice])
    np.testing.assert_allclose(again.weight, found.weight, rtol=1e-9)


def test_what_cannot_get_nearer_stays() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(1, 4, 2))
    fitted, judged = Problem([drawn(rng, weight, None)]), Problem([drawn(rng, weight, None)])
    assert best_fit(fitted, judged, Fit(weight, None)) is None
    found, choices = fit_layer(fitted, judged, Fit(weight, None))
    assert choices == [None]
    assert found.weight is weight


def test_what_a_function_hides_is_left_to_it() -> None:
    """What is wanted is linear behind the ReLU alone: below, it is as far from that as can be."""
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(1, 3, 2))

    def draw() -> Rows:
        rows = rng.normal(size=(1, 200, 3))
        given = rows @ weight
        return Rows(rows, np.where(given > 0, given, given - 9))

    relu = Bend(lambda x: np.maximum(x, 0), 1.0)
    start = Fit(np.zeros_like(weight), None)
    errors = []
    for bend in (None, relu):
        parts = Problem([draw() for _ in range(4)], bend), Problem([draw()], bend)
        best = best_fit(*parts, start)
        assert best is not None
        errors.append(Problem([draw()], relu).error(best[0]))
    assert errors[1] < 0.2 * errors[0]


@pytest.mark.parametrize("negative", [False, True])
def test_a_factor_in_front_of_a_function_is_taken_along(negative: bool) -> None:
    relu = Bend(lambda x: np.maximum(x, 0), 1.0, np.asarray([[2.0, -3.0 if negative else 3.0]]))
    numbers = np.linspace(-2, 2, 8).reshape(1, 4, 2)
    expected = np.maximum(numbers * relu.factor, 0) / relu.factor
    np.testing.assert_allclose(relu(numbers), expected)
    assert (np.diff(relu(np.sort(numbers, axis=1)), axis=1) >= 0).all()


def test_what_is_added_is_made_up_for() -> None:
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(1, 4, 2))

    def draw() -> Rows:
        rows, lost = rng.normal(size=(1, 50, 4)), rng.normal(size=(1, 50, 2))
        return Rows(rows, rows @ weight, lost)

    rows = [draw() for _ in range(3)]
    more = np.random.default_rng(3).normal(size=(4, 2))
    rows = [Rows(each.inputs, each.wanted, each.inputs @ more) for each in rows]
    best = best_fit(Problem(rows[:2]), Problem(rows[2:]), Fit(weight, None))
    assert best is not None
    np.testing.assert_allclose(best[0].weight, weight - more, atol=1e-3)


def test_many_inputs_are_fitted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regression, "_DEEPEST", 5)
    rng = np.random.default_rng(4)
    weight, bias = rng.normal(size=(1, 12, 3)), rng.normal(size=(1, 3))
    fitted, judged = Problem([drawn(rng, weight, bias, 400)]), Problem([drawn(rng, weight, bias)])
    start = Fit(np.zeros_like(weight), np.zeros_like(bias))
    found, choices = fit_layer(fitted, judged, start)
    assert len(choices) == 3
    assert judged.error(found) < 0.05 * judged.error(start)
    again, _ = fit_layer(fitted, judged, start, choices)
    np.testing.assert_array_equal(again.weight, found.weight)


LINEAR = """
    g (float[N, 16] x) => (y) <float[16, 32] w0, float[32] b0, float[32, 8] w, float[{bias}] b> {{
      c = Gemm (x, w0, b0)
      r = Relu (c)
      {last}
    }}"""


@pytest.mark.parametrize("last", ["m = MatMul (r, w) y = Add (m, b)", "y = Gemm (r, w, b)"])
@pytest.mark.parametrize("bias", ["8", "1", "1, 8", "1, 1", "8, 1", "1, 1, 1", "1, 1, 8"])
def test_a_bias_of_any_form_stays_one(bias: str, last: str) -> None:
    if "Gemm" in last and bias.count(",") == 2:
        pytest.skip("Gemm takes no such bias")
    text = LINEAR.format(bias=bias, last=last)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, (8, 16)).astype("f4")} for _ in range(16)]
    result = Pipeline((PruneChannels(ratio=0.5),)).run(model(text), samples=feeds, threads=1)
    (note,) = notes(result, "PRN104")
    assert note.startswith("1 layers fitted: ")
    with Session.open(model(text)) as before, Session.open(result.model) as after:
        assert before.run(feeds[0])["y"].shape == after.run(feeds[0])["y"].shape
    if bias == "8, 1":  # one number for each row, not for each output
        fresh = Pipeline(()).run(model(text)).model.graph.initializers["b"]
        left = result.model.graph.initializers["b"]
        assert left.const_value == fresh.const_value or np.array_equal(
            np.asarray(left.const_value), np.asarray(fresh.const_value)
        )


def test_sequences_between_layers_leave_the_weights_as_they_are() -> None:
    text = """
        g (float[8, 16] x) => (y) <float[16, 32] w0, float[32] b0, float[32, 8] w, int64 i = {0}> {
          s = SequenceConstruct (x)
          c = Gemm (x, w0, b0)
          r = Relu (c)
          m = Gemm (r, w)
          q = SequenceAt (s, i)
          t = ReduceSum (q)
          y = Add (m, t)
        }"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, (8, 16)).astype("f4")} for _ in range(16)]
    result = Pipeline((PruneChannels(ratio=0.5),)).run(model(text), samples=feeds, threads=1)
    assert "no tensor" in notes(result, "PRN105")[0]
    assert (16, 16) in shapes(result)


@pytest.mark.parametrize(
    ("more", "size", "count"),
    [("", 16, 2), ("f = Relu (k) z = Gemm (f, v, x)", 8, 1)],
)
def test_weights_of_constant_nodes_and_layers_that_read_a_constant(
    more: str, size: int, count: int
) -> None:
    numbers = ", ".join(str(index % 7 - 3) for index in range(64))
    text = f"""
        g (float[8, {size}] x) => (y{", z" if more else ""})
        <float[{size}, 32] w0, float[32] b0, float[32, 8] w1, float[8, 5] k, float[5, 8] v> {{
          c = Gemm (x, w0, b0)
          r = Relu (c)
          q = MatMul (r, w1)
          w = Constant <value = float[8, 8] {{{numbers}}}> ()
          y = MatMul (q, w)
          {more}
        }}"""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(1, 1, (8, size)).astype("f4")} for _ in range(16)]
    result = Pipeline((PruneChannels(ratio=0.5),)).run(model(text), samples=feeds, threads=1)
    assert notes(result, "PRN104")[0].startswith(f"{count} layers fitted: ")


def test_samples_of_nothing_say_nothing() -> None:
    text = """
        g (float[N, 3, 16] x) => (y) <float[16, 32] w0, float[32] b0, float[32, 8] w> {
          c = MatMul (x, w0)
          a = Add (c, b0)
          r = Relu (a)
          y = MatMul (r, w)
        }"""
    rng = np.random.default_rng(0)
    counts = (1 if index % 5 else 0 for index in range(24))
    feeds = [{"x": rng.normal(1, 1, (count, 3, 16)).astype("f4")} for count in counts]
    result = Pipeline((PruneChannels(ratio=0.5),)).run(model(text), samples=feeds, threads=1)
    assert notes(result, "PRN104")
