"""Small files that ask for much end in bounded time, memory and size."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.reliability.bombs import BOMBS
from tests.reliability.command import onnxcomp, refusal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Running these kills onnxruntime before anything is done to them, so their numbers cannot be compared.
UNRUNNABLE = {"a divisor that is computed"} | {
    f"{dtype} smallest {what} -1" for dtype in ("int64", "int32") for what in ("by", "modulo")
}
LONG = {"matrix products", "a chain of twenty thousand", "a fan-out of five thousand"}
# One pass may add this much to a small model.
GROWTH = 80 * 1024


def names() -> list[object]:
    marks = dict.fromkeys(LONG, pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in BOMBS]


@pytest.mark.parametrize("name", names())
def test_optimize_holds_its_limits(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    source.write_bytes(BOMBS[name].SerializeToString())
    ended = onnxcomp("optimize", source, "-o", target, "--memory-limit", "2G", limit=60)
    if name in UNRUNNABLE and ended.code:
        assert "SIGFPE" in refusal(ended)
        assert list(tmp_path.iterdir()) == [source]
        ended = onnxcomp("optimize", source, "-o", target, "--no-verify")
    assert (ended.code, ended.err) == (0, "")
    assert target.stat().st_size <= 1.1 * source.stat().st_size + GROWTH
    onnx.checker.check_model(target)


@pytest.mark.parametrize("name", [name for name in BOMBS if name not in LONG])
def test_inspect_ends_with_a_table_or_a_line(tmp_path: Path, name: str) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(BOMBS[name].SerializeToString())
    ended = onnxcomp("inspect", source, "--memory-limit", "2G", limit=60)
    assert ended.code == 0 or refusal(ended)


def test_folding_refuses_what_the_processor_refuses(tmp_path: Path) -> None:
    """The quotient cannot be computed, and everything around it still can be simplified."""
    proto = BOMBS["int64 smallest by -1"]
    source, target = tmp_path / "m.onnx", tmp_path / "out.onnx"
    source.write_bytes(proto.SerializeToString())
    ended = onnxcomp("optimize", source, "-o", target, "--no-verify", "--verbose")
    assert ended.code == 0
    assert [node.op_type for node in onnx.load(target).graph.node] == ["Div", "Add"]
    assert "FLD101" in ended.out + ended.err
