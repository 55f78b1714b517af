"""Fixed shapes on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import onnx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def first_shape(path: Path) -> list[int | str]:
    dims = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    return [dim.dim_param or dim.dim_value for dim in dims]


@pytest.mark.parametrize(
    "options",
    [["--batch", 4], ["--input-shape", "x:4,?"], ["--input-shape", "N=4"], ["--input-shape=x:4,3"]],
)
def test_optimize_fixes_shapes(
    command: Run, net: Path, tmp_path: Path, options: list[object]
) -> None:
    place = tmp_path / "fixed.onnx"
    done = command("optimize", net, "-o", place, "--json", *options)
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["pipeline"].startswith("pin-shapes{")
    assert document["steps"][0]["stats"]["shapes fixed"]
    assert first_shape(place) == [4, 3]
    assert not [item for item in document["diagnostics"] if item["code"].startswith("CMP")]


def test_data_are_drawn_for_the_fixed_shape(command: Run, net: Path, tmp_path: Path) -> None:
    place = tmp_path / "fixed.onnx"
    done = command("optimize", net, "-o", place, "--batch", 4, "--data", "random:2")
    assert done.code == 0, done.err
    assert first_shape(place) == [4, 3]


def test_compare_makes_up_what_both_models_take(command: Run, net: Path, tmp_path: Path) -> None:
    place = tmp_path / "fixed.onnx"
    assert command("optimize", net, "-o", place, "--batch", 5, "-q").code == 0
    for pair in ((net, place), (place, net)):
        done = command("compare", *pair)
        assert done.code == 0, done.err
        assert "identical" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--input-shape", "q:1"], 'no input "q"'),
        (["--input-shape", "x:1,4"], "fixed at 3 and cannot be 4"),
        (["--input-shape", "nonsense"], "is not understood"),
    ],
)
def test_mistakes_are_one_line(
    command: Run, net: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    place = tmp_path / "fixed.onnx"
    done = command("optimize", net, "-o", place, *options)
    assert done.code == 1
    assert words in done.err
    assert not place.exists()


def test_a_batch_of_nothing_is_wrong_usage(command: Run, net: Path, tmp_path: Path) -> None:
    assert command("optimize", net, "-o", tmp_path / "o.onnx", "--batch", 0).code == 2
