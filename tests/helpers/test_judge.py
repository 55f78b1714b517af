"""The judge finds what is wrong, names the pass, and knows bad conditioning from a bad rewrite."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.helpers.drawn import VARIANTS, draw_any
from tests.helpers.judge import compared, difference, judge, references
from tests.helpers.noise import is_as_far, is_unstable, overflows
from tests.helpers.text import model

RNG = np.random.default_rng(0)
ORDINARY = {"ordinary": {"x": RNG.normal(size=(3, 4)).astype(np.float32)}}


def _judged(before: str, after: str) -> str:
    proto = model(before)
    known = references(proto, ORDINARY)
    return compared(proto, model(after), "eliminate-dead", known).outcome


def test_equal_close_and_wrong_are_told_apart() -> None:
    text = "g (float[3, 4] x) => (float[3, 4] y) <float w = {3}> { y = Mul (x, w) }"
    assert _judged(text, text) == "exact"
    other = text.replace("{3}", "{3.00001}")
    assert _judged(text, other) == "close"
    assert _judged(text, text.replace("{3}", "{3.01}")) == "wrong"
    assert _judged(text, text.replace("Mul", "Div")) == "wrong"


def test_other_types_and_shapes_are_wrong() -> None:
    one = np.zeros((2, 3), np.float32)
    assert difference([one], [one.astype(np.float64)], "ordinary")[0] == "wrong"
    assert difference([one], [one.T], "ordinary")[0] == "wrong"
    assert difference([one.astype(int)], [one.astype(int) + 1], "ordinary")[0] == "wrong"


def test_nan_counts_as_such_only_where_it_was_fed() -> None:
    one, two = np.array([1.0, np.nan]), np.array([1.0, 2.0])
    assert difference([one], [two], "ordinary")[0] == "wrong"
    assert difference([one], [two], "not finite")[0] == "not finite"
    assert difference([one], [two], "large")[0] == "overflow"
    assert difference([one], [one.copy()], "ordinary")[0] == "exact"


CANCELS = """g (float[3, 4] x) => (float[3, 4] y) <float w = {1000000}> {
    a = Exp (x) b = Add (a, w) c = Sub (b, w) d = Sub (c, a) y = Mul (d, w) }"""


def test_what_cancels_is_ill_conditioned() -> None:
    # Added in the other order, nothing is lost: zero instead of noise.
    other = CANCELS.replace("b = Add (a, w) c = Sub (b, w)", "b = Sub (w, w) c = Add (a, b)")
    assert _judged(CANCELS, other) == "ill-conditioned"


def test_a_bad_rewrite_of_what_is_well_conditioned_is_not_excused() -> None:
    proto = model("g (float[3, 4] x) => (float[3, 4] y) { a = Exp (x) y = Add (a, x) }")
    feeds = ORDINARY["ordinary"]
    (expected,) = references(proto, ORDINARY)["ordinary"][1]
    assert not is_as_far(proto, feeds, [expected], [expected * np.float32(1.001)])
    assert is_as_far(proto, feeds, [expected], [expected * np.float32(1.0000003)])


def test_a_threshold_that_noise_crosses_is_ill_conditioned() -> None:
    near = "g (float[3, 4] x) => (bool[3, 4] y) { a = Exp (x) b = Log (a) y = Greater (b, x) }"
    proto = model(near)
    (expected,) = references(proto, ORDINARY)["ordinary"][1]
    assert is_as_far(proto, ORDINARY["ordinary"], [expected], [~expected])
    far = model("g (float[3, 4] x) => (bool[3, 4] y) <float w = {9}> { y = Greater (x, w) }")
    assert not is_as_far(far, ORDINARY["ordinary"], [expected], [~expected])


def test_overflow_and_stray_memory() -> None:
    proto = model("g (float[3, 4] x) => (float[3, 4] y) { a = Exp (x) y = Tanh (a) }")
    large = {"x": np.full((3, 4), 1e4, np.float32)}
    assert overflows(proto, proto, large)
    assert not overflows(proto, proto, ORDINARY["ordinary"])
    assert not is_unstable(proto, large)


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_makes_the_same_model_and_feeds(seed: int) -> None:
    one, two = draw_any(seed, 6), draw_any(seed, 6)
    assert one.proto.SerializeToString() == two.proto.SerializeToString()
    for variant in VARIANTS:
        first, second = one.feeds(variant), two.feeds(variant)
        for name, array in first.items():
            np.testing.assert_array_equal(array, second[name])
    onnx.checker.check_model(one.proto)
    assert "ordinary" in references(one.proto, {"ordinary": one.feeds("ordinary")})


def test_a_crash_of_a_pass_is_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp_passes.simplify.eliminate_dead import EliminateDead

    def fail(*_: object) -> None:
        raise KeyError("oops")

    monkeypatch.setattr(EliminateDead, "run", fail)
    proto = draw_any(1, 4).proto
    verdict = judge(proto, "eliminate-dead", {})
    assert (verdict.outcome, verdict.guilty) == ("traceback", "eliminate-dead")
