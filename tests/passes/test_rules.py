"""`rules`: rewrites from a user's file, as a pass, with `optimize --rules`, and from another distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest
from hypothesis import HealthCheck, given, settings

import onnxcomp
from onnxcomp import registry
from onnxcomp.cli.app import run
from onnxcomp.errors import UserError
from onnxcomp.patterns import load_rules, rewrite_rule, rule_pass
from onnxcomp.pipeline import Pipeline
from onnxcomp_passes.rules import Rules
from tests.helpers import text
from tests.helpers.check import assert_holds, assert_rewrites
from tests.helpers.strategies import graphs

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

RULES = '''
from onnxcomp.patterns import constant, rewrite_rule


@rewrite_rule
def sine_is_odd(op, x):
    """The sine is odd."""
    return op.Sin(op.Neg(x))


@sine_is_odd.becomes
def _(op, x):
    return op.Neg(op.Sin(x))


@rewrite_rule
def twice(op, x):
    return op.Add(x, x)


@twice.becomes
def _(op, x):
    return op.Mul(x, 2)
'''
GRAPH = "g (float[3] x) => (float[3] y) { n = Neg (x)  s = Sin (n)  y = Add (s, s) }"
AFTER = (
    "g (float[3] x) => (float[3] y) <float k = {2}> { n = Sin (x)  s = Neg (n)  y = Mul (s, k) }"
)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "my_rules.py"
    path.write_text(RULES)
    return path


def test_rules_of_a_file(rules: Path) -> None:
    outcome = assert_rewrites(Rules(file=str(rules)), before=GRAPH, after=AFTER)
    assert (outcome.stats["sine_is_odd"], outcome.stats["twice"]) == (1, 1)
    assert list(load_rules(rules)) == ["sine_is_odd", "twice"]
    assert not (rules.parent / "__pycache__").exists()


def test_some_rules_of_a_file(rules: Path) -> None:
    after = "g (float[3] x) => (float[3] y) <float k = {2}> { n = Neg (x)  s = Sin (n)  y = Mul (s, k) }"
    assert_rewrites(Rules(file=str(rules), only=("twice",)), before=GRAPH, after=after)
    with pytest.raises(UserError, match=r'has no rule "thrice" \(it has sine_is_odd, twice\)'):
        Rules(file=str(rules), only=("thrice",)).rules()


def test_a_file_that_changed_is_read_again(rules: Path) -> None:
    load_rules(rules)
    rules.write_text(RULES.replace("def twice", "def two_times").replace("@twice", "@two_times"))
    assert list(load_rules(rules)) == ["sine_is_odd", "two_times"]


@pytest.mark.parametrize(
    ("contents", "said"),
    [
        (None, "cannot read .*: no such file"),
        ("x = 1", "defines no rule"),
        ("1/0", 'cannot run "my_rules.py": ZeroDivisionError'),
        ("def f(:", 'cannot run "my_rules.py": SyntaxError'),
        (
            RULES + '\n@rewrite_rule(name="twice")\ndef other(op, x):\n    return op.Neg(x)\n',
            'two rules named "twice"',
        ),
        (RULES.replace("Neg(x)", "Neg(3j)"), "rule sine_is_odd: Neg gets a complex"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(rules: Path, contents: str | None, said: str) -> None:
    rules.unlink() if contents is None else rules.write_text(contents)
    with pytest.raises(UserError, match=said):
        load_rules(rules)


def test_optimize_applies_rules_of_files_and_objects(rules: Path) -> None:
    @rewrite_rule
    def product(op: Any, x: Any) -> Any:
        return op.Mul(op.Neg(x), 2)

    @product.becomes
    def _(op: Any, x: Any) -> Any:
        return op.Mul(x, -2)

    result = onnxcomp.optimize(text.model(GRAPH), rules=[rules, product], explain=True)
    operators = [node.op_type for node in result.model.graph]
    assert operators[0] == "Sin"
    assert "Neg" not in operators
    steps = {row.step for row in result.explanation.passes if row.rewrites}
    assert {"rules{file=", "product"} <= {step.split('"')[0].split("/")[0] for step in steps}


def test_a_wrong_rule_is_taken_back_alone_and_named(rules: Path, tmp_path: Path) -> None:
    rules.write_text(RULES.replace("op.Mul(x, 2)", "op.Mul(x, 3)"))
    result = onnxcomp.optimize(text.model(GRAPH), rules=[rules], reproducer=tmp_path / "evidence")
    operators = [node.op_type for node in result.model.graph]
    assert operators[0] == "Sin"
    assert "Add" in operators
    found = [remark.message for remark in result.diagnostics if remark.code == "PAS101"]
    assert found
    assert all('only=["twice"]' in message for message in found)


def test_command_line(rules: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, place = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(text.model(GRAPH), model)
    assert run(["optimize", str(model), "-o", str(place), "--rules", str(rules), "--explain"]) == 0
    said = capfd.readouterr().out
    assert "1 x sine_is_odd: Neg + Sin -> Sin + Neg" in " ".join(said.split())
    operators = [node.op_type for node in onnx.load(place).graph.node]
    assert operators[0] == "Sin"
    assert "Add" not in operators
    assert run(["optimize", str(model), "-o", str(place), "--rules", str(tmp_path / "no.py")]) == 1
    assert "no such file" in capfd.readouterr().err


def test_a_recipe_can_name_the_file(rules: Path) -> None:
    pipeline = Pipeline.parse(f'rules{{file="{rules}" only=["twice"]}}')
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert pipeline.run(text.model(GRAPH)).changed


@pytest.mark.usefixtures("plugin")
def test_another_distribution_brings_rules() -> None:
    found = registry.get("toy-rules")
    assert found.lossless
    assert "RUL101" in found.codes
    assert (found.__doc__ or "").startswith("Reads a value through")
    result = Pipeline.parse("toy-rules").run(
        text.model("g (float[3] x) => (float[3] y) { a = Floor (x)  y = Ceil (a) }")
    )
    assert [node.op_type for node in result.model.graph] == ["Floor"]


def _drawn() -> onnxcomp.Pass:
    """Rules that hold for whatever graph is drawn, on operators that graphs have many of."""

    @rewrite_rule
    def relu_twice(op: Any, x: Any) -> Any:
        return op.Relu(op.Relu(x))

    relu_twice.becomes(lambda op, x: op.Relu(x))

    @rewrite_rule
    def sum_with_itself(op: Any, x: Any) -> Any:
        return op.Add(x, x)

    sum_with_itself.becomes(lambda op, x: op.Mul(x, 2))

    @rewrite_rule
    def difference(op: Any, x: Any, y: Any) -> Any:
        return op.Sub(x, op.Neg(y))

    difference.becomes(lambda op, x, y: op.Add(x, y))

    @rewrite_rule
    def relu_of_product(op: Any, x: Any, y: Any) -> Any:
        return op.Relu(op.Mul(x, y))

    relu_of_product.becomes(lambda op, x, y: op.Max(op.Mul(y, x), 0))
    return rule_pass("drawn", relu_twice, sum_with_itself, difference, relu_of_product)()


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=graphs())
def test_right_rules_keep_whatever_is_drawn(drawn: str) -> None:
    assert_holds(_drawn(), drawn, runtimes=("onnxruntime",))
