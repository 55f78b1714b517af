"""Verification finds a pass that is wrong for one kind of numbers only, and takes it back by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pytest
from typing_extensions import override

import onnxcomp
from onnxcomp import verify
from onnxcomp.ir import Model
from onnxcomp.passbase import Pass
from onnxcomp.pipeline import Pipeline
from onnxcomp.verify import Equivalence
from onnxcomp_passes.simplify.eliminate_identity import EliminateIdentity
from tests.helpers.text import model

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context

GRAPH = "g (float[N, 40] x, float[N, 40] z) => (float[N, 40] y) { a = Identity (x) y = Add (a, z) }"


@pytest.fixture(autouse=True)
def _time_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many samples are tried depends on how long one takes, and that on who else is working."""
    monkeypatch.setattr(verify, "SLOW_SECONDS", 60)
    monkeypatch.setattr(verify, "QUICK_SECONDS", 60)


class Break(Pass):
    """Puts something in the place of the Add: `x + z` for most numbers only."""

    name: ClassVar[str] = "break"
    lossless: ClassVar[bool] = True
    how: str = ""

    @override
    def run(self, ctx: Context) -> None:
        add = next(node for node in ctx.model.graph if node.op_type == "Add")
        x, z = add.inputs
        assert x is not None
        edit, graph = ctx.edit, ctx.model.graph

        def number(value: float) -> ir.Value:
            return edit.initializer(np.array(value, np.float32), name="number", graph=graph)

        def put(name: str, *inputs: ir.Value, **attributes: object) -> ir.Value:
            return edit.insert(name, inputs, before=add, attributes=attributes).outputs[0]

        def where(condition: ir.Value, value: float) -> ir.Value:
            return put("Where", condition, number(value), x)

        off = put("Abs", put("Sub", put("Abs", x), number(1e-40)))
        size = put("Clip", put("Cast", put("Size", x), to=1), number(0.0), number(80.0))
        broken: dict[str, Callable[[], ir.Value | None]] = {
            "negative": lambda: put("Relu", x),
            "zero": lambda: where(put("Equal", x, number(0)), 1),
            "minus zero": lambda: where(put("Less", put("Reciprocal", x), number(-1e30)), 5),
            "subnormal": lambda: where(put("Less", off, number(1e-41)), 3),
            "large": lambda: put("Min", x, number(1e5)),
            "batch of one": lambda: put("Div", put("Mul", x, size), number(80.0)),
            "other operand": lambda: z,
        }
        edit.set_input(add, 0, broken[self.how]())


def _run(how: str, graph: str = GRAPH) -> tuple[list[str], onnx.ModelProto]:
    source = Model.load(model(graph))
    equivalence = Equivalence(source, signature_of=source)
    pipeline = Pipeline((Break(how=how), EliminateIdentity()), instruments=(equivalence,))
    result = pipeline.run(source, on_failure="skip")
    taken_back = [outcome.step for outcome in result.outcomes if outcome.rolled_back]
    return taken_back, result.model.to_proto()


@pytest.mark.parametrize(
    "how",
    ["negative", "zero", "minus zero", "subnormal", "large", "batch of one", "other operand"],
)
def test_the_guilty_pass_is_taken_back_and_no_other(how: str) -> None:
    taken_back, got = _run(how)
    assert [step.partition("{")[0] for step in taken_back] == ["break"]
    assert [node.op_type for node in got.graph.node] == ["Add"]


def test_numbers_that_overflow_in_the_original_do_not_count() -> None:
    """exp(x) / sum(exp(x)) is NaN for large numbers where a Softmax is not: both are right."""
    graph = (
        "g (float[N, 40] x) => (float[N, 40] y) <int64[1] i = {1}> "
        "{ e = Exp (x) s = ReduceSum (e, i) y = Div (e, s) }"
    )
    softmax = "g (float[N, 40] x) => (float[N, 40] y) { y = Softmax <axis = 1> (x) }"
    source = Model.load(model(graph))
    equivalence = Equivalence(source, signature_of=source)
    assert equivalence.difference(Model.load(model(softmax))) == ""
    assert equivalence.note is None
    wrong = softmax.replace("axis = 1", "axis = 0")
    assert equivalence.difference(Model.load(model(wrong)))


def test_whole_numbers_stay_valid_indices() -> None:
    graph = (
        "g (int64[N] i, float[N, 3] x) => (float[N, 3] y) <float[2, 3] w> "
        "{ r = Gather (w, i) y = Add (r, x) }"
    )
    source = Model.load(model(graph))
    equivalence = Equivalence(source, signature_of=source)
    other = graph.replace("Add (r, x)", "Sub (r, x)")
    assert equivalence.difference(source.copy()) == ""
    assert equivalence.note is None
    assert equivalence.difference(Model.load(model(other)))


FOREVER = (
    "g (float[2] x) => (float[2] y) <int64 n = {4000000000000}, bool go = {1}> { a = Identity (x) "
    "y = Loop (n, go, a) <body = b (int64 i, bool c, float[2] s) => (bool d, float[2] t) "
    "{ d = Identity (c) t = Sin (s) }> }"
)


def test_a_model_that_runs_for_ages_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxcomp.verify, "MAX_SECONDS", 0.2)
    result = onnxcomp.optimize(model(FOREVER))
    assert [note.code for note in result.notes] == ["CMP107"]
    assert result.changed


def test_a_model_of_very_many_operations_is_not_run() -> None:
    chain = " ".join(f"v{i + 1} = MatMul (v{i}, w)" for i in range(400))
    graph = (
        "g (float[1] x) => (float[2048, 2048] y) <int64[2] s = {2048, 2048}> "
        f"{{ v0 = Expand (x, s) w = Identity (v0) {chain} y = Identity (v400) }}"
    )
    source = Model.load(model(graph))
    equivalence = Equivalence(source, signature_of=source)
    assert equivalence.difference(source) == ""
    assert equivalence.note is not None
    assert equivalence.note.code == "CMP107"
