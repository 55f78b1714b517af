"""How much is removed: shares of units, arithmetic, weights, and measured time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import override

from onnxcomp.analysis.facts import Facts
from onnxcomp.bench import Benchmark, Spread, Timing
from onnxcomp.errors import RecipeError
from onnxcomp.ir import Edit, Model
from onnxcomp.passbase import Context
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp.recipe import make
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support import goals
from onnxcomp_passes.prune.support.goals import (
    Gauge,
    parse_factor,
    parse_share,
    preferred_multiple,
)
from tests.helpers import text

# Two convolutions of 64 channels between them, each of 4 * 4 positions.
WIDE = """g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y)
    <float[64, 8, 1, 1] w, float[8, 64, 1, 1] v> {
      a = Conv (x, w)
      y = Conv (a, v)
    }"""


def left(**options: object) -> int:
    result: Result = Pipeline((PruneChannels(**options),)).run(Model.load(text.model(WIDE)))
    return _channels(result.model)


@pytest.mark.parametrize(
    ("given", "meant"), [("50%", 0.5), (" 12.5% ", 0.125), ("0.3", 0.3), (0.3, 0.3)]
)
def test_a_share_may_be_written_as_percentage(given: object, meant: float) -> None:
    assert parse_share(given) == pytest.approx(meant)


@pytest.mark.parametrize(("given", "meant"), [("0.6x", 0.6), ("60%", 0.6), ("0.6", 0.6)])
def test_a_factor_may_be_written_with_a_cross(given: object, meant: float) -> None:
    assert parse_factor(given) == pytest.approx(meant)


@pytest.mark.parametrize("value", ["half", "0", "100%", "-5%", "nan", "", "%"])
def test_what_is_no_share_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match="flops"):
        make("prune-channels", {"flops": value})


def test_one_goal_at_a_time() -> None:
    with pytest.raises(RecipeError, match="one of"):
        make("prune-channels", {"flops": "50%", "latency": "0.5x"})


@pytest.mark.parametrize("goal", ["ratio", "flops", "parameters"])
def test_goals_are_reached_exactly_where_the_model_allows(goal: str) -> None:
    assert left(**{goal: 0.25}) == 48


def test_time_is_measured_against_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says: time is in proportion to channels."""
    monkeypatch.setattr(goals, "measure", _clock)
    assert left(latency="0.5x") == 32


def test_time_that_cannot_be_reached_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "measure", _clock)
    result = Pipeline((PruneChannels(latency=0.01),)).run(Model.load(text.model(WIDE)))
    assert "PRN102" in [found.code for found in result.diagnostics]


@pytest.mark.parametrize(("features", "channels"), [({"avx2"}, 40), ({"avx2", "avx512f"}, 32)])
def test_time_asks_for_whole_blocks_of_the_processor(
    features: set[str], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(goals, "measure", _clock)
    monkeypatch.setattr(goals, "cpu_features", lambda: frozenset(features))
    assert left(latency=0.65) == channels
    assert left(latency=0.65, multiple=1) == 39  # steps of 5 %


def test_time_need_not_fall_with_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are slow unless channels come in fours."""

    def clock(models: dict[str, Model], feeds: object, **_: object) -> Benchmark:
        return _clock(models, feeds, penalty=2)

    monkeypatch.setattr(goals, "measure", clock)
    assert left(latency=0.7, multiple=1) == 36  # 45 and 42 would take longer than 64


@pytest.mark.parametrize(("target", "channels"), [("cpu", 64), ("webgpu", 60)])
def test_blocks_of_the_target_count_where_there_are_many(target: str, channels: int) -> None:
    step = PruneChannels(ratio=0.1)
    made = Pipeline((step,), target=target).run(Model.load(text.model(WIDE)))
    assert _channels(made.model) == channels


@pytest.mark.parametrize(
    ("units", "multiple"), [(64, 8), (32, 8), (31, 4), (16, 4), (8, 4), (7, 1)]
)
def test_small_groups_are_rounded_to_less(units: int, multiple: int) -> None:
    model = Model.load(text.model(WIDE))
    ctx = Context(model, Edit(model), Facts(model))
    assert preferred_multiple(ctx, units, timed=False) == multiple


@given(st.floats(0.06, 1.0), st.integers(20, 1000))
def test_the_least_share_is_found(goal: float, units: int) -> None:
    found, reached = _Counted(goal).least_share(lambda share: (units - int(units * share)) / units)
    assert reached
    assert (units - int(units * found)) / units <= goal + 1e-9
    coarser = found - 2**-11
    assert coarser < 0 or (units - int(units * coarser)) / units > goal - 1e-9


class _Counted(Gauge):
    @override
    def left(self, model: Model) -> float:
        raise NotImplementedError


def _clock(models: dict[str, Model], feeds: object, *, penalty: int = 1, **_: object) -> Benchmark:
    del feeds
    channels = {name: _channels(model) for name, model in models.items()}
    counts = {name: n * (penalty if n % 4 else 1) for name, n in channels.items()}
    timings = tuple(
        Timing(name, Spread.of([count]), Spread.of([count / counts["before"]]), 1)
        for name, count in counts.items()
    )
    return Benchmark(timings, 1, "cpu", 1, "")


def _channels(model: Model) -> int:
    shape = model.graph.initializers["w"].shape
    assert shape is not None
    return int(shape.numpy()[0])


def test_weights_of_constant_nodes_are_weights() -> None:
    numbers = ", ".join(["1"] * 64)
    graph = f"""g (float[1, 8, 4, 4] x) => (float[1, 8, 4, 4] y) <float[8, 8, 1, 1] v> {{
      w = Constant <value = float[8, 8, 1, 1] {{{numbers}}}> ()
      a = Conv (x, w)
      y = Conv (a, v)
    }}"""
    whole = Model.load(text.model(graph))
    half = Model.load(text.model(graph.replace("8, 8, 1, 1", "4, 8, 1, 1", 1)))
    assert goals.WeightsGauge(0.5, whole).left(half) == pytest.approx(0.75)
