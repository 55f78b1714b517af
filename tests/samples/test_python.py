"""Samples from Python: lists, generators, functions, files with functions, data readers."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader
from typing_extensions import override

from onnxcomp.errors import SamplesError, UserError
from onnxcomp.samples import Feed, Limits, load_samples
from tests.samples.make import X, early_refusal, refusal, spec, stacked, values

DATA = values(4, 1, 3)


def feeds() -> Iterator[Feed]:
    for row in DATA:
        yield {"x": row, "label_y": np.zeros(1)}


def test_a_list_of_feeds() -> None:
    samples = load_samples(list(feeds()), [X])
    assert np.array_equal(stacked(samples), DATA)
    assert samples.description == "4 samples from the list of samples"
    _, validation = samples.split()
    assert np.array_equal(stacked(validation), DATA[1::2])


def test_lists_of_numbers_and_bare_arrays() -> None:
    assert np.array_equal(stacked(load_samples([{"x": row.tolist()} for row in DATA], [X])), DATA)
    assert np.array_equal(stacked(load_samples(list(DATA), [X])), DATA)


def test_a_generator_is_read_once_and_kept() -> None:
    samples = load_samples(feeds(), [X])
    assert np.array_equal(stacked(samples), DATA)
    assert np.array_equal(stacked(samples.split()[1]), DATA[1::2])


def test_a_generator_with_all_kinds_of_values() -> None:
    inputs = [spec("t", "N", dtype="O"), spec("s", dtype="int64"), spec("e", "N", 2, dtype="bool")]
    made = [
        {"t": ["a", "longer text"], "s": 5, "e": np.zeros((0, 2), bool)},
        {"t": [""], "s": np.int64(6), "e": np.ones((1, 2), bool)},
    ]
    found = list(load_samples(iter(made), inputs))
    assert [feed["t"].tolist() for feed in found] == [["a", "longer text"], [""]]
    assert [int(feed["s"]) for feed in found] == [5, 6]
    assert [feed["e"].shape for feed in found] == [(0, 2), (1, 2)]


def test_a_generator_beyond_the_limit_on_disk_space() -> None:
    text = early_refusal(feeds(), X, limits=Limits(spool_bytes=40))
    assert "the samples take more than 40 bytes" in text
    assert "a function or a list" in text
    assert len(load_samples(feeds(), [X], limit=3, limits=Limits(spool_bytes=40))) == 3


def test_a_generator_that_does_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.samples.stream._IN_MEMORY", 16)  # everything goes to disk
    samples = load_samples(feeds(), [X])
    assert np.array_equal(stacked(samples), DATA)


def test_a_function_is_called_for_every_pass() -> None:
    calls = []

    def counted() -> Iterator[Feed]:
        calls.append(1)
        yield from feeds()

    samples = load_samples(counted, [X])
    assert len(calls) == 1
    assert np.array_equal(stacked(samples), stacked(samples))
    assert len(calls) == 3
    assert samples.description == '4 samples from function "counted"'


def test_a_limit_stops_an_endless_function() -> None:
    def endless() -> Iterator[Feed]:
        while True:
            yield {"x": DATA[0]}

    samples = load_samples(endless, [X], limit=5)
    assert len(list(samples)) == 5
    assert "first 5 samples" in samples.description
    text = early_refusal(endless, X, limits=Limits(samples=10))
    assert "gives more than 10 samples (does it ever stop? set a limit)" in text


def test_a_function_that_gives_fewer_samples_later() -> None:
    left = [3, 1]

    def shrinking() -> Iterator[Feed]:
        for _ in range(left.pop(0)):
            yield {"x": DATA[0]}

    text = refusal(load_samples(shrinking, [X]))
    assert "gave 3 samples the first time and 1 now" in text


def test_no_samples_at_all() -> None:
    assert "the list of samples gives no samples" in early_refusal([], X)
    assert "gives no samples" in early_refusal(iter([]), X)
    assert "gives no samples" in early_refusal(list, X)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ({"y": DATA[0]}, 'sample 2: "y" is not an input of the model'),
        ({}, 'sample 2: no data for input "x" (it is empty)'),
        (
            {"x": DATA[0][0]},
            'sample 2, input "x": the shape is [3], the model takes [N,3] (add the batch axis',
        ),
        ({"x": values(1, 4)}, 'sample 2, input "x": the shape is [1,4], the model takes [N,3]'),
        (
            {"x": values(1, 3, dtype="int64")},
            'sample 2, input "x": the dtype is int64, the model takes float32',
        ),
        ({"x": np.full((1, 3), np.nan, "f4")}, 'sample 2, input "x": 3 of 3 values are not finite'),
        ({"x": [[1.0], [2.0, 3.0]]}, 'sample 2, input "x": not an array'),
        ({"x": [[None, 1.0, 2.0]]}, 'sample 2, input "x": the array holds Python objects'),
        ({"x": "text"}, 'sample 2, input "x": the dtype is'),
        ([DATA[0]], "sample 2: a list is not a sample (give a dict from input name to array)"),
        (None, "sample 2: a NoneType is not a sample"),
    ],
)
def test_bad_feeds_are_found_before_any_work(bad: object, problem: str) -> None:
    good = {"x": DATA[0]}
    for source in ([good, good, bad], iter([good, good, bad])):
        assert problem in early_refusal(source, X)


def test_feeds_that_are_not_dicts_need_a_model_with_one_input() -> None:
    assert "a ndarray is not a sample" in early_refusal([DATA[0]], X, spec("y", 1))


def test_text_inputs_take_text_only() -> None:
    t = spec("t", "N", dtype="O")
    assert 'input "t": the model takes text here' in early_refusal([{"t": [object()]}], t)
    assert 'input "t": the dtype is float32' in early_refusal([{"t": np.zeros(1, "f4")}], t)


def test_conversions_are_noted() -> None:
    samples = load_samples([{"x": row.astype("float64")} for row in DATA], [X])
    assert samples.notes == ('"x" converted from float64 to float32',)
    assert stacked(samples).dtype == np.float32


def test_errors_of_the_users_code_are_one_line() -> None:
    def broken() -> Iterator[Feed]:
        yield {"x": DATA[0]}
        raise KeyError("no such\nthing")

    text = early_refusal(broken, X)
    assert 'function "broken" failed in line ' in text
    assert "KeyError: 'no such\\nthing'" in text
    with pytest.raises(SamplesError) as caught:
        load_samples(broken, [X])
    assert isinstance(caught.value.__cause__, KeyError)


def test_errors_for_users_pass_through() -> None:
    def broken() -> Iterator[Feed]:
        raise UserError("mine")
        yield {}

    with pytest.raises(UserError, match=r"^mine$"):
        load_samples(broken, [X])


# --- file.py:function


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "data.py"
    path.write_text(text)
    return path


GOOD = """
import dataclasses
import numpy as np
from neighbour_of_data import COUNT

@dataclasses.dataclass
class Config:
    count: int = COUNT

def feeds():
    for i in range(Config().count):
        yield {"x": np.full((1, 3), i, np.float32)}

def broken():
    yield {"x": np.zeros((1, 3), np.float32)}
    raise RuntimeError("camera is gone")

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _restored_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # for the neighbour, which is imported


def test_a_function_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_data.py").write_text("COUNT = 3")
    path = script(tmp_path, GOOD)
    for source in (f"{path}:feeds", Path(f"{path}:feeds")):
        samples = load_samples(source, [X])
        assert stacked(samples)[:, 0, 0].tolist() == [0, 1, 2]
        assert stacked(samples)[:, 0, 0].tolist() == [0, 1, 2]
        assert 'data.py:feeds"' in samples.description
    text = early_refusal(f"{path}:broken", X)
    assert 'data.py:broken" failed in line 16: RuntimeError: camera is gone' in text
    assert 'has no function "fed" (it has "feeds", "broken")' in early_refusal(f"{path}:fed", X)
    assert 'has no function "NUMBER"' in early_refusal(f"{path}:NUMBER", X)
    assert "name the function too: data.py:function" in early_refusal(path, X)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data.py", "neighbour_of_data.py"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import no_such_module_here", "failed in line 1: ModuleNotFoundError"),
        ("def feeds(:", "failed: SyntaxError"),
        ("import sys\nsys.exit(0)", "failed in line 2: SystemExit: 0"),
        ("def feeds(argument): yield {}", "failed: TypeError"),
        ("def feeds(): return 3", "TypeError: 'int' object is not iterable"),
        ("x = 1", "it has no functions"),
        ("\0", "failed: "),
    ],
)
def test_files_that_cannot_be_run(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in early_refusal(f"{script(tmp_path, text)}:feeds", X)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "No such file" in early_refusal(f"{tmp_path}/none.py:feeds", X)


# --- calibration data readers of onnxruntime


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.rewind()

    def get_next(self) -> Feed | None:
        return next(self.iterator, None)

    def rewind(self) -> None:
        self.iterator = iter([{"x": row} for row in DATA])


class ReaderOnce:
    def __init__(self) -> None:
        self.iterator = iter([{"x": row} for row in DATA])

    def get_next(self) -> Feed | None:
        return next(self.iterator, None)


@pytest.mark.parametrize("reader", [Reader, ReaderOnce])
def test_a_calibration_data_reader(reader: type[Reader] | type[ReaderOnce]) -> None:
    samples = load_samples(reader(), [X])
    assert np.array_equal(stacked(samples), DATA)
    calibration, validation = samples.split()
    assert np.array_equal(stacked(calibration), DATA[::2])
    assert np.array_equal(stacked(validation), DATA[1::2])
    assert f'calibration data reader "{reader.__name__}"' in samples.description


def test_a_reader_that_was_used_before_is_rewound() -> None:
    reader = Reader()
    reader.get_next()
    assert len(load_samples(reader, [X])) == 4


def test_a_reader_has_one_position() -> None:
    samples = load_samples(Reader(), [X])
    first, second = iter(samples), iter(samples)
    next(first)
    next(second)
    with pytest.raises(SamplesError, match="two loops over the samples at the same time"):
        next(first)


def test_a_reader_that_fails() -> None:
    class Broken(Reader):
        @override
        def get_next(self) -> Feed | None:
            raise OSError("disk gone")

    assert 'calibration data reader "Broken" failed: OSError: disk gone' in early_refusal(
        Broken(), X
    )
