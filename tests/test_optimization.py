"""`optimize` proves that nothing changed, and finds the pass that is to blame if something did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp import demo, optimization
from onnxcomp.ir import Model
from onnxcomp.verify import Equivalence

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 3] x) => (float[N, 3] y)
<float[3] w = {1, 2, 3}> { a = Relu (x) i = Identity (a) b = Add (w, w) y = Mul (i, b) }
"""


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes()]


def test_demo_model_loses_its_batch_normalisations_and_nothing_else() -> None:
    result = onnxcomp.optimize(demo.MODEL)
    assert operators(Model.load(demo.MODEL)).count("BatchNormalization") == 9
    assert operators(result.model).count("BatchNormalization") == 0
    assert result.model.signature() == Model.load(demo.MODEL).signature()
    assert not result.notes


@pytest.mark.usefixtures("plugin")
def test_guilty_pass_is_named_and_taken_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = "toy-wrong,eliminate-identity,eliminate-dead"
    monkeypatch.setattr(optimization, "SIMPLIFY", recipe)
    result = onnxcomp.optimize(onnx.parser.parse_model(TEXT), reproducer=tmp_path)
    assert operators(result.model) == ["Relu", "Add", "Mul"]
    guilty = [outcome for outcome in result.outcomes if outcome.rolled_back]
    assert [outcome.step for outcome in guilty] == ["toy-wrong"]
    assert 'output "y"' in guilty[0].rolled_back
    assert (tmp_path / "recipe.toml").exists()


@pytest.mark.usefixtures("plugin")
def test_without_verification_nobody_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimization, "SIMPLIFY", "toy-wrong")
    result = onnxcomp.optimize(onnx.parser.parse_model(TEXT), verify=False)
    assert operators(result.model)[0] == "Abs"


def changed(text: str) -> Model:
    return Model.load(onnx.parser.parse_model(text))


def test_equivalence_sees_a_small_difference() -> None:
    original = changed(TEXT)
    equivalence = Equivalence(original, signature_of=original)
    assert equivalence.difference(changed(TEXT)) == ""
    assert "y" in equivalence.difference(changed(TEXT.replace("{1, 2, 3}", "{1, 2, 3.01}")))


def test_equivalence_uses_the_samples_it_is_given() -> None:
    original = changed(TEXT)
    feeds = [{"x": np.zeros((2, 3), np.float32)}]
    equivalence = Equivalence(original, signature_of=original, feeds=feeds)
    assert equivalence.difference(changed(TEXT.replace("{1, 2, 3}", "{7, 7, 7}"))) == ""


def test_model_that_the_runtime_cannot_load_is_said_to_be_unproven() -> None:
    text = TEXT.replace('["" : 21]', '["" : 21, "my" : 1]').replace("Relu (x)", "my.Own (x)")
    result = onnxcomp.optimize(onnx.parser.parse_model(text))
    assert [note.code for note in result.notes] == ["CMP101"]
    assert "Own" in operators(result.model)
    assert "Identity" not in operators(result.model)


def test_random_model_is_said_to_be_unproven() -> None:
    text = TEXT.replace("Relu (x)", "RandomNormalLike (x)")
    result = onnxcomp.optimize(onnx.parser.parse_model(text))
    assert [note.code for note in result.notes] == ["CMP103"]


ILL_CONDITIONED = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[4, 4] x) => (float[4, 4] y)
<float[1] big = {1e7}, float[1] w = {2}> { a = Mul (x, big) b = Sin (a) y = Mul (b, w) }
"""


def test_difference_on_an_ill_conditioned_sample_is_no_evidence() -> None:
    original = changed(ILL_CONDITIONED)
    equivalence = Equivalence(original, signature_of=original)
    assert equivalence.difference(changed(ILL_CONDITIONED.replace("1e7", "9999999"))) == ""
    assert equivalence.note is not None
    assert equivalence.note.code == "CMP105"
