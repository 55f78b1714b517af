"""The base of passes that are made of local rules, and the small steps that rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.analysis.shapes import ShapeMap, Shapes
from onnxcomp.ir.ops import is_read, standard_op
from onnxcomp.rules import RulePass

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, Model, ir
    from onnxcomp.passbase import Context

# Opset 7 brought today's broadcasting and inference forms; what was before has other meanings.
OLDEST_OPSET = 7


def opset_floor(model: Model) -> int:
    """Returns the oldest version of ONNX's own operators that any scope uses, 0 if none does."""
    imports = [
        model.opset_imports,
        *(function.opset_imports for function in model.core.functions.values()),
    ]
    found = [
        versions[domain] for versions in imports for domain in ("", "ai.onnx") if domain in versions
    ]
    return min(found, default=0)


@dataclass(frozen=True)
class OpsetFloor:
    """The oldest version of ONNX's own operators that any scope uses."""

    def compute(self, model: Model, facts: Facts) -> int:
        """Looks it up."""
        del facts
        return opset_floor(model)


class LocalPass(RulePass):
    """A pass of local rules for models of a minimum opset."""

    minimum_opset: ClassVar[int] = OLDEST_OPSET
    preserves = frozenset({Shapes, OpsetFloor})

    @override
    def run(self, ctx: Context) -> None:
        if ctx.facts.get(OpsetFloor()) >= self.minimum_opset:
            super().run(ctx)
        if ctx.edit.trace is not None and self.near_miss_code:
            from onnxcomp_passes.simplify.support.supposing import report_newer

            report_newer(ctx, self.rules(), self.near_miss_code, self.minimum_opset)


def shapes_of(facts: Facts) -> ShapeMap:
    """Returns what is known of all shapes and types."""
    return facts.get(Shapes())


def is_used(value: ir.Value) -> bool:
    """Whether anything reads a value."""
    return is_read(value)


def aliasable(old: ir.Value, new: ir.Value) -> bool:
    """Whether `new` can stand for `old` without an Identity that keeps an output's name."""
    if not old.is_graph_output():
        return True
    maker = new.producer()
    return maker is not None and maker.graph is old.graph and not new.is_graph_output()


def sweep(edit: Edit, *values: ir.Value | None) -> None:
    """Removes the makers of values that nobody reads, and what only they read."""
    waiting = [value.producer() for value in values if value is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node.graph is None or standard_op(node) is None:
            continue
        if any(is_used(value) for value in node.outputs):
            continue
        makers = [value.producer() for value in node.inputs if value is not None]
        edit.remove(node)
        waiting.extend(makers)


def bypass(edit: Edit, node: ir.Node, source: ir.Value) -> None:
    """Makes everybody who reads a node's first output read `source`; the node goes."""
    inputs = list(node.inputs)
    edit.replace(node.outputs[0], source)
    edit.remove(node)
    sweep(edit, *inputs)


def rewire(edit: Edit, node: ir.Node, index: int, source: ir.Value | None) -> None:
    """Makes a node read `source`; what made its old input goes if nobody else reads it."""
    old = node.inputs[index]
    edit.set_input(node, index, source)
    sweep(edit, old)


def turn_into_gather(
    edit: Edit, node: ir.Node, source: ir.Value, axis: int, places: Sequence[int]
) -> None:
    """Makes a node pick places along an axis of a value by number."""
    old = list(node.inputs)
    assert node.graph is not None
    name = f"{node.outputs[0].name}_places"
    index = edit.initializer(np.array(places, np.int64), name=name, graph=node.graph)
    edit.set_operator(node, "Gather")
    edit.set_attribute(node, "allowzero", None)
    edit.set_attribute(node, "axis", axis)
    edit.set_input(node, 0, source)
    edit.set_input(node, 1, index)
    edit.truncate_inputs(node, 2)
    sweep(edit, *old)
