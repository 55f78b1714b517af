"""prune-channels: what tells how much a channel matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.analysis.channels import Channels
from onnxcomp.analysis.facts import Facts
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.errors import SamplesError
from onnxcomp.ir import Edit, Model
from onnxcomp.passbase import Context
from onnxcomp.pipeline import Pipeline
from onnxcomp.runtime import Session
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support import evidence
from onnxcomp_passes.prune.support.criteria import CriterionName, unit_scores
from onnxcomp_passes.prune.support.effects import Effects
from onnxcomp_passes.prune.support.ends import ends_of
from onnxcomp_passes.prune.support.evidence import measured_costs
from onnxcomp_passes.prune.support.removal import Removal
from tests.helpers import text
from tests.helpers.numbers import seeded_feeds
from tests.passes.test_shrink_channels import FAMILIES

if TYPE_CHECKING:
    from collections.abc import Sequence

ALL = get_args(CriterionName)
WEIGHTS = ("l1", "l2", "std", "median", "scale", "lamp")
OBSERVED = (
    "activation",
    "peak",
    "apoz",
    "wanda",
    "fluctuation",
    "taylor",
    "obd",
    "obs",
    "measured",
)

# The hidden channels are the input: [[1, 0, 2], [3, 1, -2]].
TINY = """g (float[N, 3] x) => (float[N, 2] y)
    <float[3, 3] a = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[3, 2] b = {1, 0, 0, 2, 1, 1}> {
      h = MatMul (x, a)
      y = MatMul (h, b)
    }"""
X = np.asarray([[1, 0, 2], [3, 1, -2]], np.float32)


def context(graph: str | Model, samples: Sequence[Any] | None = None) -> Context:
    model = Model.load(text.model(graph)) if isinstance(graph, str) else graph
    given_samples: Any = samples
    return Context(model, Edit(model), Facts(model), samples=given_samples, threads=1)


def scored(
    graph: str, name: Any, samples: Sequence[Any] | None = None, **options: Any
) -> list[np.ndarray]:
    ctx = context(graph, samples)
    found = unit_scores(ctx, ctx.facts.get(Channels()), name, 0, **options)
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("activation", np.asarray([2, 0.5, 2]) / 1.5),
        ("peak", np.asarray([3, 1, 2]) / 2),
        ("apoz", np.asarray([2, 1, 2]) * 3 / 5),
        ("wanda", np.asarray([5**0.5, 2 * 0.5**0.5, 4]) / (5**0.5 + 2**0.5 + 4)),
        ("obd", np.asarray([5, 2, 8]) / 15),
        ("fluctuation", np.asarray([1, 1, 8]) / 10),
        ("taylor", np.asarray([6, 0, 8]) / 14),
    ],
)
def test_what_samples_say(name: str, expected: np.ndarray) -> None:
    [found] = scored(TINY, name, [{"x": X[:1]}, {"x": X[1:]}])
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", np.asarray([7, 2, 3]) / 4),
        ("l2", np.asarray([5, 2**0.5, 3]) / (8 + 2**0.5) * 3),
        ("std", np.asarray([0.5, 1, 1.5]) / 1),
        ("median", np.asarray([29**0.5 + 5, 29**0.5 + 2**0.5 * 2.5, 0]) / 1),
        ("lamp", np.asarray([1, 2 / 36, 9 / 34])),
    ],
)
def test_what_weights_say(name: str, expected: np.ndarray) -> None:
    graph = """g (float[1, 2] x) => (float[1, 1] y)
        <float[3, 2] a = {3, 4, 1, -1, 0, 3}, float[1, 3] b> {
          h = Gemm <transB = 1> (x, a)
          y = Gemm <transB = 1> (h, b)
        }"""
    rows = np.asarray([[3, 4], [1, -1], [0, 3]], float)
    if name == "median":
        expected = np.asarray([sum(np.linalg.norm(a - b) for b in rows) for a in rows])
        expected /= expected.mean()
    [found] = scored(graph, name)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_scale_of_a_normalization() -> None:
    graph = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
        <float[3, 1, 1, 1] w, float[3] s = {1, -3, 2}, float[3] o = {0, 0, 0}, float[3] m = {0, 0, 0},
         float[3] v = {2, 2, 2}, float[1, 3, 1, 1] u> {
          a = Conv (x, w)
          n = BatchNormalization (a, s, o, m, v)
          y = Conv (n, u)
        }"""
    [found] = scored(graph, "scale")
    # Scale, offset, mean and variance are each a number for each channel.
    assert found.argmax() == 1
    assert found.argmin() == 0


def test_without_a_normalization_there_is_no_scale() -> None:
    np.testing.assert_array_equal(scored(TINY, "scale"), scored(TINY, "l2"))


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_gates_do_what_removal_does(family: str) -> None:
    ctx = context(FAMILIES[family])
    channels, shapes = ctx.facts.get(Channels()), ctx.facts.get(Shapes())
    feeds = seeded_feeds(ctx.model.to_proto())
    ends = ends_of(channels)
    effects = Effects.prepare(ctx, ends, [feeds])
    if effects is None:  # the ends of all groups lie in bodies of control flow
        inside = [
            any(end.node.graph is not ctx.model.graph for end in each) for each in ends.values()
        ]
        assert all(inside)
        return
    for index, group in enumerate(channels.groups):
        if index not in effects.names or group.mixed:
            continue
        gone = np.zeros(group.units, bool)
        gone[::3] = True
        mark, removal = ctx.edit.mark(), Removal(ctx, shapes)
        removal.drop(group, gone)
        removal.apply()
        with Session.open(ctx.model) as session:
            made = session.run(feeds)
        ctx.edit.rollback(mark)
        wanted = effects.wanted[0]
        lost = [np.square(made[k] - v).sum() / np.square(v).sum() for k, v in wanted.items()]
        np.testing.assert_allclose(effects.of(index, gone), np.mean(lost), rtol=1e-3, atol=1e-9)


def test_what_the_outputs_lose() -> None:
    ctx = context(TINY)
    costs = {0: np.asarray([2.0, 1, 3])}
    found = measured_costs(ctx, ends_of(ctx.facts.get(Channels())), costs, costs, [{"x": X}])
    assert found is not None
    np.testing.assert_allclose(found[0], np.asarray([10, 4, 16]) / 14, rtol=1e-6)


def test_each_reader_of_a_shared_weight_counts() -> None:
    graph = """g (float[2, 2] x) => (float[2, 1] y, float[2, 1] z)
        <float[2, 2] a = {1, 0, 0, 1}, float[2, 2] c = {1, 0, 0, 3}, float[2, 1] b = {1, 1}> {
          h = MatMul (x, a)
          y = MatMul (h, b)
          i = MatMul (x, c)
          z = MatMul (i, b)
        }"""
    [found] = scored(graph, "obd", [{"x": np.ones((2, 2), np.float32)}])
    np.testing.assert_allclose(found, [1 / 2 + 1 / 10, 1 / 2 + 9 / 10], rtol=1e-6)


def test_filters_of_groups_read_channels_of_their_own() -> None:
    graph = """g (float[1, 1, 1, 2] x) => (float[1, 2, 1, 2] y)
        <float[4, 1, 1, 1] a = {1, 2, 3, 4}, float[2, 2, 1, 1] b = {1, 2, 3, 1}> {
          h = Conv (x, a)
          y = Conv <group = 2> (h, b)
        }"""
    [found] = scored(graph, "obd", [{"x": np.ones((1, 1, 1, 2), np.float32)}])
    # The first channels of both groups go together: 1 * 1 + 9 * 9, and 4 * 4 + 16 * 1.
    np.testing.assert_allclose(found, np.asarray([82, 32]) / 114, rtol=1e-6)


@pytest.mark.parametrize(
    "family", ["lstm", "gru", "attention", "depthwise", "grouped", "flattened"]
)
@pytest.mark.parametrize("name", ["wanda", "obd", "taylor", "obs", "measured", "confidence"])
def test_everything_that_ends_is_seen(family: str, name: str) -> None:
    ctx = context(FAMILIES[family])
    feeds = [seeded_feeds(ctx.model.to_proto(), variant) for variant in range(4)]
    ctx = context(FAMILIES[family], feeds)
    found = unit_scores(ctx, ctx.facts.get(Channels()), name, 0)  # type: ignore[arg-type]
    assert "PRN106" not in {said.code for said in ctx.diagnostics}
    assert all(np.ptp(costs) > 0 for costs in found.values())


def test_the_recurrence_of_an_lstm_counts() -> None:
    graph = FAMILIES["lstm"]
    ctx = context(graph)
    places = ends_of(ctx.facts.get(Channels()))
    read = {end.other[0].name for ends in places.values() for end in ends}
    assert {"r", "v"} <= read


QUANTIZED = """g (float[1, 2, 1, 2] x) => (float[1, 2, 1, 2] y)
    <float[4, 2, 1, 1] a, int8[2, 2, 1, 1] b = {1, 2, 3, 1}, float s = {0.5}> {
      h = Conv (x, a)
      w = DequantizeLinear (b, s)
      y = Conv <group = 2> (h, w)
    }"""
IN_A_BODY = """g (float[1, 3] x, bool c) => (float[1, 2] y)
    <float[3, 4] a = {1, 2, 3, 4, 3, 2, 1, 0, 1, 7, 3, 1}> {
      h = MatMul (x, a)
      y = If (c) <then_branch = t () => (float[1, 2] p) <float[4, 2] b> { p = MatMul (h, b) },
                  else_branch = e () => (float[1, 2] q) <float[4, 2] d> { q = MatMul (h, d) }>
    }"""
HALVES = """g (float16[1, 3] x) => (float16[1, 2] y)
    <float16[3, 4] a, float16[4, 2] b> {
      h = MatMul (x, a)
      y = MatMul (h, b)
    }"""


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
@pytest.mark.parametrize("graph", [QUANTIZED, IN_A_BODY, HALVES], ids=["qdq", "body", "fp16"])
def test_weights_that_are_computed_and_values_of_other_kinds(graph: str, name: Any) -> None:
    proto = text.model(graph)
    [found] = scored(graph, name, [seeded_feeds(proto, variant) for variant in range(4)])
    assert np.isfinite(found).all()
    if name not in {"scale", "apoz"} and graph != QUANTIZED:
        assert np.ptp(found) > 0


BROKEN = """g (float[2, 3] x) => (float[2, 2] y, float[2, 2] z)
    <float[3, 3] a = {1, 0, 0, 0, 2, 0, 0, 0, 3}, float[3, 2] b = {1, 0, 0, 2, 1, 1},
     float[3, 3] c = {1, 0, 0, 0, 1, 0, 0, 0, 1}, float[3, 2] d = {1, 0, 0, 2, 1, 1}> {
      h = MatMul (x, a)
      l = Log (h)
      y = MatMul (l, b)
      i = MatMul (x, c)
      z = MatMul (i, d)
    }"""


def both(ctx: Context, name: Any) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the channels that become NaN, and of the others."""
    channels = ctx.facts.get(Channels())
    found = unit_scores(ctx, channels, name, 0)
    first = next(
        index
        for index, group in enumerate(channels.groups)
        if any(member.value.name == "a" for member in group.members)
    )
    return found[first], found[1 - first]


@pytest.mark.parametrize("name", [name for name in ALL if name != "random"])
def test_channels_that_are_not_numbers(name: str) -> None:
    ctx = context(BROKEN, [{"x": X}])
    broken, sound = both(ctx, name)
    assert np.isfinite(broken).all()
    assert np.isfinite(sound).all()
    if name in {"auto", *OBSERVED, "confidence"}:
        assert [said.code for said in ctx.diagnostics if said.code == "PRN106"] == ["PRN106"]
        assert broken.argmin() == 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, 1e-30, 1e18, 3e30])
def test_samples_that_say_nothing_or_too_much(name: str, value: float) -> None:
    [found] = scored(TINY, name, [{"x": np.full((2, 3), value, np.float32)}])
    assert np.isfinite(found).all()


def test_weights_stand_in_on_the_same_scale() -> None:
    ctx = context(BROKEN, [{"x": X}])
    broken, sound = both(ctx, "obd")
    np.testing.assert_allclose(broken, np.asarray([1, 4, 9]) / 14, rtol=1e-6)
    np.testing.assert_allclose(sound, np.asarray([5, 2, 8]) / 15, rtol=1e-6)


@pytest.mark.parametrize("name", [*OBSERVED, "confidence"])
def test_without_samples_there_is_nothing_to_look_at(name: str) -> None:
    with pytest.raises(SamplesError, match=name):
        scored(TINY, name)
    with pytest.raises(SamplesError, match=name):
        scored(TINY, name, [])


def test_what_auto_is() -> None:
    samples = [{"x": X}]
    np.testing.assert_array_equal(scored(TINY, "auto"), scored(TINY, "l2"))
    np.testing.assert_array_equal(scored(TINY, "auto", samples), scored(TINY, "obs", samples))
    np.testing.assert_array_equal(
        scored(TINY, "auto", samples, fitted=False),
        scored(TINY, "measured", samples, fitted=False),
    )


def test_recurrent_layers_are_judged_by_what_outputs_lose() -> None:
    proto = text.model(FAMILIES["lstm"])
    samples = [seeded_feeds(proto, variant) for variant in range(4)]
    for found, wanted in zip(
        scored(FAMILIES["lstm"], "auto", samples),
        scored(FAMILIES["lstm"], "measured", samples),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def test_measured_without_a_fit_is_what_the_outputs_lose() -> None:
    [found] = scored(TINY, "measured", [{"x": X}], fitted=False)
    np.testing.assert_allclose(found, np.asarray([10, 4, 16]) / 14, rtol=1e-6)


@pytest.mark.parametrize("name", ["measured", "confidence"])
def test_what_takes_too_long_is_not_measured(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "_EFFORT", 10.0)
    ctx = context(TINY, [{"x": X}])
    [found] = unit_scores(ctx, ctx.facts.get(Channels()), name, 0).values()
    [said] = [said.message for said in ctx.diagnostics if said.code == "PRN107"]
    assert "too long" in said
    np.testing.assert_array_equal(found, scored(TINY, "obs", [{"x": X}])[0])


def test_confidence_says_what_it_trusts() -> None:
    ctx = context(TINY, [{"x": X}])
    unit_scores(ctx, ctx.facts.get(Channels()), "confidence", 0)
    [said] = [said.message for said in ctx.diagnostics if said.code == "PRN107"]
    assert "obd" in said
    assert "obs" in said


def chain(order: Sequence[int], factor: float = 1.0, seed: int = 0) -> tuple[str, list[Any]]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(6, 4)).astype("f4")[list(order)] * factor
    bias = rng.normal(size=6).astype("f4")[list(order)] * factor
    second = rng.normal(size=(3, 6)).astype("f4")[:, list(order)] / factor

    def listed(numbers: np.ndarray) -> str:
        return "{" + ", ".join(f"{number:.9g}" for number in numbers.reshape(-1)) + "}"

    graph = f"""g (float[16, 4] x) => (float[16, 3] y)
        <float[6, 4] a = {listed(first)}, float[6] c = {listed(bias)}, float[3, 6] b = {listed(second)}> {{
          h = Gemm <transB = 1> (x, a, c)
          r = Relu (h)
          y = Gemm <transB = 1> (r, b)
        }}"""
    samples = [{"x": rng.normal(size=(16, 4)).astype("f4")} for _ in range(8)]
    return graph, samples


@settings(max_examples=25, deadline=None)
@given(
    st.permutations(range(6)),
    st.sampled_from([name for name in (*WEIGHTS, *OBSERVED) if name != "scale"]),
    st.integers(0, 5),
)
def test_channels_in_another_order_get_the_same_scores(
    order: list[int], name: str, seed: int
) -> None:
    graph, samples = chain(range(6), seed=seed)
    [before] = scored(graph, name, samples)
    [after] = scored(chain(order, seed=seed)[0], name, samples)
    np.testing.assert_allclose(after, before[order], rtol=1e-3, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([0.25, 2.0, 64.0]),
    st.sampled_from([name for name in (*WEIGHTS, *OBSERVED) if name != "scale"]),
)
def test_the_unit_of_measure_does_not_matter(factor: float, name: str) -> None:
    graph, samples = chain(range(6))
    [before] = scored(graph, name, samples)
    [after] = scored(chain(range(6), factor)[0], name, samples)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-6)


def test_costs_are_shares() -> None:
    graph, samples = chain(range(6))
    for name in ("wanda", "obd", "fluctuation"):
        np.testing.assert_allclose(scored(graph, name, samples)[0].sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_every_criterion_prunes(name: Any) -> None:
    graph, samples = chain(range(6))
    result = Pipeline((PruneChannels(ratio=0.5, criterion=name, multiple=1),)).run(
        Model.load(text.model(graph)), samples=samples, threads=1
    )
    assert result.outcomes[0].stats["channels removed"] == 3
    assert name in (PruneChannels.option_help()["criterion"])
