"""Whether a model has branches, loops or sequences at all: most have none, and passes can go at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import is_op

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model


_NAMES = (
    "If",
    "Loop",
    "Scan",
    "SequenceAt",
    "SequenceLength",
    "ConcatFromSequence",
    "OptionalGetElement",
    "OptionalHasElement",
)


@dataclass(frozen=True)
class Carriers:
    """Which operators on graphs, and which readers of sequences and optional values, occur."""

    def compute(self, model: Model, facts: Facts) -> frozenset[str]:
        """Looks at every node once."""
        del facts
        return frozenset(node.op_type for node in model.nodes() if is_op(node, *_NAMES))
