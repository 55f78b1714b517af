"""What calibration keeps from one run to the next, and what it makes of files that others wrote."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from onnxcomp.ir import Model
from onnxcomp.quant.calibrate import Looker, Observed
from onnxcomp.quant.calibration_cache import CalibrationCache, cache_folder
from onnxcomp.samples import load_samples
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from onnxcomp.samples import Samples

NET = """
    g (float[1, 4, 8, 8] x) => (float[1, 4, 8, 8] y)
    <float[4, 4, 1, 1] w> { c = Conv (x, w) r = Relu (c) y = Sigmoid (r) }"""
POINTS = ["x", "r", "y"]
CHANNELS = {"x": (1, 4)}


class StoppedError(Exception):
    """The process that calibrates dies."""


class Stopping:
    """Samples of which a process reads only some before it dies."""

    def __init__(self, samples: Samples, after: int) -> None:
        self.samples, self.after = samples, after

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Any]:
        for index, feed in enumerate(self.samples):
            if index == self.after:
                raise StoppedError
            yield feed


class Counting(CalibrationCache):
    """Tells how much was known."""

    known = 0

    @override
    def load(self, group: Any, empty: Observed) -> tuple[int, Observed] | None:
        found = super().load(group, empty)
        self.known = 0 if found is None else found[0]
        return found


@pytest.fixture
def loaded() -> Model:
    return Model.load(model(NET))


@pytest.fixture
def data(loaded: Model) -> Samples:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(1, 4, 8, 8)).astype("f4")} for _ in range(6)]
    return load_samples(feeds, loaded.signature().inputs)


def states(found: Observed) -> list[list[float]]:
    kept = [found.histograms[name].state() for name in POINTS]
    kept += [np.ravel(part) for part in found.channels["x"].state().values()]
    return [array.tolist() for array in kept]


def look(loaded: Model, samples: Any, store: CalibrationCache | None) -> list[list[float]]:
    looker = Looker(loaded, store=store, worth=-1.0)
    return states(looker.observe(POINTS, samples, CHANNELS))


def _entry(head: dict[str, Any], body: bytes = b"") -> bytes:
    """A file that says the right thing about its own bytes."""
    text = json.dumps({**head, "digest": hashlib.sha256(body).hexdigest()})
    return b"onnxcomp calibration\n" + text.encode() + b"\n" + body


def test_a_second_run_finds_everything_known(loaded: Model, data: Samples, tmp_path: Path) -> None:
    store = Counting(tmp_path / "made", loaded, data)
    first = look(loaded, data, store)
    assert store.known == 0
    assert look(loaded, data, store) == first == look(loaded, data, None)
    assert store.known == 6
    assert (tmp_path / "made").stat().st_mode & 0o077 == 0 or os.name == "nt"


def test_a_run_that_was_stopped_goes_on_after_the_last_samples_kept(
    loaded: Model, data: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxcomp.quant.calibrate._STORE_AFTER", 0.0)
    store = Counting(tmp_path, loaded, data)
    with pytest.raises(StoppedError):
        look(loaded, Stopping(data, 4), store)
    assert look(loaded, data, store) == look(loaded, data, None)
    # The fourth was being computed.
    assert store.known == 3


def test_what_takes_no_time_is_not_kept(loaded: Model, data: Samples, tmp_path: Path) -> None:
    Looker(loaded, store=CalibrationCache(tmp_path, loaded, data)).observe(POINTS, data)
    assert not list(tmp_path.iterdir())


def test_other_weights_samples_and_values_are_something_else(
    loaded: Model, data: Samples, tmp_path: Path
) -> None:
    proto = model(NET)
    proto.graph.initializer[0].raw_data = bytes(64)
    keys = {
        CalibrationCache(tmp_path, loaded, data).key,
        CalibrationCache(tmp_path, Model.load(proto), data).key,
        CalibrationCache(tmp_path, loaded, data.take(3)).key,
    }
    assert len(keys) == 3
    again = CalibrationCache(tmp_path, Model.load(model(NET)), data)
    assert again.key in keys
    store = Counting(tmp_path, loaded, data)
    look(loaded, data, store)
    assert store.load(["x", "r"], Observed()) is None
    assert store.load(POINTS, Observed()) is None


def test_what_was_used_longest_ago_goes_first(loaded: Model, data: Samples, tmp_path: Path) -> None:
    found = Looker(loaded).observe(["x"], data)
    size = found.histograms["x"].state().nbytes + 500
    store = CalibrationCache(tmp_path, loaded, data, limit=3 * size)
    (tmp_path / "mine.txt").write_text("not ours")
    names: list[set[str]] = []
    for age in range(5):
        store.save([str(age)], 1, Observed({str(age): found.histograms["x"]}))
        names.append({path.name for path in tmp_path.iterdir()} - {"mine.txt"})
        for new in names[-1].difference(*names[:-1]):
            os.utime(tmp_path / new, (1e9 + age, 1e9 + age))
    assert (tmp_path / "mine.txt").exists()
    assert [len(each) for each in names] == [1, 2, 3, 3, 3]
    assert names[-1].isdisjoint(names[1])


def test_a_folder_that_cannot_be_written_is_no_error(
    loaded: Model, data: Samples, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CalibrationCache(tmp_path / "file", loaded, data)
    assert look(loaded, data, store) == look(loaded, data, None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95 a pickle",
        b"onnxcomp calibration\n",
        b"onnxcomp calibration\n[1, 2]\n",
        b"onnxcomp calibration\n" + b"[" * 100_000 + b"\n",
        _entry({"samples": 6, "arrays": [["0", "float64", [99999999999]]]}),
        _entry({"samples": 6, "arrays": [["0", "object", [1]]]}, b"12345678"),
        _entry({"samples": 6, "arrays": [[0, "float64", [1]]]}, b"12345678"),
        _entry({"samples": 6, "arrays": [[None, "int64", []]]}, b"12345678"),
        _entry({"samples": True, "arrays": []}),
    ],
)
def test_files_of_strangers_are_removed(
    loaded: Model, data: Samples, tmp_path: Path, content: bytes
) -> None:
    store = Counting(tmp_path, loaded, data)
    expected = look(loaded, data, store)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert look(loaded, data, store) == expected
    assert store.known == 0
    look(loaded, data, store)
    assert store.known == 6


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    index=st.integers(0, 12),
    place=st.integers(0, 2000),
    value=st.sampled_from([np.nan, np.inf, -1.0, 0.5, 1e300, -1e18, 2.0**60, 3.0]),
)
def test_numbers_that_no_data_can_lead_to_are_not_believed(
    loaded: Model, data: Samples, tmp_path: Path, index: int, place: int, value: float
) -> None:
    store = Counting(tmp_path, loaded, data)
    expected = look(loaded, data, store)
    (path,) = tmp_path.iterdir()
    head, body = path.read_bytes().removeprefix(b"onnxcomp calibration\n").split(b"\n", 1)
    fields = json.loads(head)
    sizes = [int(np.prod(shape)) * int(kind[-2:]) // 8 for _, kind, shape in fields["arrays"]]
    index %= len(sizes)
    start = sum(sizes[:index]) + place % (sizes[index] // 8) * 8
    changed = body[:start] + np.float64(value).tobytes() + body[start + 8 :]
    fields["digest"] = hashlib.sha256(changed).hexdigest()
    path.write_bytes(b"onnxcomp calibration\n" + json.dumps(fields).encode() + b"\n" + changed)
    found = look(loaded, data, store)
    # It may be believed where it could be true, but nothing fails and nothing is not a number.
    assert store.known in {0, 6}
    if store.known == 0:
        assert found == expected
    assert np.isfinite(np.concatenate([np.ravel(each) for each in found])).all()
    path.unlink(missing_ok=True)


def test_the_folder_is_where_the_platform_wants_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ONNXCOMP_CACHE", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/not/allowed")
    assert cache_folder() == tmp_path / ".cache" / "onnxcomp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "onnxcomp"
    monkeypatch.setenv("ONNXCOMP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.setenv("ONNXCOMP_CACHE", "")
    assert cache_folder() is None


def test_the_pass_says_where_and_whether(
    loaded: Model, data: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXCOMP_CACHE", str(tmp_path / "variable"))
    ctx: Any = SimpleNamespace(model=loaded, samples=data)

    def folder(**options: Any) -> Path | None:
        store = QuantizeStatic(**options)._store(ctx)
        return None if store is None else store.folder

    assert folder() == tmp_path / "variable"
    assert folder(cache_folder=str(tmp_path / "option")) == tmp_path / "option"
    assert folder(cache=False, cache_folder=str(tmp_path)) is None
    monkeypatch.setenv("ONNXCOMP_CACHE", "")
    assert folder() is None
    assert folder(cache_folder=str(tmp_path)) == tmp_path


def test_a_process_that_is_killed_leaves_what_was_kept(tmp_path: Path) -> None:
    """Kills a real process in the middle; the next one goes on, and ends where one alone ends."""
    onnx.save(model(NET), tmp_path / "net.onnx")
    script = tmp_path / "calibrate.py"
    script.write_text(
        f"""
import sys, time
import numpy as np
from onnxcomp.ir import Model
from onnxcomp.quant import calibrate
from onnxcomp.quant.calibration_cache import CalibrationCache
from onnxcomp.samples import load_samples
calibrate._STORE_AFTER = 0.0
model = Model.load({str(tmp_path / "net.onnx")!r})
model_input = model.signature().inputs
feeds = [{{"x": np.random.default_rng(i).normal(size=(1, 4, 8, 8)).astype("f4")}} for i in range(8)]
data = load_samples(feeds, model_input)
store = CalibrationCache(__import__("pathlib").Path(sys.argv[1]), model, data)
runs = 0
original = calibrate._look
def look(*arguments):
    global runs
    runs += 1
    original(*arguments)
    if sys.argv[2] == "slow" and runs == 5:
        print("now", flush=True)
        time.sleep(60)
calibrate._look = look
found = calibrate.Looker(model, store=store, worth=-1.0).observe(["x", "r"], data)
print(runs, found.histograms["r"].state().sum().hex())
""",
        encoding="utf-8",
    )

    def command(folder: str, speed: str) -> list[str]:
        return [sys.executable, str(script), str(tmp_path / folder), speed]

    with subprocess.Popen(command("cache", "slow"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.kill()
    again = subprocess.run(command("cache", ""), capture_output=True, text=True, check=True)
    alone = subprocess.run(command("other", ""), capture_output=True, text=True, check=True)
    runs, result = again.stdout.split()
    assert (runs, result) == ("5", alone.stdout.split()[1])
    assert len(list((tmp_path / "cache").iterdir())) == 1
