"""Whether a model has branches or loops at all: most have none, and most passes of this kind can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import is_op

if TYPE_CHECKING:
    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Model


@dataclass(frozen=True)
class Carriers:
    """Which of If, Loop and Scan occur in some scope."""

    def compute(self, model: Model, facts: Facts) -> frozenset[str]:
        """Looks at every node once."""
        del facts
        return frozenset(
            node.op_type for node in model.nodes() if is_op(node, "If", "Loop", "Scan")
        )
