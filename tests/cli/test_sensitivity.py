"""`onnxcomp sensitivity` end to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.cli.sensitivity import _bar, _judge
from onnxcomp.compare import Reference
from onnxcomp.ir import Model
from onnxcomp.samples import load_samples
from tests.helpers import text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]
NET = """
    g (float[1, 4, 16, 16] x) => (float[1, 8, 16, 16] y)
    <float[8, 4, 3, 3] w, float[8] b, float[8, 1, 3, 3] d, float[8] c, float[8, 8, 3, 3] v> {
      a = Conv <pads = [1, 1, 1, 1]> (x, w, b)
      a1 = Relu (a)
      e = Conv <group = 8, pads = [1, 1, 1, 1]> (a1, d, c)
      e1 = Relu (e)
      y = Conv <pads = [1, 1, 1, 1]> (e1, v)
    }"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A model whose last layer reads channels of very different size, and samples."""
    proto = text.model(NET)
    for index, node in enumerate(proto.graph.node):
        node.name = f"<{node.op_type}{index}>"
    for tensor in proto.graph.initializer:
        if tensor.name in {"d", "v"}:
            array = numpy_helper.to_array(tensor).copy()
            if tensor.name == "d":
                array[0] *= 300
            else:
                array[:, 0] /= 300
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "s.npz", x=rng.normal(size=(12, 1, 4, 16, 16)).astype("f4"))
    return path, tmp_path / "s.npz"


def test_the_layer_that_loses_most_comes_first(
    command: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = command(
        "sensitivity", files[0], "--data", files[1], "--html", page, "--json", "--judge-samples", 3
    )
    assert done.code == 0, done.err
    found = json.loads(done.out)
    rows = {row["name"]: row for row in found["layers"]}
    assert {"<Conv0>", "<Conv2>", "<Conv4>"} <= set(rows)
    worst = max(rows.values(), key=lambda row: row["damage"])
    assert worst["name"] == "<Conv4>"
    assert found["everything"] >= worst["back"] > 0
    assert found["left"] == 0
    prices = [
        row["damage"] / row["gain_seconds"] if (row["gain_seconds"] or 0) > 0 else np.inf
        for row in found["layers"]
        if row["damage"] > 0
    ]
    assert prices == sorted(prices, reverse=True)
    html = page.read_text()
    assert "&lt;Conv2&gt;" in html
    assert "<Conv2>" not in html.split("<script")[0]


def test_a_table_for_people(command: Run, files: tuple[Path, Path]) -> None:
    done = command("sensitivity", files[0], "--data", files[1], "--judge-samples", 2)
    assert done.code == 0, done.err
    assert done.out.split()[:4] == ["layer", "operator", "damage", "alone"]
    assert "<Conv2>" in done.out
    assert "damage with everything in int8" in done.out


def test_a_metric_of_the_users_own(command: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "def score(outputs, labels):\n    return float(-sum(abs(o['y']).sum() for o in outputs))\n"
    )
    metric = f"{tmp_path / 'm.py'}:score"
    done = command(
        "sensitivity",
        files[0],
        "--data",
        files[1],
        "--metric",
        metric,
        "--json",
        "--judge-samples",
        2,
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["metric"] == metric


def test_time_that_runs_out_is_said(command: Run, files: tuple[Path, Path]) -> None:
    done = command("sensitivity", files[0], "--data", files[1], "--seconds", "0.000001s", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["left"] >= 1


def test_it_needs_samples(command: Run, files: tuple[Path, Path]) -> None:
    done = command("sensitivity", files[0])
    assert done.code == 2
    assert "--data" in done.err


def test_a_model_that_is_not_its_own_is_an_error(
    command: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    onnx.save(text.model(NET), other)
    done = command("sensitivity", files[0], "--data", files[1], "--quantized", other)
    assert done.code == 1
    assert "--quantized" in done.err


def test_outputs_that_are_larger_than_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference.__init__, "__kwdefaults__", {"budget": 0})
    opened = Model.load(text.model(NET))
    feeds = [{"x": np.full((1, 4, 16, 16), i, "f4")} for i in range(3)]
    judge = _judge(opened, None, load_samples(feeds, opened.signature().inputs), 1)
    assert judge(opened) == judge(opened)


@pytest.mark.parametrize(
    ("damage", "largest", "length"),
    [(1.0, 2.0, 6), (0.0, 0.0, 0), (1.0, np.nan, 0), (np.nan, 1.0, 0)],
)
def test_a_bar_for_any_damage(damage: float, largest: float, length: int) -> None:
    assert len(_bar(damage, largest)) == length
