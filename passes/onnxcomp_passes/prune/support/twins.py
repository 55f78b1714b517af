"""A layer of a pruned model beside what it was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import constant, is_op
from onnxcomp.quant.rows import MatrixRows, Window
from onnxcomp_passes.prune.support.bends import path_of
from onnxcomp_passes.prune.support.regression import Fit, Rows
from onnxcomp_passes.prune.support.weights import RECURRENT, bias_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.quant.readers import Layer
    from onnxcomp.quant.rows import Rows as Cut
    from onnxcomp_passes.prune.support.bends import Bend, Path
    from onnxcomp_passes.prune.support.removal import Removal
    from onnxcomp_passes.prune.support.weights import Bias

    Seen = tuple[NDArray[Any] | None, ...]

_ALONG_ROWS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(eq=False)
class Twin:
    """A layer of the pruned model and what it was.

    Attributes:
        layer: The layer.
        before: The same layer of the model before.
        groups: Which groups of it are left.
        left: (groups, outputs) For each output that is left which one of its group it was.
        bias: The bias of the layer; None when it has none.
        path: Where the layer's output goes; None where that is not to be followed.
        aside: What is added to it on the way, now and before; None for nothing.
    """

    layer: Layer
    before: Layer
    groups: NDArray[np.intp]
    left: NDArray[np.intp]
    bias: Bias | None = field(init=False)
    path: Path | None = field(init=False, default=None)
    aside: tuple[ir.Value, ir.Value] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.bias, bias = bias_of(self.layer), bias_of(self.before)
        # What else adds to the output of a Conv or Gemm without such a bias is not known.
        plain = is_op(self.layer.node, "MatMul") or (self.bias is not None and bias is not None)
        if plain and is_op(self.layer.node, *_ALONG_ROWS) and (self.bias is None) == (bias is None):
            self._follow(bias)

    @cached_property
    def _original(self) -> Fit:
        """What is left of the layer's weight before, with all inputs, and of its bias."""
        before = self.before
        weight = before.read().reshape(before.groups, before.depth, before.outputs)[self.groups]
        weight = np.take_along_axis(weight, self.left[:, None, :], axis=2)
        bias = None if self.bias is None else bias_of(before)
        if bias is None:
            return Fit(weight, None)
        numbers = bias.numbers.reshape(before.groups, before.outputs)[self.groups]
        return Fit(weight, np.take_along_axis(numbers, self.left, axis=1))

    def _follow(self, bias: Bias | None) -> None:
        """Looks for what is added and for the function that follows."""
        rows = self.layer.rows
        space = len(rows.kernel) if isinstance(rows, Window) else 0
        if not space and (self.layer.groups != 1 or self.layer.index != 1):
            return  # channels lie elsewhere
        now = path_of(_end(self.layer, self.bias), self.left.size, space)
        total = self.before.groups * self.before.outputs
        was = path_of(_end(self.before, bias), total, space)
        was = was.pick((self.groups[:, None] * self.before.outputs + self.left).reshape(-1))
        same = now.is_like(was) and np.array_equal(now.factor, was.factor)
        if not (same and now.is_steep) or (now.aside is None and now.bend is None):
            return
        self.path = now
        if now.aside is not None and was.aside is not None:
            self.aside = now.aside, was.aside

    def forget(self) -> None:
        """Looks at the layer's own output alone from now on."""
        self.path = self.aside = None

    @property
    def bend(self) -> Bend | None:
        """The function that follows; None for none."""
        if self.path is None or self.path.bend is None:
            return None
        return replace(self.path.bend, factor=self.path.factor.reshape(self.left.shape))

    @property
    def start(self) -> Fit:
        """Weight and bias as they are."""
        layer = self.layer
        weight = layer.read().reshape(layer.groups, layer.depth, layer.outputs)
        if self.bias is None:
            return Fit(weight, None)
        return Fit(weight, self.bias.numbers.reshape(layer.groups, layer.outputs))

    @property
    def numbers(self) -> int:
        """How many numbers there are in a row."""
        return self.layer.groups * (self.layer.depth + 3 * self.layer.outputs)

    def rows(self, now: Seen, was: Seen, limit: int) -> Rows | None:
        """Returns what the layer reads on a sample and what it should give.

        Args:
            now: What it reads, and what is added to its output.
            was: The same in the model before.
            limit: Rows of the sample that are looked at.

        Returns:
            None when there are not as many rows in both models.
        """
        if now[0] is None or was[0] is None:
            return None
        inputs = cut(self.layer.rows, self.layer, now[0], limit)
        wanted: NDArray[Any] = cut(self.before.rows, self.before, was[0], limit)[self.groups]
        wanted = Rows(wanted, wanted).given(self._original)
        if inputs.shape[1] != wanted.shape[1]:
            return None
        if self.path is None or not inputs.shape[1]:
            return Rows(inputs, wanted)
        aside, before = self._aside(now[1], was[1], limit)
        if not (_fits(aside, wanted) and _fits(before, wanted)):
            return None
        return Rows(inputs, wanted + before, np.broadcast_to(aside, wanted.shape))

    def _aside(
        self, now: NDArray[Any] | None, was: NDArray[Any] | None, limit: int
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """What is added on the way, now and before, as if it were added before the factor."""
        if self.path is None:
            raise ValueError("a layer whose output is not followed")
        shape = (self.left.shape[0], 1, self.left.shape[1])
        factor, shift = self.path.factor.reshape(shape), self.path.shift.reshape(shape)
        if now is None or was is None:
            both = (shift / factor).astype(np.float32)
            return both, both
        one = _grouped(self._output_rows(now, limit), self.layer.groups)
        two = _grouped(self._output_rows(was, limit), self.before.groups)[self.groups]
        if two.shape[2] == self.before.outputs:
            two = np.take_along_axis(two, self.left[:, None, :], axis=2)
        else:
            two = two[..., :0]
        return _divided(one, shift, factor), _divided(two, shift, factor)

    def _output_rows(self, array: NDArray[Any], limit: int) -> NDArray[Any]:
        """The rows of something that is added to the output, as (1, rows, all outputs)."""
        rows: Cut = MatrixRows()
        if isinstance(self.layer.rows, Window):
            ones = (1,) * len(self.layer.rows.kernel)
            if array.ndim != len(ones) + 2:
                return np.zeros((1, 0, 0), np.float32)
            rows = Window(ones, ones, ones, (0,) * (2 * len(ones)))
        pieces = list(rows.pieces(array, limit)) if array.size and array.ndim > 1 else []
        return np.concatenate(pieces, axis=1) if pieces else np.zeros((1, 0, 0), np.float32)


def twin_of(layer: Layer, before: Layer, removal: Removal) -> Twin | None:
    """Returns a pair of layers; None when they cannot be compared."""
    if not (_is_plain(layer) and _is_plain(before)):
        return None
    mask = np.ones(before.shape, bool)
    for axis, size in enumerate(before.shape):
        kept = removal.kept(layer.weight, axis)
        if kept is not None and kept.size == size:
            mask &= kept.reshape(-1, *(1,) * (len(before.shape) - axis - 1))
    parts: NDArray[Any] = before.to_matrix(mask).reshape(before.groups, before.depth, -1)
    left: NDArray[Any] = np.asarray(parts.any(axis=1))
    groups = np.flatnonzero(left.any(axis=1))
    if len(groups) != layer.groups or (left[groups].sum(axis=1) != layer.outputs).any():
        return None
    return Twin(layer, before, groups, np.stack([np.flatnonzero(each) for each in left[groups]]))


def cut(rows: Cut, layer: Layer, source: NDArray[Any], limit: int) -> NDArray[Any]:
    """Returns the rows of an activation, at most some of them."""
    pieces = list(rows.pieces(source, limit)) if source.size else []
    if not pieces:
        return np.zeros((layer.groups, 0, layer.depth), np.float32)
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _is_plain(layer: Layer) -> bool:
    """Whether a layer multiplies rows with a weight of float32 that is its own."""
    tensor = None if layer.is_shared else constant(layer.weight)
    if tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return False
    return is_op(layer.node, *_ALONG_ROWS, *RECURRENT)


def _end(layer: Layer, bias: Bias | None) -> ir.Value:
    """What comes out of a layer and the bias behind it."""
    return layer.node.outputs[0] if bias is None else bias.node.outputs[0]


def _grouped(rows: NDArray[Any], groups: int) -> NDArray[Any]:
    """Turns (1, rows, all channels) into (groups, rows, channels of the group)."""
    if rows.shape[2] % groups:
        return np.zeros((groups, 0, 0), np.float32)
    parts: NDArray[Any] = rows[0].reshape(rows.shape[1], groups, -1)
    return parts.transpose(1, 0, 2)


def _divided(
    rows: NDArray[Any], shift: NDArray[np.float64], factor: NDArray[np.float64]
) -> NDArray[Any]:
    if rows.shape[2] != shift.shape[2]:
        return rows
    divided: NDArray[Any] = (rows + shift.astype(np.float32)) / factor.astype(np.float32)
    return divided


def _fits(rows: NDArray[Any], wanted: NDArray[Any]) -> bool:
    groups, count, outputs = wanted.shape
    return rows.shape[0] == groups and rows.shape[1] in {1, count} and rows.shape[2] == outputs
