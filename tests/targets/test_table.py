"""Tables of targets: how they are found and read."""

from __future__ import annotations

from typing import Any

import pytest

from onnxcomp.cpuinfo import Cpu
from onnxcomp.errors import RecipeError
from onnxcomp.targets import features, load_target

CPU = load_target("cpu")

ROWS = [kind for family in CPU.family for kind in family.types]


def test_every_row_says_how_it_is_treated_once() -> None:
    assert len(ROWS) == len(set(ROWS))
    assert not set(ROWS) & {kind for row in CPU.float for kind in row.types}


def test_families_and_reasons() -> None:
    conv: Any = CPU.family_of("Conv")
    assert (conv.role, conv.weight.axis, conv.bias) == ("kernel", 0, 2)
    assert CPU.family_of("Erf") is None
    assert CPU.family_of(None) is None
    assert "no int8 kernel" in CPU.why_float("Erf")
    assert "not in the table" in CPU.why_float("Brandnew")


@pytest.mark.parametrize("name", ["gpuu", "../cpu", "table", ""])
def test_an_unknown_target_is_a_clear_error(name: str) -> None:
    with pytest.raises(RecipeError, match="there are: coreml, cpu"):
        load_target(name)


@pytest.mark.parametrize(
    ("arch", "flags", "expected"),
    [
        ("x86_64", {"avx2", "avx512f"}, True),
        ("x86_64", {"avx2", "avx_vnni"}, False),
        ("x86_64", {"avx512_vnni"}, False),
        ("aarch64", {"neon"}, False),
    ],
)
def test_processors_that_saturate(
    monkeypatch: pytest.MonkeyPatch, arch: str, flags: set[str], expected: bool
) -> None:
    monkeypatch.setattr(features, "cpu", lambda: Cpu(arch, "", frozenset(flags)))
    assert features.saturates() is expected
