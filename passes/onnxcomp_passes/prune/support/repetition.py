"""Numbers that bodies of Loop and Scan carry from round to round, and that stay what they were."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from onnxcomp.ir.ops import attribute, is_op, subgraphs

if TYPE_CHECKING:
    from onnxcomp.ir import ir
    from onnxcomp_passes.prune.support.constancy import Constancy

    Array = np.ndarray[Any, Any]
    Supposed: TypeAlias = dict[tuple[ir.Value, int], Array]

# Rounds of weakening before nothing is supposed any more.
_PATIENCE = 8


def repeat(constancy: Constancy, node: ir.Node) -> None:
    """Supposes that what is carried stays what it starts with; keeps of that what a round confirms.

    This is the optimistic way to find constants around a cycle (Wegman and Zadeck, TOPLAS 1991).

    Args:
        constancy: What is known so far; takes what is found.
        node: The Loop or Scan.
    """
    for body in subgraphs(node):
        first = 2 if is_op(node, "Loop") else 0
        states = len(body.inputs) - first
        states -= attribute(node, "num_scan_inputs", 0) if is_op(node, "Scan") else 0
        shift = 1 if is_op(node, "Loop") else 0
        afters = dict(zip(body.inputs[first : first + states], body.outputs[shift:], strict=False))
        supposed = _start(constancy, node, body, range(first, first + states))
        for patience in range(_PATIENCE + 1):
            _settle(constancy, body, supposed)
            confirmed = _confirmed(constancy, supposed, afters)
            if all(np.array_equal(supposed[k], confirmed[k], equal_nan=True) for k in supposed):
                break
            supposed = confirmed if patience < _PATIENCE - 1 else {}
        for place, inner in enumerate(body.inputs[first : first + states]):
            for axis in constancy.axes(inner) if place < len(node.outputs) else ():
                if (inner, axis) in supposed:
                    constancy.store(node.outputs[place], axis, supposed[(inner, axis)])
        _stack(constancy, node, body, states, shift)


def _start(constancy: Constancy, node: ir.Node, body: ir.Graph, places: range) -> Supposed:
    found: Supposed = {}
    for place in places:
        outer = node.inputs[place] if place < len(node.inputs) else None
        inner = body.inputs[place]
        if outer is None or constancy.shapes.rank(outer) != constancy.shapes.rank(inner):
            continue
        sizes = constancy.shapes.shape(inner) or ()
        for axis in constancy.axes(inner):
            held = constancy.of(outer, axis)
            if len(held) == sizes[axis] and not np.isnan(held).all():
                found[(inner, axis)] = held
    return found


def _settle(constancy: Constancy, body: ir.Graph, supposed: Supposed) -> None:
    """Looks at a body again, with other numbers at its start."""
    constancy.forget(body)
    for (inner, axis), held in supposed.items():
        constancy.store(inner, axis, held)
    constancy.sweep(body)


def _confirmed(
    constancy: Constancy, supposed: Supposed, afters: dict[ir.Value, ir.Value]
) -> Supposed:
    found: Supposed = {}
    for (inner, axis), held in supposed.items():
        after = constancy.of(afters[inner], axis) if inner in afters else held[:0]
        same = held == after if len(after) == len(held) else np.zeros(len(held), bool)
        found[(inner, axis)] = np.where(same, held, np.nan)
    return found


def _stack(constancy: Constancy, node: ir.Node, body: ir.Graph, states: int, shift: int) -> None:
    """What a body returns in each round is stacked along a new first axis."""
    if any(name in node.attributes for name in ("scan_output_axes", "scan_output_directions")):
        return
    for inner, outer in zip(body.outputs[shift + states :], node.outputs[states:], strict=False):
        for axis in constancy.axes(inner) if outer.name else ():
            constancy.store(outer, axis + 1, constancy.of(inner, axis))
