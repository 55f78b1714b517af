"""Command line options made from the fields of a pass."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import pytest
from pydantic import Field
from typing_extensions import override

from onnxcomp import registry
from onnxcomp.cli.pass_options import type_text
from onnxcomp.passbase import Context, Pass
from onnxcomp.registry import PassInfo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Done

    Run = Callable[..., Done]

SEEN: list[Pass] = []


class Toy(Pass):
    """Quantizes nothing.

    But it could, in wonderful ways that take a whole paragraph to tell, longer than one line of a terminal.

        x -> Relu -> y       =>       x -> y
    """

    name: ClassVar[str] = "quantize-toy"

    per_channel: bool = True
    """One scale for each channel."""
    weights: Literal["int8", "int4"] = "int8"
    """Type of weights."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How much."""
    skip: tuple[str, ...] = ()
    """Nodes to leave alone."""
    limit: int | None = None
    """Most nodes."""
    samples: int = 3
    """A name that the command has too."""
    overrides: Mapping[str, int] = {}
    """Bits by node."""

    @override
    def run(self, ctx: Context) -> None:
        SEEN.append(self)


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two passes named `quantize-...` are installed, one of which cannot be imported."""
    SEEN.clear()
    real = dict(registry.passes())

    def entry(name: str, value: str) -> PassInfo:
        return PassInfo(name, "toys", EntryPoint(name, value, registry.GROUP))

    installed = {
        **{name: info for name, info in real.items() if not name.startswith("quantize-")},
        "quantize-toy": entry("quantize-toy", f"{__name__}:Toy"),
        "quantize-lost": entry("quantize-lost", "no_such_module_anywhere:Lost"),
    }
    monkeypatch.setattr(registry, "passes", lambda: installed)
    monkeypatch.setattr(EntryPoint, "load", _load)


_original_load = EntryPoint.load


def _load(self: EntryPoint) -> object:
    # The test module is not importable under its name in every import mode.
    return Toy if self.name == "quantize-toy" else _original_load(self)


def test_every_quantizing_pass_is_a_command(command: Run) -> None:
    shown = command("quantize", "-h").out
    assert "toy   Quantizes nothing." in shown
    assert "lost  Broken:" in shown


def test_a_broken_pass_says_so_when_it_runs(command: Run) -> None:
    done = command("quantize", "lost")
    assert done.code == 1
    assert 'pass "quantize-lost" of toys cannot be imported' in done.err


def test_an_unknown_method_names_near_ones(command: Run) -> None:
    done = command("quantize", "toi")
    assert (done.code, done.err) == (
        2,
        "error: no command 'toi'; did you mean 'toy'? (see 'onnxcomp quantize --help')\n",
    )


def test_help_comes_from_the_pass(command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("quantize", "toy", "-h").out
    assert "      x -> Relu -> y       =>       x -> y\n" in shown
    together = " ".join(shown.split())
    assert (
        "--per-channel / --no-per-channel One scale for each channel. [default: true]" in together
    )
    assert "--weights [int8|int4] Type of weights. [default: int8]" in together
    assert "--skip TEXT Nodes to leave alone. [repeatable]" in together
    assert "--pass-samples INTEGER A name that the command has too. [default: 3]" in together
    assert "--overrides KEY=VALUE" in together


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Toy()),
        (["--no-per-channel", "--weights", "int4"], Toy(per_channel=False, weights="int4")),
        (["--skip", "a", "--skip", "b"], Toy(skip=("a", "b"))),
        (["--limit", "4", "--share", "0.25"], Toy(limit=4, share=0.25)),
        (["--pass-samples", "9"], Toy(samples=9)),
        (["--overrides", "a=4", "--overrides", "b/c=8"], Toy(overrides={"a": 4, "b/c": 8})),
    ],
)
def test_options_reach_the_pass(
    options: list[str], expected: Toy, command: Run, net: Path, tmp_path: Path
) -> None:
    done = command("quantize", "toy", net, "-o", tmp_path / "o.onnx", "--no-simplify", *options)
    assert done.code == 0, done.err
    assert [expected] == SEEN


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--weights", "int3"], 2, "'int3' is not one of"),
        (["--share", "2"], 1, "share"),
        (["--limit", "x"], 2, "--limit"),
        (["--overrides", "a"], 2, "not of the form KEY=VALUE"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str], code: int, words: str, command: Run, net: Path, tmp_path: Path
) -> None:
    done = command("quantize", "toy", net, "-o", tmp_path / "o.onnx", *options)
    assert done.code == code
    assert words in done.err
    assert done.err.count("\n") == 1
    assert SEEN == []


def test_simplifies_first_unless_told_not_to(command: Run, net: Path, tmp_path: Path) -> None:
    shown = command("quantize", "toy", net, "-o", tmp_path / "o.onnx").out
    assert "eliminate-identity" in shown
    shown = command("quantize", "toy", net, "-o", tmp_path / "o.onnx", "--no-simplify").out
    assert "eliminate-identity" not in shown


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (bool, "true | false"),
        (Literal["a", "b"], "a | b"),
        (int | None, "int"),
        (list[Literal["a", "b"]], "list of a | b"),
        (tuple[str, ...], "list of str"),
        (dict[str, int], "table"),
        (int | str, "str"),
    ],
)
def test_types_in_words(annotation: object, words: str) -> None:
    assert type_text(annotation) == words
