"""What a run says it did, and what it nearly did."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, given, settings

import onnxcomp
from onnxcomp.diagnostics import Location
from onnxcomp.ir import Edit, Model
from onnxcomp.ir.trace import Trace
from onnxcomp.pipeline import Pipeline
from tests.helpers import text
from tests.helpers.check import serialized
from tests.helpers.strategies import graphs

if TYPE_CHECKING:
    from onnxcomp.explanation import Explanation

TWO_CONVS = """
    net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 4, 4, 4] z)
    <float[4, 3, 3, 3] w, float[4, 4, 3, 3] v, float[4] s, float[4] b, float[4] m, float[4] r = {1, 1, 1, 1}> {
      [first] c = Conv (x, w)
      [one] y = BatchNormalization (c, s, b, m, r)
      [second] d = Conv (y, v)
      [two] e = BatchNormalization (d, s, b, m, r)
      z = Add (e, d)
    }
"""


def explained(graph: str, passes: str) -> Explanation:
    return Pipeline.parse(passes).run(text.model(graph), explain=True).explanation


def test_a_rule_tells_what_became_of_what() -> None:
    (row,) = explained(TWO_CONVS, "fuse-batchnorm").passes
    assert (row.step, row.runs, row.changing, row.nodes) == ("fuse-batchnorm", 1, 1, -1)
    (rewrite,) = row.rewrites
    assert rewrite.rule == "normalizations folded into the operator before"
    assert (rewrite.before, rewrite.after) == (("Conv", "BatchNormalization"), ("Conv",))
    (change,) = rewrite.changes
    assert change.before == (Location("Conv", "first"), Location("BatchNormalization", "one"))
    assert change.after == (Location("Conv", "first"),)
    assert (rewrite.nodes, rewrite.bytes) == (-1, 16)


def test_a_pass_without_rules_counts_operators() -> None:
    graph = """
        net (float[3] x) => (float[3] y) {
          a = Relu (x)
          b = Neg (x)
          c = Neg (b)
          y = Abs (x)
        }
    """
    (row,) = explained(graph, "eliminate-dead").passes
    (rewrite,) = row.rewrites
    assert (rewrite.rule, rewrite.before, rewrite.after) == ("", ("2 Neg", "1 Relu"), ())
    assert (row.nodes, rewrite.nodes) == (-3, -3)


def test_near_misses_say_what_was_in_the_way() -> None:
    found = explained(TWO_CONVS, "fuse-batchnorm").near_misses
    assert [(miss.code, miss.where) for miss in found] == [
        ("FBN101", (Location("BatchNormalization", "two"),))
    ]
    assert found[0].elements == 4 * 4 * 4


def test_near_misses_of_a_fixpoint_are_told_once_and_only_if_they_still_hold() -> None:
    # While the Identity reads the Conv too, nothing can be folded; when it is gone, it can.
    graph = """
        net (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y)
        <float[4, 3, 3, 3] w, float[4] s, float[4] b, float[4] m, float[4] r = {1, 1, 1, 1}> {
          c = Conv (x, w)
          y = BatchNormalization (c, s, b, m, r)
          unused = Relu (c)
        }
    """
    result = Pipeline.parse("fixpoint(fuse-batchnorm,eliminate-dead)").run(text.model(graph))
    assert [outcome.step for outcome in result.outcomes if outcome.diagnostics] == [
        "fuse-batchnorm"
    ]
    assert result.diagnostics == ()
    assert result.explanation.near_misses == ()
    kept = Pipeline.parse("fixpoint(fuse-batchnorm,eliminate-identity)").run(text.model(TWO_CONVS))
    assert len([o for o in kept.outcomes if o.diagnostics]) > 1
    assert len(kept.diagnostics) == 1


def test_near_misses_with_most_to_gain_come_first() -> None:
    norm = "BatchNormalization ({}, s, b, m, r)"
    graph = f"""
        net (float[2, 4, 3, 3] x, float[2, 4, 9, 9] z) => (float[2, 4, 3, 3] y, float[2, 4, 9, 9] u)
        <float[4] s, float[4] b, float[4] m, float[4] r = {{1, 1, 1, 1}}> {{
          [small] y = {norm.format("x")}
          [large] u = {norm.format("z")}
        }}
    """
    (miss,) = explained(graph, "fuse-batchnorm").near_misses
    assert [place.name for place in miss.where] == ["large", "small"]
    assert miss.elements == 8 * 9 + 8 * 81


def test_nothing_is_recorded_unless_asked_for() -> None:
    result = Pipeline.parse("fuse-batchnorm").run(text.model(TWO_CONVS))
    assert all(not outcome.changes for outcome in result.outcomes)
    assert result.explanation.passes[0].rewrites == ()


def test_what_is_taken_back_is_not_told_as_done() -> None:
    # The first try of constant folding may be rolled back within the pass.
    model = text.model("net (float[3] x) => (float[3] y) { a = Neg (x)  b = Neg (a)  y = Abs (b) }")
    loaded = Model.load(model)
    edit = Edit(loaded)
    edit.trace = Trace()
    edit.begin("test")
    first, second, last = list(loaded.graph)
    edit.set_input(last, 0, loaded.graph.inputs[0])
    edit.trace.close("one", edit.mark())
    mark = edit.mark()
    edit.remove(second)
    edit.remove(first)
    edit.trace.close("two", edit.mark())
    edit.rollback(mark)
    edit.trace.close("three", edit.mark())
    assert [change.rule for change in edit.trace.changes()] == ["one"]
    assert edit.trace.changes()[0].before == (Location("Abs", last.name or "y"),)


def test_optimize_explains_in_text_and_as_data() -> None:
    result = onnxcomp.optimize(text.model(TWO_CONVS), explain=True)
    said = str(result.explanation)
    assert (
        "1 x normalizations folded into the operator before: Conv + BatchNormalization -> Conv"
        in said
    )
    assert 'at "first" + "one"' in said
    assert "What was nearly done:" in said
    assert "What was done:" in str(result.report)
    document = json.loads(result.report.to_json())["explanation"]
    rows = {row["step"]: row for row in document["passes"]}
    assert rows["fuse-batchnorm"]["rewrites"][0]["changes"][0]["after"] == [
        {"kind": "Conv", "name": "first"}
    ]


def test_reasons_that_differ_in_names_only_are_told_once() -> None:
    norm = "BatchNormalization ({}, s, b, m, r)"
    graph = f"""
        g (float[2, 4, 3, 3] x) => (float[2, 4, 3, 3] y, float[2, 4, 3, 3] u)
        <float[4] s, float[4] b, float[4] m, float[4] r = {{1, 1, 1, 1}}> {{
          [one] p = Relu (x)
          [two] q = Abs (x)
          [three] t = Abs (q)
          [a] y = {norm.format("p")}
          [b] u = {norm.format("t")}
          [c] v = {norm.format("q")}
        }}
    """
    found = explained(graph, "fuse-batchnorm")
    assert len(found.near_misses) == 3
    said = str(found)
    assert said.count("FBN101") == 2
    assert "likewise at 1 more" in said


GELU = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2, 8] x) => (float[2, 8] y) <float two = {1.4142135}, float one = {1}, float half = {0.5}> {
      a = Div (x, two)
      b = Erf (a)
      c = Add (b, one)
      d = Mul (x, c)
      [last] y = Mul (d, half)
    }
"""


def test_what_a_newer_opset_could_do_is_told_when_asked() -> None:
    found = explained(GELU, "fuse-activations").near_misses
    assert [(miss.code, miss.where, miss.hint) for miss in found] == [
        ("FAC101", (Location("Mul", "last"),), "optimize --opset 20")
    ]
    assert "opset 20 has an operator for that, the model has opset 17" in found[0].why
    assert not Pipeline.parse("fuse-activations").run(text.model(GELU)).diagnostics
    newer = GELU.replace('"" : 17', '"" : 20')
    assert not explained(newer, "fuse-activations").near_misses


def test_a_factor_at_the_beginning_of_a_gate_is_no_near_miss() -> None:
    graph = """
        g (float[2, 8] x) => (float[2, 8] y) <float[8, 8] w, float[8] b, float[8] k> {
          c = Gemm (x, w, b)
          a = Mul (c, k)
          s = Sigmoid (a)
          y = Mul (c, s)
        }
    """
    assert not explained(graph, "fuse-affine").near_misses
    assert explained(graph.replace("Sigmoid", "Neg"), "fuse-affine").near_misses


@settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(drawn=graphs())
def test_to_explain_changes_nothing(drawn: str) -> None:
    made = [
        onnxcomp.optimize(text.model(drawn), explain=explain, verify=False)
        for explain in (False, True)
    ]
    plain, explained_too = (serialized(result.model.to_proto()) for result in made)
    assert plain == explained_too
    rows = made[1].explanation.passes
    before, after = (Model.load(text.model(drawn)), made[1].model)
    difference = len(list(after.nodes())) - len(list(before.nodes()))
    assert sum(row.nodes for row in rows) == difference
    assert str(made[1].explanation) is not None
