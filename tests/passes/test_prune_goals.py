"""How much is removed: shares of units, arithmetic, weights, and measured time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxcomp.bench import Benchmark, Spread, Timing
from onnxcomp.errors import RecipeError
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline, Result
from onnxcomp.recipe import make
from onnxcomp_passes.prune.prune_channels import PruneChannels
from onnxcomp_passes.prune.support import goals
from onnxcomp_passes.prune.support.goals import least_share, parse_factor, parse_share
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


def test_time_asks_for_whole_blocks_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(goals, "measure", _clock)
    assert left(latency=0.6) == 32  # 38 channels would do; blocks are of eight
    assert left(latency=0.6, multiple=1) == 38


@pytest.mark.parametrize(("target", "channels"), [("cpu", 58), ("webgpu", 60)])
def test_blocks_of_the_target_count_where_there_are_many(target: str, channels: int) -> None:
    """64 channels are 16 blocks of four, but no more than 8 of eight."""
    step = PruneChannels(ratio=0.1)
    made = Pipeline((step,), target=target).run(Model.load(text.model(WIDE)))
    assert _channels(made.model) == channels


@given(st.floats(0.0, 1.0))
def test_the_least_share_is_found(threshold: float) -> None:
    found = least_share(lambda share: share >= threshold, 12)
    assert threshold - 1e-9 <= found <= threshold + 2**-12 or found == 1.0


def _clock(models: dict[str, Model], feeds: object, **_: object) -> Benchmark:
    del feeds
    counts = {name: _channels(model) for name, model in models.items()}
    timings = tuple(
        Timing(name, Spread.of([count]), Spread.of([count / counts["before"]]), 1)
        for name, count in counts.items()
    )
    return Benchmark(timings, 1, "cpu", 1, "")


def _channels(model: Model) -> int:
    shape = model.graph.initializers["w"].shape
    assert shape is not None
    return int(shape.numpy()[0])
