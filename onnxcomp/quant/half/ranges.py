"""What 16 bits would do to the numbers of a model: weights, and activations seen on samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from onnxcomp.ir.backend import ir
from onnxcomp.passbase import QUIET
from onnxcomp.runtime import Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from onnxcomp.ir import Model
    from onnxcomp.passbase import Progress

MEMORY_LIMIT = 1 << 29
_PIECE = 1 << 22
_SQUARED = (1e-12, 1e12)


@dataclass(frozen=True)
class Format:
    """A 16-bit floating point type.

    Attributes:
        dtype: The type.
        array: Its numpy type.
        peak: Its largest number.
        tiny: The smallest number with all its digits.
        worst: Share of the energy, as a ratio of amplitudes, that rounding may cost before it counts as
            underflow: ordinary rounding costs an eighth of it.
    """

    dtype: ir.DataType
    array: np.dtype[Any]
    peak: float
    tiny: float
    worst: float


FORMATS = {
    "float16": Format(ir.DataType.FLOAT16, np.dtype(np.float16), 65504.0, 2.0**-14, 2.0**-9),
    "bfloat16": Format(
        ir.DataType.BFLOAT16,
        np.dtype(ml_dtypes.bfloat16),
        3.3895313892515355e38,
        2.0**-126,
        2.0**-6,
    ),
}


@dataclass
class Loss:
    """What rounding to 16 bits does to the numbers seen at one place.

    Attributes:
        peak: Largest finite magnitude.
        energy: Sum of squares.
        error: Sum of squares of what rounding changes of numbers too small for all digits.
    """

    peak: float = 0.0
    energy: float = 0.0
    error: float = 0.0

    def add(self, array: NDArray[Any], target: Format) -> None:
        """Looks at some numbers; what is infinite or not a number is so in 16 bits too."""
        flat = array.reshape(-1)
        for start in range(0, flat.size, _PIECE):
            self._add(flat[start : start + _PIECE], target)

    def _add(self, piece: NDArray[Any], target: Format) -> None:
        sizes = np.abs(piece)
        peak = float(sizes.max())
        if not np.isfinite(peak):
            sizes = sizes[np.isfinite(sizes)]
            if not sizes.size:
                return
            peak = float(sizes.max())
        self.peak = max(self.peak, peak)
        # In float64 where squares of float32 would be infinite, or nothing.
        wide = sizes if _SQUARED[0] < peak < _SQUARED[1] else sizes.astype(np.float64)
        self.energy += float(np.dot(wide, wide))
        # Ordinary numbers lose a share that is the same for all; only what is smaller can lose more.
        small = sizes[sizes < target.tiny].astype(np.float64)
        if small.size:
            rounded = small.astype(np.float32).astype(target.array).astype(np.float64)
            self.error += float(np.square(rounded - small).sum())

    def trouble(self, target: Format, headroom: float = 1.0) -> str:
        """Returns why these numbers do not fit 16 bits, empty when they do."""
        if self.peak * headroom > target.peak:
            return f"numbers up to {self.peak:.3g} overflow"
        if self.energy > 0.0 and self.error > self.energy * target.worst**2:
            share = float(np.sqrt(self.error / self.energy))
            return f"small numbers underflow: rounding costs {share:.2g} of them"
        return ""


def weight_trouble(tensor: ir.TensorProtocol, target: Format) -> str:
    """Returns why a weight does not fit 16 bits, empty when it does."""
    loss = Loss()
    loss.add(tensor.numpy(), target)
    return loss.trouble(target)


def observe(
    model: Model,
    points: Sequence[str],
    samples: Iterable[Mapping[str, np.ndarray]],
    target: Format,
    *,
    sizes: Mapping[str, int],
    threads: int = 0,
    progress: Progress = QUIET,
) -> dict[str, Loss]:
    """Runs a float model on samples and looks at its activations, which are not stored.

    Args:
        model: The float model.
        points: Values of its main graph, inputs included.
        samples: Feeds; iterated once for each group of points that fits a memory limit.
        target: The 16-bit type.
        sizes: Elements of each value, as far as known.
        threads: Threads of the session.
        progress: Progress bars.
    """
    inputs = {spec.name for spec in model.signature().inputs}
    seen: dict[str, Loss] = {}
    groups = list(_groups(points, sizes))
    with progress(len(groups), "looking at activations") as task:
        for group in groups:
            taps = [name for name in group if name not in inputs]
            with Session.open(model, threads=threads, outputs=taps) as session:
                for feeds in samples:
                    found = {**feeds, **(session.run(feeds, taps) if taps else {})}
                    for name in group:
                        array = found.get(name)
                        if isinstance(array, np.ndarray) and array.dtype == np.float32:
                            seen.setdefault(name, Loss()).add(array, target)
            task.advance()
    return seen


def _groups(points: Sequence[str], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    room = MEMORY_LIMIT
    for name in points:
        need = 4 * sizes.get(name, 0)
        if group and need > room:
            yield group
            group, room = [], MEMORY_LIMIT
        group.append(name)
        room -= need
    if group:
        yield group
