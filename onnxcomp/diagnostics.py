"""Remarks with a stable code and a place: what was not done, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from typing_extensions import override

from onnxcomp.errors import quoted

if TYPE_CHECKING:
    import onnx_ir as ir


class Severity(StrEnum):
    """How much a diagnostic matters."""

    ERROR = "error"
    WARNING = "warning"
    SKIP = "skip"
    NEAR = "near"  # a rewrite that nearly applied
    NOTE = "note"


@dataclass(frozen=True)
class Location:
    """A place in a model, printable and independent of the model's life."""

    kind: str
    name: str = ""

    @classmethod
    def of(cls, place: ir.Node | ir.Value | str | None) -> Location:
        """Returns the location of a node (its operator and name), a value, or a free text."""
        if place is None:
            return cls("model")
        if isinstance(place, str):
            return cls(place)
        operator = getattr(place, "op_type", "")
        if not operator:
            return cls("value", place.name or "")
        outputs = [value.name for value in getattr(place, "outputs", ()) if value.name]
        return cls(operator, place.name or (outputs[0] if outputs else ""))

    @override
    def __str__(self) -> str:
        return f"{self.kind} {quoted(self.name)}" if self.name else self.kind


@dataclass(frozen=True)
class Diagnostic:
    """One remark.

    Attributes:
        code: Stable code, e.g. `QNT103`; `onnxcomp explain QNT103` tells more.
        severity: How much it matters.
        message: What happened and why, in one line.
        where: The place in the model.
        hint: What the user can do about it, if anything.
        notes: Further lines.
    """

    code: str
    severity: Severity
    message: str
    where: Location = field(default_factory=lambda: Location("model"))
    hint: str = ""
    notes: tuple[str, ...] = ()

    @override
    def __str__(self) -> str:
        text = f"{self.code} {self.severity}: {self.where}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


# Codes of the framework itself. A pass declares its own in `Pass.codes`.
CODES: dict[str, str] = {
    "CMP101": "onnxruntime cannot load the model that came in: it uses an operator, a type or a version that this "
    "build does not have. The result was checked for its structure only; numbers were not compared.",
    "CMP102": "No inputs could be made up that the model accepts, so numbers were not compared. "
    "Give real samples with --data.",
    "CMP103": "The model draws random numbers, so two runs of it cannot be compared.",
    "CMP104": "The model makes a value of more than 1 GiB on the way, so it was not run to compare numbers.",
    "CMP105": "On every input that was tried, a change in its last place changes the outputs beyond the tolerance of "
    "the comparison, so a difference would say nothing. Give real samples with --data.",
    "CMP106": "The model divides integers by a constant 0 or -1. onnxruntime may die of that (the smallest integer divided "
    "by -1), so it was not run to compare numbers.",
    "CMP107": "Running the model once takes too long (more than 60 s, or more than 5 * 10^12 operations), so numbers "
    "were not compared. Smaller sizes (--input-shape) or real samples (--data) may be quicker.",
    "CMP201": "A candidate could not be built or run. The search went on with the others.",
    "CMP202": "No quantized candidate was both inside the limit on quality and faster than float, so the result is the "
    "simplified float model. A larger limit, more or better samples, or a metric of your own may change that.",
    "CMP203": "Conversions that the provider does not absorb into int8 kernels of the result, and why.",
    "GEN101": "Random samples were used. Ranges and accuracy found on noise say little about real data.",
    "PAS101": "A pass raised an error or broke the model. Its work was taken back and the run went on without it. "
    "The reproducer holds the model before the pass and the remaining steps: please report it.",
    "GEN102": "Something in the file cannot be carried through a rewrite and was reported instead of dropped.",
}
