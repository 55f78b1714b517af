"""How tests of passes read: two graphs in ONNX text, and everything that must hold between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from onnxcomp.analysis.facts import Facts
from onnxcomp.ir import Edit, Model
from onnxcomp.passbase import Context, Outcome, Pass
from onnxcomp.pipeline import Pipeline
from tests.helpers.numbers import RUNTIMES, Feeds, assert_same_numbers, seeded_feeds
from tests.helpers.text import difference, model, normal_form

if TYPE_CHECKING:
    from collections.abc import Sequence

Graph = str | onnx.ModelProto


def assert_rewrites(
    rewrite: Pass,
    *,
    before: Graph,
    after: Graph,
    feeds: Sequence[Feeds] | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    full_check: bool = True,
    samples: Any = None,
) -> Outcome:
    """Fails unless a pass turns one graph into the other and everything that must hold, holds.

    Both models pass the full checker; the results are equal in normal form; numbers agree in the
    reference evaluator and in onnxruntime without optimisation (both tolerances 0 demand equality); a
    second run changes nothing; rolling the edit back restores the same bytes.

    Args:
        rewrite: The pass.
        before: What it gets, as ONNX text or protobuf.
        after: What it must make of it.
        feeds: Inputs to compare numbers on; two seeded sets with different symbolic sizes by default.
        runtimes: Which of `reference` and `onnxruntime` can run the graph; empty for neither.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        full_check: Whether the checker infers shapes strictly too.
        samples: Calibration samples for the pass.

    Returns:
        What the pass reported.
    """
    source, expected = _parsed(before), _parsed(after)
    onnx.checker.check_model(source, full_check=full_check)
    got, outcome = run_pass(rewrite, source, samples)
    onnx.checker.check_model(got, full_check=full_check)
    diff = difference(expected, got)
    assert not diff, f"the pass made something else of the graph:\n{diff}"
    assert outcome.changed, "the pass changed the graph but says that it did not"
    assert_same(source, got, feeds=feeds, runtimes=runtimes, rtol=rtol, atol=atol)
    _assert_settled(rewrite, got, samples)
    assert_rolls_back(rewrite, source, samples)
    return outcome


def assert_unchanged(rewrite: Pass, graph: Graph, *, samples: Any = None) -> Outcome:
    """Fails unless a pass leaves a graph as it is, to the byte, and says so."""
    source = _parsed(graph)
    got, outcome = run_pass(rewrite, source, samples)
    diff = difference(source, got)
    assert not diff, f"the pass changed the graph:\n{diff}"
    assert not outcome.changed, "the pass says that it changed the graph"
    untouched = Model.load(source).to_proto()
    assert serialized(got) == serialized(untouched), "the pass changed names or order"
    return outcome


def assert_refuses(
    rewrite: Pass, graph: Graph, *, code: str, at: str = "", samples: Any = None
) -> Outcome:
    """Fails unless a pass leaves a graph alone and reports why, with a code and the place's name."""
    outcome = assert_unchanged(rewrite, graph, samples=samples)
    found = [(item.code, item.where.name) for item in outcome.diagnostics]
    matches = [place for found_code, place in found if found_code == code]
    assert matches, f"no {code} in {found}"
    assert not at or at in matches, f"{code} was reported at {matches}, not at {at}"
    return outcome


def assert_holds(
    rewrite: Pass | Pipeline,
    graph: Graph,
    *,
    feeds: Sequence[Feeds] | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    full_check: bool = True,
) -> onnx.ModelProto:
    """Fails unless a lossless pass (or pipeline) keeps whatever it is given: the properties alone.

    Valid result, same signature, same numbers, idempotent, `changed` exactly when bytes differ.

    Returns:
        The rewritten model.
    """
    source = _parsed(graph)
    pipeline = rewrite if isinstance(rewrite, Pipeline) else Pipeline((rewrite,))
    before = Model.load(source)
    result = pipeline.run(source)
    got = result.model.to_proto()
    onnx.checker.check_model(got, full_check=full_check)
    assert result.model.signature() == before.signature()
    differs = serialized(before.to_proto()) != serialized(got)
    assert result.changed == differs, f"changed is {result.changed}, bytes differ: {differs}"
    assert_same(source, got, feeds=feeds, runtimes=runtimes, rtol=rtol, atol=atol)
    again = pipeline.run(got)
    assert not again.changed, f"a second run changed:\n{difference(got, again.model.to_proto())}"
    return got


def assert_same(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    feeds: Sequence[Feeds] | None = None,
    runtimes: Sequence[str] = RUNTIMES,
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> None:
    """Fails unless two models give the same numbers on some feeds."""
    for feed in feeds if feeds is not None else [seeded_feeds(before, n) for n in range(2)]:
        assert_same_numbers(before, after, feed, runtimes=runtimes, rtol=rtol, atol=atol)


def assert_rolls_back(rewrite: Pass, graph: Graph, samples: Any = None) -> None:
    """Fails unless undoing what a pass did restores the same bytes."""
    loaded = Model.load(_parsed(graph))
    before = serialized(loaded.to_proto())
    edit = Edit(loaded)
    edit.begin(rewrite.name)
    rewrite.run(Context(loaded, edit, Facts(loaded), samples=samples))
    edit.rollback()
    assert serialized(loaded.to_proto()) == before, "rolling back left something behind"


def run_pass(
    rewrite: Pass, source: onnx.ModelProto, samples: Any = None
) -> tuple[onnx.ModelProto, Outcome]:
    """Runs one pass; the source stays as it is."""
    kept = serialized(source)
    result = Pipeline((rewrite,)).run(source, samples=samples)
    assert serialized(source) == kept, "the caller's model was changed"
    return result.model.to_proto(), result.outcomes[0]


def serialized(proto: onnx.ModelProto) -> bytes:
    """Returns bytes that are equal for equal protobufs."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _assert_settled(rewrite: Pass, got: onnx.ModelProto, samples: Any) -> None:
    again, outcome = run_pass(rewrite, got, samples)
    assert not outcome.changed, f"a second run changed:\n{difference(got, again)}"
    assert normal_form(again) == normal_form(got)


def _parsed(graph: Graph) -> onnx.ModelProto:
    return model(graph) if isinstance(graph, str) else graph
