"""Reports as a page: whole, harmless, and with everything in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import onnx
from typing_extensions import override

import onnxcomp
from onnxcomp.cli.app import run
from onnxcomp.diagnostics import Diagnostic, Location, Severity
from onnxcomp.report import Gate, ModelRow, Report, Spread, Step
from onnxcomp.report.html import to_html
from tests.helpers import text

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

VOID = {"meta", "br", "!doctype"}


class Page(HTMLParser):
    """Fails on tags that are not closed in order; collects what is shown, and the data."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.shown: list[str] = []
        self.data = ""
        self.feed(source)
        assert self.open == []

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    @override
    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    @override
    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data += data
        elif self.open and self.open[-1] != "style":
            self.shown.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.shown).split())


MODEL = """
    net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 4, 4] z)
    <float[4, 3, 3, 3] w, float[4, 4, 3, 3] v, float[4] s, float[4] b, float[4] m, float[4] r = {1, 1, 1, 1}> {
      [first] c = Conv (x, w)
      [one] y = BatchNormalization (c, s, b, m, r)
      [second] d = Conv (y, v)
      [two] e = BatchNormalization (d, s, b, m, r)
      z = Add (e, d)
    }
"""


def test_a_page_shows_what_was_done_and_holds_the_data() -> None:
    report = onnxcomp.optimize(text.model(MODEL), explain=True).report
    source = to_html(report)
    assert source.isascii()
    page = Page(source)
    assert json.loads(page.data) == report.to_dict()
    assert "normalizations folded into the operator before" in page.text
    assert "Conv + BatchNormalization → Conv" in page.text
    assert 'Conv "second" before it is also read by Add' in page.text
    assert page.tags.isdisjoint({"img", "link", "iframe"})
    assert not [
        name for name, _ in page.attributes if name.startswith("on") or name in {"src", "href"}
    ]


def test_names_from_strangers_are_text() -> None:
    evil = '</script><script>alert("1")</script>\x1b[31m\ud800<b onclick=x>'
    report = Report(
        evil,
        options={"model": evil, evil: evil},
        steps=(Step(evil, True, {evil: 1}, 0.1), Step(evil, False, {}, 0.1, rolled_back=evil)),
        models=(ModelRow(evil, bytes=3, metrics={evil: 0.5}),),
        gates=(Gate(evil, 1, 2, met=False),),
        diagnostics=(Diagnostic("ABC1", Severity.NOTE, evil, Location(evil, evil), evil),),
        notes=(evil,),
        digests={evil: evil},
    )
    page = Page(to_html(report))
    assert json.loads(page.data) == json.loads(report.to_json())
    assert "b" not in page.tags
    assert '<script>alert("1")</script>' in page.text
    assert "\x1b" not in page.text


def test_measurements_and_limits() -> None:
    rows = (
        ModelRow("original", bytes=2_000_000, nodes=5, latency=Spread(0.002, 0.002, 0.002)),
        ModelRow(
            "result", bytes=500_000, nodes=3, ratio=Spread(2, 1.9, 2.1), metrics={"top1": 0.5}
        ),
    )
    gates = (Gate("top1 drop", 0.01, 0.02, met=False), Gate("size", 1, 0.5, met=True))
    page = Page(to_html(Report("compress", models=rows, gates=gates, pipeline="a,b")))
    for wanted in ("2.00 MB", "2.00x (1.90-2.10)", "0.5", "missed", "kept", "2.00 ms", "a,b"):
        assert wanted in page.text
    assert "memory" not in page.text


def test_the_suffix_decides(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, place = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(text.model(MODEL), model)
    for name in ("report.html", "report.json", "report"):
        assert (
            run(["optimize", str(model), "-o", str(place), "-q", "--report", str(tmp_path / name)])
            == 0
        )
    assert capfd.readouterr().out == ""
    document = json.loads((tmp_path / "report.json").read_text())
    page = Page((tmp_path / "report.html").read_text())
    assert json.loads(page.data)["models"][0]["nodes"] == document["models"][0]["nodes"]
    assert "What was done" not in page.text
    assert json.loads((tmp_path / "report").read_text())["command"] == "optimize"
