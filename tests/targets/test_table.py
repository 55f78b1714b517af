"""Tables of targets: how they are found and read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.cpuinfo import Cpu
from onnxcomp.errors import RecipeError
from onnxcomp.pipeline import Pipeline
from onnxcomp.targets import Target, features, load_target
from onnxcomp.targets.features import runs_here
from onnxcomp_passes.quantize.quantize_static import QuantizeStatic
from tests.targets.rows import one_operator, samples

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


def test_a_table_over_another_has_its_rows_but_did_not_run_them() -> None:
    arm, old = load_target("cpu-arm64"), load_target("cpu-x64-avx2")
    assert arm.family == tuple(
        row.model_copy(update={"checked": "source"}) if row.checked == "run" else row
        for row in CPU.family
    )
    assert CPU.refuses("int8-activation") is not None
    assert arm.refuses("int8-activation") is None
    assert old.refuses("int8-activation") is not None
    assert old.refuses("saturation", "Conv") is not None
    assert old.refuses("saturation", "Relu") is None
    assert (old.weight.bits, old.weight.per_channel) == (7, True)
    found = [row.use for row in arm.format if row.name == "float16"]
    assert found == ["compute"]


def test_weights_have_7_bits_where_products_saturate() -> None:
    proto = one_operator("Conv")
    step = QuantizeStatic(placement="all", prepare=False, observer="min-max")
    result = Pipeline((step,), target="cpu-x64-avx2").run(proto, samples=samples(proto), threads=1)
    assert "QNT109" in {diagnostic.code for diagnostic in result.diagnostics}
    weights = [t for t in result.model.to_proto().graph.initializer if t.name == "w0_int8"]
    assert [int(np.abs(numpy_helper.to_array(tensor)).max()) for tensor in weights] == [64]


@pytest.mark.parametrize(
    ("flags", "expected"), [({"avx2"}, True), ({"avx2", "avx512_vnni"}, False)]
)
def test_a_target_for_other_processors_is_not_here(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: bool
) -> None:
    found = Cpu("x86_64", "", frozenset(flags))
    monkeypatch.setattr("onnxcomp.targets.features.cpu", lambda: found)
    assert runs_here(load_target("cpu-x64-avx2")) is expected
    assert not runs_here(load_target("cpu-arm64"))
    assert runs_here(CPU)


def test_a_row_without_a_known_source_is_refused() -> None:
    table = CPU.model_dump()
    table["family"][0]["source"] = "hearsay"
    with pytest.raises(ValueError, match="names no source: hearsay"):
        Target.model_validate(table)
