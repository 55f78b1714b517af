"""Replaces an If whose condition is always the same by the branch that runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import onnx
from typing_extensions import override

from onnxcomp.analysis.propagation import infer_shapes
from onnxcomp.ir import ir
from onnxcomp.ir.envelope import SPARSE_INITIALIZERS
from onnxcomp.ir.ops import array, attribute, is_op
from onnxcomp.ir.regions import inline_body
from onnxcomp.passbase import Pass

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context


class InlineBranches(Pass):
    """Replace an If whose condition is constant by the nodes of the branch that runs.

    Values that the branch captured stay what they are, its own get fresh names, and the names of the
    If's outputs stay. Works inside bodies and functions; an If within the branch is looked at too.

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
    queue = deque(node for node in ctx.model.nodes() if is_op(node, "If"))
    while queue:
        node = queue.popleft()
        body = _taken(node)
        if node.graph is not None and body is not None:
            inline_body(ctx.edit, node, body)


def _contradiction(model: Model) -> str:
    """What strict inference, which runtimes do when they load a model, finds wrong; else empty."""
    proto = model.to_proto(weights=False)
    try:
        infer_shapes(proto, strict=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        return str(error).strip().splitlines()[0][:200]
    return ""


def _taken(node: ir.Node) -> ir.Graph | None:
    """The branch that always runs, None when that is not known or it cannot be moved."""
    condition = array(node.inputs[0], limit=1)
    if condition is None or condition.size != 1:
        return None
    name = "then_branch" if bool(condition.reshape(-1)[0]) else "else_branch"
    body = attribute(node, name, None)
    if not isinstance(body, ir.Graph) or SPARSE_INITIALIZERS in body.meta:
        return None
    return body
