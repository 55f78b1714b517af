"""What each step added: each model is compared with the one before it."""

from __future__ import annotations

from onnxcomp.report import ModelRow, Report, Spread
from onnxcomp.report.contributions import contributions
from onnxcomp.report.html import to_html
from onnxcomp.report.text import to_text

MILLISECOND = Spread(1e-3, 1e-3, 1e-3)


def row(label: str, nbytes: int, speed: float | None, score: float) -> ModelRow:
    ratio = None if speed is None else Spread(speed, speed, speed)
    return ModelRow(label, bytes=nbytes, latency=MILLISECOND, ratio=ratio, metrics={"top1": score})


ROWS = (
    row("original", 1000, None, 0.9),
    row("pruned", 500, 1.5, 0.88),
    row("int8", 125, 3.0, 0.87),
)


def test_each_step_is_compared_with_the_one_before() -> None:
    pruned, quantized = contributions(ROWS)
    assert (pruned.step, pruned.size, pruned.speed) == ("pruned", 0.5, 1.5)
    assert (quantized.step, quantized.size, quantized.speed) == ("int8", 0.25, 2.0)
    assert round(pruned.metrics["top1"], 6) == -0.02
    assert round(quantized.metrics["top1"], 6) == -0.01


def test_what_was_not_measured_stays_unknown() -> None:
    (only,) = contributions((ModelRow("original"), ModelRow("pruned", bytes=5)))
    assert (only.size, only.speed, only.metrics) == (None, None, {})


def test_reports_show_the_table() -> None:
    report = Report("run", models=ROWS, contributions=contributions(ROWS))
    lines = to_text(report).splitlines()
    assert any(line.split() == ["int8", "2.00x", "0.25x", "-0.01"] for line in lines)
    assert "<td>int8</td>" in to_html(report)
    assert report.to_dict()["contributions"][0]["speed"] == 1.5
    assert "int8\n  speed: 2.00x" in to_text(report, width=30)
