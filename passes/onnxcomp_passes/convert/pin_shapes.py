"""Fixes open dimensions of the inputs, so that shapes become numbers throughout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from typing_extensions import override

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.passbase import Pass
from onnxcomp_passes.convert.pinning import Pins, open_shape

if TYPE_CHECKING:
    from onnxcomp.ir import ir
    from onnxcomp.passbase import Context
    from onnxcomp.signature import Dim


class PinShapes(Pass):
    """Fix open dimensions of the inputs at given sizes.

    A named symbol gets its size wherever it occurs: in all inputs, in declared outputs and inside.
    Symbols that are no names ("?") and dimensions without one are fixed where they are meant. Shapes
    of outputs are inferred anew, and what was declared of them and does not hold is dropped. The model
    then takes feeds of these sizes only; what it computes from them is what it did before.

        (float[N, 3, H, W] x) => (float[N, 10] y)
        (float[1, 3, 224, 224] x) => (float[1, 10] y)
    """

    name: ClassVar[str] = "pin-shapes"
    codes: ClassVar[Mapping[str, str]] = {
        "PIN101": "The shape that an output was declared with does not follow from the inputs' and was replaced "
        "by the one that does.",
        "PIN102": "The first dimension of an input has a size of its own, which the batch did not change. Give "
        "its shape as well if another dimension of it is the batch.",
    }

    shapes: tuple[str, ...] = ()
    """Shapes of inputs, `x:1,3,224,224` (`?` leaves a dimension open), and sizes of symbols, `N=1`."""
    batch: Annotated[int, Field(ge=0)] = 0
    """Size of the first dimension of every input where it is open; 0 leaves it open."""

    @override
    def run(self, ctx: Context) -> None:
        graph = ctx.model.graph
        pins = Pins({v.name or "": v for v in graph.inputs if not v.is_initializer()})
        for text in self.shapes:
            pins.read(text)
        for name in pins.pin_batch(self.batch) if self.batch else ():
            ctx.skip("PIN102", pins.inputs[name], "its first dimension is fixed")
        for name, value in pins.inputs.items():
            declared = open_shape(value)
            if declared is None and name in pins.ranks:
                declared = (None,) * pins.ranks[name]
            if declared is not None:
                _declare(ctx, value, pins.applied(name, declared))
        if not ctx.edit.changed:
            return
        _substitute(ctx, pins)
        _declare_results(ctx)


def _declare(ctx: Context, value: ir.Value, dims: tuple[Dim, ...]) -> None:
    if dims != open_shape(value):
        ctx.edit.set_type(value, shape=dims)
        ctx.edit.count("shapes fixed")


def _substitute(ctx: Context, pins: Pins) -> None:
    """Puts sizes of symbols into whatever else is declared with them."""
    for graph in ctx.model.graphs():
        values = [*graph.outputs, *(value for node in graph for value in node.outputs)]
        inner = [] if graph is ctx.model.graph else list(graph.inputs)
        for value in (*inner, *values):
            declared = open_shape(value)
            if declared is not None:
                _declare(ctx, value, pins.applied("", declared))


def _declare_results(ctx: Context) -> None:
    """Declares what follows from the inputs; what contradicts it is dropped."""
    shapes = ctx.facts.refresh(Shapes())
    outputs = dict.fromkeys(ctx.model.graph.outputs)
    made = (value for node in ctx.model.graph for value in node.outputs)
    for value in dict.fromkeys([*outputs, *made]):
        declared, found = open_shape(value), shapes.shape(value)
        if found is None or (declared is None and value not in outputs):
            continue
        if declared is None or len(declared) != len(found):
            kept: tuple[Dim, ...] = (None,) * len(found)
            lies = declared is not None
        else:
            pairs = list(zip(declared, found, strict=True))
            lies = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
            kept = declared
        if lies and value in outputs:
            ctx.note("PIN101", value, f"declared as {declared}")
        _declare(ctx, value, _better(kept, found))


def _better(declared: tuple[Dim, ...], found: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Numbers that follow, and else what is declared."""
    return tuple(
        have if isinstance(have, int) else said for said, have in zip(declared, found, strict=True)
    )
