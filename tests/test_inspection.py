"""What a model is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from onnxcomp.errors import UserError
from onnxcomp.inspection import fused_by, inspect_model
from onnxcomp.ir import Model
from tests.helpers import text

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = """
    <ir_version: 8, opset_import: ["" : 17, "my.own" : 1], producer_name: "me", doc_string: "what">
    net (float[N, 3] x, float[M, K, 5] z) => (float[N, 4] y, float[M, K, 5] u)
    <float[3, 4] w, float[4] b = {0, 0, 0, 1}, int64[2] unused = {0, 7}> {
      a = MatMul (x, w)
      y = Add (a, b)
      u = my.own.Thing (z)
    }
"""


def proto() -> onnx.ModelProto:
    return text.model(GRAPH)


def test_operators_are_ranked_by_arithmetic() -> None:
    found = inspect_model(Model.load(proto()), dims={"N": 5})
    rows = {row.operator: row for row in found.operators}
    assert list(rows) == ["MatMul", "Add", "my.own.Thing"]
    assert (rows["MatMul"].flops, rows["MatMul"].weights) == (2 * 5 * 12, 48)
    assert (rows["Add"].flops, rows["Add"].weights) == (20, 16)
    assert rows["MatMul"].traffic == 4 * (15 + 12 + 20)
    assert rows["my.own.Thing"].unknown == 1
    assert (found.flops, found.unknown) == (140, 1)


def test_open_first_dimensions_count_as_one_and_that_is_said() -> None:
    found = inspect_model(Model.load(proto()))
    assert found.assumed == {"N": 1, "M": 1}
    assert found.flops == 2 * 12 + 4


def test_dimensions_without_a_name_go_by_their_place() -> None:
    model = text.model("g (float[?, ?] x) => (float[?, ?] y) { y = Relu (x) }")
    assert inspect_model(Model.load(model), dims={"x:1": 7}).flops == 7
    assert inspect_model(Model.load(model)).unknown == 1


def test_a_dimension_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match='no input has an open dimension "Q"') as caught:
        inspect_model(Model.load(proto()), dims={"Q": 1})
    assert caught.value.hint == "open are: N, M, K"


def test_the_model_is_not_changed() -> None:
    model = Model.load(proto())
    before = model.to_proto().SerializeToString(deterministic=True)
    inspect_model(model, dims={"N": 2})
    assert model.to_proto().SerializeToString(deterministic=True) == before


def test_weights_by_type_with_their_share_of_zeros() -> None:
    model = Model.load(proto())
    by_type = {row.dtype: row for row in inspect_model(model).weights}
    assert (by_type["float"].tensors, by_type["float"].elements) == (2, 16)
    assert by_type["float"].zeros == 3 / 16
    assert by_type["int64"].zeros == 0.5
    unread = inspect_model(model, sparsity=False).weights
    assert all(np.isnan(row.zeros) for row in unread)


def test_foreign_domains_and_header() -> None:
    found = inspect_model(Model.load(proto()))
    assert found.foreign == {"my.own": 1}
    assert found.header["opsets"] == {"ai.onnx": 17, "my.own": 1}
    assert (found.header["producer"], found.header["description"]) == ("", "what")


def test_scopes_are_listed() -> None:
    model = text.model("""
        main (bool c, float[4] x) => (float[4] y) {
          y = If (c) <
            then_branch = yes () => (float[4] t) { s = Abs (x)  t = Relu (s) },
            else_branch = no () => (float[4] e) { e = Neg (x) }
          >
        }
    """)
    found = inspect_model(Model.load(model))
    assert sorted(found.scopes) == [("main", 1), ("no", 1), ("yes", 2)]


def test_shapes_that_the_graph_computes_are_found_by_folding() -> None:
    model = text.model("""
        g (float[N, 8] x) => (float[P, 8] y) <int64 zero = {0}, int64 one = {1}> {
          s = Shape (x)
          n = Gather (s, zero)
          r = Range (zero, n, one)
          rows = Gather (x, r)
          y = Relu (rows)
        }
    """)
    rows = {row.operator: row for row in inspect_model(Model.load(model), dims={"N": 6}).operators}
    assert (rows["Relu"].flops, rows["Relu"].unknown) == (48, 0)


def test_what_a_provider_fuses(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    graph = "g (float[2, 3] x) => (float[2, 4] y) <float[3, 4] w, float[4] b> { a = MatMul (x, w)  y = Add (a, b) }"
    onnx.save(text.model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}'), path)
    found = fused_by(path, "cpu")
    assert found.before == {"Add": 1, "MatMul": 1}
    assert found.after == {"Gemm": 1}


def test_a_model_that_the_provider_does_not_load_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(proto(), path)
    found = fused_by(path, "cpu")
    assert "Thing" in found.problem
    assert found.after == {}
