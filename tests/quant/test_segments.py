"""Segments: running a model piece by piece gives what running it as a whole gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from onnxcomp.ir import Model
from onnxcomp.quant.segments import NoTensorError, Walk, split
from onnxcomp.runtime import Session
from tests.helpers.text import model

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

SKIPS = """
    g (float[2, 4] x, float[4] k) => (float[2, 4] y, float[2, 4] m) <float[4, 4] w, float[4] t> {
      c = Relu (t)
      a = MatMul (x, w)
      b = Relu (a)
      m = Add (b, k)
      d = MatMul (m, w)
      e = Add (d, c)
      f = Add (e, a)
      y = Mul (f, x)
    }"""
BODIES = """
    g (float[2, 4] x, bool flag) => (float[2, 4] y) <float[4, 4] w, float[4] t> {
      c = Exp (t)
      a = MatMul (x, w)
      b = Relu (a)
      d = If (flag) <
        then_branch = then () => (float[2, 4] p) { q = Add (a, c) p = Mul (q, w2) },
        else_branch = other () => (float[2, 4] r) { r = Sub (b, t) }
      >
      y = Add (d, b)
    }"""
CALLS = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w> {
      a = own.double (x)
      b = MatMul (a, w)
      y = own.double (b)
    }
    <opset_import: ["" : 21], domain: "own">
    double (v) => (z) { z = Add (v, v) }"""


def feeds(proto: onnx.ModelProto, count: int = 3) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    made = []
    for index in range(count):
        feed: dict[str, np.ndarray] = {}
        for value in proto.graph.input:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = rng.normal(size=shape).astype("f4")
            feed[value.name] = np.array(index % 2 == 0) if value.name == "flag" else array
        made.append(feed)
    return made


def walked(loaded: Model, samples: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Every value that a walk in pieces of one node sees, for each sample."""
    walk = Walk.start(loaded, samples, threads=1)
    seen: list[dict[str, np.ndarray]] = [{} for _ in samples]
    for segment in split(loaded.graph, list(loaded.graph)):
        made = list(walk.run(segment, segment.end.outputs))
        for one, found in zip(seen, made, strict=True):
            one.update(found)
        walk.advance(segment, made)
    assert all(not state for state in walk.states)
    return seen


@pytest.mark.parametrize("text", [SKIPS, BODIES.replace("w2", "t"), CALLS])
def test_pieces_give_what_the_whole_gives(text: str) -> None:
    proto = model(text)
    samples = feeds(proto)
    seen = walked(Model.load(proto), samples)
    with Session.open(proto) as session:
        for feed, found in zip(samples, seen, strict=True):
            for name, wanted in session.run(feed).items():
                np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-6)


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Path) -> None:
    proto = model(SKIPS.replace("[4, 4]", "[40, 40]").replace("4]", "40]").replace("400", "40"))
    Model.load(proto).save(tmp_path / "m.onnx", external=True)
    loaded = Model.load(tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx.data").exists()
    samples = feeds(proto, 1)
    with Session.open(proto) as session:
        wanted = session.run(samples[0])
    np.testing.assert_allclose(walked(loaded, samples)[0]["y"], wanted["y"], rtol=1e-5)


def test_going_back_gives_the_same_again() -> None:
    proto = model(SKIPS)
    loaded = Model.load(proto)
    walk = Walk.start(loaded, feeds(proto), threads=1)
    first, *rest = split(loaded.graph, list(loaded.graph))
    walk.advance(first, list(walk.run(first)))
    mark = walk.mark()
    once = list(walk.run(rest[0]))
    walk.advance(rest[0], once)
    walk.back(mark)
    for one, two in zip(once, walk.run(rest[0]), strict=True):
        assert {name: array.tolist() for name, array in one.items()} == {
            name: array.tolist() for name, array in two.items()
        }


def test_samples_that_take_too_much_memory_are_let_go() -> None:
    proto = model(SKIPS)
    loaded = Model.load(proto)
    walk = Walk.start(loaded, feeds(proto, 8), threads=1)
    walk.limit = 300
    first = split(loaded.graph, list(loaded.graph))[0]
    walk.advance(first, list(walk.run(first)))
    assert 1 <= len(walk.states) < 8


def test_a_value_that_is_no_tensor_cannot_lie_between_pieces() -> None:
    proto = model(
        """g (float[2, 4] x) => (float[2, 4] y) <int64 i = {0}>
        { s = SequenceConstruct (x, x) y = SequenceAt (s, i) }"""
    )
    loaded = Model.load(proto)
    with pytest.raises(NoTensorError, match="no tensor"):
        walked(loaded, feeds(proto))
