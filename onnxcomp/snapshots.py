"""Keeps a pipeline's model between its lossy steps, to see what each of them contributes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxcomp.ir import Model
    from onnxcomp.passbase import Outcome, Pass

SIMPLIFIED = "simplified"


@dataclass
class Snapshots:
    """An instrument of pipelines. Weights that do not change are shared with the model.

    Attributes:
        models: By what was done last, the model before each lossy step that follows a change.
        last: What was done since the last of these.
    """

    models: dict[str, Model] = field(default_factory=dict)
    last: str = ""

    def before(self, step: Pass, model: Model) -> None:
        """Keeps the model before a step that changes what it computes."""
        if step.lossless or not self.last:
            return
        label, number = self.last, 1
        while label in self.models:
            number += 1
            label = f"{self.last}, {number}"
        self.models[label] = model.copy()
        self.last = ""

    def after(self, step: Pass, model: Model, outcome: Outcome) -> str:
        """Notes what was done; objects to nothing."""
        del model
        if outcome.changed and (not step.lossless or not self.last):
            self.last = SIMPLIFIED if step.lossless else outcome.step
        return ""
