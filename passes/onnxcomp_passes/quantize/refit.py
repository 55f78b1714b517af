"""Changes the numbers of one weight so that its layer gives what it gave in float."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from onnxcomp.ir.ops import is_interface, use_count
from onnxcomp.quant.rounded import BiasWriter, can_rescale, rescale
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
_MOST_RESCALED = 1.25


@dataclass(eq=False)
class Refit:
    """Chooses integers for the weight of one layer after the other.

    Attributes:
        edit: The way to change the model.
        reach: How far numbers may move, in steps; None for the whole range of the type.
        rescale: Whether scales may change too.
    """

    edit: Edit
    reach: int | None = 1
    rescale: bool = False
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
        before = matrices(site.twin.own, site.layer.grid.values())
        least = judge.error(before).sum() * (1.0 - _LEAST_GAIN)
        numbers = self._best(site, fit)
        steps = self._steps(site, numbers)
        factor = self._factor(site, fit, steps.values(numbers))
        after = steps.values(numbers) * factor[:, None, :]
        if judge.error(after).sum() >= least:
            return False
        self._write(site, numbers, factor.reshape(-1))
        if centred:
            moved = (fit.mean[:, None, :] @ (after - before)).reshape(-1)
            BiasWriter(self.edit).move(site.layer, -site.bias_error() - moved)
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

    def _best(self, site: Site, fit: Equations) -> Floats:
        """The numbers that make the least error on the samples to fit."""
        old = matrices(site.twin.own, site.layer.grid.numbers.astype(np.float64))
        steps = self._steps(site, old)
        prior = site.twin.weight(steps.values(old))
        matrix, target = fit.solved(prior, _RIDGE)
        return best_numbers(matrix, target, steps, steps.nearest(target))

    def _factor(self, site: Site, fit: Equations, values: Floats) -> Floats:
        """How much larger each output should be, with the numbers as they are: least squares."""
        ones = np.ones((values.shape[0], values.shape[2]))
        if not self.rescale or not can_rescale(site.layer):
            return ones
        product, power = (
            (values * fit.cross).sum(axis=1),
            (values * (fit.gram @ values)).sum(axis=1),
        )
        if site.layer.grid.scale.size == 1:
            product, power = ones * product.sum(), ones * power.sum()
        factor = np.where(power > 0, product / np.where(power > 0, power, 1.0), 1.0)
        return np.clip(factor, 1.0 / _MOST_RESCALED, _MOST_RESCALED)

    def _steps(self, site: Site, old: Floats) -> Steps:
        own, grid = site.twin.own, site.layer.grid
        low, high = (np.full(old.shape, float(limit)) for limit in grid.limits())
        if self.reach is not None:
            low, high = np.maximum(low, old - self.reach), np.minimum(high, old + self.reach)
        zero = matrices(own, grid.zeros()).astype(np.float64)
        return Steps(matrices(own, grid.steps()), zero, low, high)

    def _write(self, site: Site, numbers: Floats, factor: Floats) -> None:
        grid = site.layer.grid
        made = site.twin.own.from_matrix(numbers).astype(grid.numbers.dtype)
        self.edit.set_tensor(grid.source, made)
        if (factor != 1.0).any():
            rescale(self.edit, site.layer, factor)
