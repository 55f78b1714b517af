"""Passes of another distribution, as a user would write and install them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp import Pass
from onnxcomp.patterns import rewrite_rule, rule_pass

if TYPE_CHECKING:
    from typing import Any

    from onnxcomp import Context


class ToyRelu6(Pass):
    """Bounds every Relu from above."""

    name: ClassVar[str] = "toy-relu6"

    bound: float = 6.0
    """The upper bound."""

    @override
    def run(self, ctx: Context) -> None:
        for node in list(ctx.model.graph):
            if node.op_type == "Relu":
                low = ctx.edit.initializer(
                    np.array(0, np.float32), name="low", graph=ctx.model.graph
                )
                high = ctx.edit.initializer(
                    np.array(self.bound, np.float32), name="high", graph=ctx.model.graph
                )
                clip = ctx.edit.insert("Clip", [node.inputs[0], low, high], before=node)
                ctx.edit.replace(node.outputs[0], clip.outputs[0])
                ctx.edit.remove(node)


class Misnamed(ToyRelu6):
    """A pass whose class and entry point disagree about its name."""

    name: ClassVar[str] = "another-name"


class ToyWrong(Pass):
    """Claims to change nothing, and turns every Relu into an Abs."""

    name: ClassVar[str] = "toy-wrong"
    lossless: ClassVar[bool] = True

    @override
    def run(self, ctx: Context) -> None:
        for node in ctx.model.graph:
            if node.op_type == "Relu":
                ctx.edit.set_operator(node, "Abs")


@rewrite_rule
def whole_already(op: Any, x: Any) -> Any:
    """Reads a value through Ceil when it is whole already."""
    return op.Ceil(op.Floor(x))


@whole_already.becomes
def _(op: Any, x: Any) -> Any:
    return op.Floor(x)


ToyRules = rule_pass("toy-rules", whole_already)
