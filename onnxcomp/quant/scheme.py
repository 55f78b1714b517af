"""How a tensor is quantized: schemes as planned, and the numbers they end in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DType = Literal["uint8", "int8", "uint16", "int16", "int32"]

_LIMITS: dict[str, tuple[int, int]] = {
    "uint8": (0, 255),
    "int8": (-128, 127),
    "uint16": (0, 65535),
    "int16": (-32768, 32767),
    "int32": (-(2**31), 2**31 - 1),
}
# Steps between the largest negative and positive number of a symmetric scheme, on one side.
_ONE_SIDE = {"uint8": 127, "int8": 127, "uint16": 32767, "int16": 32767}


@dataclass(frozen=True)
class QScheme:
    """Parameters of its own, found by looking at the data.

    Attributes:
        dtype: Element type.
        symmetric: Whether the zero point is the middle of the type.
    """

    dtype: DType = "uint8"
    symmetric: bool = False


@dataclass(frozen=True)
class Shared:
    """The parameters of another point, for operators that hand on bytes.

    Attributes:
        point: That point.
    """

    point: str


@dataclass(frozen=True)
class Fixed:
    """Parameters that follow from the operator.

    Attributes:
        scale: Step between neighbouring values.
        zero_point: Number that stands for 0.
        dtype: Element type.
    """

    scale: float
    zero_point: int
    dtype: DType = "uint8"


@dataclass(frozen=True)
class Derived:
    """The product of the scales of other points: an int32 bias.

    Attributes:
        points: Those points.
    """

    points: tuple[str, ...]


Scheme = QScheme | Shared | Fixed | Derived


@dataclass(frozen=True, eq=False)
class Params:
    """Numbers that quantize a tensor.

    Attributes:
        scale: Step, a scalar or one for each index along `axis`.
        zero_point: Number that stands for 0, of the quantized type, same shape as `scale`.
        axis: Where the scales vary, None for the whole tensor.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[Any]
    axis: int | None = None

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest number of the type."""
        return _LIMITS[self.zero_point.dtype.name]

    @property
    def range(self) -> tuple[float, float]:
        """Smallest and largest value of a per-tensor grid."""
        low, high = self.limits
        zero, scale = int(self.zero_point), float(self.scale)
        return (low - zero) * scale, (high - zero) * scale

    def quantize(self, array: NDArray[Any]) -> NDArray[Any]:
        """Returns the numbers for an array, as the standard's QuantizeLinear rounds them."""
        scale, zero = self._along(array, self.scale), self._along(array, self.zero_point)
        numbers = np.rint(array.astype(np.float64) / scale) + zero
        clipped: NDArray[Any] = np.clip(numbers, *self.limits).astype(self.zero_point.dtype)
        return clipped

    def dequantize(self, numbers: NDArray[Any]) -> NDArray[np.float32]:
        """Returns the values that numbers stand for."""
        scale, zero = self._along(numbers, self.scale), self._along(numbers, self.zero_point)
        values: NDArray[np.float32] = ((numbers.astype(np.float64) - zero) * scale).astype(
            np.float32
        )
        return values

    def _along(self, array: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
        if self.axis is None:
            return values.astype(np.float64)
        shape = [1] * array.ndim
        shape[self.axis] = -1
        return values.astype(np.float64).reshape(shape)


def params_for_range(low: float, high: float, scheme: QScheme) -> Params:
    """Returns the grid that covers a range; 0 is always one of its values.

    Args:
        low: Smallest value.
        high: Largest value.
        scheme: Type and symmetry.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    first, last = _LIMITS[scheme.dtype]
    if scheme.symmetric:
        middle = first + (last - first + 1) // 2
        scale = _positive(max(-low, high) / _ONE_SIDE[scheme.dtype])
        return _scalar(scale, middle, scheme.dtype)
    scale = _positive((high - low) / (last - first))
    zero = int(np.clip(np.rint(first - low / float(scale)), first, last))
    # A grid that starts at 0 must not end above `high`: a Clip there would no longer be redundant.
    if zero == first and float(scale) * (last - first) > high > 0.0:
        scale = np.nextafter(scale, np.float32(0))
    return _scalar(scale, zero, scheme.dtype)


def fixed_params(fixed: Fixed) -> Params:
    """Returns the grid of a fixed point."""
    return _scalar(np.float32(fixed.scale), fixed.zero_point, fixed.dtype)


def _positive(scale: float) -> np.float32:
    """A scale that is neither zero nor denormal (an all-zero tensor gets 1)."""
    tiny = float(np.finfo(np.float32).tiny)
    return np.float32(scale) if scale > tiny else np.float32(1.0)


def _scalar(scale: np.float32, zero_point: int, dtype: DType) -> Params:
    return Params(np.asarray(scale, np.float32), np.asarray(zero_point, np.dtype(dtype)))
