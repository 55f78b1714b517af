"""What the outputs of a model lose when units of channels go, measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.analysis.shapes import Shapes
from onnxcomp.ir import Edit, ir
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Context
    from onnxcomp_passes.prune.support.ends import End

Array = np.ndarray[Any, Any]

# Gates are inputs with a default, which models have had since this version of the format.
_IR_VERSION, _OPSET = 4, 7
_TINY = 1e-30
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(eq=False)
class Effects:
    """A copy of a model with a gate for each unit of each group, and what it gives with all gates open.

    A closed gate does to everything that reads the unit what its removal does: the products with it are
    left out of the sums. Nothing makes up for it.

    Attributes:
        names: The input that opens and closes the units of a group, by its index.
        session: The copy, loaded.
        samples: Feeds.
        wanted: What the model gives for them.
    """

    names: Mapping[int, str]
    session: Session
    samples: Sequence[Any]
    wanted: list[dict[str, Array]] = field(default_factory=list)

    @classmethod
    def prepare(
        cls, ctx: Context, groups: Mapping[int, Sequence[End]], samples: Sequence[Any]
    ) -> Effects | None:
        """Builds the copy; None where gates cannot be had, or outputs are not finite numbers."""
        if ctx.model.ir_version < _IR_VERSION or ctx.model.opset < _OPSET or not samples:
            return None
        copy = ctx.model.copy()
        twins = dict(zip(ctx.model.graph, copy.graph, strict=True))
        gates = _Gates(Edit(copy), copy, ctx.facts.get(Shapes()))
        names = {
            index: gates.add([(end, twins[end.node]) for end in ends])
            for index, ends in groups.items()
            if ends and all(end.node in twins and gates.fits(end) for end in ends)
        }
        if not names:
            return None
        effects = cls(names, Session.open(copy, threads=ctx.threads), samples)
        effects.wanted = [effects._outputs(feed) for feed in samples]
        values = [value for each in effects.wanted for value in each.values()]
        if not values or not all(np.isfinite(value).all() for value in values):
            effects.session.close()
            return None
        return effects

    def _outputs(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        made = self.session.run(feed)
        return {
            name: value.astype(np.float64)
            for name, value in made.items()
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
        }

    def of(self, index: int, gone: Array) -> float:
        """Returns the share of the power of the outputs that is lost, the mean over outputs.

        Args:
            index: A group.
            gone: [units] True for what goes.
        """
        gate = np.append(~gone, True).astype(np.float32)
        noise: dict[str, float] = {}
        signal: dict[str, float] = {}
        for feed, wanted in zip(self.samples, self.wanted, strict=True):
            made = self._outputs({**feed, self.names[index]: gate})
            for name, value in wanted.items():
                same = name in made and made[name].shape == value.shape
                lost = float(np.square(made[name] - value).sum()) if same else np.inf
                noise[name] = noise.get(name, 0.0) + lost
                signal[name] = signal.get(name, 0.0) + float(np.square(value).sum())
        found = float(np.mean([noise[name] / max(signal[name], _TINY) for name in noise]))
        return found if np.isfinite(found) else np.inf


@dataclass(frozen=True, eq=False)
class _Gates:
    """Puts gates into a copy of a model."""

    edit: Edit
    model: Model
    shapes: ShapeMap

    def fits(self, end: End) -> bool:
        """Whether there is an operand of floating point numbers and of known size before a product."""
        value, axis = _masked(end)
        shape = self.shapes.shape(value) or ()
        known = len(shape) > axis and isinstance(shape[axis], int)
        return known and value in end.node.inputs and self.shapes.dtype(value) in _FLOATS

    def add(self, ends: Sequence[tuple[End, ir.Node]]) -> str:
        """Puts gates before all that reads the units of a group; returns the input that sets them."""
        units = len(ends[0][0].places)
        gate = self.edit.initializer(
            np.ones(units + 1, np.float32), name="gate", graph=self.model.graph
        )
        for end, node in ends:
            value, axis = _masked(end)
            index = list(end.node.inputs).index(value)
            spread = self._spread(gate, end.places, (value, axis), node)
            product = self.edit.insert("Mul", [node.inputs[index], spread], before=node)
            self.edit.set_input(node, index, product.outputs[0])
        self.model.graph.inputs.append(gate)
        return gate.name or ""

    def _spread(
        self, gate: ir.Value, places: Array, axis: tuple[ir.Value, int], node: ir.Node
    ) -> ir.Value:
        """Lays the states of units out along an axis of an operand."""
        shape = self.shapes.shape(axis[0]) or ()
        size = shape[axis[1]]
        unit = np.full(size if isinstance(size, int) else 1, len(places), np.int64)
        unit[places] = np.arange(len(places))[:, None]
        graph = self.model.graph
        which = self.edit.initializer(unit, name="unit", graph=graph)
        found = self.edit.insert("Gather", [gate, which], before=node).outputs[0]
        like = np.asarray([-1] + [1] * (len(shape) - axis[1] - 1), np.int64)
        target = self.edit.initializer(like, name="lie", graph=graph)
        found = self.edit.insert("Reshape", [found, target], before=node).outputs[0]
        kind = self.shapes.dtype(axis[0])
        if kind is None or kind == ir.DataType.FLOAT:
            return found
        attributes = {"to": int(kind)}
        return self.edit.insert("Cast", [found], before=node, attributes=attributes).outputs[0]


def _masked(end: End) -> tuple[ir.Value, int]:
    """The operand that is masked: of a recurrence, which reads its own output, the weight."""
    return end.other if end.reads_itself else end.source
