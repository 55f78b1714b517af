"""How much there is to compute in a model whose inputs have open dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxcomp.analysis.cost import Costs
from onnxcomp.analysis.facts import Facts
from onnxcomp.inspection import sized_model

if TYPE_CHECKING:
    from onnxcomp.ir import Model

# What an open dimension counts that is not the batch: a sentence, a strip of an image.
OPEN_SIZE = 128


def arithmetic(model: Model) -> float:
    """Returns the operations of one run; an open batch counts as 1, other open dimensions as 128."""
    sized, _ = sized_model(model, _open_sizes(model))
    costs = Facts(sized).get(Costs())
    return float(sum(cost.flops or 0 for cost in costs.values()))


def _open_sizes(model: Model) -> dict[str, int]:
    first = {spec.shape[0] for spec in model.signature().inputs if spec.shape}
    found: dict[str, int] = {}
    for spec in model.signature().inputs:
        for axis, dim in enumerate(spec.shape or ()):
            if axis and not isinstance(dim, int) and (dim is None or dim not in first):
                found[dim or f"{spec.name}:{axis}"] = OPEN_SIZE
    return found
