"""What becomes of a layer's output: numbers by channel, something that is added, a function."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir.ops import array, attribute, constant, input_at, is_op, single_use, standard_op

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from onnxcomp.ir import ir

    Function = Callable[[NDArray[Any]], NDArray[Any]]

# Factors this far below the largest one leave nothing of a channel.
_SMALL = 1e-4
_LONGEST = 8


@dataclass(frozen=True, eq=False)
class Bend:
    """A function that does not fall, of a channel times a factor; what comes out is divided by the factor.

    Attributes:
        function: The function.
        slope: How steep it is at most.
        factor: One for each channel, or one for all.
    """

    function: Function
    slope: float
    factor: NDArray[Any] = field(default_factory=lambda: np.ones(1, np.float32))

    def __call__(self, numbers: NDArray[Any]) -> NDArray[Any]:
        """Returns what becomes of numbers (groups, rows, channels of a group)."""
        if self.factor.size == 1 and self.factor.reshape(-1)[0] == 1:
            return self.function(numbers)
        factor = self.factor.reshape(numbers.shape[0], 1, -1).astype(numbers.dtype)
        bent: NDArray[Any] = self.function(numbers * factor) / factor
        return bent


@dataclass(frozen=True, eq=False)
class Path:
    """The way of a layer's output y to the function that follows: f(factor * y + shift + aside).

    Attributes:
        end: The value that the function is of.
        factor: One for each channel.
        shift: One for each channel.
        aside: What is added that is not constant; None for nothing.
        bend: The function; None where none is known.
    """

    end: ir.Value
    factor: NDArray[np.float64]
    shift: NDArray[np.float64]
    aside: ir.Value | None = None
    bend: Bend | None = None

    def is_like(self, other: Path) -> bool:
        """Whether the same is added in both, and the same follows."""
        same = (self.aside is None) == (other.aside is None)
        if self.aside is not None and other.aside is not None:
            same = self.aside.name == other.aside.name
        return same and self.end.name == other.end.name

    def pick(self, channels: NDArray[np.intp]) -> Path:
        """Returns it for some channels."""
        return replace(self, factor=self.factor[channels], shift=self.shift[channels])

    @property
    def is_steep(self) -> bool:
        """Whether something is left of every channel."""
        size = np.abs(self.factor)
        return bool(np.isfinite(self.factor).all() and size.min() > _SMALL * size.max())


def path_of(value: ir.Value, channels: int, space: int) -> Path:
    """Follows a value as long as nothing else reads it.

    Args:
        value: What a layer gives, with its bias.
        channels: How many channels it has.
        space: How many axes there are behind that of the channels.
    """
    path = Path(value, np.ones(channels), np.zeros(channels))
    for _ in range(_LONGEST):
        node = single_use(path.end)
        if node is None or path.end.is_graph_output():
            return path
        step = _affine(node, path, space) or _plus(node, path)
        if step is None:
            return replace(path, bend=_bend(node, path, space))
        path = step
    return path


def _affine(node: ir.Node, path: Path, space: int) -> Path | None:
    """Goes through an operator that does the same to all numbers of a channel, before anything is added."""
    end = node.outputs[0]
    if is_op(node, "Identity"):
        return replace(path, end=end)
    if path.aside is not None:
        return None
    if is_op(node, "BatchNormalization") and space and input_at(node, 0) is path.end:
        return _normalized(node, path)
    if not is_op(node, "Add", "Mul") or len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is path.end else node.inputs[0]
    numbers = _by_channel(array(other), len(path.factor), space)
    if numbers is None:
        return None
    if is_op(node, "Add"):
        return replace(path, end=end, shift=path.shift + numbers)
    return replace(path, end=end, factor=path.factor * numbers, shift=path.shift * numbers)


def _normalized(node: ir.Node, path: Path) -> Path | None:
    found = [array(input_at(node, index)) for index in range(1, 5)]
    if attribute(node, "training_mode", 0) or any(
        each is None or each.shape != path.factor.shape for each in found
    ):
        return None
    scale, offset, mean, variance = (np.asarray(each, np.float64) for each in found)
    scale = scale / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return replace(
        path,
        end=node.outputs[0],
        factor=path.factor * scale,
        shift=(path.shift - mean) * scale + offset,
    )


def _by_channel(
    numbers: NDArray[Any] | None, channels: int, space: int
) -> NDArray[np.float64] | None:
    """Returns a constant as one number for each channel; None when it is not that."""
    if numbers is None or numbers.dtype != np.float32:
        return None
    if numbers.size == 1:
        return np.full(channels, float(numbers.reshape(-1)[0]))
    own = numbers.ndim > space and numbers.shape[numbers.ndim - 1 - space] == channels
    return numbers.reshape(-1).astype(np.float64) if own and numbers.size == channels else None


def _plus(node: ir.Node, path: Path) -> Path | None:
    """Goes through a sum with something that is not constant, once."""
    if not is_op(node, "Add") or path.aside is not None:
        return None
    other = node.inputs[1] if node.inputs[0] is path.end else node.inputs[0]
    if other is None or other is path.end or constant(other) is not None:
        return None
    return replace(path, end=node.outputs[0], aside=other)


def _bend(node: ir.Node, path: Path, space: int) -> Bend | None:
    if input_at(node, 0) is not path.end:
        return None
    if is_op(node, "PRelu"):
        return _sloped(node, len(path.factor), space)
    rule = _BENDS.get(standard_op(node) or "")
    return None if rule is None else rule(node)


def _sloped(node: ir.Node, channels: int, space: int) -> Bend | None:
    """PRelu with one slope for each channel, or one for all."""
    found = _by_channel(array(input_at(node, 1)), channels, space)
    if found is None or not (found >= 0).all():
        return None
    slopes = found.astype(np.float32)

    def function(x: NDArray[Any]) -> NDArray[Any]:
        return np.where(x < 0, x * slopes.reshape(x.shape[0], 1, -1), x)

    return Bend(function, max(float(slopes.max()), 1.0))


def _relu(node: ir.Node) -> Bend:
    del node
    return Bend(lambda x: np.maximum(x, 0), 1.0)


def _clip(node: ir.Node) -> Bend | None:
    bounds = []
    for index, name in ((1, "min"), (2, "max")):
        value = input_at(node, index)
        number = attribute(node, name) if value is None else array(value)
        if value is not None and number is None:
            return None
        bounds.append(None if number is None else np.float32(np.asarray(number).reshape(-1)[0]))
    low, high = bounds
    if low is None and high is None:
        return None
    return Bend(lambda x: np.clip(x, low, high), 1.0)


def _leaky(node: ir.Node) -> Bend | None:
    alpha = np.float32(attribute(node, "alpha", 0.01))
    if not alpha >= 0:
        return None
    return Bend(lambda x: np.where(x < 0, x * alpha, x), max(float(alpha), 1.0))


def _elu(node: ir.Node) -> Bend | None:
    alpha = np.float32(attribute(node, "alpha", 1.0))
    if not alpha >= 0:
        return None
    return Bend(
        lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x), max(float(alpha), 1.0)
    )


def _sigmoid(node: ir.Node) -> Bend:
    del node
    return Bend(lambda x: np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x), 0.25)


def _tanh(node: ir.Node) -> Bend:
    del node
    return Bend(np.tanh, 1.0)


def _hard_sigmoid(node: ir.Node) -> Bend | None:
    alpha, beta = (
        np.float32(attribute(node, "alpha", 0.2)),
        np.float32(attribute(node, "beta", 0.5)),
    )
    if not alpha > 0:
        return None
    return Bend(lambda x: np.clip(x * alpha + beta, 0, 1), float(alpha))


_BENDS: Mapping[str, Callable[[ir.Node], Bend | None]] = {
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "Elu": _elu,
    "Sigmoid": _sigmoid,
    "Tanh": _tanh,
    "HardSigmoid": _hard_sigmoid,
}
