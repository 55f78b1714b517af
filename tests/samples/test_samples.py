"""Samples: re-iterable, lazy, split, digest."""

import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from onnxcomp.errors import SamplesError
from onnxcomp.samples import Feed, Samples, load_samples
from tests.samples.make import X, npz, spec, stacked, values


def rows(count: int) -> Samples:
    return load_samples({"x": np.arange(count * 3, dtype="float32").reshape(count, 1, 3)}, [X])


class Tracker:
    """Hands out feeds that count how many of them are alive."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.alive = 0
        self.most = 0

    def __iter__(self) -> Iterator[Feed]:
        return map(self.make, range(self.count))

    def make(self, index: int) -> Feed:
        array = np.full((1, 3), index, "float32")
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(array, self.gone)
        return {"x": array}

    def gone(self) -> None:
        self.alive -= 1


def test_iterating_twice_gives_equal_data() -> None:
    samples = rows(4)
    assert np.array_equal(stacked(samples), stacked(samples))
    first, second = iter(samples), iter(samples)
    for _ in range(4):  # two loops at the same time do not disturb each other
        assert np.array_equal(next(first)["x"], next(second)["x"])


def test_only_one_sample_is_in_memory() -> None:
    tracker = Tracker(10)
    samples = load_samples(tracker, [X])
    assert tracker.most == 1
    for part in (samples, *samples.split(), samples.take(3)):
        part.check()
        assert tracker.most == 1
    assert tracker.alive == 0


def test_a_sample_of_an_npz_file_is_let_go_before_the_next_is_read(tmp_path: Path) -> None:
    iterator = iter(load_samples(npz(tmp_path / "a.npz", x=values(3, 1, 3)), [X]))
    feed = next(iterator)
    gone = weakref.ref(feed["x"])
    del feed
    assert gone() is None


def test_files_are_read_when_iterated(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(3, 1, 3))
    samples = load_samples(path, [X])
    path.unlink()
    with pytest.raises(SamplesError, match=r"cannot read .*a\.npz.*No such file"):
        samples.first()


def test_split_holds_out_every_second_sample() -> None:
    calibration, validation = rows(8).split()
    assert list(calibration.indices) == [0, 2, 4, 6]
    assert list(validation.indices) == [1, 3, 5, 7]
    assert "the other 4: 4 of 8, spread evenly, held out for validation" in calibration.description
    assert "held out for validation" in validation.description
    assert stacked(validation)[:, 0, 0].tolist() == [3, 9, 15, 21]


@pytest.mark.parametrize("held_out", [0.01, 0.1, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_split_is_complete_disjoint_and_deterministic(count: int, held_out: float) -> None:
    samples = rows(count)
    calibration, validation = samples.split(held_out)
    assert len(calibration) >= 1
    assert len(validation) == min(max(round(count * held_out), 1), count - 1)
    assert sorted([*calibration.indices, *validation.indices]) == list(range(count))
    again = samples.split(held_out)
    assert [list(part.indices) for part in again] == [
        list(calibration.indices),
        list(validation.indices),
    ]


def test_split_spreads_over_sorted_data() -> None:
    _, validation = rows(100).split(0.1)
    assert np.diff(validation.indices).tolist() == [10] * 9


def test_split_with_a_source_of_its_own_for_validation() -> None:
    ours, theirs = rows(4), rows(2)
    calibration, validation = ours.split(validation=theirs)
    assert (len(calibration), len(validation)) == (4, 2)
    assert "all for calibration" in calibration.description
    assert "all for validation" in validation.description


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(SamplesError, match=r"1 sample cannot be divided.*give more samples"):
        rows(1).split()


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_shares_outside_0_and_1(share: float) -> None:
    with pytest.raises(SamplesError, match="cannot hold out"):
        rows(4).split(share)


def test_take() -> None:
    samples = rows(5)
    assert len(samples.take(2)) == 2
    assert samples.take(9) is samples
    assert "first 2" in samples.take(2).description
    assert len(load_samples(samples, [X], limit=3)) == 3
    with pytest.raises(SamplesError, match="at least 1"):
        samples.take(0)


def test_limit() -> None:
    data = {"x": values(5, 1, 3)}
    assert len(load_samples(data, [X], limit=2)) == 2
    with pytest.raises(SamplesError, match="cannot take 0 samples"):
        load_samples(data, [X], limit=0)


def test_require() -> None:
    rows(4).require(4, "percentile calibration")
    with pytest.raises(
        SamplesError, match="percentile calibration needs at least 5 samples, there are 4"
    ):
        rows(4).require(5, "percentile calibration")


def test_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    path = npz(tmp_path / "a.npz", x=values(4, 1, 3))
    copy = Path(shutil.copy(path, tmp_path / "b.npz"))
    other = npz(tmp_path / "c.npz", x=values(4, 1, 3, seed=1))
    one, two, three = (load_samples(p, [X]) for p in (path, copy, other))
    assert one.digest() == two.digest()
    assert one.digest() != three.digest()
    assert len({one.digest(), *(part.digest() for part in one.split()), one.take(1).digest()}) == 4


def test_digest_of_python_feeds() -> None:
    feeds = [{"x": row} for row in values(4, 1, 3)]
    digest = load_samples(feeds, [X]).digest()
    assert digest == load_samples(list(feeds), [X]).digest()
    assert digest == load_samples(iter(feeds), [X]).digest()
    assert digest != load_samples(feeds[::-1], [X]).digest()
    assert digest != load_samples([{"x": -feed["x"]} for feed in feeds], [X]).digest()


def test_digest_tells_texts_apart() -> None:
    t = spec("t", "N", dtype="O")
    digests = {load_samples([{"t": [text]}], [t]).digest() for text in ("a", "b")}
    assert len(digests) == 2


def test_a_dict_of_arrays_in_memory() -> None:
    data = values(4, 1, 3)
    samples = load_samples({"x": data, "label_y": np.arange(4)}, [X])
    assert np.array_equal(stacked(samples), data)
    assert samples.labels["label_y"].tolist() == [0, 1, 2, 3]
    assert samples.digest() != load_samples({"x": data + 1}, [X]).digest()
    assert np.array_equal(stacked(load_samples(data, [X])), data)


@pytest.mark.parametrize("source", [3, None, b"bytes"])
def test_what_is_no_source(source: object) -> None:
    with pytest.raises(SamplesError, match="is not a source of samples"):
        load_samples(source, [X])


def test_real_samples_have_no_warnings() -> None:
    samples = rows(2)
    assert not samples.synthetic
    assert samples.diagnostics == ()
    assert repr(samples) == "Samples(2: 2 samples from the dict of arrays (axis 0 = sample))"
