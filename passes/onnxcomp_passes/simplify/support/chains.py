"""Chains of arithmetic with constants, each as `source * scale + shift`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from onnxcomp.ir import ir
from onnxcomp.ir.ops import array, constant, is_op, standard_op
from onnxcomp.ir.ops import single_use as only_reader
from onnxcomp_passes.simplify.support.patterns import completes_a_formula

if TYPE_CHECKING:
    from onnxcomp.analysis.shapes import ShapeMap

    Array = np.ndarray[Any, Any]

STEPS = ("Add", "Sub", "Mul", "Div", "Neg")
# Between them a product neither overflows nor vanishes for numbers that a model works with.
SMALLEST, LARGEST = 2.0**-20, 2.0**20
LARGEST_SHIFT = 2.0**60
# Sums that cancel more than this lose digits in one order that they keep in another.
CANCELLED = 1 / 16
# A constant with more elements is a weight.
LARGEST_CONSTANT = 1 << 16

_ROUNDED = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_DEEPEST = 16


@dataclass(frozen=True)
class Step:
    """One node of a chain: `source * scale + shift`; None stands for 1 and for 0."""

    node: ir.Node
    source: ir.Value
    index: int
    scale: Array | None
    shift: Array | None


@dataclass(frozen=True)
class Merged:
    """What a chain is: its source, its nodes from the first to the last, and their constants as one."""

    source: ir.Value
    steps: tuple[Step, ...]
    scale: Array | None
    shift: Array | None

    @property
    def negates(self) -> bool:
        """Whether it is a constant minus the source."""
        return self.scale is not None and self.scale.size == 1 and bool((self.scale == -1).all())

    @property
    def nodes(self) -> int:
        """How many nodes it takes."""
        return 1 if self.scale is None or self.shift is None or self.negates else 2


def chain_to(node: ir.Node, shapes: ShapeMap) -> list[Step]:
    """Returns the longest chain of arithmetic with constants that ends in a node, first step first."""
    kind = shapes.dtype(node.outputs[0])
    if kind is None or not (kind in _ROUNDED or kind.is_integer()):
        return []
    found: list[Step] = []
    current: ir.Node | None = node
    while current is not None and len(found) < _DEEPEST:
        step = _step(current, exact=kind.is_integer())
        if step is None:
            break
        found.append(step)
        current = step.source.producer()
        if (
            current is None
            or current.graph is not node.graph
            or only_reader(step.source) is not step.node
            or (is_op(current, *STEPS) and completes_a_formula(current))
        ):
            break
    return found[::-1]


def _step(node: ir.Node, *, exact: bool) -> Step | None:
    if standard_op(node) not in STEPS or (exact and node.op_type == "Div"):
        return None
    if node.op_type == "Neg":
        source = node.inputs[0]
        return None if source is None else Step(node, source, 0, np.array(-1), None)
    for index in (0, 1):
        source, number = node.inputs[index], array(node.inputs[1 - index], limit=LARGEST_CONSTANT)
        if source is None or number is None or constant(source) is not None or not number.size:
            continue
        number = number if exact else number.astype(np.float64)
        return _arithmetic(node, source, index, number)
    return None


def _arithmetic(node: ir.Node, source: ir.Value, index: int, number: Array) -> Step | None:
    if node.op_type == "Mul":
        return Step(node, source, index, number, None)
    if node.op_type == "Add":
        return Step(node, source, index, None, number)
    if node.op_type == "Sub":
        if index == 0:
            with np.errstate(over="ignore"):
                return Step(node, source, index, None, np.negative(number))
        return Step(node, source, index, np.array(-1), number)
    if index == 1 or not number.all():
        return None
    return Step(node, source, index, 1 / number, None)


def merge(steps: list[Step], dtype: np.dtype[Any]) -> Merged | str:
    """Returns a chain as one, or why its constants cannot be calculated ahead."""
    exact = dtype.kind in "iu"
    scale: Array | None = None
    shift: Array | None = None
    terms: list[Array] = []
    products: list[Array] = []
    with np.errstate(all="ignore"):
        for step in steps:
            if step.scale is not None:
                factor = step.scale.astype(dtype if exact else np.float64)
                scale = factor if scale is None else np.asarray(scale * factor)
                shift = None if shift is None else np.asarray(shift * factor)
                terms = [np.asarray(term * factor) for term in terms]
                products.append(scale)
            if step.shift is not None:
                shift = step.shift if shift is None else np.asarray(shift + step.shift)
                terms.append(step.shift)
    merged = Merged(steps[0].source, tuple(steps), scale, shift)
    return merged if exact else _sound(merged, products, terms, dtype)


def _sound(
    merged: Merged, products: list[Array], terms: list[Array], dtype: np.dtype[Any]
) -> Merged | str:
    """The chain in its own type, if no number overflows, vanishes or cancels on the way."""
    if any(not _moderate(product) for product in products):
        return "a product on the way might overflow or vanish where that of all constants does not"
    scale, shift = merged.scale, merged.shift
    if shift is not None:
        most = np.max([np.abs(term).max() for term in terms])
        if not np.isfinite(most) or most > LARGEST_SHIFT:
            return "a term is not finite, or too large"
        sizes = np.max(np.broadcast_arrays(*[np.abs(term) for term in terms], shift)[:-1], axis=0)
        if bool((np.abs(shift) < sizes * CANCELLED).any()):
            return "the terms cancel, so that their order matters"
    return Merged(
        merged.source,
        merged.steps,
        None if scale is None else scale.astype(dtype),
        None if shift is None else shift.astype(dtype),
    )


def _moderate(product: Array) -> bool:
    size = np.abs(product)
    return bool(((size >= SMALLEST) & (size <= LARGEST)).all())
