"""`onnxcomp lint` end to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest

from tests.helpers import text
from tests.lint.test_rules import CASES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]
BY_CODE = {case.code: case for case in CASES}


def saved(code: str, tmp_path: Path) -> Path:
    path = tmp_path / f"{code}.onnx"
    onnx.save(text.model(BY_CODE[code].bad), path)
    return path


def test_findings_are_a_table_and_lines(command: Run, tmp_path: Path) -> None:
    done = command("lint", saved("LNT201", tmp_path))
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split() == ["code", "severity", "what", "found", "fixable"]
    assert "LNT201  warning" in done.out
    assert "Q/DQ run as nodes of their own" in done.out


@pytest.mark.parametrize(
    ("code", "fail_on", "wanted"),
    [
        ("LNT101", "error", 3),
        ("LNT101", "never", 0),
        ("LNT201", "error", 0),
        ("LNT201", "warning", 3),
    ],
)
def test_the_exit_code_says_how_bad_it_is(
    command: Run, tmp_path: Path, code: str, fail_on: str, wanted: int
) -> None:
    done = command("lint", saved(code, tmp_path), "--fail-on", fail_on)
    assert done.code == wanted
    assert ("missed: " in done.err) == (wanted == 3)


def test_fix_writes_a_model_without_the_findings(command: Run, tmp_path: Path) -> None:
    place = tmp_path / "fixed.onnx"
    done = command(
        "lint", saved("LNT101", tmp_path), "--fix", "-o", place, "--json", "--fail-on", "warning"
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["counts"]["LNT101"] == 1
    assert "LNT101" not in document["fixed"]["counts"]
    assert document["fixed"]["remarks"][0]["code"] == "FIX101"
    assert document["findings"][0]["severity"] == "error"
    assert document["findings"][0]["fixable"] is True
    onnx.checker.check_model(place, full_check=True)
    assert "LNT101" not in command("lint", place).out


def test_reports_are_stored(command: Run, tmp_path: Path) -> None:
    model = saved("LNT301", tmp_path)
    page, record = tmp_path / "r.html", tmp_path / "r.json"
    assert command("lint", model, "--report", page, "-q").code == 0
    assert command("lint", model, "--report", record, "-q").code == 0
    assert "LNT301" in page.read_text()
    assert json.loads(record.read_text())["counts"]["LNT301"] == 1


def test_a_place_for_the_result_is_asked_for(command: Run, tmp_path: Path) -> None:
    model = saved("LNT301", tmp_path)
    assert command("lint", model, "--fix").code == 2
    assert command("lint", model, "-o", tmp_path / "o.onnx").code == 2
    assert command("lint", model, "--fix", "-o", model).code == 1


def test_other_targets_have_other_rules(command: Run, tmp_path: Path) -> None:
    done = command("lint", saved("LNT210", tmp_path), "--target", "tensorrt", "--json")
    assert "LNT210" in json.loads(done.out)["counts"]
    assert command("lint", saved("LNT210", tmp_path), "--target", "toaster").code == 1


def test_codes_are_explained(command: Run) -> None:
    done = command("explain", "LNT101")
    assert done.code == 0
    assert "output channels" in done.out
    assert command("explain", "FIX103").code == 0


def test_a_float_model_is_no_reason_to_complain(command: Run, net: Path) -> None:
    done = command("lint", net, "--fail-on", "warning")
    assert (done.code, done.err) == (0, "")
    assert "the model is not quantized" in done.out
