"""`compress` and `demo`: from the command line to the search, and from its result to files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest

import onnxcomp.compression
from onnxcomp.report import Gate, ModelRow, Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from onnxcomp.ir import Model
    from onnxcomp.samples import Samples
    from tests.cli.conftest import Done

    Run = Callable[..., Done]


@dataclass
class Found:
    """What the search returns, as far as the command looks at it."""

    model: Model
    report: Report
    met: bool


class Search:
    """Stands in for the search: remembers what it was asked for, returns the model as it came."""

    def __init__(self) -> None:
        self.asked: dict[str, Any] = {}
        self.met = True
        self.error: BaseException | None = None

    def __call__(self, source: Model, **asked: Any) -> Found:
        self.asked = asked
        if self.error is not None:
            raise self.error
        gate = Gate("fidelity drop", asked["max_drop"], 0.02, met=self.met)
        rows = (ModelRow("original", nodes=4), ModelRow("int8 (chosen)", nodes=4))
        return Found(source, Report("compress", models=rows, gates=(gate,)), self.met)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Search:
    """The search is replaced."""
    found = Search()
    monkeypatch.setattr(onnxcomp.compression, "compress", found)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Samples for `net`."""
    path = tmp_path / "samples.npz"
    np.savez(path, x=np.random.default_rng(0).normal(size=(8, 1, 3)).astype(np.float32))
    return path


def test_what_the_user_says_reaches_the_search(
    command: Run, search: Search, net: Path, data: Path, tmp_path: Path
) -> None:
    words = (
        "--max-drop 2% --threads 2 --trials 3 --measure-time 1s --seed 7 --no-memory --metric top1 "
        "--batch 2 --prefer size --contrib --prune"
    )
    place = tmp_path / "small.onnx"
    done = command("compress", net, "--data", data, "--samples", 6, "-o", place, *words.split())
    assert done.code == 0, done.err
    samples: Samples = search.asked.pop("samples")
    assert len(samples) == 6
    del search.asked["progress"]
    assert search.asked == {
        "validation": None,
        "metric": "top1",
        "target": "cpu",
        "max_drop": 0.02,
        "threads": 2,
        "trials": 3,
        "seconds": 1.0,
        "seed": 7,
        "memory": False,
        "batch": 2,
        "prefer": "size",
        "contrib": True,
        "prune": True,
    }
    assert len(onnx.load(place).graph.node) == 4
    assert "int8 (chosen)" in done.out
    assert done.out.splitlines()[-1] == f"wrote {place}"


def test_separate_samples_for_validation(
    command: Run, search: Search, net: Path, data: Path, tmp_path: Path
) -> None:
    options = ("--data", data, "--validation", data, "-o", tmp_path / "o.onnx")
    assert command("compress", net, *options).code == 0
    assert len(search.asked["validation"]) == 8


def test_a_missed_limit_is_exit_3_and_said(
    command: Run, search: Search, net: Path, data: Path, tmp_path: Path
) -> None:
    search.met = False
    done = command("compress", net, "--data", data, "-o", tmp_path / "o.onnx", "-q")
    assert done == (3, "", "missed: fidelity drop is 0.02, the limit is 0.01\n")


def test_the_report_holds_what_repeats_the_run(
    command: Run, search: Search, net: Path, data: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    place = tmp_path / "o.onnx"
    done = command("compress", net, "--data", data, "-o", place, "--report", report, "--json")
    assert done.code == 0, done.err
    document = json.loads(report.read_text())
    assert document == json.loads(done.out)
    assert document["options"]["model"] == str(net)
    assert document["options"]["data"] == str(data)
    assert document["options"]["max_drop"] == 0.01
    assert set(document["digests"]) >= {"input", "output"}


@pytest.mark.parametrize("words", [["--max-drop", "200%"], ["--trials", "0"], ["--max-drop", "x"]])
def test_impossible_goals_are_wrong_usage(
    words: list[str], command: Run, search: Search, net: Path, data: Path, tmp_path: Path
) -> None:
    assert command("compress", net, "--data", data, "-o", tmp_path / "o.onnx", *words).code == 2
    assert search.asked == {}


def test_demo_writes_a_model_and_a_report(command: Run, search: Search, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "demo"
    done = command("demo", "-o", folder)
    assert done.code == 0, done.err
    assert sorted(path.name for path in folder.iterdir()) == ["report.json", "small.onnx"]
    assert len(search.asked["samples"]) == 128
    assert len(search.asked["validation"]) == 1000
    assert json.loads((folder / "report.json").read_text())["command"] == "demo"


def test_demo_that_fails_leaves_no_folder(command: Run, search: Search, tmp_path: Path) -> None:
    search.error = ValueError("no")
    assert command("demo", "-o", tmp_path / "demo").code == 1
    assert not (tmp_path / "demo").exists()


def test_demo_in_a_place_that_is_a_file(command: Run, search: Search, net: Path) -> None:
    done = command("demo", "-o", net)
    assert done.code == 1
    assert done.err.startswith("error: cannot make folder")
