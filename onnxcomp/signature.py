"""Names, types and shapes of what goes into a model and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    import numpy as np

# A dimension is a number, a symbol that equal dimensions share, or None when it is unknown.
Dim = int | str | None
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: The name in the model.
        dtype: Element type; `None` when the value is not a plain tensor (sequence, map, optional).
        shape: Dimensions, `None` for an unknown rank.
        optional: True when the caller may leave the input out (it has an initializer as default).
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: Shape | None
    optional: bool = False

    @override
    def __str__(self) -> str:
        dims = (
            "?"
            if self.shape is None
            else ",".join("?" if d is None else str(d) for d in self.shape)
        )
        return f"{self.name}: {self.dtype or 'non-tensor'}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """The interface of a model: inputs and outputs in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
