"""Brings a model to the opset that its number formats need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import standard_op
from onnxcomp.runtime import Session
from onnxcomp_passes.convert.opsets import convert

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import Edit, Model, ir

_NEED_RANK = frozenset({"Hardmax", "LogSoftmax", "Softmax"})
# Scales along an axis; Q and DQ of 16 bits.
VERSION, SIXTEEN_BITS = 13, 21


@dataclass(frozen=True)
class Ranks:
    """What shape inference knows, and how many dimensions were seen in a run where it knows nothing."""

    shapes: ShapeMap
    seen: Mapping[str, int]

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Returns the element type of a value."""
        return self.shapes.dtype(value)

    def rank(self, value: ir.Value | None) -> int | None:
        """Returns the number of dimensions."""
        found = self.shapes.rank(value)
        return self.seen.get(value.name or "") if found is None and value is not None else found

    def shape(self, value: ir.Value | None) -> Sequence[int | str | None] | None:
        """Returns the dimensions of a value."""
        return self.shapes.shape(value)


def find_ranks(
    model: Model, shapes: ShapeMap, feeds: Mapping[str, np.ndarray], version: int = VERSION
) -> Ranks:
    """Returns the number of dimensions of what Softmax reads: inferred, or seen in a run."""
    if model.opset >= version:
        return Ranks(shapes, {})
    values = [n.inputs[0] for n in model.nodes() if standard_op(n) in _NEED_RANK]
    unknown = [v for v in values if v is not None and v.name and shapes.rank(v) is None]
    taps = list(dict.fromkeys(v.name or "" for v in unknown if v.graph is model.graph))
    if not taps:
        return Ranks(shapes, {})
    with Session.open(model, outputs=taps, optimization="disable") as session:
        outputs = session.run(feeds)
    return Ranks(shapes, {name: np.ndim(outputs[name]) for name in taps})


def obstacle(model: Model, edit: Edit, known: Ranks, version: int = VERSION) -> str:
    """Returns why a model cannot be brought to an opset without a change of meaning, empty when it can."""
    if model.opset >= version:
        return ""
    if model.core.functions:
        return "it has local functions"
    mark = edit.mark()
    blocked = convert(model, edit, known, version)
    edit.rollback(mark)
    if not blocked:
        return ""
    node, reason = blocked[0].node, blocked[0].reason
    return reason if node is None else f"{node.op_type} of opset {model.opset}: {reason}"


def raise_to(model: Model, edit: Edit, known: Ranks, version: int = VERSION) -> None:
    """Rewrites the nodes of a model for which `obstacle` found none."""
    if model.opset < version:
        convert(model, edit, known, version)
