"""Passes are found wherever they are installed, and trouble with one does not spread."""

from __future__ import annotations

import pytest

from onnxcomp import registry
from onnxcomp.errors import RecipeError
from onnxcomp.passbase import Pass
from onnxcomp.rules import RulePass


def test_every_own_pass_loads_under_its_name_and_explains_itself() -> None:
    own = {
        name: info for name, info in registry.passes().items() if info.distribution == "onnxcomp"
    }
    assert "fold-constants" in own
    for name, info in own.items():
        found = info.load()
        assert issubclass(found, Pass)
        assert found.name == name
        assert found.__doc__, name
        for option, text in found.option_help().items():
            assert text, f"{name}.{option} has no docstring"


def test_every_code_of_a_near_miss_is_explained_and_has_one_meaning() -> None:
    known: dict[str, str] = {}
    for name, info in registry.passes().items():
        if info.problem():
            continue
        found = info.load()
        for code, meaning in found.codes.items():
            assert known.setdefault(code, meaning) == meaning, f"{name}: {code}"
        if issubclass(found, RulePass) and found.near_miss_code:
            assert found.near_miss_code in found.codes, name


def test_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(RecipeError, match="did you mean fold-constants"):
        registry.get("fold-constant")


@pytest.mark.usefixtures("plugin")
def test_another_distribution_brings_a_pass() -> None:
    info = registry.passes()["toy-relu6"]
    assert info.distribution == "toy-passes"
    assert info.load()(bound=3).options() == {"bound": 3.0}  # type: ignore[call-arg]


@pytest.mark.usefixtures("plugin")
def test_broken_plugin_is_listed_with_its_error_and_harms_nobody() -> None:
    info = registry.passes()["toy-broken"]
    assert "ModuleNotFoundError" in info.problem()
    assert "toy-passes" in info.problem()
    assert registry.passes()["toy-relu6"].problem() == ""


@pytest.mark.usefixtures("plugin")
def test_class_and_entry_must_agree_on_the_name() -> None:
    assert "is not a pass named toy-misnamed" in registry.passes()["toy-misnamed"].problem()


@pytest.mark.usefixtures("plugin")
def test_clash_names_both_owners() -> None:
    with pytest.raises(RecipeError, match=r"onnxcomp.*toy-passes|toy-passes.*onnxcomp"):
        registry.get("fold-constants")
