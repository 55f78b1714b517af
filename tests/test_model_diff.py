"""What changed from one model to another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp import model_diff, weight_diff
from onnxcomp.cli.app import run
from onnxcomp.errors import UserError
from onnxcomp.inspection import diff_models
from onnxcomp.ir import Model
from tests.helpers import text

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from onnxcomp.model_diff import ModelDiff

GRAPH = """
    <ir_version: 8, opset_import: ["" : 17, "my" : 1], producer_name: "me", doc_string: "one">
    g (float[N, 3] x) => (float[N, 4] y)
    <float[3, 4] w, float[4] b = {0, 0, 0, 1}, int64[2] c = {0, 7}> {
      a = MatMul (x, w)
      k = Constant <value = float[1] {3}> ()
      m = Mul (a, k)
      y = Add (m, b)
    }
"""


def diff(*changes: tuple[str, str], graph: str = GRAPH) -> ModelDiff:
    after = graph
    for old, new in changes:
        assert old in after
        after = after.replace(old, new)
    return diff_models(text.model(graph), text.model(after))


def test_equal_models_differ_in_nothing() -> None:
    found = diff()
    assert found.same
    assert found.totals["nodes"] == (4, 4)
    assert found.totals["parameters"] == (19, 19)
    assert found.totals["weight_bytes"] == (4 * 17 + 16, 4 * 17 + 16)


def test_operators_with_the_largest_difference_first() -> None:
    found = diff(
        ("a = MatMul (x, w)", "p = Abs (x) q = Abs (p) a = MatMul (q, w)"), ("Mul (a", "Div (a")
    )
    rows = [(row.operator, row.before, row.after, row.difference) for row in found.operators]
    assert rows == [("Abs", 0, 2, 2), ("Div", 0, 1, 1), ("Mul", 1, 0, -1)]
    assert found.scopes == ()
    assert not found.same


SCOPED = """
    <ir_version: 10, opset_import: ["" : 21, "my" : 1]>
    main (bool c, float[4] x) => (float[4] y) {
      z = my.f (x)
      y = If (c) <
        then_branch = yes () => (float[4] t) { s = Abs (z)  t = Relu (s) },
        else_branch = no () => (float[4] e) { e = Neg (z) }
      >
    }
    <domain: "my", opset_import: ["" : 21]>
    f (x) => (y) { y = Sin (x) }
"""


def test_scopes_and_functions() -> None:
    found = diff(
        ("t = Relu (s)", "t = Neg (s)"), ("y = Sin (x)", "h = Sin (x)  y = Cos (h)"), graph=SCOPED
    )
    rows = {(row.scope, row.operator): row.difference for row in found.scopes}
    assert rows == {
        (model_diff.BODIES, "Relu"): -1,
        (model_diff.BODIES, "Neg"): 1,
        ("function my.f", "Cos"): 1,
    }
    (change,) = found.functions
    assert (change.name, change.before, change.after) == ("my.f", 1, 2)
    gone = diff(
        ('<domain: "my", opset_import: ["" : 21]>\n    f (x) => (y) { y = Sin (x) }', ""),
        graph=SCOPED,
    )
    assert [(row.name, row.before, row.after) for row in gone.functions] == [("my.f", 1, None)]


def test_versions_texts_and_metadata() -> None:
    before, after = text.model(GRAPH), text.model(GRAPH)
    onnx.helper.set_model_props(before, {"same": "1", "gone": "2"})
    onnx.helper.set_model_props(after, {"same": "1", "new": "3"})
    after.opset_import[0].version = 18
    after.producer_name = "you"
    del after.opset_import[1]
    found = diff_models(before, after).header
    assert found == {
        "opset ai.onnx": (17, 18),
        "opset my": (1, None),
        "producer": ("", "you"),
        "metadata gone": ("2", None),
        "metadata new": (None, "3"),
    }


def test_interface() -> None:
    found = diff(
        ("float[N, 3] x", "float[2, 3] x, int32 z"), ("float[N, 4] y", "float[N, 4] y, float[1] k")
    )
    rows = [(row.side, row.name, str(row.before), str(row.after)) for row in found.interface]
    assert rows == [
        ("input", "x", "x: float32[N,3]", "x: float32[2,3]"),
        ("input", "z", "None", "z: int32[]"),
        ("output", "k", "None", "k: float32[1]"),
    ]
    assert not found.order
    two = "g (float[3] x, float[3] z) => (float[3] y) { y = Add (x, z) }"
    assert diff(("float[3] x, float[3] z", "float[3] z, float[3] x"), graph=two).order


def test_weights_that_changed_went_and_came() -> None:
    found = diff(
        ("float[4] b = {0, 0, 0, 1}", "float[4] b = {0, 0, 0, 3}"),
        ("int64[2] c = {0, 7}", "int32[2] c = {0, 7}, float[1] new = {1}"),
        ("float[3, 4] w", "float[3, 4] w2 = {1,2,3,4,5,6,7,8,9,10,11,12}"),
        ("(x, w)", "(x, w2)"),
    ).weights
    rows = [(row.change, row.name, row.before, row.after, row.bytes) for row in found]
    assert rows == [
        ("added", "w2", "", "float[3,4]", 48),
        ("removed", "w", "float[3,4]", "", -48),
        ("changed", "b", "float[4]", "float[4]", 0),
        ("retyped", "c", "int64[2]", "int32[2]", -8),
        ("added", "new", "", "float[1]", 4),
    ]
    assert found[2].distance == 2.0


def test_weights_under_another_name_are_renamed() -> None:
    found = diff(("float[4] b =", "float[4] other ="), ("(m, b)", "(m, other)")).weights
    assert [(row.change, row.name, row.now) for row in found] == [("renamed", "b", "other")]


def test_constants_are_weights_by_the_name_of_their_output() -> None:
    lifted = diff(
        ("k = Constant <value = float[1] {3}> ()", ""),
        ("int64[2] c", "float[1] k = {3}, int64[2] c"),
    )
    assert lifted.weights == ()
    assert [row.difference for row in lifted.operators] == [-1]
    assert [row.name for row in diff(("float[1] {3}", "float[1] {4}")).weights] == ["k"]


@pytest.mark.parametrize("kind", ["string", "float16", "bfloat16", "bool"])
def test_weights_of_every_type_are_compared(kind: str) -> None:
    def model(*contents: Any) -> onnx.ModelProto:
        made = text.model("g (float[3] x) => (float[3] y) { y = Relu (x) }")
        number = getattr(onnx.TensorProto, kind.upper())
        tensor = onnx.helper.make_tensor("t", number, [2], contents)
        made.graph.initializer.append(tensor)
        return made

    one = (b"a", b"bc") if kind == "string" else (0, 1)
    other = (b"ab", b"c") if kind == "string" else (1, 1)
    assert diff_models(model(*one), model(*one)).same
    (change,) = diff_models(model(*one), model(*other)).weights
    assert (change.change, change.name) == ("changed", "t")


def test_not_a_number_equals_itself() -> None:
    graph = "g (float[3] x) => (float[3] y) <float[2] w = {1, 2}> { y = Relu (x) }"
    models = [text.model(graph) for _ in range(2)]
    for model in models:
        weight = np.array([np.nan, 1], np.float32)
        model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    assert diff_models(*models).same
    (change,) = diff_models(models[0], text.model(graph)).weights
    assert change.distance is None


def test_quantized_share() -> None:
    found = diff(("int64[2] c = {0, 7}", "int8[17] c"))
    assert found.totals["quantized"] == (0.0, 0.5)


def test_external_data_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_diff, "_PIECE", 1000)
    graph = "g (float[3] x) => (float[3] y) <float[100, 103] w> { y = Relu (x) }"
    paths = [tmp_path / name / "m.onnx" for name in ("a", "b", "c")]
    for index, path in enumerate(paths):
        path.parent.mkdir()
        model = text.model(graph)
        if index == 2:
            weight = onnx.numpy_helper.to_array(model.graph.initializer[0]).copy()
            weight[99, 102] += 1
            model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
        Model.load(model).save(path, external=True)
    assert diff_models(paths[0], paths[0]).same
    assert diff_models(paths[0], paths[1]).same
    (change,) = diff_models(paths[0], paths[2]).weights
    assert change.distance is not None
    assert 0 < change.distance < 0.1


def test_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    a, b = str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")
    onnx.save(text.model(GRAPH), a)
    onnx.save(
        text.model(
            GRAPH.replace("Mul (a, k)", "Div (a, k)").replace("float[N, 4] y", "float[M, 4] y")
        ),
        b,
    )
    assert run(["inspect", "--diff", a, b]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert ["Div", "0", "1", "+1"] in lines
    assert ["output", "y", "float32[N,4]", "float32[M,4]"] in lines
    assert run(["inspect", "--diff", a, b, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    assert (document["same"], document["totals"]["nodes"]) == (False, [4, 4])
    assert document["interface"][0]["after"] == {
        "dtype": "float32",
        "shape": ["M", 4],
        "optional": False,
    }
    assert run(["inspect", "--diff", a, a]) == 0
    assert "Nothing changed" in capfd.readouterr().out


def test_wrong_usage_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.onnx")
    onnx.save(text.model(GRAPH), path)
    assert run(["inspect", "--diff", path]) == 2
    assert "give two models to compare" in capfd.readouterr().err
    assert run(["inspect", path, path]) == 2
    assert "--diff compares two" in capfd.readouterr().err
    assert run(["inspect", "--diff", path, path, "--dim", "N=1"]) == 2
    assert run(["inspect", "--diff", path, str(tmp_path / "no.onnx")]) == 1
    assert "no.onnx" in capfd.readouterr().err


def test_models_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        diff_models(text.model(GRAPH), tmp_path / "no.onnx")


def test_attributes_and_connections_of_nodes_in_both() -> None:
    graph = """
        g (float[1, 1, 8, 8] x) => (float[N, 1, H, W] y) <float[1, 1, 3, 3] w> {
          a = Relu (x)
          [conv] c = Conv <pads = [1, 1, 1, 1]> (a, w)
          [act] y = Elu <alpha = 0.5> (c)
        }
    """
    found = diff(
        ("<pads = [1, 1, 1, 1]> (a, w)", "<pads = [1, 1, 0, 0], group = 1> (x, w)"),
        (" <alpha = 0.5>", ""),
        graph=graph,
    )
    rows = [
        (row.operator, row.node, row.attribute, row.before, row.after) for row in found.attributes
    ]
    assert rows == [
        ("Conv", "conv", "pads", "[1, 1, 1, 1]", "[1, 1, 0, 0]"),
        ("Conv", "conv", "group", None, "1"),
        ("Elu", "act", "alpha", "0.5", None),
    ]
    assert found.rewired == {"Conv": 1}
    assert not found.same


def test_nodes_of_one_name_are_not_compared() -> None:
    graph = """
        main (bool c, float[4] x) => (float[4] y) {
          y = If (c) <
            then_branch = yes () => (float[4] t) { [same] t = Elu <alpha = 1.0> (x) },
            else_branch = no () => (float[4] e) { [same] e = Elu <alpha = 2.0> (x) }
          >
        }
    """
    assert diff(("alpha = 2.0", "alpha = 3.0"), graph=graph).attributes == ()
