"""Folds a Pad into the Conv or the pooling that reads it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from typing_extensions import override

from onnxcomp.diagnostics import Location
from onnxcomp.ir.ops import (
    array,
    attribute,
    has_reference_attribute,
    input_at,
    integers,
    producer_of,
)
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp.rules import NOTHING, Match, Miss, Rule, read_beside
from onnxcomp_passes.simplify.support.base import LocalPass, rewire, shapes_of
from onnxcomp_passes.simplify.support.dims import list_of, normalized

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onnxcomp.analysis.facts import Facts
    from onnxcomp.ir import Edit, ir

# Measured (benchmarks/bench_padding.py): from these extents along the last axis on, kernels that pad
# run slower than a Pad and a kernel that does not.
_WIDE, _WIDE_SQUARE, _WIDE_ALONE = 17, 7, 64
# What these make is never negative, so that a padding of zeros never wins or loses a maximum.
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt")


@dataclass(frozen=True)
class Padding:
    """A Pad over spatial axes with a constant.

    Attributes:
        node: The Pad.
        begins: Elements added before, per spatial axis.
        ends: Elements added after, per spatial axis.
        value: What is added.
    """

    node: ir.Node
    begins: list[int]
    ends: list[int]
    value: float


def padding_before(node: ir.Node, facts: Facts) -> Padding | Miss:
    """Returns the Pad that only `node` reads, if it adds a constant around spatial axes."""
    padding = _any_padding_before(node, facts)
    if padding is None:
        return NOTHING
    if only_reader(padding.node.outputs[0]) is node:
        return padding
    beside = read_beside(padding.node.outputs[0], node)
    return Miss(f"{Location.of(padding.node)} before it {beside}", near=bool(beside))


def _any_padding_before(node: ir.Node, facts: Facts) -> Padding | None:
    pad = producer_of(node.inputs[0], "Pad")
    if pad is None:
        return None
    if has_reference_attribute(pad) or has_reference_attribute(node):
        return None
    rank = shapes_of(facts).rank(pad.inputs[0])
    pads, value = list_of(pad, "pads", 1), _value(pad)
    if attribute(pad, "mode", "constant") != "constant" or pads is None or value is None:
        return None
    if input_at(pad, 3) is not None:
        pads = _spread(pads, integers(input_at(pad, 3)), rank)
    if pads is None or min(pads, default=-1) < 0 or len(pads) < 6:
        return None
    half = len(pads) // 2
    begins, ends = pads[:half], pads[half:]
    if any(begins[:2]) or any(ends[:2]):
        return None
    return Padding(pad, begins[2:], ends[2:], value)


def _value(pad: ir.Node) -> float | None:
    """What a Pad adds: an attribute up to opset 10, an input that may be left out since."""
    if "pads" in pad.attributes:
        return float(attribute(pad, "value", 0.0))
    if input_at(pad, 2) is None:
        return 0.0
    found = array(input_at(pad, 2), limit=1)
    return None if found is None or found.size != 1 else float(found.reshape(()))


def _spread(pads: list[int], axes: list[int] | None, rank: int | None) -> list[int] | None:
    """Lays out the pads of some axes over all axes."""
    if axes is None or rank is None:
        return None
    result = [0] * (2 * rank)
    for index, axis in enumerate(normalized(axes, rank) or ()):
        result[axis], result[rank + axis] = pads[index], pads[len(axes) + index]
    return result


class PadIntoConv:
    """Zeros before a Conv are its own padding."""

    name = "paddings folded into a convolution"
    ops = frozenset({"Conv"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[Padding, list[int]]] | Miss:
        """Finds the Pad and the padding of both together."""
        padding = padding_before(node, facts)
        if isinstance(padding, Miss) or padding.value != 0:
            return padding if isinstance(padding, Miss) else NOTHING
        pads = _total(node, padding)
        if pads is None:
            return NOTHING
        if _stays_apart(padding.node) and _is_slower_padded(node, padding, facts):
            return _SLOWER
        return Match(node, (padding, pads))

    def apply(self, match: Match[tuple[Padding, list[int]]], edit: Edit) -> None:
        """Pads in the operator itself."""
        _absorb(edit, match.node, *match.found)


_SLOWER = Miss("kernels of this shape run slower when they pad by themselves", near=True)


def _stays_apart(pad: ir.Node) -> bool:
    """Whether onnxruntime (up to 1.31 at least) does not fuse a Pad itself when it loads the model.

    It wants a value that is constant, or no such input; one that is there and empty is neither.
    """
    return len(pad.inputs) > 2 and pad.inputs[2] is None


def _is_slower_padded(conv: ir.Node, padding: Padding, facts: Facts) -> bool:
    """Whether kernels of onnxruntime run a Conv quicker on an input that was padded before.

    One column is treated as one row, which is several times faster, but only without padding; and
    along the last axis the positions whose window hangs over an edge are computed one by one.
    """
    shapes = shapes_of(facts)
    kernel = (shapes.shape(conv.inputs[1]) or ())[2:]
    source = (shapes.shape(padding.node.inputs[0]) or ())[2:]
    strides = attribute(conv, "strides", [1])
    if len(source) != len(kernel) or any(step != 1 for step in strides):
        return False
    if len(kernel) == 1:
        return _at_least(kernel[0], _WIDE_ALONE)
    if len(kernel) != 2:
        return False
    if not padding.begins[-1] and not padding.ends[-1]:
        return kernel[-1] == source[-1] == 1 and not _towers_over(kernel[0], source[0])
    is_square = _at_least(kernel[0], _WIDE_SQUARE) and attribute(conv, "group", 1) == 1
    return _at_least(kernel[-1], _WIDE_SQUARE if is_square else _WIDE)


def _at_least(size: int | str | None, least: int) -> bool:
    return isinstance(size, int) and size >= least


def _towers_over(kernel: int | str | None, height: int | str | None) -> bool:
    """Whether most of a kernel lies on zeros wherever it is, which kernels that pad skip."""
    return isinstance(kernel, int) and isinstance(height, int) and kernel > 2 * height


class PadIntoPool:
    """Zeros before an AveragePool without padding of its own are padding that counts.

    Before a MaxPool they are padding where what is pooled is never negative; minus infinity is
    padding before every MaxPool. Each window must hold an element that is no padding.
    """

    name = "paddings folded into a pooling"
    ops = frozenset({"AveragePool", "MaxPool"})

    def match(self, node: ir.Node, facts: Facts) -> Match[tuple[Padding, list[int]]] | Miss:
        """Finds the Pad and the padding of both together."""
        padding = padding_before(node, facts)
        if isinstance(padding, Miss) or len(node.outputs) > 1:
            return padding if isinstance(padding, Miss) else NOTHING
        if attribute(node, "ceil_mode", 0) or set(attribute(node, "dilations") or (1,)) != {1}:
            return NOTHING
        pads, kernel = _total(node, padding), list(attribute(node, "kernel_shape"))
        if pads is None or not all(map(operator.lt, pads, kernel + kernel)):
            return NOTHING
        own = pads != padding.begins + padding.ends
        average = padding.value == 0 and (not own or attribute(node, "count_include_pad", 0) == 1)
        fits = average if node.op_type == "AveragePool" else _never_wins(padding, own)
        return Match(node, (padding, pads)) if fits else NOTHING

    def apply(self, match: Match[tuple[Padding, list[int]]], edit: Edit) -> None:
        """Pads in the operator itself."""
        _absorb(edit, match.node, *match.found)
        if match.node.op_type == "AveragePool":
            edit.set_attribute(match.node, "count_include_pad", 1)


def _never_wins(padding: Padding, own: bool) -> bool:
    """Whether leaving out the padding changes no maximum."""
    if padding.value == -np.inf:
        return True
    maker = producer_of(padding.node.inputs[0], *_NOT_NEGATIVE)
    return padding.value == 0 and maker is not None and not own


def _total(node: ir.Node, padding: Padding) -> list[int] | None:
    """The padding of the operator and of the Pad together."""
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        return None
    extra = padding.begins + padding.ends
    # VALID means none, whatever else is written.
    own = (attribute(node, "pads") if auto == "NOTSET" else None) or (0,) * len(extra)
    return [one + other for one, other in zip(own, extra, strict=True)]


def _absorb(edit: Edit, node: ir.Node, padding: Padding, pads: list[int]) -> None:
    edit.set_attribute(node, "pads", pads)
    edit.set_attribute(node, "auto_pad", None)
    rewire(edit, node, 0, padding.node.inputs[0])


class FusePad(LocalPass):
    """Folds a Pad into the Conv or the pooling that reads it.

    Zeros around the spatial axes become padding of a Conv, or of an AveragePool, which then counts
    them. Before a MaxPool, which pads with minus infinity, they do where what is pooled is never
    negative. Results are the same, except that onnxruntime pools windows with NaN or nothing but
    minus infinity in its own ways; only the reader of the Pad may read it.

        x -> Pad(1) -> Conv -> y
        x -> Conv<pads = 1> -> y
    """

    name = "fuse-pad"
    lossless = True
    near_miss_code = "FPD101"
    codes: ClassVar[Mapping[str, str]] = {
        "FPD101": "A Pad stays before a Conv or a pooling, for the reason given.",
    }

    @override
    def rules(self) -> tuple[Rule, ...]:
        return (PadIntoConv(), PadIntoPool())
