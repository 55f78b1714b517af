"""Reports: as JSON, and as text on any kind of terminal."""

import io
import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from typing_extensions import override

from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.report import Environment, Gate, ModelRow, Report, Spread, Step
from onnxcomp.report.digest import file_digest
from onnxcomp.report.record import plain
from onnxcomp.report.text import draw_on, render, to_text

ENVIRONMENT = Environment(
    packages={"onnx": "1.22"}, python="3.11", platform="x", processor="y", cores=2
)


def a_report() -> Report:
    rows = (
        ModelRow(
            "original",
            bytes=9_930_000,
            nodes=464,
            latency=Spread(0.00321, 0.0032, 0.0033),
            peak_memory=50_000_000,
            metrics={"top1": 0.9123},
        ),
        ModelRow(
            "result",
            bytes=2_500_000,
            nodes=317,
            latency=Spread(0.0016, 0.0015, 0.0017),
            ratio=Spread(2.0, 1.9, 2.125),
            metrics={"top1": 0.91},
        ),
    )
    steps = (
        Step("fold-constants", True, {"nodes removed": 3}, 0.25),
        Step("eliminate-dead", False, {}, 0.001),
        Step("fold-constants", True, {"nodes removed": 2, "values folded": 1}, 0.25),
        Step("fuse-bias", False, {"nodes removed": 9}, 0.5, "it changed the outputs"),
    )
    remarks = tuple(
        Diagnostic("QNT103", Severity.SKIP, "is not fused", Location("Conv", f"conv{number}"))
        for number in (0, 0, 1, 2, 3)
    )
    warning = Diagnostic("GEN101", Severity.WARNING, "noise", Location("samples"), "give data")
    return Report(
        command="optimize",
        options={"model": Path("a/b.onnx"), "limit": float("inf")},
        steps=steps,
        models=rows,
        gates=(Gate("top1 drop", 0.01, 0.0025, met=True),),
        diagnostics=(*remarks, warning),
        notes=("calibrated on [bold]7[/bold] samples :smile:",),
        seeds={"seed": 7},
        environment=ENVIRONMENT,
    )


def test_text() -> None:
    assert (
        to_text(a_report())
        == """\
model        size  nodes  latency              speed   memory    top1
---------------------------------------------------------------------
original  9.93 MB    464  3.21 ms                  -  50.0 MB  0.9123
result    2.50 MB    317  1.60 ms  2.00x (1.90-2.12)        -    0.91

pass            what it did                           time
----------------------------------------------------------
fold-constants  5 nodes removed, 1 values folded    500 ms
fuse-bias       taken back: it changed the outputs  500 ms

limit kept: top1 drop 0.0025, allowed 0.01
GEN101 warning: samples: noise (give data)
QNT103 skip: Conv "conv0": is not fused
QNT103 skip: Conv "conv1": is not fused
QNT103 ... and 2 more (--verbose shows all)
calibrated on [bold]7[/bold] samples :smile:"""
    )


def test_verbose_text_leaves_nothing_out() -> None:
    text = to_text(a_report(), verbose=True)
    assert 'Conv "conv3"' in text
    assert "eliminate-dead" in text
    assert text.count("fold-constants") == 2
    assert "more" not in text


@pytest.mark.parametrize("width", [20, 40, 59, 61])
def test_narrow_terminals_lose_nothing(width: int) -> None:
    text = to_text(a_report(), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    together = "".join(text.split())
    for wanted in ("original", "9.93MB", "2.00x(1.90-2.12)", "takenback", "0.9123"):
        assert wanted in together


class Stream(io.StringIO):
    def __init__(self, encoding: str, *, tty: bool) -> None:
        super().__init__()
        self.kind = encoding
        self.tty = tty

    @property
    @override
    def encoding(self) -> str:  # type: ignore[override]
        return self.kind

    @override
    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize("tty", [False, True])
def test_ascii_terminals_get_ascii(tty: bool) -> None:
    stream = Stream("ascii", tty=tty)
    draw_on(stream, lambda console: render(a_report(), console))
    assert stream.getvalue().isascii()
    assert "original" in stream.getvalue()


def test_files_get_no_colours_and_no_trailing_blanks() -> None:
    stream = Stream("utf-8", tty=False)
    draw_on(stream, lambda console: render(a_report(), console))
    assert "\x1b" not in stream.getvalue()
    assert not [line for line in stream.getvalue().splitlines() if line != line.rstrip()]


def test_json_is_complete_and_in_order() -> None:
    text = a_report().to_json()
    assert text == a_report().to_json()
    document = json.loads(text)
    assert list(document)[:4] == ["format", "command", "options", "pipeline"]
    assert document["options"] == {"model": "a/b.onnx", "limit": "inf"}
    assert document["models"][1]["ratio"] == {"median": 2.0, "low": 1.9, "high": 2.125}
    assert document["diagnostics"][5] == {
        "code": "GEN101",
        "severity": "warning",
        "message": "noise",
        "where": {"kind": "samples", "name": ""},
        "hint": "give data",
        "notes": [],
    }
    assert document["environment"]["packages"] == {"onnx": "1.22"}


def test_plain_makes_anything_fit_into_json() -> None:
    found = plain({1: {"b", "a"}, "x": (math.nan, -math.inf, None, True, 2), "y": object})
    assert json.loads(json.dumps(found)) == found
    assert found["1"] == ["a", "b"]
    assert found["x"] == ["nan", "-inf", None, True, 2]


def test_passed_is_about_all_limits() -> None:
    kept, missed = (Gate("x", 1, 2, met=met) for met in (True, False))
    assert a_report().passed
    assert not a_report().with_(gates=(kept, missed)).passed
    assert "limit MISSED: x 2, allowed 1" in to_text(a_report().with_(gates=(missed,)))


def test_nothing_changed_is_said() -> None:
    report = Report("optimize", steps=(Step("a", False, {}, 0.1),), environment=ENVIRONMENT)
    assert to_text(report) == "No pass found anything to change."


def test_inverse_of_a_spread_turns_its_ends_round() -> None:
    assert Spread(0.5, 0.25, 1.0).inverse() == Spread(2.0, 1.0, 4.0)


def test_current_environment_knows_what_runs() -> None:
    found = Environment.current()
    assert found.packages["onnxcomp"]
    assert found.packages["onnxruntime"]
    assert found.cores >= 1
    assert found.python.startswith("3.")


def test_digest_depends_on_contents_and_on_what_belongs_to_them(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"1")
    b.write_bytes(b"1")
    c.write_bytes(b"2")
    assert file_digest(a) == file_digest(b) != file_digest(c)
    assert file_digest(a, also=[c]) != file_digest(a, also=[b]) != file_digest(a)


def test_tables_can_be_drawn_on_a_console_of_the_caller() -> None:
    console = Console(file=io.StringIO(), record=True, width=100)
    render(a_report(), console)
    assert "fold-constants" in console.export_text()
