"""Whatever is wrong with a model: exit code 1, one line that names the place, nothing written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.reliability.command import onnxcomp, refusal, snapshot
from tests.reliability.hostile import HOSTILE, good

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# BAD is the hostile file, GOOD a valid one, OUT what must not be there afterwards.
COMMANDS = {
    "optimize": ["optimize", "BAD", "-o", "OUT"],
    "in place": ["optimize", "BAD", "--in-place"],
    "run": ["run", "--passes", "eliminate-dead", "BAD", "-o", "OUT"],
    "compare": ["compare", "GOOD", "BAD"],
    "compare reversed": ["compare", "BAD", "GOOD", "--data", "random:2"],
    "bench": ["bench", "BAD"],
    "inspect": ["inspect", "BAD"],
    "quantize": ["quantize", "static", "BAD", "--data", "random:4", "-o", "OUT"],
    "compress": ["compress", "BAD", "--data", "random:4", "-o", "OUT"],
}


def refuse(folder: Path, name: str, command: list[str]) -> None:
    build, said = HOSTILE[name]
    (folder / "given").mkdir(parents=True)
    bad = build(folder / "given")
    words = {"BAD": bad, "GOOD": good(folder / "good.onnx"), "OUT": folder / "out.onnx"}
    before = snapshot(folder)
    line = refusal(onnxcomp(*(words.get(word, word) for word in command), cwd=folder))
    assert said in line
    assert "SECRET" not in line
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_optimize(tmp_path: Path, name: str) -> None:
    refuse(tmp_path, name, COMMANDS["optimize"])


@pytest.mark.parametrize("index", range(len(HOSTILE)), ids=list(HOSTILE))
def test_refused_by_another_command(tmp_path: Path, index: int) -> None:
    others = [command for name, command in COMMANDS.items() if name != "optimize"]
    refuse(tmp_path, list(HOSTILE)[index], others[index % len(others)])


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_refused_by_every_command(tmp_path: Path, name: str) -> None:
    for number, command in enumerate(COMMANDS.values()):
        refuse(tmp_path / str(number), name, command)
