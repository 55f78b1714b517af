"""Plans for providers that want Q/DQ only where weighted layers read (style `inputs`), as TensorRT does.

Such a provider moves Q and DQ through the graph by itself and fuses a layer with what stands behind it
while that is float: Conv + Add + Relu is one kernel when the other input of the Add is quantized. Read
in NVIDIA's manual (explicit quantization, recommendations on the placement of Q/DQ) and in how its Model
Optimizer treats residual branches (`build_non_residual_input_map`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from onnxcomp.ir.ops import single_use, standard_op
from onnxcomp.quant.scheme import Shared

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnxcomp.analysis.shapes import ShapeMap
    from onnxcomp.ir import ir
    from onnxcomp.quant.candidates import Candidate, Candidates
    from onnxcomp.quant.scheme import Scheme
    from onnxcomp.targets import Target

_FUSING = frozenset({"Conv", "ConvTranspose"})
# What may stand between a layer and the Add that it fuses with.
_LOOKED_THROUGH = frozenset({"BatchNormalization"})
# A value that takes part in more Concats keeps parameters of its own.
_MOST_JOINS = 256


def keep_inputs(candidates: Candidates, shapes: ShapeMap) -> None:
    """Leaves candidates whose inputs are to be quantized, with the outputs float.

    Args:
        candidates: What the table of the target names; changed.
        shapes: Shapes of values.
    """
    order = {c.node: i for i, c in enumerate(candidates) if standard_op(c.node) in _FUSING}
    named = dict(candidates.found)
    for key, candidate in named.items():
        found: Candidate | str = replace(candidate, absorbed=None, float_outputs=True)
        if candidate.weight is None and not candidate.is_product_of_activations:
            found = _residual(candidate, order, shapes)
        if isinstance(found, str):
            del candidates.found[key]
            if found:
                candidates.refused.append((candidate.node, found))
        else:
            candidates.found[key] = found
    followers = {c.node: c for c in named.values() if c.family.role == "follow"}
    _raise_inputs(candidates, followers)


def _raise_inputs(candidates: Candidates, followers: dict[ir.Node, Candidate]) -> None:
    """Moves Q/DQ from behind operators that hand on numbers to the front of them.

    Rounding before a MaxPool or a Transpose gives what rounding behind it gives, and the operator works on
    bytes. This is done where nothing but quantized inputs reads the result.
    """
    readers = {
        (c.node, index): key for key, c in candidates.found.items() for index in c.activations
    }
    todo = [c.node.inputs[index] for c in candidates for index in c.activations]
    while todo:
        value = todo.pop()
        maker = None if value is None else value.producer()
        if maker is None or maker not in followers or followers[maker].key in candidates.found:
            continue
        uses = [(use.node, use.idx) for made in maker.outputs for use in made.uses()]
        is_given_out = any(made.is_graph_output() for made in maker.outputs)
        if is_given_out or any(use not in readers for use in uses):
            continue
        for use in uses:
            found = candidates.found[readers.pop(use)]
            left = tuple(index for index in found.activations if index != use[1])
            candidates.found[found.key] = replace(found, activations=left)
        raised = replace(followers[maker], absorbed=None, float_outputs=True)
        candidates.found[raised.key] = raised
        readers |= {(maker, index): raised.key for index in raised.activations}
        todo += [maker.inputs[index] for index in raised.activations]


def _residual(candidate: Candidate, order: dict[ir.Node, int], shapes: ShapeMap) -> Candidate | str:
    """Returns an Add of which only the residual input is quantized, or why there is none."""
    if not candidate.family.residual:
        return ""
    inputs = candidate.node.inputs
    if len(candidate.activations) != 2 or inputs[0] is inputs[1]:
        return "it adds no two activations"
    made = {index: _fusing(inputs[index], order) for index in candidate.activations}
    known = {index: order[node] for index, node in made.items() if node is not None}
    if not known:
        return "no layer with a weight stands in front of it that it could be fused with"
    if shapes.shape(inputs[0]) != shapes.shape(inputs[1]):
        return "its inputs have different shapes, or unknown ones"
    # Of two layers the later one is fused: by then the other's result is there.
    fused = max(known, key=lambda index: known[index])
    other = next(index for index in candidate.activations if index != fused)
    return replace(candidate, absorbed=None, activations=(other,), float_outputs=True)


def _fusing(value: ir.Value | None, order: dict[ir.Node, int]) -> ir.Node | None:
    """Returns the layer that an Add behind it is fused with: one whose result nothing else reads."""
    while value is not None and single_use(value) is not None:
        maker = value.producer()
        if maker is None or maker in order:
            return maker
        if standard_op(maker) not in _LOOKED_THROUGH:
            return None
        value = maker.inputs[0]
    return None


def share_in_joins(
    points: dict[str, Scheme], candidates: Iterable[Candidate], target: Target
) -> None:
    """Gives what goes into a Concat the parameters of what comes out, where both are quantized.

    The provider can then concatenate the numbers as they are. A value takes part in one Concat only:
    the one that covers all others that it takes part in, if there is one (DenseNet).
    """
    if target.style != "inputs":
        return
    values = {value.name or "": value for c in candidates for value in c.inputs}
    leaves: dict[str, frozenset[ir.Value]] = {}
    for name in list(points):
        value = values.get(name)
        joins = [] if value is None else _joins(value, points, target)
        if not 0 < len(joins) <= _MOST_JOINS:
            continue
        for join in joins:
            if join.name not in leaves:
                leaves[join.name or ""] = _leaves(join, target)
        names = [join.name or "" for join in joins]
        widest = max(names, key=lambda each: (len(leaves[each]), each))
        if all(leaves[each] <= leaves[widest] for each in names):
            points[name] = Shared(widest)
    for name, value in values.items():
        wider = {
            found for part in _parts(value, target) if isinstance(found := points.get(part), Shared)
        }
        if len(wider) == 1 and name in leaves:
            only = wider.pop()
            if only.point != name and leaves[name] <= leaves[only.point]:
                points[name] = only


def _parts(value: ir.Value, target: Target) -> list[str]:
    maker = value.producer()
    if maker is None or not _is_join(maker, target):
        return []
    return [each.name or "" for each in maker.inputs if each is not None]


def _joins(value: ir.Value, points: dict[str, Scheme], target: Target) -> list[ir.Value]:
    """Quantized values behind a value that contain it."""
    found: list[ir.Value] = []
    todo, seen = [value], {value}
    while todo and len(found) <= _MOST_JOINS:
        for node in todo.pop().consumers():
            made = node.outputs[0]
            if not _is_join(node, target) or made in seen:
                continue
            seen.add(made)
            todo.append(made)
            if made.name in points:
                found.append(made)
    return found


def _leaves(value: ir.Value, target: Target) -> frozenset[ir.Value]:
    """What a value is put together of."""
    found: set[ir.Value] = set()
    todo, seen = [value], {value}
    while todo:
        current = todo.pop()
        maker = current.producer()
        if maker is None or not _is_join(maker, target):
            found.add(current)
            continue
        fresh = {v for v in maker.inputs if v is not None} - seen
        seen |= fresh
        todo.extend(fresh)
    return frozenset(found)


def _is_join(node: ir.Node, target: Target) -> bool:
    family = target.family_of(standard_op(node))
    return family is not None and family.equal_scales
