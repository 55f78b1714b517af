"""Changes the numbers of one weight so that its layer gives what it gave in float."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import is_interface, use_count
from onnxcomp.quant.rounded import BiasWriter
from onnxcomp.quant.rounding import Steps, best_numbers, equations, solvable
from onnxcomp.quant.twins import matrices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.ir import Edit
    from onnxcomp.quant.recovery import Site
    from onnxcomp.quant.rounding import Equations

    Floats = NDArray[np.float64]

# How strongly a weight is drawn to the float one: relative to the mean power of the inputs. From 0.03 to 3
# it makes little difference.
_RIDGE = 0.3
# One sample of so many of those that a layer is solved on only judges the solution.
_EVERY = 4
_LEAST_GAIN = 1e-3


@dataclass(eq=False)
class Refit:
    """Chooses integers for the weight of one layer after the other.

    Attributes:
        edit: The way to change the model.
        reach: How far numbers may move, in steps; None for the whole range of the type.
    """

    edit: Edit
    reach: int | None = 1
    refused: dict[str, str] = field(default_factory=dict)

    def __call__(self, site: Site) -> bool:
        """Improves a layer; says whether it changed."""
        if reason := self._obstacle(site):
            self.refused[site.layer.name] = reason
            return False
        # Means need not be right where the bias can make them so; where there is none, they must.
        centred = BiasWriter.can_move(site.layer)
        if not centred and site.layer.bias_index is not None:
            self.refused[site.layer.name] = "its bias is computed while the model runs"
            return False
        judged = [index for index in range(len(site.inputs)) if index % _EVERY == _EVERY - 1]
        used = [index for index in range(len(site.inputs)) if index not in judged]
        fit = self._equations(site, used, centred=centred)
        judge = self._equations(site, judged or used, centred=centred)
        if fit is None or judge is None:
            return False
        numbers = self._best(site, fit, judge)
        if numbers is None:
            return False
        self._write(site, numbers, fit, centred=centred)
        return True

    def _obstacle(self, site: Site) -> str:
        grid = site.layer.grid
        if use_count(grid.source) != 1 or use_count(grid.node.outputs[0]) != 1:
            return "something else reads the weight too"
        if is_interface(grid.source) or not grid.source.is_initializer():
            return "its numbers are not an initializer of the graph's own"
        if not solvable(site.twin.own.depth):
            return f"{site.twin.own.depth} inputs of each output are too many to solve for"
        return ""

    def _equations(self, site: Site, chosen: list[int], *, centred: bool) -> Equations | None:
        groups, outputs = site.twin.own.groups, site.twin.own.outputs
        pairs = []
        for index in chosen:
            rows, wanted = site.input_rows(index), site.wanted[index].rows
            if rows.shape[:2] != (groups, wanted.shape[1]) or wanted.shape[::2] != (
                groups,
                outputs,
            ):
                return None
            pairs.append((rows, wanted))
        return equations(pairs, centred=centred)

    def _best(self, site: Site, fit: Equations, judge: Equations) -> Floats | None:
        """The numbers that make the least error on samples that they were not solved for."""
        own, grid = site.twin.own, site.layer.grid
        old = matrices(own, grid.numbers.astype(np.float64))
        steps = self._steps(site, old)
        prior = site.twin.weight(steps.values(old))
        before = judge.error(steps.values(old)).sum()
        matrix, target = fit.solved(prior, _RIDGE)
        numbers = best_numbers(matrix, target, steps, steps.nearest(target))
        after = judge.error(steps.values(numbers)).sum()
        return numbers if after < before * (1.0 - _LEAST_GAIN) else None

    def _steps(self, site: Site, old: Floats) -> Steps:
        own, grid = site.twin.own, site.layer.grid
        low, high = (np.full(old.shape, float(limit)) for limit in grid.limits())
        if self.reach is not None:
            low, high = np.maximum(low, old - self.reach), np.minimum(high, old + self.reach)
        zero = matrices(own, grid.zeros()).astype(np.float64)
        return Steps(matrices(own, grid.steps()), zero, low, high)

    def _write(self, site: Site, numbers: Floats, fit: Equations, *, centred: bool) -> None:
        own, grid = site.twin.own, site.layer.grid
        before = matrices(own, grid.values())
        old = grid.numbers
        self.edit.set_tensor(grid.source, own.from_matrix(numbers).astype(old.dtype))
        if centred:
            change = matrices(own, grid.values()) - before
            moved = (fit.mean[:, None, :] @ change).reshape(-1)
            BiasWriter(self.edit).move(site.layer, -site.bias_error() - moved)
