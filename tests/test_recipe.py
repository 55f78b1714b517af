"""Pipelines survive the way to text and to TOML and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from onnxcomp import recipe
from onnxcomp.errors import RecipeError
from onnxcomp.recipe import Fixpoint, Recipe

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("plugin")

TEXTS = [
    "eliminate-dead",
    "eliminate-dead,toy-relu6{bound=3.5}",
    "fixpoint(eliminate-dead,toy-relu6{bound=2.0}),eliminate-identity",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trip(text: str) -> None:
    assert recipe.format_steps(recipe.parse_steps(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_toml_round_trip(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    steps = recipe.parse_steps(text)
    path.write_text(recipe.write_recipe(Recipe(steps, "cpu", {"max-relative-error": 0.5})))
    found = recipe.read_recipe(path)
    assert found.steps == steps
    assert found.check == {"max-relative-error": 0.5}


def test_spaces_and_nesting_are_understood() -> None:
    steps = recipe.parse_steps(
        " eliminate-dead , fixpoint( eliminate-dead , toy-relu6{ bound=1 } )"
    )
    assert isinstance(steps[1], Fixpoint)
    assert recipe.format_step(steps[1]) == "fixpoint(eliminate-dead,toy-relu6{bound=1.0})"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the pipeline is empty"),
        ("eliminate-dad", "did you mean eliminate-dead"),
        ("toy-relu6{bond=1}", "options: bound"),
        ("toy-relu6{bound=x}", "bound: input should be a valid number"),
        ("toy-relu6{bound}", "has no value"),
        ("toy-relu6{bound=1", "unbalanced"),
        ("eliminate-dead)", "unexpected )"),
        ("fixpoint(" * 9 + "eliminate-dead" + ")" * 9, "nested deeper"),
    ],
)
def test_mistakes_in_the_text_are_named(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", r"\(").replace(")", r"\)")):
        recipe.parse_steps(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"needs at least one \[\[step\]\]"),
        (
            "[[step]]\npass = 'eliminate-dead'\n[[step]]\npass = 'toy-relu6'\nbound = 'x'",
            "step 2 .toy-relu6.: bound",
        ),
        ("[[step]]\nbound = 1", "step 1: needs pass"),
        ("[[step]]\npass = 'eliminate-dead'\n[other]", "unknown key"),
        ("[[step]", "recipe.toml: "),
        ("target = 1\nstep = 3", "needs at least one"),
        ("[check]\nx = 'y'\n[[step]]\npass = 'eliminate-dead'", "holds numbers"),
    ],
)
def test_mistakes_in_a_file_are_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipe.read_recipe(path)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        recipe.read_recipe(tmp_path / "none.toml")
