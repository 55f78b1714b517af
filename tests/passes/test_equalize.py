"""equalize: the same function in float, better rounded in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.compare import compare
from onnxcomp.ir import Model
from onnxcomp.pipeline import Pipeline
from onnxcomp.quant.balance import ChannelStats, Halves, Reader, best_scale, noise
from onnxcomp.runtime import Session
from onnxcomp_passes.quantize.equalize import Equalize
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    import onnx

    from onnxcomp.pipeline import Result

DEPTHWISE = """
    g (float[1, 4, 8, 8] x) => (float[1, 6, 8, 8] y)
    <float[16, 4, 1, 1] w, float[16] b, float[16, 1, 3, 3] d, float[16] c, float[6, 16, 1, 1] p,
     float zero = {0}, float six = {600}> {
      a = Conv (x, w, b)
      a1 = ACT
      e = Conv <group = 16, kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (a1, d, c)
      e1 = Relu (e)
      y = Conv (e1, p)
    }"""
SMOOTH = """
    g (float[4, 16] x) => (float[4, 6] y, float[4, 16] s) <float[16, 6] w, float[16] k> {
      s = Mul (x, k)
      y = MatMul (s, w)
    }"""


def spread(proto: onnx.ModelProto, names: tuple[str, ...], axis: int = 0) -> onnx.ModelProto:
    """Gives channels of some weights very different sizes."""
    rng = np.random.default_rng(7)
    for tensor in proto.graph.initializer:
        if tensor.name in names:
            array = np.frombuffer(tensor.raw_data, "f4").reshape(tensor.dims).copy()
            shape = [1] * array.ndim
            shape[axis] = -1
            array *= np.exp(rng.normal(scale=2.0, size=array.shape[axis])).reshape(shape)
            tensor.raw_data = array.astype("f4").tobytes()
    return proto


def samples(shape: tuple[int, ...], count: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.normal(size=shape).astype("f4")} for _ in range(count)]


def sqnr(first: onnx.ModelProto, second: Result, feeds: list[dict[str, np.ndarray]]) -> float:
    with Session.open(first) as one, Session.open(second.model) as two:
        return compare(one, two, feeds).worst("sqnr_db") or 0.0


@pytest.mark.parametrize("activation", ["Relu (a)", "LeakyRelu (a)", "Clip (a, zero, six)"])
def test_int8_is_nearer_to_float_and_float_is_the_same(activation: str) -> None:
    proto = spread(model(DEPTHWISE.replace("ACT", activation)), ("w", "b"))
    feeds = samples((1, 4, 8, 8))
    equalized = Pipeline((Equalize(),)).run(proto, samples=feeds)
    assert equalized.changed
    assert sqnr(proto, equalized, feeds) > 100
    step = QuantizeStatic(placement="all", prepare=False, correct_bias=False, observer="min-max")
    plain = Pipeline((step,)).run(proto, samples=feeds)
    better = Pipeline((Equalize(), step)).run(proto, samples=feeds)
    assert sqnr(proto, better, feeds) > sqnr(proto, plain, feeds) + 3


def test_a_mul_takes_the_scale_where_no_weight_can() -> None:
    proto = spread(model(SMOOTH), ("k",))
    feeds = samples((4, 16))
    result = Pipeline((Equalize(),)).run(proto, samples=feeds)
    assert result.outcomes[0].stats["activations smoothed"] == 1
    assert [node.op_type for node in result.model.nodes()] == ["Mul", "Mul", "MatMul"]
    assert sqnr(proto, result, feeds) > 100
    assert result.diagnostics[0].code == "EQL101"


def test_no_mul_is_put_in_for_little() -> None:
    result = Pipeline((Equalize(smooth_above_db=90.0),)).run(
        spread(model(SMOOTH), ("k",)), samples=samples((4, 16))
    )
    assert not result.changed


def test_a_weight_with_two_readers_is_left_alone() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
        <float[4, 4, 1, 1] w> { a = Conv (x, w) b = Relu (a) y = Conv (b, w) }"""
    assert not Pipeline((Equalize(),)).run(model(text), samples=samples((1, 4, 8, 8))).changed


def test_an_output_keeps_its_values() -> None:
    text = """
        g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y, float[1, 8, 8, 8] a)
        <float[8, 4, 1, 1] w, float[4, 8, 1, 1] v> { a = Conv (x, w) y = Conv (a, v) }"""
    proto = spread(model(text), ("w",))
    assert not Pipeline((Equalize(),)).run(proto, samples=samples((1, 4, 8, 8))).changed


def stats(values: np.ndarray) -> ChannelStats:
    none = np.zeros(values.shape[0])
    found = ChannelStats(none, none.copy(), none.copy(), none.copy())
    assert found.add(values, 0)
    return found


def test_the_expected_noise_is_the_real_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, size=(16, 4000)) * np.exp(rng.normal(size=16))[:, None]
    weight = rng.normal(size=(32, 16, 1))
    expected = noise(stats(values), [Reader(weight)], np.ones(16))
    step = (values.max() - values.min()) / 255
    steps = np.abs(weight[..., 0]).max(axis=1, keepdims=True) / 127
    rounded = (np.round(weight[..., 0] / steps) * steps) @ (np.round(values / step) * step)
    exact = weight[..., 0] @ values
    assert expected == pytest.approx(
        np.square(rounded - exact).sum() / np.square(exact).sum(), rel=0.2
    )


def test_a_depthwise_reader_lets_all_channels_reach_equally_far() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(8, 500)) * np.array([1, 10, 0.1, 3, 0.01, 5, 1, 1])[:, None]
    scale, gain = best_scale(stats(values), [Reader(np.ones((8, 1, 9)), is_depthwise=True)])
    reach = stats(values).reach / scale
    assert reach.max() / reach.min() < 1.5
    assert gain > 5


def test_channels_that_reach_a_clip_stay() -> None:
    values = np.concatenate([np.full((1, 50), 6.0), np.full((3, 50), 0.5)])
    twice = stats(values)
    twice.add(values, 0)
    scale, _ = best_scale(twice, [Reader(np.ones((4, 1, 9)), is_depthwise=True)], limit=6.0)
    assert scale[0] == 1.0
    assert (scale[1:] >= 2 * 0.5 / 6.0 - 1e-9).all()
    assert (scale[1:] < 1.0).all()


def test_a_dead_channel_stays() -> None:
    values = np.concatenate([np.zeros((1, 50)), np.random.default_rng(2).normal(size=(3, 50))])
    assert best_scale(stats(values), [Reader(np.ones((2, 4, 1)))])[0][0] == 1.0


def test_rerunning_changes_next_to_nothing() -> None:
    proto = spread(model(DEPTHWISE.replace("ACT", "Relu (a)")), ("w", "b"))
    feeds = samples((1, 4, 8, 8))
    once = Pipeline((Equalize(),)).run(proto, samples=feeds)
    again = Pipeline((Equalize(),)).run(Model.load(once.model), samples=feeds)
    assert again.outcomes[0].stats.get("activations equalized", 0) <= 1


def halves_of(values: np.ndarray) -> Halves:
    return Halves(stats(values[:, ::2]), stats(values[:, 1::2]))


def test_halves_know_together_what_is_known_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(5, 200))
    both, once = halves_of(values).all, stats(values)
    for name in ("low", "high", "power", "total"):
        np.testing.assert_allclose(getattr(both, name), getattr(once, name))
    assert both.count == once.count
    runner_up = np.minimum(values[:, ::2].max(axis=1), values[:, 1::2].max(axis=1))
    np.testing.assert_allclose(both.runner_up, runner_up)


def test_a_range_that_other_samples_leave_is_not_relied_on() -> None:
    """Channels that are large on average gain; channels that are large once in a while do not."""
    rng = np.random.default_rng(4)
    steady = rng.normal(size=(32, 400))
    steady[:4] *= 30
    rare = np.where(rng.random((32, 400)) < 0.004, 30, 1) * rng.normal(size=(32, 400))
    reader = [Reader(rng.normal(size=(16, 32, 1)))]
    assert best_scale(halves_of(steady), reader)[1] > 5
    assert best_scale(stats(rare), reader)[1] > best_scale(halves_of(rare), reader)[1] + 0.3
    assert best_scale(halves_of(rare), reader)[1] < 1


def test_one_sample_has_no_other_half() -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=(8, 100)) * np.arange(1, 9)[:, None] ** 2
    reader = [Reader(rng.normal(size=(16, 8, 1)))]
    nothing = ChannelStats(np.zeros(8), np.zeros(8), np.zeros(8), np.zeros(8))
    alone = best_scale(Halves(stats(values), nothing), reader)
    np.testing.assert_array_equal(alone[0], best_scale(stats(values), reader)[0])


def test_squares_of_half_precision_do_not_overflow() -> None:
    text = """
        g (float16[m, 64] x) => (float16[m, 32] y)
        <float16[64] s, float16[64] b, float16[64, 32] w> {
          n = LayerNormalization (x, s, b)
          y = MatMul (n, w)
        }"""
    proto = model(text)
    scale = np.full(64, 0.5, np.float16)
    scale[:3] = 400.0
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(scale, "s"))
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(8, 64)).astype(np.float16)} for _ in range(4)]
    result = Pipeline((Equalize(),)).run(proto, samples=feeds)
    assert result.outcomes[0].stats["activations equalized"] == 1
