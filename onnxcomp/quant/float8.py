"""Numbers of 8 bits with an exponent (Micikevicius et al., FP8 formats for deep learning, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxcomp.ir import ir

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray


@dataclass(frozen=True)
class Float8:
    """A format.

    Attributes:
        name: As the standard calls it.
        dtype: Type in a model.
        array: Type in memory.
        largest: Largest finite number.
    """

    name: str
    dtype: ir.DataType
    array: DTypeLike
    largest: float

    def scale(self, reach: NDArray[Any] | float) -> NDArray[np.float32]:
        """Returns the scales with which the largest magnitudes become the largest number."""
        found = np.asarray(reach, np.float64) / self.largest
        usable = np.isfinite(found) & (found > float(np.finfo(np.float32).tiny))
        return np.where(usable, found, 1.0).astype(np.float32)

    def quantize(
        self, values: NDArray[Any], scale: NDArray[np.float32], axis: int | None = None
    ) -> NDArray[Any]:
        """Returns the nearest numbers, ties to even; what is out of reach becomes the largest one.

        Args:
            values: What to round.
            scale: What 1 stands for, one number or one for each index along `axis`.
            axis: Axis of the scales.
        """
        if axis is not None:
            shape = [1] * values.ndim
            shape[axis] = -1
            scale = scale.reshape(shape)
        parts = values.astype(np.float32) / scale
        clipped: NDArray[Any] = np.clip(parts, -self.largest, self.largest).astype(self.array)
        return clipped


E4M3FN = Float8("e4m3fn", ir.DataType.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn, 448.0)
E5M2 = Float8("e5m2", ir.DataType.FLOAT8E5M2, ml_dtypes.float8_e5m2, 57344.0)
FORMATS = {number.name: number for number in (E4M3FN, E5M2)}
