"""`onnxcomp prune`: goals as people write them, and models of which nothing can go."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.helpers import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]

TWO = """g (float[1, 1, 2, 2] x) => (float[1, 1, 2, 2] y)
    <float[64, 1, 1, 1] w, float[1, 64, 1, 1] v> {
      a = Conv (x, w)
      b = Relu (a)
      y = Conv (b, v)
    }"""
ONE = """g (float[1, 3, 2, 2] x) => (float[1, 8, 2, 2] y) <float[8, 3, 1, 1] w> {
      y = Conv (x, w)
    }"""


def saved(path: Path, graph: str) -> Path:
    onnx.save(text.model(graph), path)
    return path


@pytest.mark.parametrize("goal", [("--flops", "50%"), ("--params", "50%"), ("--parameters", "0.5")])
def test_goals_are_written_as_people_do(
    command: Run, goal: tuple[str, str], tmp_path: Path
) -> None:
    source, target = saved(tmp_path / "m.onnx", TWO), tmp_path / "small.onnx"
    assert command("prune", "channels", source, *goal, "-o", target).code == 0
    weights = {found.name: list(found.dims) for found in onnx.load(target).graph.initializer}
    assert weights["w"][0] == 32


@pytest.mark.parametrize(
    ("graph", "options"), [(ONE, []), (TWO, ["--skip", "*"]), (TWO, ["--keep", "1"])]
)
def test_nothing_to_prune_ends_in_exit_code_3(
    command: Run, graph: str, options: list[str], tmp_path: Path
) -> None:
    source, target = saved(tmp_path / "m.onnx", graph), tmp_path / "small.onnx"
    before = source.read_bytes()
    done = command("prune", "channels", source, "-o", target, *options)
    assert done.code == 3
    assert "removed nothing" in done.err
    assert not target.exists()
    assert source.read_bytes() == before


def test_what_is_no_share_is_one_clear_line(command: Run, tmp_path: Path) -> None:
    source = saved(tmp_path / "m.onnx", TWO)
    done = command("prune", "channels", source, "--flops", "half", "-o", tmp_path / "s.onnx")
    assert done.code == 1
    assert "flops" in done.err


def test_the_table_of_steps_names_only_what_was_done(command: Run, tmp_path: Path) -> None:
    source, target = saved(tmp_path / "m.onnx", TWO), tmp_path / "small.onnx"
    first = "prune-channels{ratio=0.5}"
    passes = f"{first},prune-channels{{ratio=0.5 keep=1}}"  # the second one may take nothing
    done = command("run", "--passes", passes, source, "-o", target, "--measure", "--json")
    assert done.code == 0, done.err
    assert [step["step"] for step in json.loads(done.out)["contributions"]] == [first]
