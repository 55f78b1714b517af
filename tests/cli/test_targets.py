"""`onnxcomp targets`, and what `--target` does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

from onnxcomp.targets import load_target, target_names

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]


def test_all_targets_are_listed(command: Run) -> None:
    done = command("targets")
    assert done.code == 0
    rows = {line.split()[0]: line for line in done.out.splitlines() if line.strip()}
    assert set(target_names()) <= set(rows)
    assert rows["cpu"].split()[1] == "yes"
    assert rows["cuda"].split()[2] == "no"
    document = {row["name"]: row for row in json.loads(command("targets", "--json").out)}
    assert document["tensorrt"]["int8"] is True


@pytest.mark.parametrize("name", target_names())
def test_a_target_is_shown_row_by_row_with_its_sources(name: str, command: Run) -> None:
    shown = command("targets", name).out
    target = load_target(name)
    for row in target.rows:
        assert f"[{row.checked}: {row.source}]" in shown
    for address in target.sources.values():
        assert address in shown
    document = json.loads(command("targets", name, "--json").out)
    assert len(document["family"]) == len(target.family)


def test_near_names_are_suggested(command: Run) -> None:
    done = command("targets", "tensort")
    assert done.code == 1
    assert done.err.startswith(
        'error: no target "tensort" (did you mean tensorrt? there are: coreml'
    )


def test_a_model_for_tensorrt(net: Path, tmp_path: Path, command: Run) -> None:
    place = tmp_path / "out.onnx"
    arguments = [
        "quantize",
        "static",
        net,
        "--data",
        "random:4",
        "--target",
        "tensorrt",
        "-o",
        place,
    ]
    done = command(*arguments)
    assert done.code == 0, done.err
    assert "QNT121" in done.out + done.err
    graph = onnx.load(place).graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 1
    assert not any(tensor.data_type == onnx.TensorProto.UINT8 for tensor in graph.initializer)


def test_nothing_is_written_in_int8_for_cuda(net: Path, tmp_path: Path, command: Run) -> None:
    place = tmp_path / "out.onnx"
    done = command("quantize", "static", net, "--data", "random:4", "--target", "cuda", "-o", place)
    assert "QNT120" in done.out + done.err
    assert "float16" in done.out + done.err
    if place.exists():
        assert not any("Quantize" in node.op_type for node in onnx.load(place).graph.node)
