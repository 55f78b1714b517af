"""Passes are transactions."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import onnx
import onnx_graphsurgeon as gs
import pytest
from typing_extensions import override

from onnxcomp.errors import PassFailedError, UserError
from onnxcomp.ir import Model, ir
from onnxcomp.passbase import (
    Context,
    NeedsReference,
    NeedsSamples,
    Outcome,
    Pass,
    Requirement,
)
from onnxcomp.pipeline import Pipeline
from onnxcomp.recipe import Fixpoint, read_recipe

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[N, 3] x) => (float[N, 3] y) { a = Relu (x) b = Relu (a) y = Neg (b) }
"""

pytestmark = pytest.mark.usefixtures("plugin")


class DropOneRelu(Pass):
    """Removes the first Relu after another one."""

    name: ClassVar[str] = "drop-one-relu"
    lossless: ClassVar[bool] = True

    @override
    def run(self, ctx: Context) -> None:
        for node in ctx.model.graph:
            first = node.inputs[0]
            if node.op_type == "Relu" and first is not None and first.producer() is not None:
                ctx.edit.replace(node.outputs[0], first)
                ctx.edit.remove(node)
                ctx.note("TST101", node, "dropped")
                return


class Raise(Pass):
    """Changes something, then fails."""

    name: ClassVar[str] = "raise"

    @override
    def run(self, ctx: Context) -> None:
        node = ctx.model.graph[-1]
        ctx.edit.set_operator(node, "Abs")
        message = "boom"
        raise KeyError(message)


class Break(Pass):
    """Leaves a node that reads nothing."""

    name: ClassVar[str] = "break"

    @override
    def run(self, ctx: Context) -> None:
        ctx.edit.set_input(ctx.model.graph[0], 0, ir.Value(name="nowhere"))


class Hungry(Pass):
    """Wants data."""

    name: ClassVar[str] = "hungry"
    needs: ClassVar[tuple[Requirement, ...]] = (NeedsSamples(),)

    @override
    def run(self, ctx: Context) -> None:
        raise AssertionError


class Refuse:
    """An instrument that objects to everything."""

    def before(self, step: Pass, model: Model) -> None:
        """Looks on."""

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        """Objects."""
        return "I do not like it"


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.nodes()]


def test_reports_what_happened_and_leaves_the_source_alone() -> None:
    proto = onnx.parser.parse_model(TEXT)
    before = proto.SerializeToString()
    result = Pipeline((DropOneRelu(),)).run(proto)
    assert operators(result.model) == ["Relu", "Neg"]
    assert proto.SerializeToString() == before
    outcome = result.outcomes[0]
    assert outcome.changed
    assert outcome.step == "drop-one-relu"
    assert outcome.stats["nodes removed"] == 1
    assert [str(found) for found in result.diagnostics] == ['TST101 note: Relu "b": dropped']


@pytest.mark.parametrize("kind", ["path", "proto", "ir", "surgeon", "model"])
def test_takes_a_model_in_any_form(kind: str, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(TEXT)
    onnx.save(proto, tmp_path / "m.onnx")
    source = {
        "path": lambda: tmp_path / "m.onnx",
        "proto": lambda: proto,
        "ir": lambda: ir.from_proto(proto),
        "surgeon": lambda: gs.import_onnx(proto),  # type: ignore[no-untyped-call]
        "model": lambda: Model.load(proto),
    }[kind]()
    assert operators(Pipeline.parse("toy-relu6").run(source).model) == ["Clip", "Clip", "Neg"]


@pytest.mark.parametrize("failing", [Raise(), Break()])
def test_failing_pass_is_rolled_back_and_leaves_a_reproducer(failing: Pass, tmp_path: Path) -> None:
    folder = tmp_path / "reproducer"
    pipeline = Pipeline((DropOneRelu(), failing, *Pipeline.parse("toy-relu6").steps))
    with pytest.raises(PassFailedError, match=f"pass {failing.name} failed and was rolled back"):
        pipeline.run(onnx.parser.parse_model(TEXT), reproducer=folder)
    assert operators(Model.load(folder / "model.onnx")) == ["Relu", "Neg"]
    text = (folder / "recipe.toml").read_text()
    assert text.index(failing.name) < text.index("toy-relu6")


def test_run_can_go_on_without_a_failing_pass(tmp_path: Path) -> None:
    pipeline = Pipeline((Raise(), DropOneRelu()))
    result = pipeline.run(onnx.parser.parse_model(TEXT), on_failure="skip", reproducer=tmp_path)
    assert operators(result.model) == ["Relu", "Neg"]
    assert result.outcomes[0].rolled_back == "KeyError: 'boom'"
    assert result.diagnostics[0].code == "PAS101"


def test_instrument_can_have_work_taken_back(tmp_path: Path) -> None:
    pipeline = Pipeline((DropOneRelu(),), (Refuse(),))
    with pytest.raises(PassFailedError, match="I do not like it"):
        pipeline.run(onnx.parser.parse_model(TEXT), reproducer=tmp_path)


def test_requirements_are_checked_before_anything_runs() -> None:
    with pytest.raises(UserError, match="hungry needs calibration samples"):
        Pipeline((Raise(), Hungry())).run(onnx.parser.parse_model(TEXT))


def test_fixpoint_repeats_until_nothing_changes() -> None:
    text = TEXT.replace("b = Relu (a)", "p = Relu (a) q = Relu (p) r = Relu (q) b = Relu (r)")
    result = Pipeline((Fixpoint((DropOneRelu(),)),)).run(onnx.parser.parse_model(text))
    assert operators(result.model) == ["Relu", "Neg"]
    assert [outcome.changed for outcome in result.outcomes] == [True] * 4 + [False]


def test_fixpoint_stops_at_its_limit() -> None:
    text = TEXT.replace("b = Relu (a)", "p = Relu (a) q = Relu (p) r = Relu (q) b = Relu (r)")
    result = Pipeline((Fixpoint((DropOneRelu(),), limit=2),)).run(onnx.parser.parse_model(text))
    assert len(result.outcomes) == 2


def test_written_reproducer_recipe_can_be_read(tmp_path: Path) -> None:
    pipeline = Pipeline((*Pipeline.parse("toy-relu6").steps,), (Refuse(),))
    with pytest.raises(PassFailedError):
        pipeline.run(onnx.parser.parse_model(TEXT), reproducer=tmp_path)
    assert [str(step) for step in read_recipe(tmp_path / "recipe.toml").steps] == ["toy-relu6"]


def test_report_says_what_was_done() -> None:
    report = Pipeline((DropOneRelu(),)).run(onnx.parser.parse_model(TEXT)).report
    assert report.models[0].nodes == 2
    assert report.to_dict()["steps"][0]["stats"]["nodes removed"] == 1
    assert "drop-one-relu" in str(report)


class Lose(Pass):
    """Changes what the model computes."""

    name: ClassVar[str] = "lose"

    @override
    def run(self, ctx: Context) -> None:
        ctx.edit.set_operator(ctx.model.graph[-1], "Abs")


class LookBack(Pass):
    """Notes what the model was."""

    name: ClassVar[str] = "look-back"
    needs: ClassVar[tuple[Requirement, ...]] = (NeedsReference(),)

    @override
    def run(self, ctx: Context) -> None:
        assert ctx.reference is not None
        ctx.note("TST102", None, " ".join(node.op_type for node in ctx.reference.graph))


def test_reference_is_the_model_before_the_first_lossy_pass() -> None:
    result = Pipeline((DropOneRelu(), Lose(), LookBack())).run(onnx.parser.parse_model(TEXT))
    assert [found.message for found in result.diagnostics if found.code == "TST102"] == ["Relu Neg"]


def test_reference_of_the_caller_wins() -> None:
    given = onnx.parser.parse_model(TEXT.replace("Neg", "Exp"))
    result = Pipeline((Lose(), LookBack())).run(onnx.parser.parse_model(TEXT), reference=given)
    assert [found.message for found in result.diagnostics] == ["Relu Relu Exp"]


def test_comparing_pass_without_a_lossy_one_before_it_needs_a_reference() -> None:
    pipeline = Pipeline((DropOneRelu(), LookBack()))
    with pytest.raises(UserError, match="--reference"):
        pipeline.run(onnx.parser.parse_model(TEXT))
