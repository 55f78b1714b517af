"""One pass over the samples: what is seen of activations, whatever their shapes and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxcomp.allowance import MEMORY
from onnxcomp.errors import SamplesError
from onnxcomp.ir import Model
from onnxcomp.quant.calibrate import Looker, calibrate
from onnxcomp.quant.channels import Channels, as_positions, coprime_step
from onnxcomp.quant.damage import channel_noise, channel_power, own_noise, read_power, reader_noise
from onnxcomp.quant.observers import Histogram
from onnxcomp.quant.scheme import QScheme, params_for_range
from onnxcomp.runtime import Session
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Iterator

NET = """
    g (float[N, 4, H, W] x, int64[K] i) => (float[N, 4, H, W] y, int64[K] j)
    <float[4, 4, 1, 1] w> {
      c = Conv (x, w) r = Relu (c) y = Sigmoid (r) j = Identity (i)
    }"""


def feed(rng: np.random.Generator, batch: int, height: int, width: int) -> dict[str, Any]:
    x = rng.normal(size=(batch, 4, height, width)).astype("f4")
    return {"x": x, "i": np.arange(3)}


def test_samples_of_all_shapes_empty_ones_and_integers() -> None:
    rng = np.random.default_rng(0)
    feeds = [feed(rng, 1, 3, 5), feed(rng, 2, 8, 4), feed(rng, 0, 2, 2)]
    found = Looker(Model.load(model(NET))).observe(["x", "i", "r", "j"], feeds, {"x": (1, 4)})
    assert set(found.histograms) == {"x", "r"}
    everything = np.concatenate([f["x"].ravel() for f in feeds])
    assert found.histograms["x"].low == everything.min()
    assert found.histograms["x"].counts.sum() == everything.size
    assert found.histograms["r"].low >= 0.0
    assert found.channels["x"].count == everything.size // 4


def test_nothing_but_empty_samples_is_an_error() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(SamplesError, match="no calibration sample"):
        calibrate(Model.load(model(NET)), ["x", "r"], [feed(rng, 0, 2, 2)])


def test_the_activation_that_is_no_number_is_named() -> None:
    bad = feed(np.random.default_rng(0), 1, 2, 2)
    bad["x"][0, 1, 0, 0] = np.inf
    with pytest.raises(SamplesError, match='"x" has infinite'):
        calibrate(Model.load(model(NET)), ["x"], [bad])


def test_channels_that_change_are_named() -> None:
    seen = Channels(1, 4)
    with pytest.raises(SamplesError, match='"x" changes its channels'):
        seen.add(np.zeros((1, 5, 2), np.float32), "x")
    with pytest.raises(SamplesError, match="changes"):
        seen.add(np.zeros(4, np.float32), "x")


def test_errors_of_the_runtime_come_through() -> None:
    bad: dict[str, Any] = {"x": np.zeros((1, 3, 2, 2), np.float32), "i": np.arange(3)}
    with pytest.raises(SamplesError):
        calibrate(Model.load(model(NET)), ["r"], [bad])


@pytest.mark.parametrize(("limit", "groups"), [(None, 1), (8 * 2 * 256, 2), (8, 3)])
def test_what_one_run_gives_out_follows_from_the_memory_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, groups: int
) -> None:
    opened: list[Any] = []
    original = Session.open

    def spy(*args: Any, **options: Any) -> Any:
        opened.append(options["outputs"])
        return original(*args, **options)

    monkeypatch.setattr(Session, "open", spy)
    token = MEMORY.set(limit)
    try:
        feeds = [feed(np.random.default_rng(0), 1, 4, 4)]
        calibrate(Model.load(model(NET)), ["c", "r", "y"], feeds, sizes=dict.fromkeys("cry", 64))
    finally:
        MEMORY.reset(token)
    assert len(opened) == groups
    assert [name for group in opened for name in group] == ["c", "r", "y"]


class Watched:
    """Samples that tell how many of them are alive at once."""

    def __init__(self, count: int) -> None:
        self.count, self.most, self.given = count, 0, 0
        self.seen = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        rng = np.random.default_rng(0)
        for _ in range(self.count):
            self.given += 1
            self.most = max(self.most, self.given - self.seen)
            yield feed(rng, 1, 4, 4)


def test_samples_are_read_no_faster_than_they_are_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = Watched(40)
    original = Histogram.add

    def count(self: Histogram, array: Any, name: str = "") -> None:
        samples.seen += 1
        original(self, array, name)

    monkeypatch.setattr(Histogram, "add", count)
    calibrate(Model.load(model(NET)), ["r"], samples)
    assert samples.seen == 40
    assert samples.most <= 3


@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    axis=st.sampled_from([1, -1]),
)
def test_how_samples_are_batched_makes_no_difference(
    data: st.DataObject, sizes: list[int], axis: int
) -> None:
    shape = (sum(sizes), *data.draw(st.tuples(st.integers(1, 5), st.integers(1, 40))))
    values = np.random.default_rng(sum(sizes)).normal(size=shape).astype("f4")
    one, some, each = (
        (Histogram(), Channels(axis, shape[axis], 20)),
        (Histogram(), Channels(axis, shape[axis], 20)),
        (Histogram(), Channels(axis, shape[axis], 20)),
    )
    parts = np.split(values, np.cumsum(sizes)[:-1])
    for found, batches in ((one, [values]), (some, parts), (each, np.split(values, shape[0]))):
        for batch in batches:
            for observer in found:
                observer.add(batch)
    for histogram, channels in (some, each):
        # The size of the largest tensor is that of a batch.
        histogram.elements = one[0].elements
        np.testing.assert_array_equal(histogram.state(), one[0].state())
        np.testing.assert_array_equal(channels.vectors, one[1].vectors)
        np.testing.assert_array_equal(channels.mean, one[1].mean)


def test_means_are_means_and_vectors_are_vectors_of_the_data() -> None:
    values = np.random.default_rng(1).normal(size=(3, 5, 6, 7)).astype("f4")
    first, last = Channels(1, 5, 10), Channels(-1, 5, 10)
    first.add(values)
    last.add(np.moveaxis(values, 1, -1))
    for found in (first, last):
        np.testing.assert_allclose(found.mean, values.mean(axis=(0, 2, 3)), atol=1e-6)
        known = {tuple(v) for v in np.moveaxis(values, 1, -1).reshape(-1, 5).tolist()}
        assert {tuple(v) for v in found.vectors.tolist()} <= known
        assert found.vectors.shape == (10, 5)


@given(size=st.integers(1, 5000), enough=st.integers(1, 600))
def test_a_step_meets_every_column_and_leaves_no_more_than_enough(size: int, enough: int) -> None:
    step = coprime_step(size, enough)
    assert -(-size // step) <= max(enough, 1)
    assert step == 1 or np.gcd(step, size) == 1


@pytest.mark.parametrize(("axis", "shape"), [(0, (4, 3)), (1, (2, 4, 3, 3)), (-1, (2, 3, 4))])
def test_positions_keep_the_channels_together(axis: int, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape)
    rows = as_positions(values, axis).reshape(-1, 4)
    expected = np.moveaxis(values, axis, -1).reshape(-1, 4)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))


# -- what rounding does to readers -----------------------------------------------------------------

READERS = {
    "MatMul (x, w)": (1, "[1, 3]", "[3, 2]", -1),
    "Gemm <transB = 1> (x, w)": (1, "[1, 3]", "[2, 3]", -1),
    "Conv (x, w)": (1, "[1, 3, 1, 1]", "[2, 3, 1, 1]", 1),
    "Conv <group = 3> (x, w)": (1, "[1, 3, 1, 1]", "[3, 1, 1, 1]", 1),
    "ConvTranspose (x, w)": (1, "[1, 3, 1, 1]", "[3, 2, 1, 1]", 1),
}


class Reads:
    """As much of a candidate as is needed."""

    def __init__(self, node: Any) -> None:
        self.node, self.weight = node, 1


@pytest.mark.parametrize("text", READERS)
def test_the_power_of_weights_is_that_of_the_output(text: str) -> None:
    _, shape, weight, _ = READERS[text]
    source = f"g (float{shape} x) => (float[A, B, C, D] y) <float{weight} w> {{ y = {text} }}"
    if "Conv" not in text:
        source = source.replace("[A, B, C, D]", "[A, B]")
    proto = model(source)
    rng = np.random.default_rng(3)
    sizes = tuple(proto.graph.initializer[0].dims)
    numbers = rng.normal(size=sizes).astype("f4")
    proto.graph.initializer[0].raw_data = numbers.tobytes()
    del proto.graph.initializer[0].float_data[:]
    loaded = Model.load(proto)
    power = read_power(Reads(next(iter(loaded.graph))))  # type: ignore[arg-type]
    assert power is not None
    assert power.shape == (3,)
    assert power.sum() == pytest.approx(float(np.square(numbers).sum()), rel=1e-5)
    if text.startswith("MatMul"):
        np.testing.assert_allclose(power, np.square(numbers).sum(axis=1), rtol=1e-5)
    if "transB" in text:
        np.testing.assert_allclose(power, np.square(numbers).sum(axis=0), rtol=1e-5)


def test_expected_noise_is_that_of_a_real_product() -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(256, 16)).astype("f4") * np.geomspace(0.1, 3, 16, dtype="f4")
    weight = rng.normal(size=(16, 64))
    seen = Channels(-1, 16, 256)
    seen.add(vectors)
    params = params_for_range(-4.0, 4.0, QScheme())
    rounded = params.dequantize(params.quantize(vectors))
    wanted, got = vectors @ weight, rounded @ weight
    real = np.square(got - wanted).sum() / np.square(wanted).sum()
    power = np.square(weight).sum(axis=1)
    found = reader_noise(channel_noise(seen, params), channel_power(seen), power)
    assert found == pytest.approx(real, rel=0.3)


def test_noise_of_a_tensor_is_relative_to_it() -> None:
    seen, larger = Histogram(), Histogram()
    data = np.random.default_rng(5).normal(size=4000).astype("f4")
    seen.add(data)
    larger.add(data * np.float32(64))
    noise = own_noise(seen, -4.0, 4.0, QScheme())
    assert noise == pytest.approx(own_noise(larger, -256.0, 256.0, QScheme()), rel=1e-3)
    assert own_noise(Histogram(), -1.0, 1.0, QScheme()) == 0.0
