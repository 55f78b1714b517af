"""Replaces an If by the branch that runs, where it can be told which one that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import onnx
from typing_extensions import override

from onnxcomp.analysis.propagation import infer_shapes
from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import ir
from onnxcomp.ir.envelope import SPARSE_INITIALIZERS
from onnxcomp.ir.ops import array, attribute, is_op, subgraphs
from onnxcomp.ir.regions import inline_body
from onnxcomp.passbase import Pass
from onnxcomp_passes.simplify.control.carriers import Carriers
from onnxcomp_passes.simplify.control.conditions import Known
from onnxcomp_passes.simplify.control.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context


# A branch that is resolved tells more of those before it; longer chains wait for the next run.
_ROUNDS = 8


class InlineBranches(Pass):
    """Replace an If by the nodes of the branch that runs, where it is known which one that is.

    It is known when the condition is constant, when an If around has the same condition or its
    opposite, and when the result of the other branch has a rank with which a node behind it, say an
    LSTM, could not run. Values that the branch captured stay what they are, its own get fresh names,
    and the names of the If's outputs stay. Works inside bodies; an If within the branch is looked at
    too.

        y = If (true) <then: y1 = Relu(x), else: y2 = Neg(x)>        ->        y = Relu(x)
    """

    name: ClassVar[str] = "inline-branches"
    lossless: ClassVar[bool] = True
    codes: ClassVar[Mapping[str, str]] = {
        "INL101": "Branches were not inlined: the model has shapes that contradict each other, which nobody "
        "notices as long as an If stands between them.",
    }

    @override
    def run(self, ctx: Context) -> None:
        if "If" not in ctx.facts.get(Carriers()):
            return
        mark = ctx.edit.mark()
        _inline_all(ctx)
        if ctx.edit.mark() == mark or not (reason := _contradiction(ctx.model)):
            return
        ctx.edit.rollback(mark)
        if not _contradiction(ctx.model):
            ctx.skip("INL101", "model", reason)
        else:
            _inline_all(ctx)


def _inline_all(ctx: Context) -> None:
    for function in ctx.model.core.functions.values():
        _visit(ctx, function.graph, Known(), None)
    root = ctx.model.graph
    _visit(ctx, root, Known(), None)
    for _ in range(_ROUNDS):
        if not _has_open_branches(root):
            break
        mark = ctx.edit.mark()
        _visit(ctx, root, Known(), Ranks(root, ctx.facts.get(Shapes())))
        if ctx.edit.mark() == mark:
            break


def _has_open_branches(graph: ir.Graph) -> bool:
    return any(
        is_op(node, "If") or any(_has_open_branches(body) for body in subgraphs(node))
        for node in graph
    )


def _visit(ctx: Context, nodes: Iterable[ir.Node], known: Known, ranks: Ranks | None) -> None:
    for node in list(nodes):
        if not is_op(node, "If"):
            for body in subgraphs(node):
                _visit(ctx, body, known, ranks)
            continue
        taken = _taken(node, known, ranks)
        if taken is not None:
            inner = list(taken)
            inline_body(ctx.edit, node, taken)
            _visit(ctx, inner, known, ranks)
            continue
        for name, truth in (("then_branch", True), ("else_branch", False)):
            branch = _branch(node, name)
            if branch is not None:
                _visit(ctx, branch, known.plus(node.inputs[0], truth), ranks)


def _contradiction(model: Model) -> str:
    """What strict inference, which runtimes do when they load a model, finds wrong; else empty."""
    proto = model.to_proto(weights=False)
    try:
        infer_shapes(proto, strict=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0][:200]
    return ""


def _branch(node: ir.Node, name: str) -> ir.Graph | None:
    body = attribute(node, name)
    return body if isinstance(body, ir.Graph) else None


def _taken(node: ir.Node, known: Known, ranks: Ranks | None) -> ir.Graph | None:
    """The branch that always runs, None when that is not known or it cannot be moved."""
    truth = _truth(node)
    if truth is None:
        truth = known.truth(node.inputs[0])
    if truth is None and ranks is not None:
        truth = _possible_truth(node, ranks)
    if truth is None:
        return None
    body = _branch(node, "then_branch" if truth else "else_branch")
    return None if body is None or SPARSE_INITIALIZERS in body.meta else body


def _truth(node: ir.Node) -> bool | None:
    condition = array(node.inputs[0], limit=1)
    if condition is None or condition.size != 1:
        return None
    return bool(condition.reshape(-1)[0])


def _possible_truth(node: ir.Node, ranks: Ranks) -> bool | None:
    """The only condition with which every result gets the rank that its readers need."""
    for index, value in enumerate(node.outputs):
        rank = ranks.required(value)
        if rank is None:
            continue
        fits = []
        for name in ("then_branch", "else_branch"):
            body = _branch(node, name)
            possible = None if body is None else ranks.possible(body.outputs[index])
            fits.append(possible is None or rank in possible)
        if fits[0] != fits[1]:
            return fits[0]
    return None
