"""Files whose nodes are in another order than they can run in are read, and come out sorted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.errors import ModelError
from onnxcomp.inspection import inspect_model
from onnxcomp.ir import Model
from tests.helpers.check import assert_same
from tests.helpers.text import model

if TYPE_CHECKING:
    from pathlib import Path

SORTED = """
    <ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    g (float[2, 4] x, bool c) => (float[2, 4] y) <float[4, 4] w> {
      h = MatMul (x, w)
      r = Relu (h)
      k = f.act (r)
      z = If (c) <
        then_branch = t () => (float[2, 4] p) { a = Exp (k) b = Neg (a) p = Add (b, h) },
        else_branch = e () => (float[2, 4] q) { q = Neg (k) }>
      y = Add (z, r)
    }
    <domain: "f", opset_import: ["" : 17]>
    act (v) => (o) { s = Sigmoid (v) t = Mul (v, s) o = Neg (t) }
"""


def reverse(proto: onnx.ModelProto, *, main: bool, bodies: bool, functions: bool) -> None:
    lists = []
    for node in proto.graph.node if bodies else ():
        lists += [attr.g.node for attr in node.attribute if attr.HasField("g")]
    lists += [function.node for function in proto.functions] if functions else []
    lists += [proto.graph.node] if main else []  # last, because it copies the others
    for nodes in lists:
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del nodes[:]
        nodes.extend(reversed(copies))


def unsorted(**where: bool) -> onnx.ModelProto:
    proto = model(SORTED)
    reverse(proto, **{"main": False, "bodies": False, "functions": False, **where})
    assert proto != model(SORTED)
    return proto


@pytest.mark.parametrize("where", ["main", "bodies", "functions"])
@pytest.mark.parametrize("as_file", [False, True])
def test_every_scope_is_sorted_on_the_way_in(where: str, as_file: bool, tmp_path: Path) -> None:
    proto = unsorted(**{where: True})
    source: Path | onnx.ModelProto = proto
    if as_file:
        source = tmp_path / "m.onnx"
        onnx.save(proto, source)
    loaded = Model.load(source)
    assert "MDL101" in {note.code for note in loaded.notes}
    onnx.checker.check_model(loaded.to_proto(), full_check=True)
    assert_same(model(SORTED), loaded.to_proto())
    inspect_model(loaded)


@pytest.mark.parametrize("where", ["main", "bodies", "functions"])
def test_optimize_takes_the_file_and_compares_numbers(where: str, tmp_path: Path) -> None:
    onnx.save(unsorted(**{where: True}), tmp_path / "m.onnx")
    result = onnxcomp.optimize(tmp_path / "m.onnx")
    assert {note.code for note in result.diagnostics} == {
        "MDL101"
    }  # and not that it was not compared
    onnx.checker.check_model(result.model.to_proto(), full_check=True)
    assert_same(model(SORTED), result.model.to_proto(), rtol=1e-5, atol=1e-6)


def test_half_precision_as_a_converter_leaves_it() -> None:
    """Casts that were put at the end of the list, as one converter to float16 does."""
    proto = model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[2, 4] x) => (float[2, 4] y) <float16[4, 4] w> {
          m = MatMul (h, w)
          r = Relu (m)
          h = Cast <to = 10> (x)
          y = Cast <to = 1> (r)
        }""")
    got = onnxcomp.optimize(proto).model.to_proto()
    onnx.checker.check_model(got, full_check=True)
    assert_same(proto, got, runtimes=("onnxruntime",), rtol=1e-3, atol=1e-3)


def test_compress_takes_what_the_runtime_refuses_unsorted(tmp_path: Path) -> None:
    onnx.save(unsorted(main=True, bodies=True, functions=True), tmp_path / "m.onnx")
    samples = [
        {"x": np.ones((2, 4), np.float32), "c": np.array(flag)} for flag in (True, False)
    ] * 4
    result = onnxcomp.compress(tmp_path / "m.onnx", samples=samples, trials=1, seconds=0.5)
    onnx.checker.check_model(result.model.to_proto(), full_check=True)


@pytest.mark.parametrize("where", ["graph", "body", "function"])
def test_a_cycle_is_one_clear_line(where: str) -> None:
    proto = unsorted(main=True, bodies=True, functions=True)
    nodes = {
        "graph": proto.graph.node,
        "body": next(attr.g.node for node in proto.graph.node for attr in node.attribute),
        "function": proto.functions[0].node,
    }[where]
    last, first = nodes[0], nodes[-1]
    first.input[0] = last.output[0]
    with pytest.raises(ModelError, match="has a cycle of") as caught:
        Model.load(proto)
    assert "\n" not in caught.value.message
